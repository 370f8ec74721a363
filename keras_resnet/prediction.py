"""Image files -> the most probable classes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import keras
import numpy as np

from keras_resnet.architecture.metadata import to_data_format
from keras_resnet.data.image_files import find_images, load_image
from keras_resnet.data.labels import decode_predictions
from keras_resnet.models.cloning import as_functional
from keras_resnet.models.preprocessing import class_names, preprocessing
from keras_resnet.models.transforms import with_input_size


@dataclass
class Prediction:
    """The most probable classes of one image file, or the error that kept it from being read."""

    path: Path
    classes: list[tuple[str, str, float]] = field(default_factory=list)
    """(id, name, probability), the most probable class first."""
    error: str | None = None


class Classifier:
    """A Keras model with its preprocessing and class names; an exported model has the same attributes and methods.

    Raises:
        ValueError: on construction, if the model's preprocessing is not known.
    """

    def __init__(self, model: keras.Model):
        self.model = as_functional(model)
        self.preprocessing, self.class_names = preprocessing(self.model), class_names(self.model)

    def prepare(self, images: Any) -> np.ndarray:
        """Preprocessed model inputs, from anything that a Preprocessing takes."""
        return self.preprocessing(images)

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """(B, H, W, C) -> (B, classes)."""
        return predict_probabilities(self.model, inputs)


@overload
def predict(
    model: Any, paths: Any, top: int = ..., batch_size: int = ..., stream: Literal[False] = ..., size: int | None = ...
) -> list[Prediction]: ...
@overload
def predict(
    model: Any, paths: Any, top: int = ..., batch_size: int = ..., *, stream: Literal[True], size: int | None = ...
) -> Iterator[Prediction]: ...
def predict(
    model: Any, paths: Any, top: int = 5, batch_size: int = 32, stream: bool = False, size: int | None = None
) -> list[Prediction] | Iterator[Prediction]:
    """Classifies image files.

    >>> import numpy as np
    >>> from PIL import Image
    >>> from keras_resnet import create, predict
    >>> Image.fromarray(np.full((32, 32, 3), 128, "uint8")).save("grey.png")
    >>> predictions = predict(create("resnet20", weights="cifar10"), "grey.png", top=1)
    >>> print(predictions[0].path, [name for id, name, probability in predictions[0].classes])
    grey.png ['cat']

    Args:
        model: a Keras classifier whose preprocessing is known, or what `load_exported` returned.
        paths: a file, a folder (searched for images, with its folders), or a list of them.
        top: number of classes for each image.
        batch_size: number of images that are in memory together.
        stream: whether to return an iterator, which classifies the images batch by batch as they are requested.
        size: side of the model's input images in pixels; None: as the model was built, or its weights were trained.

    Returns:
        A list with a Prediction for each image, in order; an iterator of them if `stream`. Its `error` is set for a
        file that is not an image or is damaged.

    Raises:
        ValueError, FileNotFoundError: if a file does not exist, a folder has no images, or the model's preprocessing is
            not known.
    """
    predictions = _predictions(_classifier(with_input_size(model, size)), find_images(paths), top, batch_size)
    return predictions if stream else list(predictions)


def _predictions(classifier, paths, top, batch_size):
    """Yields the Prediction of each image file; reads and classifies a batch when its first is requested."""
    for start in range(0, len(paths), batch_size):
        images, predictions = [], [Prediction(path) for path in paths[start : start + batch_size]]
        for prediction in predictions:
            try:
                images.append(load_image(prediction.path, classifier.preprocessing.channels))
            except (ValueError, OSError) as error:
                prediction.error = str(error)
        readable = [prediction for prediction in predictions if prediction.error is None]
        if readable:
            for prediction, classes in zip(readable, classify(classifier, images, top), strict=True):
                prediction.classes = classes
        yield from predictions


def classify(model: Any, images: Any, top: int = 5) -> list[list[tuple[str, str, float]]]:
    """Classifies images in memory, in one batch.

    Args:
        model, top: as for `predict`.
        images: anything that a Preprocessing takes: a PIL image, a uint8 array (H, W) or (H, W, C), a path, or several.

    Returns:
        For each image a list of (id, name, probability), the most probable class first.

    Raises:
        ValueError: for a model of unknown preprocessing, and for anything that is not an image.
    """
    classifier = _classifier(model)
    probabilities = classifier.probabilities(classifier.prepare(images))
    return decode_predictions(probabilities, top=top, classes=classifier.class_names)


def _classifier(model):
    return Classifier(model) if isinstance(model, keras.Model) else model


def predict_probabilities(model: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """(B, H, W, C) inputs -> (B, classes) probabilities, of a model that ends in a softmax or in logits.

    Raises:
        ValueError: if the model is not a classifier.
    """
    outputs = model.predict_on_batch(to_data_format(model, inputs))
    outputs = np.asarray(keras.ops.convert_to_numpy(outputs), "float32")
    if outputs.ndim != 2:
        raise ValueError(f"`model` should be a classifier. Received: a model with outputs {model.output_shape}")
    logits = getattr(model.layers[-1], "activation", None) is keras.activations.linear
    return softmax(outputs) if logits else outputs


def softmax(logits: np.ndarray) -> np.ndarray:
    """(B, classes) logits -> probabilities."""
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits))
