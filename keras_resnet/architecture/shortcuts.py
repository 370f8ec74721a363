"""What carries x around the residual function F (He et al. 2015, sec. 3.3 and 4.1)."""

from dataclasses import dataclass

from keras import layers

from keras_resnet.architecture.layers import Convolution, chain, conv, conv_bn


@dataclass(frozen=True)
class Shortcut:
    """A shortcut as data."""

    project: str
    """When a 1x1 convolution is in it: "never", "on_change" (of the number of channels) or "always"."""
    pool: bool = False
    """Whether 2x2 averages, rather than every other pixel, halve the resolution."""


SHORTCUTS = {
    "A": Shortcut("never"),  # identity, new channels are zero: He et al. 2015, sec. 4.1
    "B": Shortcut("on_change"),
    "C": Shortcut("always"),
    "pooled": Shortcut("on_change", pool=True),  # arXiv:1812.01187, fig. 2 c (ResNet-D)
    None: None,  # a plain net
}


def projection(block, spec):
    """The 1x1 Convolution in the shortcut of `block`, or None."""
    kind = SHORTCUTS[spec.shortcut]
    if kind is None or kind.project == "never" or (kind.project == "on_change" and not block.changes_channels):
        return None
    return Convolution(block.filters, 1, 1 if kind.pool else block.stride)


def shortcut(block, *, spec):
    """(x, preact) -> the path beside F: (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), C or filters).

    A projection reads `preact`, which is x itself but in pre-activation nets relu(bn(x)). An identity reads x, except
    in the first block: there the activation comes before the paths part (He et al. 2016, appendix).
    """
    kind, row, name = SHORTCUTS[spec.shortcut], projection(block, spec), f"{block.name}_0"
    pool = _average_pool(block, spec) if kind.pool and block.downsamples else None
    if row is None:
        identity = chain(pool or _subsample(block, spec), _pad_channels(block, spec))
        return lambda x, preact: identity(preact if block.first else x)
    project = conv(row, spec=spec, name=name, bn_follows=False) if spec.preactivation else None
    project = chain(pool, project or conv_bn(row, spec=spec, name=name, activation=False))
    return lambda x, preact: project(preact)


def _average_pool(block, spec):
    """2x2 means: at the border, of what is there; where `output_stride` keeps the resolution, of zeros too (timm)."""
    name, data_format = f"{block.name}_0_pool", spec.data_format
    if block.stride == 1:
        return chain(
            layers.ZeroPadding2D(((0, 1), (0, 1)), data_format=data_format, name=f"{block.name}_0_pad"),
            layers.AveragePooling2D(2, strides=1, data_format=data_format, name=name),
        )
    return layers.AveragePooling2D(2, strides=block.stride, padding="same", data_format=data_format, name=name)


def _subsample(block, spec):
    """Every `stride`-th pixel (unnamed, as in keras.applications)."""
    if block.stride == 1:
        return None
    return layers.MaxPooling2D(1, strides=block.stride, data_format=spec.data_format)


def _pad_channels(block, spec):
    """Zeros for the channels that x lacks, half below and half above, as in the published CIFAR weights.

    Keras pads height and width; told the other data format, the same layer pads the channels.
    """
    if not block.changes_channels:
        return None
    missing = block.filters - block.in_channels
    pad, none = (missing // 2, missing - missing // 2), (0, 0)
    first = spec.channel_axis == 1
    return layers.ZeroPadding2D(
        (pad, none) if first else (none, pad),
        data_format="channels_last" if first else "channels_first",
        name=f"{block.name}_0_pad",
    )
