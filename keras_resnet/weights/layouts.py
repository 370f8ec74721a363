"""LAYOUTS: how torchvision, timm, KerasHub and keras.applications name the weights of a network.

Keras's name of a weight is "<layer>/<weight>", such as "conv3_block1_2_conv/kernel". A Layout is a row of data that
gives the name of the array in the file, and the fields of ResNetSpec that its networks have (strides, biases, epsilon).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from keras_resnet.architecture.detector_spec import DetectorSpec, backbone_of
from keras_resnet.architecture.segmenter_spec import MAX_CONVOLUTIONS, SegmenterSpec

_TORCH_WEIGHTS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_TORCH_SPEC = {"conv_bias": False, "bn_epsilon": 1e-5}
_POOLED_SHORTCUT = {"downsample.0": "downsample.1", "downsample.1": "downsample.2"}
"""Modules of a shortcut that begins with a pool: the pool is module 0."""


@dataclass(frozen=True)
class Layout:
    """The names and axes of the arrays in one family of weights files."""

    name: str
    patterns: tuple[str, ...]
    """Regular expressions; a file has this layout if each of them matches the name of an array."""
    modules: dict[str, str] = field(default_factory=dict)
    """Keras layer outside the blocks -> module; empty for files with the names of keras.applications."""
    block: str = ""
    """Prefix of a block's modules, a format string of `stage` and `block` (from 0) or `layer` (from 1)."""
    block_modules: dict[str, str] = field(default_factory=dict)
    """Keras layer in a block, without the block's prefix -> module, without the block's prefix."""
    postactivation: dict[str, Any] | None = None
    """Fields of ResNetSpec that post-activation networks have in this layout; None if it has no such networks."""
    preactivation: dict[str, Any] | None = None
    """The same for pre-activation networks."""
    keras_axes: bool = False
    """Whether weights have Keras's names and axes ("kernel", not "weight"), and modules are layers."""
    dense_as_conv: bool = False
    """Whether the classifier is stored as a 1x1 convolution."""
    prefix: str = ""
    """Prefix of the modules of a network inside a detector or segmenter."""
    heads: dict[str, str] = field(default_factory=dict)
    """Regular expression of the layers of a neck or head -> module, with the names in _NAMES_OF_SPEC in braces."""
    head_epsilon: float | None = None
    """Epsilon of the batch norm of the heads; None for that of the networks here."""
    zeros: tuple[str, ...] = ()
    """Weights that the networks of this layout do not have, and that are zeros here."""

    @property
    def is_keras(self) -> bool:
        """Whether the arrays have the names of keras.applications."""
        return not self.modules

    def array_name(self, name: str, spec: Any) -> str | None:
        """Name of the array that stores the Keras weight `name`; None if the layout has no such array."""
        if self.is_keras:
            return name
        if name in self.zeros:
            return None
        layer, weight = name.rsplit("/", 1)
        if module := self._head_module(layer, spec):
            return f"{module}/{weight}" if self.keras_axes else f"{module}.{_TORCH_WEIGHTS[weight]}"
        spec = backbone_of(spec)
        module = self.modules.get(layer)
        match = re.fullmatch(r"conv(\d+)_block(\d+)_(.+)", layer)
        if match and match[3] in self.block_modules:
            module = self.block_modules[match[3]]
            if spec.shortcut == "pooled":
                module = _POOLED_SHORTCUT.get(module, module)
            stage, block = int(match[1]) - 2, int(match[2]) - 1
            module = self.block.format(stage=stage, layer=stage + 1, block=block) + module
        if module is None:
            return None
        return f"{module}/{weight}" if self.keras_axes else f"{self.prefix}{module}.{_TORCH_WEIGHTS[weight]}"

    def _head_module(self, layer, spec):
        """Module of a layer of a neck or head; None for other layers."""
        for pattern, module in self.heads.items():
            if match := re.fullmatch(pattern, layer):
                names = _NAMES_OF_SPEC.get(type(spec), dict)
                return match.expand(module.format(**names(spec)))
        return None


_NAMES_OF_SPEC: dict[type, Callable[[Any], dict]] = {
    DetectorSpec: lambda spec: {"after_convs": spec.head_convs + 1},
    SegmenterSpec: lambda spec: {
        "pyramid": "classifier.aspp" if spec.head == "deeplabv3plus" else "classifier.0",
        "after_branches": len(spec.rates) + 1,
        "after_hidden": 3 * len(spec.decoder_kernels),
    },
}
"""Class of a spec -> the parts of the names of modules that depend on it."""


def _conv_bn(layer, module, index):
    """Rows of `Layout.heads` for a convolution at an index of a torch Sequential, and the batch norm behind it."""
    return {f"{layer}_conv": f"{module}.{index}", f"{layer}_bn": f"{module}.{index + 1}"}


