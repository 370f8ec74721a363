"""Comparison of a detector's detections in Keras and exported."""

import math
import warnings
from dataclasses import dataclass
from itertools import islice

import numpy as np

from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.masks import MASK_THRESHOLD
from keras_resnet.deployment.images import MAX_CHECK_IMAGES, image_batches
from keras_resnet.deployment.output_comparison import finite_outputs
from keras_resnet.detection import Detection
from keras_resnet.detection_evaluation import concatenate_detections, dataset_labels, detected_objects
from keras_resnet.detection_metrics import check_coco_eval, coco_curves
from keras_resnet.errors import error_summary
from keras_resnet.models.preprocessing import class_names


@dataclass(frozen=True)
class DetectionTolerance:
    """How much two detections that count as the same may differ, and how many may have no counterpart."""

    box: float
    """Largest difference of a coordinate, as a share of the longer side of the box, or of MIN_BOX pixels."""
    score: float
    """Largest difference of the scores."""
    mask: float
    """Largest share of the pixels of the 28x28 masks that belong to one of the objects only."""
    unmatched: float
    """Largest share of detections without a counterpart: rounding decides which of two boxes suppresses the other."""


MIN_BOX = 32
"""Differences of boxes with a shorter longer side, in pixels, are divided by this one."""
TOLERANCES = {
    "float32": DetectionTolerance(box=1e-3, score=1e-3, mask=0.02, unmatched=0.01),
    "float16": DetectionTolerance(box=0.02, score=0.02, mask=0.05, unmatched=0.05),
    "bfloat16": DetectionTolerance(box=0.1, score=0.1, mask=0.1, unmatched=0.1),
    "int8": DetectionTolerance(box=0.15, score=0.2, mask=0.15, unmatched=0.15),
}
"""Precision of an export -> its tolerance."""


@dataclass(frozen=True)
class DetectionComparisonResult:
    """How far an exported detector's detections are from those of its Keras model.

    Counterparts have the same label, and boxes, scores and masks within the tolerance of the precision.
    """

    num_images: int
    num_detections: int
    """Number of the Keras model's detections."""
    unmatched: float
    """Share of all detections, in Keras and exported, that have no counterpart. Those within the tolerance of the
    smallest score that is returned do not count: the other network need not return them. NaN if the Keras model has no
    detections, so that nothing is compared."""
    max_box_error: float
    """Largest difference between coordinates of counterparts, in pixels of the image."""
    max_score_error: float
    """Largest difference between scores of counterparts."""
    mask_agreement: float | None = None
    """Share of the pixels of the counterparts' 28x28 masks that belong to both objects or to neither."""
    average_precision: dict[str, float | None] | None = None
    """{"keras", "exported"}: COCO's AP of the boxes, where the objects in the images are known."""


def detector_inputs(model, preprocessing: DetectionPreprocessing, pixels: np.ndarray) -> np.ndarray:
    """(1, H, W, 3) uint8 -> inputs of a Keras detector."""
    return preprocessing(pixels[0]).images


def detector_outputs(model, metadata, preprocessing, pixels) -> dict[str, np.ndarray]:
    """A Keras detector's outputs for (1, H, W, 3) uint8, with boxes in pixels of that image."""
    batch = preprocessing(pixels[0])
    outputs = finite_outputs(model, batch.images)
    return outputs | {"boxes": batch.to_original(outputs["boxes"])}


