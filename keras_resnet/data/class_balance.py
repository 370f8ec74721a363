"""Classes with different numbers of images: weights of their images in the loss, oversampling of the smaller ones."""

import warnings
from dataclasses import dataclass

import numpy as np

from keras_resnet.data.datasets import Split
from keras_resnet.errors import unknown_name_error, value_error

BALANCED = "balanced"
UNBALANCED_RATIO = 5
"""Ratio of the largest to the smallest class above which a warning is given."""


def class_weights(dataset, class_weight):
    """(K,) float32, the factor of the loss of each class's images; None for `class_weight` None.

    Args:
        dataset: Dataset.
        class_weight: as `Recipe.class_weight`.

    Raises:
        ValueError: for a class that the dataset does not have, or labels that do not have one class each.
    """
    if class_weight is None:
        return None
    _check_labels("class_weight", class_weight, dataset, known=class_weight == BALANCED)
    if class_weight != BALANCED:
        return _given_weights(dataset, class_weight)
    from sklearn.utils.class_weight import compute_class_weight

    labels = dataset.train.labels
    present = np.unique(labels)
    weights = np.ones(len(dataset.class_names), "float32")
    weights[present] = compute_class_weight(BALANCED, classes=present, y=labels)
    return weights


def pixel_weights(dataset, class_weight):
    """(K,) float32, the factor of the loss of each class's pixels; None for `class_weight` None.

    "balanced" are those of scikit-learn for the pixels of the training images that belong to a class; classes without
    pixels have 1.

    Args:
        dataset: Dataset, whose training images have masks.
        class_weight: as `Recipe.class_weight`.

    Raises:
        ValueError: for a class that the dataset does not have.
    """
    if class_weight is None:
        return None
    if class_weight != BALANCED:
        return _given_weights(dataset, class_weight)
    counts = dataset.train.masks.class_counts(len(dataset.class_names))
    present = counts > 0
    weights = np.ones(len(counts), "float32")
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights


def _given_weights(dataset, class_weight):
    weights = np.ones(len(dataset.class_names), "float32")
    for key, weight in class_weight.items():
        weights[_class_index(key, dataset.class_names)] = weight
    return weights


def warn_if_unbalanced(dataset, recipe):
    """Warns of classes with UNBALANCED_RATIO times as many images as others, unless the recipe balances them."""
    counts = dataset.class_counts()
    if counts is None or recipe.class_weight is not None or recipe.oversample:
        return
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    if counts[largest] > UNBALANCED_RATIO * counts[smallest]:
        most, fewest = (f"{dataset.class_names[index]!r} has {counts[index]:,}" for index in (largest, smallest))
        warnings.warn(
            f"The classes are unbalanced: {most} training images, {fewest}. Weights for small classes: --class-weight "
            'balanced (class_weight="balanced"); more of their images: --oversample (oversample=True).',
            stacklevel=2,
        )


def _class_index(key, class_names):
    """Index of a class by its name, or if no class has this name, by the digits of its index."""
    if key in class_names:
        return class_names.index(key)
    if key.isdecimal() and int(key) < len(class_names):
        return int(key)
    raise unknown_name_error("class_weight", key, class_names, "names or indices of classes")


@dataclass(frozen=True)
class Oversampling:
    """Epochs in which every class has as many images as the largest: the images of smaller classes repeat.

    Where they repeat is computed from the epoch, so that a run can be resumed anywhere, and over the epochs every image
    of a class occurs equally often.
    """

    by_class: np.ndarray
    """(N,) int64, indices of the images, sorted by class."""
    starts: np.ndarray
    """(K,) int64, positions in `by_class` at which the classes start."""
    counts: np.ndarray
    """(K,) int64, numbers of images of the classes; none is 0."""

    def __len__(self):
        return len(self.counts) * int(self.counts.max())

    def image_indices(self, places, epochs, take):
        """Indices of the images at places of epochs.

        Args:
            places: integers in [0, length), in any order.
            epochs: their epochs, integers of the same shape or a scalar.
            take: function of (array, indices), such as `np.take` or `tf.gather`.
        """
        largest = int(self.counts.max())
        classes = places // largest
        turns = (epochs * largest + places % largest) % take(self.counts, classes)
        return take(self.by_class, take(self.starts, classes) + turns)


def oversampling(dataset, recipe):
    """The Oversampling of a Recipe with `oversample`; None without.

    Raises:
        ValueError: for a Stream, or labels that do not have one class each.
    """
    if not recipe.oversample:
        return None
    _check_labels("oversample", True, dataset, known=True)
    counts = np.unique(dataset.train.labels, return_counts=True)[1]
    by_class = np.argsort(dataset.train.labels, kind="stable")
    return Oversampling(by_class, np.cumsum(counts) - counts, counts)


def images_per_epoch(dataset, recipe):
    """Number of training images in an epoch."""
    return len(oversampling(dataset, recipe) or dataset.train)


def _check_labels(argument, value, dataset, known):
    """Raises ValueError unless every image has one class, and unless the labels are known before training if needed."""
    if dataset.multi_label:
        raise value_error(argument, value, "left out for images with several labels each")
    if known and not isinstance(dataset.train, Split):
        hint = "The images of a Stream arrive in its own order, and their classes are only known when they are read."
        raise value_error(argument, value, "left out for a dataset that is read as a stream", hint)
