"""KerasHub's presets, folders that `save_to_preset` writes: the network, its classifier and its preprocessing."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from keras_resnet.architecture.segmenter_spec import REFERENCE_STRIDE, SegmenterSpec
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.image_files import check_channels
from keras_resnet.data.preprocessing import INTERPOLATIONS, Preprocessing
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.errors import bounded_repr, check_known, error_summary, value_error
from keras_resnet.files import read_json
from keras_resnet.normalization import MODES, Normalization
from keras_resnet.schema import checked
from keras_resnet.variants import get_spec

PRESET_WEIGHTS_NAME = "model.weights.h5"
"""Name of the backbone's weights."""
_NETWORKS = {
    ("basic_block", False): "resnet18",
    ("bottleneck_block", False): "resnet50_v1_5",
    ("bottleneck_block", True): "resnetv2_50",
    ("basic_block_vd", False): "resnet18_vd",
    ("bottleneck_block_vd", False): "resnet50d",
}
"""(block_type, use_pre_activation) of a ResNetBackbone -> a network of this kind."""
_STEMS = {(7,): {}, (3, 3, 3): {"stem": "deep"}}
"""input_conv_kernel_sizes -> fields of ResNetSpec."""


class Backbone(TypedDict):
    """Arguments of a ResNetBackbone."""

    image_shape: tuple[int | None, ...]
    block_type: str
    use_pre_activation: bool
    input_conv_filters: list[int]
    input_conv_kernel_sizes: tuple[int, ...]
    stackwise_num_filters: list[int]
    stackwise_num_blocks: list[int]
    stackwise_num_strides: list[int]


class SegmenterBackbone(TypedDict):
    """Arguments of a DeepLabV3Backbone."""

    image_encoder: dict[str, Any]
    projection_filters: int
    dilation_rates: list[int]
    upsampling_size: int
    low_level_feature_key: str | None
    spatial_pyramid_pooling_key: str


class ImageConverter(TypedDict):
    """Arguments of a ResNetImageConverter or DeepLabV3ImageConverter."""

    image_size: tuple[int, ...] | None
    crop_to_aspect_ratio: bool
    interpolation: str
    scale: list[float] | float | None
    offset: list[float] | float | None


class Task(TypedDict, total=False):
    """Arguments of a ResNetImageClassifier or, without pooling, of a DeepLabV3ImageSegmenter."""

    pooling: Any
    activation: Any


_SEGMENTER = "DeepLabV3Backbone"
_POOLINGS = {"ResNetImageClassifier": "avg", "DeepLabV3ImageSegmenter": None}
"""Class of a task -> the pooling that it should have."""


def is_preset(config: Mapping[str, Any]) -> bool:
    """Whether the values of a config.json are those of a Keras object, and not timm's."""
    return "registered_name" in config


def preset_spec(config: Mapping[str, Any], path: Path) -> ResNetSpec | SegmenterSpec:
    """The spec of a backbone, from the values of its config.json at `path`: of a DeepLabV3Backbone a SegmenterSpec.

    Raises:
        ValueError: for another class than these and ResNetBackbone, and for networks that are not of this family.
    """
    if _is_segmenter(config):
        return _segmenter_spec(config, path)
    values = _arguments(config, "ResNetBackbone", Backbone, path)
    try:
        row = get_spec(_NETWORKS[values["block_type"], values["use_pre_activation"]])
        widths, strides = values["stackwise_num_filters"], values["stackwise_num_strides"]
        if strides != [1, *[2] * (len(widths) - 1)]:
            raise ValueError("the strides of the stages should be 1, 2, 2, ...")
        stem = {"stem_width": values["input_conv_filters"][-1], **_STEMS[values["input_conv_kernel_sizes"]]}
        return replace(row, depths=values["stackwise_num_blocks"], widths=widths, **stem)
    except (KeyError, IndexError, ValueError) as error:
        cause = f"{type(error).__name__}: {error_summary(error)}"
        expected = f"a ResNetBackbone like those of {sorted(_NETWORKS.values())} ({cause})"
        raise value_error("variant", str(path), expected) from error


def _is_segmenter(config):
    return config.get("registered_name") == f"keras_hub>{_SEGMENTER}"


