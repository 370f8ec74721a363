"""What a network costs, read off its specification: no layer is built for it."""

from dataclasses import dataclass

from keras_resnet.architecture.blocks import TRANSFORMS
from keras_resnet.architecture.layers import Convolution, squeeze_excite_width
from keras_resnet.architecture.shortcuts import projection
from keras_resnet.architecture.stems import STEMS


@dataclass
class Complexity:
    """A running sum over layers."""

    parameters: int = 0
    """Trainable parameters."""
    statistics: int = 0
    """Moving means and variances; Keras's `count_params()` is `parameters + statistics`."""
    multiply_adds: int = 0
    """Of convolutions and classifier, for one picture: the paper's "FLOPs"."""

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


def complexity(spec, include_top=True, classes=None, input_shape=None):
    """Parameters and multiply-adds of the network that `spec` describes.

    Args:
        spec: ResNetSpec.
        include_top: whether the classifier counts.
        classes: its number of classes; default 1000, 10 for the CIFAR nets.
        input_shape: (height, width, channels) of one picture; default the network's usual size, in colour.

    Returns:
        A Complexity. Multiply-adds are counted as in He et al. 2015, table 1.
    """
    *size, channels = input_shape or (spec.default_size, spec.default_size, 3)
    total, size = Complexity(), tuple(size)
    channels, size = _stem(spec, channels, size, total)
    for stage in spec.stages:
        for block in stage:
            size = _block(block, spec, size, total)
            channels = block.out_channels
    if spec.preactivation:
        total.batch_norm(channels)
    if include_top:
        total.convolution(Convolution(classes or spec.default_classes, 1), channels, (1, 1), bias=True)
    return total


def _stem(spec, channels, size, total):
    rows = [row for _, row in STEMS[spec.stem].rows(spec)]
    for i, row in enumerate(rows):
        normalised = not (spec.preactivation and i == len(rows) - 1)
        size = total.convolution(row, channels, size, bias=_bias(spec, normalised))
        if normalised:
            total.batch_norm(row.filters)
        channels = row.filters
    if STEMS[spec.stem].pool in ("max", "max_unpadded"):
        size = tuple(-(-side // 2) for side in size)
    return channels, size


def _block(block, spec, size, total):
    """Adds one block; returns the size of the maps that leave it."""
    project = projection(block, spec)
    if project:
        strided = tuple(-(-side // (block.stride // project.stride)) for side in size)  # after the pool, if any
        total.convolution(project, block.in_channels, strided, bias=_bias(spec, not spec.preactivation))
        if not spec.preactivation:
            total.batch_norm(block.filters)
    if spec.preactivation:
        total.batch_norm(block.in_channels)
    channels, rows = block.in_channels, TRANSFORMS[spec.block].convolutions(block, spec)
    for i, row in enumerate(rows, 1):
        normalised = not (spec.preactivation and i == len(rows))
        size = total.convolution(row, channels, size, bias=_bias(spec, normalised))
        if normalised:
            total.batch_norm(row.filters)
        channels = row.filters
    if spec.se_ratio:
        squeezed = squeeze_excite_width(channels, spec.se_ratio)
        total.convolution(Convolution(squeezed, 1), channels, (1, 1), bias=True)
        total.convolution(Convolution(channels, 1), squeezed, (1, 1), bias=True)
    return size


def _bias(spec, normalised):
    """Whether a convolution has a bias: the rule of `layers.conv`."""
    return spec.conv_bias and not (spec.preactivation and normalised)
