"""Image files -> the most probable classes."""

from collections.abc import Iterator
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal, overload

import keras
import numpy as np

from keras_resnet.architecture.metadata import model_spec, to_data_format
from keras_resnet.data.image_files import find_images, load_image
from keras_resnet.data.labels import classes_above, decode_predictions
from keras_resnet.data.prefetch import prepare_in_threads
from keras_resnet.data.protocols import Protocol, check_scales, get_protocol, image_views
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.errors import check_integers, is_number, value_error
from keras_resnet.models.cloning import as_functional
from keras_resnet.models.localizers import classifier_of
from keras_resnet.models.preprocessing import OTHER_TASKS, class_names, classifier_preprocessing, thresholds
from keras_resnet.models.transforms import fully_convolutional, with_input_size
from keras_resnet.normalization import normalize

MINIMUM_SIZE = 32
"""Smallest side in pixels of the images of a model without a spec, as in keras.applications."""

ONE_AT_A_TIME = Lock() if keras.backend.backend() == "jax" else nullcontext()
"""Held while Keras predicts: on JAX (Keras 3.15) a prediction deletes the weights and sets them again."""


@dataclass
class Prediction:
    """The most probable classes of one image file, or the error that kept it from being read."""

    path: Path
    classes: list[tuple[str, str, float]] = field(default_factory=list)
    """(id, name, probability), the most probable class first; of a multi-label model, all that it predicts."""
    error: str | None = None


class Classifier:
    """A Keras model with its preprocessing and class names; an exported model has the same attributes and methods.

    Raises:
        ValueError: on construction, for a detector or segmenter, and if the model's preprocessing is not known.
    """

    def __init__(self, model: keras.Model):
        self.model, self.name = as_functional(classifier_of(model)), model.name
        self.preprocessing = classifier_preprocessing(self.model)
        self.class_names, self.thresholds = class_names(self.model), thresholds(self.model)

    def prepare(self, images: Any) -> np.ndarray:
        """Preprocessed model inputs, from anything that a Preprocessing takes."""
        return self.preprocessing(images)

    def inputs(self, pixels: np.ndarray) -> np.ndarray:
        """(B, H, W, C) uint8, resized and cropped -> model inputs."""
        return normalize(pixels, self.preprocessing.mode, "channels_last")

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """(B, H, W, C) -> (B, classes)."""
        return predict_probabilities(self.model, inputs)


class ProtocolPredictor:
    """Averages a classifier's probabilities over the scales and views of a protocol.

    Args:
        classifier: Classifier, or an exported model if the protocol crops.
        protocol: Protocol.

    Raises:
        ValueError: on construction, for scales that are too small for the model.
    """

    def __init__(self, classifier, protocol):
        self.classifier, self.protocol, self.preprocessing = classifier, protocol, classifier.preprocessing
        model, size = getattr(classifier, "model", None), self.preprocessing.size
        spec = model_spec(model)
        check_scales(protocol, self.preprocessing, spec.minimum_size if spec else MINIMUM_SIZE)
        self.functions = [classifier.probabilities] * max(1, len(protocol.scales))
        """The function (B, h, w, C) inputs -> probabilities of each scale."""
        if protocol.is_uncropped:
            if model is None:
                raise ValueError(f"`protocol` should crop the images of an exported network. Received: {protocol}")
            sides = [min(size, scale) for scale in protocol.scales]
            by_side = {side: partial(predict_probabilities, fully_convolutional(model, side)) for side in set(sides)}
            self.functions = [by_side[side] for side in sides]

    def __call__(self, scales: list[np.ndarray]) -> np.ndarray:
        """For each scale the inputs (B * views, h, w, C) float32 -> (B, K) probabilities."""
        return np.mean([self._predict_scale(*pair) for pair in zip(self.functions, scales, strict=True)], axis=0)

    def _predict_scale(self, function, views):
        probabilities = function(views)
        if not np.isfinite(probabilities).all():
            name = self.classifier.name
            raise FloatingPointError(f"`model` should return finite numbers. Received: NaN or Inf from {name}")
        return probabilities.reshape(-1, self.protocol.num_views, probabilities.shape[-1]).mean(axis=1)

    def inputs(self, image: Any) -> list[np.ndarray]:
        """For each scale the inputs (views, h, w, C) float32 of an image, as `image_views` takes it."""
        scales = image_views([image], self.preprocessing, self.protocol)
        return [self.classifier.inputs(views[0]) for views in scales]


