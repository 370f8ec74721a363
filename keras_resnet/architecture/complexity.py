"""Parameters and multiply-adds of a network, computed from its ResNetSpec without building it."""

from dataclasses import dataclass

from keras_resnet.architecture.blocks import TRANSFORMS
from keras_resnet.architecture.layers import Convolution, squeeze_excite_width, uses_bias
from keras_resnet.architecture.shortcuts import projection
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.architecture.stems import MAX_POOLS, STEMS
from keras_resnet.errors import is_integer


@dataclass(frozen=True)
class Complexity:
    """Parameters and multiply-adds of a network."""

    parameters: int
    """Number of trainable parameters."""
    statistics: int
    """Number of moving means and variances; Keras's `count_params()` is `parameters + statistics`."""
    multiply_adds: int
    """Multiply-adds of the convolutions and the classifier for one image: the paper's "FLOPs"."""


def complexity(
    spec: ResNetSpec, include_top: bool = True, classes: int | None = None, input_shape: tuple | None = None
) -> Complexity:
    """Counts the parameters and multiply-adds of a network without building it.

    >>> from keras_resnet import complexity, get_spec
    >>> complexity(get_spec("resnet20"))
    Complexity(parameters=269722, statistics=1376, multiply_adds=40551040)

    Args:
        spec: ResNetSpec.
        include_top: whether to count the classifier.
        classes: number of classes; default 1000, or 10 for the CIFAR networks.
        input_shape: (height, width, channels) of one image; default (224, 224, 3), or (32, 32, 3) for the CIFAR ones.

    Returns:
        A Complexity. Multiply-adds are counted as in He et al. 2015, table 1.

    Raises:
        ValueError: for an input shape that is not three positive integers.
    """
    shape = (spec.default_size, spec.default_size, 3) if input_shape is None else tuple(input_shape)
    if len(shape) != 3 or not all(is_integer(side, 1) for side in shape):
        raise ValueError(
            f"`input_shape` should be (height, width, channels), all known. Received: input_shape={input_shape}"
        )
    total = _Sum()
    channels, size = _stem(spec, shape[2], shape[:2], total)
    for stage in spec.stages:
        for block in stage:
            size = _block(block, spec, size, total)
            channels = block.out_channels
    if spec.preactivation:
        total.batch_norm(channels)
    if include_top:
        classes = spec.default_classes if classes is None else classes
        total.convolution(Convolution(classes, 1), channels, (1, 1), bias=True)
    return Complexity(total.parameters, total.statistics, total.multiply_adds)


class _Sum:
    """Running sums for a Complexity."""

    def __init__(self):
        self.parameters = self.statistics = self.multiply_adds = 0

    def convolution(self, row, channels, size, bias):
        """Adds one convolution with `channels` input channels on maps of `size`; returns the size of its output."""
        size = tuple(-(-side // row.stride) for side in size)
        weights = row.kernel_size**2 * channels * row.filters // row.groups
        self.parameters += weights + (row.filters if bias else 0)
        self.multiply_adds += weights * size[0] * size[1]
        return size

    def batch_norm(self, channels):
        self.parameters += 2 * channels
        self.statistics += 2 * channels


def _stem(spec, channels, size, total):
    """Adds the stem; returns the channels and size of its output."""
    rows = [row for _, row in STEMS[spec.stem].rows(spec)]
    channels, size = _chain(rows, channels, size, spec, total)
    if STEMS[spec.stem].pool in MAX_POOLS:
        size = tuple(-(-side // 2) for side in size)
    return channels, size


def _block(block, spec, size, total):
    """Adds one block; returns the size of its output."""
    project = projection(block, spec)
    if project:
        pooled = tuple(-(-side // (block.stride // project.stride)) for side in size)
        total.convolution(project, block.in_channels, pooled, uses_bias(spec, bn_follows=not spec.preactivation))
        if not spec.preactivation:
            total.batch_norm(block.filters)
    if spec.preactivation:
        total.batch_norm(block.in_channels)
    channels, size = _chain(TRANSFORMS[spec.block].convolutions(block, spec), block.in_channels, size, spec, total)
    if spec.se_ratio:
        squeezed = squeeze_excite_width(channels, spec.se_ratio)
        total.convolution(Convolution(squeezed, 1), channels, (1, 1), bias=True)
        total.convolution(Convolution(channels, 1), squeezed, (1, 1), bias=True)
    return size


def _chain(rows, channels, size, spec, total):
    """Adds consecutive convolutions and their batch norms; in pre-activation networks the last one has none."""
    for i, row in enumerate(rows, 1):
        bn_follows = not (spec.preactivation and i == len(rows))
        size = total.convolution(row, channels, size, uses_bias(spec, bn_follows))
        if bn_follows:
            total.batch_norm(row.filters)
        channels = row.filters
    return channels, size
