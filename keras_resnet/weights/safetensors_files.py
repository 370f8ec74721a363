"""Safetensors files: a JSON header, then the arrays (github.com/huggingface/safetensors, "Format")."""

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from keras_resnet.schema import MAX_JSON_BYTES, parse_json
from keras_resnet.weights.weights_file import (
    StoredArray,
    WeightsFile,
    WeightsFileError,
    decode,
    dtype_in_memory,
    read_bytes,
    strip_prefixes,
)

_DTYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (64, 32, 16)},
    **{f"I{bits}": f"int{bits}" for bits in (64, 32, 16, 8)},
    **{f"U{bits}": f"uint{bits}" for bits in (64, 32, 16, 8)},
    "BF16": "bfloat16",
    "BOOL": "bool",
}
"""dtype in the header -> name of the NumPy dtype."""


def open_safetensors(path: Path, file: BinaryIO) -> WeightsFile:
    """WeightsFile of a safetensors file; `file` is `path`, open at its beginning."""
    import safetensors

    size = struct.unpack("<Q", file.read(8))[0]
    header = parse_json(file.read(min(size, MAX_JSON_BYTES + 1)), dict[str, dict[str, Any]], "header")
    with safetensors.safe_open(path, framework="numpy"):  # raises for gaps, overlaps and offsets beyond the file
        config = header.pop("__metadata__", {})
    arrays = {name: _stored_array(row, file, 8 + size) for name, row in header.items()}
    return WeightsFile(path, "safetensors", strip_prefixes(arrays), config)


def _stored_array(row, file, start):
    """StoredArray of a row of the header, {"dtype", "shape", "data_offsets"}; offsets are relative to byte `start`."""
    begin, end = row["data_offsets"]
    if row["dtype"] not in _DTYPES:
        raise WeightsFileError(f"The dtype of an array should be one of {sorted(_DTYPES)}, not {row['dtype']}.")
    dtype = _DTYPES[row["dtype"]]

    def read():
        file.seek(start + begin)
        return decode(read_bytes(file, end - begin), dtype).reshape(row["shape"])

    return StoredArray(tuple(row["shape"]), dtype_in_memory(dtype), read)


def write_safetensors(arrays: dict[str, np.ndarray], path: Path, metadata: dict[str, str]) -> None:
    """Write named arrays; `metadata` becomes the header's `__metadata__`."""
    from safetensors.numpy import save

    path.write_bytes(save(arrays, metadata=dict(metadata) or None))  # `save_file` lets only the owner read the file
