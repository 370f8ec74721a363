"""Named arrays to a weights file: safetensors, PyTorch's without torch, or the .h5 of keras.applications."""

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np

from keras_resnet.files import replacing
from keras_resnet.weights.readers import TORCH_STORAGES

_HDF5_ATTRIBUTE_LIMIT = 64512
"""Bytes of one attribute, as in Keras' legacy_h5_format.py."""
_STORAGE_OF = {dtype: storage for storage, dtype in TORCH_STORAGES.items() if dtype != "bfloat16"}


def write_arrays(arrays, path, metadata=None):
    """Write `arrays` in the format that the suffix of `path` names; whole, or not at all.

    - `.safetensors`: `metadata` become its `__metadata__`.
    - `.pth`, `.pt`, `.th`: `torch.load(path, weights_only=True)` gives an OrderedDict of tensors; it has no place for
      metadata, which are left out.
    - `.h5`: names should be "<layer>/<kind>", layers in the model's order and kinds in `layer.weights`' order, so that
      `model.load_weights(path)` reads them, `by_name=True` or not; `metadata` become attributes of the file.

    Args:
        arrays: dict of name -> array, of floats (16, 32 or 64 bits), integers or booleans.
        path: where to write; an existing file is replaced.
        metadata: dict of string -> string.

    Raises:
        ValueError: for another suffix, a dtype that the formats do not share, or names that `.h5` cannot hold.
        OSError: if the folder does not exist or cannot be written to.
    """
    path = Path(path)
    write = _WRITERS.get(path.suffix.lower())
    if write is None or path.name.lower().endswith(".weights.h5"):
        raise ValueError(
            f"The suffix of `path` should be one of {sorted(_WRITERS)} (Keras itself writes .weights.h5 and .keras: "
            f"`model.save_weights`, `model.save`). Received: path={str(path)!r}"
        )
    arrays = {name: _writable(name, array) for name, array in arrays.items()}
    with replacing(path) as temporary:
        write(arrays, temporary, metadata or {})


def _writable(name, array):
    array = np.asarray(array, order="C")
    if array.dtype.name not in _STORAGE_OF:
        raise ValueError(f"Arrays should be of a dtype in {sorted(_STORAGE_OF)}. Received: {name}={array.dtype}")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _write_safetensors(arrays, path, metadata):
    from safetensors.numpy import save_file

    save_file(arrays, path, metadata=dict(metadata) or None)


def _write_torch(arrays, path, metadata):
    """torch's zip format (torch/serialization.py, `_save`): one member a storage, one storage a tensor."""
    members = {
        "data.pkl": _state_dict_pickle(arrays),
        "byteorder": b"little",
        **{f"data/{i}": array.tobytes() for i, array in enumerate(arrays.values())},
        "version": b"3\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)


def _state_dict_pickle(arrays):
    """OrderedDict of name -> torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, gradient?, hooks)."""
    items = b"".join(_opcodes(name) + _tensor_opcodes(str(i), arrays[name]) for i, name in enumerate(arrays))
    return pickle.PROTO + b"\x02" + _ORDERED_DICT + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


def _tensor_opcodes(key, array):
    storage = ("storage", _global("torch", _STORAGE_OF[array.dtype.name]), key, "cpu", array.size)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    arguments = (_opcodes(storage) + pickle.BINPERSID, 0, array.shape, strides, False, _ORDERED_DICT)
    return _global("torch._utils", "_rebuild_tensor_v2") + _opcodes(arguments) + pickle.REDUCE


def _global(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _opcodes(value):
    """Protocol-2 opcodes that push a value; bytes are opcodes already."""
    match value:
        case bytes():
            return value
        case bool():
            return pickle.NEWTRUE if value else pickle.NEWFALSE
        case int():
            digits = pickle.encode_long(value)
            return pickle.LONG1 + bytes([len(digits)]) + digits
        case str():
            text = value.encode("utf-8")
            return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
        case tuple():
            return pickle.MARK + b"".join(map(_opcodes, value)) + pickle.TUPLE


_ORDERED_DICT = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE


def _write_hdf5(arrays, path, metadata):
    """A group a layer, its arrays under their full names (Keras' legacy_h5_format.py)."""
    import h5py

    layers = {}
    for name in arrays:
        layer, slash, kind = name.partition("/")
        if not (layer and slash and kind) or "/" in kind:
            raise ValueError(f'Names in an .h5 file should be "<layer>/<kind>". Received: {name!r}')
        layers.setdefault(layer, []).append(name)
    with h5py.File(path, "w") as file:
        file.attrs.update(metadata)
        _write_names(file, "layer_names", layers)
        for layer, names in layers.items():
            group = file.create_group(layer)
            _write_names(group, "weight_names", names)
            for name in names:
                group.create_dataset(name, data=arrays[name])


def _write_names(group, attribute, names):
    """One attribute, or numbered ones where the names exceed what HDF5 lets an attribute hold."""
    encoded = np.array([name.encode("utf-8") for name in names])
    chunks = np.array_split(encoded, -(-encoded.nbytes // _HDF5_ATTRIBUTE_LIMIT) or 1)
    if len(chunks) == 1:
        group.attrs[attribute] = encoded
    else:
        group.attrs.update({f"{attribute}{i}": chunk for i, chunk in enumerate(chunks)})


_WRITERS = {
    ".safetensors": _write_safetensors,
    ".pth": _write_torch,
    ".pt": _write_torch,
    ".th": _write_torch,
    ".h5": _write_hdf5,
}
