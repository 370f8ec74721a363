"""Images that exported networks are calibrated and compared with."""

import io
import os
import warnings
from dataclasses import replace

import numpy as np

from keras_resnet.data.datasets import UNLABELLED, Split, evenly_spaced
from keras_resnet.data.image_files import as_pil_image, format_errors
from keras_resnet.data.prefetch import describe_errors, each_image, images_at, map_in_threads, prefetch_batches
from keras_resnet.data.protocols import get_protocol
from keras_resnet.data.source_kinds import SOURCES, LoadOptions, find_source
from keras_resnet.data.sources import ImageSource, image_source, load_test
from keras_resnet.normalization import Normalization

MAX_CHECK_IMAGES = 16
"""Number of images of the further checks."""


def export_images(images, split=None, masks=False) -> ImageSource:
    """The ImageSource of images as `extract` takes them, with masks of classes if `masks` and if they have them.

    Of a folder with objects or masks, and of a data set's name, only a split is used; None: the test images.
    """
    if isinstance(images, (str, os.PathLike)):
        is_annotated = SOURCES[find_source(images, LoadOptions())[0]].annotation != "classes"
        if is_annotated or not os.path.exists(images):
            return image_source(load_test(images, split, skip_bad=is_annotated, masks=masks))
    return image_source(images)


def pixel_batches(source: ImageSource, preprocessing, batch_size):
    """Yields (pixels (B, size, size, channels) uint8, labels (B,)) of images, resized and cropped but not normalised.

    Unreadable images are skipped with a warning; if no image is left, the end is a ValueError.
    """
    errors, count = list(source.skipped), 0
    crop_only = replace(preprocessing, mode=Normalization(divisor=1.0))
    for batch in prefetch_batches(source.split, [crop_only], get_protocol("center"), batch_size):
        errors += describe_errors(batch.read_errors, source.names)
        count += len(batch)
        if len(batch):
            yield batch.views[0][0].astype("uint8"), batch.labels
    _warn_of_unreadable(errors, count)


def image_batches(source: ImageSource, preprocessing=None, batch_size=1):
    """Yields (pixels (1, H, W, 3) uint8, index of the image) of whole images, one by one; errors as `pixel_batches`."""
    errors, count = list(source.skipped), 0
    images = enumerate(each_image(source.split))
    for index, result in map_in_threads(_read_whole_image, images):
        if isinstance(result, str):
            errors += describe_errors({index: result}, source.names)
        else:
            count += 1
            yield result[None], index
    _warn_of_unreadable(errors, count)


def _read_whole_image(numbered_image):
    """(index, image) -> (index, (H, W, 3) uint8), or (index, error message)."""
    index, image = numbered_image
    try:
        return index, np.asarray(as_pil_image(image, 3))
    except (ValueError, OSError) as error:
        return index, str(error)


def calibration_pixels(images, preprocessing, count):
    """Reads and crops at most `count` images, evenly spaced: (N, size, size, channels) uint8.

    Args:
        images: as `extract` takes them; for a data set's name, its training images.

    Raises:
        ValueError: if there are no images, or none that can be read. OSError: for a path that does not exist.
    """
    return np.concatenate(_calibration_images(images, count, preprocessing.channels, preprocessing.pixels))


def calibration_images(images, preprocessing, count):
    """The same images, whole: a list of (H, W, 3) uint8."""
    return _calibration_images(images, count, 3, np.asarray)


def _calibration_images(images, count, channels, function):
    errors, split = [], export_images(images, "train").split
    found = [function(image) for image in evenly_spaced_images(split, count, channels, errors)]
    _warn_of_unreadable(errors, len(found))
    return found


def evenly_spaced_images(split, count, channels, errors):
    """Yields at most `count` PIL images, from the first to the last; messages about unreadable ones go to `errors`."""
    for image in images_at(split, evenly_spaced(len(split), count)):
        try:
            yield as_pil_image(image, channels)
        except (ValueError, OSError) as error:
            errors.append(str(error))


def encode_png(image) -> bytes:
    """A PIL image as the contents of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _warn_of_unreadable(errors, count):
    if not count:
        raise ValueError(f"Expected images that can be read. Received: none; {len(errors)} unreadable")
    if errors:
        warnings.warn(f"Left out {len(errors)} images or objects:\n  {format_errors(errors)}", stacklevel=3)


def sample_photos() -> Split:
    """The two photographs of scikit-learn, 427 x 640 pixels, which `sample_images` describes."""
    from sklearn.datasets import load_sample_images

    photographs = np.stack(load_sample_images().images)
    return Split(photographs, np.full(len(photographs), UNLABELLED))


def sample_images() -> Split:
    """Sixteen parts of the two photographs of scikit-learn, a temple and a flower.

    By Dan Heath and Lars Holm Nielsen, Creative Commons BY; see `sklearn.datasets.load_sample_images`.
    """
    parts = [
        photograph[top : top + 213, left : left + 213]
        for photograph in np.asarray(sample_photos().images)
        for top in (0, 213)
        for left in (0, 142, 284, 426)
    ]
    return Split(np.stack(parts), np.full(len(parts), UNLABELLED))
