"""Augmentation of an image together with its mask, as a function of random numbers, as in torchvision's references."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_resnet.data.augmentation import COLOR_NOISE, TRAIN_CROPS
from keras_resnet.data.segmentation_crops import PaddedCrop, random_crop
from keras_resnet.normalization import Normalization, normalize

ENHANCERS = ("Brightness", "Contrast", "Color")
"""Classes of `PIL.ImageEnhance` for brightness, contrast and saturation, as torchvision's functions on PIL images."""


@dataclass(frozen=True, eq=False)
class SegmentationAugmentation:
    """What happens to one image and its mask."""

    crop: PaddedCrop
    jitter: tuple[tuple[int, float], ...] = ()
    """Changes of the colours in their order: index in ENHANCERS, and the factor."""
    color: np.ndarray | None = None
    """(3,) float32, added to the RGB pixels in 0..255; None adds nothing."""

    def __call__(self, image: Any, mask: np.ndarray, mode: str | Normalization) -> tuple[np.ndarray, np.ndarray]:
        """The augmented image (h, w, 3) float32, normalised, and its mask (h, w) uint8.

        Outside the image, pixels have the mean colour of normalised images, 0, and the mask is IGNORED.

        Args:
            image: PIL image, RGB.
            mask: (H, W) uint8, classes, of the same size.
            mode: as for `normalize`.
        """
        from PIL import ImageEnhance

        cropped = self.crop.resize_image(image)
        for index, factor in self.jitter:
            cropped = getattr(ImageEnhance, ENHANCERS[index])(cropped).enhance(factor)
        values = np.asarray(cropped)
        colored = values if self.color is None else values + self.color
        pixels = np.zeros((*self.crop.size, 3), "float32")
        pixels[: values.shape[0], : values.shape[1]] = normalize(colored, mode, "channels_last")
        return pixels, self.crop.resize_mask(mask)


def sample_segmentation_augmentation(
    size: tuple[int, int], crop_size: tuple[int, int], recipe: Any, preprocessing: Any, random: np.random.Generator
) -> SegmentationAugmentation:
    """The SegmentationAugmentation of an image, sampled.

    Args:
        size: height and width of the image.
        crop_size: height and width of the augmented image.
        recipe: Recipe, with a crop for segmenters.
        preprocessing: SegmentationPreprocessing, as in testing.
        random: numpy.random.Generator.
    """
    sample_size: Any = TRAIN_CROPS[recipe.crop].for_segmenters
    resized = sample_size(size, preprocessing, recipe.scale, random)
    crop = random_crop(resized, crop_size, recipe.flip, random)
    jitter, color = (), None
    if recipe.color_jitter:
        factors = 1 + recipe.color_jitter * random.uniform(-1, 1, len(ENHANCERS))
        jitter = tuple((index, float(factors[index])) for index in random.permutation(len(ENHANCERS)).tolist())
    if recipe.lighting:
        color = (recipe.lighting * random.standard_normal(3, "float32") @ COLOR_NOISE).astype("float32")
    return SegmentationAugmentation(crop, jitter, color)
