"""Images inside tf.data: their sizes, and a crop of an image file, decoded and resized at once.

`pillow_images.py` does the same without TensorFlow.
"""

import tensorflow as tf

from keras_resnet.data.tensorflow_limits import header_size, is_png
from keras_resnet.data.tensorflow_orientations import stored_box, turn_upright, upright_size

KERNELS = {
    # interpolation -> (kernel of ScaleAndTranslate, its radius in pixels, whether it widens when images shrink)
    "nearest": ("box", 0.5, False),
    "bilinear": ("triangle", 1, True),
    "bicubic": ("keyscubic", 2, True),
    "lanczos": ("lanczos3", 3, True),
}
DCT_METHODS = {True: "INTEGER_FAST", False: "INTEGER_ACCURATE"}
"""Whether JPEG is decoded fast -> the inverse cosine transform."""
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as in Pillow


def image_size(image, orientation=None):
    """(height, width) of an encoded image or of pixels, int32 scalars. Only the header of JPEG and PNG is read.

    `orientation`: EXIF orientation from 1 to 8, None for upright.
    """
    return tuple(tf.unstack(upright_size(_stored_size(image), orientation)))


def _stored_size(image):
    """(2,) height and width, whatever the orientation."""
    if image.dtype != tf.string:
        return tf.shape(image)[:2]

    return header_size(image, lambda: tf.shape(tf.io.decode_image(image, expand_animations=False))[:2])


def read_crop(image, box, size, channels, *, orientation=None, fast=False, interpolation="bilinear"):
    """Reads a crop of an image and resizes it to a square, antialiased as in Pillow.

    JPEG is decoded only inside the box. Pixels around the box contribute as far as the interpolation kernel reaches, as
    in an image that is resized before it is cropped. Transparent pixels become white.

    Args:
        image: encoded JPEG, PNG, GIF or BMP as a string scalar; or (H, W, C) uint8, grey or RGB.
        box: crop box of the upright image.
        size: side of the square.
        channels: 3 for RGB, 1 for grey.
        orientation: EXIF orientation of an encoded image, from 1 to 8; None for upright.
        fast: whether JPEG is decoded with a faster, less exact inverse DCT, which is good enough for training.
        interpolation: a name in KERNELS.

    Returns:
        (size, size, channels) uint8. For other contents, executing it raises tf.errors.InvalidArgumentError.
    """
    kernel, radius, antialias = KERNELS[interpolation]
    if orientation is not None:
        box = stored_box(box, _stored_size(image), orientation)
    corner, sides = box[:2], box[2:]
    # One more pixel: the outermost columns of a partly decoded JPEG lack the colour of their neighbours
    margin = radius * tf.maximum(sides / size, 1) + 1
    start = tf.maximum(tf.cast(tf.floor(corner - margin), "int32"), 0)
    stop = tf.cast(tf.math.ceil(corner + sides + margin), "int32")
    pixels = _decode_part(image, start, stop, channels, DCT_METHODS[fast])
    square = tf.raw_ops.ScaleAndTranslate(
        images=pixels[None],
        size=(size, size),
        scale=size / sides,
        translation=(tf.cast(start, "float32") - corner) * size / sides,
        kernel_type=kernel,
        antialias=antialias,
    )
    pixels = tf.saturate_cast(tf.round(tf.ensure_shape(square[0], (size, size, channels))), "uint8")
    return turn_upright(pixels, orientation)


def _decode_part(image, start, stop, channels, dct_method):
    """uint8 pixels of the rows and columns in [start, stop), clipped to the image."""

    def part_of_jpeg():
        sides = tf.minimum(stop, tf.io.extract_jpeg_shape(image)[:2]) - start
        window = tf.concat([start, sides], axis=0)
        return tf.io.decode_and_crop_jpeg(image, window, channels, dct_method=dct_method)

    def part_of_pixels(pixels):
        return pixels[start[0] : stop[0], start[1] : stop[1]]

    if image.dtype != tf.string:
        pixels = part_of_pixels(image)
        return pixels if image.shape[-1] == channels else _to_channels(pixels, channels)
    return tf.cond(tf.io.is_jpeg(image), part_of_jpeg, lambda: _decode_other(image, channels, part_of_pixels))


def decode(image, channels, *, fast=False):
    """(H, W, channels) uint8 of an encoded image, whatever its orientation; arguments as of `read_crop`."""
    return tf.cond(
        tf.io.is_jpeg(image),
        lambda: tf.io.decode_jpeg(image, channels, dct_method=DCT_METHODS[fast]),
        lambda: _decode_other(image, channels),
    )


def _decode_other(contents, channels, part=tf.identity):
    """PNG, GIF or BMP -> (H, W, channels) uint8, on a white background; `part`: a function of the decoded pixels."""
    pixels = part(tf.io.decode_image(contents, expand_animations=False))
    depth = tf.shape(pixels)[2]
    has_alpha = (depth % 2 == 0) & is_png(contents)  # the fourth channel of a BMP is unused
    colours = pixels[..., : depth - 1 + depth % 2]
    return _to_channels(tf.cond(has_alpha, lambda: _on_white(colours, pixels[..., -1:]), lambda: colours), channels)


def _on_white(colours, alpha):
    """Transparent pixels in front of white, uint8, rounded; integers take half the memory of floats."""
    darkness = tf.cast(255 - colours, "uint16") * tf.cast(alpha, "uint16")  # up to 255 * 255
    return 255 - tf.cast((darkness + 127) // 255, "uint8")


def _to_channels(pixels, channels):
    """Grey or RGB pixels -> (H, W, channels) uint8 with 1 or 3 channels."""
    rgb = tf.broadcast_to(pixels, (*tf.unstack(tf.shape(pixels)[:2]), 3))
    if channels == 3:
        return rgb
    return tf.cast(tf.round(tf.reduce_sum(tf.cast(rgb, "float32") * LUMA, axis=-1, keepdims=True)), "uint8")
