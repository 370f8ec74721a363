"""Safetensors files: a JSON header, then the arrays (github.com/huggingface/safetensors, "Format")."""

import struct

from keras_resnet.weights.weights_file import (
    Entry,
    Refusal,
    WeightsFile,
    decoded,
    json_object,
    read_bytes,
    unwrapped,
    widened,
)

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""dtype as the header spells it -> as NumPy does."""


def open_safetensors(path, file):
    """WeightsFile of a safetensors file; `file` is `path`, open at its beginning."""
    import safetensors

    with safetensors.safe_open(path, framework="numpy"):  # checks the header: no gaps, no overlaps, nothing beyond
        size = struct.unpack("<Q", file.read(8))[0]
        header = json_object(file.read(size))
    config = header.pop("__metadata__", None) or {}
    entries = {name: _entry(row, file, 8 + size) for name, row in header.items()}
    return WeightsFile(path, "safetensors", unwrapped(entries), config)


def _entry(row, file, start):
    """Entry of a row of the header, {"dtype", "shape", "data_offsets"}; the offsets count from byte `start`."""
    begin, end = row["data_offsets"]
    if row["dtype"] not in _DTYPES:
        raise Refusal(f"Arrays should be of a dtype in {sorted(_DTYPES)}, not {row['dtype']}.")
    dtype = _DTYPES[row["dtype"]]

    def read():
        file.seek(start + begin)
        return decoded(read_bytes(file, end - begin), dtype).reshape(row["shape"])

    return Entry(tuple(row["shape"]), widened(dtype), read)


def write_safetensors(arrays, path, metadata):
    """Write named arrays; `metadata`, string -> string, become `__metadata__`."""
    from safetensors.numpy import save

    path.write_bytes(save(arrays, metadata=dict(metadata) or None))  # `save_file` would hide it from other users
