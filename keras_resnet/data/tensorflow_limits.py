"""The limits on image files inside tf.data and SavedModels, which decode files that Pillow has not checked."""

import tensorflow as tf

from keras_resnet.data.image_files import with_pil_image
from keras_resnet.data.image_limits import (
    MAX_ASPECT,
    MAX_FILE_BYTES,
    MAX_PIXELS,
    MAX_SCANS,
    MAX_SIDE,
    MAX_TEXTS,
    check_gif_frames,
)

PROGRESSIVE = (b"\xff\xc2\x00\x11\x08", b"\xff\xc2\x00\x0b\x08")
"""Beginnings of the frame headers of progressive JPEG files, in colour and in grey."""


def is_png(contents):
    return tf.strings.substr(contents, 0, 8) == b"\x89PNG\r\n\x1a\n"


def header_size(contents, other):
    """(2,) height and width in the header of a JPEG or PNG file; the result of the function `other` for other files."""

    def png_size():
        """Width and height follow 8 bytes of signature and 8 bytes of chunk header."""
        sides = tf.io.decode_raw(tf.strings.substr(contents, 16, 8), "int32", little_endian=False)
        return tf.ensure_shape(sides, (2,))[::-1]

    cases = [(tf.io.is_jpeg(contents), lambda: tf.io.extract_jpeg_shape(contents)[:2]), (is_png(contents), png_size)]
    return tf.case(cases, default=other)


def check_jpeg_or_png(contents):
    """The contents of a JPEG or PNG file; executing it raises tf.errors.InvalidArgumentError for others, and beyond the
    limits of `image_limits.py`."""

    def count(*markers):
        return tf.add_n([tf.size(tf.strings.split(contents, marker)) - 1 for marker in markers])

    sides = tf.cast(header_size(contents, lambda: tf.zeros(2, "int32")), "int64")
    shorter, longer = tf.reduce_min(sides), tf.reduce_max(sides)
    of_jpeg = tf.where(count(*PROGRESSIVE) > 0, MAX_PIXELS["JPEG, progressive"], MAX_PIXELS["JPEG"])
    max_pixels = tf.where(is_png(contents), MAX_PIXELS["PNG"], of_jpeg)
    conditions = {
        "a JPEG or PNG file": shorter > 0,
        f"at most {MAX_FILE_BYTES} bytes": tf.strings.length(contents) <= MAX_FILE_BYTES,
        f"sides of at most {MAX_SIDE} pixels": longer <= MAX_SIDE,
        f"sides in a ratio of at most {MAX_ASPECT}": longer <= MAX_ASPECT * shorter,
        "fewer pixels": longer * shorter <= tf.cast(max_pixels, "int64"),
        f"at most {MAX_SCANS} scans": is_png(contents) | (count(b"\xff\xda") <= MAX_SCANS),
        f"at most {MAX_TEXTS} texts": ~is_png(contents) | (count(b"zTXt", b"iTXt") <= MAX_TEXTS),
    }
    checks = [tf.debugging.Assert(held, [f"Expected {what}. Sides:", sides]) for what, held in conditions.items()]
    with tf.control_dependencies(checks):
        return tf.identity(contents)


def check_image(contents):
    """The contents of an image file in any format of TensorFlow, after the same checks; not for a SavedModel."""

    def check_other(contents):
        contents = bytes(contents)  # an array if executed eagerly

        def check(image):
            if image.format == "GIF":
                check_gif_frames(contents)

        with_pil_image(contents, check)
        return contents

    return tf.cond(
        tf.io.is_jpeg(contents) | is_png(contents),
        lambda: check_jpeg_or_png(contents),
        lambda: tf.ensure_shape(tf.numpy_function(check_other, [contents], tf.string, stateful=False), ()),
    )
