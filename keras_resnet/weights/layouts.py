"""LAYOUTS: how torchvision, timm, KerasHub and keras.applications name and transpose the weights of a network.

Keras's name of a weight is "<layer>/<weight>", such as "conv3_block1_2_conv/kernel". A Layout is a row of data that
gives the name of the array in the file, and the fields of ResNetSpec that its networks have (strides, biases, epsilon).
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np

from keras_resnet.architecture.detector import BOX_SIZE, HEAD_PREFIXES
from keras_resnet.architecture.detector_spec import DetectorSpec, backbone_of
from keras_resnet.architecture.localizer_spec import LocalizerSpec
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.errors import check_known, value_error
from keras_resnet.variants import VARIANTS
from keras_resnet.weights.weights_file import StoredArray

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
    """Prefix of the modules of a network inside a detector."""
    heads: dict[str, str] = field(default_factory=dict)
    """Regular expression of the layers of a detector's neck and heads -> module."""

    @property
    def is_keras(self) -> bool:
        """Whether the arrays have the names of keras.applications."""
        return not self.modules

    def array_name(self, name: str, spec: ResNetSpec | DetectorSpec) -> str | None:
        """Name of the array that stores the Keras weight `name`; None if the layout has no such array."""
        if self.is_keras:
            return name
        layer, weight = name.rsplit("/", 1)
        if module := self._head_module(layer, spec):
            return f"{module}.{_TORCH_WEIGHTS[weight]}"
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
        """Module of a layer of a detector's neck or heads; None for other layers."""
        for pattern, module in self.heads.items():
            if match := re.fullmatch(pattern, layer):
                return match.expand(module.replace("{after_convs}", str(getattr(spec, "head_convs", 0) + 1)))
        return None


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
_KERAS_SPEC = {"conv_bias": True, "bn_epsilon": 1.001e-5}
_KERAS = Layout(
    "keras",
    patterns=(r"conv\d+_block\d+_\w+/\w+|conv2d(_\d+)?/kernel",),
    postactivation={"stride_on": "1x1", **_KERAS_SPEC},
    preactivation={"downsample_at": "last", "stem": "imagenet", "stride_on": "3x3", **_KERAS_SPEC},
    keras_axes=True,
)
LAYOUTS = {
    layout.name: layout for layout in (_DETECTION_2019, _DETECTION, _CIFAR, _TORCHVISION, _TIMM, _KERAS_HUB, _KERAS)
}


_DETECTOR_NAMES = re.compile(
    r"(rpn_objectness|dense_scores)/.*|(rpn\.head|head\.classification_head)\.cls_logits\..*", re.DOTALL
)
"""The arrays that every detector has, of the objectness or of the classes of anchors."""


def kind_of_network(names: Collection[str]) -> type:
    """ResNetSpec, DetectorSpec or LocalizerSpec: the spec of a network whose arrays have these names."""
    if any(map(_DETECTOR_NAMES.fullmatch, names)):
        return DetectorSpec
    return LocalizerSpec if "box_deltas/kernel" in names else ResNetSpec


def detect_layout(names: Iterable[str], path: str | os.PathLike) -> Layout:
    """The Layout with these array names; raises ValueError, which names the file `path`, if there is none."""
    for layout in LAYOUTS.values():
        if all(any(re.fullmatch(pattern, name) for name in names) for pattern in layout.patterns):
            return layout
    names = sorted(names)
    raise ValueError(
        f"`{path}` should contain the weights of a residual network, with array names of one of the layouts "
        f"{list(LAYOUTS)}. Received: {names[:4]} and {max(0, len(names) - 4)} more"
    )


def get_layout(name: str, spec: ResNetSpec | DetectorSpec) -> Layout:
    """The Layout with this name; "timm" and "auto" are the one in which timm has networks like `spec`."""
    check_known("layout", name, (*LAYOUTS, "auto"))
    if isinstance(spec, DetectorSpec) and name in ("torchvision", "auto"):
        return _DETECTION if spec.backbone.bn_epsilon else _DETECTION_2019
    spec = backbone_of(spec)
    if name in ("timm", "auto"):
        return _TIMM if spec.preactivation else _TORCHVISION
    return LAYOUTS[name]


