"""Metrics of semantic segmentation, computed from the confusion matrix of the pixels.

Classes that do not occur are None and left out of means: for an IoU or a Dice coefficient, classes that neither the
true nor the predicted masks have, as in torchmetrics and mmsegmentation; torchvision's ConfusionMatrix has NaN.
A class that is only predicted has an IoU of 0.
"""

from collections.abc import Sequence

import numpy as np

from keras_resnet.architecture.segmenter_spec import IGNORED
from keras_resnet.errors import value_error
from keras_resnet.metrics import mean_of_defined


def confusion_matrix(mask: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K + 1) int64: pixels of the row's class for which the column's class was predicted.

    >>> import numpy as np
    >>> from keras_resnet.segmentation_metrics import confusion_matrix
    >>> mask, predicted = np.array([[0, 0, 1, 255]], "uint8"), np.array([[0, 1, 1, 1]], "uint8")
    >>> confusion_matrix(mask, predicted, num_classes=2)
    array([[1, 1, 0],
           [0, 1, 0]])

    The last column counts pixels for which none of the K classes was predicted, but another one that a model has.

    Args:
        mask: (H, W) uint8: the true class of each pixel, or IGNORED (255), for pixels that do not count.
        predicted: (H, W) uint8: the predicted classes; from K on they are none of the K classes.
        num_classes: number of classes, K.

    Raises:
        ValueError: for masks of different shapes, and true classes beyond the K.
    """
    if mask.shape != predicted.shape:
        raise value_error("predicted", predicted.shape, f"of the height and width of the true mask, {mask.shape}")
    counted = mask != IGNORED
    true, found = mask[counted], np.minimum(predicted[counted], num_classes).astype("int64")
    if true.size and true.max() >= num_classes:
        raise value_error("mask", int(true.max()), f"classes from 0 to {num_classes - 1}, or {IGNORED}")
    columns = num_classes + 1
    counts = np.bincount(true * np.int64(columns) + found, minlength=num_classes * columns)
    return counts.reshape(num_classes, columns)


def pixel_accuracy(confusion: np.ndarray) -> float | None:
    """Share of the pixels whose class was predicted; None without pixels."""
    return _ratios(np.trace(confusion), confusion.sum())[0]


def class_accuracy(confusion: np.ndarray) -> list[float | None]:
    """Share of the pixels of each class for which it was predicted (its recall); None for classes without pixels."""
    return _ratios(np.diagonal(confusion), confusion.sum(axis=1))


def class_iou(confusion: np.ndarray) -> list[float | None]:
    """Intersection over union (Jaccard index) of the true and the predicted pixels of each class.

    >>> import numpy as np
    >>> from keras_resnet.segmentation_metrics import class_iou
    >>> class_iou(np.array([[1, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]]))
    [0.5, 0.6666666666666666, None]
    """
    return _ratios(np.diagonal(confusion), _true_and_predicted(confusion) - np.diagonal(confusion))


def class_dice(confusion: np.ndarray) -> list[float | None]:
    """Dice coefficient of each class, twice the intersection by the sum of the areas: the F1 score of its pixels."""
    return _ratios(2 * np.diagonal(confusion), _true_and_predicted(confusion))


def frequency_weighted_iou(confusion: np.ndarray) -> float | None:
    """Mean of the IoUs of the classes, weighted by their shares of the true pixels (Long et al. 2015, sec. 5)."""
    pixels = confusion.sum(axis=1)
    pairs = zip(pixels.tolist(), class_iou(confusion), strict=True)
    return _ratios(sum(count * iou for count, iou in pairs if count and iou is not None), pixels.sum())[0]


def segmentation_metrics(confusion: np.ndarray) -> dict[str, float | None]:
    """{"mean_iou", "mean_dice", "mean_accuracy", "pixel_accuracy", "frequency_weighted_iou"}, from 0 to 1.

    Args:
        confusion: (K, K + 1), a sum of what `confusion_matrix` returns; or (K, K).
    """
    return {
        "mean_iou": mean_of_defined(class_iou(confusion)),
        "mean_dice": mean_of_defined(class_dice(confusion)),
        "mean_accuracy": mean_of_defined(class_accuracy(confusion)),
        "pixel_accuracy": pixel_accuracy(confusion),
        "frequency_weighted_iou": frequency_weighted_iou(confusion),
    }


def _true_and_predicted(confusion):
    """(K,): the number of true pixels of each class plus that of its predicted ones."""
    return confusion.sum(axis=1) + confusion[:, : len(confusion)].sum(axis=0)


def _ratios(counts, totals) -> list[float | None]:
    """counts / totals as a list; None where the total is 0."""
    pairs: Sequence = list(zip(np.ravel(counts).tolist(), np.ravel(totals).tolist(), strict=True))
    return [count / total if total else None for count, total in pairs]
