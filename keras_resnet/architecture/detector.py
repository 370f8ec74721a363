"""`build_detector`: a DetectorSpec as a Keras model."""

from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_resnet.architecture.blocks import stage
from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.detection_layers import (
    DenseDetections,
    Detections,
    GlobalContext,
    PaddedImages,
    PredictedMasks,
    Proposals,
    RegionFeatures,
    WithWholeImage,
)
from keras_resnet.architecture.detector_spec import DetectionSettings, DetectorSpec
from keras_resnet.architecture.heads import (
    NECKS,
    box_head_rows,
    box_predictor_rows,
    dense_rows,
    head_layer,
    mask_rows,
    rpn_rows,
)
from keras_resnet.architecture.layers import chain, restore_initializers
from keras_resnet.architecture.network import (
    ResNet,
    allow_depth,
    build,
    check_parameters,
    feature_maps,
    without_initialization,
)
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.errors import value_error
from keras_resnet.schema import checked

BOX_SIZE, MASK_SIZE = 7, 14
"""Cells of a region along each side for the box head and the mask head."""
MIN_SIDE = 64
"""Sides of images for which parameters are counted, in pixels: their number does not depend on it."""
HEAD_PREFIXES = ("fpn_", "rpn_", "box_", "mask_", "dense_")
"""Prefixes of the names of the neck's and heads' layers."""
PREDICTORS = ("box_scores", "box_deltas", "mask_logits", "dense_scores")
"""Names of the layers with weights for each class."""
OUTPUTS = ("boxes", "scores", "labels", "count")


@keras.saving.register_keras_serializable("keras_resnet")
class Detector(ResNet):
    """A Functional model of a DetectorSpec: padded images in, a dict of padded detections out.

    >>> import keras_resnet, numpy as np
    >>> model = keras_resnet.create("retinanet_resnet18_fpn", classes=3)
    >>> found = model.predict(np.zeros((1, 64, 96, 3)), verbose=0)
    >>> {name: values.shape for name, values in found.items()}
    {'boxes': (1, 300, 4), 'scores': (1, 300), 'labels': (1, 300), 'count': (1,)}

    Inputs are normalised images (B, H, W, 3). Padding at the right and the bottom is NaN; boxes are clipped where it
    begins. Outputs are `boxes` (B, N, 4), (x1, y1, x2, y2) in pixels of the inputs; `scores` (B, N); `labels` (B, N)
    int32, where 0 is the background; `count` (B,) int32, the number of detections; and with a mask head `masks`
    (B, N, 28, 28), probabilities of the pixels in each box. Detections are sorted by descending score, and padded with
    zeros.
    """

    spec: Any = None
    """The DetectorSpec it was built from."""
    spec_class: type = DetectorSpec
    settings: DetectionSettings | None = None
    """Thresholds and counts."""

    def __call__(self, images, *arguments, **keywords):
        """As `keras.Model.__call__`; raises ValueError for anything but images, before anything is computed."""
        check_images(images)
        return super().__call__(images, *arguments, **keywords)

    def _check_images(self, images):
        check_images(images)
        super()._check_images(images)

    def get_config(self):
        config = super().get_config()
        return config | {"resnet": config["resnet"] | {"settings": self.settings and self.settings.to_config()}}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        model = super().from_config(config, custom_objects=custom_objects)
        if model.spec is not None:
            model.settings = checked(config["resnet"].get("settings"), DetectionSettings, "settings")
            _check_layers(model)
        return model


@build.register
def build_detector(
    spec: DetectorSpec, settings: DetectionSettings | None = None, name: str = "detector", initialize: bool = True
) -> Detector:
    """Builds the detector that `spec` describes, with random weights; `build` calls it for a DetectorSpec.

    Args:
        spec: DetectorSpec.
        settings: thresholds and counts; None for those of `default_settings`.
        name: name of the model.
        initialize: False leaves all kernels zero, which is faster if weights are loaded next.

    Raises:
        ValueError: for a detector of more than MAX_PARAMETERS parameters.
    """
    check_parameters(spec, complexity(spec, input_shape=(MIN_SIDE, MIN_SIDE, 3)).parameters)
    allow_depth(spec.backbone)
    settings = checked(settings or default_settings(spec), DetectionSettings, "settings")
    built = spec if initialize else replace(spec, backbone=without_initialization(spec.backbone))
    inputs = layers.Input((None, None, 3), name="images")
    images, sizes = PaddedImages(name="padded_images")(inputs)
    backbone = backbone_spec(built)
    levels = feature_maps(backbone, backbone.levels, images)
    maps = NECKS[spec.neck]([levels[level - 1] for level in spec.levels], spec)
    detect = _dense_detections if spec.box_head == "dense" else _region_detections
    outputs = detect(built, settings, images, sizes, maps)
    model = Detector(inputs, outputs, name=name)
    restore_initializers(model, initialize)
    model.spec, model.settings, model.info = spec, settings, {}
    freeze_batch_norm(model)
    return model


def check_images(images: Any) -> None:
    """Raises ValueError for an array or tensor, of any backend, that cannot be a batch of images for a detector.

    >>> check_images(np.zeros((2, 64, 96, 3), "float32"))
    """
    shape = getattr(images, "shape", None)
    if shape is None or getattr(shape, "rank", 4) is None:
        return
    dtype = keras.backend.standardize_dtype(images.dtype)
    if len(shape) != 4 or shape[3] not in (None, 3) or 0 in tuple(shape) or "float" not in dtype:
        raise ValueError(
            "`images` should be floats of the shape (B, H, W, 3), not empty, such as "
            f"`preprocessing(model)(photos).images`. Received: shape {tuple(shape)}, {dtype}"
        )
    if isinstance(images, np.ndarray) and (empty := np.isnan(images[:, 0, 0]).any(axis=-1)).any():
        raise ValueError(
            "`images` should be NaN only in their padding, at the right and the bottom. "
            f"Received: NaN in the first pixel of the images {np.flatnonzero(empty)[:8].tolist()}"
        )


