"""Operations of RandAugment and TrivialAugment on a PIL image of mode "RGB" or "L"."""

import math
from functools import partial

from PIL import Image, ImageEnhance, ImageOps

from keras_resnet.data.auto_augment import affine_operations


def apply_operation(image, policy, index, strength):
    """The operation of a Policy at `index`; after the last, `image` unchanged."""
    name = [*policy.operations, "identity"][index]
    return AFFINE[name](image, strength, policy.fill) if name in AFFINE else LEVELS[name](image, strength)


def enhance(image, factor, enhancement):
    """Interpolates or extrapolates between a degenerate image (0) and the image (1)."""
    return enhancement(image).enhance(factor)


def solarize_add(image, added):
    """Adds to the levels below 128."""
    return image.point([level + int(added) * (level < 128) for level in range(256)] * len(image.getbands()))


def rotate(image, degrees, fill):
    """Rotates counterclockwise around the centre."""
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=_color(image, fill))


def shear(image, factor, fill, axis):
    """Shears along the x axis (0) or the y axis (1)."""
    return _affine(image, [(1, factor, 0, 0, 1, 0), (1, 0, 0, factor, 1, 0)][axis], fill)


def shift(image, pixels, fill, axis):
    """Shifts along the x axis (0) or the y axis (1) by whole pixels, towards zero."""
    return translate(image, int(pixels) / image.size[axis], fill, axis)


def translate(image, fraction, fill, axis):
    """Shifts along the x axis (0) or the y axis (1) by a fraction of the width or height."""
    pixels = fraction * image.size[axis]
    return _affine(image, [(1, 0, pixels, 0, 1, 0), (1, 0, 0, 0, 1, pixels)][axis], fill)


def _affine(image, matrix, fill):
    bilinear = Image.Resampling.BILINEAR
    return image.transform(image.size, Image.Transform.AFFINE, matrix, bilinear, fillcolor=_color(image, fill))


def _color(image, level):
    return (level,) * len(image.getbands())


LEVELS = {
    "identity": lambda image, _: image,
    "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "posterize": lambda image, bits: ImageOps.posterize(image, math.ceil(bits)),
    "solarize": ImageOps.solarize,
    "solarize_add": solarize_add,
    "color": partial(enhance, enhancement=ImageEnhance.Color),
    "contrast": partial(enhance, enhancement=ImageEnhance.Contrast),
    "brightness": partial(enhance, enhancement=ImageEnhance.Brightness),
    "sharpness": partial(enhance, enhancement=ImageEnhance.Sharpness),
}
"""Name -> (image, strength) -> image: changes of the levels of pixels."""
AFFINE = affine_operations(rotate, shear, shift, translate)
"""Name -> (image, strength, fill) -> image, where `fill` is the level outside the image."""
