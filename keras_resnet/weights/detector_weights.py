"""DetectorWeights: the weights of a detector in an open file, and what they say of the detector."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import keras

from keras_resnet.architecture.detector import build_detector
from keras_resnet.architecture.detector_spec import DetectorSpec
from keras_resnet.architecture.metadata import info_without_head, model_info
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.labels import coco_classes
from keras_resnet.weights.layouts import Layout, match_spec_to_weights
from keras_resnet.weights.network_weights import NetworkWeights
from keras_resnet.weights.weights_file import WeightsFile

_PREDICTORS = ("box_scores", "box_deltas", "mask_logits", "dense_scores")
"""Layers with weights for each class."""
_LENGTHS = {
    "neck_width": ("fpn_inner0/bias", "fpn_inner0_bn/gamma"),
    "rpn_width": ("rpn_conv0/bias",),
    "box_width": ("box_fc6/bias", "box_fc_after_convs/bias"),
    "mask_width": ("mask_conv0/bias", "mask_conv0_bn/gamma"),
    "classes": ("box_scores/bias",),
}
"""Field of DetectorSpec -> weights; the first one that the file has is as long as the field's value."""


@dataclass(frozen=True)
class DetectorWeights(NetworkWeights):
    """The weights of a detector in an open file: everything that can be known before a model is built."""

    head_weights: ClassVar[tuple[str, ...]] = tuple(
        f"{layer}/{kind}" for layer in _PREDICTORS for kind in ("kernel", "bias")
    )

    @classmethod
    def match(cls, spec: DetectorSpec, layout: Layout, file: WeightsFile) -> DetectorSpec:
        """The requested detector with the widths, classes and backbone that the file has.

        Raises:
            ValueError: if the file has the weights of another kind of detector.
        """
        backbone = match_spec_to_weights(spec, layout, file.arrays, file.metadata.spec)
        lengths = {field: _length(layout, spec, file, names) for field, names in _LENGTHS.items()}
        if dense := _length(layout, spec, file, ("dense_scores/bias",)):
            lengths["classes"] = dense // spec.num_anchors
        found = {field: length for field, length in lengths.items() if length}
        return replace(spec, backbone=backbone, **found)

    def build(self, include_top: bool, classes: int | None, input_shape: tuple | None, **arguments: Any) -> keras.Model:
        """The detector, whose backbone is not initialised."""
        return build_detector(replace(self.spec, classes=classes), initialize=False, **arguments)

    @cached_property
    def num_classes(self) -> int:
        """Number of classes with the background."""
        return self.spec.classes

    @cached_property
    def preprocessing(self) -> DetectionPreprocessing | None:
        """Preprocessing that was published with the file or stored in it; None if unknown."""
        stored = self.file.metadata.info.get("preprocessing")
        return self.source_preprocessing or (stored and DetectionPreprocessing.from_config(stored))

    def info(self, model: keras.Model, new_head: bool = False) -> dict[str, Any]:
        """Facts about the weights for `model.info`: source, preprocessing (else the model's), class names."""
        info = {"weights": self.file.path.name, **self.file.metadata.info}
        if self.num_classes == len(coco_classes()):
            info.setdefault("class_names", list(coco_classes()))
        info = info_without_head(info) if new_head else info
        known = self.preprocessing.to_config() if self.preprocessing else model_info(model).get("preprocessing")
        return info | {"preprocessing": known or DetectionPreprocessing().to_config()}


def _length(layout, spec, file, names):
    """Length of the first of these weights that the file has; 0 if it has none."""
    arrays = (file.arrays.get(layout.array_name(name, spec)) for name in names)
    return next((array.shape[0] for array in arrays if array and len(array.shape) == 1), 0)
