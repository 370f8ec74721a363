"""Datasets of HDF5 files as StoredArrays. Chunks are decoded here: libhdf5 limits neither memory nor their sizes."""

import itertools
import math
import zlib
from typing import Any

import numpy as np

from keras_resnet.weights.weights_file import Budget, StoredArray, WeightsFileError, decode, dtype_in_memory

OBJECT_STEPS = 50
"""Steps of a Budget for a group, dataset or chunk: h5py needs some 50 microseconds for it."""


def stored_array(dataset: Any, dtype: Any, content: Any, budget: Budget) -> StoredArray:
    """StoredArray of an h5py.Dataset; its type, storage and size are checked, its values are not read yet.

    Args:
        dataset: an open h5py.Dataset.
        dtype: dtype of its values, or "bfloat16".
        content: the bytes of the HDF5 file, for slicing.
        budget: what remains for the file.

    Raises:
        WeightsFileError: unless it is an array of numbers in this file, whole, with known filters.
    """
    if dataset.external or dataset.is_virtual:
        raise WeightsFileError(f"An HDF5 weights file should contain its arrays; `{dataset.name}` is in another file.")
    if dataset.shape is None or (dtype != "bfloat16" and (dtype.kind not in "fiub" or dtype.itemsize > 8)):
        raise WeightsFileError(f"`{dataset.name}` should be an array of numbers, not of {dataset.dtype}.")
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    if dataset.chunks is None:
        stored = min(dataset.id.get_storage_size(), len(content))
        if size > stored:
            raise WeightsFileError(f"`{dataset.name}` should have {size} bytes, but only {stored} are stored.")
        budget.spend(bytes=size)

        def read():
            return decode(np.asarray(dataset[()]), dtype)

    else:
        filters = _filters(dataset)
        count = math.prod(_grid(dataset))
        budget.spend(bytes=max(size, count * _chunk_bytes(dataset)), steps=count * OBJECT_STEPS)

        def read():
            return decode(_read_chunks(dataset, filters, content), dtype)

    return StoredArray(dataset.shape, dtype_in_memory(dtype), read)


def _grid(dataset):
    """Number of chunks along each axis."""
    return [-(-side // chunk) for side, chunk in zip(dataset.shape, dataset.chunks, strict=True)]


def _chunk_bytes(dataset):
    return math.prod(dataset.chunks) * dataset.dtype.itemsize


def _filters(dataset):
    """Codes of the filters, in the order in which they were applied."""
    properties = dataset.id.get_create_plist()
    codes = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if len(set(codes)) < len(codes) or not set(codes) <= set(_DECODERS):
        raise WeightsFileError(
            f"The filters of `{dataset.name}` should be gzip, shuffle and fletcher32, each at most once, not {codes}."
        )
    return codes


def _read_chunks(dataset, filters, content):
    """The values of a chunked dataset, decoded chunk by chunk; raises WeightsFileError unless all chunks are there."""
    starts = itertools.product(*map(range, (0,) * dataset.ndim, dataset.shape, dataset.chunks))
    chunks, count = {}, math.prod(_grid(dataset))

    def add(chunk):
        chunks[chunk.chunk_offset] = chunk
        return True if len(chunks) > count else None  # anything but None ends the iteration

    dataset.id.chunk_iter(add)
    if set(chunks) != set(starts):
        raise WeightsFileError(f"`{dataset.name}` should have {count} chunks; others are stored.")
    values = np.empty(dataset.shape, dataset.dtype)
    for start, chunk in chunks.items():
        raw = _decode_chunk(dataset, filters, chunk, content)
        target = values[tuple(slice(i, i + side) for i, side in zip(start, dataset.chunks, strict=True))]
        target[...] = np.frombuffer(raw, dataset.dtype).reshape(dataset.chunks)[tuple(map(slice, target.shape))]
    return values


def _decode_chunk(dataset, filters, chunk, content):
    """Bytes of the values of a chunk: its filters undone, the last one first."""
    raw = content[chunk.byte_offset : chunk.byte_offset + chunk.size]
    size, itemsize = _chunk_bytes(dataset), dataset.dtype.itemsize
    for bit, code in reversed(list(enumerate(filters))):
        if not chunk.filter_mask >> bit & 1:
            raw = _DECODERS[code](raw, itemsize, size + 4)  # fletcher32 appends four bytes
    if len(raw) != size:
        raise WeightsFileError(f"A chunk of `{dataset.name}` should have {size} bytes, not {len(raw)}.")
    return raw


def _inflate(raw, itemsize, limit):
    return zlib.decompressobj().decompress(raw, limit)


def _unshuffle(raw, itemsize, limit):
    """Bytes in their order again, from all first bytes of the values, then all second ones, and so on."""
    end = len(raw) // itemsize * itemsize  # further bytes are not shuffled
    return np.frombuffer(raw[:end], np.uint8).reshape(itemsize, -1).T.tobytes() + raw[end:]


def _verify_fletcher32(raw, itemsize, limit):
    """The bytes before the checksum; raises WeightsFileError if it is not theirs.

    It has two sums modulo 65535 of 16-bit words, stored as zero or 65535 where they are zero (H5checksum.c).
    """
    raw, stored = raw[:-4], np.frombuffer(raw[-4:], "<u4")[0]
    words = np.frombuffer(raw + bytes(len(raw) % 2), ">u2").astype(np.uint64)
    weights = np.arange(len(words), 0, -1, dtype=np.uint64) % 65535
    sums = int(words.sum()) % 65535, int((words * weights).sum()) % 65535
    if sums != (int(stored & 0xFFFF) % 65535, int(stored >> 16) % 65535):
        raise WeightsFileError("The fletcher32 checksum of a chunk should be that of its bytes: the file is damaged.")
    return raw


_DECODERS = {1: _inflate, 2: _unshuffle, 3: _verify_fletcher32}
"""Code of a filter in HDF5 (H5Zpublic.h) -> function (bytes, bytes of a value, largest result) -> decoded bytes."""
