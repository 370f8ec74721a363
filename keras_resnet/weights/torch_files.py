"""PyTorch's two formats, zip files since 1.6 and streams before: a pickled state dict and its storages."""

import io
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

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
    strip_prefixes,
)

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_VERSION = 1001
_STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "net")
"""Keys under which checkpoints store the state dict, beside epoch, optimizer, ..."""


def open_torch_zip(path: Path, archive: zipfile.ZipFile, budget: Budget) -> WeightsFile:
    """WeightsFile of a zip with <root>/data.pkl, <root>/data/<key> and <root>/byteorder (torch.serialization._save)."""
    root = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl").removesuffix("data.pkl")
    checkpoint = _unpickle(io.BytesIO(read_member(archive, f"{root}data.pkl", budget)))
    stored = [info for info in archive.infolist() if info.filename.startswith(f"{root}data/")]
    members = {info.filename.removeprefix(f"{root}data/"): info for info in stored}
    stated = read_member(archive, f"{root}byteorder", budget) if f"{root}byteorder" in archive.namelist() else b"little"
    byteorder = {b"little": "<", b"big": ">"}[stated]

    def read_storage(key, begin, size):
        with archive.open(members[key]) as member:
            member.seek(begin)
            return read_bytes(member, size)

    sizes = {key: member_size(archive, info) for key, info in members.items()}
    return _weights_file(path, checkpoint, sizes, read_storage, byteorder)


def open_torch_stream(path: Path, file: BinaryIO, budget: Budget) -> WeightsFile:
    """WeightsFile of pickles followed by each storage: its count and elements (torch.serialization._legacy_save)."""
    if _unpickle(file) != _STREAM_MAGIC or _unpickle(file) != _STREAM_VERSION:
        raise WeightsFileError("A pickle should be a file of torch.save; this one does not begin like that.")
    _unpickle(file)  # properties of the machine that wrote the file
    unpickler = StateDictUnpickler(file)
    checkpoint = unpickler.load()
    begins, sizes = {}, {}
    for key in _unpickle(file):
        count = struct.unpack("<q", file.read(8))[0]
        begins[key], sizes[key] = file.tell(), count * unpickler.itemsizes[key]
        if count < 0 or begins[key] + sizes[key] > path.stat().st_size:
            raise WeightsFileError(f"Storage {key!r} of {count} elements should be inside the file.")
        file.seek(sizes[key], io.SEEK_CUR)

    def read_storage(key, begin, size):
        file.seek(begins[key] + begin)
        return read_bytes(file, size)

    return _weights_file(path, checkpoint, sizes, read_storage, "<")


def _unpickle(file):
    return StateDictUnpickler(file).load()


def _weights_file(path, checkpoint, sizes, read_storage, byteorder):
    """`sizes`: storage key -> bytes in the file; `read_storage(key, begin, size)`: `size` bytes of it from `begin`."""
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
    raise WeightsFileError(f"A PyTorch file should contain tensors; this one has the keys {list(checkpoint)[:8]}.")


def _stored_array(tensor, sizes, read_storage, byteorder):
    storage = tensor.storage
    end, size = (storage.start + storage.count) * storage.itemsize, sizes.get(storage.key, 0)
    if end > size:
        raise WeightsFileError(f"Storage {storage.key!r} should have {end} bytes, but {size} are stored.")

    def read():
        begin = (storage.start + tensor.offset) * storage.itemsize
        flat = decode(read_storage(storage.key, begin, tensor.span * storage.itemsize), storage.dtype, byteorder)
        strides = [stride * flat.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides)

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
