"""Real pictures in, names out."""

from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from keras_resnet.data.labels import decode_predictions, imagenet_classes, unnamed
from keras_resnet.data.pictures import find_pictures, load_picture
from keras_resnet.models import preprocessing


@dataclass
class Prediction:
    """What a network says of one picture, or why it could not be asked."""

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

    def prepare(self, pictures):
        """What a Preprocessing takes -> what the network takes."""
        return self.look(pictures)

    def probabilities(self, inputs):
        """(B, H, W, C) -> (B, classes)."""
        return probabilities(self.model, inputs)


def predict(model, paths, top=5, batch_size=32):
    """Classifies picture files, as the model's weights want them prepared.

    Args:
        model: a network whose preprocessing is known, or one from `load_exported`.
        paths: a file, a folder (searched for pictures, with its folders), or a list of them.
        top: how many classes a picture.
        batch_size: pictures at a time; memory is taken for so many.

    Yields:
        A Prediction for each picture, in order. A file that is no picture, or half of one, yields its error.

    Raises:
        ValueError, FileNotFoundError: with the first picture asked for, if there is no such file, no picture in a
            folder, or no known preprocessing.
    """
    network = _classifier(model)
    found = find_pictures(paths)
    for start in range(0, len(found), batch_size):
        pictures, answers = [], [Prediction(path) for path in found[start : start + batch_size]]
        for answer in answers:
            try:
                pictures.append(load_picture(answer.path, network.look.channels))
            except (ValueError, OSError) as error:
                answer.error = str(error)
        readable = [answer for answer in answers if answer.error is None]
        if readable:
            for answer, classes in zip(readable, classify(network, pictures, top), strict=True):
                answer.classes = classes
        yield from answers


def classify(model, pictures, top=5):
    """Classifies pictures in memory, all at once.

    Args:
        model, top: as for `predict`.
        pictures: what a Preprocessing takes: a PIL image, a uint8 array (H, W) or (H, W, C), a path, or several.

    Returns:
        For each picture a list of (id, name, probability), the most probable class first.

    Raises:
        ValueError: for a network of unknown preprocessing and for what is no picture.
    """
    network = _classifier(model)
    scores = network.probabilities(network.prepare(pictures))
    return decode_predictions(scores, top=top, classes=network.class_names)


def _classifier(model):
    return Classifier(model) if isinstance(model, keras.Model) else model


def class_names(model):
    """Names of a model's classes: those stored in it, None for ImageNet's thousand, else "class 0", "class 1", ..."""
    stored, count = (getattr(model, "info", None) or {}).get("class_names"), model.output_shape[-1]
    if stored and len(stored) == count:
        return stored
    return None if count == len(imagenet_classes()) else unnamed(count)


def probabilities(model, inputs):
    """(B, H, W, C) -> (B, classes) probabilities, whether the model ends in a softmax or in logits."""
    outputs = model.predict_on_batch(in_order_of_axes(model, inputs))
    outputs = np.asarray(keras.ops.convert_to_numpy(outputs), "float32")
    if outputs.ndim != 2:
        raise ValueError(f"`model` should be a classifier. Received: a model with outputs {model.output_shape}")
    logits = getattr(model.layers[-1], "activation", None) is keras.activations.linear
    return softmax(outputs) if logits else outputs


def softmax(logits):
    """(B, classes) arrays of scores -> probabilities."""
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits))


def in_order_of_axes(model, inputs):
    """(B, H, W, C) -> as the model has its axes."""
    return np.moveaxis(inputs, -1, 1) if channels_first(model) else inputs


def channels_first(model):
    """Whether a model takes (B, C, H, W), as far as its spec says."""
    return bool(getattr(model, "spec", None)) and model.spec.channel_axis == 1
