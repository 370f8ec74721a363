"""Comparison of a segmenter's classes and probabilities in Keras and exported."""

import math
import warnings
from dataclasses import dataclass
from itertools import islice
from typing import Any

import keras
import numpy as np

from keras_resnet.data.detection_preprocessing import resize_bilinearly
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.deployment.images import MAX_CHECK_IMAGES, calibration_images, image_batches
from keras_resnet.deployment.output_comparison import finite_outputs
from keras_resnet.deployment.serving import Metadata
from keras_resnet.errors import error_summary
from keras_resnet.metrics import mean_of_defined
from keras_resnet.models.preprocessing import class_names, known_preprocessing
from keras_resnet.prediction import softmax
from keras_resnet.segmentation_evaluation import dataset_indices
from keras_resnet.segmentation_metrics import class_iou, confusion_matrix

TOLERANCES = {"float32": 0.001, "float16": 0.01, "bfloat16": 0.05, "int8": 0.1}
"""Precision of an export -> largest share of pixels with another class: rounding decides between classes that are
nearly as probable, at the edges of objects."""


@dataclass(frozen=True)
class SegmentationComparisonResult:
    """How far an exported segmenter's classes and probabilities are from those of its Keras model."""

    num_images: int
    disagreement: float
    """Share of the pixels of all images for which another class is the most probable one."""
    pixel_agreement: float
    """Share of the pixels with the same class."""
    max_error: float
    """Largest difference between probabilities."""
    mean_iou: dict[str, float | None] | None = None
    """{"keras", "exported"}: mIoU, where the true masks of the images are known."""


def segmenter_batches(source, preprocessing: SegmentationPreprocessing, batch_size: int = 1):
    """Yields (pixels (1, H, W, 3) uint8 as the export takes them, index of the image), one by one."""
    for pixels, index in image_batches(source):
        yield preprocessing.pixels(pixels[0])[None], index


def segmenter_calibration(images: Any, preprocessing: SegmentationPreprocessing, count: int) -> list[np.ndarray]:
    """Images as for `calibration_images`, as pixels (H, W, 3) uint8 that the export takes."""
    return [preprocessing.pixels(image) for image in calibration_images(images, preprocessing, count)]


def segmenter_inputs(model: keras.Model, preprocessing: SegmentationPreprocessing, pixels: np.ndarray) -> np.ndarray:
    """(B, H, W, 3) uint8, as `segmenter_batches` returns them -> inputs of a Keras segmenter."""
    own: Any = known_preprocessing(model)
    return own(list(pixels))


def segmenter_outputs(model: keras.Model, metadata: Metadata, preprocessing: Any, pixels: np.ndarray) -> dict:
    """A Keras segmenter's outputs for (B, H, W, 3) uint8, as the export with this Metadata returns them."""
    logits = finite_outputs(model, segmenter_inputs(model, preprocessing, pixels))
    if metadata.raw:
        return {"logits": logits}
    size = pixels.shape[1:3]
    maps = softmax(logits)
    if maps.shape[1:3] != size:
        maps = np.stack([resize_bilinearly(image, size) for image in maps])
    return {"mask": maps.argmax(axis=-1).astype("uint8"), "probabilities": maps}


class SegmentationComparison:
    """Accumulates a SegmentationComparisonResult image by image, as a keras.metrics.Metric does.

    Args:
        model: the Keras segmenter.
        metadata: Metadata of the export.
        source: the ImageSource of the images, for the mIoU; None: without it.
    """

    def __init__(self, model, metadata, source=None):
        self.num_images, self.num_pixels, self.max_error = 0, 0, 0.0
        self.differing: float = 0
        self.classes: set[int] = set()
        self.mean_iou = source and MeanIou.of_images(source, class_names(model))

    @property
    def proves_little(self) -> str | None:
        """Why the comparison may not notice differences, if so."""
        return "class is the same for every pixel" if len(self.classes) == 1 else None

    def update_state(self, expected, received, index=0):
        """Adds an image: outputs of the Keras model and of the export, and its index in the ImageSource."""
        maps = [_probabilities(outputs) for outputs in (expected, received)]
        masks = [_mask(outputs) for outputs in (expected, received)]
        self.num_images += 1
        self.num_pixels += masks[0].size
        is_finite = np.isfinite(maps[1]).all()  # of NaN, every class is as probable
        self.differing += int((masks[0] != masks[1]).sum()) if is_finite else math.nan
        self.max_error = float(np.maximum(self.max_error, np.abs(maps[0] - maps[1]).max()))  # NaN stays NaN
        self.classes |= set(np.unique(masks[0]).tolist())
        if self.mean_iou:
            self.mean_iou.update_state(*masks, index)

    def result(self) -> SegmentationComparisonResult:
        share = self.differing / self.num_pixels if self.num_pixels else math.nan
        mean_iou = self.mean_iou.result() if self.mean_iou else None
        return SegmentationComparisonResult(self.num_images, share, 1 - share, self.max_error, mean_iou)


