"""ResNetSpec: one frozen dataclass that describes any network of the family."""

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property
from itertools import pairwise
from typing import Annotated, Any

import keras

from keras_resnet.architecture.blocks import TRANSFORMS, Block
from keras_resnet.architecture.shortcuts import SHORTCUTS
from keras_resnet.architecture.stems import STEMS
from keras_resnet.errors import check_known, value_error
from keras_resnet.files import read_json, write_json
from keras_resnet.schema import Range, check_fields, checked

MAX_BLOCKS = 2000
"""Largest number of blocks; ResNet-1202 has 600."""
MAX_STAGES = 8
MAX_CHANNELS = 2**16
"""Largest width of a stage, of the stem and of a group, and largest number of groups."""
Count = Annotated[int, Range(1, MAX_CHANNELS)]
Fraction = Annotated[float, Range(0, 1, open_end=True)]


@cache
def _is_initializer(name):
    """Whether a name is that of an initializer of kernels; cached: creating one advances Python's random state."""
    try:
        found = keras.initializers.get(name)
    except Exception:  # of the class with this name, which may need arguments
        return False
    others = (keras.Initializer, keras.initializers.IdentityInitializer, keras.initializers.STFT)
    return isinstance(found, keras.Initializer) and type(found) not in others


_CHOICES = {
    "block": tuple(TRANSFORMS),
    "stem": tuple(STEMS),
    "shortcut": tuple(SHORTCUTS),
    "stride_on": ("1x1", "3x3"),
    "downsample_at": ("first", "last"),
    "merge": ("add", "concat"),
    "data_format": ("channels_last", "channels_first", None),
}


_LATER_FIELDS = ("eca",)
"""Fields that files of earlier versions do not have; their defaults are the networks of these versions."""


