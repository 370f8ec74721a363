"""What a network costs, read off its specification: no layer is built for it."""

from dataclasses import dataclass

from keras_resnet.architecture.blocks import TRANSFORMS
from keras_resnet.architecture.layers import Convolution, squeeze_excite_width, uses_bias
from keras_resnet.architecture.shortcuts import projection
from keras_resnet.architecture.stems import MAX_POOLS, STEMS
from keras_resnet.errors import is_integer


@dataclass(frozen=True)
class Complexity:
    """Sums over the layers of a network."""

    parameters: int
    """Trainable parameters."""
    statistics: int
    """Moving means and variances; Keras's `count_params()` is `parameters + statistics`."""
    multiply_adds: int
    """Of convolutions and classifier, for one image: the paper's "FLOPs"."""


def complexity(spec, include_top=True, classes=None, input_shape=None):
    """Parameters and multiply-adds of the network that `spec` describes.

    Args:
        spec: ResNetSpec.
        include_top: whether the classifier counts.
        classes: its number of classes; default the spec's usual one, 1000, or 10 for the CIFAR nets.
        input_shape: (height, width, channels) of one image; default the spec's usual size, in colour.

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
    """A Complexity in the making."""

    def __init__(self):
        self.parameters = self.statistics = self.multiply_adds = 0

    def convolution(self, row, channels, size, bias):
        """Adds one convolution of `channels` inputs on maps of `size`; returns the size of its outputs."""
        size = tuple(-(-side // row.stride) for side in size)
        weights = row.kernel_size**2 * channels * row.filters // row.groups
        self.parameters += weights + (row.filters if bias else 0)
        self.multiply_adds += weights * size[0] * size[1]
        return size

    def batch_norm(self, channels):
        self.parameters += 2 * channels
        self.statistics += 2 * channels


def _stem(spec, channels, size, total):
    """Adds the stem; returns channels and size of what leaves it."""
    rows = [row for _, row in STEMS[spec.stem].rows(spec)]
    channels, size = _chain(rows, channels, size, spec, total)
    if STEMS[spec.stem].pool in MAX_POOLS:
        size = tuple(-(-side // 2) for side in size)
    return channels, size


def _block(block, spec, size, total):
    """Adds one block; returns the size of the maps that leave it."""
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
    """Adds convolutions that follow each other, each with its batch norm; a pre-activation net's last has none."""
    for i, row in enumerate(rows, 1):
        bn_follows = not (spec.preactivation and i == len(rows))
        size = total.convolution(row, channels, size, uses_bias(spec, bn_follows))
        if bn_follows:
            total.batch_norm(row.filters)
        channels = row.filters
    return channels, size
