"""Batches of test images, read and preprocessed by threads while the model computes."""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.data.datasets import Split
from keras_resnet.data.protocols import image_views
from keras_resnet.normalization import normalize

THREADS = min(8, os.cpu_count() or 1)
"""Threads that read; also the largest number of batches in memory."""


@dataclass(frozen=True, eq=False)
class ViewBatch:
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
    """Yields a ViewBatch for each batch of a split's images, in order.

    Args:
        split: Split or Stream.
        preprocessings: list of Preprocessing; each batch is prepared for every one of them.
        protocol: Protocol.
        batch_size: number of views in a batch. Uncropped images, which may differ in size, come one by one.
        start: index of the first image.
    """
    same_size = not protocol.is_uncropped or getattr(split, "is_decoded", False)
    batches = _batches(split, max(1, batch_size // protocol.num_views) if same_size else 1, start)
    yield from map_in_threads(lambda batch: _prepare(*batch, preprocessings, protocol), batches)


def images_at(split, indices):
    """Images with the given indices, as `image_views` takes them; a Stream is read up to the largest index."""
    if isinstance(split, Split):
        return _listed_images(split, indices)
    wanted = {int(index) for index in indices}
    examples = enumerate(islice(_stream_examples(split), max(wanted, default=-1) + 1))
    found = {index: image for index, (image, _) in examples if index in wanted}
    return [found[index] for index in indices]


def each_image(split):
    """Yields the images of a split, as `image_views` takes them."""
    for _, images, _ in _batches(split, 1, 0):
        yield from images


def _batches(split, size, start):
    """Yields (index of the first image, images, labels) for `size` images at a time."""
    if isinstance(split, Split):
        for first in range(start, len(split), size):
            rows = slice(first, first + size)
            yield first, _listed_images(split, rows), split.labels[rows]
        return
    examples = _stream_examples(split, start)
    while batch := list(islice(examples, size)):
        images, labels = zip(*batch, strict=True)
        yield start, images, np.array(labels)
        start += len(batch)


def _listed_images(split, indices):
    """Images of a Split as `image_views` takes them, without their objects, which selecting images would copy."""
    images = split.images[indices]
    return images if split.is_decoded else images.tolist()


def _stream_examples(split, start=0):
    """Yields (image, label) of a Stream, in order."""
    import tensorflow as tf

    try:
        yield from split.examples(None).skip(start).as_numpy_iterator()
    except tf.errors.OpError as error:
        reason = error.message.splitlines()[0]
        raise OSError(f"Expected a dataset that can be read to its end. Received: {reason}") from error


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """What a function returned for an image, or why its file could not be read."""

    source: Any
    """A path, or an image in memory."""
    value: Any = None
    error: str | None = None


def prepare_in_threads(prepare, sources, batch_size):
    """Yields lists of `batch_size` PreparedImages, in order, of which threads prepare a few ahead.

    Args:
        prepare: function of a path or an image in memory.
        sources: paths, contents of files (bytes) and images. ValueError and OSError of a file become its `error`; of an
            image, they are raised.
        batch_size: number of images in a list.
    """
    prepared = map_in_threads(partial(_prepare_image, prepare), sources)
    while batch := list(islice(prepared, batch_size)):
        yield batch


def _prepare_image(prepare, source):
    try:
        return PreparedImage(source, prepare(source))
    except (ValueError, OSError) as error:
        if not isinstance(source, (Path, bytes)):
            raise
        return PreparedImage(source, error=str(error))


def map_in_threads(function, items, ahead=0):
    """Like `map`, in threads and in order; at most THREADS results, or `ahead` if it is more, wait for the consumer."""
    threads, waiting = ThreadPoolExecutor(THREADS), deque()
    try:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > max(THREADS, ahead):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _prepare(start, images, labels, preprocessings, protocol):
    """Images and their labels -> ViewBatch. If the images cannot be read together, they are read one by one."""
    try:
        return ViewBatch(start, start + np.arange(len(images)), labels, _inputs(images, preprocessings, protocol), {})
    except (ValueError, OSError):
        inputs, errors = {}, {}
    for position, image in enumerate(images):
        try:
            inputs[position] = _inputs([image], preprocessings, protocol)
        except (ValueError, OSError) as error:
            errors[start + position] = str(error)
    merged = [[np.concatenate(scale) for scale in zip(*one, strict=True)] for one in zip(*inputs.values(), strict=True)]
    readable = np.array(list(inputs), int)
    return ViewBatch(start, start + readable, labels[readable], merged, errors)


def _inputs(images, preprocessings, protocol):
    """For each Preprocessing, for each scale: normalised float32 (B * views, h, w, C)."""

    def normalise(views, mode):
        return normalize(views.reshape(-1, *views.shape[2:]), mode, "channels_last")

    return [[normalise(views, p.mode) for views in image_views(images, p, protocol)] for p in preprocessings]
