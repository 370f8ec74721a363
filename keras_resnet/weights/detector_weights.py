"""DetectorWeights: the weights of a detector in an open file, and the spec, classes and facts that follow from them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_resnet.architecture.detector import PREDICTORS, build_detector
from keras_resnet.architecture.detector_spec import DetectorSpec
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.labels import coco_classes
from keras_resnet.errors import error_summary, value_error
from keras_resnet.weights.array_lengths import check_size, lengths_in_file
from keras_resnet.weights.layouts import Layout
from keras_resnet.weights.network_weights import AnySizeWeights
from keras_resnet.weights.spec_matching import NOT_IN_ARRAYS, field_differences, match_spec_to_weights
from keras_resnet.weights.weights_file import WeightsFile

_LENGTHS = {
    "neck_width": ("fpn_inner0/bias", "fpn_inner0_bn/gamma"),
    "rpn_width": ("rpn_conv0/bias",),
    "box_width": ("box_fc6/bias", "box_fc_after_convs/bias"),
    "mask_width": ("mask_deconv/bias",),
    "classes": ("box_scores/bias",),
}
"""Field of DetectorSpec -> weights; the first one that the file has is as long as the field's value."""
_STRUCTURE = (
    *("neck", "levels", "extra_levels", "neck_norm", "rpn_convs", "box_head", "head_convs", "head_norm"),
    *("global_context", "mask_head", "mask_convs"),
)
"""Fields of DetectorSpec in which the file should equal the request."""


@dataclass(frozen=True)
class _Part:
    """A part of a detector, and a weight by which it is recognized."""

    name: str
    weight: str
    is_needed: Callable[[DetectorSpec], bool]


_PARTS = (
    _Part("a feature pyramid", "fpn_inner0{}/kernel", lambda spec: spec.neck == "fpn"),
    _Part("batch norm in the pyramid", "fpn_inner0_bn/gamma", lambda spec: spec.neck_norm == "batch"),
    _Part("convolutions for levels 6 and 7", "fpn_p6/kernel", lambda spec: spec.extra_levels in ("c5", "p5")),
    _Part("region proposals", "rpn_objectness/kernel", lambda spec: spec.box_head != "dense"),
    _Part("dense heads", "dense_scores/kernel", lambda spec: spec.box_head == "dense"),
    _Part("group norm in its heads", "dense_classes0_gn/gamma", lambda spec: spec.head_norm == "group"),
    _Part("two dense layers for boxes", "box_fc7/kernel", lambda spec: spec.box_head == "mlp"),
    _Part("convolutions for boxes", "box_conv0{}/kernel", lambda spec: spec.box_head == "conv"),
    _Part("a mask head", "mask_logits/kernel", lambda spec: spec.mask_head),
)


@dataclass(frozen=True)
class DetectorWeights(AnySizeWeights):
    """The weights of a detector in an open file: everything that can be known before a model is built."""

    preprocessing_class = DetectionPreprocessing

    @property
    def head_weights(self) -> tuple[str, ...]:
        """Weights of the layers that predict classes, boxes and masks."""
        return tuple(f"{layer}/{kind}" for layer in PREDICTORS for kind in ("kernel", "bias"))

    @classmethod
    def match(cls, spec: DetectorSpec, layout: Layout, file: WeightsFile) -> DetectorSpec:
        """The requested detector with the widths, classes and backbone that the file has.

        Raises:
            ValueError: if the file has the weights of another kind of detector, or widths that need more memory than
                the arrays of the file.
        """
        saved = file.metadata.spec
        _check_structure(spec, layout, file)
        backbone = match_spec_to_weights(spec, layout, file.arrays, saved)
        if not saved and not spec.backbone.bn_epsilon:  # the new names do not identify the epsilon
            backbone = replace(backbone, bn_epsilon=0.0)
        anchors = {name: getattr(saved or spec, name) for name in NOT_IN_ARRAYS[DetectorSpec]}
        try:
            found = replace(spec, backbone=backbone, **anchors)
            found = replace(found, **_widths(layout, found, file))
        except ValueError as error:
            raise value_error("path", str(file.path), f"the weights of a detector ({error_summary(error)})") from error
        check_size(spec, found, file, _LENGTHS)
        return found

    def build(self, include_top: bool, classes: int | None, input_shape: tuple | None, **arguments: Any) -> keras.Model:
        """The detector, whose kernels are zeros."""
        return build_detector(replace(self.spec, classes=classes), initialize=False, **arguments)

    def _usual_class_names(self):
        return coco_classes() if self.num_classes == len(coco_classes()) else None


def _check_structure(spec, layout, file):
    """Raises ValueError if the file, by its spec or else by the names of its arrays, has another kind of detector."""
    different = ""
    if saved := file.metadata.spec:
        different = field_differences(saved.to_config(), spec.to_config(), _STRUCTURE)
    else:
        has = {part: _has(part, layout, spec, file) for part in _PARTS}
        wrong = [part for part in _PARTS if has[part] != part.is_needed(spec)]
        different = ", ".join(f"a detector {'with' if has[part] else 'without'} {part.name}" for part in wrong)
    if different:
        raise ValueError(f"`{file.path}` should have the weights of the requested detector. Received: {different}")


def _has(part, layout, spec, file):
    """Whether a file has the weight of a part; before a norm, a convolution has "_conv" at the end of its name."""
    return any(layout.array_name(part.weight.format(end), spec) in file.arrays for end in ("", "_conv"))


def _widths(layout, spec, file):
    """{field of DetectorSpec: value} from the lengths of the file's arrays."""
    widths = lengths_in_file(_LENGTHS, layout, spec, file)
    if dense := lengths_in_file({"scores": ("dense_scores/bias",)}, layout, spec, file):
        widths["classes"] = dense["scores"] // spec.num_anchors
    return widths
