"""TASKS: what exporting a network depends on besides the format, one row for the networks of each task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import keras

from keras_resnet.deployment.detection_comparison import (
    TOLERANCES,
    DetectionComparison,
    check_detections,
    detection_rows,
    detector_inputs,
    detector_outputs,
)
from keras_resnet.deployment.detector_serving import (
    detector_metadata,
    detector_preprocessing,
    detector_serving_model,
    head_layers,
    prepared_detector,
)
from keras_resnet.deployment.images import (
    calibration_images,
    calibration_pixels,
    image_batches,
    pixel_batches,
    sample_images,
    sample_photos,
)
from keras_resnet.deployment.localization_comparison import (
    LocalizationComparison,
    localization_rows,
    localizer_metadata,
)
from keras_resnet.deployment.output_comparison import (
    OutputComparison,
    check_outputs,
    keras_outputs,
    model_inputs,
    output_rows,
)
from keras_resnet.deployment.segmentation_comparison import TOLERANCES as DISAGREEMENTS
from keras_resnet.deployment.segmentation_comparison import (
    SegmentationComparison,
    check_segmentations,
    segmentation_rows,
    segmenter_batches,
    segmenter_calibration,
    segmenter_inputs,
    segmenter_outputs,
)
from keras_resnet.deployment.segmenter_serving import (
    predictor_layers,
    prepared_segmenter,
    segmenter_metadata,
    segmenter_preprocessing,
    segmenter_serving_model,
)
from keras_resnet.deployment.serving import export_metadata, image_preprocessing, prepared_network, serving_model
from keras_resnet.models.nested import inherited_spec
from keras_resnet.precision import PRECISIONS
from keras_resnet.variants import network_task


@dataclass(frozen=True)
class Task:
    """How networks of one task are exported, and compared with their exports."""

    prepare: Callable
    """(model, size) -> the model as one graph of layers, for images of this size."""
    preprocessing: Callable
    """(model, raw) -> the preprocessing of its images."""
    metadata: Callable
    """(model, format, precision, raw) -> Metadata."""
    serving_model: Callable
    """(model, precision, raw) -> the model that is written."""
    calibration: Callable
    """(images, preprocessing, largest number) -> the pixels of each, uint8."""
    sample_images: Callable
    """() -> images for the comparison, if the caller has none."""
    batches: Callable
    """(ImageSource, preprocessing, batch size) -> iterator of (pixels (B, H, W, C) uint8, labels)."""
    model_inputs: Callable
    """(model, preprocessing, pixels) -> inputs of the Keras model."""
    keras_outputs: Callable
    """(model, Metadata, preprocessing, pixels) -> {name: array}: what the export should return."""
    comparison: Callable
    """(model, Metadata, ImageSource) -> an accumulator with `update_state` and `result`."""
    further_checks: Callable
    """(model, exported, export in float32 or None, preprocessing, ImageSource) -> {name: {measure, "tolerance"}}."""
    measure: str
    """Field of the comparison's result that must not exceed the tolerance."""
    measure_title: str
    tolerance: Callable
    """(precision) -> the largest accepted value of the measure."""
    rows: Callable
    """(report) -> {title: value}, lines of the report about the result."""
    batch_size: int | None = None
    """Number of images in a batch, unless another one is given; None: any number."""
    needless: Mapping[str, str] = field(default_factory=dict)
    """Argument of `export` that such networks do not take -> why."""
    float_layers: Callable = lambda model: ()
    """(model) -> names of the layers that are not quantised to int8."""
    speed_batch_sizes: tuple[int, ...] = (1, 8)
    """Numbers of images in a batch with which the speed is measured, unless the export has a fixed one."""
    has_masks: bool = False
    """Whether the masks of images, if there are any, are read for the comparison."""


_CLASSIFICATION = Task(
    prepare=prepared_network,
    preprocessing=image_preprocessing,
    metadata=export_metadata,
    serving_model=serving_model,
    calibration=calibration_pixels,
    sample_images=sample_images,
    batches=pixel_batches,
    model_inputs=model_inputs,
    keras_outputs=keras_outputs,
    comparison=OutputComparison,
    further_checks=check_outputs,
    measure="nrmse",
    measure_title="Root mean square of the differences, as a fraction of the standard deviation of Keras's outputs",
    tolerance=lambda precision: PRECISIONS[precision].tolerance,
    rows=output_rows,
)
TASKS = {
    "classification": _CLASSIFICATION,
    "localization": replace(
        _CLASSIFICATION, metadata=localizer_metadata, comparison=LocalizationComparison, rows=localization_rows
    ),
    "detection": Task(
        prepare=prepared_detector,
        preprocessing=detector_preprocessing,
        metadata=detector_metadata,
        serving_model=detector_serving_model,
        calibration=calibration_images,
        sample_images=sample_photos,
        batches=image_batches,
        model_inputs=detector_inputs,
        keras_outputs=detector_outputs,
        comparison=DetectionComparison,
        further_checks=check_detections,
        measure="unmatched",
        measure_title="Fraction of the detections of either that the other does not have",
        tolerance=lambda precision: TOLERANCES[precision].unmatched,
        rows=detection_rows,
        batch_size=1,
        needless={
            "raw": "A detector's preprocessing is part of its export.",
            "size": "Images of a detector have any size; `create` takes `min_size` and `max_size`.",
            "batch_size": "A detector's export takes one image.",
        },
        float_layers=head_layers,
    ),
    "segmentation": Task(
        prepare=prepared_segmenter,
        preprocessing=segmenter_preprocessing,
        metadata=segmenter_metadata,
        serving_model=segmenter_serving_model,
        calibration=segmenter_calibration,
        sample_images=sample_photos,
        batches=segmenter_batches,
        model_inputs=segmenter_inputs,
        keras_outputs=segmenter_outputs,
        comparison=SegmentationComparison,
        further_checks=check_segmentations,
        measure="disagreement",
        measure_title="Share of the pixels for which another class is the most probable one",
        tolerance=DISAGREEMENTS.__getitem__,
        rows=segmentation_rows,
        float_layers=predictor_layers,
        speed_batch_sizes=(1,),
        has_masks=True,
    ),
}
"""The rows; "classification" includes feature extractors."""


def task_of(model: keras.Model) -> str:
    """The name in TASKS of a model's row."""
    return network_task(inherited_spec(model)) or "classification"
