"""Crops of training images for segmenters: the size to which an image is resized, and the part of it that is used.

The functions of sizes take:

    size: height and width of the image.
    preprocessing: SegmentationPreprocessing, as in testing.
    scale: of the recipe.
    random: numpy.random.Generator.

They return height and width after resizing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_resnet.architecture.segmenter_spec import IGNORED


@dataclass(frozen=True)
class PaddedCrop:
    """A part of a resized image and its mask, perhaps mirrored, padded on the right and below where the image ends.

    Pixels are those of torchvision's Resize, RandomHorizontalFlip and RandomCrop on PIL images: bilinear with
    antialiasing, of masks the nearest pixel.

    >>> import numpy as np
    >>> from keras_resnet.data.segmentation_crops import PaddedCrop
    >>> crop = PaddedCrop(resized=(2, 4), corner=(0, 1), size=(3, 2), flip=True)
    >>> crop.resize_mask(np.array([[0, 1, 2, 3], [4, 5, 6, 7]], "uint8"))
    array([[  2,   1],
           [  6,   5],
           [255, 255]], dtype=uint8)
    """

    resized: tuple[int, int]
    """Height and width of the whole image after resizing."""
    corner: tuple[int, int]
    """Row and column of the resized image at which the crop begins."""
    size: tuple[int, int]
    """Height and width of the crop."""
    flip: bool = False
    """Whether it is mirrored."""

    @property
    def inside(self) -> tuple[int, int]:
        """Height and width of the part of the crop that is inside the image."""
        height, width = (min(it) for it in zip(self.size, np.subtract(self.resized, self.corner).tolist(), strict=True))
        return height, width

    def resize_image(self, image: Any) -> Any:
        """The part of the crop that is inside a PIL image, without padding, as a PIL image."""
        from PIL import Image

        (top, left), (height, width) = self.corner, self.inside
        y, x = image.height / self.resized[0], image.width / self.resized[1]
        box = (x * left, y * top, min(x * (left + width), image.width), min(y * (top + height), image.height))
        crop = image.resize((width, height), Image.Resampling.BILINEAR, box)
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else crop

    def resize_mask(self, mask: np.ndarray) -> np.ndarray:
        """Mask (H, W) uint8 -> (h, w) uint8, with IGNORED outside the image."""
        rows, columns = (
            ((start + np.arange(length) + 0.5) * side / resized).astype(int)
            for start, length, side, resized in zip(self.corner, self.inside, mask.shape, self.resized, strict=True)
        )
        padded = np.full(self.size, IGNORED, "uint8")
        padded[: len(rows), : len(columns)] = mask[np.ix_(rows, columns[::-1] if self.flip else columns)]
        return padded


def random_crop(resized: tuple[int, int], size: tuple[int, int], flip: bool, random: np.random.Generator) -> PaddedCrop:
    """A PaddedCrop at a random place of a resized image.

    Args:
        resized: height and width of the image after resizing.
        size: height and width of the crop.
        flip: whether the crop is mirrored, one in two.
        random: numpy.random.Generator.
    """
    spare = np.maximum(np.subtract(resized, size), 0)
    top, left = random.integers(0, spare, endpoint=True).tolist()
    return PaddedCrop(resized, (top, left), size, bool(random.random() < 0.5 and flip))


def crop_size(sizes: np.ndarray, train_size: int | None, preprocessing: Any) -> tuple[int, int]:
    """Height and width of the crops of all training images.

    Args:
        sizes: (N, 2), height and width of the images.
        train_size: side of a square; None: the medians of heights and widths of the images as in testing, which is the
            whole image if all have one size.
        preprocessing: SegmentationPreprocessing, as in testing.
    """
    if train_size is not None:
        return train_size, train_size
    different, counts = np.unique(sizes, axis=0, return_counts=True)
    resized = np.repeat([preprocessing.resized(*size) for size in different.tolist()], counts, axis=0)
    height, width = np.median(resized, axis=0).astype(int).tolist()
    return height, width


def test_size(size, preprocessing, scale, random):
    """The size of the image in testing."""
    return preprocessing.resized(*size)


def random_size(size, preprocessing, scale, random):
    """A random size, scale[0] to scale[1] times that in testing, by torchvision's RandomResize."""
    low, high = (max(1, int(factor * (preprocessing.shorter_side or min(size)))) for factor in scale)
    shorter = int(random.integers(low, high, endpoint=True))
    return tuple(int(shorter * side / min(size)) for side in size)
