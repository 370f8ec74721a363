"""PyTorch's two formats, zip files since 1.6 and streams before: a pickled state dict and its storages."""

import io
import struct
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from keras_resnet.errors import bounded_repr
from keras_resnet.weights.torch_pickles import StateDictUnpickler, Tensor, state_dict_pickle
from keras_resnet.weights.weights_file import (
    Budget,
    StoredArray,
    WeightsFile,
    WeightsFileError,
    decode,
    dtype_in_memory,
    member_size,
    read_bytes,
    read_member,
    read_text,
    strip_prefixes,
)

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_VERSION = 1001
_BYTE_ORDERS = {b"little": "<", b"big": ">"}
_STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "model_state", "state_dict_ema", "net")
"""Keys under which checkpoints store the state dict, beside epoch, optimizer, ..."""


def open_torch_zip(path: Path, archive: zipfile.ZipFile, budget: Budget) -> WeightsFile:
    """WeightsFile of a zip with <root>/data.pkl, <root>/data/<key> and <root>/byteorder (torch.serialization._save)."""
    root = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl").removesuffix("data.pkl")
    checkpoint = StateDictUnpickler(io.BytesIO(read_text(archive, f"{root}data.pkl", budget)), budget).load()
    stored = [info for info in archive.infolist() if info.filename.startswith(f"{root}data/")]
    members = {info.filename.removeprefix(f"{root}data/"): info for info in stored}
    stated = read_text(archive, f"{root}byteorder", budget) if f"{root}byteorder" in archive.namelist() else b"little"
    if stated not in _BYTE_ORDERS:
        raise WeightsFileError(f"The byte order of a PyTorch file should be one of {list(_BYTE_ORDERS)}.")
    sizes = {key: member_size(archive, info) for key, info in members.items()}
    return _weights_file(
        path, checkpoint, sizes, lambda key: read_member(archive, members[key], budget), _BYTE_ORDERS[stated]
    )


def open_torch_stream(path: Path, file: BinaryIO, budget: Budget) -> WeightsFile:
    """WeightsFile of pickles followed by each storage: its count and elements (torch.serialization._legacy_save)."""

    def unpickle():
        return StateDictUnpickler(file, budget).load()

    if unpickle() != _STREAM_MAGIC or unpickle() != _STREAM_VERSION:
        raise WeightsFileError("A pickle should be a file of torch.save; this one does not begin like that.")
    unpickle()  # properties of the machine that wrote the file
    unpickler = StateDictUnpickler(file, budget)
    checkpoint, keys = unpickler.load(), unpickle()
    known = unpickler.itemsizes
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in known for key in keys):
        raise WeightsFileError("A PyTorch file should list the storages of its tensors.")
    begins, sizes = {}, {}
    for key in keys:
        count = struct.unpack("<q", file.read(8))[0]
        begins[key], sizes[key] = file.tell(), count * known[key]
        if count < 0 or begins[key] + sizes[key] > path.stat().st_size:
            raise WeightsFileError(f"Storage {key!r} of {count} elements should be inside the file.")
        file.seek(sizes[key], io.SEEK_CUR)

    def read_storage(key):
        budget.spend(bytes=sizes[key])
        file.seek(begins[key])
        return read_bytes(file, sizes[key])

    return _weights_file(path, checkpoint, sizes, read_storage, "<")


def _weights_file(path, checkpoint, sizes, read_storage, byteorder):
    """`sizes`: storage key -> bytes in the file; `read_storage(key)`: these bytes."""
    read_storage = lru_cache(maxsize=1)(read_storage)  # one storage may have all tensors
    tensors = _state_dict(checkpoint).items()
    arrays = {name: _stored_array(tensor, sizes, read_storage, byteorder) for name, tensor in tensors}
    return WeightsFile(path, "torch", strip_prefixes(arrays), {})


def _state_dict(checkpoint):
    """The first dict with tensors: the value of one of _STATE_DICT_KEYS, or the checkpoint itself."""
    if not isinstance(checkpoint, dict):
        raise WeightsFileError(f"A PyTorch file should contain a dict of tensors, not a {type(checkpoint).__name__}.")
    for candidate in (*map(checkpoint.get, _STATE_DICT_KEYS), checkpoint):
        pairs = candidate.items() if isinstance(candidate, dict) else ()
        if tensors := {str(name): value for name, value in pairs if isinstance(value, Tensor)}:
            return tensors
    keys = bounded_repr(list(checkpoint)[:8])
    raise WeightsFileError(f"A PyTorch file should contain tensors; this one has the keys {keys}.")


def _stored_array(tensor, sizes, read_storage, byteorder):
    storage = tensor.storage
    end, size = (storage.start + storage.count) * storage.itemsize, sizes.get(storage.key, 0)
    if end > size:
        raise WeightsFileError(f"Storage {storage.key!r} should have {end} bytes, but {size} are stored.")

    def read():
        begin = (storage.start + tensor.offset) * storage.itemsize
        raw = read_storage(storage.key)[begin : begin + tensor.span * storage.itemsize]
        flat = decode(raw, storage.dtype, byteorder)
        strides = [stride * flat.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides).copy()  # the storage is not kept

    return StoredArray(tensor.shape, dtype_in_memory(storage.dtype), read)


def write_torch(arrays: dict[str, np.ndarray], path: Path, metadata: dict[str, str]) -> None:
    """Write named arrays in torch's zip format, one storage per tensor; it cannot store `metadata`."""
    members = {
        "data.pkl": state_dict_pickle(arrays),
        "byteorder": b"little",
        **{f"data/{i}": array.tobytes() for i, array in enumerate(arrays.values())},
        "version": b"3\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
