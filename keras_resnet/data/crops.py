"""Which part of an image the network sees, and reading just that part, inside tf.data.

A window is a float32 tensor (top, left, height, width) in pixels of the image; it need not lie on whole ones, and
what it shows beyond the image is black. Sides are int32 scalars. A seed is a tensor of two integers; the same seed
always gives the same window.
"""

import math

import tensorflow as tf

KERNELS = {
    # Kernel of ScaleAndTranslate, how far it reaches in pixels, and whether it widens as images shrink
    "nearest": ("box", 0.5, False),
    "bilinear": ("triangle", 1, True),
    "bicubic": ("keyscubic", 2, True),
    "lanczos": ("lanczos3", 3, True),
}
TRIES = 10
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as in Pillow


def whole(height, width):
    """All of the image, whatever its proportions."""
    return tf.cast(tf.stack([0, 0, height, width]), "float32")


def central(height, width, shorter, size):
    """What is left after the shorter side is resized to `shorter` and the middle `size` x `size` is cropped.

    To the pixel what `Preprocessing` crops, and torchvision's Resize and CenterCrop.
    """

    def middle(spare):
        return tf.where(spare > 0, tf.round(spare / 2), -((-spare) // 2))

    return _crop_of_resized(height, width, shorter, size, middle)


def scale_jitter(height, width, shorter, size, seed):
    """`size` x `size` anywhere in the image after its shorter side is resized at random (He et al. 2015, sec. 3.4).

    Args:
        height, width: of the image.
        shorter: (least, most) pixels of the shorter side, both included.
        size: side of the crop.
        seed: two integers.
    """
    u = tf.random.stateless_uniform((3,), seed)

    def anywhere(spare):
        return tf.floor(u[1:] * (spare + 1))

    side = shorter[0] + tf.cast(u[0] * (shorter[1] - shorter[0] + 1), "int32")
    return _crop_of_resized(height, width, tf.minimum(side, int(shorter[1])), size, anywhere)


def _crop_of_resized(height, width, shorter, size, place):
    """The window that a square crop of the resized image shows; `place` maps the spare pixels to a corner."""
    given = tf.stack([height, width])
    resized = tf.cast(shorter, "int32") * given // tf.reduce_min(given)
    scale = tf.cast(given / resized, "float32")
    return tf.concat([place(tf.cast(resized - size, "float32")) * scale, size * scale], axis=0)


def random_resized(height, width, seed, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """A random part of the area in random proportions (Szegedy et al. 2014, arXiv:1409.4842, sec. 6).

    The law is that of torchvision's RandomResizedCrop: ten tries to draw sides that fit, each uniform in the area and
    in the logarithm of the proportions; then the largest window in the middle whose proportions are allowed.

    Args:
        height, width: of the image.
        seed: two integers.
        scale: (least, most) share of the image's area.
        ratio: (least, most) width divided by height.
    """
    u = tf.random.stateless_uniform((TRIES + 1, 2), seed)
    given = tf.cast(tf.stack([height, width]), "float32")
    area = tf.reduce_prod(given) * (scale[0] + (scale[1] - scale[0]) * u[:TRIES, 0])
    root = tf.exp((math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * u[:TRIES, 1]) / 2)
    tries = tf.round(tf.sqrt(area)[:, None] * tf.stack([1 / root, root], axis=1))
    fits = tf.reduce_all((tries > 0) & (tries <= given), axis=1)

    def drawn():
        sides = tries[tf.argmax(fits)]
        return tf.concat([tf.floor(u[TRIES] * (given - sides + 1)), sides], axis=0)

    def middle():
        sides = tf.minimum(given, tf.round(given[::-1] * (1 / ratio[0], ratio[1])))
        return tf.concat([(given - sides) // 2, sides], axis=0)

    return tf.cond(tf.reduce_any(fits), drawn, middle)


def test_window(height, width, preprocessing):
    """What a network that is not trained sees of an image, by its `Preprocessing`."""
    if preprocessing.resize is None:
        return whole(height, width)
    return central(height, width, preprocessing.resize, preprocessing.size)


CROPS = {
    # What a recipe calls `crop` -> (height, width, recipe, preprocessing, seed) -> window; "pad" crops batches, later
    "none": lambda height, width, recipe, preprocessing, seed: test_window(height, width, preprocessing),
    "pad": lambda height, width, recipe, preprocessing, seed: test_window(height, width, preprocessing),
    "scale_jitter": lambda height, width, recipe, preprocessing, seed: scale_jitter(
        height, width, recipe.scale, recipe.train_size or preprocessing.size, seed
    ),
    "random_resized": lambda height, width, recipe, preprocessing, seed: random_resized(
        height, width, seed, recipe.scale
    ),
}


def image_shape(image):
    """(height, width), int32 scalars, of a file's contents or of pixels. Of JPEG and PNG only the header is read."""
    if image.dtype != tf.string:
        shape = tf.shape(image)
        return shape[0], shape[1]
    shape = tf.case(
        [
            (tf.io.is_jpeg(image), lambda: tf.io.extract_jpeg_shape(image)[:2]),
            (_is_png(image), lambda: _png_shape(image)),
        ],
        default=lambda: tf.shape(tf.io.decode_image(image, expand_animations=False))[:2],
    )
    return shape[0], shape[1]


def _is_png(contents):
    return tf.strings.substr(contents, 0, 8) == b"\x89PNG\r\n\x1a\n"


def _png_shape(contents):
    """Its header is the first part of a PNG: width and height, after 8 bytes of signature and 8 of the part's own."""
    sides = tf.io.decode_raw(tf.strings.substr(contents, 16, 8), "int32", little_endian=False)
    return tf.ensure_shape(sides, (2,))[::-1]


def read_window(image, window, size, channels, *, fast=False, interpolation="bilinear"):
    """A window of an image as a square: decoded no further than it reaches, and resized antialiased as Pillow does it.

    Pixels beside the window, where there are any, count as far as the interpolation reaches, as they do in an image
    that is resized and then cropped. Transparent pixels are shown on white. The orientation in EXIF is not applied.

    Args:
        image: contents of a file (JPEG, PNG, GIF, BMP), a string scalar; or uint8 (H, W, C), grey or RGB.
        window: float32 (top, left, height, width).
        size: side of the square.
        channels: 3 for RGB, 1 for grey.
        fast: whether JPEG is decoded with a less exact inverse cosine transform: good enough for training.
        interpolation: a name in KERNELS.

    Returns:
        uint8 (size, size, channels).

    Raises:
        tf.errors.InvalidArgumentError: when run, for contents that are none of these.
    """
    kernel, reach, antialias = KERNELS[interpolation]
    corner, sides = window[:2], window[2:]
    # One more: the outermost columns of a part of a JPEG lack their neighbours' colour
    margin = reach * tf.maximum(sides / size, 1) + 1
    first = tf.maximum(tf.cast(tf.floor(corner - margin), "int32"), 0)
    stop = tf.cast(tf.math.ceil(corner + sides + margin), "int32")
    pixels = _part(image, first, stop, channels, "INTEGER_FAST" if fast else "INTEGER_ACCURATE")
    square = tf.raw_ops.ScaleAndTranslate(
        images=pixels[None],
        size=(size, size),
        scale=size / sides,
        translation=(tf.cast(first, "float32") - corner) * size / sides,
        kernel_type=kernel,
        antialias=antialias,
    )
    return tf.saturate_cast(tf.round(tf.ensure_shape(square[0], (size, size, channels))), "uint8")


def _part(image, first, stop, channels, dct_method):
    """Rows and columns from `first` to before `stop` of an image, uint8; what lies beyond the image is left out."""

    def of_jpeg():
        sides = tf.minimum(stop, tf.io.extract_jpeg_shape(image)[:2]) - first
        window = tf.concat([first, sides], axis=0)
        return tf.io.decode_and_crop_jpeg(image, window, channels, dct_method=dct_method)

    def of_pixels(pixels):
        return pixels[first[0] : stop[0], first[1] : stop[1]]

    if image.dtype != tf.string:
        return of_pixels(image) if image.shape[-1] == channels else _in_colours(of_pixels(image), channels)
    return tf.cond(tf.io.is_jpeg(image), of_jpeg, lambda: of_pixels(_decoded(image, channels)))


def _decoded(contents, channels):
    """PNG, GIF or BMP -> uint8 (H, W, channels), on white."""
    pixels = tf.cast(tf.io.decode_image(contents, expand_animations=False), "float32")
    depth = tf.shape(pixels)[2]
    transparent = (depth % 2 == 0) & _is_png(contents)  # in a BMP, the fourth value means nothing
    opacity = tf.cond(transparent, lambda: pixels[..., -1:] / 255, lambda: tf.ones_like(pixels[..., :1]))
    shown = 255 - (255 - pixels[..., : depth - 1 + depth % 2]) * opacity
    return _in_colours(shown, channels)


def _in_colours(pixels, channels):
    """Grey or RGB pixels -> uint8 (H, W, channels), of 1 or 3 channels."""
    colours = tf.broadcast_to(tf.cast(pixels, "float32"), (*tf.unstack(tf.shape(pixels)[:2]), 3))
    grey = tf.reduce_sum(colours * LUMA, axis=-1, keepdims=True)
    return tf.cast(tf.round({1: grey, 3: colours}[channels]), "uint8")
