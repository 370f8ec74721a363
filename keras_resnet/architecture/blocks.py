"""Residual blocks: the residual function F, and relu(x + F(x)) or x + F(relu(bn(x))) with it."""

from collections.abc import Callable
from dataclasses import dataclass

from keras import layers

from keras_resnet.architecture.layers import (
    Convolution,
    bn_relu,
    chain,
    conv,
    conv_bn,
    efficient_channel_attention,
    squeeze_excite,
)
from keras_resnet.architecture.shortcuts import shortcut


@dataclass(frozen=True)
class Block:
    """One block of a network as data; `ResNetSpec.stages` lists them all."""

    name: str
    first: bool
    """Whether it is the first block of the network."""
    in_channels: int
    width: int
    """The stage's width: 64, 128, 256, 512 in the paper's networks."""
    filters: int
    """Output channels of F: `width`, or four times that for a bottleneck."""
    out_channels: int
    """Output channels of the block: `filters`, or more if the paths are concatenated."""
    changes_channels: bool
    """Whether x and F(x) differ in their number of channels; always False if the paths are concatenated."""
    downsamples: bool
    """Whether the block halves the resolution, or would without the dilation due to `output_stride`."""
    stride: int
    dilation_in: int
    """Dilation of the convolutions up to and including the strided one."""
    dilation_out: int
    """Dilation of the convolutions after it."""
    drop_path: float
    """Stochastic depth rate."""


def basic(block, spec):
    """F: 3x3, 3x3 (He et al. 2015, fig. 5 left)."""
    return (
        Convolution(block.filters, 3, block.stride, block.dilation_in),
        Convolution(block.filters, 3, 1, block.dilation_out),
    )


def bottleneck(block, spec):
    """F: 1x1 reduce, 3x3, 1x1 expand by 4 (He et al. 2015, fig. 5 right); grouped, it is ResNeXt's (1611.05431)."""
    width = int(block.width * spec.group_width / 64) * spec.groups
    early = spec.stride_on == "1x1"  # v1; v1.5 strides in the 3x3, whose kernel covers every pixel
    first, middle = (block.stride, 1) if early else (1, block.stride)
    dilation = block.dilation_out if early else block.dilation_in
    return (
        Convolution(width, 1, first),
        Convolution(width, 3, middle, dilation, spec.groups),
        Convolution(block.filters, 1),
    )


@dataclass(frozen=True)
class Transform:
    """A residual function F as data."""

    convolutions: Callable[..., tuple[Convolution, ...]]
    """(Block, ResNetSpec) -> its convolutions."""
    expansion: int
    """Its output channels divided by the width of the stage."""


TRANSFORMS = {"basic": Transform(basic, expansion=1), "bottleneck": Transform(bottleneck, expansion=4)}


def stage(blocks, *, spec):
    """One stage: a chain of (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), block.out_channels) blocks."""
    residual_block = _preactivation if spec.preactivation else _postactivation
    return chain(*(residual_block(block, spec) for block in blocks))


def _postactivation(block, spec):
    """x -> relu(x + F(x)) (He et al. 2015, eq. 1)."""
    *rows, last = TRANSFORMS[spec.block].convolutions(block, spec)
    name, gamma = block.name, "zeros" if spec.zero_init_residual else "ones"
    transform = chain(
        *(conv_bn(row, spec=spec, name=f"{name}_{i}") for i, row in enumerate(rows, 1)),
        _dropout(block, spec),
        conv_bn(last, spec=spec, name=f"{name}_{len(rows) + 1}", activation=False, gamma_initializer=gamma),
        *_extras(block, spec),
    )
    merge = _merge(block, spec, name=f"{name}_{spec.merge}")
    out = layers.Activation("relu", name=f"{name}_out")
    return lambda x: out(merge(x, x, transform(x)))


def _preactivation(block, spec):
    """x -> x + F(relu(bn(x))) (He et al. 2016, arXiv:1603.05027, fig. 4 e)."""
    first, *rows, last = TRANSFORMS[spec.block].convolutions(block, spec)
    name, number = block.name, len(rows) + 2
    kernel = "zeros" if spec.zero_init_residual else spec.kernel_initializer
    preact = bn_relu(spec=spec, name=f"{name}_preact")
    transform = chain(
        conv(first, spec=spec, name=f"{name}_1"),
        *(
            chain(bn_relu(spec=spec, name=f"{name}_{i - 1}"), conv(row, spec=spec, name=f"{name}_{i}"))
            for i, row in enumerate(rows, 2)
        ),
        bn_relu(spec=spec, name=f"{name}_{number - 1}"),
        _dropout(block, spec),
        conv(last, spec=spec, name=f"{name}_{number}", bn_follows=False, kernel_initializer=kernel),
        *_extras(block, spec),
    )
    merge = _merge(block, spec, name=f"{name}_out")

    def apply(x):
        activated = preact(x)
        return merge(x, activated, transform(activated))

    return apply


def _dropout(block, spec):
    """Dropout inside F, before its last convolution (Zagoruyko and Komodakis 2016, arXiv:1605.07146, sec. 2.4)."""
    return layers.Dropout(spec.block_dropout, name=f"{block.name}_drop") if spec.block_dropout else None


def _extras(block, spec):
    """Yields the optional layers after F's last convolution."""
    if spec.se_ratio:
        yield squeeze_excite(block.filters, spec=spec, name=block.name)
    if spec.eca:
        yield efficient_channel_attention(block.filters, spec=spec, name=block.name)
    if block.drop_path:  # stochastic depth, arXiv:1603.09382: F is 0 for a fraction of the images
        yield layers.Dropout(block.drop_path, noise_shape=(None, 1, 1, 1), name=f"{block.name}_drop_path")


def _merge(block, spec, *, name):
    """(x, preact, F(x)) -> sum or concatenation of shortcut and F(x); F(x) alone in a plain network."""
    if spec.shortcut is None:
        return lambda x, preact, y: y
    bypass = shortcut(block, spec=spec)
    concat = spec.merge == "concat"
    join = layers.Concatenate(axis=spec.channel_axis, name=name) if concat else layers.Add(name=name)
    return lambda x, preact, y: join([bypass(x, preact), y])
