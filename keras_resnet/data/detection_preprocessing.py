"""Preprocessing of images for detectors: normalised, resized without cropping, padded to batches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keras_resnet.data.image_files import as_pil_image, image_list
from keras_resnet.data.preprocessing import MAX_SIDE
from keras_resnet.errors import value_error
from keras_resnet.normalization import Normalization, get_normalization, normalize
from keras_resnet.schema import check_fields, checked


@dataclass(frozen=True)
class ImageBatch:
    """Preprocessed images of different sizes as one array: the input of a detector, and their sizes."""

    images: np.ndarray
    """(B, H, W, 3) float32, normalised: the input of a detector; padded with NaN at the right and the bottom."""
    sizes: np.ndarray
    """(B, 2) float32: height and width of each image without its padding."""
    original_sizes: np.ndarray
    """(B, 2) float32: height and width of each image before it was resized."""

    @classmethod
    def concatenate(cls, batches: "Sequence[ImageBatch]") -> "ImageBatch":
        """One batch of several whose images have the same height and width."""
        return cls(*(np.concatenate([getattr(batch, field.name) for batch in batches]) for field in fields(cls)))

    def to_original(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (B, N, 4) in pixels of the padded images -> in pixels of the images before they were resized."""
        scale = self.original_sizes / self.sizes
        return boxes * scale[:, None, [1, 0, 1, 0]]


@dataclass(frozen=True)
class DetectionPreprocessing:
    """How images are normalised, resized and padded for a detector. Calling it does so.

    >>> import numpy as np
    >>> from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
    >>> preprocessing = DetectionPreprocessing(min_size=64, max_size=128)
    >>> batch = preprocessing([np.zeros((50, 100, 3), "uint8"), np.zeros((32, 16, 3), "uint8")])
    >>> batch.images.shape, batch.sizes.tolist()
    ((2, 128, 128, 3), [[64.0, 128.0], [128.0, 64.0]])

    Source: torchvision/models/detection/transform.py.

    Raises:
        ValueError: on construction, for an unknown mode or sizes that are not pixels.
    """

    mode: str | Normalization = "torch"
    """A name in MODES, or a Normalization."""
    min_size: int = 800
    """Length of the shorter side in pixels after resizing, unless the longer one would exceed `max_size`."""
    max_size: int = 1333
    """Largest length of the longer side in pixels."""
    divisor: int = 32
    """The sides of a padded batch are multiples of it."""

    def __post_init__(self):
        check_fields(self)
        for name in ("min_size", "max_size"):
            if not 1 <= getattr(self, name) <= MAX_SIDE:
                raise value_error(name, getattr(self, name), f"from 1 to {MAX_SIDE} pixels")
        if not 1 <= self.divisor <= 1024:
            raise value_error("divisor", self.divisor, "from 1 to 1024 pixels")
        if get_normalization(self.mode).channels not in (1, 3):
            raise value_error("mode", self.mode, "a normalisation of three channels")

    @classmethod
    def from_config(cls, config: Mapping) -> "DetectionPreprocessing":
        """The inverse of `to_config`; raises ValueError for other values."""
        return checked(config, cls, "preprocessing")

    def to_config(self) -> dict:
        """The fields as JSON values."""
        return asdict(self)

    def for_size(self, min_size: int | None) -> "DetectionPreprocessing":
        """The preprocessing for another shorter side, with a longer side in proportion; None: unchanged.

        >>> from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
        >>> DetectionPreprocessing().for_size(320).max_size
        533
        """
        if min_size is None:
            return self
        return replace(self, min_size=min_size, max_size=max(1, min_size * self.max_size // self.min_size))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing, rounded down as torchvision does: 97 x 97 becomes 799 x 799.

        >>> from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
        >>> DetectionPreprocessing().resized(480, 640), DetectionPreprocessing().resized(97, 97)
        ((800, 1066), (799, 799))
        """
        scale = min(self.min_size / min(height, width), self.max_size / max(height, width))
        return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))

    def __call__(self, images: Any) -> ImageBatch:
        """Preprocesses a path, a PIL image or a uint8 array (H, W, 3), or a sequence of these, of any sizes.

        Raises:
            ValueError: for unreadable files, and arrays of another shape or dtype.
            OSError: for a file that cannot be opened.
        """
        images = image_list(images)
        pixels = [np.asarray(as_pil_image(image, 3)) for image in images]
        resized = [self.resize(image) for image in pixels]
        sides, original = (np.array([image.shape[:2] for image in it], "float32") for it in (resized, pixels))
        return ImageBatch(self.pad(resized, self.padded_size(sides)), sides, original)

    def padded_size(self, sizes: ArrayLike) -> tuple[int, int]:
        """Height and width of a batch of images whose heights and widths are `sizes` (B, 2)."""
        height, width = np.ceil(np.max(sizes, axis=0) / self.divisor).astype(int).tolist()
        return height * self.divisor, width * self.divisor

    def pad(self, images: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
        """Images (h, w, 3) -> (B, height, width, 3) float32, padded with NaN at the right and the bottom."""
        batch = np.full((len(images), *size, 3), np.nan, "float32")
        for padded, image in zip(batch, images, strict=True):
            padded[: image.shape[0], : image.shape[1]] = image
        return batch

    def resize(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (h, w, 3) float32: normalised, then resized bilinearly without antialiasing."""
        return resize_bilinearly(normalize(image, self.mode, "channels_last"), self.resized(*image.shape[:2]))


def resize_bilinearly(
    image: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Resizes an image, or a part of it, without antialiasing, as torch and TensorFlow do.

    In NumPy, as other libraries compile it for every size, round to eight bits or compute on an accelerator.

    >>> import numpy as np
    >>> from keras_resnet.data.detection_preprocessing import resize_bilinearly
    >>> resize_bilinearly(np.array([[[0.0], [4.0]]], "float32"), (1, 4))[0, :, 0]
    array([0., 1., 3., 4.], dtype=float32)

    Args:
        image: (H, W, C) float32.
        size: height and width of the result.
        box: the part, (x1, y1, x2, y2) in pixels; None: the whole image.

    Returns:
        (height, width, C) float32.
    """
    x1, y1, x2, y2 = box or (0, 0, image.shape[1], image.shape[0])
    return _interpolate(_interpolate(image, size[0], y1, y2, axis=0), size[1], x1, x2, axis=1)


def _interpolate(image, count, start, stop, axis):
    """`count` rows (axis 0) or columns (axis 1) between two places, interpolated linearly."""
    last = image.shape[axis] - 1
    places = (np.arange(count, dtype="float32") + 0.5) * np.float32((stop - start) / count) - 0.5  # rounded as in torch
    places = np.clip(places + np.float32(start), 0, last)
    before = places.astype(int)
    weights = np.expand_dims(places - before.astype("float32"), (1, 2) if axis == 0 else (0, 2))
    lower = image.take(before, axis)
    difference = image.take(np.minimum(before + 1, last), axis)
    difference -= lower
    difference *= weights
    difference += lower
    return difference