def _segmenter_spec(config, path):
    """The SegmenterSpec of DeepLabV3+, whose decoder has one 1x1 convolution (keras_hub/src/models/deeplab_v3)."""
    values = _arguments(config, _SEGMENTER, SegmenterBackbone, path)
    backbone = preset_spec(values["image_encoder"], path)
    levels = (values["low_level_feature_key"], values["spatial_pyramid_pooling_key"], values["upsampling_size"])
    if levels != ("P2", "P5", 8) or not isinstance(backbone, ResNetSpec):
        expected = (
            f'DeepLabV3+ on the levels "P2" and "P5" of a ResNetBackbone, enlarged by 8, not {bounded_repr(levels)}'
        )
        raise value_error("variant", str(path), expected)
    stride = backbone.stride
    return SegmenterSpec(
        backbone,
        "deeplabv3plus",
        output_stride=stride,
        rates=tuple(rate * stride // REFERENCE_STRIDE for rate in values["dilation_rates"]),
        decoder_width=values["projection_filters"],
        decoder_kernels=(1,),
        dropout=0.0,
        auxiliary=False,
    )


def preset_head(folder: Path) -> Path | None:
    """Path of the weights of the classifier, of each image or pixel; None for a preset of a backbone or another task.

    Raises:
        ValueError: for a classifier with another pooling than the average, or another activation than softmax.
    """
    path = folder / "task.json"
    if not path.exists():
        return None
    config = read_json(path, dict[str, Any])
    name = str(config.get("registered_name")).removeprefix("keras_hub>")
    if name not in _POOLINGS:
        return None
    values = _arguments(config, name, Task, path)
    head = {name: values.get(name) for name in ("pooling", "activation")}
    if head["pooling"] != _POOLINGS[name] or head["activation"] not in (None, "linear", "softmax"):
        expected = f"a classifier with average pooling and softmax or logits, not {bounded_repr(head)}"
        raise value_error("variant", str(path), expected)
    return folder / "task.weights.h5"


def preset_preprocessing(folder: Path, config: Mapping[str, Any]) -> Preprocessing | SegmentationPreprocessing | None:
    """The preprocessing in image_converter.json; None without the file and, with a warning, for one that cannot be it.

    That of a segmenter has the normalisation and the shorter side; images are not stretched or cropped to a square.

    Args:
        folder: the preset.
        config: values of its config.json, which have the number of channels.
    """
    path = folder / "image_converter.json"
    if not path.exists():
        return None
    is_segmenter = _is_segmenter(config)
    converter = "DeepLabV3ImageConverter" if is_segmenter else "ResNetImageConverter"
    values = _arguments(read_json(path, dict[str, Any]), converter, ImageConverter, path)
    try:
        if is_segmenter:
            size = values["image_size"]
            return SegmentationPreprocessing(_mode(values, 3), size and min(size))
        backbone = _arguments(config, "ResNetBackbone", Backbone, folder / "config.json")
        return _preprocessing(values, *backbone["image_shape"][-1:])
    except (KeyError, TypeError, ValueError) as error:
        warnings.warn(
            f"The preprocessing of the model is unknown: `{path}` should have a square `image_size`, no padding, and "
            f"one of the interpolations {list(INTERPOLATIONS.values())} ({error_summary(error)}).",
            stacklevel=4,
        )
        return None


def _preprocessing(values, channels):
    """The Preprocessing of a classifier's images."""
    check_channels(channels)
    height, width = values["image_size"]
    if height != width or values.get("pad_to_aspect_ratio"):
        raise ValueError("images are padded, or not square")
    return Preprocessing(
        _mode(values, channels),
        size=height,
        resize=height if values["crop_to_aspect_ratio"] else None,
        interpolation={theirs: ours for ours, theirs in INTERPOLATIONS.items()}[values["interpolation"]],
        channels=channels,
    )


def _mode(values, channels):
    """pixels * scale + offset as (pixels / 255 - mean) / std: a name in MODES, or the Normalization."""
    scale, offset = (
        np.broadcast_to(np.asarray(default if values[name] is None else values[name], "float64"), channels)
        for name, default in (("scale", 1), ("offset", 0))
    )
    if not scale.all():
        raise ValueError("a `scale` is 0")
    std = 1 / (255 * scale)
    mean = -offset * std
    normalization = Normalization(mean=tuple(mean.round(12).tolist()), std=tuple(std.round(12).tolist()))
    return next((name for name, row in MODES.items() if row == normalization), normalization)


def _arguments(config, class_name, annotation, path):
    """The arguments of a serialized object, checked; raises ValueError if it is of another class."""
    try:
        check_known("registered_name", config.get("registered_name"), (f"keras_hub>{class_name}",))
        return checked(config.get("config"), annotation, "config")
    except ValueError as error:
        expected = f"a preset of KerasHub's {class_name} ({error_summary(error)})"
        raise value_error("variant", str(path), expected) from error
