"""The specification: one frozen dataclass that describes any member of the family."""

import math
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import accumulate, pairwise

import keras

from keras_resnet.architecture.blocks import TRANSFORMS, Block
from keras_resnet.architecture.shortcuts import SHORTCUTS
from keras_resnet.architecture.stems import STEMS
from keras_resnet.errors import is_integer, is_number, unknown_name_error
from keras_resnet.files import read_json, write_json

_CHOICES = {
    "block": tuple(TRANSFORMS),
    "stem": tuple(STEMS),
    "shortcut": tuple(SHORTCUTS),
    "stride_on": ("1x1", "3x3"),
    "downsample_at": ("first", "last"),
    "merge": ("add", "concat"),
    "data_format": ("channels_last", "channels_first", None),
}
_COUNTS = ("stem_width", "groups", "group_width", "output_stride")
_SHARES = ("se_ratio", "drop_path", "dropout", "block_dropout", "bn_momentum")
_SWITCHES = ("preactivation", "conv_bias", "zero_init_residual", "explicit_padding")


@dataclass(frozen=True)
class ResNetSpec:
    """What a residual network is, as values; `dataclasses.replace` makes a neighbour of it.

    Raises:
        ValueError: on construction, if no network fits the description; the message says which value and why.
    """

    block: str = "bottleneck"
    """F: "basic" (3x3, 3x3) or "bottleneck" (1x1, 3x3, 1x1)."""
    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks a stage."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of a stage; a bottleneck returns four times as many."""
    stem: str = "imagenet"
    """A name in STEMS."""
    stem_width: int = 64
    """Channels that leave the stem."""
    shortcut: str | None = "B"
    """A name in SHORTCUTS; None for a plain net."""
    preactivation: bool = False
    """Whether norm and ReLU come before each convolution (arXiv:1603.05027) rather than after it."""
    stride_on: str = "3x3"
    """The strided convolution of a bottleneck: "1x1" (the paper, v1) or "3x3" (v1.5)."""
    downsample_at: str = "first"
    """The strided block: "first" of a stage, or "last" of the stage before it (keras.applications' V2)."""
    groups: int = 1
    """Groups of a bottleneck's 3x3 (ResNeXt's cardinality)."""
    group_width: int = 64
    """Channels a group where the stage is 64 wide; 128 in one group is Wide ResNet-50-2."""
    se_ratio: float = 0.0
    """Width of the squeeze-excite layer as a share of the block's channels; 0 for none."""
    conv_bias: bool = False
    """Biases in every convolution; in a pre-activation net only where no batch norm follows directly."""
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    zero_init_residual: bool = False
    """Whether every block starts as the identity: F's last scale (or kernel) is zero (arXiv:1706.02677)."""
    drop_path: float = 0.0
    """Stochastic depth (arXiv:1603.09382): the last block's rate; linear from 0 at the first block, as in timm."""
    dropout: float = 0.0
    """Dropout rate in front of the classifier."""
    block_dropout: float = 0.0
    """Dropout rate inside every block (Wide ResNets, arXiv:1605.07146)."""
    merge: str = "add"
    """How a block joins its paths: "add" (the paper), or "concat": it returns x and F(x) side by side, so that every
    block adds its channels to those that came in and a shortcut only has to match resolutions (arXiv:1608.06993)."""
    output_stride: int = 32
    """Input pixels for one output pixel at most; stages that would exceed it are dilated instead, same weights."""
    explicit_padding: bool = False
    """A padding layer in front of every 3x3, as in keras.applications' V2; strided ones always have it."""
    kernel_initializer: str = "he_normal"
    """A Keras initializer; this one is He et al., arXiv:1502.01852."""
    data_format: str | None = None
    """"channels_last", "channels_first", or None for Keras's configured one."""

    def __post_init__(self):
        for name in ("depths", "widths"):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)):
                raise ValueError(f"`{name}` should be a tuple of integers, one a stage. Received: {name}={value!r}")
            object.__setattr__(self, name, tuple(value))
        self._check_values()
        self._check_together()

    def _check_values(self):
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown_name_error(name, getattr(self, name), choices)
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "True or False")
        for name in _COUNTS:
            if not is_integer(getattr(self, name), 1):
                self._refuse(name, "a positive integer")
        for name in ("depths", "widths"):
            if not getattr(self, name) or not all(is_integer(count, 1) for count in getattr(self, name)):
                self._refuse(name, "a tuple of positive integers, one a stage")
        for name in _SHARES:
            if not (is_number(getattr(self, name)) and 0 <= getattr(self, name) < 1):
                self._refuse(name, "a number in [0, 1)")
        try:
            keras.initializers.get(self.kernel_initializer)
        except (TypeError, ValueError):
            self._refuse("kernel_initializer", "a Keras initializer")
        if not (is_number(self.bn_epsilon) and 0 < self.bn_epsilon < math.inf):
            self._refuse("bn_epsilon", "a positive number")

    def _check_together(self):
        if len(self.depths) != len(self.widths):
            self._refuse("depths", f"as long as `widths` ({len(self.widths)} stages)")
        stride = STEMS[self.stem].stride
        if self.output_stride < stride or self.output_stride & (self.output_stride - 1):
            self._refuse("output_stride", f"a power of two, at least the stem's stride of {stride}")
        if any(self.stem_width * share % 1 for *_, share in STEMS[self.stem].convolutions):
            self._refuse("stem_width", f"even for the stem {self.stem!r}")
        if self.block == "basic" and (self.groups, self.group_width) != (1, 64):
            self._refuse("groups", "1, and `group_width` 64, for basic blocks: only a bottleneck's 3x3 is grouped")
        if any(int(width * self.group_width / 64) < 1 for width in self.widths):
            self._refuse("group_width", f"wide enough for a channel a group in stages of {min(self.widths)}")
        if self.shortcut is None and self.merge == "concat":
            self._refuse("merge", '"add" for a plain net, which has no second path')
        shrinks = any(block.filters < block.in_channels for stage in self.stages for block in stage)
        if self.shortcut == "A" and self.merge == "add" and shrinks:
            self._refuse("widths", "growing from the stem on for shortcut A, which can add channels but not drop them")

    def _refuse(self, name, expected):
        raise ValueError(f"`{name}` should be {expected}. Received: {name}={getattr(self, name)!r}")

    @cached_property
    def stages(self):
        """The blocks, stage by stage: a tuple of tuples of `Block`."""
        blocks, channels, stride, dilation = [], self.stem_width, STEMS[self.stem].stride, 1
        for stage, depth in enumerate(self.depths):
            for position in range(depth):
                downsamples = self._downsamples(stage, position)
                dilates = downsamples and stride * 2 > self.output_stride
                block = self._block(stage, position, len(blocks), channels, downsamples, dilates, dilation)
                blocks.append(block)
                channels, stride, dilation = block.out_channels, stride * block.stride, block.dilation_out
        ends = tuple(accumulate(self.depths, initial=0))
        return tuple(tuple(blocks[start:end]) for start, end in pairwise(ends))

    def _downsamples(self, stage, position):
        if self.downsample_at == "first":
            return stage > 0 and position == 0
        return stage < len(self.depths) - 1 and position == self.depths[stage] - 1

    def _block(self, stage, position, index, in_channels, downsamples, dilates, dilation):
        width = self.widths[stage]
        filters = width * TRANSFORMS[self.block].expansion
        projects = self.shortcut and SHORTCUTS[self.shortcut].project == "always"
        concatenated = filters + (filters if projects else in_channels)
        return Block(
            name=f"conv{stage + 2}_block{position + 1}",
            first=index == 0,
            in_channels=in_channels,
            width=width,
            filters=filters,
            out_channels=concatenated if self.merge == "concat" else filters,
            changes_channels=self.merge == "add" and in_channels != filters,
            downsamples=downsamples,
            stride=2 if downsamples and not dilates else 1,
            dilation_in=dilation,
            dilation_out=dilation * (2 if dilates else 1),
            drop_path=self.drop_path * index / max(1, sum(self.depths) - 1),
        )

    @property
    def depth(self):
        """The paper's depth: weighted layers on the longest path, the stem as one (50, 56, 110, ...).

        Projections do not count. Wide ResNets are named after another count, of all convolutions: WRN-28-10 has 26.
        """
        return 2 + sum(
            len(TRANSFORMS[self.block].convolutions(block, self)) for stage in self.stages for block in stage
        )

    @property
    def stride(self):
        """Input pixels for one pixel of the last feature map, along each side."""
        return STEMS[self.stem].stride * math.prod(block.stride for stage in self.stages for block in stage)

    @property
    def default_size(self):
        """Side of the images the network was designed for, in pixels."""
        return STEMS[self.stem].size

    @property
    def default_classes(self):
        """Classes of the data set the network was designed for."""
        return STEMS[self.stem].classes

    @property
    def minimum_size(self):
        """Smallest side of an image, in pixels: 32 as in keras.applications, 8 for the CIFAR nets."""
        return STEMS[self.stem].minimum_size

    @property
    def channel_axis(self):
        """Axis of the channels in a batch: 3, or 1 for "channels_first"."""
        return 1 if (self.data_format or keras.config.image_data_format()) == "channels_first" else 3

    def to_config(self):
        """The values as JSON can hold them; `ResNetSpec(**config)` is the way back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def write_spec(spec, path):
    """Writes a ResNetSpec as a JSON file, for `read_spec` and `keras-resnet train --spec`."""
    write_json(spec.to_config(), path)


def read_spec(path):
    """The ResNetSpec in a JSON file that `write_spec` wrote.

    Raises:
        ValueError: if the file is not a JSON object with a valid value for each field. OSError: if it cannot be read.
    """
    config, known = read_json(path), sorted(field.name for field in fields(ResNetSpec))
    expected = f"Expected a ResNetSpec as JSON: a value for each of its fields. Received: {path}"
    if not isinstance(config, dict):
        raise ValueError(expected)
    for name in config:
        if name not in known:
            raise unknown_name_error("spec", name, known, f"fields of a ResNetSpec, in {path}")
    if missing := [name for name in known if name not in config]:
        raise ValueError(f"{expected} without {missing}")
    return ResNetSpec(**config)
