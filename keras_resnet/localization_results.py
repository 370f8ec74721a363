"""LocalizationEvaluation: predicted classes and boxes of test images, and ImageNet's localization errors, as JSON."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from keras import ops

from keras_resnet.architecture.boxes import box_iou
from keras_resnet.data.objects import Objects
from keras_resnet.metrics import CONFIDENCE, confidence_interval

MIN_OVERLAP = 0.5
"""Smallest intersection over union with a true box at which a box is right."""


def largest_overlaps(boxes: np.ndarray, objects: Objects) -> np.ndarray:
    """The largest intersection over union of each box with a true box of its image: (N, n) float64.

    >>> import numpy as np
    >>> from keras_resnet.data.objects import Objects
    >>> true, no = np.array([[0, 0, 4, 4], [2, 0, 6, 4]], "float32"), np.zeros(2, bool)
    >>> objects = Objects(np.array([0, 0]), true, np.zeros(2, "int32"), no, no, np.full(2, 16.0), None,
    ...                   np.array([[8, 8]]), np.array([1]))
    >>> largest_overlaps(np.array([[[2, 0, 6, 8], [6, 6, 8, 8]]]), objects)
    array([[0.5, 0. ]])

    Args:
        boxes: (N, n, 4), x1, y1, x2, y2 in pixels of N images.
        objects: the objects in these images.
    """
    pairs = box_iou(boxes[objects.image].astype("float64"), objects.boxes[:, None].astype("float64"))
    overlaps = np.zeros(boxes.shape[:2])
    np.maximum.at(overlaps, objects.image, ops.convert_to_numpy(pairs)[..., 0])
    return overlaps


@dataclass(frozen=True, eq=False)
class LocalizationEvaluation:
    """Predicted classes of N test images, and how their boxes overlap the true ones.

    Errors are those of ImageNet's localization task (Russakovsky et al. 2015, arXiv:1409.0575, sec. 4.2), shares from 0
    to 1. A class with its box is right if the class is that of the image, and the box overlaps a true box by an
    intersection over union of at least 0.5.

    >>> import numpy as np
    >>> labels, top = np.array([0, 1]), np.array([[0, 1], [0, 1]])
    >>> overlaps = np.array([[0.7, 0.1], [0.9, 0.6]])
    >>> result = LocalizationEvaluation((("a", "cat"), ("b", "dog")), labels, top, overlaps, overlaps[[0, 1], labels])
    >>> result.errors["top1_localization_error"], result.errors["top5_localization_error"]
    (0.5, 0.0)
    """

    classes: tuple[tuple[str, str], ...]
    """(id, name) of the model's K classes."""
    labels: np.ndarray
    """(N,) int32: the true classes."""
    top: np.ndarray
    """(N, n) int32: the five most probable classes, or all of fewer classes, the most probable first."""
    overlaps: np.ndarray
    """(N, n): the overlap of the box of each of them with the true boxes, see `largest_overlaps`."""
    true_class_overlaps: np.ndarray
    """(N,): the overlap of the box of the true class."""
    baselines: dict[str, np.ndarray] = field(default_factory=dict)
    """Name of a rule that gives each image one box -> (N,), the overlap of this box."""
    skipped: tuple[str, ...] = ()
    """One message for each image that could not be read, or has no box."""

    @property
    def num_images(self) -> int:
        """Number of evaluated images."""
        return len(self.labels)

    @cached_property
    def wrong(self) -> dict[str, np.ndarray]:
        """{name of an error: (N,) bool, the images that count as wrong}.

        "top1_localization_error" and "top5_localization_error": none of the most probable classes is right with its
        box; "true_class_error": the box of the true class is wrong; "top1_error", "top5_error": of the classes alone.
        """
        return self._wrong(self.overlaps, self.true_class_overlaps)

    def _wrong(self, overlaps, true_class_overlaps):
        is_class = self.top == self.labels[:, None]
        is_right = is_class & (overlaps >= MIN_OVERLAP)
        found = {f"top{k}_localization_error": ~is_right[:, :k].any(axis=1) for k in (1, 5)}
        found["true_class_error"] = true_class_overlaps < MIN_OVERLAP
        return found | {f"top{k}_error": ~is_class[:, :k].any(axis=1) for k in (1, 5)}

    @property
    def errors(self) -> dict[str, float]:
        """{name of an error: share of the images}, see `wrong`."""
        return _shares(self.wrong)

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """{name of an error: its 95% confidence interval}."""
        return _intervals(self.wrong)

    @property
    def baseline_wrong(self) -> dict[str, dict[str, np.ndarray]]:
        """{name of a rule: what `wrong` would be with its boxes and the same classes}."""
        return {name: self._wrong(overlaps[:, None], overlaps) for name, overlaps in self.baselines.items()}

    @property
    def by_class(self) -> list[dict]:
        """Errors of each class that occurs: "id", "name", "num_images", and those of `wrong`."""
        rows = []
        for index in np.unique(self.labels).tolist():
            of_class = self.labels == index
            identity = dict(zip(("id", "name"), self.classes[index], strict=True))
            errors = _shares({name: values[of_class] for name, values in self.wrong.items()})
            rows.append(identity | {"num_images": int(of_class.sum())} | errors)
        return rows

    def to_json(self) -> dict:
        """Errors, intervals, those of the baselines, and errors by class, as JSON values."""
        return {
            **self.errors,
            "intervals": self.intervals,
            "confidence": CONFIDENCE,
            "num_images": self.num_images,
            "num_skipped": len(self.skipped),
            "baselines": {
                name: _shares(wrong) | {"intervals": _intervals(wrong)} for name, wrong in self.baseline_wrong.items()
            },
            "by_class": self.by_class,
        }


def _shares(wrong):
    return {name: float(values.mean()) for name, values in wrong.items()}


def _intervals(wrong):
    return {name: confidence_interval(int(values.sum()), len(values)) for name, values in wrong.items()}
