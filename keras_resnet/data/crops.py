"""Crop boxes of images, and reading a crop of an image file inside tf.data.

A crop box is a float32 tensor (top, left, height, width) in pixels of the image. It may lie between pixels, and reach
beyond the image, which is black there. Heights, widths and sizes are int32 scalars. A seed is a tensor of two integers;
equal seeds give equal boxes.
"""

import math

import tensorflow as tf

KERNELS = {
    # interpolation -> (kernel of ScaleAndTranslate, its radius in pixels, whether it widens when images shrink)
    "nearest": ("box", 0.5, False),
    "bilinear": ("triangle", 1, True),
    "bicubic": ("keyscubic", 2, True),
    "lanczos": ("lanczos3", 3, True),
}
ATTEMPTS = 10
"""Attempts of `random_resized_box` to sample a box that fits."""
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as in Pillow


def whole_image_box(height, width):
    """The box of the whole image."""
    return tf.cast(tf.stack([0, 0, height, width]), "float32")


def test_crop_box(height, width, preprocessing):
    """The box of a test image: the pixels that `Preprocessing` and torchvision's Resize and CenterCrop keep."""
    if preprocessing.resize is None:
        return whole_image_box(height, width)

    def centered(margin):
        return tf.where(margin > 0, tf.round(margin / 2), -((-margin) // 2))

    return _box_in_resized(height, width, preprocessing.resize, preprocessing.size, centered)


def scale_jitter_box(height, width, size, scale, seed):
    """A random `size` x `size` box after the shorter side is resized at random (He et al. 2015, sec. 3.4).

    `scale` is the smallest and largest length of the shorter side in pixels, both included.
    """
    u = tf.random.stateless_uniform((3,), seed)

    def anywhere(margin):
        return tf.floor(u[1:] * (margin + 1))

    resize = scale[0] + tf.cast(u[0] * (scale[1] - scale[0] + 1), "int32")
    return _box_in_resized(height, width, tf.minimum(resize, int(scale[1])), size, anywhere)


def _box_in_resized(height, width, resize, size, corner):
    """The box of a square in the resized image; `corner` maps the pixels left over to the square's top and left."""
    original = tf.stack([height, width])
    resized = tf.cast(resize, "int32") * original // tf.reduce_min(original)
    ratio = tf.cast(original / resized, "float32")
    return tf.concat([corner(tf.cast(resized - size, "float32")) * ratio, size * ratio], axis=0)


def random_resized_box(height, width, size, scale, seed, ratio=(3 / 4, 4 / 3)):
    """A box of random area and aspect ratio (Szegedy et al. 2014, arXiv:1409.4842, sec. 6).

    Sampled as in torchvision's RandomResizedCrop: ten attempts to sample sides that fit, uniform in the area and in the
    logarithm of the aspect ratio; then the largest box in the centre that has an allowed aspect ratio. `scale` is the
    smallest and largest fraction of the image's area, `ratio` of width to height; `size` is ignored.
    """
    u = tf.random.stateless_uniform((ATTEMPTS + 1, 2), seed)
    original = tf.cast(tf.stack([height, width]), "float32")
    area = tf.reduce_prod(original) * (scale[0] + (scale[1] - scale[0]) * u[:ATTEMPTS, 0])
    root = tf.exp((math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * u[:ATTEMPTS, 1]) / 2)
    attempts = tf.round(tf.sqrt(area)[:, None] * tf.stack([1 / root, root], axis=1))
    fits = tf.reduce_all((attempts > 0) & (attempts <= original), axis=1)

    def sampled():
        sides = attempts[tf.argmax(fits)]
        return tf.concat([tf.floor(u[ATTEMPTS] * (original - sides + 1)), sides], axis=0)

    def centered():
        sides = tf.minimum(original, tf.round(original[::-1] * (1 / ratio[0], ratio[1])))
        return tf.concat([(original - sides) // 2, sides], axis=0)

    return tf.cond(tf.reduce_any(fits), sampled, centered)


def image_size(image):
    """(height, width) of an encoded image or of pixels, as int32 scalars. Only the header of JPEG and PNG is read."""
    if image.dtype != tf.string:
        shape = tf.shape(image)
        return shape[0], shape[1]

    def png_size():
        """Width and height follow 8 bytes of signature and 8 bytes of chunk header."""
        sides = tf.io.decode_raw(tf.strings.substr(image, 16, 8), "int32", little_endian=False)
        return tf.ensure_shape(sides, (2,))[::-1]

    shape = tf.case(
        [
            (tf.io.is_jpeg(image), lambda: tf.io.extract_jpeg_shape(image)[:2]),
            (_is_png(image), png_size),
        ],
        default=lambda: tf.shape(tf.io.decode_image(image, expand_animations=False))[:2],
    )
    return shape[0], shape[1]


def _is_png(contents):
    return tf.strings.substr(contents, 0, 8) == b"\x89PNG\r\n\x1a\n"


def read_crop(image, box, size, channels, *, fast=False, interpolation="bilinear"):
    """Reads a crop of an image and resizes it to a square, antialiased as in Pillow.

    JPEG is decoded only inside the box. Pixels around the box contribute as far as the interpolation kernel reaches, as
    in an image that is resized before it is cropped. Transparent pixels become white. The EXIF orientation is ignored.

    Args:
        image: encoded JPEG, PNG, GIF or BMP as a string scalar; or (H, W, C) uint8, grey or RGB.
        box: crop box.
        size: side of the square.
        channels: 3 for RGB, 1 for grey.
        fast: whether JPEG is decoded with a faster, less exact inverse DCT, which is good enough for training.
        interpolation: a name in KERNELS.

    Returns:
        (size, size, channels) uint8. For other contents, executing it raises tf.errors.InvalidArgumentError.
    """
    kernel, radius, antialias = KERNELS[interpolation]
    corner, sides = box[:2], box[2:]
    # One more pixel: the outermost columns of a partly decoded JPEG lack the colour of their neighbours
    margin = radius * tf.maximum(sides / size, 1) + 1
    start = tf.maximum(tf.cast(tf.floor(corner - margin), "int32"), 0)
    stop = tf.cast(tf.math.ceil(corner + sides + margin), "int32")
    pixels = _decode_part(image, start, stop, channels, "INTEGER_FAST" if fast else "INTEGER_ACCURATE")
    square = tf.raw_ops.ScaleAndTranslate(
        images=pixels[None],
        size=(size, size),
        scale=size / sides,
        translation=(tf.cast(start, "float32") - corner) * size / sides,
        kernel_type=kernel,
        antialias=antialias,
    )
    return tf.saturate_cast(tf.round(tf.ensure_shape(square[0], (size, size, channels))), "uint8")


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
    return tf.cond(tf.io.is_jpeg(image), part_of_jpeg, lambda: part_of_pixels(_decode(image, channels)))


def _decode(contents, channels):
    """PNG, GIF or BMP -> (H, W, channels) uint8, on a white background."""
    pixels = tf.cast(tf.io.decode_image(contents, expand_animations=False), "float32")
    depth = tf.shape(pixels)[2]
    has_alpha = (depth % 2 == 0) & _is_png(contents)  # the fourth channel of a BMP is unused
    alpha = tf.cond(has_alpha, lambda: pixels[..., -1:] / 255, lambda: tf.ones_like(pixels[..., :1]))
    opaque = 255 - (255 - pixels[..., : depth - 1 + depth % 2]) * alpha
    return _to_channels(opaque, channels)


def _to_channels(pixels, channels):
    """Grey or RGB pixels -> (H, W, channels) uint8 with 1 or 3 channels."""
    rgb = tf.broadcast_to(tf.cast(pixels, "float32"), (*tf.unstack(tf.shape(pixels)[:2]), 3))
    grey = tf.reduce_sum(rgb * LUMA, axis=-1, keepdims=True)
    return tf.cast(tf.round({1: grey, 3: rgb}[channels]), "uint8")
