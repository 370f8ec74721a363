"""DetectorSpec: one frozen dataclass that describes a detector on any network of the family; DetectionSettings."""

from dataclasses import asdict, dataclass
from itertools import chain
from typing import Annotated, Any

from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.errors import check_known, value_error
from keras_resnet.schema import Range, check_fields

MAX_WIDTH = 16_384
"""Largest number of channels or units of a layer of a head: a spec may come from an untrusted file."""
MAX_CLASSES = 100_000
MAX_COUNT = 100_000
"""Largest number of candidates, proposals and detections."""
_CHOICES = {
    "neck": ("fpn", "c4", "dc5"),
    "extra_levels": ("pool", "c5", "p5", None),
    "neck_norm": ("batch", None),
    "box_head": ("mlp", "conv", "stage4", "dense"),
    "head_norm": ("batch", "group", None),
}
_ONE_LEVEL = {"c4": (4,), "dc5": (5,)}
"""Neck without a pyramid -> its only level."""
_WIDTHS = ("neck_width", "rpn_width", "box_width", "mask_width")
_DEPTHS = ("rpn_convs", "head_convs", "mask_convs")
_RANGES = [
    (_WIDTHS, lambda value: 1 <= value <= MAX_WIDTH, f"from 1 to {MAX_WIDTH}"),
    (_DEPTHS, lambda value: 0 <= value <= 100, "from 0 to 100"),
    (("classes",), lambda value: 2 <= value <= MAX_CLASSES, f"from 2, with the background, to {MAX_CLASSES}"),
    (
        ("levels",),
        lambda value: value and value == tuple(range(max(2, value[0]), min(5, value[-1]) + 1)),
        "consecutive integers from 2 to 5",
    ),
    (("anchor_ratios",), lambda value: value and all(0 < ratio <= 1000 for ratio in value), "positive numbers"),
    (
        ("anchor_sizes",),
        lambda value: all(value) and len(set(map(len, value))) == 1 and all(0 < x <= 1e6 for x in chain(*value)),
        "equally many positive sizes for each level, at least one",
    ),
]
"""(fields, check of a value, what it should be)."""


