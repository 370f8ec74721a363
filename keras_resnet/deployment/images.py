"""Images that exported networks are calibrated and compared with."""

import io
import os
import warnings
from dataclasses import replace

import numpy as np

from keras_resnet.data.datasets import UNLABELLED, Split, evenly_spaced
from keras_resnet.data.image_files import as_pil_image, format_errors
from keras_resnet.data.prefetch import describe_errors, images_at, prefetch_batches
from keras_resnet.data.protocols import get_protocol
from keras_resnet.data.sources import ImageSource, image_source, load_test
from keras_resnet.normalization import Normalization


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


def calibration_pixels(images, preprocessing, count):
    """Reads and crops at most `count` images, evenly spaced: (N, size, size, channels) uint8.

    Args:
        images: as `extract` takes them; for a data set's name, its training images.

    Raises:
        ValueError: if there are no images, or none that can be read. OSError: for a path that does not exist.
    """
    if isinstance(images, (str, os.PathLike)) and not os.path.exists(images):
        images = load_test(images, split="train")
    errors = []
    found = evenly_spaced_images(image_source(images).split, count, preprocessing.channels, errors)
    pixels = [preprocessing.pixels([image]) for image in found]
    _warn_of_unreadable(errors, len(pixels))
    return np.concatenate(pixels)


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
        warnings.warn(
            f"{len(errors)} images could not be read and are skipped:\n  {format_errors(errors)}", stacklevel=3
        )


def sample_images() -> Split:
    """Sixteen parts of the two photographs of scikit-learn, a temple and a flower.

    By Dan Heath and Lars Holm Nielsen, Creative Commons BY; see `sklearn.datasets.load_sample_images`.
    """
    from sklearn.datasets import load_sample_images

    parts = [
        photograph[top : top + 213, left : left + 213]
        for photograph in load_sample_images().images
        for top in (0, 213)
        for left in (0, 142, 284, 426)
    ]
    return Split(np.stack(parts), np.full(len(parts), UNLABELLED))
