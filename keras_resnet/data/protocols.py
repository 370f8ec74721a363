"""PROTOCOLS: the views of a test image over which a model's scores are averaged."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from keras_resnet.data.image_files import as_pil_image
from keras_resnet.data.preprocessing import MAX_SIDE
from keras_resnet.errors import check_integers, check_known, is_integer, is_number, value_error
from keras_resnet.schema import check_fields


@dataclass(frozen=True)
class Protocol:
    """Crops, mirroring and scales of test images. The constructor raises ValueError for invalid values."""

    crop: str = "center"
    """A name in TEST_CROPS."""
    flip: bool = False
    """Whether mirrored views are added."""
    scales: tuple[int, ...] = ()
    """Lengths in pixels to which the shorter side is resized, one after another; (): that of the preprocessing."""

    def __post_init__(self):
        check_known("crop", self.crop, TEST_CROPS)
        object.__setattr__(self, "scales", checked_scales(self.scales))
        if self.is_uncropped and not self.scales:
            raise ValueError('`scales` should be given with the crop "whole". Received: scales=()')

    def to_config(self) -> dict:
        """The fields as JSON values."""
        return asdict(self) | {"scales": list(self.scales)}

    @property
    def is_uncropped(self) -> bool:
        """Whether images are not cropped, which needs a fully convolutional model."""
        return self.crop == "whole"

    @property
    def num_views(self) -> int:
        """Number of views of an image at one scale."""
        return TEST_CROPS[self.crop].count * (2 if self.flip else 1)


@dataclass(frozen=True)
class DetectionProtocol:
    """How a detector is tested; what the paper adds in its appendix B is off by default.

    >>> from keras_resnet.data.protocols import DetectionProtocol
    >>> DetectionProtocol(refine=True, scales=(600, 800, 1000)).score_threshold
    0.05

    The constructor raises ValueError for invalid values.
    """

    refine: bool = False
    """Whether boxes are classified and regressed a second time and averaged with overlapping ones; see
    `with_refinement`."""
    context: bool = False
    """Whether the detector must classify regions together with the whole image, see `DetectorSpec.global_context`."""
    scales: tuple[int, ...] = ()
    """Lengths in pixels to which the shorter side is resized, one after another, with detections of all of them; ():
    that of the preprocessing. The longest side changes in proportion."""
    score_threshold: float = 0.05
    """Smallest score of a detection, by default torchvision's; a higher one leaves out detections that AP counts."""
    detections: int | None = None
    """Largest number of detections in an image; None: torchvision's 100, of RetinaNet 300."""

    def __post_init__(self):
        object.__setattr__(self, "scales", checked_scales(self.scales))
        check_fields(self)
        if not 0 <= self.score_threshold < 1:
            raise value_error("score_threshold", self.score_threshold, "at least 0 and below 1")
        if self.detections is not None:
            check_integers(detections=self.detections)

    def to_config(self) -> dict:
        """The fields as JSON values."""
        return asdict(self) | {"scales": list(self.scales)}


@dataclass(frozen=True)
class LocalizationProtocol:
    """How the boxes of a localizer, or of a classifier's class activation maps, are tested.

    >>> from keras_resnet.data.protocols import LocalizationProtocol
    >>> LocalizationProtocol(scales=256).scales
    (256,)

    The constructor raises ValueError for invalid values.
    """

    scales: tuple[int, ...] = ()
    """Lengths in pixels to which the shorter side is resized, one after another; the network is applied to the whole
    image at each of them, and boxes are those of the best scores. (): the centre crop of the preprocessing."""
    threshold: float = 0.2
    """Of class activation maps: smallest value inside of the box, as a share of the largest one."""

    def __post_init__(self):
        object.__setattr__(self, "scales", checked_scales(self.scales))
        check_fields(self)
        if not 0 <= self.threshold <= 1:
            raise value_error("threshold", self.threshold, "from 0 to 1")

    @property
    def views(self) -> Protocol:
        """The view of an image at each scale."""
        return Protocol("whole", scales=self.scales) if self.scales else Protocol()

    def to_config(self) -> dict:
        """The fields as JSON values."""
        return asdict(self) | {"scales": list(self.scales)}


