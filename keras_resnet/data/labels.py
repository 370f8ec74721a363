"""Class names, and predictions by name."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import keras
import numpy as np

from keras_resnet.errors import check_integers, unknown_name_error, value_error

DEFAULT_THRESHOLD = 0.5
"""Probability from which on a multi-label model predicts a class, if no other threshold is known."""
MAX_CLASS_NUMBER = 2**20
"""Largest number as the name of a class, since a table of the numbers is made."""
BACKGROUND = "__background__"
"""Name of the first class of detectors, as in torchvision."""
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Class names of CIFAR-10 in index order (Krizhevsky 2009)."""
VOC_CLASSES = (
    *(BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Class names of PASCAL VOC's segmentation in index order, as torchvision writes them."""


@cache
def imagenet_classes():
    """ILSVRC 2012's classes in index order: 1000 pairs (WordNet id, name), such as ("n01484850", "great_white_shark").

    The names are those of keras.applications. Two names occur twice ("crane", "maillot"); the ids are unique.
    """
    return tuple(_table("imagenet_classes.tsv"))


@cache
def coco_classes():
    """COCO's classes by torchvision's numbers: 91 names, "__background__" first, and "N/A" where COCO has no class."""
    names = {int(number): name for number, name in _table("coco_classes.tsv")}
    return (BACKGROUND, *(names.get(number, "N/A") for number in range(1, 91)))


def _table(name):
    """Rows of a .tsv file in this folder, as tuples of strings, without comments."""
    text = resources.files("keras_resnet.data").joinpath(name).read_text("utf-8")
    return [tuple(line.split("\t")) for line in text.splitlines() if not line.startswith("#")]


def class_ids_and_names(names):
    """Pairs (id, name): (name, name) of each class name; ImageNet's pairs for its ids, its names, or None."""
    known = imagenet_classes()
    if names is None or tuple(names) in tuple(zip(*known, strict=True)):
        return known
    return tuple((name, name) for name in names)


def placeholder_names(num_classes):
    """Names of classes of which only the number is known."""
    return [f"class {index}" for index in range(num_classes)]


def are_placeholders(classes):
    """Whether pairs (id, name) have the names of `placeholder_names`."""
    return [name for _, name in classes] == placeholder_names(len(classes))


def match_class_indices(names, classes):
    """The model's class index of each class of a dataset, by id or name, or by number if the model has no names.

    Args:
        names: class names of the dataset, in the order of its labels; None, or the names of `placeholder_names`, if the
            labels are the model's indices, or the numbers that are the names of its classes.
        classes: pairs (id, name) of the model's K classes.

    Returns:
        (len(names),) int32; for None an index for each number from 0, or -1 for numbers that are no class.

    Raises:
        ValueError: if the model lacks a class.
    """
    num_classes = len(classes)
    in_order = np.arange(num_classes, dtype="int32")
    model_ids, model_names = zip(*classes, strict=True)
    if names is None:
        return _indices_by_number(model_names) if all(map(str.isdecimal, model_names)) else in_order
    counts = Counter(model_names)
    known = {name: index for index, name in enumerate(model_names) if counts[name] == 1}
    known |= {wordnet_id: index for index, wordnet_id in enumerate(model_ids)}
    if all(name in known for name in names):
        return np.array([known[name] for name in names], "int32")
    if list(names) == placeholder_names(len(names)) and len(names) <= num_classes:
        return in_order[: len(names)]
    are_numbers = all(name.isdecimal() for name in names)
    if are_numbers and are_placeholders(classes):
        indices = np.array([int(name) for name in names], "int32")
        if indices.max() >= num_classes:
            raise ValueError(f"Labels should be from 0 to {num_classes - 1}. Received: {indices.max()}")
        return indices
    if num_classes == len(names) and are_placeholders(classes):
        return in_order
    if num_classes == len(names) and model_names == tuple(map(str, range(num_classes))):
        warnings.warn(f"The model's class names are numbers: class 0 is taken as {names[0]!r}, etc.", stacklevel=3)
        return in_order
    if num_classes == len(names) and are_numbers:
        raise ValueError(
            "The data set's classes should have the names of the model's, not numbers. If the numbers are indices of "
            "the model's classes, give them in a label file (--labels), or as class_names=None of the Dataset. "
            f"Received: classes {', '.join(names[:3])}, ... for a model with {', '.join(model_names[:3])}, ..."
        )
    missing = [name for name in names if name not in known]
    expected = f"among the model's {num_classes} classes; {len(missing)} of {len(names)} are not"
    raise unknown_name_error("labels", missing[0], [*model_names, *model_ids], expected)


def _indices_by_number(model_names):
    """The index of the class with each number as its name, -1 for none."""
    numbers = [int(name) for name in model_names]
    if max(numbers) > MAX_CLASS_NUMBER:
        raise value_error("class_names", max(numbers), f"numbers up to {MAX_CLASS_NUMBER}, or names")
    indices = np.full(max(numbers) + 1, -1, "int32")
    indices[numbers] = np.arange(len(numbers))
    return indices


def decode_predictions(
    predictions: Any, top: int = 5, classes: Sequence[str] | None = None
) -> list[list[tuple[str, str, float]]]:
    """The most probable classes of each image, like `keras.applications`' function, without a download.

    >>> import numpy as np
    >>> import keras_resnet
    >>> probabilities = np.array([[0.125, 0.75, 0.125]])
    >>> images = keras_resnet.decode_predictions(probabilities, top=2, classes=["cat", "dog", "owl"])
    >>> images[0]
    [('dog', 'dog', 0.75), ('cat', 'cat', 0.125)]

    Args:
        predictions: (B, K) scores, usually probabilities: array or tensor of the Keras backend.
        top: number of classes per image.
        classes: names of the K classes in index order; None: ImageNet's 1000.

    Returns:
        For each image, a list of (id, name, score), highest score first; of equal scores, lowest index first. The id is
        the WordNet id, or equal to the name if `classes` is given.

    Raises:
        ValueError: for predictions of another shape, and for `top` below 1.
    """
    if isinstance(predictions, Mapping):
        hint = "Of a detector's output, `keras_resnet.detect` makes boxes with names and scores."
        raise value_error("predictions", list(predictions), "an array of scores of shape (samples, classes)", hint)
    pairs = class_ids_and_names(classes)
    shape = np.shape(predictions)
    if len(shape) != 2 or shape[1] != len(pairs):
        owner, hint = ("ImageNet's", "; pass other class names as `classes`") if classes is None else ("the given", "")
        expected = f"of shape (samples, {len(pairs)}), a score for each of {owner} classes{hint}"
        raise ValueError(f"`predictions` should be {expected}. Received: predictions of shape {tuple(shape)}")
    check_integers(top=top)
    predictions = keras.ops.convert_to_numpy(predictions).astype("float64")
    order = np.argsort(-predictions, axis=1, kind="stable")[:, :top]
    return [
        [(*pairs[index], float(scores[index])) for index in best]
        for scores, best in zip(predictions, order, strict=True)
    ]


def classes_above(probabilities, thresholds, classes=None):
    """The classes of each image whose probability reaches the class's threshold, as `decode_predictions` returns them.

    Args:
        probabilities: (B, K).
        thresholds: K numbers.
        classes: as for `decode_predictions`.
    """
    counts = (probabilities >= np.array(thresholds)).sum(axis=1)
    hidden = np.where(probabilities >= np.array(thresholds), probabilities, -1.0)
    order = decode_predictions(hidden, len(thresholds), classes)
    return [found[:count] for found, count in zip(order, counts, strict=True)]
