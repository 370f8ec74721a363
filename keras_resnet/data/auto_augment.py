"""Policies that change one image at random, inside tf.data: RandAugment as timm has it, and TrivialAugment.

Keras's RandAugment layer does not serve here: it computes all its operations for every image, twice, to keep two;
chooses once for a whole batch; rotates by up to half a turn; and its random state cannot be resumed.

Every operation is Pillow's, from a uint8 image (H, W, C), C = 1 or 3, and a strength to one of the same kind.
"""

import math
from functools import partial
from typing import NamedTuple

import tensorflow as tf

GREY = 128
"""Level of what an affine operation brings in from beyond the image."""


class Strength(NamedTuple):
    """Magnitude in 0..1 -> what an operation takes, from `least` to `most`."""

    least: float = 0.0
    most: float = 0.0
    either_way: bool = False
    """Whether half of the images get the opposite, seen from `least`."""

    def __call__(self, magnitude, u):
        sign = tf.where(u < 0.5, -1.0, 1.0) if self.either_way else 1.0
        return self.least + sign * magnitude * (self.most - self.least)


def rand_augment(image, layers, magnitude, magnitude_std, seed):
    """RandAugment (arXiv:1909.13719) as in timm's "rand-m<magnitude>-n<layers>-mstd<magnitude_std>-inc1".

    That is what "ResNet strikes back" (arXiv:2110.00476) trained with. Each layer is one of RAND_AUGMENT, and is left
    out half of the time. Other than there, what comes in from beyond the image is grey whatever the normalisation,
    and interpolation is always bilinear.

    Args:
        image: uint8 (H, W, C), C = 1 or 3.
        layers: number of operations, one after the other.
        magnitude: mean strength, from 0 to 10.
        magnitude_std: its standard deviation; it is drawn for each operation, and kept within 0 to 10.
        seed: tensor of two integers.

    Returns:
        uint8 (H, W, C).
    """
    u = tf.random.stateless_uniform((layers, 4), seed, 1e-7)  # not 0, for which no normal variable is finite
    strengths = tf.clip_by_value((magnitude + magnitude_std * tf.math.ndtri(u[:, 0])) / 10, 0, 1)
    for layer in range(layers):
        image = _one_of(RAND_AUGMENT, image, strengths[layer], 2 * u[layer, 1], u[layer, 2])
    return image


def trivial_augment(image, seed):
    """TrivialAugment (arXiv:2103.10158), "wide", as in torchvision: one of TRIVIAL_AUGMENT in one of 31 strengths.

    Args:
        image: uint8 (H, W, C), C = 1 or 3.
        seed: tensor of two integers.

    Returns:
        uint8 (H, W, C).
    """
    u = tf.random.stateless_uniform((3,), seed)
    return _one_of(TRIVIAL_AUGMENT, image, tf.floor(31 * u[1]) / 30, u[0], u[2])


def _one_of(rows, image, magnitude, which, direction):
    """The image after the row at `which` in [0, 1), the only one that is computed; as it was from 1 on."""

    def branch(operation, strength):
        return lambda: operation(image, strength(magnitude, direction))

    branches = [branch(*row) for row in rows.values()]
    chosen = tf.switch_case(tf.cast(which * len(rows), "int32"), [*branches, lambda: image])
    return tf.ensure_shape(chosen, image.shape)


def identity(image, _):
    return image


def auto_contrast(image, _):
    """Each channel's darkest level becomes 0 and its brightest 255."""
    low, high = (tf.cast(f(image, axis=(0, 1)), "float64")[:, None] for f in (tf.reduce_min, tf.reduce_max))
    levels = tf.range(256, dtype="float64")
    scale = 255 / tf.maximum(high - low, 1)
    return _through_table(image, tf.where(high > low, levels * scale - low * scale, levels))


