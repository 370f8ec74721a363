"""Checks of image files before training or testing: can the library that will read them decode them?"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version

import keras
import numpy as np

from keras_resnet.data.image_files import FORMATS, UnreadableImageError, orientation_of, with_pil_image
from keras_resnet.data.image_limits import check_gif_frames

TENSORFLOW_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
"""Formats that TensorFlow decodes as well."""
TENSORFLOW_SUFFIXES = " ".join(suffix for name in TENSORFLOW_FORMATS for suffix in FORMATS[name])


@dataclass(frozen=True)
class ImageCheck:
    """A check of an image file."""

    name: str
    function: Callable
    """Path or contents of a file -> EXIF orientation, 1 to 8; raises UnreadableImageError."""
    libraries: tuple[str, ...]
    """Libraries whose versions the result depends on."""

    @property
    def kind(self) -> str:
        """Name and versions, as for `read_files`."""
        return " ".join([self.name, *(f"{library} {version(library)}" for library in self.libraries)])


def orientations_of(results: Iterable[int]) -> np.ndarray | None:
    """(N,) uint8, the results of checks as the orientations of a Split; None if all are upright."""
    orientations = np.array(list(results), "uint8")
    return orientations if (orientations > 1).any() else None


def training_check() -> ImageCheck:
    """The check of training images on this backend."""
    return CHECKS["tensorflow" if keras.backend.backend() == "tensorflow" else "pillow"]


def _check_header(source):
    """Whether Pillow identifies an image. The result is 1 for any orientation: in a PNG, it may follow all pixels."""
    return with_pil_image(source, lambda image: 1)


def _check_with_pillow(source):
    """Whether Pillow decodes an image."""

    def decode(image):
        image.draft(image.mode, (1, 1))  # JPEG at an eighth of its size: reads all data at little cost
        image.load()
        return orientation_of(image)

    return with_pil_image(source, decode)


def _check_with_tensorflow(source):
    """Whether TensorFlow decodes an image."""
    import tensorflow as tf

    def read(image):
        contents = tf.constant(source) if isinstance(source, bytes) else tf.io.read_file(os.fspath(source))
        if image.format == "GIF":
            check_gif_frames(contents.numpy())
        return contents, image.format, image.mode

    contents, name, mode = with_pil_image(source, read)
    name = "JPEG" if name == "MPO" else name  # Pillow's name of a JPEG that previews follow, as phones write them
    has_palette = name == "BMP" and mode in ("1", "P")  # TensorFlow would read the indices as grey
    if name not in TENSORFLOW_FORMATS or has_palette:
        reason = f"TensorFlow does not read {name}{' with a palette' if has_palette else ''}"
        raise UnreadableImageError(name, reason)
    try:
        if name == "JPEG":
            tf.io.decode_jpeg(contents, channels=3, ratio=8)  # reads all data at little cost
        else:
            tf.io.decode_image(contents, channels=3, expand_animations=False)
    except tf.errors.OpError as error:
        raise UnreadableImageError(name, "damaged or truncated") from error
    return with_pil_image(source, orientation_of)


CHECKS = {
    check.name: check
    for check in (
        ImageCheck("header", _check_header, ("pillow",)),
        ImageCheck("pillow", _check_with_pillow, ("pillow",)),
        ImageCheck("tensorflow", _check_with_tensorflow, ("pillow", "tensorflow")),
    )
}
"""Checks by their names."""
