"""Heads of segmenters as rows of layers, from which they are built and counted."""

from dataclasses import dataclass
from typing import Any

from keras_resnet.architecture.heads import HeadLayer
from keras_resnet.architecture.segmenter_spec import SegmenterSpec

DEEPLAB_WIDTH = 256
AUXILIARY_DROPOUT = 0.1
"""Dropout rate of the auxiliary head (torchvision/models/segmentation/fcn.py)."""
SEGMENTER_PREFIXES = ("fcn_", "aspp_", "decoder_", "aux_")
"""Prefixes of the names of the heads' layers."""
CONVOLUTION: dict[str, Any] = {"norm": "batch", "activation": "relu"}


@dataclass(frozen=True)
class PyramidRows:
    """The layers of atrous spatial pyramid pooling (arXiv:1706.05587, fig. 5)."""

    branches: list[HeadLayer]
    """Beside each other: a 1x1 and the dilated 3x3 convolutions."""
    pool: HeadLayer
    """Of the mean of the feature map."""
    project: HeadLayer
    """Of all of these together."""


def last_channels(spec: SegmenterSpec, level: int = -1) -> int:
    """Channels of a level of the backbone's feature maps, by default of the last one."""
    return spec.backbone.levels[level][-1].out_channels


def head_width(spec: SegmenterSpec) -> int:
    """Channels of the layers of the head."""
    return spec.head_width or (max(1, last_channels(spec) // 4) if spec.head == "fcn" else DEEPLAB_WIDTH)


def fcn_rows(spec: SegmenterSpec) -> list[HeadLayer]:
    """The FCN head: a 3x3 convolution, and the classes."""
    return [HeadLayer("fcn_hidden", head_width(spec), 3, **CONVOLUTION), HeadLayer("fcn_logits", spec.classes)]


def auxiliary_rows(spec: SegmenterSpec) -> list[HeadLayer]:
    """The auxiliary head, an FCN head on the level before the last."""
    width = max(1, last_channels(spec, -2) // 4)
    return [HeadLayer("aux_hidden", width, 3, **CONVOLUTION), HeadLayer("aux_logits", spec.classes)]


def pyramid_rows(spec: SegmenterSpec) -> PyramidRows:
    """Atrous spatial pyramid pooling with the dilations of the spec."""
    width = head_width(spec)
    dilated = [
        HeadLayer(f"aspp_branch{number}", width, 3, dilation=dilation, **CONVOLUTION)
        for number, dilation in enumerate(spec.dilations, start=1)
    ]
    return PyramidRows(
        [HeadLayer("aspp_branch0", width, 1, **CONVOLUTION), *dilated],
        HeadLayer("aspp_pool", width, 1, **CONVOLUTION),
        HeadLayer("aspp_project", width, 1, **CONVOLUTION),
    )


def deeplab_rows(spec: SegmenterSpec) -> list[HeadLayer]:
    """What follows the pyramid in DeepLabV3."""
    return [HeadLayer("aspp_hidden", head_width(spec), 3, **CONVOLUTION), HeadLayer("aspp_logits", spec.classes)]


def decoder_rows(spec: SegmenterSpec) -> tuple[HeadLayer, list[HeadLayer]]:
    """The decoder of DeepLabV3+: the layer of the first level, and those that receive it with the enlarged pyramid."""
    width = head_width(spec)
    hidden = [
        HeadLayer(f"decoder_hidden{number}", width, side, **CONVOLUTION)
        for number, side in enumerate(spec.decoder_kernels)
    ]
    skip = HeadLayer("decoder_skip", spec.decoder_width, 1, **CONVOLUTION)
    return skip, [*hidden, HeadLayer("decoder_logits", spec.classes)]


def head_rows(spec: SegmenterSpec) -> list[HeadLayer]:
    """All layers of the heads, in no particular order."""
    rows = auxiliary_rows(spec) if spec.auxiliary else []
    if spec.head == "fcn":
        return rows + fcn_rows(spec)
    pyramid = pyramid_rows(spec)
    rows += [*pyramid.branches, pyramid.pool, pyramid.project]
    if spec.head == "deeplabv3":
        return rows + deeplab_rows(spec)
    skip, others = decoder_rows(spec)
    return [*rows, skip, *others]
