"""Copies of detectors with other thresholds and counts, or with a second pass over the boxes that they found."""

import warnings
from dataclasses import replace
from typing import Any

import keras

from keras_resnet.architecture.detection_layers import RefinedDetections, RegressedBoxes
from keras_resnet.architecture.detector import (
    OUTPUTS,
    PREDICTORS,
    Detector,
    build_detector,
    default_settings,
    layer_arguments,
)
from keras_resnet.architecture.detector_spec import DetectionSettings
from keras_resnet.architecture.metadata import copy_metadata, info_without_head, model_info
from keras_resnet.equivalents import DETECTOR_ARGUMENTS
from keras_resnet.errors import check_keywords, value_error
from keras_resnet.models.cloning import clone, rebuild
from keras_resnet.precision import precision_of, precision_scope

REFINED_NMS_THRESHOLD = 0.3
"""Largest overlap (IoU) of two detections of the same class after refinement (He et al. 2015, appendix B)."""
VOTING_THRESHOLD = 0.5
"""Smallest overlap (IoU) of the boxes that vote (Gidaris & Komodakis 2015, arXiv:1505.01749, sec. 5)."""


def with_settings(model: Detector, settings: DetectionSettings | None = None, **changes: Any) -> Detector:
    """A copy of a detector with other thresholds and counts, and the same weights.

    >>> import keras_resnet
    >>> model = keras_resnet.create("retinanet_resnet18_fpn", classes=3)
    >>> strict = keras_resnet.with_settings(model, score_threshold=0.3, detections=10)
    >>> strict.settings.score_threshold, strict.output["boxes"].shape
    (0.3, (None, 10, 4))

    Args:
        model: a detector.
        settings: thresholds and counts; None for those of the model.
        **changes: fields of DetectionSettings to change.

    Returns:
        A Detector with weights of its own; the model itself, if it has these settings already.

    Raises:
        ValueError: for a model that is not a detector as `build` returns it, and values that are invalid.
        TypeError: for a change that is not a field of DetectionSettings.
    """
    _check_detector(model)
    check_keywords("with_settings", changes, DetectionSettings, equivalents=DETECTOR_ARGUMENTS)
    settings = replace(settings or model.settings or default_settings(model.spec), **changes)
    if settings == model.settings:
        return model
    arguments = layer_arguments(model.spec, settings)
    copy = rebuild(model, lambda layer: arguments.get(layer.name, {}))
    copy.set_weights(model.get_weights())
    copy.settings = settings
    return copy


def with_new_predictors(model: Detector, classes: int) -> Detector:
    """A copy of a detector for other classes, whose predictors of classes, boxes and masks are untrained.

    >>> import keras_resnet
    >>> from keras_resnet.models.detector_transforms import with_new_predictors
    >>> model = keras_resnet.create("fasterrcnn_resnet18_fpn", classes=91)
    >>> with_new_predictors(model, 4).get_layer("box_scores").units
    4

    Args:
        model: a detector.
        classes: number of classes with the background.

    Raises:
        ValueError: for a model that is not a detector as `build` returns it.
    """
    _check_detector(model)
    with precision_scope(precision_of(model.dtype_policy)):
        copy = build_detector(replace(model.spec, classes=classes), model.settings, model.name)
    for layer in copy.layers:
        if layer.name not in PREDICTORS:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    copy.info = info_without_head(model_info(model))
    warnings.warn(f"The predictors of {model.name} for {classes} classes are new and untrained.", stacklevel=2)
    return copy


def _check_detector(model):
    """Raises ValueError for a model without the layers of a detector."""
    if not isinstance(model, Detector) or not any(layer.name == "detections" for layer in model.layers):
        raise value_error("model", getattr(model, "name", model), "a detector as `create` or `build` returns it")


def with_refinement(model: Detector) -> Detector:
    """A copy of a detector that refines its boxes, as the paper's evaluation does (He et al. 2015, appendix B).

    The second stage is applied again to the boxes that it regressed. Detections are chosen among the boxes of both
    passes by non-maximum suppression with a threshold of 0.3, and are then means of the boxes around them, weighted by
    score. Masks are those of the resulting boxes.

    >>> import keras_resnet, numpy as np
    >>> from keras_resnet.models.detector_transforms import with_refinement
    >>> model = with_refinement(keras_resnet.create("fasterrcnn_resnet18_fpn", classes=3, proposals=20))
    >>> model.predict(np.zeros((1, 64, 96, 3)), verbose=0)["boxes"].shape
    (1, 100, 4)

    Raises:
        ValueError: for a model that is not a detector, a detector without a second stage, such as RetinaNet, and one
            that is refined already.
    """
    _check_detector(model)
    if model.spec.box_head == "dense":
        raise value_error("model", model.name, "a detector of regions to be refined, such as Faster R-CNN")
    if isinstance(model.get_layer("detections"), RefinedDetections):
        raise value_error("model", model.name, "a detector that is not refined already")
    copy = clone(model)
    proposals, count = copy.get_layer("proposals").output
    _, sizes = copy.get_layer("padded_images").output
    *maps, regions = copy.get_layer("box_regions").input
    predictions = [copy.get_layer(name).output for name in ("box_scores", "box_deltas")]

    def inputs(boxes, scores, deltas):
        return {"proposals": boxes, "count": count, "sizes": sizes, "scores": scores, "deltas": deltas}

    first = inputs(proposals, *predictions)
    boxes = RegressedBoxes(name="regressed_boxes")(first)
    others = copy.get_layer("box_whole_image")(boxes, sizes) if model.spec.global_context else boxes
    second = inputs(boxes, *_recomputed(predictions, [*maps, regions], [*maps, others]))
    settings = replace(model.settings or default_settings(model.spec), nms_threshold=REFINED_NMS_THRESHOLD)
    arguments = layer_arguments(model.spec, settings)["detections"]
    found = RefinedDetections(**arguments, voting_threshold=VOTING_THRESHOLD, name="detections")([first, second])
    outputs = dict(zip(OUTPUTS, found, strict=True))
    if model.spec.mask_head:
        *maps, boxes, count = copy.get_layer("mask_regions").input
        labels = copy.get_layer("detections").output[2]
        of_refined = [*maps, found[0], found[2], found[3]]
        outputs["masks"] = _recomputed(copy.output["masks"], [*maps, boxes, labels, count], of_refined)
    refined = copy_metadata(Detector(copy.input, outputs, name=model.name), model)
    refined.settings = settings
    return refined


def _recomputed(outputs, inputs, values):
    """What the layers between some tensors of a model, `inputs` and `outputs`, return for others, `values`."""
    return keras.Model(inputs, outputs)._run_through_graph(values)
