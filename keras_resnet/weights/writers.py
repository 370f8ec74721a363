"""Named arrays to a weights file: safetensors, PyTorch's without torch, or the .h5 of keras.applications."""

from pathlib import Path

import numpy as np

from keras_resnet.files import atomic_write
from keras_resnet.weights.hdf5_files import write_hdf5
from keras_resnet.weights.safetensors_files import write_safetensors
from keras_resnet.weights.torch_files import write_torch
from keras_resnet.weights.torch_pickles import STORAGES

_WRITERS = {
    ".safetensors": write_safetensors,
    ".pth": write_torch,
    ".pt": write_torch,
    ".th": write_torch,
    ".h5": write_hdf5,
}
_DTYPES = sorted(set(STORAGES.values()) - {"bfloat16"})
"""What every format can hold; torch knows the fewest, NumPy no bfloat16."""


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
    with atomic_write(path) as temporary:
        write(arrays, temporary, metadata or {})


def _writable(name, array):
    array = np.asarray(array, order="C")
    if array.dtype.name not in _DTYPES:
        raise ValueError(f"Arrays should be of a dtype in {_DTYPES}. Received: {name}={array.dtype}")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
