"""EXIF orientations inside tf.data: sizes, crop boxes and squares of images that are stored turned or mirrored.

An orientation is an integer scalar from 1 to 8 (CIPA DC-008, tag 274), or None for upright images, at no cost. The
stored image is made upright by a transposition, for orientations from 5, and then by reversals of its rows and columns.
"""

import tensorflow as tf

from keras_resnet.data import image_files


def exif_orientation(contents):
    """The orientation of an encoded image, 1 to 8; 1 if it has none, or cannot be read."""

    def read(contents):
        return image_files.exif_orientation(bytes(contents))  # an array if executed eagerly

    return tf.ensure_shape(tf.numpy_function(read, [contents], "int64", stateful=False), ())


def upright_size(sides, orientation):
    """(2,) height and width of the stored image -> those of the upright one, and the reverse."""
    return sides if orientation is None else _transposed(sides, sides[::-1], orientation)


def stored_box(box, sides, orientation):
    """A crop box in the upright image -> in the stored image; `sides` are those of the stored image."""
    if orientation is None:
        return box
    corner, size = box[:2], box[2:]
    opposite = tf.cast(upright_size(sides, orientation), "float32") - corner - size
    corner = tf.where(_reversals(orientation), opposite, corner)
    return tf.concat([_transposed(part, part[::-1], orientation) for part in (corner, size)], axis=0)


def turn_upright(square, orientation):
    """(S, S, C) pixels of a stored image -> upright."""
    if orientation is None:
        return square
    rows, columns = tf.unstack(_reversals(orientation))
    square = _transposed(square, tf.transpose(square, (1, 0, 2)), orientation)
    square = tf.where(rows, square[::-1], square)
    return tf.where(columns, square[:, ::-1], square)


def _reversals(orientation):
    return tf.constant(image_files.REVERSALS)[tf.cast(orientation, "int32")]


def _transposed(stored, transposed, orientation):
    return tf.where(orientation > 4, transposed, stored)