_FIELDS_OF_WEIGHTS = ("stride_on", "downsample_at", "stem", "conv_bias", "bn_epsilon")
"""Fields of ResNetSpec that are taken from the weights."""
_FIELDS_OF_NETWORK = (
    *("block", "depths", "widths", "stem_width", "shortcut", "preactivation", "groups", "group_width"),
    *("se_ratio", "eca", "merge"),
)
"""Fields that should be as requested: with another value, arrays may still have the same names and shapes."""
ANCHORS = {ResNetSpec: (), DetectorSpec: ("anchor_sizes", "anchor_ratios"), LocalizerSpec: ("anchor_sizes",)}
"""Class of a spec -> its fields of anchors, which are taken from the weights, if the file has them."""


def match_spec_to_weights(
    spec: ResNetSpec | DetectorSpec | LocalizerSpec,
    layout: Layout,
    names: Iterable[str],
    saved: Any = None,
) -> ResNetSpec:
    """`spec` with the stride placement, biases and epsilon with which the weights of a file were trained.

    They are in `saved`, the spec that is stored in the file, or follow from the layout and the names of
    the file's arrays. Arrays with Keras's names and without a stored spec fit `spec` if both or neither have biases;
    otherwise they are the weights of keras.applications (with biases), or of torchvision or timm.

    Raises:
        ValueError: if the layout has no such networks, or the file contains the spec of another network.
    """
    spec = backbone_of(spec)
    if saved:
        saved = backbone_of(saved)
        if different := field_differences(saved.to_config(), spec.to_config(), _FIELDS_OF_NETWORK):
            raise ValueError(f"The weights should be for the requested network. Received: weights for {different}")
        return replace(spec, **{name: getattr(saved, name) for name in _FIELDS_OF_WEIGHTS})
    if layout.is_keras:
        has_biases = any(re.fullmatch(r"(conv1_conv|conv1_1_conv|conv2d)/bias", name) for name in names)
        if has_biases == spec.conv_bias:
            return spec
        layout = _KERAS if has_biases else _TIMM if spec.preactivation else _TORCHVISION
    fields = layout.preactivation if spec.preactivation else layout.postactivation
    if fields is None:
        kind = "post-activation" if spec.preactivation else "pre-activation"
        expected = f"{not spec.preactivation}: all networks in the layout {layout.name!r} are {kind} networks"
        raise value_error("preactivation", spec.preactivation, expected)
    return replace(spec, **fields)


def field_differences(config: Mapping, other: Mapping, names: Iterable[str]) -> str:
    """The fields `names` that differ, as "<field>=<value> (not <other value>), ..."."""
    different = (name for name in names if config[name] != other[name])
    return ", ".join(f"{name}={config[name]!r} (not {other[name]!r})" for name in different)


def variant_of(spec: ResNetSpec, ignored: Collection[str] = ()) -> str | None:
    """Name of the first network of VARIANTS with the weights of `spec`; None if there is none.

    Args:
        spec: ResNetSpec.
        ignored: fields that may differ.
    """
    names, config = (*_FIELDS_OF_NETWORK, *_FIELDS_OF_WEIGHTS), spec.to_config()
    names = [name for name in names if name not in ignored]
    return next((name for name, row in VARIANTS.items() if not field_differences(row.to_config(), config, names)), None)