_TORCHVISION = Layout(
    "torchvision",
    patterns=(r"layer1\.0\.conv1\.weight",),
    modules={
        "conv1_conv": "conv1",
        "conv1_bn": "bn1",
        "conv1_1_conv": "conv1.0",
        "conv1_1_bn": "conv1.1",
        "conv1_2_conv": "conv1.3",
        "conv1_2_bn": "conv1.4",
        "conv1_3_conv": "conv1.6",
        "conv1_3_bn": "bn1",
        "pool1_conv": "maxpool.0",
        "pool1_bn": "maxpool.1",
        "predictions": "fc",
    },
    block="layer{layer}.{block}.",
    block_modules={
        "0_conv": "downsample.0",
        "0_bn": "downsample.1",
        **{f"{i}_conv": f"conv{i}" for i in (1, 2, 3)},
        **{f"{i}_bn": f"bn{i}" for i in (1, 2, 3)},
        "se_reduce": "se.fc1",
        "se_expand": "se.fc2",
        "eca_conv": "se.conv",
    },
    postactivation={"stride_on": "3x3", **_TORCH_SPEC},
)
_CIFAR = replace(  # github.com/akamaster/pytorch_resnet_cifar10
    _TORCHVISION,
    name="cifar",
    patterns=(*_TORCHVISION.patterns, r"linear\.weight"),
    modules={**_TORCHVISION.modules, "predictions": "linear"},
)
_DETECTION = replace(  # torchvision/models/detection
    _TORCHVISION,
    name="torchvision_detection",
    patterns=(r"backbone\.body\.layer1\.0\.conv1\.weight",),
    prefix="backbone.body.",
    heads={
        r"fpn_(inner|layer)(\d)(_conv)?": r"backbone.fpn.\1_blocks.\2.0",
        r"fpn_(inner|layer)(\d)_bn": r"backbone.fpn.\1_blocks.\2.1",
        r"fpn_(p6|p7)": r"backbone.fpn.extra_blocks.\1",
        r"rpn_conv(\d+)": r"rpn.head.conv.\1.0",
        r"rpn_objectness": "rpn.head.cls_logits",
        r"rpn_deltas": "rpn.head.bbox_pred",
        r"box_conv(\d+)(_conv)?": r"roi_heads.box_head.\1.0",
        r"box_conv(\d+)_bn": r"roi_heads.box_head.\1.1",
        r"box_(fc[67])": r"roi_heads.box_head.\1",
        r"box_fc_after_convs": r"roi_heads.box_head.{after_convs}",
        r"box_scores": "roi_heads.box_predictor.cls_score",
        r"box_deltas": "roi_heads.box_predictor.bbox_pred",
        r"mask_conv(\d+)(_conv)?": r"roi_heads.mask_head.\1.0",
        r"mask_conv(\d+)_bn": r"roi_heads.mask_head.\1.1",
        r"mask_deconv": "roi_heads.mask_predictor.conv5_mask",
        r"mask_logits": "roi_heads.mask_predictor.mask_fcn_logits",
        r"dense_classes(\d+)(_conv)?": r"head.classification_head.conv.\1.0",
        r"dense_classes(\d+)_gn": r"head.classification_head.conv.\1.1",
        r"dense_boxes(\d+)(_conv)?": r"head.regression_head.conv.\1.0",
        r"dense_boxes(\d+)_gn": r"head.regression_head.conv.\1.1",
        r"dense_scores": "head.classification_head.cls_logits",
        r"dense_deltas": "head.regression_head.bbox_reg",
    },
)
_SEGMENTATION = replace(  # torchvision/models/segmentation
    _TORCHVISION,
    name="torchvision_segmentation",
    patterns=(r"backbone\.layer1\.0\.conv1\.weight",),
    prefix="backbone.",
    heads={
        **_conv_bn("fcn_hidden", "classifier", 0),
        r"fcn_logits": "classifier.4",
        **_conv_bn(r"aspp_branch(\d+)", r"{pyramid}.convs.\1", 0),
        **_conv_bn("aspp_pool", "{pyramid}.convs.{after_branches}", 1),
        **_conv_bn("aspp_project", "{pyramid}.project", 0),
        **_conv_bn("aspp_hidden", "classifier", 1),
        r"aspp_logits": "classifier.4",
        # DeepLabV3+ is not in torchvision: names as in github.com/VainF/DeepLabV3Plus-Pytorch
        **_conv_bn("decoder_skip", "classifier.project", 0),
        **{
            layer: module
            for number in range(MAX_CONVOLUTIONS)
            for layer, module in _conv_bn(f"decoder_hidden{number}", "classifier.classifier", 3 * number).items()
        },
        r"decoder_logits": "classifier.classifier.{after_hidden}",
        **_conv_bn("aux_hidden", "aux_classifier", 0),
        r"aux_logits": "aux_classifier.4",
    },
)
_DETECTION_2019 = replace(  # the published v1 files of 2019 and 2020; their frozen batch norm has an epsilon of 0
    _DETECTION,
    name="torchvision_detection_2019",
    patterns=(*_DETECTION.patterns, r"backbone\.fpn\.inner_blocks\.0\.weight"),
    heads={
        r"fpn_(inner|layer)(\d)": r"backbone.fpn.\1_blocks.\2",
        r"rpn_conv0": "rpn.head.conv",
        **{f"mask_conv{i}": f"roi_heads.mask_head.mask_fcn{i + 1}" for i in range(4)},
        **{f"dense_classes{i}": f"head.classification_head.conv.{2 * i}" for i in range(4)},
        **{f"dense_boxes{i}": f"head.regression_head.conv.{2 * i}" for i in range(4)},
        **_DETECTION.heads,
    },
    postactivation={"stride_on": "3x3", "conv_bias": False, "bn_epsilon": 0.0},
)
_TIMM = Layout(
    "timm",
    patterns=(r"stages\.0\.blocks\.0\.conv1\.weight",),
    modules={"conv1_conv": "stem.conv", "post_bn": "norm", "predictions": "head.fc"},
    block="stages.{stage}.blocks.{block}.",
    block_modules={
        "0_conv": "downsample.conv",
        "preact_bn": "norm1",
        "1_conv": "conv1",
        "1_bn": "norm2",
        "2_conv": "conv2",
        "2_bn": "norm3",
        "3_conv": "conv3",
    },
    preactivation={"downsample_at": "first", "stem": "imagenet_torch", "stride_on": "3x3", **_TORCH_SPEC},
    dense_as_conv=True,
)
_KERAS_HUB = Layout(  # keras_hub/src/models/resnet/resnet_backbone.py
    "keras_hub",
    patterns=(r"stack0_block0_1_conv/kernel",),
    modules={
        "conv1_conv": "conv1_conv",
        "conv1_bn": "conv1_bn",
        **{f"conv1_{i}_{kind}": f"conv{i}_{kind}" for i in (1, 2, 3) for kind in ("conv", "bn")},
        "post_bn": "post_bn",
        "predictions": "predictions",
    },
    block="stack{stage}_block{block}_",
    block_modules={
        "preact_bn": "pre_activation_bn",
        **{f"{i}_{kind}": f"{i}_{kind}" for i in (0, 1, 2, 3) for kind in ("conv", "bn")},
    },
    postactivation=_TORCHVISION.postactivation,
    preactivation=_TIMM.preactivation,
    keras_axes=True,
)
_KERAS_HUB_SEGMENTATION = replace(  # keras_hub/src/models/deeplab_v3
    _KERAS_HUB,
    name="keras_hub_segmentation",
    patterns=(*_KERAS_HUB.patterns, r"segmentation_head_conv/kernel"),
    heads={
        **{
            f"aspp_branch{number}_{kind}": f"aspp_{kind}_{number + 1}"
            for number in range(MAX_CONVOLUTIONS + 1)
            for kind in ("conv", "bn")
        },
        r"aspp_pool_(conv|bn)": r"\1_pooling",
        r"aspp_project_(conv|bn)": r"\1_projection",
        r"decoder_skip_conv": "decoder_conv",
        r"decoder_skip_bn": "decoder_norm",
        r"decoder_hidden0_conv": "segmentation_head_conv",
        r"decoder_hidden0_bn": "segmentation_head_norm",
        r"decoder_logits": "segmentation_output",
    },
    head_epsilon=1e-3,
    zeros=("decoder_logits/bias",),
)
_KERAS_SPEC = {"conv_bias": True, "bn_epsilon": 1.001e-5}
_KERAS = Layout(
    "keras",
    patterns=(r"conv\d+_block\d+_\w+/\w+|conv2d(_\d+)?/kernel",),
    postactivation={"stride_on": "1x1", **_KERAS_SPEC},
    preactivation={"downsample_at": "last", "stem": "imagenet", "stride_on": "3x3", **_KERAS_SPEC},
    keras_axes=True,
)
LAYOUTS = {
    layout.name: layout
    for layout in (
        *(_DETECTION_2019, _DETECTION, _SEGMENTATION, _CIFAR, _TORCHVISION, _TIMM),
        *(_KERAS_HUB_SEGMENTATION, _KERAS_HUB, _KERAS),
    )
}