def _probabilities(outputs):
    """(1, H, W, K) of an image."""
    return softmax(outputs["logits"]) if "logits" in outputs else outputs["probabilities"]


def _mask(outputs):
    """(H, W) uint8 of an image."""
    mask = outputs["logits"].argmax(axis=-1) if "logits" in outputs else outputs["mask"]
    return mask[0].astype("uint8")


class MeanIou:
    """Accumulates the mIoU of a Keras model and its export, image by image.

    Args:
        masks: the true SemanticMasks.
        num_classes: number of their classes.
        indices: what `dataset_indices` returns.
    """

    def __init__(self, masks, num_classes, indices):
        self.masks, self.num_classes, self.indices = masks, num_classes, indices
        self.confusion = {name: np.zeros((num_classes, num_classes + 1), "int64") for name in ("keras", "exported")}

    @classmethod
    def of_images(cls, source, names):
        """For an ImageSource and the names of a segmenter's classes; None without masks, or, with a warning, without
        their classes."""
        masks = getattr(source.split, "masks", None)
        if masks is None:
            return None
        known = tuple(source.class_names) or tuple(names)
        try:
            return cls(masks, len(known), dataset_indices(tuple(names), known))
        except ValueError as error:
            warnings.warn(f"The report has no mIoU: {error_summary(error)}", stacklevel=2)
            return None

    def update_state(self, expected, received, index):
        """Adds an image: masks (H, W) of the Keras model and of the export, and its index."""
        true = _stretched(self.masks.read(index), expected.shape)
        for name, mask in (("keras", expected), ("exported", received)):
            self.confusion[name] += confusion_matrix(true, self.indices[mask], self.num_classes)

    def result(self) -> dict[str, float | None]:
        return {name: mean_of_defined(class_iou(matrix)) for name, matrix in self.confusion.items()}


def _stretched(mask, size):
    """A mask (H, W) of another size, as an export for images of one size needs it: each pixel is the nearest one."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(mask.shape, size, strict=True)
    )
    return mask[np.ix_(rows, columns)]


def check_segmentations(model, exported, float32_export, preprocessing, source) -> dict[str, dict]:
    """Compares the float32 version of a reduced-precision export on a few images: rounding may hide small mistakes."""
    if not float32_export:
        return {}
    metadata = float32_export.metadata
    comparison = SegmentationComparison(model, metadata)
    for pixels, _ in islice(segmenter_batches(source, preprocessing), MAX_CHECK_IMAGES):
        expected = segmenter_outputs(model, metadata, preprocessing, pixels)
        comparison.update_state(expected, float32_export(metadata.to_inputs(preprocessing, pixels)))
    return {"float32": {"disagreement": comparison.result().disagreement, "tolerance": TOLERANCES["float32"]}}


def segmentation_rows(result: dict) -> dict[str, str]:
    """{title: value}: the fields of a SegmentationComparisonResult for the report, without those that have no value."""
    rows = {
        "same class": f"{result['pixel_agreement']:.3%} of the pixels",
        "largest difference of probabilities": f"{result['max_error']:.3g}",
    }
    known = {name: value for name, value in (result["mean_iou"] or {}).items() if value is not None}
    return rows | {f"mIoU, {name}": f"{value:.2%}" for name, value in known.items()}