@dataclass(frozen=True)
class SegmentationProtocol:
    """How a segmenter is tested: scales, mirror images and windows of an image whose probabilities are averaged.

    >>> from keras_resnet.data.protocols import SegmentationProtocol
    >>> SegmentationProtocol(window=512).windows(520, 1000)
    [(0, 0, 512, 512), (0, 341, 512, 512), (0, 488, 512, 512), (8, 0, 512, 512), (8, 341, 512, 512), (8, 488, 512, 512)]

    The constructor raises ValueError for invalid values.
    """

    scales: tuple[float, ...] = ()
    """Factors of the sides that the preprocessing gives the image, one after another; (): those sides alone."""
    flip: bool = False
    """Whether the mirror image is added at every scale."""
    window: int | None = None
    """Side in pixels of square windows that are segmented separately, after the image is resized; None: the image is
    segmented as a whole."""
    overlap: float = 1 / 3
    """Share of a window's side by which neighbouring windows overlap at least."""

    def __post_init__(self):
        scales = tuple(np.ravel(self.scales).tolist())
        if not all(is_number(scale) and 0 < scale <= MAX_FACTOR for scale in scales):
            raise value_error("scales", scales, f"factors above 0 and up to {MAX_FACTOR}, such as (0.5, 1.0, 1.5)")
        object.__setattr__(self, "scales", tuple(map(float, scales)))
        check_fields(self)
        if self.window is not None:
            check_integers(maximum=MAX_SIDE, window=self.window)
        if not 0 <= self.overlap <= 0.9:
            raise value_error("overlap", self.overlap, "from 0 to 0.9")

    @property
    def stride(self) -> int:
        """Distance of neighbouring windows in pixels."""
        return max(1, round((self.window or 0) * (1 - self.overlap)))

    def windows(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """First row, first column, height and width of the windows of an image, which all have the same size.

        The last ones in a row and in a column end with the image, as in mmsegmentation's sliding windows; a side of
        the image that is shorter than a window is that of the windows.
        """
        rows, columns = (self._starts(side) for side in (height, width))
        size = (min(height, self.window or height), min(width, self.window or width))
        return [(top, left, *size) for top in rows for left in columns]

    def _starts(self, side):
        last = max(0, side - (self.window or side))
        return [*range(0, last, self.stride), last]

    def to_config(self) -> dict:
        """The fields as JSON values."""
        return asdict(self) | {"scales": list(self.scales)}


MAX_FACTOR = 16
"""Largest factor of the sides of an image in a SegmentationProtocol."""


def checked_scales(scales):
    """A tuple of one or several lengths; raises ValueError unless they are numbers of pixels."""
    scales = np.ravel(scales).tolist()
    if not all(is_integer(scale, 1) and scale <= MAX_SIDE for scale in scales):
        raise value_error("scales", scales, f"from 1 to {MAX_SIDE} pixels")
    return tuple(scales)


@dataclass(frozen=True)
class ViewCrop:
    """A row of TEST_CROPS: a function (PIL image, Preprocessing, shorter side or None) -> list of PIL images."""

    crop: Callable
    count: int
    """Number of crops."""


def _center(image, preprocessing, scale):
    return [replace(preprocessing, resize=scale or preprocessing.resize).resize_and_crop(image)]


def _corners(image, preprocessing, scale):
    """Four corners and the centre (Krizhevsky et al. 2012, sec. 4.1; torchvision's FiveCrop)."""
    size, resized = preprocessing.size, _resize_within_limit(image, preprocessing, scale or preprocessing.resize)
    right, bottom = (side - size for side in resized.size)
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2), round(bottom / 2))]
    return [resized.crop((left, top, left + size, top + size)) for left, top in corners]


def _whole(image, preprocessing, scale):
    return [_resize_within_limit(image, preprocessing, scale)]


def _resize_within_limit(image, preprocessing, scale):
    if scale * max(image.size) / min(image.size) > MAX_SIDE:
        raise ValueError(
            f"The longer side should be at most {MAX_SIDE} pixels when the shorter one has {scale}. "
            f"Received: an image of {image.width} x {image.height}"
        )
    return preprocessing.resize_shorter_side(image, scale)


TEST_CROPS = {"center": ViewCrop(_center, 1), "corners": ViewCrop(_corners, 5), "whole": ViewCrop(_whole, 1)}

PROTOCOLS = {
    # The single view of He et al. 2015, sec. 4.2, and the usual single centre crop on ImageNet
    "center": Protocol(),
    "flip": Protocol(flip=True),
    # Krizhevsky et al. 2012, sec. 4.1: tables 2 and 3 of He et al. 2015
    "ten_crop": Protocol("corners", flip=True),
    # He et al. 2015, sec. 3.4 and table 4; mirrored as in Simonyan and Zisserman 2014, sec. 3.2, whom they follow
    "multi_scale": Protocol("whole", flip=True, scales=(224, 256, 384, 480, 640)),
}


LOCALIZATION_PROTOCOLS = {
    # One centre crop: He et al. 2015, table 13
    "localization": LocalizationProtocol(),
    # Dense and multi-scale testing of the same table, at the scales that are usual for classifiers
    "localization_dense": LocalizationProtocol(scales=(224, 256, 384, 480, 640)),
}


