"""Real images in, names out."""

from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from keras_resnet.architecture.metadata import to_data_format
from keras_resnet.data.image_files import find_images, load_image
from keras_resnet.data.labels import decode_predictions
from keras_resnet.models.preprocessing import class_names, preprocessing


@dataclass
class Prediction:
    """What a network says of one image, or why it could not be asked."""

    path: Path
    classes: list = field(default_factory=list)
    """[(id, name, probability)], the most probable first."""
    error: str | None = None


class Classifier:
    """What `predict` asks of a network, here of a Keras model; an exported network answers the same calls.

    Raises:
        ValueError: on construction, if the model's preprocessing is not known.
    """

    def __init__(self, model):
        self.model, self.look, self.class_names = model, preprocessing(model), class_names(model)

    def prepare(self, images):
        """What a Preprocessing takes -> what the network takes."""
        return self.look(images)

    def probabilities(self, inputs):
        """(B, H, W, C) -> (B, classes)."""
        return probabilities(self.model, inputs)


def predict(model, paths, top=5, batch_size=32):
    """Classifies image files, as the model's weights want them prepared.

    Args:
        model: a network whose preprocessing is known, or one from `load_exported`.
        paths: a file, a folder (searched for images, with its folders), or a list of them.
        top: how many classes an image.
        batch_size: images at a time; memory is taken for so many.

    Yields:
        A Prediction for each image, in order. A file that is no image, or half of one, yields its error.

    Raises:
        ValueError, FileNotFoundError: with the first image asked for, if there is no such file, no image in a
            folder, or no known preprocessing.
    """
    network = _classifier(model)
    found = find_images(paths)
    for start in range(0, len(found), batch_size):
        images, answers = [], [Prediction(path) for path in found[start : start + batch_size]]
        for answer in answers:
            try:
                images.append(load_image(answer.path, network.look.channels))
            except (ValueError, OSError) as error:
                answer.error = str(error)
        readable = [answer for answer in answers if answer.error is None]
        if readable:
            for answer, classes in zip(readable, classify(network, images, top), strict=True):
                answer.classes = classes
        yield from answers


def classify(model, images, top=5):
    """Classifies images in memory, all at once.

    Args:
        model, top: as for `predict`.
        images: what a Preprocessing takes: a PIL image, a uint8 array (H, W) or (H, W, C), a path, or several.

    Returns:
        For each image a list of (id, name, probability), the most probable class first.

    Raises:
        ValueError: for a network of unknown preprocessing and for what is no image.
    """
    network = _classifier(model)
    scores = network.probabilities(network.prepare(images))
    return decode_predictions(scores, top=top, classes=network.class_names)


def _classifier(model):
    return Classifier(model) if isinstance(model, keras.Model) else model


def probabilities(model, inputs):
    """(B, H, W, C) -> (B, classes) probabilities, whether the model ends in a softmax or in logits."""
    outputs = model.predict_on_batch(to_data_format(model, inputs))
    outputs = np.asarray(keras.ops.convert_to_numpy(outputs), "float32")
    if outputs.ndim != 2:
        raise ValueError(f"`model` should be a classifier. Received: a model with outputs {model.output_shape}")
    logits = getattr(model.layers[-1], "activation", None) is keras.activations.linear
    return softmax(outputs) if logits else outputs


def softmax(logits):
    """(B, classes) arrays of scores -> probabilities."""
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits))
