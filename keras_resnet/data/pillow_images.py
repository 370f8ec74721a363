"""Images read by Pillow: their sizes, and a crop of an image file, decoded and resized at once.

`tensorflow_images.py` does the same inside tf.data.
"""

import math

import numpy as np
from PIL import Image

from keras_resnet.data.image_files import as_pil_image, orientation_of, with_pil_image

DRAFT_FACTOR = 2
"""A JPEG is decoded with at least this many times the pixels per side that the crop needs."""


def image_size(image):
    """(height, width) of an image, upright; only the header of a file is read.

    Args:
        image: path, contents of a file, or (H, W, C) uint8.
    """
    return image.shape[:2] if isinstance(image, np.ndarray) else with_pil_image(image, _upright_size)


def _upright_size(image):
    return image.size if orientation_of(image) >= 5 else image.size[::-1]


def read_crop(image, box, size, channels):
    """Reads a crop of an image and resizes it to a square, for training.

    Pixels around the box contribute as far as the bilinear kernel reaches, as in an image that is resized before it is
    cropped. A JPEG much larger than the crop is decoded at 1/2, 1/4 or 1/8 of its size.

    Args:
        image: path, contents of a file, or (H, W, C) uint8.
        box: crop box (4,), see crops.py.
        size: side of the square.
        channels: 3 for RGB, 1 for grey.

    Returns:
        A PIL image of mode "RGB" or "L".

    Raises:
        ValueError, OSError: as `load_image`.
    """
    if isinstance(image, np.ndarray):
        return _resized_crop(as_pil_image(image, channels), box, size)

    def read(file):
        full = file.size
        factor = DRAFT_FACTOR * size / min(box[2:])
        draft = file.draft(file.mode, [max(1, math.ceil(side * factor)) for side in full])
        scale = draft[1][2] / full[0] if draft else 1
        return _resized_crop(as_pil_image(file, channels), [scale * value for value in box], size)

    return with_pil_image(image, read)


def _resized_crop(image, box, size):
    """The square of a box of a PIL image; black where the box reaches beyond the image."""
    spans = [_visible(*span, size) for span in zip(box[:2], box[2:], image.size[::-1], strict=True)]
    (top, bottom, rows, row), (left, right, columns, column) = spans
    visible = image.resize((columns, rows), Image.Resampling.BILINEAR, (left, top, right, bottom))
    if visible.size == (size, size):
        return visible
    square = Image.new(image.mode, (size, size))
    square.paste(visible, (column, row))
    return square


def _visible(start, side, length, size):
    """Along one axis: (start and stop of the box within the image, pixels of the square in it, the first of them)."""
    step = side / size
    # Pixels whose centre is in the image
    first = max(0, math.ceil(-start / step - 0.5))
    stop = min(size, math.ceil((length - start) / step - 0.5))
    return max(0, start + first * step), min(length, start + stop * step), stop - first, first