def equalize(image, _):
    """Each channel's levels become about equally frequent, in the integers of Pillow's ImageOps.equalize."""
    channels = image.shape[-1]
    places = tf.cast(image, "int32") + 256 * tf.range(channels)
    counts = tf.reshape(tf.math.bincount(tf.reshape(places, [-1]), minlength=256 * channels), (channels, 256))
    brightest = tf.gather(counts, tf.cast(tf.reduce_max(image, axis=(0, 1)), "int32"), batch_dims=1)
    step = (tf.size(image) // channels - brightest)[:, None] // 255
    table = (step // 2 + tf.cumsum(counts, axis=1, exclusive=True)) // tf.maximum(step, 1)
    return _through_table(image, tf.where(step > 0, table, tf.range(256)))


def invert(image, _):
    return 255 - image


def posterize(image, bits):
    """Keeps the highest bits of each level, their number rounded up."""
    dropped = 8 - tf.cast(tf.math.ceil(bits), "int32")
    return tf.bitwise.bitwise_and(image, tf.cast(256 - tf.bitwise.left_shift(1, dropped), "uint8"))


def solarize(image, threshold):
    """Inverts the levels from a threshold on."""
    return tf.where(tf.cast(image, "float32") < threshold, image, 255 - image)


def solarize_add(image, added):
    """Brightens the darker half of the levels."""
    return tf.where(image < 128, image + tf.cast(added, "uint8"), image)


def color(image, factor):
    """From grey at 0 over unchanged at 1 to more saturated."""
    return _blend(_luma(image), image, factor)


def contrast(image, factor):
    mean = tf.reduce_mean(tf.cast(_luma(image), "float32"))
    return _blend(tf.floor(mean + 0.5), image, factor)


def brightness(image, factor):
    return _blend(0, image, factor)


def sharpness(image, factor):
    """From smoothed at 0 over unchanged at 1 to sharpened; the outermost pixels stay."""
    levels = tf.cast(image, "float32")
    inner = levels[1:-1, 1:-1]
    rows = levels[:-2] + levels[1:-1] + levels[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    smooth = tf.round((box + 4 * inner) / 13)
    return _blend(levels + tf.pad(smooth - inner, ((1, 1), (1, 1), (0, 0))), levels, factor)


def rotate(image, degrees, fill=GREY):
    """Counterclockwise around the middle."""
    radians = degrees * (math.pi / 180)
    cosine, sine = tf.cos(radians), tf.sin(radians)
    height, width = (tf.cast(side, "float32") / 2 for side in tf.unstack(tf.shape(image)[:2]))
    across = (cosine, -sine, width - cosine * width + sine * height)
    down = (sine, cosine, height - sine * width - cosine * height)
    return _affine(image, across, down, fill)


def shear_x(image, factor, fill=GREY):
    return _affine(image, (1, factor, 0), (0, 1, 0), fill)


def shear_y(image, factor, fill=GREY):
    return _affine(image, (1, 0, 0), (factor, 1, 0), fill)


def translate_x(image, share, fill=GREY):
    """By a share of the width."""
    return _affine(image, (1, 0, share * tf.cast(tf.shape(image)[1], "float32")), (0, 1, 0), fill)


def translate_y(image, share, fill=GREY):
    """By a share of the height."""
    return _affine(image, (1, 0, 0), (0, 1, share * tf.cast(tf.shape(image)[0], "float32")), fill)


def shift_x(image, pixels, fill=GREY):
    """By whole pixels; fractions are cut off."""
    return _affine(image, (1, 0, tf.cast(pixels, "int32")), (0, 1, 0), fill)


def shift_y(image, pixels, fill=GREY):
    """By whole pixels; fractions are cut off."""
    return _affine(image, (1, 0, 0), (0, 1, tf.cast(pixels, "int32")), fill)


def _affine(image, across, down, fill):
    """Each pixel comes from x' = a x + b y + c with `across` = (a, b, c), and y' likewise, as in Pillow; bilinear."""
    # There a pixel's middle is at 0.5, in TensorFlow's operation at 0
    (a, b, c), (d, e, f) = ([tf.cast(value, "float32") for value in row] for row in (across, down))
    matrix = [a, b, c + (a + b - 1) / 2, d, e, f + (d + e - 1) / 2, 0.0, 0.0]
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=[matrix],
        output_shape=tf.shape(image)[:2],
        fill_value=float(fill),
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return moved[0]


def _blend(degenerate, image, factor):
    """Between or beyond two images, fractions cut off as in Pillow."""
    start, end = tf.cast(degenerate, "float32"), tf.cast(image, "float32")
    return tf.saturate_cast(start + factor * (end - start), "uint8")


def _luma(image):
    """Grey as Pillow computes it: (H, W, C) -> (H, W, 1)."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = tf.unstack(tf.cast(image, "int32"), axis=-1)
    return ((19595 * red + 38470 * green + 7471 * blue + 2**15) // 2**16)[..., None]


def _through_table(image, table):
    """Replaces the levels of each channel by those in a table (C, 256), their fractions cut off."""
    places = tf.cast(image, "int32") + 256 * tf.range(image.shape[-1])
    return tf.gather(tf.reshape(tf.saturate_cast(table, "uint8"), [-1]), places)


# timm/data/auto_augment.py: _RAND_INCREASING_TRANSFORMS
RAND_AUGMENT = {
    "auto_contrast": (auto_contrast, Strength()),
    "equalize": (equalize, Strength()),
    "invert": (invert, Strength()),
    "rotate": (rotate, Strength(0, 30, either_way=True)),
    "posterize": (posterize, Strength(4, 0)),
    "solarize": (solarize, Strength(256, 0)),
    "solarize_add": (solarize_add, Strength(0, 110)),
    "color": (color, Strength(1, 1.9, either_way=True)),
    "contrast": (contrast, Strength(1, 1.9, either_way=True)),
    "brightness": (brightness, Strength(1, 1.9, either_way=True)),
    "sharpness": (sharpness, Strength(1, 1.9, either_way=True)),
    "shear_x": (shear_x, Strength(0, 0.3, either_way=True)),
    "shear_y": (shear_y, Strength(0, 0.3, either_way=True)),
    "translate_x": (translate_x, Strength(0, 0.45, either_way=True)),
    "translate_y": (translate_y, Strength(0, 0.45, either_way=True)),
}

# torchvision/transforms/autoaugment.py: TrivialAugmentWide, which brings in black
TRIVIAL_AUGMENT = {
    "identity": (identity, Strength()),
    "shear_x": (partial(shear_x, fill=0), Strength(0, 0.99, either_way=True)),
    "shear_y": (partial(shear_y, fill=0), Strength(0, 0.99, either_way=True)),
    "shift_x": (partial(shift_x, fill=0), Strength(0, 32, either_way=True)),
    "shift_y": (partial(shift_y, fill=0), Strength(0, 32, either_way=True)),
    "rotate": (partial(rotate, fill=0), Strength(0, 135, either_way=True)),
    "brightness": (brightness, Strength(1, 1.99, either_way=True)),
    "color": (color, Strength(1, 1.99, either_way=True)),
    "contrast": (contrast, Strength(1, 1.99, either_way=True)),
    "sharpness": (sharpness, Strength(1, 1.99, either_way=True)),
    "posterize": (posterize, Strength(7.5, 1.5)),  # rounded up: from 8 to 2
    "solarize": (solarize, Strength(255, 0)),
    "auto_contrast": (auto_contrast, Strength()),
    "equalize": (equalize, Strength()),
}
