"""The first layers, in front of the residual stages."""

from dataclasses import dataclass
from math import prod

from keras import layers

from keras_resnet.architecture.layers import Convolution, chain, conv, conv_bn


@dataclass(frozen=True)
class Stem:
    """A stem as data."""

    convolutions: tuple[tuple[int, int, float], ...]
    """(kernel size, stride, width as a fraction of `spec.stem_width`) of each convolution."""
    pool: str | None = None
    """Halves the resolution after the convolutions: a name in MAX_POOLS, "conv" for a strided convolution, or None."""
    size: int = 224
    """Usual side of the images, in pixels."""
    resize: int = 256
    """Usual shorter side in testing, in pixels, before the central crop (He et al. 2015, sec. 3.4)."""
    minimum_size: int = 32
    """Smallest side of the images, in pixels; 32 as in keras.applications."""
    classes: int = 1000
    """Usual number of classes."""

    @property
    def stride(self) -> int:
        """Factor by which the stem reduces each side."""
        return prod(stride for _, stride, _ in self.convolutions) * (2 if self.pool else 1)

    def rows(self, spec) -> tuple[tuple[str, Convolution], ...]:
        """(name, Convolution) of each convolution of a network's stem, including a pooling one."""
        names = ["conv1"] if len(self.convolutions) == 1 else [f"conv1_{i + 1}" for i in range(len(self.convolutions))]
        rows = [
            (name, Convolution(int(spec.stem_width * fraction), kernel, stride))
            for name, (kernel, stride, fraction) in zip(names, self.convolutions, strict=True)
        ]
        if self.pool == "conv":
            rows.append(("pool1", Convolution(spec.stem_width, 3, 2)))
        return tuple(rows)


STEMS = {
    "imagenet": Stem(((7, 2, 1.0),), pool="max"),  # He et al. 2015, table 1
    "imagenet_torch": Stem(((7, 2, 1.0),), pool="max_unpadded"),  # timm/models/resnetv2.py
    "deep": Stem(((3, 2, 0.5), (3, 1, 0.5), (3, 1, 1.0)), pool="max"),  # arXiv:1812.01187, fig. 2 b (ResNet-C)
    "deep_tiered": Stem(((3, 2, 0.375), (3, 1, 0.5), (3, 1, 1.0)), pool="max"),  # 24, 32, 64: timm/models/resnet.py
    "deep_conv": Stem(((3, 2, 0.5), (3, 1, 0.5), (3, 1, 1.0)), pool="conv"),  # ResNet-RS: timm/models/resnet.py
    "cifar": Stem(((3, 1, 1.0),), size=32, resize=32, minimum_size=8, classes=10),  # He et al. 2015, sec. 4.2
}


def _max_pool(spec):
    """3x3/2 max pooling after padding with zeros, which after a ReLU equals padding with minus infinity.

    keras.applications' V2 networks pad with zeros without a ReLU before.
    """
    return chain(
        layers.ZeroPadding2D(1, data_format=spec.data_format, name="pool1_pad"),
        layers.MaxPooling2D(3, strides=2, data_format=spec.data_format, name="pool1_pool"),
    )


def _max_pool_unpadded(spec):
    """3x3/2 max pooling that ignores the padding, as in PyTorch: without a ReLU before, all values may be negative.

    "same" pads symmetrically at stride 1 but not at stride 2; hence pooling at stride 1, then every other pixel.
    """
    return chain(
        layers.MaxPooling2D(3, strides=1, padding="same", data_format=spec.data_format, name="pool1_pool"),
        layers.MaxPooling2D(1, strides=2, data_format=spec.data_format, name="pool1_stride"),
    )


MAX_POOLS = {"max": _max_pool, "max_unpadded": _max_pool_unpadded}


def stem(spec):
    """x -> (B, ceil(H / stride), ceil(W / stride), stem_width), before pre-activation without last norm and ReLU."""
    kind = STEMS[spec.stem]
    *rows, (last_name, last) = kind.rows(spec)
    return chain(
        *(conv_bn(row, spec=spec, name=name) for name, row in rows),
        conv(last, spec=spec, name=last_name, bn_follows=False)
        if spec.preactivation
        else conv_bn(last, spec=spec, name=last_name),
        MAX_POOLS[kind.pool](spec) if kind.pool in MAX_POOLS else None,
    )
