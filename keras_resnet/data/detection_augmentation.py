"""Augmentation of an image together with the boxes and masks of its objects, as a function of random numbers.

What happens to an image is sampled from its size and its boxes, before it is read, so that the shape of a batch is
known to every machine that reads a part of it.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from keras_resnet.data.augmentation import COLOR_NOISE, TRAIN_CROPS
from keras_resnet.data.detection_crops import ResizedCrop
from keras_resnet.data.image_files import as_pil_image
from keras_resnet.data.masks import mask_boxes
from keras_resnet.data.objects import Objects
from keras_resnet.normalization import Normalization, normalize


@dataclass(frozen=True, eq=False)
class TrainingImage:
    """An image of a batch with its objects, in pixels of the augmented image."""

    pixels: np.ndarray
    """(h, w, 3) float32, normalised."""
    boxes: np.ndarray
    """(N, 4) float32, x1, y1, x2, y2."""
    labels: np.ndarray
    """(N,) int32, indices of classes in the data set."""
    masks: np.ndarray | None
    """(N, h, w) bool; None if they are not read."""


@dataclass(frozen=True, eq=False)
class Augmentation:
    """What happens to one image."""

    crop: ResizedCrop
    color: np.ndarray
    """(3,) float32, added to the RGB pixels in 0..255."""
    objects: Objects
    """Those that remain in the image."""

    def __call__(self, image: Any, mode: str | Normalization, has_masks: bool) -> TrainingImage:
        """Reads and augments the image.

        With masks, an object that the crop cuts gets the box of what remains of its mask, which may be smaller than its
        clipped box; objects of which no pixel remains are left out.

        Args:
            image: what `as_pil_image` takes.
            mode: as for `normalize`.
            has_masks: whether masks are read.

        Raises:
            ValueError: for an image that cannot be read, with its id.
        """
        name = self.objects.image_ids[0]
        try:
            pixels = np.asarray(as_pil_image(image, 3))
        except (ValueError, OSError) as error:
            raise ValueError(f"Image {name!r} of the training data cannot be read. {error}") from error
        colored = pixels + self.color if self.color.any() else pixels
        pixels = self.crop.resize_image(normalize(colored, mode, "channels_last"))
        boxes, labels = self.crop.resize_boxes(self.objects.boxes), self.objects.labels
        if not has_masks:
            return TrainingImage(pixels, boxes, labels, None)
        masks = self._masks()
        visible, cut = np.any(masks, axis=(1, 2)), self.crop.cuts(self.objects.boxes)
        boxes, labels, masks = boxes[visible], labels[visible], masks[visible]
        boxes = np.where(cut[visible, None], mask_boxes(masks), boxes)
        return TrainingImage(pixels, boxes, labels, masks)

    def _masks(self):
        masks = np.zeros((len(self.objects), *self.crop.size), bool)
        for index, mask in enumerate(masks):
            mask[:] = self.crop.resize_mask(self.objects.mask(index))
        return masks


def sample_augmentation(objects, recipe, preprocessing, random):
    """The Augmentation of an image, sampled.

    Args:
        objects: Objects of one image, without those that are not trained.
        recipe: Recipe, with a crop for detectors.
        preprocessing: DetectionPreprocessing, with the sizes of training.
        random: numpy.random.Generator.
    """
    row, size = TRAIN_CROPS[recipe.crop], objects.sizes[0].tolist()
    crop = row.for_detectors(size, objects.boxes, preprocessing, recipe.scale, random)
    crop = replace(crop, flip=bool(recipe.flip and random.random() < 0.5))
    color = recipe.lighting * random.standard_normal(3, "float32") @ COLOR_NOISE
    return Augmentation(crop, color.astype("float32"), objects.keep(crop.keeps(objects.boxes)))