def check_spec_fits_weights(
    spec: ResNetSpec | DetectorSpec, required: ResNetSpec | DetectorSpec, path: str | os.PathLike
) -> None:
    """Raise ValueError if a model's spec differs from what its weights need: strides, biases, epsilon, anchors."""
    different = field_differences(required.to_config(), spec.to_config(), ANCHORS[type(required)])
    config = backbone_of(required).to_config()
    if different := different or field_differences(config, backbone_of(spec).to_config(), _FIELDS_OF_WEIGHTS):
        name = variant_of(required) if isinstance(required, ResNetSpec) else None
        arguments = repr(name) if name else "..., weights=path"
        raise ValueError(
            f"`model` should have the spec that the weights need: {different}. "
            f"`create({arguments})` builds such a model. Received: path={str(path)!r}"
        )


HEAD_WEIGHTS = ("predictions/kernel", "predictions/bias")
FLATTENED = ("box_fc6/kernel", "box_fc_after_convs/kernel")
"""Dense layers on flattened features of regions: torch flattens (channels, height, width)."""
_CELLS = BOX_SIZE**2
_NUMBERED = {"Conv2D": "conv2d", "BatchNormalization": "batch_normalization", "Dense": "dense"}


def weight_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """{"<layer>/<weight>": variable} of a network, in the order of its layers, without layers before `input_tensor`."""
    layers = (
        layer
        for layer in model.layers
        if re.match(r"conv\d+_|pool1_|post_|predictions$", layer.name) or layer.name.startswith(HEAD_PREFIXES)
    )
    return {f"{layer.name}/{weight.name}": weight for layer in layers for weight in layer.weights}


def with_layer_names(arrays: Mapping[str, StoredArray], layers: Iterable[keras.Layer]) -> dict[str, StoredArray]:
    """Arrays by layer name: "conv2d_3/kernel" of older Keras files, which number the layers of a class, is renamed."""
    names, counts = {}, Counter[str]()
    for layer in layers:
        if kind := _NUMBERED.get(type(layer).__name__):
            names[f"{kind}_{counts[kind]}" if counts[kind] else kind] = layer.name
            counts[kind] += 1
    split = ((*name.rpartition("/"), array) for name, array in arrays.items())
    return {f"{names.get(layer, layer)}{slash}{weight}": array for layer, slash, weight, array in split}


_AXES = {4: (2, 3, 1, 0), 3: (2, 1, 0), 2: (1, 0)}
"""Number of axes of a kernel -> torch's axes in Keras's order; torch has (out, in, height, width)."""


def to_keras_axes(array: StoredArray, layout: Layout, name: str | None) -> StoredArray:
    """The array of a file for the Keras weight `name` with Keras's axes; unchanged if `name` is None."""
    axes = _AXES.get(len(array.shape))
    if layout.keras_axes or name is None or axes is None:
        return array
    if name in FLATTENED and len(axes) == 2 and array.shape[1] % _CELLS == 0:
        units, inputs = array.shape
        return replace(array, shape=(inputs, units), read=lambda: _flatten_cells(array.read()))
    shape = tuple(array.shape[axis] for axis in axes)
    if name == HEAD_WEIGHTS[0]:  # in some files a 1x1 convolution
        shape = shape[-2:] if shape[:-2] in ((), (1, 1)) else shape
    return replace(array, shape=shape, read=lambda: array.read().transpose(axes).reshape(shape))


def _flatten_cells(kernel):
    """(units, channels * cells) of a dense layer on a region's features -> (cells * channels, units)."""
    units = len(kernel)
    return np.ascontiguousarray(kernel.reshape(units, -1, _CELLS).transpose(2, 1, 0)).reshape(-1, units)


def to_layout_axes(array: np.ndarray, layout: Layout, name: str) -> np.ndarray:
    """The Keras weight `name` with the axes of the layout, contiguous."""
    if layout.keras_axes or array.ndim not in _AXES:
        return array
    if layout.dense_as_conv and name == HEAD_WEIGHTS[0]:
        array = array[None, None]
    if name in FLATTENED:
        array = array.reshape(_CELLS, -1, array.shape[1]).transpose(1, 0, 2).reshape(array.shape)
    return np.ascontiguousarray(array.transpose(np.argsort(_AXES[array.ndim])))