@dataclass(frozen=True)
class DetectorSpec:
    """A detector, with or without instance segmentation, as data.

    >>> import keras_resnet
    >>> spec = keras_resnet.get_spec("maskrcnn_resnet50_fpn")
    >>> spec.backbone.depth, spec.levels, spec.num_levels, spec.mask_head
    (50, (2, 3, 4, 5), 5, True)

    Raises:
        ValueError: on construction, for a value that is invalid, or that other values exclude.
    """

    backbone: ResNetSpec
    """The residual network; its stages 1 to 4 are the levels 2 to 5."""
    neck: str = "fpn"
    """"fpn": a feature pyramid (arXiv:1612.03144); "c4": level 4 as it is; "dc5": level 5, dilated to stride 16."""
    levels: tuple[int, ...] = (2, 3, 4, 5)
    """Levels of the backbone that the neck combines."""
    extra_levels: str | None = "pool"
    """Coarser levels: "pool": one more, every second pixel of the last; "c5", "p5": two more, by strided convolutions
    of the backbone's or the neck's last level (arXiv:1708.02002); None."""
    neck_width: int = 256
    """Channels of the levels of an FPN."""
    neck_norm: str | None = None
    """Normalisation after the convolutions of an FPN: "batch" or None."""
    anchor_sizes: tuple[tuple[int, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    """Square roots of the anchors' areas in pixels, for each level."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Heights of the anchors divided by their widths."""
    rpn_convs: int = 1
    """3x3 convolutions of the region proposal network."""
    rpn_width: int = 256
    """Channels of these convolutions."""
    box_head: str = "mlp"
    """Of each region: "mlp": two dense layers; "conv": convolutions and one; "stage4": the last stage of the
    backbone (He et al. 2015, appendix A). "dense": no regions, but convolutions for each anchor (RetinaNet)."""
    box_width: int = 1024
    """Units of the dense layers."""
    head_convs: int = 4
    """Convolutions of the box heads "conv" and "dense"."""
    head_norm: str | None = None
    """Normalisation after the convolutions of the box and mask heads: "batch", "group" (32 groups) or None."""
    global_context: bool = False
    """Whether the layers that predict classes and boxes receive the features of the region and of the whole image (He
    et al. 2015, appendix B)."""
    mask_head: bool = False
    """Whether there is a mask of each detection (Mask R-CNN, arXiv:1703.06870)."""
    mask_convs: int = 4
    """3x3 convolutions of the mask head."""
    mask_width: int = 256
    """Channels of the mask head."""
    frozen_batch_norm: bool = True
    """Whether statistics, scale and offset of the backbone's batch norm stay as they are in training."""
    classes: int = 91
    """Number of classes with the background, which is class 0, as torchvision's `num_classes`."""

    def __post_init__(self):
        if isinstance(self.backbone, str):
            self._raise("backbone", "a ResNetSpec, such as `get_spec('resnet18')`")
        check_fields(self)
        for name, choices in _CHOICES.items():
            check_known(name, getattr(self, name), choices)
        for names, is_valid, expected in _RANGES:
            for name in names:
                if not is_valid(getattr(self, name)):
                    self._raise(name, expected)
        self._check_together()

    def _check_together(self):
        if len(self.backbone.stages) != 4 or self.backbone.stride != 32:
            self._raise("backbone", "an ImageNet network of four stages with a stride of 32")
        if self.backbone.data_format == "channels_first":
            self._raise("backbone", "a network with channels last")
        if self.neck in _ONE_LEVEL and (self.levels, self.extra_levels) != (_ONE_LEVEL[self.neck], None):
            self._raise("levels", f"{_ONE_LEVEL[self.neck]}, and `extra_levels` None, for the neck {self.neck!r}")
        if len(self.anchor_sizes) != self.num_levels:
            self._raise("anchor_sizes", f"sizes for each of {self.num_levels} levels")
        if (self.neck == "c4") != (self.box_head == "stage4"):
            self._raise("box_head", '"stage4" for the neck "c4", and only for it')
        if self.box_head == "stage4" and (self.backbone.preactivation or self.mask_head):
            self._raise("box_head", '"stage4" with a post-activation backbone and without a mask head')
        if self.box_head == "stage4" and self.backbone.downsample_at == "last":
            self._raise("backbone", 'a network with `downsample_at` "first" for "stage4", whose first block is strided')
        if self.box_head == "dense" and (self.neck != "fpn" or self.mask_head):
            self._raise("box_head", '"dense" with the neck "fpn" and without a mask head')
        if self.box_head == "dense" and self.global_context:
            self._raise("global_context", "False for a dense head, which has no regions")
        if self.head_norm == "group" and (self.box_head != "dense" or self.neck_width % 32):
            self._raise("head_norm", '"group" for a dense head, with `neck_width` divisible by 32')

    def _raise(self, name, expected):
        raise value_error(name, getattr(self, name), expected)

    @property
    def num_levels(self) -> int:
        """Number of feature maps on which objects are detected."""
        return len(self.levels) + {"pool": 1, "c5": 2, "p5": 2, None: 0}[self.extra_levels]

    @property
    def finest_level(self) -> int:
        """Level of the largest map, whose stride is 2**level: for "dc5" 4, since its dilated level 5 has stride 16."""
        return 4 if self.neck == "dc5" else self.levels[0]

    @property
    def num_anchors(self) -> int:
        """Number of anchors at each position."""
        return len(self.anchor_sizes[0]) * len(self.anchor_ratios)

    @property
    def default_size(self) -> int:
        """Side of the images for which multiply-adds are counted, in pixels."""
        return 800

    @property
    def default_classes(self) -> int:
        """Number of classes with the background."""
        return self.classes

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in batches of images: detectors are channels last."""
        return 3

    def to_config(self) -> dict:
        """The fields as JSON values; `DetectorSpec(**config)` restores the spec."""
        lists = {
            name: [list(v) if isinstance(v, tuple) else v for v in value] if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
        return lists | {"backbone": self.backbone.to_config()}


def backbone_of(spec: Any) -> ResNetSpec:
    """The residual network of a detector, localizer or segmenter; a ResNetSpec is its own."""
    return getattr(spec, "backbone", spec)


Share = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(1, MAX_COUNT)]


@dataclass(frozen=True)
class DetectionSettings:
    """Thresholds and counts of a detector, which do not depend on its weights (torchvision's `box_score_thresh`, ...).

    >>> from keras_resnet import DetectionSettings
    >>> DetectionSettings(score_threshold=0.5, detections=10).nms_threshold
    0.5

    Raises:
        ValueError: on construction, for shares outside of [0, 1] and counts below 1.
    """

    score_threshold: Share = 0.05
    """Smallest score of a detection."""
    nms_threshold: Share = 0.5
    """Largest overlap (IoU) of two detections of the same class."""
    detections: Count = 100
    """Largest number of detections in an image, N."""
    candidates: Count = 1000
    """Number of the best anchors of each level that are considered; of RetinaNet, of pairs of an anchor and a class."""
    proposals: Count = 1000
    """Largest number of regions that the second stage classifies."""
    proposal_nms_threshold: Share = 0.7
    """Largest overlap (IoU) of two proposals of the same level."""

    def __post_init__(self):
        check_fields(self)

    def to_config(self) -> dict:
        """The fields as JSON values; `DetectionSettings(**config)` restores them."""
        return asdict(self)
