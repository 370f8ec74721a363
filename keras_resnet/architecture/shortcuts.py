"""SHORTCUTS: the connections that bypass the residual function F (He et al. 2015, sec. 3.3 and 4.1)."""

from dataclasses import dataclass

from keras import layers

from keras_resnet.architecture.layers import Convolution, chain, conv, conv_bn


@dataclass(frozen=True)
class Shortcut:
    """A shortcut as data."""

    project: str
    """When it contains a 1x1 convolution: "never", "on_change" (of the number of channels), "first" (and in the first
    block), or "always"."""
    pool: bool = False
    """Whether 2x2 average pooling halves the resolution, instead of taking every other pixel."""


SHORTCUTS = {
    "A": Shortcut("never"),  # identity; additional channels are zero: He et al. 2015, sec. 4.1
    "B": Shortcut("on_change"),
    "C": Shortcut("always"),
    "pooled": Shortcut("on_change", pool=True),  # arXiv:1812.01187, fig. 2 c (ResNet-D)
    "pooled_first": Shortcut("first", pool=True),  # ResNet-vd: keras_hub/src/models/resnet/resnet_backbone.py
    None: None,  # a plain network
}


def projection(block, spec) -> Convolution | None:
    """The 1x1 convolution in the shortcut of `block`, or None."""
    kind = SHORTCUTS[spec.shortcut]
    needed = block.changes_channels or (kind is not None and kind.project == "first" and block.first)
    if kind is None or kind.project == "never" or (kind.project != "always" and not needed):
        return None
    return Convolution(block.filters, 1, 1 if kind.pool else block.stride)


def shortcut(block, *, spec):
    """(x, preact) -> the shortcut: (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), C or filters).

    A projection is applied to `preact`: relu(bn(x)) in pre-activation networks, otherwise x. An identity is applied to
    x, except in the first block of a pre-activation network, whose activation precedes both paths (He et al. 2016,
    appendix).
    """
    kind, row, name = SHORTCUTS[spec.shortcut], projection(block, spec), f"{block.name}_0"
    pool = _average_pool(block, spec) if kind.pool and block.downsamples else None
    if row is None:
        if pool is None and block.stride > 1:  # every other pixel; without a fixed name, as in keras.applications
            pool = layers.MaxPooling2D(1, strides=block.stride, data_format=spec.data_format)
        identity = chain(pool, _pad_channels(block, spec))
        return lambda x, preact: identity(preact if block.first else x)
    project = conv(row, spec=spec, name=name, bn_follows=False) if spec.preactivation else None
    project = chain(pool, project or conv_bn(row, spec=spec, name=name, activation=False))
    return lambda x, preact: project(preact)


def _average_pool(block, spec):
    """2x2 average pooling. The averages exclude padding, except where `output_stride` keeps the resolution (timm)."""
    name, data_format = f"{block.name}_0_pool", spec.data_format
    if block.stride == 1:
        return chain(
            layers.ZeroPadding2D(((0, 1), (0, 1)), data_format=data_format, name=f"{block.name}_0_pad"),
            layers.AveragePooling2D(2, strides=1, data_format=data_format, name=name),
        )
    return layers.AveragePooling2D(2, strides=block.stride, padding="same", data_format=data_format, name=name)


def _pad_channels(block, spec):
    """Pads the channels with zeros, half before and half after, as in the published CIFAR weights.

    ZeroPadding2D pads height and width; with the opposite data format, it pads the channels.
    """
    if not block.changes_channels:
        return None
    missing, name = block.filters - block.in_channels, f"{block.name}_0_pad"
    pad, none = (missing // 2, missing - missing // 2), (0, 0)
    if spec.channel_axis == 1:
        return layers.ZeroPadding2D((pad, none), data_format="channels_last", name=name)
    return layers.ZeroPadding2D((none, pad), data_format="channels_first", name=name)
