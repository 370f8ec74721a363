"""Comparison of the outputs of a localizer in Keras and exported."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from keras_resnet.deployment.output_comparison import ComparisonResult, OutputComparison, output_rows
from keras_resnet.deployment.serving import Metadata, export_metadata
from keras_resnet.models.localizers import classifier_of


@dataclass(frozen=True)
class LocalizationComparisonResult(ComparisonResult):
    """How far an exported localizer's outputs are from those of its Keras model.

    `nrmse` is the larger one of those of the logits and of the boxes, measured as features.
    """

    max_box_error: float = 0.0
    """Largest difference between coordinates of the box of the class that is the most probable one in Keras, as a share
    of the side of the input."""


class LocalizationComparison:
    """Accumulates a LocalizationComparisonResult over batches, as a keras.metrics.Metric does.

    Args:
        model, metadata, source: as for OutputComparison.
    """

    def __init__(self, model, metadata, source):
        self.classes = OutputComparison(model, metadata, source)
        self.boxes = OutputComparison(model, replace(metadata, class_names=None), source)

    @property
    def proves_little(self) -> str | None:
        """Why the comparison may not notice differences, if so."""
        return self.classes.proves_little

    def update_state(self, expected, received, labels):
        """Adds a batch: outputs of the Keras model and of the export, {name: (B, ...)}, and labels, (B,)."""
        best = expected["probabilities"].argmax(axis=1)
        outputs = expected, received
        self.classes.update_state(*({"probabilities": each["probabilities"]} for each in outputs), labels)
        self.boxes.update_state(*({"boxes": boxes_of_classes(each["boxes"], best)} for each in outputs), labels)

    def result(self) -> LocalizationComparisonResult:
        classes, boxes = self.classes.result(), self.boxes.result()
        nrmse = float(np.maximum(classes.nrmse, boxes.nrmse))  # NaN stays NaN
        return LocalizationComparisonResult(**asdict(classes) | {"nrmse": nrmse, "max_box_error": boxes.max_error})


def boxes_of_classes(boxes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Boxes (B, 1, 4), one for all classes, or (B, K, 4), and classes (B,) -> the box of each image's class (B, 4)."""
    return boxes[np.arange(len(boxes)), np.minimum(classes, boxes.shape[1] - 1)]


def localizer_metadata(model: Any, format: str, precision: str, raw: bool) -> Metadata:
    """The Metadata of a localizer that is to be exported: that of its classifier, with another task."""
    return replace(export_metadata(classifier_of(model), format, precision, raw), task="localization")


def localization_rows(result) -> dict[str, str]:
    """{title: value}: the fields of a LocalizationComparisonResult for the report."""
    box_error = f"{result['max_box_error']:.3g} of a side"
    return output_rows(result) | {"largest difference of boxes of the most probable class": box_error}
