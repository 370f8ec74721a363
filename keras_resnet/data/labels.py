"""Names of classes, shipped with the package, and predictions in words."""

import warnings
from collections import Counter
from functools import cache
from importlib import resources

import keras
import numpy as np

from keras_resnet.errors import unknown_name_error

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


def class_ids_and_names(names):
    """Names of classes -> pairs (id, name), the same twice; but ImageNet's from its ids, its names, or None."""
    known = imagenet_classes()
    if names is None or tuple(names) in tuple(zip(*known, strict=True)):
        return known
    return tuple((name, name) for name in names)


def placeholder_names(count):
    """Names for classes of which only their number is known."""
    return [f"class {number}" for number in range(count)]


def are_placeholders(rows):
    """Whether pairs (id, name) are of classes of which only their number is known."""
    return [name for _, name in rows] == placeholder_names(len(rows))


def match_class_indices(names, rows):
    """Where a network has the classes of a data set: by their ids or names, or by number where names are lacking.

    Args:
        names: of the data set's classes, in the order of its labels; None: its labels are the network's numbers.
        rows: pairs (id, name) of the network's classes.

    Returns:
        (len(names),) int32: the network's number for each class of the data set. (K,) for None.

    Raises:
        ValueError: if the network lacks a class.
    """
    count = len(rows)
    if names is None:
        return np.arange(count, dtype="int32")
    ids, words = ([row[column] for row in rows] for column in (0, 1))
    times = Counter(words)
    once = {word: number for number, word in enumerate(words) if times[word] == 1}
    known = once | {identity: number for number, identity in enumerate(ids)}
    if all(name in known for name in names):
        return np.array([known[name] for name in names], "int32")
    if all(name.isdecimal() for name in names) and (are_placeholders(rows) or count == len(names)):
        return _by_number(names, count)
    if count == len(names) and are_placeholders(rows):
        return np.arange(count, dtype="int32")
    if count == len(names) and words == [str(number) for number in range(count)]:
        warnings.warn(f"The network's classes are numbered: class 0 is taken for {names[0]!r}, and so on", stacklevel=3)
        return np.arange(count, dtype="int32")
    missing = [name for name in names if name not in known]
    raise unknown_name_error(
        "labels",
        missing[0],
        [*words, *ids],
        f"of the network's {count} classes; {len(missing)} of {len(names)} are not",
    )


def _by_number(names, count):
    numbers = [int(name) for name in names]
    if max(numbers) >= count:
        raise ValueError(f"Labels should be from 0 to {count - 1}, one for each class. Received: {max(numbers)}")
    return np.array(numbers, "int32")


def decode_predictions(predictions, top=5, classes=None):
    """The most probable classes of each image, as keras.applications returns them, without its download.

    Args:
        predictions: (B, N) scores, usually probabilities: array or tensor of the Keras backend.
        top: how many classes an image; all of them if there are fewer.
        classes: names of the N classes in index order; None for ImageNet's 1000.

    Returns:
        For each of the B images a list of (id, name, score), the highest score first, of equal ones the first class.
        The id is the WordNet id, or the name once more where `classes` is given.

    Raises:
        ValueError: for another rank, another number of classes, or `top` below 1.
    """
    rows = class_ids_and_names(classes)
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
