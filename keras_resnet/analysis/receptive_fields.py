"""Receptive fields of residual networks in closed form (Araujo, Norris and Sim, distill.pub 2019)."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from keras_resnet.architecture.blocks import TRANSFORMS
from keras_resnet.architecture.detector import backbone_spec
from keras_resnet.architecture.detector_spec import DetectorSpec, backbone_of
from keras_resnet.architecture.layers import Convolution
from keras_resnet.architecture.localizer_spec import LocalizerSpec
from keras_resnet.architecture.segmenter import segmenter_backbone
from keras_resnet.architecture.segmenter_spec import SegmenterSpec
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.architecture.stems import MAX_POOLS, STEMS
from keras_resnet.errors import value_error
from keras_resnet.files import figure_file

_BACKBONES: dict[type, Callable[[Any], ResNetSpec]] = {
    DetectorSpec: backbone_spec,
    SegmenterSpec: segmenter_backbone,
}
"""Kind of spec -> function of such a spec that returns the residual network, with its dilations."""


@dataclass(frozen=True)
class ReceptiveField:
    """The input pixels that one pixel of a feature map depends on.

    >>> import keras_resnet
    >>> keras_resnet.analysis.receptive_fields(keras_resnet.get_spec("resnet20"))["stem"]
    ReceptiveField(size=3, stride=1)
    """

    size: int = 1
    """Side of the square of input pixels, away from the border."""
    stride: int = 1
    """Distance in input pixels between the fields of neighboring pixels of the map."""

    def after(self, rows: Iterable[Convolution]) -> "ReceptiveField":
        """The receptive field after a sequence of convolutions or pools."""
        field = self
        for row in rows:
            reach = row.dilation * (row.kernel_size - 1) * field.stride
            field = ReceptiveField(field.size + reach, field.stride * row.stride)
        return field


def receptive_fields(spec: ResNetSpec | DetectorSpec | LocalizerSpec | SegmenterSpec) -> dict[str, ReceptiveField]:
    """The receptive field of every endpoint of a network.

    >>> import keras_resnet
    >>> keras_resnet.analysis.receptive_fields(keras_resnet.get_spec("resnet50"))["stage4"]
    ReceptiveField(size=483, stride=32)

    Args:
        spec: ResNetSpec; of a detector's, localizer's or segmenter's spec, its residual network.

    Returns:
        {"stem": ReceptiveField, "stage1": ReceptiveField, ...}, with the names of `keras_resnet.endpoints`.
        Squeeze-excite gates, which depend on the whole image, are ignored.

    Raises:
        ValueError: if `spec` is none of these.
    """
    given, spec = spec, _BACKBONES.get(type(spec), backbone_of)(spec)
    if not isinstance(spec, ResNetSpec):
        raise value_error("spec", given, "a ResNetSpec, or the spec of another network, such as `get_spec('resnet50')`")
    stem = STEMS[spec.stem]
    field = ReceptiveField().after(row for _, row in stem.rows(spec))
    if stem.pool in MAX_POOLS:
        field = field.after([Convolution(1, 3, 2)])  # a pool has the same receptive field as a convolution
    fields = {"stem": field}
    for number, blocks in enumerate(spec.stages, 1):
        for block in blocks:
            # the field of F includes that of every shortcut, also of one that pools 2x2
            field = field.after(TRANSFORMS[spec.block].convolutions(block, spec))
        fields[f"stage{number}"] = field
    return fields


def plot_receptive_fields(
    fields: Mapping[str, ReceptiveField], path: str | os.PathLike, side: int = 224, title: str = ""
) -> None:
    """Plot receptive fields as squares around the center of an image.

    >>> import keras_resnet
    >>> fields = keras_resnet.analysis.receptive_fields(keras_resnet.get_spec("resnet18"))
    >>> keras_resnet.analysis.plot_receptive_fields(fields, "fields.png")

    Args:
        fields: {endpoint: ReceptiveField}.
        path: PNG file to write.
        side: side of the image in pixels; it is plotted as a gray square.
        title: title of the figure.

    Raises:
        ValueError: if `fields` is empty.
    """
    from matplotlib.patches import Rectangle

    if not fields:
        raise value_error("fields", fields, "{endpoint: ReceptiveField}, not empty")
    largest = max(side, *(field.size for field in fields.values()))
    with figure_file(path, figsize=(6, 6)) as figure:
        axes = figure.add_subplot(title=title, aspect="equal", xlabel="pixels")
        axes.add_patch(Rectangle((-side / 2, -side / 2), side, side, color="0.85", label=f"image: {side}"))
        for i, (name, field) in enumerate(fields.items()):
            box = Rectangle((-field.size / 2,) * 2, field.size, field.size, fill=False, linewidth=2, color=f"C{i}")
            box.set_label(f"{name}: {field.size} (stride {field.stride})")
            axes.add_patch(box)
        axes.set(xlim=(-0.55 * largest, 0.55 * largest), ylim=(-0.55 * largest, 0.55 * largest))
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
