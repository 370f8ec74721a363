"""Names of classes, shipped with the package, and predictions in words."""

from functools import cache
from importlib import resources

import keras
import numpy as np

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""In index order (Krizhevsky 2009)."""


@cache
def imagenet_classes():
    """ILSVRC 2012's classes in index order: 1000 pairs (WordNet id, name), such as ("n01484850", "great_white_shark").

    The names are those of keras.applications; two of them belong to two classes each ("crane", "maillot"), the ids
    are unique.
    """
    text = resources.files("keras_resnet.data").joinpath("imagenet_classes.tsv").read_text("utf-8")
    return tuple(tuple(line.split("\t")) for line in text.splitlines() if not line.startswith("#"))


def decode_predictions(predictions, top=5, classes=None):
    """The most probable classes of each picture, as keras.applications returns them, without its download.

    Args:
        predictions: (B, N) scores, usually probabilities: array or tensor of the Keras backend.
        top: how many classes a picture; all of them if there are fewer.
        classes: names of the N classes in index order; None for ImageNet's 1000.

    Returns:
        For each of the B pictures a list of (id, name, score), the highest score first, of equal ones the first class.
        The id is the WordNet id, or the name once more where `classes` is given.

    Raises:
        ValueError: for another rank, another number of classes, or `top` below 1.
    """
    rows = imagenet_classes() if classes is None else tuple((name, name) for name in classes)
    _check(np.shape(predictions), top, classes, len(rows))
    predictions = keras.ops.convert_to_numpy(predictions)
    order = np.argsort(-predictions.astype("float64"), axis=1, kind="stable")[:, :top]
    return [[(*rows[index], scores[index]) for index in best] for scores, best in zip(predictions, order, strict=True)]


def _check(shape, top, classes, count):
    if len(shape) != 2 or shape[1] != count:
        name = "ImageNet's" if classes is None else "the given"
        hint = ", or `classes` the names of others" if classes is None else ""
        raise ValueError(
            f"`predictions` should be of shape (samples, {count}), a score for each of {name} classes{hint}. "
            f"Received: predictions of shape {tuple(shape)}"
        )
    if top < 1:
        raise ValueError(f"`top` should be at least 1. Received: top={top}")
