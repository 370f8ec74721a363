"""Evaluation of localizers: the classes and boxes of all test images, beside two rules without a network."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.image_files import raise_if_unreadable
from keras_resnet.data.labels import match_class_indices
from keras_resnet.data.objects import Objects
from keras_resnet.data.prefetch import describe_errors, prefetch_batches
from keras_resnet.data.protocols import LocalizationProtocol
from keras_resnet.errors import value_error
from keras_resnet.localization import ImageLocalizer, top_classes
from keras_resnet.localization_results import LocalizationEvaluation, largest_overlaps

TOP = 5
"""Classes of an image that are tested with their boxes."""


def evaluate_localizer(
    model: Any,
    dataset: Dataset,
    protocol: LocalizationProtocol,
    batch_size: int = 100,
    skip_bad: bool = False,
    progress: Callable[[int], Any] | None = None,
) -> LocalizationEvaluation:
    """Computes the errors of ImageNet's localization task; `evaluate` calls it.

    Beside them stand those of the same classes with two other boxes: the whole image and, if the data set has training
    images, the mean of their boxes.

    Args:
        model: a localizer, a classifier whose class activation maps give the boxes, or an ImageLocalizer of them.
        dataset: a Dataset of images with one class and boxes, whose test images are used.
        protocol: LocalizationProtocol.
        batch_size: number of images in a batch; whole images come one by one.
        skip_bad: whether images that cannot be read are skipped instead of raising an error.
        progress: called after every batch with the number of images evaluated or skipped so far.

    Raises:
        ValueError: for a data set without boxes, or with several classes an image, or with classes that are not the
            model's, for an image that cannot be read, and for a model or protocol that `localize` refuses.
        FloatingPointError: if a model returns NaN or Inf.
    """
    localizer = model if isinstance(model, ImageLocalizer) else ImageLocalizer(model, protocol)
    split, skipped = _with_boxes(dataset)
    indices = match_class_indices(dataset.class_names, localizer.classes)
    found: list[tuple] = []
    for batch in prefetch_batches(split, [localizer.preprocessing], protocol.views, batch_size):
        errors = describe_errors(batch.read_errors)
        raise_if_unreadable(errors, skip_bad)
        skipped += errors
        if len(batch):
            labels = indices[batch.labels]
            found.append((batch.indices, labels, *_predict(localizer, batch.views[0], labels, split, batch.indices)))
        if progress:
            progress(batch.stop)
    if not found:
        raise ValueError(f"Expected images that can be read. Received: none of {len(split)} in {dataset.name}")
    readable, labels, top, boxes = (np.concatenate(column) for column in zip(*found, strict=True))
    objects = split.objects.select(readable)
    overlaps = largest_overlaps(boxes, objects)
    rules = {"whole_image": np.array([0.0, 0.0, 1.0, 1.0])}
    if isinstance(dataset.train, Split) and dataset.train.objects is not None and len(dataset.train.objects):
        rules["mean_box"] = mean_box(dataset.train.objects)
    baselines = {name: largest_overlaps(_in_pixels(box, objects.sizes), objects)[:, 0] for name, box in rules.items()}
    return LocalizationEvaluation(
        localizer.classes,
        labels.astype("int32"),
        top.astype("int32"),
        overlaps[:, :-1],
        overlaps[:, -1],
        baselines,
        (*dataset.skipped, *skipped),
    )


def _with_boxes(dataset):
    """(the test images that have a box, messages about the others); ValueError for a data set without boxes."""
    split = dataset.test
    if not isinstance(split, Split) or split.objects is None or split.multi_label or not len(split.objects):
        expected = "one of images with one class and boxes, such as ImageNet's or Tiny ImageNet's"
        raise value_error("dataset", dataset.name, expected)
    has_box = np.bincount(split.objects.image, minlength=len(split)) > 0
    return split[has_box], [f"{name}: no box" for name in split.objects.image_ids[~has_box]]


def _predict(localizer, scales, labels, split, indices):
    """The most probable classes (B, n) of a batch, and their boxes and that of the true class: (B, n + 1, 4)."""
    localized = localizer(scales)
    top = top_classes(localized.probabilities, TOP)
    boxes, _ = localized.boxes(np.concatenate([top, labels[:, None]], axis=1))
    return top, localizer.to_pixels(boxes, split.objects.sizes[indices])


def mean_box(objects: Objects) -> np.ndarray:
    """The mean of boxes as shares of the sides of their images: x1, y1, x2, y2, float64.

    Args:
        objects: the objects in some images.
    """
    sides = np.tile(objects.sizes[objects.image][:, ::-1], 2)
    return (objects.boxes / sides).mean(axis=0, dtype="float64")


def _in_pixels(box, sizes):
    """A box as shares of the sides of images -> (N, 1, 4) in pixels of each image."""
    return (box * np.tile(sizes[:, ::-1], 2))[:, None]
