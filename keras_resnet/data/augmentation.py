"""TRAIN_CROPS, the names that recipes use; and the augmentation of whole batches on any Keras backend.

Functions on batches take images (B, H, W, C) of integers or floats, and random numbers as arguments, `u` uniform in
[0, 1), so that a run can be resumed exactly. They return arrays of the same shape and dtype, if not stated otherwise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from keras import ops

from keras_resnet.data import crops, detection_crops, segmentation_crops
from keras_resnet.data.preprocessing import MAX_SIDE
from keras_resnet.normalization import normalize


@dataclass(frozen=True)
class TrainCrop:
    """A row of TRAIN_CROPS."""

    function: Callable | None = None
    """(height, width, size, scale, random) -> crop box; None: the box of test images."""
    for_detectors: Callable | None = None
    """A function of detection_crops.py; None: detectors cannot be trained with it."""
    for_segmenters: Callable | None = None
    """A function of segmentation_crops.py; None: segmenters cannot be trained with it."""
    for_classifiers: bool = True
    """Whether classifiers can be trained with it."""
    expected_scale: str = "two numbers"
    """What `scale` of the recipe should be."""
    accepts_scale: Callable = lambda low, high: True
    scale_in_pixels: bool = False
    """Whether `scale` has lengths in pixels, which another size of the images changes."""
    on_batches: bool = False
    """Whether whole batches are padded and cropped, see `pad_and_crop`."""

    def crop_box(self, height, width, recipe, preprocessing, random):
        """The crop box of a training image."""
        if self.function is None:
            return crops.test_crop_box(height, width, preprocessing)
        size = recipe.train_size or preprocessing.size
        return self.function(height, width, size, recipe.scale, random)


MAX_FACTOR = 10
"""Largest factor by which an image may be enlarged beyond its size in testing."""
_BY_FACTORS = TrainCrop(
    for_classifiers=False,
    expected_scale=f"two factors of the size, the smaller first, at most {MAX_FACTOR}",
    accepts_scale=lambda low, high: 0 < low <= high <= MAX_FACTOR,
)
TRAIN_CROPS = {
    "none": TrainCrop(for_detectors=detection_crops.whole_image, for_segmenters=segmentation_crops.test_size),
    "pad": TrainCrop(on_batches=True),
    "scale_jitter": TrainCrop(
        crops.scale_jitter_box,
        expected_scale=f"two lengths in pixels, the smaller first, at most {MAX_SIDE:,}",
        accepts_scale=lambda low, high: 1 <= low <= high <= MAX_SIDE,
        scale_in_pixels=True,
    ),
    "random_resized": TrainCrop(
        crops.random_resized_box,
        expected_scale="two fractions of the area, the smaller first",
        accepts_scale=lambda low, high: 0 < low <= high <= 1,
    ),
    "shorter_side_jitter": replace(_BY_FACTORS, for_detectors=detection_crops.shorter_side_jitter),
    "large_scale_jitter": replace(_BY_FACTORS, for_detectors=detection_crops.large_scale_jitter),
    "random_scaled": replace(_BY_FACTORS, for_segmenters=segmentation_crops.random_size),
    "overlap": TrainCrop(
        for_detectors=detection_crops.overlap_crop,
        for_classifiers=False,
        expected_scale="two fractions of the sides, the smaller first",
        accepts_scale=lambda low, high: 0 < low <= high <= 1,
    ),
}

# Principal components of the RGB values of ImageNet's pixels in 0..1, one per column, and their standard deviations:
# fb.resnet.torch, datasets/imagenet.lua
COLOR_COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
COLOR_STDS = (0.2175, 0.0188, 0.0045)
COLOR_NOISE = (255 * np.multiply(COLOR_COMPONENTS, COLOR_STDS)).T.astype("float32")
"""(3, 3): the RGB value, in 0..255, that is added for one standard deviation along each component."""

ERASED_AREA = (0.02, 0.33)
ERASED_ASPECT_RATIO = (0.3, 3.3)


def sample_numbers(recipe, random):
    """The random numbers that `augment_batch` needs; `random` is a NumPyRandom or TensorFlowRandom."""
    return {
        "crop": random.uniform(2),
        "flip": random.uniform(),
        "lighting": random.normal(3),
        "erasing": random.uniform(5),
        "choice": random.batch_uniform(1)[0],
        "mixup": random.batch_beta(recipe.mixup or 1.0),
        "cutmix": random.batch_beta(recipe.cutmix or 1.0),
        "centre": random.batch_uniform(2),
    }


def augment_batch(images, labels, recipe, num_classes, mode, numbers, class_weights=None):
    """Augments and normalises a batch of cropped images.

    Args:
        images: (B, H, W, C) uint8.
        labels: (B,) integers from 0 to K - 1, where K is `num_classes`; or multi-label (B, K) zeros and ones.
        recipe: Recipe.
        mode: as for `normalize`.
        numbers: random numbers of `sample_numbers`.
        class_weights: (K,) float32, factors of the loss of each class's images; None for no weights.

    Returns:
        Images (B, H, W, C) float32 and labels (B, K) float32; with `class_weights` also weights (B,) float32: those of
        the classes, averaged by their shares in a mixed image, before label smoothing.
    """
    if TRAIN_CROPS[recipe.crop].on_batches:
        images = pad_and_crop(images, recipe.padding, numbers["crop"])
    if recipe.flip:
        images = flip(images, numbers["flip"])
    if recipe.lighting:
        images = lighting(images, numbers["lighting"], recipe.lighting)
    images = normalize(images, mode, data_format="channels_last")
    if recipe.erasing:
        images = erase(images, numbers["erasing"], recipe.erasing)
    multi_label = len(labels.shape) == 2
    labels = ops.cast(labels, "float32") if multi_label else ops.one_hot(labels, num_classes, dtype="float32")
    if recipe.mixup or recipe.cutmix:
        images, labels = blend(images, labels, mixing_weights(images, recipe, numbers))
    weights = () if class_weights is None else (ops.matmul(labels, class_weights),)
    labels = smooth_labels(labels, 2 if multi_label else num_classes, recipe.label_smoothing)
    if recipe.target_threshold is not None:
        labels = binarize(labels, recipe.target_threshold)
    return images, labels, *weights


def pad_and_crop(images, padding, u):
    """Pads images with black and crops them to their size at random, u (B, 2) (He et al. 2015, sec. 4.2)."""
    batch, height, width, channels = ops.shape(images)
    sides = (padding, padding)
    padded = ops.pad(images, ((0, 0), sides, sides, (0, 0)))
    corners = crop_corners(u, padding)
    rows = corners[:, 0, None] + ops.arange(height)
    columns = corners[:, 1, None] + ops.arange(width)
    # One gather of pixels from the whole batch is faster than one gather along each axis
    rows = ops.arange(batch)[:, None] * (height + 2 * padding) + rows
    pixels = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    return ops.take(ops.reshape(padded, (-1, channels)), pixels, axis=0)


def crop_corners(u, padding):
    """(B, 2) int32: row and column at which `pad_and_crop` begins in the padded images."""
    return _random_integers(u, 2 * padding + 1)


def flip(images, u):
    """Mirrors the images for which u (B,) is below 0.5."""
    return ops.where((u < 0.5)[:, None, None, None], ops.flip(images, axis=2), images)


def lighting(images, normals, std=0.1):
    """Adds a random colour to each image, along ImageNet's principal components (Krizhevsky et al. 2012, sec. 4.1).

    Args:
        images: (B, H, W, 3) in 0..255, RGB.
        normals: (B, 3), from the standard normal distribution.
        std: standard deviation of the components' factors.

    Returns:
        float32; values may lie slightly outside 0..255, as in fb.resnet.torch.
    """
    colors = ops.matmul(ops.cast(normals, "float32"), COLOR_NOISE)
    return ops.cast(images, "float32") + std * colors[:, None, None, :]


def mixing_weights(images, recipe, numbers):
    """Weights for `blend`: of Mixup or CutMix, each for half of the batches if the recipe has both."""
    weights = []
    if recipe.mixup:
        weights.append(mixup_weights(images, numbers["mixup"]))
    if recipe.cutmix:
        weights.append(cutmix_weights(images, numbers["cutmix"], numbers["centre"]))
    return ops.where(numbers["choice"] < 0.5, weights[0], weights[-1])


def blend(images, labels, weights):
    """Blends a batch with the reversed batch; `weights` (H, W, 1) are those of each image's own pixels.

    Labels (B, K) are blended by the mean weight: in CutMix, by the area that remains when the box is clipped.
    """
    images, labels = ops.convert_to_tensor(images), ops.convert_to_tensor(labels)
    weight = ops.mean(weights)
    blended = weights * images + (1 - weights) * ops.flip(images, axis=0)
    return blended, weight * labels + (1 - weight) * ops.flip(labels, axis=0)


def mixup_weights(images, weight):
    """(H, W, 1), all equal (arXiv:1710.09412)."""
    return ops.broadcast_to(ops.cast(weight, "float32"), (*ops.shape(images)[1:3], 1))


def cutmix_weights(images, weight, u):
    """(H, W, 1): 1 outside a box, which is the same for all images, and 0 inside (arXiv:1905.04899).

    `weight` is the area outside as a fraction, before the box is clipped; u (2,) is its centre. See rand_bbox of
    timm/data/mixup.py.
    """
    side = ops.sqrt(1 - ops.cast(weight, "float32"))
    rows, columns = (
        _in_interval(length, _random_integers(u[axis], length) - half, _random_integers(u[axis], length) + half)
        for axis, length in enumerate(ops.shape(images)[1:3])
        for half in [ops.cast(length * side, "int32") // 2]
    )
    return 1 - ops.cast(ops.logical_and(rows[:, None], columns), "float32")[..., None]


def erase(images, u, probability):
    """Sets a rectangle of images to 0, the mean colour of normalised images, with a probability (arXiv:1708.04896).

    Areas are 2 to 33% of the image and aspect ratios 0.3 to 3.3, uniform in their logarithm, as in torchvision's
    RandomErasing; but a side that is too long is shortened instead of sampled again. `u` is (B, 5).
    """
    height, width = ops.shape(images)[1:3]
    area = _interpolate(*ERASED_AREA, u[:, 1])
    root = ops.exp(_interpolate(*map(math.log, ERASED_ASPECT_RATIO), u[:, 2]) / 2)
    size = ops.sqrt(area * ops.cast(height * width, "float32"))
    rows = _random_interval(height, size * root, u[:, 3])
    columns = _random_interval(width, size / root, u[:, 4])
    erased = ops.logical_and(rows[:, :, None], columns[:, None, :])
    erased = ops.logical_and(erased, (u[:, 0] < probability)[:, None, None])
    return ops.where(erased[..., None], ops.zeros_like(images), images)


def smooth_labels(labels, num_outcomes, smoothing):
    """Labels (B, K) with label smoothing (Szegedy et al. 2016, arXiv:1512.00567, sec. 7).

    The share is spread over K outcomes, or for multi-label images over two each, as in
    `keras.losses.BinaryCrossentropy`.
    """
    return (1 - smoothing) * labels + smoothing / num_outcomes


def binarize(labels, threshold):
    """Targets of binary cross-entropy: 1 for each class whose probability is above a threshold (arXiv:2110.00476)."""
    return ops.cast(labels > threshold, labels.dtype)


def _random_integers(u, count):
    """u in [0, 1) -> int32 in 0..count - 1; the minimum is needed as float32 may round up to `count`."""
    return ops.minimum(ops.cast(ops.cast(u, "float32") * ops.cast(count, "float32"), "int32"), count - 1)


def _interpolate(low, high, u):
    return low + (high - low) * ops.cast(u, "float32")


def _in_interval(length, start, stop):
    """(length,) booleans, or (B, length): True in [start, stop)."""
    indices = ops.arange(length)
    return ops.logical_and(indices >= start, indices < stop)


def _random_interval(length, sides, u):
    """(B, length) booleans: for each image, an interval of rounded length `sides` (B,) at a random position."""
    sides = ops.minimum(ops.cast(ops.round(sides), "int32"), length)
    starts = _random_integers(u, length - sides + 1)
    return _in_interval(length, starts[:, None], (starts + sides)[:, None])
