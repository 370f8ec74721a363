"""Evaluation of segmenters: the masks of all test images under a protocol, as a SegmentationEvaluation."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.image_files import raise_if_unreadable
from keras_resnet.data.labels import BACKGROUND, class_ids_and_names, match_class_indices, placeholder_names
from keras_resnet.data.prefetch import describe_errors, images_at, map_in_threads
from keras_resnet.data.protocols import SegmentationProtocol
from keras_resnet.data.sources import image_source
from keras_resnet.errors import value_error
from keras_resnet.metrics import mean_of_defined
from keras_resnet.segmentation import ImageSegmenter, Segmentation, iterate_segmentations
from keras_resnet.segmentation_metrics import class_iou, confusion_matrix, pixel_accuracy
from keras_resnet.segmentation_results import ImageMetrics, SegmentationEvaluation


def evaluate_segmenter(
    model: Any,
    dataset: Dataset,
    protocol: SegmentationProtocol,
    batch_size: int = 1,
    skip_bad: bool = False,
    progress: Callable[[int], Any] | None = None,
    size: int | None = None,
) -> SegmentationEvaluation:
    """Computes the mIoU of a segmenter and the metrics beside it; `evaluate` calls it.

    Predicted masks are compared with the true ones at the size of each image, not of the model's inputs. Images and
    masks are read by threads while the model computes, in the order of their sizes; masks are not kept.

    Args:
        model: a segmenter.
        dataset: a Dataset with masks, whose test images are used.
        protocol: SegmentationProtocol.
        batch_size: number of images or windows in a batch.
        skip_bad: whether images and masks that cannot be read are skipped instead of raising an error.
        progress: called after every image with the number of images evaluated or skipped so far.
        size: length of the shorter side of the model's inputs in pixels; None: that of the model's preprocessing.

    Raises:
        ValueError: for a data set without masks, or with classes that are not the model's, and for an image or a mask
            that cannot be read.
        FloatingPointError: if the model returns NaN or Inf.
    """
    split = dataset.test
    if not isinstance(split, Split) or split.masks is None:
        expected = "one with masks of classes, loaded with `masks=True`, such as folders of images and of masks"
        raise value_error("dataset", dataset.name, expected)
    segmenter = ImageSegmenter(model, protocol, size, batch_size)
    classes = tuple(dataset.class_names or segmenter.class_names)
    indices = dataset_indices(segmenter.class_names, classes)
    counts = np.zeros((len(classes), len(classes) + 1), "int64")
    image_names = image_source(dataset).names
    found: dict[int, ImageMetrics] = {}
    errors: dict[int, str] = {}
    for index, mask, segmentation in _segmentations(segmenter, split, batch_size):
        if segmentation.error or isinstance(mask, str):
            errors[index] = segmentation.error or str(mask)
            raise_if_unreadable(describe_errors(errors, image_names), skip_bad)
        else:
            matrix = confusion_matrix(mask, indices[segmentation.mask], len(classes))
            counts += matrix
            found[index] = image_metrics(str(image_names[index]), matrix)
        if progress:
            progress(len(found) + len(errors))
    if not found:
        raise ValueError(f"Expected images that can be read. Received: none of {len(split)} in {dataset.name}")
    skipped = (*dataset.skipped, *describe_errors(dict(sorted(errors.items())), image_names))
    return SegmentationEvaluation(classes, counts, len(found), skipped, tuple(found[index] for index in sorted(found)))


def dataset_indices(model_names: Sequence[str], dataset_names: Sequence[str]) -> np.ndarray:
    """The index of a data set's class for each class of a segmenter, by name; K, its number of classes, for others.

    >>> from keras_resnet.segmentation_evaluation import dataset_indices
    >>> dataset_indices(["__background__", "person", "car"], ["background", "car"])
    array([0, 2, 1], dtype=uint8)

    "background" and "__background__" are one name. If the names of the model's classes are not known, they are the data
    set's classes in their order.

    Args:
        model_names: names of the model's classes.
        dataset_names: names of the data set's K classes.

    Returns:
        (number of the model's classes,) uint8.

    Raises:
        ValueError: for a class that the model does not have.
    """
    names, count = [_plain(name) for name in model_names], len(dataset_names)
    are_known = names != placeholder_names(len(names)) or names == list(dataset_names)
    if not are_known and len(names) == count:
        pairs = ", ".join(f"{number}: {name}" for number, name in enumerate(dataset_names[:5]))
        text = "The names of the model's classes are not known: they are taken as the data set's classes in order"
        warnings.warn(f"{text}, {pairs}{', ...' if count > 5 else ''}", stacklevel=2)
    of_model = match_class_indices([_plain(name) for name in dataset_names], class_ids_and_names(names))
    indices = np.full(len(names), count, "uint8")
    indices[of_model] = np.arange(count)
    return indices


def _plain(name):
    return "background" if name == BACKGROUND else name


def image_metrics(name: str, confusion: np.ndarray) -> ImageMetrics:
    """The ImageMetrics of an image from its confusion matrix."""
    iou = tuple(class_iou(confusion))
    return ImageMetrics(name, int(confusion.sum()), pixel_accuracy(confusion), iou, mean_of_defined(iou))


def _segmentations(segmenter, split, batch_size) -> Iterator[tuple[int, np.ndarray | str, Segmentation]]:
    """Yields (index of the image, its true mask or an error message, Segmentation), in the order of their sizes."""
    order = np.lexsort(split.masks.sizes.T).tolist()

    def true_mask(index):
        try:
            return split.masks.read(index)
        except (ValueError, OSError) as error:
            return str(error)

    masks = map_in_threads(true_mask, order, ahead=batch_size)
    yield from zip(order, masks, iterate_segmentations(segmenter, _images(split, order), batch_size), strict=True)


def _images(split, order):
    """Yields images of a split as `segment` takes them, paths as Path."""
    for index in order:
        (image,) = images_at(split, [index])
        yield Path(image) if isinstance(image, str) else image
