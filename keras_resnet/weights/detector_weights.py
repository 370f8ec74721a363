"""DetectorWeights: the weights of a detector in an open file, and the spec, classes and facts that follow from them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import keras

from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.detector import MIN_SIDE, PREDICTORS, build_detector
from keras_resnet.architecture.detector_spec import DetectorSpec
from keras_resnet.architecture.metadata import info_without_head, model_info
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.labels import coco_classes
from keras_resnet.errors import error_summary, value_error
from keras_resnet.weights.layouts import Layout
from keras_resnet.weights.network_weights import NetworkWeights
from keras_resnet.weights.spec_matching import ANCHORS, field_differences, match_spec_to_weights
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
class DetectorWeights(NetworkWeights):
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
        anchors = {name: getattr(saved or spec, name) for name in ANCHORS[DetectorSpec]}
        try:
            found = replace(spec, backbone=backbone, **anchors)
            found = replace(found, **_widths(layout, found, file))
        except ValueError as error:
            raise value_error("path", str(file.path), f"the weights of a detector ({error_summary(error)})") from error
        _check_size(spec, found, file)
        return found

    def build(self, include_top: bool, classes: int | None, input_shape: tuple | None, **arguments: Any) -> keras.Model:
        """The detector, whose kernels are zeros."""
        return build_detector(replace(self.spec, classes=classes), initialize=False, **arguments)

    @cached_property
    def num_classes(self) -> int:
        """Number of classes with the background."""
        return self.spec.classes

    def _usual_preprocessing(self):
        return None

    def info(self, model: keras.Model, new_head: bool = False) -> dict[str, Any]:
        """Facts about the weights for `model.info`: source, preprocessing (else the model's), class names."""
        info = {"weights": self.file.path.name, **self.file.metadata.info}
        if self.num_classes == len(coco_classes()):
            info.setdefault("class_names", list(coco_classes()))
        info = info_without_head(info) if new_head else info
        known = self.preprocessing.to_config() if self.preprocessing else model_info(model).get("preprocessing")
        return info | {"preprocessing": known or DetectionPreprocessing().to_config()}


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


def lengths_in_file(
    table: Mapping[str, tuple[str, ...]], layout: Layout, spec: Any, file: WeightsFile
) -> dict[str, int]:
    """{field: length of the first of its weights that the file has}, without those of which it has none.

    Args:
        table: field of a spec -> weights of one axis.
        layout: Layout of the file.
        spec: spec of the network, for the names of its arrays.
        file: the open file.
    """
    arrays = {
        field: [file.arrays.get(layout.array_name(name, spec) or "") for name in names]
        for field, names in table.items()
    }
    lengths = {
        field: [array.shape[0] for array in found if array and len(array.shape) == 1] for field, found in arrays.items()
    }
    return {field: found[0] for field, found in lengths.items() if found and found[0]}


def _check_size(requested, found, file):
    """Raises ValueError if widths from a file make a detector larger than the requested one and the file's arrays."""
    needed, limit = map(_num_weights, (found, requested))
    stored = sum(math.prod(array.shape) for array in file.arrays.values())
    if needed > max(stored, limit):
        widths = {field: getattr(found, field) for field in _LENGTHS}
        expected = f"`{file.path}` should have {needed:,} weights, since the lengths of its arrays imply {widths}"
        raise ValueError(f"{expected}. Received: {stored:,} weights")


def _num_weights(spec):
    """Number of all weights, trainable or not."""
    found = complexity(spec, input_shape=(MIN_SIDE, MIN_SIDE, 3))
    return found.parameters + found.statistics
