"""OBJECTIVES: what a run learns about each image, such as its class or its objects, and how that is measured."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_resnet.training.curves import (
    draw_detection_curves,
    draw_error_curves,
    draw_localization_curves,
    draw_segmentation_curves,
)


@dataclass(frozen=True)
class Objective:
    """A row of OBJECTIVES."""

    monitor: str
    """The test metric, higher being better, that chooses the best epoch and decides when the learning rate falls."""
    progress: str
    """Format of its value, or of the error 1 - value, in lines about the training."""
    score: str
    """The value in a run's report by which runs are compared, 0 to 1."""
    results: dict[str, str]
    """{name in the report: test metric}."""
    draw_curves: Callable
    """(history, its label, path, title): draws the learning curves of a run."""
    activation: str | None = None
    """Of classifiers: activation of the trained model's last layer."""
    metrics: Callable[[int], list] | None = None
    """Number of classes -> metrics that `fit` measures in training and testing; None: in training only losses. One is
    "accuracy", of classes or of single labels."""

    def describe(self, value: float) -> str:
        """A value of `monitor` as text."""
        return self.progress.format(value=value, error=1 - value)

    def describe_training(self, logs: dict[str, float]) -> str:
        """The loss and what else `fit` measured in training, as text: `monitor`, or the separate losses."""
        separate = [f"{name.removesuffix('_loss')} {value:.4f}" for name, value in logs.items() if name[-5:] == "_loss"]
        others = [f"training {self.describe(logs[self.monitor])}"] if self.monitor in logs else separate
        return ", ".join([f"loss {logs['loss']:.4f}", *others])

    @property
    def training_metrics(self) -> tuple[str, ...]:
        """Names of the values that every epoch has, tested or not."""
        return ("loss", *self.results.values()) if self.metrics else ("loss",)


_BOXES = Objective(
    monitor="average_precision",
    progress="AP {value:.2%}",
    score="average_precision",
    results={name: name for name in ("average_precision", "ap50", "ap75")},
    draw_curves=draw_detection_curves,
)

OBJECTIVES = {
    "single_label": Objective(
        monitor="accuracy",
        progress="error {error:.2%}",
        score="top1_accuracy",
        results={"top1_accuracy": "accuracy", "top5_accuracy": "top5_accuracy", "loss": "loss"},
        draw_curves=draw_error_curves,
        activation="softmax",
        metrics=lambda num_classes: [
            keras.metrics.CategoricalAccuracy("accuracy"),
            keras.metrics.TopKCategoricalAccuracy(min(5, num_classes), "top5_accuracy"),
        ],
    ),
    "multi_label": Objective(
        monitor="pr_auc",
        progress="PR AUC {value:.2%}",
        score="mean_average_precision",
        results={"label_accuracy": "accuracy", "pr_auc": "pr_auc", "loss": "loss"},
        draw_curves=draw_error_curves,
        activation="sigmoid",
        metrics=lambda num_classes: [
            keras.metrics.BinaryAccuracy("accuracy"),
            keras.metrics.AUC(curve="PR", multi_label=True, num_labels=num_classes, name="pr_auc"),
        ],
    ),
    "class_and_box": Objective(
        monitor="top1_localization_accuracy",
        progress="localization error {error:.2%}",
        score="top1_localization_accuracy",
        results={
            "top1_localization_accuracy": "top1_localization_accuracy",
            "top5_localization_accuracy": "top5_localization_accuracy",
            "true_class_accuracy": "true_class_accuracy",
            "class_accuracy": "top1_accuracy",
        },
        draw_curves=draw_localization_curves,
    ),
    "semantic_masks": Objective(
        monitor="mean_iou",
        progress="mean IoU {value:.2%}",
        score="mean_iou",
        results={name: name for name in ("mean_iou", "pixel_accuracy", "mean_accuracy")},
        draw_curves=draw_segmentation_curves,
    ),
    "boxes": _BOXES,
    "boxes_and_masks": replace(
        _BOXES, results=_BOXES.results | {f"mask_{name}": f"mask_{name}" for name in _BOXES.results}
    ),
}


def run_score(report: dict[str, Any]) -> tuple[str, float]:
    """(name, value) of the result by which runs are compared: the `score` of the report's objective."""
    return next((row.score, report[row.score]) for row in OBJECTIVES.values() if row.score in report)
