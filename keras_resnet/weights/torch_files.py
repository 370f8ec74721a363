"""PyTorch's two formats, a zip file since 1.6 and a stream before: a pickled state dict and its storages."""

import io
import struct
import zipfile

import numpy as np

from keras_resnet.weights.torch_pickles import StateDictUnpickler, Tensor, state_dict_pickle
from keras_resnet.weights.weights_file import Entry, Refusal, WeightsFile, decoded, read_bytes, unwrapped, widened
from keras_resnet.weights.zip_members import member_size, read_member

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_VERSION = 1001
_STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "net")
"""Where checkpoints keep the state dict, beside epoch, optimizer, ..."""


def open_torch_zip(path, archive):
    """WeightsFile of <root>/data.pkl, <root>/data/<key>, <root>/byteorder (torch/serialization.py, `_save`)."""
    root = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl").removesuffix("data.pkl")
    checkpoint = _unpickled(io.BytesIO(read_member(archive, f"{root}data.pkl")))
    stored = [info for info in archive.infolist() if info.filename.startswith(f"{root}data/")]
    members = {info.filename.removeprefix(f"{root}data/"): info for info in stored}
    byteorder = read_member(archive, f"{root}byteorder") if f"{root}byteorder" in archive.namelist() else b"little"
    order = {b"little": "<", b"big": ">"}[byteorder]

    def fetch(key, begin, size):
        with archive.open(members[key]) as member:
            member.seek(begin)
            return read_bytes(member, size)

    sizes = {key: member_size(archive, info) for key, info in members.items()}
    return _weights_file(path, checkpoint, sizes, fetch, order)


def open_torch_stream(path, file):
    """WeightsFile of pickles in a row, then each storage as its count and its elements (`_legacy_save`)."""
    if _unpickled(file) != _STREAM_MAGIC or _unpickled(file) != _STREAM_VERSION:
        raise Refusal("A pickle should be one that torch.save wrote.")
    _unpickled(file)  # the machine that wrote it
    unpickler = StateDictUnpickler(file)
    checkpoint = unpickler.load()
    begins, sizes = {}, {}
    for key in _unpickled(file):
        count = struct.unpack("<q", file.read(8))[0]
        begins[key], sizes[key] = file.tell(), count * unpickler.itemsizes[key]
        if count < 0 or begins[key] + sizes[key] > path.stat().st_size:
            raise Refusal(f"Storage {key!r} of {count} elements should lie inside the file.")
        file.seek(sizes[key], io.SEEK_CUR)

    def fetch(key, begin, size):
        file.seek(begins[key] + begin)
        return read_bytes(file, size)

    return _weights_file(path, checkpoint, sizes, fetch, "<")


def _unpickled(file):
    return StateDictUnpickler(file).load()


def _weights_file(path, checkpoint, sizes, fetch, order):
    """`sizes`: storage key -> bytes in the file; `fetch(key, begin, size)` -> those bytes of it."""
    entries = {name: _entry(tensor, sizes, fetch, order) for name, tensor in _state_dict(checkpoint).items()}
    return WeightsFile(path, "torch", unwrapped(entries), {})


def _state_dict(checkpoint):
    """The first dictionary with tensors: under a key that checkpoints use for it, or the checkpoint itself."""
    if not isinstance(checkpoint, dict):
        raise Refusal(f"A PyTorch file should hold a dictionary of tensors, not a {type(checkpoint).__name__}.")
    for candidate in (*map(checkpoint.get, _STATE_DICT_KEYS), checkpoint):
        pairs = candidate.items() if isinstance(candidate, dict) else ()
        if tensors := {str(name): value for name, value in pairs if isinstance(value, Tensor)}:
            return tensors
    raise Refusal(f"A PyTorch file should hold tensors; this one has the keys {list(checkpoint)[:8]}.")


def _entry(tensor, sizes, fetch, order):
    storage = tensor.storage
    end, size = (storage.start + storage.count) * storage.itemsize, sizes.get(storage.key, 0)
    if end > size:
        raise Refusal(f"Storage {storage.key!r} should have {end} bytes, but {size} are stored.")

    def read():
        begin = (storage.start + tensor.offset) * storage.itemsize
        flat = decoded(fetch(storage.key, begin, tensor.span * storage.itemsize), storage.dtype, order)
        strides = [stride * flat.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides)

    return Entry(tensor.shape, widened(storage.dtype), read)


def write_torch(arrays, path, metadata):
    """Write named arrays as torch's zip format, one storage a tensor; it has no place for `metadata`."""
    members = {
        "data.pkl": state_dict_pickle(arrays),
        "byteorder": b"little",
        **{f"data/{i}": array.tobytes() for i, array in enumerate(arrays.values())},
        "version": b"3\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