SEGMENTATION_PROTOCOLS = {
    # The image at the size of the preprocessing: Long et al. 2015, Chen et al. 2017
    "whole": SegmentationProtocol(),
    "flip": SegmentationProtocol(flip=True),
    # Chen et al. 2017, arXiv:1706.05587, sec. 4.1: six scales, mirrored, probabilities averaged
    "multi_scale": SegmentationProtocol(scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True),
    # mmsegmentation's test_cfg for ADE20K and Pascal Context: crop_size 512, stride 341
    "sliding_window": SegmentationProtocol(window=512),
}


def get_protocol(protocol, **changes):
    """A Protocol, or the one with a name in PROTOCOLS, with some fields changed. Raises ValueError for unknown ones."""
    if not isinstance(protocol, Protocol):
        check_known("protocol", protocol, PROTOCOLS)
        protocol = PROTOCOLS[protocol]
    return _changed(protocol, changes)


def get_detection_protocol(protocol, **changes):
    """A DetectionProtocol, or None for the default one, with some fields changed; ValueError for other values."""
    if protocol is not None and not isinstance(protocol, DetectionProtocol):
        raise value_error("protocol", protocol, "None or a DetectionProtocol for a detector")
    return _changed(protocol or DetectionProtocol(), changes)


def get_localization_protocol(protocol, **changes):
    """A LocalizationProtocol, or the one with a name in LOCALIZATION_PROTOCOLS, with some fields changed."""
    if not isinstance(protocol, LocalizationProtocol):
        check_known("protocol", protocol, LOCALIZATION_PROTOCOLS)
        protocol = LOCALIZATION_PROTOCOLS[protocol]
    return _changed(protocol, changes)


def get_segmentation_protocol(protocol, **changes):
    """A SegmentationProtocol, or the one with a name in SEGMENTATION_PROTOCOLS, with some fields changed."""
    if not isinstance(protocol, SegmentationProtocol):
        check_known("protocol", protocol, SEGMENTATION_PROTOCOLS)
        protocol = SEGMENTATION_PROTOCOLS[protocol]
    return _changed(protocol, changes)


def is_localization(protocol):
    """Whether a protocol, or the name of one, is for localization."""
    known = isinstance(protocol, str) and protocol in LOCALIZATION_PROTOCOLS
    return known or isinstance(protocol, LocalizationProtocol)


def _changed(protocol, changes):
    known = [field.name for field in fields(protocol)]
    for change in changes:
        check_known("changes", change, known, f"fields of a protocol: {known}")
    return replace(protocol, **changes)


def check_scales(protocol, preprocessing, minimum_size):
    """Raises ValueError for scales below the model's minimum size, and for crops that would all be equal."""
    minimum = minimum_size if protocol.is_uncropped else preprocessing.size
    if small := [scale for scale in protocol.scales if scale < minimum]:
        raise value_error("scales", small, f"at least {minimum} pixels for this model")
    largest, size = max(protocol.scales, default=preprocessing.resize or 0), preprocessing.size
    if protocol.crop == "corners" and largest <= size:
        expected = f"larger than the crops of {size} pixels, such as {size * 8 // 7}"
        raise value_error("scales", protocol.scales, expected, f"Now the shorter side has {largest or size} pixels.")


def image_views(images, preprocessing, protocol):
    """The views of images before normalisation: for each scale, (B, views, h, w, channels) uint8.

    Args:
        images: (B, H, W, C) uint8, or a sequence of images as for Preprocessing; a single image, or images of the same
            aspect ratio, if the protocol does not crop.

    Raises:
        ValueError, OSError: for unreadable images, and uncropped images whose resized longer side exceeds MAX_SIDE.
    """
    size, channels = preprocessing.size, preprocessing.channels
    unchanged = preprocessing.resize is None and (protocol.crop, protocol.scales) == ("center", ())
    if unchanged and getattr(images, "shape", ())[1:] == (size, size, channels):
        scales = [images[:, None]]
    else:
        views = [_views(as_pil_image(image, channels), preprocessing, protocol) for image in images]
        scales = [np.stack(scale) for scale in zip(*views, strict=True)]
    return [np.concatenate([views, views[..., ::-1, :]], axis=1) for views in scales] if protocol.flip else scales


def _views(image, preprocessing, protocol):
    """The views of a PIL image: for each scale, (views, h, w, channels) uint8."""
    crop = TEST_CROPS[protocol.crop].crop
    scales = [crop(image, preprocessing, scale) for scale in protocol.scales or (None,)]
    return [np.stack([_pixels(view) for view in views]) for views in scales]


def _pixels(image):
    return np.asarray(image).reshape(image.height, image.width, -1)
