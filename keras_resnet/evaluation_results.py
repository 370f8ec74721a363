"""Evaluation and MultiLabelEvaluation: predictions for test images, their metrics, as JSON, CSV and plots."""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from keras_resnet.errors import value_error
from keras_resnet.files import atomic_write, check_writable, figure_file
from keras_resnet.metrics import (
    CONFIDENCE,
    average_precision,
    balanced_accuracy,
    best_thresholds,
    confidence_interval,
    mean_of_defined,
    precision_recall_f1,
    roc_auc,
    scores_by_class,
)

CONFUSION_CLASSES = 50
"""Largest number of classes in a plot of the confusion matrix."""
PROBABILITY_COLUMNS = 100
"""Largest number of classes of which a file of predictions has all probabilities."""
TOP = 5
"""Classes of each image in a file of predictions."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predicted classes of N test images, and the errors and metrics computed from them.

    Errors and metrics are fractions from 0 to 1; metrics of all classes together are means over the classes (macro).

    >>> import numpy as np
    >>> classes, labels, predicted = (("a", "cat"), ("b", "dog")), np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    >>> result = Evaluation(classes, labels, predicted, ranks=np.array([0, 1, 0, 0]))
    >>> result.top1_error, result.metrics["balanced_accuracy"]
    (0.25, 0.75)
    >>> result.confusion.tolist()
    [[1, 1], [0, 2]]
    """

    classes: tuple[tuple[str, str], ...]
    """(id, name) of the model's K classes."""
    labels: np.ndarray
    """(N,) int32: the true classes."""
    predicted: np.ndarray
    """(N,) int32: the most probable classes."""
    ranks: np.ndarray
    """(N,) int32: the number of classes more probable than the true one; of equally probable ones, the first wins."""
    skipped: tuple[str, ...] = ()
    """One message for each image that could not be read."""
    probabilities: np.ndarray | None = None
    """(N, K) float32; None if they were too many to keep."""
    names: tuple[str, ...] = ()
    """Paths of the images, or their indices."""

    @property
    def num_images(self) -> int:
        """Number of evaluated images."""
        return len(self.labels)

    @property
    def most_probable(self) -> np.ndarray:
        """(N,) the most probable class of each image."""
        return self.predicted

    def is_correct(self, predicted: np.ndarray) -> np.ndarray:
        """(N,) booleans: whether an image has the class that is predicted for it."""
        return predicted == self.labels

    def true_classes(self, index: int) -> list[str]:
        """Names of an image's classes: one."""
        return [self.classes[self.labels[index]][1]]

    @property
    def top1_error(self) -> float:
        """Fraction of images whose most probable class is wrong."""
        return self.error(1)

    @property
    def top5_error(self) -> float:
        """Fraction of images whose true class is not among the five most probable ones."""
        return self.error(5)

    def num_wrong(self, k: int) -> int:
        """Number of images whose true class is not among the k most probable ones."""
        return int((self.ranks >= k).sum())

    def error(self, k: int) -> float:
        """Fraction of images whose true class is not among the k most probable ones: the top-k error."""
        return self.num_wrong(k) / self.num_images

    def interval(self, k: int) -> tuple[float, float]:
        """(low, high): the 95% confidence interval of the top-k error (Wilson's score interval)."""
        return confidence_interval(self.num_wrong(k), self.num_images)

    @cached_property
    def confusion(self) -> np.ndarray:
        """(K, K) int64 confusion matrix: images of the row's class for which the column's class was predicted."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(self.labels, self.predicted, labels=np.arange(len(self.classes)))

    @cached_property
    def metrics(self) -> dict[str, float | None]:
        """{"balanced_accuracy", "precision", "recall", "f1", "roc_auc"}, means over the classes.

        "roc_auc" is one class against all others; None if only one class occurs, or probabilities were not kept.
        """
        return {
            "balanced_accuracy": balanced_accuracy(self.labels, self.predicted),
            **precision_recall_f1(self.labels, self.predicted),
            "roc_auc": mean_of_defined(self._roc_auc_by_class),
        }

    @cached_property
    def _roc_auc_by_class(self):
        if self.probabilities is None:
            return [None] * len(self.classes)
        return roc_auc(self.labels[:, None] == np.arange(len(self.classes)), self.probabilities)

    @property
    def by_class(self) -> list[dict]:
        """Errors and metrics of each class that occurs: "id", "name", "num_images", "top1_error", "precision", ..."""
        num_classes = len(self.classes)
        counts, wrong1, wrong5 = (
            np.bincount(self.labels[self.ranks >= k], minlength=num_classes).tolist() for k in (0, 1, 5)
        )
        scores = scores_by_class(self.labels, self.predicted, num_classes)
        columns = (self.classes, counts, wrong1, wrong5, scores, self._roc_auc_by_class)
        return [
            {"id": i, "name": name, "num_images": n, "top1_error": first / n, "top5_error": five / n}
            | its_scores
            | {"roc_auc": auc}
            for (i, name), n, first, five, its_scores, auc in zip(*columns, strict=True)
            if n
        ]

    def to_json(self) -> dict:
        """The errors, their intervals, the metrics, and those by class as JSON values, without the single images."""
        return {
            "top1_error": self.top1_error,
            "top5_error": self.top5_error,
            "num_images": self.num_images,
            "top1_wrong": self.num_wrong(1),
            "top5_wrong": self.num_wrong(5),
            "top1_interval": self.interval(1),
            "top5_interval": self.interval(5),
            "confidence": CONFIDENCE,
            **self.metrics,
            "num_skipped": len(self.skipped),
            "by_class": self.by_class,
        }

    def prediction_rows(self) -> Iterator[dict]:
        """A row for each image: its name, true class, and the five most probable classes with their probabilities.

        Raises:
            ValueError: if the probabilities were not kept.
        """
        if self.probabilities is None:
            raise ValueError("`evaluation` should have kept its probabilities. Received: probabilities=None")
        names = unique_names(self.classes)
        top = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :TOP]
        for name, label, best, probabilities in zip(self.names, self.labels, top, self.probabilities, strict=True):
            row = {"image": name, "label": names[label]}
            for rank, index in enumerate(best, start=1):
                suffix = f"_{rank}" if rank > 1 else ""
                row |= {f"predicted{suffix}": names[index], f"probability{suffix}": probabilities[index]}
            yield row | _probability_columns(names, probabilities)


@dataclass(frozen=True, eq=False)
class MultiLabelEvaluation:
    """Probabilities of N test images that may have several of K classes, and the metrics computed from them.

    Metrics are fractions from 0 to 1; those of all classes together are means over the classes (macro).

    >>> import numpy as np
    >>> labels, probabilities = np.array([[1, 0], [0, 1], [0, 1]]), np.array([[0.9, 0.1], [0.1, 0.8], [0.2, 0.3]])
    >>> result = MultiLabelEvaluation((("a", "cat"), ("b", "dog")), labels, probabilities, thresholds=(0.5, 0.5))
    >>> result.mean_average_precision, result.metrics["recall"]
    (1.0, 0.75)
    """

    classes: tuple[tuple[str, str], ...]
    """(id, name) of the model's K classes."""
    labels: np.ndarray
    """(N, K) uint8: 1 for the classes of an image."""
    probabilities: np.ndarray
    """(N, K) float32."""
    thresholds: tuple[float, ...]
    """The probability of each class from which on it is predicted."""
    skipped: tuple[str, ...] = ()
    """One message for each image that could not be read."""
    names: tuple[str, ...] = ()
    """Paths of the images, or their indices."""

    @property
    def num_images(self) -> int:
        """Number of evaluated images."""
        return len(self.labels)

    @property
    def most_probable(self) -> np.ndarray:
        """(N,) the most probable class of each image."""
        return self.probabilities.argmax(axis=1)

    def is_correct(self, predicted: np.ndarray) -> np.ndarray:
        """(N,) booleans: whether an image has the class that is predicted for it."""
        return self.labels[np.arange(len(predicted)), predicted] == 1

    def true_classes(self, index: int) -> list[str]:
        """Names of an image's classes."""
        return [self.classes[label][1] for label in np.flatnonzero(self.labels[index])]

    @property
    def predicted(self) -> np.ndarray:
        """(N, K) uint8: 1 for the classes whose probability reaches the threshold."""
        return (self.probabilities >= np.array(self.thresholds)).astype("uint8")

    @cached_property
    def mean_average_precision(self) -> float | None:
        """mAP: the mean of the average precisions of the classes that occur; None if no image has a class."""
        return mean_of_defined(average_precision(self.labels, self.probabilities))

    @cached_property
    def best_thresholds(self) -> list[float]:
        """Thresholds of the classes with the highest F1 on these images, see `metrics.best_thresholds`."""
        return best_thresholds(self.labels, self.probabilities)

    @cached_property
    def metrics(self) -> dict[str, float | None]:
        """{"mean_average_precision", "precision", "recall", "f1", "micro_f1", "exact_match", "roc_auc"}.

        "exact_match" is the fraction of images with all labels right. All but the first and last depend on the
        thresholds.
        """
        return {
            "mean_average_precision": self.mean_average_precision,
            **precision_recall_f1(self.labels, self.predicted),
            "micro_f1": precision_recall_f1(self.labels, self.predicted, "micro")["f1"],
            "exact_match": float((self.labels == self.predicted).all(axis=1).mean()),
            "roc_auc": mean_of_defined(roc_auc(self.labels, self.probabilities)),
        }

    @property
    def by_class(self) -> list[dict]:
        """Metrics of each class: "id", "name", "num_images" that have it, "average_precision", "threshold", ..."""
        columns = {
            "num_images": self.labels.sum(axis=0, dtype=int).tolist(),
            "average_precision": average_precision(self.labels, self.probabilities),
            "roc_auc": roc_auc(self.labels, self.probabilities),
            "threshold": self.thresholds,
        }
        rows = zip(*columns.values(), strict=True)
        scores = scores_by_class(self.labels, self.predicted, len(self.classes))
        return [
            {"id": i, "name": name} | dict(zip(columns, row, strict=True)) | its_scores
            for (i, name), row, its_scores in zip(self.classes, rows, scores, strict=True)
        ]

    def to_json(self) -> dict:
        """The metrics and those by class as JSON values, without the single images."""
        counts = {"num_images": self.num_images, "num_skipped": len(self.skipped)}
        return {**self.metrics, **counts, "by_class": self.by_class}

    def prediction_rows(self) -> Iterator[dict]:
        """A row for each image: its name, its classes and the predicted ones, separated by |, and probabilities."""
        names = unique_names(self.classes)
        for name, *labels, probabilities in zip(
            self.names, self.labels, self.predicted, self.probabilities, strict=True
        ):
            label, predicted = ("|".join(names[index] for index in np.flatnonzero(row)) for row in labels)
            yield {"image": name, "label": label, "predicted": predicted} | _probability_columns(names, probabilities)


