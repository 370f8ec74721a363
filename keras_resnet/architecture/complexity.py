"""Parameters and multiply-adds of a network, computed from its ResNetSpec without building it."""

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from keras_resnet.architecture.blocks import TRANSFORMS
from keras_resnet.architecture.layers import Convolution, eca_kernel_size, squeeze_excite_width, uses_bias
from keras_resnet.architecture.shortcuts import projection
from keras_resnet.architecture.stems import MAX_POOLS, STEMS
from keras_resnet.errors import is_integer, value_error


@dataclass(frozen=True)
class Complexity:
    """Parameters and multiply-adds of a network."""

    parameters: int
    """Number of trainable parameters."""
    statistics: int
    """Number of moving means and variances; Keras's `count_params()` is `parameters + statistics`."""
    multiply_adds: int
    """Multiply-adds of the convolutions and the classifier for one image: the paper's "FLOPs"."""


@singledispatch
def complexity(
    spec: Any, include_top: bool = True, classes: int | None = None, input_shape: tuple | None = None
) -> Complexity:
    """Counts the parameters and multiply-adds of a network without building it.

    >>> from keras_resnet import complexity, get_spec
    >>> complexity(get_spec("resnet20"))
    Complexity(parameters=269722, statistics=1376, multiply_adds=40551040)

    Args:
        spec: ResNetSpec, or a DetectorSpec, which only has the argument `input_shape`, (800, 800, 3) by default.
        include_top: whether to count the classifier.
        classes: number of classes; default 1000, or 10 for the CIFAR networks.
        input_shape: (height, width, channels) of one image; default (224, 224, 3), or (32, 32, 3) for the CIFAR ones.

    Returns:
        A Complexity. Multiply-adds are counted as in He et al. 2015, table 1.

    Raises:
        ValueError: for an input shape that is not three positive integers.
    """
    shape = (spec.default_size, spec.default_size, 3) if input_shape is None else tuple(input_shape)
    total = Total(spec)
    *_, (channels, _) = total.feature_maps(spec.stages, check_image_shape(shape))
    if include_top:
        classes = spec.default_classes if classes is None else classes
        total.convolution(Convolution(classes, 1), channels, (1, 1), bias=True)
    return total.result()


def check_image_shape(shape: tuple) -> tuple[int, int, int]:
    """`shape`, or ValueError unless it is (height, width, channels)."""
    if len(shape) != 3 or not all(is_integer(side, 1) for side in shape):
        raise value_error("input_shape", shape, "(height, width, channels), all known")
    return shape


def _strided(size, stride):
    """(height, width) of the maps of a layer with this stride."""
    return tuple(-(-side // stride) for side in size)


class Total:
    """Sums over the layers of a network; each method adds some layers and returns what the next one receives."""

    def __init__(self, spec):
        self.spec, self.parameters, self.statistics, self.multiply_adds = spec, 0, 0, 0

    def result(self):
        """The sums so far."""
        return Complexity(self.parameters, self.statistics, self.multiply_adds)

    def feature_maps(self, groups, shape):
        """The stem and groups of blocks; a list of (channels, (height, width)) of the map after each of the groups."""
        stem = STEMS[self.spec.stem]
        channels, size = self.chain([row for _, row in stem.rows(self.spec)], shape[2], shape[:2])
        if stem.pool in MAX_POOLS:
            size = _strided(size, 2)
        maps = []
        for blocks in groups:
            for block in blocks:
                channels, size = block.out_channels, self.block(block, size)
            maps.append((channels, size))
        if self.spec.preactivation:
            self.batch_norm(channels)
        return maps

    def convolution(self, row, channels, size, bias):
        size = _strided(size, row.stride)
        weights = row.kernel_size**2 * channels * row.filters // row.groups
        self.parameters += weights + (row.filters if bias else 0)
        self.multiply_adds += weights * size[0] * size[1]
        return size

    def batch_norm(self, channels):
        self.parameters += 2 * channels
        self.statistics += 2 * channels

    def chain(self, rows, channels, size):
        """Consecutive convolutions and their batch norms; in pre-activation networks the last one has none."""
        for i, row in enumerate(rows, 1):
            bn_follows = not (self.spec.preactivation and i == len(rows))
            size = self.convolution(row, channels, size, uses_bias(self.spec, bn_follows))
            if bn_follows:
                self.batch_norm(row.filters)
            channels = row.filters
        return channels, size

    def block(self, block, size):
        spec = self.spec
        if project := projection(block, spec):
            pooled = _strided(size, block.stride // project.stride)
            self.convolution(project, block.in_channels, pooled, uses_bias(spec, bn_follows=not spec.preactivation))
        if project and not spec.preactivation:
            self.batch_norm(block.filters)
        if spec.preactivation:
            self.batch_norm(block.in_channels)
        channels, size = self.chain(TRANSFORMS[spec.block].convolutions(block, spec), block.in_channels, size)
        if spec.se_ratio:
            squeezed = squeeze_excite_width(channels, spec.se_ratio)
            self.convolution(Convolution(squeezed, 1), channels, (1, 1), bias=True)
            self.convolution(Convolution(channels, 1), squeezed, (1, 1), bias=True)
        if spec.eca:
            self.parameters += eca_kernel_size(channels)
            self.multiply_adds += eca_kernel_size(channels) * channels
        return size
