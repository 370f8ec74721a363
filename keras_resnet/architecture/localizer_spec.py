"""LocalizerSpec: one frozen dataclass that describes a classifier that also predicts the box of the object."""

from dataclasses import asdict, dataclass
from typing import Annotated

from keras_resnet.architecture.detector_spec import MAX_CLASSES, MAX_WIDTH
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.errors import check_known, value_error
from keras_resnet.schema import Range, check_fields

BOXES = ("shared", "per_class", "dense")


@dataclass(frozen=True)
class LocalizerSpec:
    """A localizer: a residual network with a classifier and a box head on its last stage.

    >>> import keras_resnet
    >>> spec = keras_resnet.get_spec("localizer_resnet50_per_class")
    >>> spec.backbone.depth, spec.boxes, spec.num_boxes
    (50, 'per_class', 1000)

    Raises:
        ValueError: on construction, for a value that is invalid, or that other values exclude.
    """

    backbone: ResNetSpec
    """The residual network."""
    boxes: str = "shared"
    """"shared": one box for all classes; "per_class": a box for each class; "dense": for each position of the last
    feature map and each class, the probability of an object and its box, as in He et al. 2015, appendix C."""
    box_width: Annotated[int, Range(1, MAX_WIDTH)] = 256
    """Channels of the box head's 3x3 convolution, and units of its dense layer, which "dense" does not have."""
    anchor_sizes: tuple[int, ...] = (128,)
    """"dense": sides in pixels of the squares around each position to which boxes are relative."""
    classes: Annotated[int, Range(1, MAX_CLASSES)] = 1000
    """Number of classes, K."""

    def __post_init__(self):
        check_fields(self)
        check_known("boxes", self.boxes, BOXES)
        if not self.anchor_sizes or not all(0 < size <= 1_000_000 for size in self.anchor_sizes):
            raise value_error("anchor_sizes", self.anchor_sizes, "one or several positive sizes")
        if self.backbone.data_format == "channels_first":
            raise value_error("backbone", self.backbone, "a network with channels last")

    @property
    def num_boxes(self) -> int:
        """Number of boxes of an image: 1 or K."""
        return 1 if self.boxes == "shared" else self.classes

    @property
    def default_size(self) -> int:
        """Side of the images for which the network was designed, in pixels."""
        return self.backbone.default_size

    @property
    def default_resize(self) -> int | None:
        """Shorter side to which images are resized before the centre crop, in pixels."""
        return self.backbone.default_resize

    @property
    def minimum_size(self) -> int:
        """Smallest side of images, in pixels."""
        return self.backbone.minimum_size

    @property
    def drop_path(self) -> float:
        """Rate of stochastic depth of the network."""
        return self.backbone.drop_path

    @property
    def depth(self) -> int:
        """Layers of the network."""
        return self.backbone.depth

    @property
    def default_classes(self) -> int:
        """Number of classes."""
        return self.classes

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in batches of images: localizers are channels last."""
        return 3

    def to_config(self) -> dict:
        """The fields as JSON values; `LocalizerSpec(**config)` restores the spec."""
        return asdict(self) | {"backbone": self.backbone.to_config(), "anchor_sizes": list(self.anchor_sizes)}