def _probability_columns(names, probabilities):
    """{"p(cat)": 0.9} for each class, if they are not too many."""
    if len(names) > PROBABILITY_COLUMNS:
        return {}
    return {f"p({name})": value for name, value in zip(names, probabilities, strict=True)}


def unique_names(classes: tuple[tuple[str, str], ...]) -> list[str]:
    """Names of pairs (id, name); for those that occur twice, as ImageNet's cranes, "name (id)"."""
    counts = Counter(name for _, name in classes)
    return [name if counts[name] == 1 else f"{name} ({i})" for i, name in classes]


def write_predictions(evaluation: Evaluation | MultiLabelEvaluation, path: str | os.PathLike) -> None:
    """Writes the predictions as a CSV file with a row for each image, see `prediction_rows`, by `atomic_write`.

    Raises:
        ValueError: if the probabilities were not kept. OSError: as `atomic_write`.
    """
    rows = list(evaluation.prediction_rows())
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def check_confusion(num_classes: int, path: str | os.PathLike) -> None:
    """Raises ValueError or OSError if `plot_confusion` could not plot a matrix of `num_classes` classes."""
    if num_classes > CONFUSION_CLASSES:
        raise value_error("num_classes", num_classes, f"at most {CONFUSION_CLASSES} to plot a confusion matrix")
    check_writable(path)


def plot_confusion(evaluation: Evaluation, path: str | os.PathLike) -> None:
    """Plots the confusion matrix of at most CONFUSION_CLASSES classes to a PNG file.

    Raises:
        ValueError: for more classes. OSError: as `atomic_write`.
    """
    from sklearn.metrics import ConfusionMatrixDisplay

    names = [name for _, name in evaluation.classes]
    check_confusion(len(names), path)
    side = 3 + 0.4 * len(names)
    with figure_file(path, figsize=(side, side)) as figure:
        axes = figure.add_subplot()
        ConfusionMatrixDisplay(evaluation.confusion, display_labels=names).plot(
            ax=axes, cmap="Blues", colorbar=False, xticks_rotation="vertical", values_format="d"
        )
        title = f"top-1 error {evaluation.top1_error:.2%} of {evaluation.num_images} images"
        axes.set(title=title, xlabel="predicted class", ylabel="true class")
        figure.tight_layout()