@dataclass(frozen=True)
class ResNetSpec:
    """A residual network as data.

    >>> from dataclasses import replace
    >>> import keras_resnet
    >>> spec = replace(keras_resnet.get_spec("resnet50"), stem="deep", output_stride=16)
    >>> spec.depth, spec.stride, spec.widths
    (50, 16, (64, 128, 256, 512))
    >>> model = keras_resnet.build(spec, include_top=False)

    Raises:
        ValueError: on construction, for a value that is invalid, or that other values exclude.
    """

    block: str = "bottleneck"
    """Residual function: "basic" (3x3, 3x3) or "bottleneck" (1x1, 3x3, 1x1)."""
    depths: tuple[Annotated[int, Range(1, MAX_BLOCKS)], ...] = (3, 4, 6, 3)
    """Number of blocks in each stage."""
    widths: tuple[Count, ...] = (64, 128, 256, 512)
    """Width of each stage in channels; bottleneck blocks output four times as many."""
    stem: str = "imagenet"
    """A name in STEMS."""
    stem_width: Count = 64
    """Output channels of the stem."""
    shortcut: str | None = "B"
    """A name in SHORTCUTS; None for a plain network."""
    preactivation: bool = False
    """Whether batch norm and ReLU precede each convolution (arXiv:1603.05027) instead of following it."""
    stride_on: str = "3x3"
    """Which convolution of a bottleneck is strided: "1x1" (the paper, v1) or "3x3" (v1.5)."""
    downsample_at: str = "first"
    """Which block is strided: the "first" of a stage, or the "last" of the stage before (keras.applications' V2)."""
    groups: Count = 1
    """Groups of a bottleneck's 3x3 convolution (ResNeXt's cardinality)."""
    group_width: Count = 64
    """Channels in each group of a stage of width 64; one group of 128 is Wide ResNet-50-2."""
    se_ratio: Fraction = 0.0
    """Width of the squeeze-excite layers as a fraction of the block's channels; 0 for none."""
    eca: bool = False
    """Whether efficient channel attention (arXiv:1910.03151) follows F's last convolution, without squeeze-excite."""
    conv_bias: bool = False
    """Whether convolutions have biases; in pre-activation networks only those not followed by a batch norm."""
    bn_epsilon: Annotated[float, Range(0, 1)] = 1e-5
    """Added to the variance by batch norm."""
    bn_momentum: Fraction = 0.9
    """Momentum of the moving means and variances."""
    zero_init_residual: bool = False
    """Whether each block is initialized as the identity: F's last scale, or kernel, is zero (arXiv:1706.02677)."""
    drop_path: Fraction = 0.0
    """Stochastic depth (arXiv:1603.09382): rate of the last block, growing linearly from 0 at the first, as in timm."""
    dropout: Fraction = 0.0
    """Dropout rate before the classifier."""
    block_dropout: Fraction = 0.0
    """Dropout rate inside each block (Wide ResNets, arXiv:1605.07146)."""
    merge: str = "add"
    """How a block combines x and F(x): "add" (the paper), or "concat" along the channels, so that each block appends
    its channels to its input (arXiv:1608.06993)."""
    output_stride: Count = 32
    """Largest total stride; blocks that would exceed it are dilated instead, with the same weights."""
    explicit_padding: bool = False
    """Whether every 3x3 convolution has a padding layer, as in keras.applications' V2; strided ones always do."""
    kernel_initializer: Callable[..., Any] | str = "he_normal"
    """Name of a Keras initializer; the default is that of He et al., arXiv:1502.01852."""
    data_format: str | None = None
    """"channels_last", "channels_first", or None for Keras's configured one."""

    def __post_init__(self):
        check_fields(self)
        for name, choices in _CHOICES.items():
            check_known(name, getattr(self, name), choices)
        if isinstance(self.kernel_initializer, str) and not _is_initializer(self.kernel_initializer):
            self._raise("kernel_initializer", "the name of a Keras initializer of kernels")
        self._check_together()

    def _check_together(self):
        if not 1 <= len(self.depths) <= MAX_STAGES or sum(self.depths) > MAX_BLOCKS:
            self._raise("depths", f"the blocks of 1 to {MAX_STAGES} stages, at most {MAX_BLOCKS} together")
        if len(self.depths) != len(self.widths):
            self._raise("depths", f"as long as `widths` ({len(self.widths)} stages)")
        stride = STEMS[self.stem].stride
        if self.output_stride < stride or self.output_stride & (self.output_stride - 1):
            self._raise("output_stride", f"a power of two, at least the stem's stride of {stride}")
        if any(self.stem_width * fraction % 1 for *_, fraction in STEMS[self.stem].convolutions):
            self._raise("stem_width", f"even for the stem {self.stem!r}")
        if self.block == "basic" and (self.groups, self.group_width) != (1, 64):
            self._raise("groups", "1, and `group_width` 64, for basic blocks: only a bottleneck's 3x3 is grouped")
        if self.eca and self.se_ratio:
            self._raise("eca", "False with squeeze-excite (`se_ratio`)")
        if any(int(width * self.group_width / 64) < 1 for width in self.widths):
            self._raise("group_width", f"at least one channel per group in a stage of width {min(self.widths)}")
        if self.shortcut is None and self.merge == "concat":
            self._raise("merge", '"add" for a plain network, which has no shortcut')
        shrinks = any(block.filters < block.in_channels for stage in self.stages for block in stage)
        if self.shortcut == "A" and self.merge == "add" and shrinks:
            self._raise(
                "widths", "non-decreasing from the stem on for shortcut A, which can add channels but not remove them"
            )

    def _raise(self, name, expected):
        raise value_error(name, getattr(self, name), expected)

    @cached_property
    def stages(self) -> tuple[tuple[Block, ...], ...]:
        """The blocks of each stage."""
        stages, index, stride, dilation, channels = [], 0, STEMS[self.stem].stride, 1, self.stem_width
        shortcut = SHORTCUTS[self.shortcut]
        projects = shortcut is not None and shortcut.project == "always"
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            blocks = []
            for position in range(depth):
                if self.downsample_at == "first":
                    downsamples = stage > 0 and position == 0
                else:
                    downsamples = stage < len(self.depths) - 1 and position == depth - 1
                dilates = downsamples and stride * 2 > self.output_stride
                filters = width * TRANSFORMS[self.block].expansion
                concatenated = filters + (filters if projects else channels)
                block = Block(
                    name=f"conv{stage + 2}_block{position + 1}",
                    first=index == 0,
                    in_channels=channels,
                    width=width,
                    filters=filters,
                    out_channels=concatenated if self.merge == "concat" else filters,
                    changes_channels=self.merge == "add" and channels != filters,
                    downsamples=downsamples,
                    stride=2 if downsamples and not dilates else 1,
                    dilation_in=dilation,
                    dilation_out=dilation * (2 if dilates else 1),
                    drop_path=self.drop_path * index / max(1, sum(self.depths) - 1),
                )
                blocks.append(block)
                index, stride, dilation = index + 1, stride * block.stride, block.dilation_out
                channels = block.out_channels
            stages.append(tuple(blocks))
        return tuple(stages)

    @property
    def levels(self) -> tuple[tuple[Block, ...], ...]:
        """The blocks from one downsampling to the next: the stages, unless their last blocks downsample."""
        blocks = [block for stage in self.stages for block in stage]
        starts = [index for index, block in enumerate(blocks) if block.downsamples]
        return tuple(tuple(blocks[start:end]) for start, end in pairwise([0, *starts, len(blocks)]))

    @property
    def depth(self) -> int:
        """Depth as the papers count it: convolutions on the longest path plus the classifier, the stem as one.

        Projections are not counted. The names of Wide ResNets count all convolutions: WRN-28-10 has a depth of 26.
        """
        return 2 + sum(
            len(TRANSFORMS[self.block].convolutions(block, self)) for stage in self.stages for block in stage
        )

    @property
    def stride(self) -> int:
        """Total stride: the factor by which the last feature map is smaller than the image, along each side."""
        return STEMS[self.stem].stride * math.prod(block.stride for stage in self.stages for block in stage)

    @property
    def default_size(self) -> int:
        """Side of the images the network was designed for, in pixels."""
        return STEMS[self.stem].size

    @property
    def default_resize(self) -> int:
        """Shorter side in testing before the central crop, in pixels; `default_size` for networks of small images."""
        return STEMS[self.stem].resize

    @property
    def default_classes(self) -> int:
        """Number of classes of the dataset the network was designed for."""
        return STEMS[self.stem].classes

    @property
    def minimum_size(self) -> int:
        """Smallest side of an image, in pixels: 32 as in keras.applications, 8 for the CIFAR networks."""
        return STEMS[self.stem].minimum_size

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in a batch: 3, or 1 for "channels_first"."""
        return 1 if (self.data_format or keras.config.image_data_format()) == "channels_first" else 3

    def to_config(self) -> dict:
        """The fields as JSON values; `ResNetSpec(**config)` restores the spec."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def write_spec(spec: ResNetSpec, path: str | os.PathLike) -> None:
    """Writes a ResNetSpec as a JSON file, for `read_spec` and `keras-resnet train --spec`."""
    write_json(spec.to_config(), path)


def spec_from_config(config: Any, cls: Any = ResNetSpec) -> Any:
    """The spec with the values that `to_config` returned, read from a file.

    Args:
        config: JSON values.
        cls: the frozen dataclass of the spec.

    Raises:
        ValueError: for values that are not those of a spec, an unknown field, and a missing one: with a default in its
            place, the spec could be that of another network.
    """
    config = checked(config, dict[str, Any], "spec")
    names = [field.name for field in fields(cls)]
    for name in config:
        check_known("spec", name, names, f"an object with fields of a {cls.__name__}")
    if missing := [name for name in names if name not in config and name not in _LATER_FIELDS]:
        raise value_error("spec", config, f"an object with a value for each field, not without {missing}")
    return checked(config, cls, "spec")


def read_spec(path: str | os.PathLike) -> ResNetSpec:
    """The ResNetSpec in a JSON file that `write_spec` wrote.

    Raises:
        ValueError: if the file is not a JSON object with a valid value for each field. OSError: if it cannot be read.
    """
    config = read_json(path)
    try:
        return spec_from_config(config)
    except ValueError as error:
        raise ValueError(f"Expected a ResNetSpec as JSON ({error}). Received: {path}") from error
