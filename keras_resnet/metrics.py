"""Metrics of predictions, by scikit-learn: precision, recall, F1, ROC AUC, average precision, thresholds.

Values that are not defined, as the ROC AUC of a class that no image or every image has, are None.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from keras_resnet.data.labels import DEFAULT_THRESHOLD

CONFIDENCE = 0.95
"""Confidence level of the intervals of errors."""


def confidence_interval(count: int, total: int) -> tuple[float, float]:
    """(low, high): the 95% confidence interval of the share `count / total` (Wilson's score interval).

    >>> [round(limit, 3) for limit in confidence_interval(5, 10)]
    [0.237, 0.763]
    """
    from scipy.stats import binomtest

    low, high = binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


def precision_recall_f1(labels: np.ndarray, predicted: np.ndarray, average: str = "macro") -> dict[str, float]:
    """{"precision", "recall", "f1"} of all classes together, as in `sklearn.metrics.classification_report`.

    >>> import numpy as np
    >>> precision_recall_f1(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))["recall"]
    0.75

    Args:
        labels, predicted: true and predicted classes, (N,) integers or (N, K) zeros and ones.
        average: "macro", the mean of the classes that occur or are predicted, or "micro", of all labels together.
    """
    return {name: float(value) for name, value in _scores(labels, predicted, average=average)}


def scores_by_class(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> list[dict[str, float]]:
    """`precision_recall_f1` of each of K classes; 0 where a class is never predicted."""
    scores = dict(_scores(labels, predicted, labels=range(num_classes), average=None))
    return [dict(zip(scores, map(float, row), strict=True)) for row in zip(*scores.values(), strict=True)]


def _scores(true, predicted, **arguments):
    from sklearn.metrics import precision_recall_fscore_support

    scores = precision_recall_fscore_support(true, predicted, zero_division=0, **arguments)
    return zip(("precision", "recall", "f1"), scores[:3], strict=True)


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall of the classes that occur; true and predicted classes are (N,) integers."""
    from sklearn.metrics import recall_score

    return float(recall_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0))


def roc_auc(labels: np.ndarray, probabilities: np.ndarray) -> list[float | None]:
    """Area under the ROC curve of each class against all others: (N, K) zeros and ones, probabilities -> K values."""
    from sklearn.metrics import roc_auc_score

    pairs = _pairs(labels, probabilities)
    return [float(roc_auc_score(*pair)) if 0 < pair[0].sum() < len(labels) else None for pair in pairs]


def average_precision(labels: np.ndarray, probabilities: np.ndarray) -> list[float | None]:
    """Average precision of each class: (N, K) zeros and ones, probabilities -> K values."""
    from sklearn.metrics import average_precision_score

    pairs = _pairs(labels, probabilities)
    return [float(average_precision_score(*pair)) if pair[0].any() else None for pair in pairs]


def best_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> list[float]:
    """The threshold of each class with the highest F1: (N, K) zeros and ones, probabilities -> K values.

    It lies halfway to the next lower probability, so that rounding does not change a prediction. A class that no image
    has gets DEFAULT_THRESHOLD.
    """
    return [_best_threshold(*pair) if pair[0].any() else DEFAULT_THRESHOLD for pair in _pairs(labels, probabilities)]


def _best_threshold(labels, probabilities):
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(labels, probabilities)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    best = thresholds[f1[:-1].argmax()]
    lower = probabilities[probabilities < best].max(initial=0)
    return float((best + lower) / 2)


def mean_of_defined(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None without any."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _pairs(labels, probabilities) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(labels, probabilities) of each class."""
    return zip(labels.T, probabilities.T, strict=True)
