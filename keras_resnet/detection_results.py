"""DetectionEvaluation: detections in test images and their metrics, as JSON and as precision-recall curves."""

import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from keras_resnet.data.objects import Objects
from keras_resnet.detection_metrics import (
    CocoCurves,
    DetectedObjects,
    VocCurve,
    coco_curves,
    voc_curves,
    voc_metrics,
)
from keras_resnet.files import figure_file

LEGEND_CLASSES = 20
"""Largest number of classes that are named in a plot of precision-recall curves."""


@dataclass(frozen=True, eq=False)
class DetectionEvaluation:
    """What a detector found in N test images, the true objects, and the metrics computed from both.

    Metrics are fractions from 0 to 1, and None where COCO's are -1: for classes or sizes without objects.

    >>> import numpy as np
    >>> from keras_resnet.data.objects import Objects
    >>> from keras_resnet.detection_metrics import DetectedObjects
    >>> from keras_resnet.detection_results import DetectionEvaluation
    >>> boxes, no = np.array([[10, 10, 60, 60], [70, 10, 90, 30]], "float32"), np.zeros(2, bool)
    >>> images, labels, areas = np.array([0, 0]), np.array([0, 0], "int32"), np.array([2500.0, 400.0])
    >>> objects = Objects(images, boxes, labels, no, no, areas, None, np.array([[100, 100]]), np.array([7]))
    >>> found = DetectedObjects(images, boxes, labels, np.array([0.9, 0.8], "float32"))
    >>> result = DetectionEvaluation(("cell",), objects, found)
    >>> result.num_images, round(result.boxes["AP"], 3), result.voc["VOC2012_AP"], result.masks
    (1, 1.0, 1.0, None)
    """

    classes: tuple[str, ...]
    """Names of the data set's K classes."""
    objects: Objects
    """The true objects."""
    found: DetectedObjects
    """What was detected."""
    skipped: tuple[str, ...] = ()
    """One message for each image that could not be read, and each object that was left out."""

    @property
    def num_images(self) -> int:
        """Number of evaluated images."""
        return len(self.objects.sizes)

    @property
    def has_masks(self) -> bool:
        """Whether every object and every detection has a mask, so that masks are evaluated."""
        true = self.objects.masks
        return self.found.masks is not None and true is not None and all(mask is not None for mask in true)

    @cached_property
    def curves(self) -> dict[str, CocoCurves]:
        """COCO's precision and recall of "boxes", and of "masks" if there are any."""
        kinds = ("boxes", "masks") if self.has_masks else ("boxes",)
        return {kind: coco_curves(self.objects, self.found, len(self.classes), kind) for kind in kinds}

    @property
    def boxes(self) -> dict[str, float | None]:
        """COCO's twelve numbers of boxes, named as in COCO_METRICS."""
        return self.curves["boxes"].metrics()

    @property
    def masks(self) -> dict[str, float | None] | None:
        """COCO's twelve numbers of masks; None unless every object and every detection has a mask."""
        return self.curves["masks"].metrics() if self.has_masks else None

    @cached_property
    def voc_curves(self) -> list[VocCurve | None]:
        """Precision and recall of each class at an IoU of 0.5, as PASCAL VOC computes them; None without objects."""
        return voc_curves(self.objects, self.found, len(self.classes))

    @property
    def voc(self) -> dict[str, float | None]:
        """{"VOC2007_AP", "VOC2012_AP"}: mean average precision of the boxes as in PASCAL VOC."""
        return voc_metrics(self.voc_curves)

    @property
    def by_class(self) -> list[dict]:
        """Metrics of each class: "name", "num_objects", "num_detections", "boxes", "masks", and those of VOC."""
        counts = (np.bincount(it.labels, minlength=len(self.classes)).tolist() for it in (self.objects, self.found))
        return [
            {"name": name, "num_objects": objects, "num_detections": detections}
            | {kind: curves.metrics(slice(label, label + 1)) for kind, curves in self.curves.items()}
            | voc_metrics([self.voc_curves[label]])
            for label, (name, objects, detections) in enumerate(zip(self.classes, *counts, strict=True))
        ]

    def to_json(self) -> dict:
        """The metrics, and those by class, as JSON values, without the single detections."""
        return {
            "num_images": self.num_images,
            "num_objects": len(self.objects),
            "num_detections": len(self.found),
            **{kind: curves.metrics() for kind, curves in self.curves.items()},
            **self.voc,
            "num_skipped": len(self.skipped),
            "by_class": self.by_class,
        }


def plot_precision_recall(evaluation: DetectionEvaluation, path: str | os.PathLike) -> None:
    """Plots the precision of boxes at each recall to a PNG file: for each class, at an IoU of 0.5, as VOC 2012 does.

    A class is named with its average precision, unless there are more than LEGEND_CLASSES.

    Raises:
        OSError: as `atomic_write`.
    """
    known = [(name, curve) for name, curve in zip(evaluation.classes, evaluation.voc_curves, strict=True) if curve]
    with figure_file(path, figsize=(7, 5)) as figure:
        axes = figure.add_subplot()
        for name, curve in known:
            best = curve.best_precision
            axes.step([0, *curve.recall], [best.max(initial=0), *best], where="pre", label=f"{name} {curve.area():.1%}")
        mean = evaluation.voc["VOC2012_AP"]
        title = "no objects" if mean is None else f"mean average precision {mean:.1%} of {len(known)} classes"
        axes.set(title=title, xlabel="recall", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
        if 0 < len(known) <= LEGEND_CLASSES:
            axes.legend()
