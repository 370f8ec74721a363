"""Operations of RandAugment and TrivialAugment on an image inside tf.data.

They give the results of Pillow, see `pillow_operations.py`, from (H, W, C) uint8, C = 1 or 3, and a strength to the
same shape and dtype.
"""

import math

import tensorflow as tf

from keras_resnet.data.auto_augment import affine_operations

compiled = tf.function(jit_compile=True, autograph=False)
"""Decorator of functions of pixels: XLA makes one pass over them, which takes a fraction of the time."""


def apply_operation(image, policy, index, strength):
    """The operation of a Policy at `index`, an int32 scalar, computed alone; after the last, `image` unchanged."""

    def branch(name):
        if name in AFFINE:
            return lambda: AFFINE[name](image, strength, policy.fill)
        return lambda: LEVELS[name](image, strength)

    result = tf.switch_case(index, [*map(branch, policy.operations), lambda: image])
    return tf.ensure_shape(result, image.shape)


def identity(image, _):
    return image


def auto_contrast(image, _):
    """Scales each channel to 0..255."""
    low, high = (tf.cast(f(image, axis=(0, 1)), "float64")[:, None] for f in (tf.reduce_min, tf.reduce_max))
    levels = tf.range(256, dtype="float64")
    scale = 255 / tf.maximum(high - low, 1)
    return _through_table(image, tf.where(high > low, levels * scale - low * scale, levels))


def equalize(image, _):
    """Equalises the histogram of each channel, in the integer arithmetic of Pillow's ImageOps.equalize."""
    channels = image.shape[-1]
    bins = tf.cast(image, "int32") + 256 * tf.range(channels)
    counts = tf.reshape(tf.math.bincount(tf.reshape(bins, [-1]), minlength=256 * channels), (channels, 256))
    brightest = tf.gather(counts, tf.cast(tf.reduce_max(image, axis=(0, 1)), "int32"), batch_dims=1)
    step = (tf.size(image) // channels - brightest)[:, None] // 255
    table = (step // 2 + tf.cumsum(counts, axis=1, exclusive=True)) // tf.maximum(step, 1)
    return _through_table(image, tf.where(step > 0, table, tf.range(256)))


def invert(image, _):
    return 255 - image


def posterize(image, bits):
    """Keeps the highest bits of each level; their number is rounded up."""
    dropped = 8 - tf.cast(tf.math.ceil(bits), "int32")
    return tf.bitwise.bitwise_and(image, tf.cast(256 - tf.bitwise.left_shift(1, dropped), "uint8"))


@compiled
def solarize(image, threshold):
    """Inverts the levels at and above a threshold."""
    return tf.where(tf.cast(image, "float32") < threshold, image, 255 - image)


@compiled
def solarize_add(image, added):
    """Adds to the levels below 128."""
    return tf.where(image < 128, image + tf.cast(added, "uint8"), image)


@compiled
def color(image, factor):
    """Changes the saturation: 0 is grey, 1 unchanged."""
    return _blend(_luma(image), image, factor)


@compiled
def contrast(image, factor):
    mean = tf.reduce_mean(tf.cast(_luma(image), "float32"))
    return _blend(tf.floor(mean + 0.5), image, factor)


def brightness(image, factor):
    return _blend(0, image, factor)


@compiled
def sharpness(image, factor):
    """Changes the sharpness: 0 is smoothed, 1 unchanged. The outermost pixels are unchanged."""
    levels = tf.cast(image, "float32")
    inner = levels[1:-1, 1:-1]
    rows = levels[:-2] + levels[1:-1] + levels[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    smooth = tf.round((box + 4 * inner) / 13)
    return _blend(levels + tf.pad(smooth - inner, ((1, 1), (1, 1), (0, 0))), levels, factor)


def rotate(image, degrees, fill):
    """Rotates counterclockwise around the centre."""
    radians = degrees * (math.pi / 180)
    cosine, sine = tf.cos(radians), tf.sin(radians)
    height, width = (tf.cast(side, "float32") / 2 for side in tf.unstack(tf.shape(image)[:2]))
    across = (cosine, -sine, width - cosine * width + sine * height)
    down = (sine, cosine, height - sine * width - cosine * height)
    return _affine(image, across, down, fill)


def shear(image, factor, fill, axis):
    """Shears along the x axis (0) or the y axis (1)."""
    x, y = (factor if each == axis else 0 for each in (0, 1))
    return _affine(image, (1, x, 0), (y, 1, 0), fill)


def shift(image, pixels, fill, axis):
    """Shifts along the x axis (0) or the y axis (1) by whole pixels, towards zero."""
    x, y = (tf.cast(pixels, "int32") if each == axis else 0 for each in (0, 1))
    return _affine(image, (1, 0, x), (0, 1, y), fill)


def translate(image, fraction, fill, axis):
    """Shifts along the x axis (0) or the y axis (1) by a fraction of the width or height."""
    x, y = (fraction * tf.cast(tf.shape(image)[1 - each], "float32") if each == axis else 0 for each in (0, 1))
    return _affine(image, (1, 0, x), (0, 1, y), fill)


@compiled
def _affine(image, across, down, fill):
    """Samples each pixel at x' = a x + b y + c, `across` = (a, b, c), and y' likewise, as in Pillow; bilinear."""
    height, width, channels = image.shape
    padded = tf.pad(image, ((1, 2), (1, 2), (0, 0)), constant_values=fill)
    pixels, row = tf.reshape(padded, (-1, channels)), width + 3
    y, x = tf.range(height, dtype="float32")[:, None] + 0.5, tf.range(width, dtype="float32") + 0.5

    def position(coefficients, length):
        """(H, W) coordinate in the image: its whole part, at least -1, and its fraction."""
        a, b, c = (tf.cast(value, "float32") for value in coefficients)
        coordinate = tf.clip_by_value(a * x + b * y + c - 0.5, -1, length)
        return tf.cast(tf.floor(coordinate), "int32"), (coordinate - tf.floor(coordinate))[..., None]

    (left, right_share), (top, bottom_share) = position(across, width), position(down, height)
    corner = (top + 1) * row + left + 1

    def blended_row(first):
        left, right = (tf.cast(tf.gather(pixels, first + i), "float32") for i in (0, 1))
        return left + right_share * (right - left)

    upper, lower = blended_row(corner), blended_row(corner + row)
    return tf.cast(upper + bottom_share * (lower - upper), "uint8")


def _blend(degenerate, image, factor):
    """Interpolates or extrapolates between two images, rounded towards zero as in Pillow."""
    start, end = tf.cast(degenerate, "float32"), tf.cast(image, "float32")
    return tf.saturate_cast(start + factor * (end - start), "uint8")


def _luma(image):
    """Grey levels (H, W, 1) as in Pillow."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = tf.unstack(tf.cast(image, "int32"), axis=-1)
    return ((19595 * red + 38470 * green + 7471 * blue + 2**15) // 2**16)[..., None]


@compiled
def _through_table(image, table):
    """Replaces the levels of each channel by those in a table (C, 256), rounded towards zero."""
    indices = tf.cast(image, "int32") + 256 * tf.range(image.shape[-1])
    return tf.gather(tf.reshape(tf.saturate_cast(table, "uint8"), [-1]), indices)


LEVELS = {
    "identity": identity,
    "auto_contrast": auto_contrast,
    "equalize": equalize,
    "invert": invert,
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "color": color,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
}
"""Name -> (image, strength) -> image: changes of the levels of pixels."""
AFFINE = affine_operations(rotate, shear, shift, translate)
"""Name -> (image, strength, fill) -> image, where `fill` is the level outside the image."""
