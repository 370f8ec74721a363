"""PROTOCOLS: what a network is shown of an image when it is tested; its scores for all of that are averaged."""

from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from keras_resnet.data.image_files import as_pil_image
from keras_resnet.data.preprocessing import MAX_SIDE
from keras_resnet.errors import is_integer, unknown_name_error


@dataclass(frozen=True)
class Protocol:
    """How an image is looked at.

    Raises:
        ValueError: on construction, for an unknown crop, or scales that are no numbers of pixels.
    """

    crop: str = "center"
    """A name in TEST_CROPS."""
    flip: bool = False
    """Whether the mirrored views count as well."""
    scales: tuple[int, ...] = ()
    """What the shorter side is resized to, in pixels, each in turn; none: as the weights want it."""

    def __post_init__(self):
        if self.crop not in TEST_CROPS:
            raise unknown_name_error("crop", self.crop, TEST_CROPS)
        scales = np.ravel(self.scales).tolist()
        if not all(is_integer(scale, 1) and scale <= MAX_SIDE for scale in scales):
            raise ValueError(f"`scales` should be from 1 to {MAX_SIDE} pixels. Received: scales={self.scales}")
        object.__setattr__(self, "scales", tuple(scales))
        if self.is_uncropped and not self.scales:
            raise ValueError('`scales` should be given with the crop "whole". Received: scales=()')

    def to_config(self):
        """The values as JSON can hold them."""
        return asdict(self) | {"scales": list(self.scales)}

    @property
    def is_uncropped(self):
        """Whether images are not cropped, so that the network has to be fully convolutional."""
        return self.crop == "whole"

    @property
    def num_views(self):
        """How many views of an image at one scale."""
        return TEST_CROPS[self.crop].count * (2 if self.flip else 1)


@dataclass(frozen=True)
class Crop:
    """Which parts of a resized image are shown."""

    parts: object
    """(PIL image, Preprocessing, shorter side or None) -> [PIL image]."""
    count: int


def _center(image, preprocessing, shorter):
    return [replace(preprocessing, resize=shorter or preprocessing.resize).square(image)]


def _corners(image, preprocessing, shorter):
    """Four corners and the centre (Krizhevsky et al. 2012, sec. 4.1; torchvision's FiveCrop)."""
    size, resized = preprocessing.size, _resized(image, preprocessing, shorter or preprocessing.resize)
    right, bottom = (side - size for side in resized.size)
    places = [(0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2), round(bottom / 2))]
    return [resized.crop((left, top, left + size, top + size)) for left, top in places]


def _whole(image, preprocessing, shorter):
    return [_resized(image, preprocessing, shorter)]


def _resized(image, preprocessing, shorter):
    longer = shorter * max(image.size) / min(image.size)
    if longer > MAX_SIDE:
        raise ValueError(
            f"The longer side should be at most {MAX_SIDE} pixels when the shorter one has {shorter}. "
            f"Received: an image of {image.width} x {image.height}"
        )
    return preprocessing.resized(image, shorter)


TEST_CROPS = {"center": Crop(_center, 1), "corners": Crop(_corners, 5), "whole": Crop(_whole, 1)}

PROTOCOLS = {
    # The single view of He et al. 2015, sec. 4.2, and everybody's single centre crop on ImageNet
    "center": Protocol(),
    "flip": Protocol(flip=True),
    # Krizhevsky et al. 2012, sec. 4.1: tables 2 and 3 of He et al. 2015
    "ten_crop": Protocol("corners", flip=True),
    # He et al. 2015, sec. 3.4, its table 4; mirrored as in Simonyan and Zisserman 2014, sec. 3.2, whom they follow
    "multi_scale": Protocol("whole", flip=True, scales=(224, 256, 384, 480, 640)),
}


def get_protocol(protocol, **changes):
    """A Protocol, or the one of this name in PROTOCOLS, with some fields changed.

    Raises:
        ValueError: for an unknown name or field, and values that make no protocol.
    """
    known = [field.name for field in fields(Protocol)]
    for change in changes:
        if change not in known:
            raise unknown_name_error("changes", change, known, f"fields of a protocol: {known}")
    if not isinstance(protocol, Protocol):
        if protocol not in PROTOCOLS:
            raise unknown_name_error("protocol", protocol, PROTOCOLS)
        protocol = PROTOCOLS[protocol]
    return replace(protocol, **changes)


def check_scales(protocol, preprocessing, minimum):
    """Raises ValueError for scales that a network cannot take, and for crops that would all be the same.

    Args:
        protocol: Protocol.
        preprocessing: the network's.
        minimum: pixels of the smallest side that the network can take.
    """
    least = minimum if protocol.is_uncropped else preprocessing.size
    if small := [scale for scale in protocol.scales if scale < least]:
        raise ValueError(
            f"`scales` should be at least {least} pixels: the network takes no less. Received: scales={small}"
        )
    largest = max(protocol.scales, default=preprocessing.resize or 0)
    if protocol.crop == "corners" and largest <= preprocessing.size:
        raise ValueError(
            f"`scales` should be given for crops of {preprocessing.size} pixels from images that are no larger, such "
            f"as {preprocessing.size * 8 // 7}. Received: protocol={protocol}"
        )


def image_views(images, preprocessing, protocol):
    """What a network sees of images.

    Args:
        images: uint8 (B, H, W, C), or a sequence of what a Preprocessing takes; without a crop, of images that
            all have the same proportions, or a single one.
        preprocessing: Preprocessing.
        protocol: Protocol.

    Returns:
        For each scale uint8 (B, views, h, w, channels).

    Raises:
        ValueError: for what is no image, and for one too long for its width to be resized without a crop.
        OSError: for a file that cannot be opened.
    """
    show = _unchanged if _fits(images, preprocessing, protocol) else _cropped
    shown = show(images, preprocessing, protocol)
    return [np.concatenate([views, views[..., ::-1, :]], axis=1) for views in shown] if protocol.flip else shown


def _fits(images, preprocessing, protocol):
    """Whether images are pixels that stay as they are."""
    size = preprocessing.size
    natural = preprocessing.resize is None and (protocol.crop, protocol.scales) == ("center", ())
    return natural and getattr(images, "shape", ())[1:] == (size, size, preprocessing.channels)


def _unchanged(images, preprocessing, protocol):
    return [images[:, None]]


def _cropped(images, preprocessing, protocol):
    channels, parts = preprocessing.channels, TEST_CROPS[protocol.crop].parts
    opened = [as_pil_image(image, channels) for image in images]
    return [
        np.stack([[_pixels(part, channels) for part in parts(image, preprocessing, scale)] for image in opened])
        for scale in protocol.scales or (None,)
    ]


def _pixels(image, channels):
    return np.asarray(image).reshape(image.height, image.width, channels)
