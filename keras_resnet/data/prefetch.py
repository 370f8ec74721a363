"""Test images on their way to networks: read by threads while the networks are at work, a few batches in memory."""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from keras_resnet.data.datasets import Split
from keras_resnet.data.preprocessing import preprocess_input
from keras_resnet.data.protocols import views_of

THREADS = min(8, os.cpu_count())
"""That read; also how many batches wait, at most."""


def prefetch_batches(split, looks, protocol, batch_size):
    """Images as networks see them, batch by batch, in order.

    Args:
        split: Split or Stream.
        looks: list of Preprocessing, one for each kind of network.
        protocol: Protocol.
        batch_size: views in a batch. Images that are not cropped, and may differ in size, come one by one.

    Yields:
        (labels (B,), shown, faults): for each of `looks` and for each scale float32 (B * views, h, w, channels), the
        views of an image side by side; and in words which images could not be read, and are left out.
    """
    alike = not protocol.whole or getattr(split, "decoded", False)
    batches = _batches(split, max(1, batch_size // protocol.views) if alike else 1)
    with ThreadPoolExecutor(THREADS) as threads:
        yield from _ahead(threads, lambda batch: _read(*batch, looks, protocol), batches)


def images_at(split, numbers):
    """The images that have these numbers, as `views_of` takes them; a Stream is read as far as the last of them."""
    if isinstance(split, Split):
        part = split[numbers]
        return part.images if part.decoded else part.images.tolist()
    wanted = {int(number) for number in numbers}
    examples = enumerate(islice(_streamed(split), max(wanted, default=-1) + 1))
    found = {number: image for number, (image, _) in examples if number in wanted}
    return [found[number] for number in numbers]


def _batches(split, size):
    """(number of the first, images, labels) of so many images at a time."""
    if isinstance(split, Split):
        for start in range(0, len(split), size):
            part = split[start : start + size]
            yield start, part.images if part.decoded else part.images.tolist(), part.labels
        return
    examples, start = _streamed(split), 0
    while batch := list(islice(examples, size)):
        images, labels = zip(*batch, strict=True)
        yield start, images, np.array(labels)
        start += len(batch)


def _streamed(split):
    """(image, label) of a Stream, in order."""
    import tensorflow as tf

    try:
        yield from split.examples(None).as_numpy_iterator()
    except tf.errors.OpError as error:
        reason = error.message.splitlines()[0]
        raise OSError(f"Expected a data set that can be read to its end. Received: {reason}") from error


def _ahead(threads, function, items):
    """`map` in threads, in order, with few results waiting: the network sets the pace."""
    waiting = deque()
    for item in items:
        waiting.append(threads.submit(function, item))
        if len(waiting) > THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(start, images, labels, looks, protocol):
    """(labels, what the networks are shown, faults): all views, prepared, for each Preprocessing and each scale."""
    faults = []
    try:
        shown = [views_of(images, look, protocol) for look in looks]
    except (ValueError, OSError):  # one by one, then
        good, shown, faults = _read_singly(start, images, looks, protocol)
        labels = labels[good]
    return labels, [_prepared(views, look) for views, look in zip(shown, looks, strict=not faults)], faults


def _read_singly(start, images, looks, protocol):
    """(numbers of the images that can be read, what is shown of them, faults of the others)."""
    good, shown, faults = [], [], []
    for number, image in enumerate(images):
        try:
            shown.append([views_of([image], look, protocol) for look in looks])
            good.append(number)
        except (ValueError, OSError) as error:
            faults.append(f"number {start + number}: {error}")
    of_looks = zip(*shown, strict=True)
    return good, [[np.concatenate(views) for views in zip(*scales, strict=True)] for scales in of_looks], faults


def _prepared(scales, look):
    """uint8 (B, views, h, w, C) -> float32 (B * views, h, w, C) as the network wants it, for each scale."""
    return [preprocess_input(views.reshape(-1, *views.shape[2:]), look.mode, "channels_last") for views in scales]
