"""Crop boxes of images, on any Keras backend: of one image inside tf.data, or of a whole batch.

A crop box is (..., 4) float32: top, left, height and width in pixels of the image. It may lie between pixels, and reach
beyond the image, which is black there. Heights and widths are integers, (...). `random` is an object of
random_numbers.py for as many images; equal random numbers give equal boxes.
"""

import math

import numpy as np
from keras import ops

ATTEMPTS = 10
"""Attempts of `random_resized_box` to sample a box that fits."""


def whole_image_box(height, width):
    """The box of the whole image."""
    sides = _sides(height, width)
    return ops.cast(ops.concatenate([ops.zeros_like(sides), sides], axis=-1), "float32")


def test_crop_box(height, width, preprocessing):
    """The box of a test image: the pixels that `Preprocessing` and torchvision's Resize and CenterCrop keep."""
    if preprocessing.resize is None:
        return whole_image_box(height, width)

    def centered(margin):
        return ops.where(margin > 0, ops.round(margin / 2), -ops.floor(-margin / 2))

    return _box_in_resized(height, width, preprocessing.resize, preprocessing.size, centered)


def scale_jitter_box(height, width, size, scale, random):
    """A random `size` x `size` box after the shorter side is resized at random (He et al. 2015, sec. 3.4).

    `scale` is the smallest and largest length of the shorter side in pixels, both included.
    """
    resize = int(scale[0]) + ops.cast(random.uniform() * (scale[1] - scale[0] + 1), "int32")
    position = random.uniform(2)
    return _box_in_resized(
        height,
        width,
        ops.minimum(resize, int(scale[1])),
        size,
        lambda margin: ops.floor(position * (margin + 1)),
    )


def _box_in_resized(height, width, resize, size, corner):
    """The box of a square in the resized image; `corner` maps the pixels left over to the square's top and left."""
    original = _sides(height, width)
    shorter = ops.min(original, axis=-1, keepdims=True)
    resized = ops.cast(ops.cast(resize, "int32")[..., None] * original // shorter, "float32")
    ratio = ops.cast(original, "float32") / resized
    return ops.concatenate([corner(resized - size) * ratio, size * ratio], axis=-1)


def random_resized_box(height, width, size, scale, random, ratio=(3 / 4, 4 / 3)):
    """A box of random area and aspect ratio (Szegedy et al. 2014, arXiv:1409.4842, sec. 6).

    Sampled as in torchvision's RandomResizedCrop: ten attempts to sample sides that fit, uniform in the area and in the
    logarithm of the aspect ratio; then the largest box in the centre that has an allowed aspect ratio. `scale` is the
    smallest and largest fraction of the image's area, `ratio` of width to height; `size` is ignored.
    """
    u, position = random.uniform(2, ATTEMPTS), random.uniform(2)
    original = ops.cast(_sides(height, width), "float32")
    area = ops.prod(original, axis=-1, keepdims=True) * (scale[0] + (scale[1] - scale[0]) * u[..., 0, :])
    root = ops.exp((math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * u[..., 1, :]) / 2)
    attempts = ops.round(ops.sqrt(area)[..., None] * ops.stack([1 / root, root], axis=-1))
    fits = ops.all((attempts > 0) & (attempts <= original[..., None, :]), axis=-1, keepdims=True)
    is_first = fits & (ops.cumsum(ops.cast(fits, "int32"), axis=-2) == 1)
    sampled = ops.sum(ops.where(is_first, attempts, 0.0), axis=-2)
    extremes = np.array([1 / ratio[0], ratio[1]], "float32")
    largest = ops.minimum(original, ops.round(ops.flip(original, axis=-1) * extremes))
    sides = ops.where(ops.any(fits, axis=-2), sampled, largest)
    margin = original - sides
    corner = ops.where(ops.any(fits, axis=-2), ops.floor(position * (margin + 1)), ops.floor(margin / 2))
    return ops.concatenate([corner, sides], axis=-1)


def _sides(height, width):
    """(..., 2) int32."""
    return ops.stack([ops.cast(height, "int32"), ops.cast(width, "int32")], axis=-1)
