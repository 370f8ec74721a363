"""Open and write weights files of every format: HDF5, .keras, safetensors and PyTorch.

A file is opened by its content, not by its suffix: lazily, after checks of all sizes, and without running code.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from keras_resnet.errors import check_path, error_summary
from keras_resnet.files import atomic_write
from keras_resnet.weights.hdf5_files import open_hdf5, write_hdf5
from keras_resnet.weights.keras_archives import open_keras
from keras_resnet.weights.safetensors_files import open_safetensors, write_safetensors
from keras_resnet.weights.torch_files import open_torch_stream, open_torch_zip, write_torch
from keras_resnet.weights.torch_pickles import STORAGES
from keras_resnet.weights.weights_file import Budget, WeightsFile, WeightsFileError, open_zip

_READABLE = "a Keras .h5, .weights.h5 or .keras file, a .safetensors file or a PyTorch .pth file"
_WRITERS = {".safetensors": write_safetensors, ".h5": write_hdf5, **dict.fromkeys((".pth", ".pt", ".th"), write_torch)}
_WRITABLE_DTYPES = sorted(set(STORAGES.values()) - {"bfloat16"})
"""dtypes that every format can store: torch supports the fewest, NumPy lacks bfloat16."""


@contextmanager
def open_weights(path: str | os.PathLike, network_bytes: int = 0) -> Iterator[WeightsFile]:
    """Open a weights file of any format; its arrays can be read inside the `with` block only.

    Arrays are named "<layer>/<weight>" ("conv1_conv/kernel") in Keras's formats. In safetensors and PyTorch files they
    have the file's names, without prefixes that all names share ("module.", "_orig_mod.", "model.") and without
    `num_batches_tracked` counters. Other contents of a checkpoint (epoch, optimizer, ...) are ignored.

    Args:
        path: weights file.
        network_bytes: size of the network that gets the weights, to which compressed arrays may expand.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the format is unknown, or the file is damaged, contains code, refers to other files, or needs
            more memory than its size justifies.
    """
    check_path("path", path)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"`path` should be {_READABLE}, but it does not exist. Received: path={str(path)!r}")
    if not path.is_file():  # opening a named pipe would wait for ever
        kind = "a folder. `create(folder)` reads the network in a folder" if path.is_dir() else "a device or pipe"
        raise ValueError(f"`path` should be {_READABLE}, not {kind}. Received: path={str(path)!r}")
    with ExitStack() as stack:
        with _errors_with_path(path):
            budget = Budget(path.stat().st_size, network_bytes)
            weights = _open(path, stack.enter_context(open(path, "rb")), stack, budget)
            if not weights.arrays:
                raise WeightsFileError("A weights file should contain arrays; this one has none.")
        yield replace(weights, arrays={name: _checked(path, array) for name, array in weights.arrays.items()})


@contextmanager
def _errors_with_path(path):
    """Convert any exception of a parser into a ValueError that names the file."""
    try:
        yield
    except ImportError:
        raise
    except WeightsFileError as error:
        raise ValueError(f"{error_summary(error)} Received: path={str(path)!r}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error_summary(error)}"
        raise ValueError(f"The weights file should be intact; {reason}. Received: path={str(path)!r}") from error


def _checked(path, array):
    """The StoredArray with a `read` that checks shape and dtype, and raises ValueError for any error."""

    def read():
        with _errors_with_path(path), np.errstate(over="raise"):
            values = np.asarray(array.read(), array.dtype, order="C")
            if values.shape != array.shape:
                raise WeightsFileError(f"An array should have the shape {array.shape}, not {values.shape}.")
            return values

    return replace(array, read=read)


def _open(path, file, stack, budget):
    head = file.read(16)
    file.seek(0)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return open_hdf5(path, file, stack, budget)
    if head.startswith(b"PK\x03\x04"):
        archive = stack.enter_context(open_zip(file, budget))
        names = set(archive.namelist())
        if {"config.json", "model.weights.h5"} <= names:
            return open_keras(path, archive, stack, budget)
        if any(name.rpartition("/")[2] == "data.pkl" for name in names):
            return open_torch_zip(path, archive, budget)
        raise WeightsFileError(f"A zip file should be a .keras or PyTorch file; this one contains {sorted(names)[:4]}.")
    if head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= path.stat().st_size - 8:
        return open_safetensors(path, file)
    if head.startswith(b"\x80"):  # a pickle's first opcode
        return open_torch_stream(path, file, budget)
    found = f"begins with {head!r}" if head else "is empty"
    raise WeightsFileError(f"`path` should be {_READABLE}; this file {found}.")


def write_arrays(
    arrays: dict[str, np.ndarray], path: str | os.PathLike, metadata: dict[str, str] | None = None
) -> None:
    """Write named arrays in the format that the suffix of `path` names, atomically.

    - `.safetensors`: `metadata` becomes its `__metadata__`.
    - `.pth`, `.pt`, `.th`: `torch.load(path, weights_only=True)` returns an OrderedDict of tensors, without `metadata`.
    - `.h5`: names should be "<layer>/<weight>", layers in the order of the model and weights in the order of
      `layer.weights`, so that `model.load_weights(path)` reads them, `by_name=True` or not; `metadata` becomes
      attributes of the file.

    Raises:
        ValueError: for another suffix, a dtype that not all formats can store, or invalid names for `.h5`.
        OSError: if the folder does not exist or is not writable.
    """
    path = Path(path)
    write = _WRITERS.get(path.suffix.lower())
    if write is None or path.name.lower().endswith(".weights.h5"):
        raise ValueError(
            f"The suffix of `path` should be one of {sorted(_WRITERS)} (Keras itself writes .weights.h5 and .keras: "
            f"`model.save_weights`, `model.save`). Received: path={str(path)!r}"
        )
    writable = {}
    for name, array in arrays.items():
        array = np.asarray(array, order="C")
        if array.dtype.name not in _WRITABLE_DTYPES:
            raise ValueError(f"The dtypes of arrays should be in {_WRITABLE_DTYPES}. Received: {name}={array.dtype}")
        writable[name] = array.astype(array.dtype.newbyteorder("<"), copy=False)
    with atomic_write(path) as temporary:
        write(writable, temporary, metadata or {})
