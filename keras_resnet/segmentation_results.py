"""SegmentationEvaluation: pixels of test images by true and predicted class, their metrics, as JSON, CSV and plots."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from keras_resnet.evaluation_results import PROBABILITY_COLUMNS, check_confusion, unique_names
from keras_resnet.files import figure_file
from keras_resnet.segmentation_metrics import class_accuracy, class_dice, class_iou, segmentation_metrics


@dataclass(frozen=True)
class ImageMetrics:
    """Metrics of the pixels of one image; None where nothing is defined, as without pixels that count."""

    name: str
    """Path of the image, or its index."""
    num_pixels: int
    """Number of pixels that count."""
    pixel_accuracy: float | None
    iou: tuple[float | None, ...]
    """Intersection over union of the K classes."""
    mean_iou: float | None
    """Mean of the classes that the true or the predicted mask of the image has."""


@dataclass(frozen=True, eq=False, repr=False)
class SegmentationEvaluation:
    """Pixels of N test images, counted by true and predicted class, and the metrics computed from the counts.

    Metrics are shares from 0 to 1. Classes that neither the true nor the predicted masks have are None, and left out of
    means; see `segmentation_metrics.py`.

    >>> import numpy as np
    >>> from keras_resnet.segmentation_results import SegmentationEvaluation
    >>> counts = np.array([[6, 2, 0], [0, 8, 0], [0, 0, 0]])
    >>> result = SegmentationEvaluation(("road", "sky", "car"), counts, num_images=1)
    >>> result
    SegmentationEvaluation(num_images=1, mean_iou=0.775, pixel_accuracy=0.875)
    >>> result.iou, result.dice[1]
    ([0.75, 0.8, None], 0.8888888888888888)
    """

    classes: tuple[str, ...]
    """Names of the data set's K classes."""
    counts: np.ndarray
    """(K, K + 1) int64, the sum of what `confusion_matrix` returns for each image; or (K, K)."""
    num_images: int
    """Number of evaluated images."""
    skipped: tuple[str, ...] = ()
    """One message for each image or mask that could not be read."""
    images: tuple[ImageMetrics, ...] = ()
    """Metrics of each image."""

    def __repr__(self):
        names = ("mean_iou", "pixel_accuracy")
        values = {name: None if (it := self.metrics[name]) is None else round(it, 4) for name in names}
        shown = ", ".join(f"{name}={value}" for name, value in values.items())
        return f"{type(self).__name__}(num_images={self.num_images}, {shown})"

    @property
    def confusion(self) -> np.ndarray:
        """(K, K) int64 confusion matrix: pixels of the row's class for which the column's class was predicted."""
        return self.counts[:, : len(self.classes)]

    @property
    def num_pixels(self) -> int:
        """Number of pixels that count."""
        return int(self.counts.sum())

    @cached_property
    def metrics(self) -> dict[str, float | None]:
        """{"mean_iou", "mean_dice", "mean_accuracy", "pixel_accuracy", "frequency_weighted_iou"}."""
        return segmentation_metrics(self.counts)

    @property
    def mean_iou(self) -> float | None:
        """mIoU: the mean of the intersections over union of the classes that occur; None without pixels."""
        return self.metrics["mean_iou"]

    @property
    def mean_dice(self) -> float | None:
        """Mean of the Dice coefficients of the classes that occur."""
        return self.metrics["mean_dice"]

    @property
    def mean_accuracy(self) -> float | None:
        """Mean of the accuracies of the classes that have pixels."""
        return self.metrics["mean_accuracy"]

    @property
    def pixel_accuracy(self) -> float | None:
        """Share of the pixels whose class was predicted."""
        return self.metrics["pixel_accuracy"]

    @property
    def frequency_weighted_iou(self) -> float | None:
        """Mean of the intersections over union, weighted by the number of pixels of each class."""
        return self.metrics["frequency_weighted_iou"]

    @property
    def iou(self) -> list[float | None]:
        """Intersection over union of each class, in the order of `classes`."""
        return class_iou(self.counts)

    @property
    def dice(self) -> list[float | None]:
        """Dice coefficient of each class, in the order of `classes`."""
        return class_dice(self.counts)

    @property
    def accuracy(self) -> list[float | None]:
        """Share of the pixels of each class for which it was predicted, in the order of `classes`."""
        return class_accuracy(self.counts)

    @property
    def by_class(self) -> list[dict]:
        """Metrics of each class: "name", "num_pixels" that have it, "iou", "dice", "accuracy"."""
        columns = {
            "name": self.classes,
            "num_pixels": self.counts.sum(axis=1).tolist(),
            "iou": self.iou,
            "dice": self.dice,
            "accuracy": self.accuracy,
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_json(self) -> dict:
        """The metrics, and those by class, as JSON values, without the single images."""
        return {
            **self.metrics,
            "num_images": self.num_images,
            "num_pixels": self.num_pixels,
            "num_skipped": len(self.skipped),
            "by_class": self.by_class,
        }

    def prediction_rows(self) -> Iterator[dict]:
        """A row for each image: its name, pixels, accuracy, mean IoU, and the IoU of each class if they are not many.

        Values that are not defined are empty.
        """
        names = unique_names(tuple((str(index), name) for index, name in enumerate(self.classes)))
        for image in self.images:
            row: dict[str, Any] = {
                "image": image.name,
                "num_pixels": image.num_pixels,
                "pixel_accuracy": image.pixel_accuracy,
                "mean_iou": image.mean_iou,
            }
            if len(names) <= PROBABILITY_COLUMNS:
                row |= {f"iou({name})": iou for name, iou in zip(names, image.iou, strict=True)}
            yield row


def plot_pixel_confusion(evaluation: SegmentationEvaluation, path: str | os.PathLike) -> None:
    """Plots the confusion matrix of at most CONFUSION_CLASSES classes to a PNG file, as shares of the true pixels.

    Raises:
        ValueError: for more classes. OSError: as `atomic_write`.
    """
    from sklearn.metrics import ConfusionMatrixDisplay

    names = evaluation.classes
    check_confusion(len(names), path)
    shares = evaluation.confusion / np.maximum(1, evaluation.counts.sum(axis=1, keepdims=True))
    side = 3 + 0.5 * len(names)
    with figure_file(path, figsize=(side, side)) as figure:
        axes = figure.add_subplot()
        ConfusionMatrixDisplay(shares, display_labels=names).plot(
            ax=axes, cmap="Blues", colorbar=False, xticks_rotation="vertical", values_format=".0%"
        )
        mean = "no pixels" if evaluation.mean_iou is None else f"mean IoU {evaluation.mean_iou:.1%}"
        title = f"{mean} of {evaluation.num_images} images"
        axes.set(title=title, xlabel="predicted class", ylabel="true class, with shares of its pixels")
        figure.tight_layout()