@overload
def predict(
    model: Any,
    paths: Any,
    top: int = ...,
    batch_size: int = ...,
    stream: Literal[False] = ...,
    size: int | None = ...,
    protocol: Protocol | str = ...,
    threshold: float | None = ...,
) -> list[Prediction]: ...
@overload
def predict(
    model: Any,
    paths: Any,
    top: int = ...,
    batch_size: int = ...,
    *,
    stream: Literal[True],
    size: int | None = ...,
    protocol: Protocol | str = ...,
    threshold: float | None = ...,
) -> Iterator[Prediction]: ...
def predict(
    model: Any,
    paths: Any,
    top: int = 5,
    batch_size: int = 32,
    stream: bool = False,
    size: int | None = None,
    protocol: Protocol | str = "center",
    threshold: float | None = None,
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
        top: number of classes for each image; a multi-label model returns all classes that it predicts.
        batch_size: number of images, or of their views, that are in memory together.
        stream: whether to return an iterator, which classifies the images batch by batch as they are requested.
        size: side of the model's input images in pixels; None: as the model was built, or its weights were trained.
        protocol: a name in PROTOCOLS, or a Protocol: the views of an image whose probabilities are averaged.
        threshold: probability from which on a multi-label model predicts a class; None: its own for each class.

    Returns:
        A list with a Prediction for each image, in order; an iterator of them if `stream`. Its `error` is set for a
        file that is not an image or is damaged.

    Raises:
        ValueError: for a folder without images, a detector or segmenter, a model of unknown preprocessing, and a size
            that does not fit it.
        FileNotFoundError: if a file does not exist.
    """
    check_integers(top=top, batch_size=batch_size)
    classifier = _classifier(with_input_size(model, size))
    if threshold is not None:
        classifier = _with_threshold(classifier, threshold)
    predictor = ProtocolPredictor(classifier, get_protocol(protocol))
    predictions = _predictions(predictor, find_images(paths), top, batch_size)
    return predictions if stream else list(predictions)


def _with_threshold(classifier, threshold):
    """The classifier with one threshold for all its classes."""
    if classifier.thresholds is None:
        raise value_error("threshold", threshold, "left out: the model predicts one class for each image")
    if not is_number(threshold) or not 0 <= threshold <= 1:
        raise value_error("threshold", threshold, "a probability from 0 to 1")
    classifier = copy(classifier)
    classifier.thresholds = (threshold,) * len(classifier.thresholds)
    return classifier


def _predictions(predictor, paths, top, batch_size):
    """Yields the Prediction of each image file; reads and classifies a batch when its first is requested."""
    protocol, channels = predictor.protocol, predictor.preprocessing.channels
    size = 1 if protocol.is_uncropped else max(1, batch_size // protocol.num_views)
    for batch in prepare_in_threads(lambda path: predictor.inputs(load_image(path, channels)), paths, size):
        predictions = [Prediction(image.source, error=image.error) for image in batch]
        readable = [prediction for prediction in predictions if prediction.error is None]
        if readable:
            inputs = [image.value for image in batch if image.error is None]
            scales = [np.concatenate(scale) for scale in zip(*inputs, strict=True)]
            decoded = _decode(predictor.classifier, predictor(scales), top)
            for prediction, classes in zip(readable, decoded, strict=True):
                prediction.classes = classes
        yield from predictions


def _decode(classifier, probabilities, top):
    """Probabilities (B, K) -> [(id, name, probability)] of each image: the best ones, or those above the thresholds."""
    if classifier.thresholds is not None:
        return classes_above(probabilities, classifier.thresholds, classifier.class_names)
    return decode_predictions(probabilities, top=top, classes=classifier.class_names)


def classify(model: Any, images: Any, top: int = 5) -> list[list[tuple[str, str, float]]]:
    """Classifies images in memory, in one batch. Several threads may do so with one model.

    Args:
        model, top: as for `predict`.
        images: anything that a Preprocessing takes: a PIL image, a uint8 array (H, W) or (H, W, C), a path, or several.

    Returns:
        For each image a list of (id, name, probability), the most probable class first; of a multi-label model, all
        classes whose probability reaches their threshold.

    Raises:
        ValueError: for a detector or segmenter, a model of unknown preprocessing, and anything that is not an image.
    """
    check_integers(top=top)
    classifier = _classifier(model)
    inputs = classifier.prepare(images)
    return _decode(classifier, classifier.probabilities(inputs), top) if len(inputs) else []


def _classifier(model):
    """The model as a Classifier, unless it is an exported network, which has the same methods."""
    if hasattr(model, "detections") or isinstance(getattr(model, "preprocessing", None), SegmentationPreprocessing):
        raise value_error("model", model.name, "a classifier", OTHER_TASKS)
    return model if hasattr(model, "probabilities") else Classifier(model)


def run_on_batch(model: keras.Model, inputs: np.ndarray) -> Any:
    """Outputs of a model; several threads may call this."""
    with ONE_AT_A_TIME:
        return model.predict_on_batch(inputs)


def predict_probabilities(model: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """(B, H, W, C) inputs -> (B, classes) probabilities, of a model that ends in a softmax, a sigmoid or in logits.

    Raises:
        ValueError: if the model is not a classifier.
    """
    outputs = run_on_batch(model, to_data_format(model, inputs))
    outputs = np.asarray(keras.ops.convert_to_numpy(outputs), "float32")
    if outputs.ndim != 2:
        raise ValueError(f"`model` should be a classifier. Received: a model with outputs {model.output_shape}")
    logits = getattr(model.layers[-1], "activation", None) is keras.activations.linear
    return softmax(outputs) if logits else outputs


def softmax(logits: np.ndarray) -> np.ndarray:
    """(B, classes) logits -> probabilities."""
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits))
