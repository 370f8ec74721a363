"""OBJECTIVES: what a run learns about each image, its class or which classes it has, and how that is measured."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from keras_resnet.data.datasets import Dataset


@dataclass(frozen=True)
class Objective:
    """A row of OBJECTIVES."""

    activation: str
    """Activation of the trained model's last layer."""
    metrics: Callable[[int], list]
    """Number of classes -> metrics of `fit`. One is "accuracy", of classes or of single labels."""
    monitor: str
    """The metric, higher being better, that chooses the best epoch and decides when the learning rate falls."""
    progress: str
    """Format of its value, or of the error 1 - value, in lines about the training."""
    score: str
    """The value in a run's report by which runs are compared, 0 to 1."""
    results: dict[str, str]
    """{name in the report: metric}."""

    def describe(self, value: float) -> str:
        """A value of `monitor` as text."""
        return self.progress.format(value=value, error=1 - value)


OBJECTIVES = {
    "single_label": Objective(
        activation="softmax",
        metrics=lambda num_classes: [
            keras.metrics.CategoricalAccuracy("accuracy"),
            keras.metrics.TopKCategoricalAccuracy(min(5, num_classes), "top5_accuracy"),
        ],
        monitor="accuracy",
        progress="error {error:.2%}",
        score="top1_accuracy",
        results={"top1_accuracy": "accuracy", "top5_accuracy": "top5_accuracy"},
    ),
    "multi_label": Objective(
        activation="sigmoid",
        metrics=lambda num_classes: [
            keras.metrics.BinaryAccuracy("accuracy"),
            keras.metrics.AUC(curve="PR", multi_label=True, num_labels=num_classes, name="pr_auc"),
        ],
        monitor="pr_auc",
        progress="PR AUC {value:.2%}",
        score="mean_average_precision",
        results={"label_accuracy": "accuracy", "pr_auc": "pr_auc"},
    ),
}


def objective_of(dataset: Dataset) -> Objective:
    """The row of OBJECTIVES for a data set."""
    return OBJECTIVES["multi_label" if dataset.multi_label else "single_label"]


def run_score(report: dict[str, Any]) -> tuple[str, float]:
    """(name, value) of the result by which runs are compared: the `score` of the report's objective."""
    return next((row.score, report[row.score]) for row in OBJECTIVES.values() if row.score in report)
