"""What every weights format is read as: named arrays that are still in the file."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""Prefixes of DataParallel, of torch.compile, and of training code that keeps the network in an attribute."""


OURS = "keras_resnet"
"""Name of the metadata that our own files carry: JSON of the ResNetSpec and of what belongs to the weights."""


@dataclass(frozen=True)
class Entry:
    """One array of a weights file that has not been read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    """Of what `read` returns: float32 for every floating-point type."""
    read: Callable[[], np.ndarray]
    """Returns the array, C-contiguous; raises ValueError if the file is damaged there."""


@dataclass(frozen=True)
class WeightsFile:
    """An open weights file: its arrays by name, in the file's order."""

    path: Path
    format: str
    """ "h5" (legacy Keras), "weights.h5", "keras", "safetensors" or "torch"."""
    entries: dict[str, Entry]
    config: dict
    """`config.json` of a .keras, `model_config` of a whole-model .h5, `__metadata__` of a safetensors file, else {};
    under OURS what `saving.save_weights` wrote."""


class Refusal(ValueError):
    """What is wrong with a weights file, as a sentence; `readers.open_weights` adds the path."""


def unwrapped(entries):
    """Entries by name, less the prefixes that all names share and less batch norm's `num_batches_tracked`."""
    while entries and (prefix := _shared_prefix(entries)):
        entries = {name.removeprefix(prefix): entry for name, entry in entries.items()}
    return {name: entry for name, entry in entries.items() if not name.endswith("num_batches_tracked")}


def _shared_prefix(names):
    return next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in names)), None)


def widened(dtype):
    """The dtype that arrays of `dtype`, a NumPy dtype, its name or "bfloat16", are read as."""
    floating = dtype == "bfloat16" or np.dtype(dtype).kind == "f"
    return np.dtype(np.float32) if floating else np.dtype(dtype).newbyteorder("=")


def decoded(raw, dtype, order="<"):
    """Bytes, or an HDF5 array, of elements of `dtype` -> array; bfloat16, the upper half of a float32, as float32."""
    if dtype == "bfloat16":
        return (raw.view(f"{order}u2").astype(np.uint32) << 16).view(np.float32)
    return raw if raw.dtype == dtype else raw.view(np.dtype(dtype).newbyteorder(order))


def read_bytes(file, size):
    """The next `size` bytes as uint8; the caller knows that the file has room for them."""
    raw = np.empty(size, np.uint8)
    if file.readinto(raw) != size:
        raise Refusal(f"{size} bytes should follow, but the file ends.")
    return raw


def json_object(text):
    """JSON text -> dict; raises Refusal if it describes anything else."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise Refusal(f"A JSON object should describe the model, not a {type(value).__name__}.")
    return value
