"""Batches of test images, read and preprocessed by threads while the model computes."""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from keras_resnet.data.datasets import Split
from keras_resnet.data.preprocessing import preprocess_input
from keras_resnet.data.protocols import image_views

THREADS = min(8, os.cpu_count() or 1)
"""Threads that read; also the largest number of batches in memory."""


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Consecutive images of a split as model inputs, without those that cannot be read."""

    start: int
    """Index of the batch's first image in the split."""
    indices: np.ndarray
    """(B,) integers: indices of the readable images in the split."""
    labels: np.ndarray
    """(B,) integers."""
    views: list
    """For each Preprocessing, for each scale: (B * views, h, w, channels) float32, the views of one image adjacent."""
    read_errors: dict
    """{index of an unreadable image: error message}."""

    def __len__(self):
        return len(self.indices)

    @property
    def stop(self):
        """Index of the first image after the batch."""
        return self.start + len(self.indices) + len(self.read_errors)


def describe_errors(read_errors, names=None):
    """{index: message} -> ["name: message"], or ["image 3: message"] if the images have no names."""
    return [f"{names[index] if names else f'image {index}'}: {error}" for index, error in read_errors.items()]


def prefetch_batches(split, preprocessings, protocol, batch_size, start=0):
    """Yields a split's images in order, as model inputs.

    Args:
        split: Split or Stream.
        preprocessings: list of Preprocessing; each batch is prepared for every one of them.
        protocol: Protocol.
        batch_size: number of views in a batch. Uncropped images, which may differ in size, come one by one.
        start: index of the first image.

    Yields:
        ImageBatch.
    """
    same_size = not protocol.is_uncropped or getattr(split, "is_decoded", False)
    batches = _batches(split, max(1, batch_size // protocol.num_views) if same_size else 1, start)
    with ThreadPoolExecutor(THREADS) as threads:
        yield from _prefetched(threads, lambda batch: _prepare(*batch, preprocessings, protocol), batches)


def images_at(split, indices):
    """Images with the given indices, as `image_views` takes them; a Stream is read up to the largest index."""
    if isinstance(split, Split):
        part = split[indices]
        return part.images if part.is_decoded else part.images.tolist()
    wanted = {int(index) for index in indices}
    examples = enumerate(islice(_stream_examples(split), max(wanted, default=-1) + 1))
    found = {index: image for index, (image, _) in examples if index in wanted}
    return [found[index] for index in indices]


def _batches(split, size, start):
    """Yields (index of the first image, images, labels) for `size` images at a time."""
    if isinstance(split, Split):
        for first in range(start, len(split), size):
            part = split[first : first + size]
            yield first, part.images if part.is_decoded else part.images.tolist(), part.labels
        return
    examples = _stream_examples(split, start)
    while batch := list(islice(examples, size)):
        images, labels = zip(*batch, strict=True)
        yield start, images, np.array(labels)
        start += len(batch)


def _stream_examples(split, start=0):
    """Yields (image, label) of a Stream, in order."""
    import tensorflow as tf

    try:
        yield from split.examples(None).skip(start).as_numpy_iterator()
    except tf.errors.OpError as error:
        reason = error.message.splitlines()[0]
        raise OSError(f"Expected a dataset that can be read to its end. Received: {reason}") from error


def _prefetched(threads, function, items):
    """Like `map`, in threads and in order; at most THREADS results wait for the consumer."""
    waiting = deque()
    for item in items:
        waiting.append(threads.submit(function, item))
        if len(waiting) > THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _prepare(start, images, labels, preprocessings, protocol):
    """Images and their labels -> ImageBatch."""
    readable, errors = np.arange(len(images)), {}
    try:
        views = [image_views(images, preprocessing, protocol) for preprocessing in preprocessings]
    except (ValueError, OSError):
        readable, views, errors = _read_one_by_one(images, preprocessings, protocol)
    inputs = [_inputs(*pair) for pair in zip(views, preprocessings, strict=not errors)]
    errors = {start + position: error for position, error in errors.items()}
    return ImageBatch(start, start + readable, labels[readable], inputs, errors)


def _read_one_by_one(images, preprocessings, protocol):
    """(positions of the readable images, their views, {position: error} of the others)."""
    readable, views, errors = [], [], {}
    for position, image in enumerate(images):
        try:
            views.append([image_views([image], preprocessing, protocol) for preprocessing in preprocessings])
            readable.append(position)
        except (ValueError, OSError) as error:
            errors[position] = str(error)
    merged = [
        [np.concatenate(scale) for scale in zip(*of_images, strict=True)] for of_images in zip(*views, strict=True)
    ]
    return np.array(readable, int), merged, errors


def _inputs(scales, preprocessing):
    """For each scale: uint8 (B, views, h, w, C) -> normalised float32 (B * views, h, w, C)."""
    return [
        preprocess_input(views.reshape(-1, *views.shape[2:]), preprocessing.mode, "channels_last") for views in scales
    ]
