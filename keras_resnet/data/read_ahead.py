"""Test pictures on their way to networks: read by threads while the networks are at work, a few batches in memory."""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from keras_resnet.data.datasets import Split
from keras_resnet.data.preprocessing import preprocess_input
from keras_resnet.data.views import as_shown

THREADS = min(8, os.cpu_count())
"""That read; also how many batches wait, at most."""


def read_ahead(split, looks, protocol, batch_size):
    """Pictures as networks see them, batch by batch, in order.

    Args:
        split: Split or Stream.
        looks: list of Preprocessing, one for each kind of network.
        protocol: Protocol.
        batch_size: views in a batch. Pictures that are not cropped, and may differ in size, come one by one.

    Yields:
        (labels (B,), shown, faults): for each of `looks` and for each scale float32 (B * views, h, w, channels), the
        views of a picture side by side; and in words which pictures could not be read, and are left out.
    """
    alike = not protocol.whole or getattr(split, "decoded", False)
    batches = _batches(split, max(1, batch_size // protocol.views) if alike else 1)
    with ThreadPoolExecutor(THREADS) as threads:
        yield from _ahead(threads, lambda batch: _read(*batch, looks, protocol), batches)


def pictures_at(split, numbers):
    """The pictures that have these numbers, as `as_shown` takes them; a Stream is read as far as the last of them."""
    if isinstance(split, Split):
        part = split[numbers]
        return part.pictures if part.decoded else part.pictures.tolist()
    wanted = {int(number) for number in numbers}
    examples = enumerate(islice(_streamed(split), max(wanted, default=-1) + 1))
    found = {number: picture for number, (picture, _) in examples if number in wanted}
    return [found[number] for number in numbers]


def _batches(split, size):
    """(number of the first, pictures, labels) of so many pictures at a time."""
    if isinstance(split, Split):
        for start in range(0, len(split), size):
            part = split[start : start + size]
            yield start, part.pictures if part.decoded else part.pictures.tolist(), part.labels
        return
    examples, start = _streamed(split), 0
    while batch := list(islice(examples, size)):
        pictures, labels = zip(*batch, strict=True)
        yield start, pictures, np.array(labels)
        start += len(batch)


def _streamed(split):
    """(picture, label) of a Stream, in order."""
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


def _read(start, pictures, labels, looks, protocol):
    """(labels, what the networks are shown, faults): all views, prepared, for each Preprocessing and each scale."""
    faults = []
    try:
        shown = [as_shown(pictures, look, protocol) for look in looks]
    except (ValueError, OSError):  # one by one, then
        good, shown, faults = _read_singly(start, pictures, looks, protocol)
        labels = labels[good]
    return labels, [_prepared(views, look) for views, look in zip(shown, looks, strict=not faults)], faults


def _read_singly(start, pictures, looks, protocol):
    """(numbers of the pictures that can be read, what is shown of them, faults of the others)."""
    good, shown, faults = [], [], []
    for number, picture in enumerate(pictures):
        try:
            shown.append([as_shown([picture], look, protocol) for look in looks])
            good.append(number)
        except (ValueError, OSError) as error:
            faults.append(f"number {start + number}: {error}")
    of_looks = zip(*shown, strict=True)
    return good, [[np.concatenate(views) for views in zip(*scales, strict=True)] for scales in of_looks], faults


def _prepared(scales, look):
    """uint8 (B, views, h, w, C) -> float32 (B * views, h, w, C) as the network wants it, for each scale."""
    return [preprocess_input(views.reshape(-1, *views.shape[2:]), look.mode, "channels_last") for views in scales]
