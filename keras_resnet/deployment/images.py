"""Real images that an exported network is calibrated and compared with."""

import io
import os
import warnings
from dataclasses import replace

import numpy as np

from keras_resnet.data.datasets import UNLABELLED, Split
from keras_resnet.data.image_files import as_image, listed
from keras_resnet.data.prefetch import describe_errors, images_at, prefetch_batches
from keras_resnet.data.preprocessing import Normalization
from keras_resnet.data.protocols import get_protocol
from keras_resnet.data.sources import image_source, load_test

AS_THEY_ARE = Normalization(divisor=1.0)


def shown(images):
    """The ImageSource of what `extract` takes; None for `samples`, an ImageSource as it is."""
    return image_source(samples() if images is None else images)


def in_batches(source, look, batch_size):
    """Images as a network sees them, before their values are normalised.

    Args:
        source: ImageSource.
        look: Preprocessing.
        batch_size: images at a time.

    Yields:
        (pixels (B, size, size, channels) uint8, labels (B,)). What cannot be read is left out, with a warning.

    Raises:
        ValueError: in the end, if none could be read.
    """
    faults, count = list(source.skipped), 0
    plain = replace(look, mode=AS_THEY_ARE)
    for batch in prefetch_batches(source.split, [plain], get_protocol("center"), batch_size):
        faults += describe_errors(batch.read_errors, source.names)
        count += len(batch)
        if len(batch):
            yield batch.views[0][0].astype("uint8"), batch.labels
    _tell(faults, count)


def spread(images, look, count):
    """(N, size, size, channels) uint8: `count` images at most, from everywhere among them.

    Args:
        images: what `extract` takes; of a data set by its name, the images that train.
        look: Preprocessing.
        count: how many at most.

    Raises:
        ValueError: for what holds no images, or none that can be read.
        OSError: for a path where nothing is.
    """
    if isinstance(images, (str, os.PathLike)) and not os.path.exists(images):
        images = load_test(images, split="train")
    split, faults = image_source(images).split, []
    found = [look.pixels([image]) for image in opened(split, some(len(split), count), look.channels, faults)]
    _tell(faults, len(found))
    return np.concatenate(found)


def some(length, count):
    """Numbers of `count` of so many at most, from everywhere among them."""
    return np.unique(np.linspace(0, length - 1, count).astype(int)) if length else []


def opened(split, numbers, channels, faults):
    """Yields the images of these numbers as PIL images; of what cannot be read, `faults` gets the reason."""
    for image in images_at(split, numbers):
        try:
            yield as_image(image, channels)
        except (ValueError, OSError) as error:
            faults.append(str(error))


def encoded(image):
    """A PIL image -> the contents of a PNG file, which loses nothing."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _tell(faults, count):
    if not count:
        raise ValueError(f"Expected images that can be read. Received: none; {len(faults)} unreadable")
    if faults:
        warnings.warn(f"{len(faults)} images could not be read, and are left out:\n  {listed(faults)}", stacklevel=3)


def samples():
    """Sixteen views of the two photographs that come with scikit-learn, a temple and a flower, as a Split.

    By Dan Heath and Lars Holm Nielsen, Creative Commons BY; see `sklearn.datasets.load_sample_images`.
    """
    from sklearn.datasets import load_sample_images

    views = [
        photograph[top : top + 213, left : left + 213]
        for photograph in load_sample_images().images
        for top in (0, 213)
        for left in (0, 142, 284, 426)
    ]
    return Split(np.stack(views), np.full(len(views), UNLABELLED))
