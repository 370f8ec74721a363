"""Metrics of detections: COCO's average precision and recall, by faster-coco-eval, and PASCAL VOC's average precision.

Values that are not defined, as the average precision of a class without objects, are None; pycocotools has -1 for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_resnet.data.objects import Objects, corner_and_sides
from keras_resnet.errors import DETECTION, check_installed, value_error
from keras_resnet.metrics import mean_of_defined

COCO_METRICS = {
    "AP": ("precision", None, "all", 100),
    "AP50": ("precision", 0.5, "all", 100),
    "AP75": ("precision", 0.75, "all", 100),
    "AP_small": ("precision", None, "small", 100),
    "AP_medium": ("precision", None, "medium", 100),
    "AP_large": ("precision", None, "large", 100),
    "AR1": ("recall", None, "all", 1),
    "AR10": ("recall", None, "all", 10),
    "AR100": ("recall", None, "all", 100),
    "AR_small": ("recall", None, "small", 100),
    "AR_medium": ("recall", None, "medium", 100),
    "AR_large": ("recall", None, "large", 100),
}
"""Name -> what is averaged, at which IoU (None: the mean over 0.5, 0.55, ..., 0.95), for objects of which area, and how
many detections of a class count in an image (https://cocodataset.org/#detection-eval)."""
VOC_METRICS = {"VOC2007_AP": "eleven_points", "VOC2012_AP": "area"}
"""Name -> method of VocCurve: the average precision of VOC 2007 to 2009, and that of the years after it."""
VOC_IOU = 0.5
"""Smallest IoU of a detection with its object to be a true positive (Everingham et al. 2010, sec. 4.2)."""


@dataclass(frozen=True)
class DetectedObjects:
    """The M objects that a detector found in N images, as arrays, ordered by image and descending score.

    The constructor raises ValueError for other shapes.
    """

    image: np.ndarray
    """(M,) int64: index of the image, ascending."""
    boxes: np.ndarray
    """(M, 4) float32: x1, y1, x2, y2 in pixels of the upright image."""
    labels: np.ndarray
    """(M,) int32: index of the class in the class names of the Dataset, which have no background."""
    scores: np.ndarray
    """(M,) float32."""
    masks: np.ndarray | None = None
    """(M,) object: RLE of `encode_mask`; None for a detector without masks."""

    def __post_init__(self):
        count = len(self.image)
        for name, shape in {"boxes": (count, 4), "labels": (count,), "scores": (count,), "masks": (count,)}.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise value_error(name, array.shape, f"an array of shape {shape}, as there are {count} detections")

    def __len__(self):
        return len(self.image)


@dataclass(frozen=True, eq=False)
class CocoCurves:
    """Precision and recall of K classes, from which COCO's numbers are averaged; -1 where nothing is defined."""

    precision: np.ndarray
    """(10, 101, K, 4, 3): at each IoU and recall, by class, area and number of detections."""
    recall: np.ndarray
    """(10, K, 4, 3): at each IoU, by class, area and number of detections."""
    params: Any
    """faster-coco-eval's `Params`: the IoUs, areas and numbers."""

    def metrics(self, classes: slice | int = slice(None)) -> dict[str, float | None]:
        """The twelve COCO_METRICS of all classes, or of one."""
        return {name: self._mean(classes, *row) for name, row in COCO_METRICS.items()}

    def _mean(self, classes, kind, iou, area, detections):
        values = getattr(self, kind)
        values = values if iou is None else values[np.isclose(self.params.iouThrs, iou)]
        values = values[..., self.params.areaRngLbl.index(area), self.params.maxDets.index(detections)]
        values = values[..., classes]
        defined = values[values > -1]
        return float(defined.mean()) if defined.size else None


def coco_curves(objects: Objects, found: DetectedObjects, num_classes: int, kind: str = "boxes") -> CocoCurves:
    """COCO's precision and recall of detections, as pycocotools computes them.

    >>> import numpy as np
    >>> from keras_resnet.data.objects import Objects
    >>> from keras_resnet.detection_metrics import DetectedObjects, coco_curves
    >>> boxes, no = np.array([[10, 10, 60, 60], [70, 10, 90, 30]], "float32"), np.zeros(2, bool)
    >>> images, labels, areas = np.array([0, 0]), np.array([0, 0], "int32"), np.array([2500.0, 400.0])
    >>> objects = Objects(images, boxes, labels, no, no, areas, None, np.array([[100, 100]]), np.array([7]))
    >>> found = DetectedObjects(images[:1], boxes[:1], labels[:1], np.array([0.9], "float32"))
    >>> metrics = coco_curves(objects, found, num_classes=1).metrics()
    >>> round(metrics["AP"], 3), metrics["AR100"], metrics["AP_small"], metrics["AP_large"]
    (0.505, 0.5, 0.0, None)

    As in COCO, crowds are ignored: they are no false negatives, and their detections no false positives. `difficult` is
    not used: COCO has no such objects.

    Args:
        objects: the true objects.
        found: what was detected in the same images.
        num_classes: number of classes, K.
        kind: "boxes" or "masks", of which the overlap is computed.

    Raises:
        ImportError: without faster-coco-eval.
    """
    check_coco_eval()
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(_coco_dataset(objects, num_classes))
    kinds = {"boxes": "bbox", "masks": "segm"}
    evaluation = COCOeval_faster(truth, truth.loadRes(_coco_results(found, kind)), kinds[kind])
    evaluation.evaluate()
    evaluation.accumulate()
    results = evaluation.eval
    return CocoCurves(results["precision"], results["recall"], evaluation.params)


def check_coco_eval() -> None:
    """Raises ImportError, with the command that installs it, if faster-coco-eval is missing."""
    check_installed("COCO's average precision", ["faster_coco_eval"], DETECTION)


def _coco_dataset(objects, num_classes):
    """Objects as the content of a COCO file; ids are from 1, because 0 means "no object" in pycocotools."""
    columns = (objects.image, corner_and_sides(objects.boxes), objects.labels, objects.crowd, objects.areas)
    annotations = [
        {
            "id": number,
            "image_id": image + 1,
            "bbox": box,
            "category_id": label + 1,
            "iscrowd": int(crowd),
            "area": area,
        }
        for number, (image, box, label, crowd, area) in enumerate(
            zip(*map(np.ndarray.tolist, columns), strict=True), start=1
        )
    ]
    if objects.masks is not None:
        for annotation, mask in zip(annotations, objects.masks, strict=True):
            annotation["segmentation"] = mask
    sizes = enumerate(objects.sizes.tolist(), start=1)
    images = [{"id": number, "height": height, "width": width} for number, (height, width) in sizes]
    categories = [{"id": number, "name": str(number)} for number in range(1, num_classes + 1)]
    return {"images": images, "categories": categories, "annotations": annotations}


def _coco_results(found, kind):
    """Detections as COCO's results. Masks come without boxes, so that an object's size is the area of its mask."""
    name, values = ("bbox", corner_and_sides(found.boxes)) if kind == "boxes" else ("segmentation", found.masks)
    columns = (found.image, found.labels, found.scores, values)
    return [
        {"image_id": image + 1, "category_id": label + 1, "score": score, name: value}
        for image, label, score, value in zip(*map(np.ndarray.tolist, columns), strict=True)
    ]


@dataclass(frozen=True, eq=False)
class VocCurve:
    """Precision and recall of a class when its detections are accepted one after another, the best scores first."""

    recall: np.ndarray
    """(D,), ascending."""
    precision: np.ndarray
    """(D,)."""

    def eleven_points(self) -> float:
        """Mean of the best precisions at a recall of at least 0, 0.1, ..., 1 (Everingham et al. 2010, eq. 1 and 2)."""
        best = [self.precision[self.recall >= recall].max(initial=0) for recall in np.arange(11) / 10]
        return float(np.mean(best))

    @property
    def best_precision(self) -> np.ndarray:
        """(D,): the best precision at this recall or a higher one, which never rises (VOC 2010's development kit)."""
        return np.maximum.accumulate(self.precision[::-1])[::-1]

    def area(self) -> float:
        """Area below the curve of `best_precision`."""
        return float((np.diff(self.recall, prepend=0) * self.best_precision).sum())


def voc_curves(objects: Objects, found: DetectedObjects, num_classes: int) -> list[VocCurve | None]:
    """The VocCurve of each class, at an IoU of 0.5; None for a class without objects.

    >>> import numpy as np
    >>> from keras_resnet.data.objects import Objects
    >>> from keras_resnet.detection_metrics import DetectedObjects, voc_curves
    >>> boxes, no = np.array([[10, 10, 60, 60], [70, 10, 90, 30]], "float32"), np.zeros(2, bool)
    >>> images, labels, areas = np.array([0, 0]), np.array([0, 0], "int32"), np.array([2500.0, 400.0])
    >>> objects = Objects(images, boxes, labels, no, no, areas, None, np.array([[100, 100]]), np.array([7]))
    >>> found = DetectedObjects(images[:1], boxes[:1], labels[:1], np.array([0.9], "float32"))
    >>> curve, = voc_curves(objects, found, num_classes=1)
    >>> curve.area(), round(curve.eleven_points(), 3)
    (0.5, 0.545)

    As PASCAL VOC's development kit (VOCevaldet.m): the best detection of an object is a true positive, further ones
    are false positives. Difficult objects and crowds are ignored, and so are their detections. The kit adds 1 to the
    sides of boxes, because its x2 and y2 are the last pixels of an object; here they are the edges of these pixels, so
    that x2 - x1 is the same length.

    Args:
        objects: the true objects.
        found: what was detected in the same images.
        num_classes: number of classes, K.
    """
    return [_voc_curve(objects, found, label) for label in range(num_classes)]


def _voc_curve(objects, found, label):
    true = np.flatnonzero(objects.labels == label)
    ignored = (objects.difficult | objects.crowd)[true]
    count = np.count_nonzero(~ignored)
    if not count:
        return None
    detected = np.flatnonzero(found.labels == label)
    detected = detected[np.argsort(-found.scores[detected], kind="stable")]
    first, last = (np.searchsorted(objects.image[true], found.image[detected], side) for side in ("left", "right"))
    taken, right, counts = np.zeros(len(true), bool), [], []
    for box, begin, end in zip(found.boxes[detected], first, last, strict=True):
        shares = overlaps(box, objects.boxes[true[begin:end]])
        match = begin + shares.argmax() if end > begin and shares.max() >= VOC_IOU else None
        counts.append(match is None or not ignored[match])
        right.append(match is not None and not taken[match])
        if match is not None:
            taken[match] = True
    right = np.cumsum(np.array(right, bool)[np.array(counts, bool)])
    return VocCurve(right / count, right / np.arange(1, len(right) + 1))


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (4,) with others (N, 4): (N,) float64."""
    box, others = box.astype("float64"), others.astype("float64")
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    return shared / np.maximum(union, np.finfo(float).tiny)


def voc_metrics(curves: Sequence[VocCurve | None]) -> dict[str, float | None]:
    """VOC_METRICS of all classes together: the means of the classes that have objects (mAP)."""
    return {
        name: mean_of_defined([None if curve is None else getattr(curve, method)() for curve in curves])
        for name, method in VOC_METRICS.items()
    }