def default_settings(spec: DetectorSpec) -> DetectionSettings:
    """torchvision's thresholds and counts: 300 detections for RetinaNet, else 100; the paper's 300 proposals on C4."""
    if spec.box_head == "dense":
        return DetectionSettings(detections=300)
    return DetectionSettings(proposals=300, candidates=6000) if spec.neck == "c4" else DetectionSettings()


def freeze_batch_norm(model: Detector) -> None:
    """Freezes the batch norm of the backbone if `spec.frozen_batch_norm` is True."""
    if not model.spec.frozen_batch_norm:
        return
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization) and not layer.name.startswith(HEAD_PREFIXES):
            layer.trainable = False


def backbone_spec(spec: DetectorSpec) -> ResNetSpec:
    """The network whose maps the neck receives: dilated for "dc5", without its last stage for "c4"."""
    backbone = replace(spec.backbone, data_format="channels_last")
    if spec.neck == "dc5":
        return replace(backbone, output_stride=16)
    return replace(backbone, depths=backbone.depths[:3], widths=backbone.widths[:3]) if spec.neck == "c4" else backbone


def layer_arguments(spec: DetectorSpec, settings: DetectionSettings) -> dict[str, dict[str, Any]]:
    """{name of a layer: its arguments}, of the layers that depend on thresholds and counts."""
    names = ("score_threshold", "nms_threshold", "detections")
    detections = {name: getattr(settings, name) for name in names}
    anchors = {
        "anchor_sizes": spec.anchor_sizes,
        "anchor_ratios": spec.anchor_ratios,
        "candidates": settings.candidates,
    }
    if spec.box_head == "dense":
        return {"detections": detections | anchors | {"classes": spec.classes}}
    of_proposals = {"proposals": settings.proposals, "nms_threshold": settings.proposal_nms_threshold}
    return {"proposals": anchors | of_proposals, "detections": detections}


def _check_layers(model):
    """Raises ValueError for layers with other thresholds, counts or anchors than the model's settings and spec."""
    arguments = layer_arguments(model.spec, model.settings)
    for layer in model.layers:
        for argument, expected in arguments.get(layer.name, {}).items():
            if (value := getattr(layer, argument, None)) != expected:
                raise value_error(argument, value, f"{expected!r} in {layer.name}, as in the model's settings")


def _region_detections(spec, settings, images, sizes, maps):
    """Faster R-CNN and Mask R-CNN: proposals, then class, box and mask of each."""
    convolutions, objectness, deltas = rpn_rows(spec)
    rpn = chain(*map(head_layer, convolutions))
    objectness, deltas = head_layer(objectness), head_layer(deltas)
    hidden = [rpn(level) for level in maps]
    arguments = layer_arguments(spec, settings)
    proposals, count = Proposals(**arguments["proposals"], name="proposals")(
        {
            "images": images,
            "sizes": sizes,
            "objectness": [objectness(level) for level in hidden],
            "deltas": [deltas(level) for level in hidden],
        }
    )
    maps = maps[: len(spec.levels)]  # the coarser ones are only for proposals
    features = _box_features(spec, maps, proposals, sizes)
    scores, deltas = map(head_layer, box_predictor_rows(spec))
    boxes, best, labels, kept = Detections(**arguments["detections"], name="detections")(
        {"proposals": proposals, "count": count, "sizes": sizes, "scores": scores(features), "deltas": deltas(features)}
    )
    outputs = dict(zip(OUTPUTS, (boxes, best, labels, kept), strict=True))
    if spec.mask_head:
        regions = RegionFeatures(first_level=spec.finest_level, size=MASK_SIZE, name="mask_regions")
        logits = chain(*map(head_layer, mask_rows(spec)))(regions(maps, boxes, kept))
        outputs["masks"] = PredictedMasks(name="masks")(logits, labels, kept)
    return outputs


def _box_features(spec, maps, proposals, sizes):
    """A vector for each proposal: (B * P, units); with that of the whole image, (B * P, 2 * units)."""
    if not spec.global_context:
        return _region_features(spec, maps, proposals)
    regions = WithWholeImage(name="box_whole_image")(proposals, sizes)
    return GlobalContext(name="box_context")(_region_features(spec, maps, regions), regions)


def _region_features(spec, maps, proposals):
    size = 2 * BOX_SIZE if spec.box_head == "stage4" else BOX_SIZE  # that stage halves it
    regions = RegionFeatures(first_level=spec.finest_level, size=size, name="box_regions")(maps, proposals)
    if spec.box_head == "stage4":
        regions = stage(spec.backbone.stages[3], spec=spec.backbone)(regions)
        return layers.GlobalAveragePooling2D(name="box_pool")(regions)
    rows = box_head_rows(spec)
    convolutions = [head_layer(row) for row in rows if row.kernel_size]
    dense = [head_layer(row) for row in rows if not row.kernel_size]
    return chain(*convolutions, layers.Flatten(name="box_flatten"), *dense)(regions)


def _dense_detections(spec, settings, images, sizes, maps):
    """RetinaNet: class and box of each anchor."""
    heads = {kind: chain(*map(head_layer, rows)) for kind, rows in dense_rows(spec).items()}
    detections = DenseDetections(**layer_arguments(spec, settings)["detections"], name="detections")(
        {
            "images": images,
            "sizes": sizes,
            "scores": [heads["classes"](level) for level in maps],
            "deltas": [heads["boxes"](level) for level in maps],
        }
    )
    return dict(zip(OUTPUTS, detections, strict=True))
