"""Anybody's weights file as named arrays: read lazily, measured before memory is taken, and never run.

A file is recognised by what is in it, not by its suffix; the rooms above read the single formats.
"""

import struct
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from keras_resnet.weights.hdf5_files import open_hdf5, open_keras
from keras_resnet.weights.safetensors_files import open_safetensors
from keras_resnet.weights.torch_files import open_torch_stream, open_torch_zip
from keras_resnet.weights.weights_file import Entry, Refusal, WeightsFile

__all__ = ["Entry", "WeightsFile", "open_weights"]

_KNOWN_FORMATS = "a Keras .h5, .weights.h5 or .keras file, a .safetensors file or a PyTorch .pth file"


@contextmanager
def open_weights(path) -> Iterator[WeightsFile]:
    """Open a weights file of any known format; its entries can be read inside the `with` only.

    Names are "<layer>/<kind>" ("conv1_conv/kernel") in Keras' formats. In safetensors and PyTorch files they are the
    file's own, less a prefix that all of them share ("module.", "_orig_mod.", "model.") and less the
    `num_batches_tracked` counters. A checkpoint's other contents (epoch, optimizer, ...) are passed over.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is of no known format, damaged, or refused because it asks for code, for other files,
            or for more memory than its size warrants.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"`path` should be {_KNOWN_FORMATS}; there is none. Received: path={str(path)!r}")
    if path.is_dir():
        raise ValueError(f"`path` should be {_KNOWN_FORMATS}, not a folder. Received: path={str(path)!r}")
    with ExitStack() as stack:
        with _explained(path):
            weights = _open(path, stack.enter_context(open(path, "rb")), stack)
            if not weights.entries:
                raise Refusal("A weights file should hold arrays; this one has none.")
        yield replace(weights, entries={name: _guarded(path, entry) for name, entry in weights.entries.items()})


@contextmanager
def _explained(path):
    """Turn whatever a parser raises at a damaged file into one ValueError that names the file."""
    try:
        yield
    except ImportError:
        raise
    except Refusal as error:
        raise ValueError(f"{error} Received: path={str(path)!r}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"The weights file should be intact; {reason}. Received: path={str(path)!r}") from error


def _guarded(path, entry):
    """The Entry of a format -> one whose `read` keeps what `Entry` promises."""

    def read():
        with _explained(path), np.errstate(over="raise"):
            array = np.asarray(entry.read(), entry.dtype, order="C")
            if array.shape != entry.shape:
                raise Refusal(f"An array of shape {entry.shape} should be there, not one of {array.shape}.")
            return array

    return replace(entry, read=read)


def _open(path, file, stack):
    head = file.read(16)
    file.seek(0)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return open_hdf5(path, file, stack)
    if head.startswith(b"PK\x03\x04"):
        return _open_zip(path, stack.enter_context(zipfile.ZipFile(file)), stack)
    if head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= path.stat().st_size - 8:
        return open_safetensors(path, file)
    if head.startswith(b"\x80"):  # a pickle's first opcode
        return open_torch_stream(path, file)
    found = f"begins with {head!r}" if head else "is empty"
    raise Refusal(f"`path` should be {_KNOWN_FORMATS}; the file {found}.")


def _open_zip(path, archive, stack):
    names = set(archive.namelist())
    if {"config.json", "model.weights.h5"} <= names:
        return open_keras(path, archive, stack)
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return open_torch_zip(path, archive)
    raise Refusal(f"A zip file should be a .keras or a PyTorch file; this one holds {sorted(names)[:4]}.")
