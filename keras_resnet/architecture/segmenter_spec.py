"""SegmenterSpec: one frozen dataclass that describes a semantic segmentation network on any network of the family."""

from dataclasses import asdict, dataclass, replace
from typing import Annotated

from keras_resnet.architecture.detector_spec import MAX_WIDTH
from keras_resnet.architecture.spec import Fraction, ResNetSpec
from keras_resnet.errors import check_known, value_error
from keras_resnet.schema import Range, check_fields

IGNORED = 255
"""Value of the pixels of a mask that belong to no class, and count neither in training nor in testing, as in VOC."""
MAX_CLASSES = IGNORED
"""Largest number of classes: masks are eight bits, of which one value is IGNORED."""
HEADS = ("fcn", "deeplabv3", "deeplabv3plus")
REFERENCE_STRIDE = 8
"""Output stride for which `rates` are given."""
Width = Annotated[int, Range(1, MAX_WIDTH)]
Rate = Annotated[int, Range(1, 4096)]
Kernel = Annotated[int, Range(1, 15)]
MAX_CONVOLUTIONS = 16
"""Largest number of dilated convolutions in a pyramid, and of hidden convolutions in a decoder."""


@dataclass(frozen=True)
class SegmenterSpec:
    """A semantic segmentation network as data: a class for each pixel.

    >>> from dataclasses import replace
    >>> import keras_resnet
    >>> spec = keras_resnet.get_spec("deeplabv3_resnet50")
    >>> spec.backbone.depth, spec.output_stride, spec.dilations
    (50, 8, (12, 24, 36))
    >>> replace(spec, output_stride=16).dilations
    (6, 12, 18)

    Raises:
        ValueError: on construction, for a value that is invalid, or that other values exclude.
    """

    backbone: ResNetSpec
    """The residual network."""
    head: str = "fcn"
    """"fcn": a 3x3 and a 1x1 convolution (arXiv:1411.4038); "deeplabv3": atrous spatial pyramid pooling
    (arXiv:1706.05587); "deeplabv3plus": the same with a decoder, which receives the first stage (arXiv:1802.02611)."""
    output_stride: int = 8
    """Largest total stride; stages of the backbone that would exceed it are dilated instead, with the same weights."""
    head_width: Width | None = None
    """Channels of the head; None: a quarter of the last stage's for "fcn", else 256."""
    rates: tuple[Rate, ...] = (12, 24, 36)
    """Dilations of the pyramid's 3x3 convolutions for an output stride of 8; for others they change in proportion, so
    that they cover the same part of the image (arXiv:1706.05587, sec. 4.1). "fcn" has none."""
    decoder_width: Width = 48
    """Channels to which the decoder of "deeplabv3plus" reduces the first stage."""
    decoder_kernels: tuple[Kernel, ...] = (3, 3)
    """Sides of the kernels of the decoder's hidden convolutions, odd numbers. KerasHub has (1,), some code (3,)."""
    dropout: Fraction = 0.1
    """Dropout rate of the head."""
    auxiliary: bool = True
    """Whether an FCN head on the stage before the last is trained, too (arXiv:1612.01105, sec. 3.3)."""
    classes: Annotated[int, Range(1, MAX_CLASSES)] = 21
    """Number of classes, K."""

    def __post_init__(self):
        if isinstance(self.backbone, str):
            raise value_error("backbone", self.backbone, "a ResNetSpec, such as `get_spec('resnet18')`")
        check_fields(self)
        check_known("head", self.head, HEADS)
        if not self.rates or len(self.rates) > MAX_CONVOLUTIONS:
            raise value_error("rates", self.rates, f"one or several dilations, at most {MAX_CONVOLUTIONS}")
        if len(self.decoder_kernels) > MAX_CONVOLUTIONS or not all(side % 2 for side in self.decoder_kernels):
            raise value_error("decoder_kernels", self.decoder_kernels, f"at most {MAX_CONVOLUTIONS} odd numbers")
        if self.backbone.data_format == "channels_first":
            raise value_error("backbone", self.backbone, "a network with channels last")
        if len(self.backbone.levels) < 2:
            raise value_error("backbone", self.backbone, "a network of several stages, on which heads can stand")
        if self.output_stride > self.backbone.stride:
            expected = f"at most {self.backbone.stride}, the stride of the backbone"
            raise value_error("output_stride", self.output_stride, expected)
        replace(self.backbone, output_stride=self.output_stride)  # raises for other strides that it cannot have

    @property
    def dilations(self) -> tuple[int, ...]:
        """Dilations of the pyramid's convolutions at `output_stride`."""
        return tuple(max(1, rate * REFERENCE_STRIDE // self.output_stride) for rate in self.rates)

    @property
    def default_size(self) -> int:
        """Side of the images for which multiply-adds are counted, in pixels: torchvision's shorter side."""
        return 520

    @property
    def minimum_size(self) -> int:
        """Smallest side of images, in pixels."""
        return self.backbone.minimum_size

    @property
    def depth(self) -> int:
        """Layers of the residual network."""
        return self.backbone.depth

    @property
    def drop_path(self) -> float:
        """Rate of stochastic depth of the residual network."""
        return self.backbone.drop_path

    @property
    def default_classes(self) -> int:
        """Number of classes."""
        return self.classes

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in batches of images: segmenters are channels last."""
        return 3

    def to_config(self) -> dict:
        """The fields as JSON values; `SegmenterSpec(**config)` restores the spec."""
        lists = {name: list(getattr(self, name)) for name in ("rates", "decoder_kernels")}
        return asdict(self) | {"backbone": self.backbone.to_config()} | lists