def detections_of_image(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs for one image without padding: {"boxes": (N, 4), "scores": (N,), "labels": (N,), ...}."""
    count = outputs["count"][0]
    return {name: array[0, :count] for name, array in outputs.items() if name != "count"}


class DetectionComparison:
    """Accumulates a DetectionComparisonResult image by image, as a keras.metrics.Metric does.

    Args:
        model: the Keras detector.
        metadata: Metadata of the export.
        source: the ImageSource of the images, for the average precision; None: without it.
    """

    def __init__(self, model, metadata, source=None):
        layer = model.get_layer("detections")
        self.score_threshold, self.detections = layer.score_threshold, layer.detections
        self.tolerance = TOLERANCES[metadata.precision]
        self.num_images, self.num_detections, self.total, self.unmatched = 0, 0, 0, 0
        self.box_errors, self.score_errors, self.mask_agreements = [0.0], [0.0], []
        self.average_precision = source and AveragePrecision.of_images(source, class_names(model))

    @property
    def proves_little(self) -> str | None:
        """Why the comparison may not notice differences, if so."""
        return None if self.num_detections else "detections are none in these images (`images` takes others)"

    def update_state(self, expected, received, index=0):
        """Adds an image: outputs of the Keras model and of the export, and its index in the ImageSource."""
        expected, received = detections_of_image(expected), detections_of_image(received)
        if self.average_precision:
            self.average_precision.update_state(expected, received, index)
        pairs = self._counterparts(expected, received)
        self.num_images += 1
        self.num_detections += len(expected["scores"])
        for found, indices in ((expected, pairs[:, 0]), (received, pairs[:, 1])):
            alone = np.delete(found["scores"], indices)
            self.unmatched += int((alone > self._smallest_score(found) + self.tolerance.score).sum())
            self.total += len(found["scores"])
        first, second = (
            {name: found[name][pairs[:, i]] for name in found} for i, found in enumerate((expected, received))
        )
        self.box_errors += np.abs(first["boxes"] - second["boxes"]).ravel().tolist()
        self.score_errors += np.abs(first["scores"] - second["scores"]).tolist()
        if "masks" in first:
            self.mask_agreements += (1 - np.diag(_mask_differences(first["masks"], second["masks"]))).tolist()

    def _smallest_score(self, found):
        is_full = len(found["scores"]) == self.detections
        return found["scores"].min() if is_full else self.score_threshold

    def _counterparts(self, expected, received):
        """Indices (K, 2) of detections that are the same, those of the best scores first."""
        sides = (expected["boxes"][:, 2:] - expected["boxes"][:, :2]).max(axis=1, initial=MIN_BOX)
        distances = np.abs(expected["boxes"][:, None] - received["boxes"][None]).max(axis=2) / sides[:, None]
        scores = np.abs(expected["scores"][:, None] - received["scores"][None])
        same = (expected["labels"][:, None] == received["labels"][None]) & (scores <= self.tolerance.score)
        if "masks" in expected:
            same &= _mask_differences(expected["masks"], received["masks"]) <= self.tolerance.mask
        distances = np.where(same & (distances <= self.tolerance.box), distances, np.inf)
        pairs = []
        for index, row in enumerate(distances):
            if row.size and np.isfinite(row.min()):
                pairs.append((index, nearest := row.argmin()))
                distances[:, nearest] = np.inf
        return np.array(pairs, int).reshape(-1, 2)

    def result(self) -> DetectionComparisonResult:
        return DetectionComparisonResult(
            self.num_images,
            self.num_detections,
            self.unmatched / self.total if self.num_detections else math.nan,
            max(self.box_errors),
            max(self.score_errors),
            float(np.mean(self.mask_agreements)) if self.mask_agreements else None,
            self.average_precision.result() if self.average_precision else None,
        )


class AveragePrecision:
    """Accumulates COCO's AP of the boxes of a Keras model and its export, image by image.

    Args:
        objects: the true Objects.
        num_classes: number of their classes.
        labels: what `dataset_labels` returns.
    """

    def __init__(self, objects, num_classes, labels):
        self.objects, self.num_classes, self.labels = objects, num_classes, labels
        self.indices, self.found = [], {"keras": [], "exported": []}

    @classmethod
    def of_images(cls, source, names):
        """For an ImageSource and the names of a detector's labels; None without objects, or, with a warning, without
        their classes or faster-coco-eval."""
        objects = getattr(source.split, "objects", None)
        if objects is None:
            return None
        try:
            check_coco_eval()
            return cls(objects, len(source.class_names), dataset_labels(names, source.class_names))
        except (ImportError, ValueError) as error:
            warnings.warn(f"The report has no average precision: {error_summary(error)}", stacklevel=2)
            return None

    def update_state(self, expected, received, index):
        """Adds an image: what `detections_of_image` returns for the Keras model and the export, and its index."""
        self.indices.append(index)
        for name, outputs in (("keras", expected), ("exported", received)):
            detection = Detection(None, **{field: outputs[field] for field in ("boxes", "scores", "labels")})
            self.found[name].append(detected_objects(detection, self.labels))

    def result(self) -> dict[str, float | None]:
        objects = self.objects.select(self.indices)
        return {
            name: coco_curves(objects, concatenate_detections(images), self.num_classes).metrics()["AP"]
            for name, images in self.found.items()
        }


def _mask_differences(masks, others):
    """Share of the pixels of all pairs of masks (N, h, w) and (M, h, w) that belong to one object only: (N, M)."""
    first, second = (
        (probabilities > MASK_THRESHOLD).reshape(-1, math.prod(masks.shape[1:])).astype("float32")
        for probabilities in (masks, others)
    )
    return (first @ (1 - second).T + (1 - first) @ second.T) / first.shape[1]


def check_detections(model, exported, float32_export, preprocessing, source) -> dict[str, dict]:
    """Compares the float32 version of a reduced-precision export on a few images: rounding may hide small mistakes."""
    if not float32_export:
        return {}
    comparison = DetectionComparison(model, float32_export.metadata)
    for pixels, _ in islice(image_batches(source, preprocessing), MAX_CHECK_IMAGES):
        comparison.update_state(detector_outputs(model, None, preprocessing, pixels), float32_export(pixels))
    return {"float32": {"unmatched": comparison.result().unmatched, "tolerance": TOLERANCES["float32"].unmatched}}


def detection_rows(result) -> dict[str, str]:
    """{title: value}: the fields of a DetectionComparisonResult for the report, without those that have no value."""
    rows = {
        "detections in Keras": str(result["num_detections"]),
        "largest difference of boxes": f"{result['max_box_error']:.3g} pixels",
        "largest difference of scores": f"{result['max_score_error']:.3g}",
    }
    shares = {"same pixels of masks": result["mask_agreement"]}
    shares |= {f"AP of boxes, {name}": value for name, value in (result["average_precision"] or {}).items()}
    return rows | {title: f"{share:.2%}" for title, share in shares.items() if share is not None}
