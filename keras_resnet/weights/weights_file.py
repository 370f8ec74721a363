"""WeightsFile: an open weights file with named arrays that are read on demand, and checked reading of bytes."""

import io
import mmap
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from keras_resnet.architecture.metadata import NetworkMetadata, checked_metadata
from keras_resnet.schema import checked, parse_json

METADATA_KEY = "keras_resnet"
"""Key of the metadata that `save_weights` stores: JSON of {"spec": fields of the ResNetSpec, "info": model.info}."""

_PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes of DataParallel, of torch.compile, and of training code that keeps the network in an attribute."""
MAX_AXES = 32
"""Largest number of axes of an array, as in HDF5."""
_MAX_NAME = 300
"""Largest number of characters in the name of an array."""
_MAX_PREFIXES = 5
"""Largest number of prefixes before a name."""
_MAX_TEXT_BYTES = 2**24
"""Largest zip member that `read_text` reads: a model's config or the pickle of a state dict."""
_MAX_COMPRESSION_RATIO = 100
"""Largest ratio of uncompressed to compressed bytes of a zip member; weights hardly compress."""


class WeightsFileError(ValueError):
    """A weights file that is damaged, unsafe or of an unknown format; `open_weights` adds the path to the message."""


class Budget:
    """What reading one file may cost. The readers of all formats spend from it, so they end whatever the file says.

    `bytes`: decompressed, or read from a part of the file that is read as a whole. Weights hardly compress, so eight
    times the size of the file is enough, unless arrays are constant, as in a new network: then twice its size is.

    `steps`: opcodes executed, objects made, links followed, entries visited, each as many steps as it takes
    microseconds, about. The file of a ResNet-1202 needs less than a million, with the state of Adam more.
    """

    def __init__(self, file_size: int, network_bytes: int = 0):
        self.bytes = 2**26 + 8 * file_size + 2 * network_bytes
        self.steps = min(100_000 + file_size, 2_000_000)

    def spend(self, *, bytes: int = 0, steps: int = 0) -> None:
        """Subtract the cost of an operation before it is done; raises WeightsFileError if less is left."""
        self.bytes -= bytes
        self.steps -= steps
        if self.bytes < 0:
            raise WeightsFileError("A weights file should not expand to many times its size when it is decompressed.")
        if self.steps < 0:
            raise WeightsFileError("A weights file should not need more steps to read than weights of its size do.")


@dataclass(frozen=True)
class StoredArray:
    """An array of an open weights file: its shape and dtype, and a function that reads it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    """dtype of the array that `read` returns: float32 for every floating-point type."""
    read: Callable[[], np.ndarray]
    """Returns the array, C-contiguous; raises ValueError if that part of the file is damaged."""


@dataclass(frozen=True)
class WeightsFile:
    """An open weights file: its arrays by name, in the order of the file."""

    path: Path
    format: str
    """ "h5" (legacy Keras), "weights.h5", "keras", "safetensors" or "torch"."""
    arrays: dict[str, StoredArray]
    config: dict[str, Any]
    """`config.json` of a .keras file, `model_config` of an .h5 file of a whole model, `__metadata__` of a safetensors
    file, else {}; with our own metadata under METADATA_KEY if the file has them."""

    def __post_init__(self):
        """Bounds what later messages contain."""
        for name, array in self.arrays.items():
            if len(name) > _MAX_NAME or len(array.shape) > MAX_AXES:
                expected = f"names of at most {_MAX_NAME} characters and at most {MAX_AXES} axes"
                received = f"{len(name)} characters and {len(array.shape)} axes"
                raise WeightsFileError(f"Arrays should have {expected}; {name[:50]!r} has {received}.")

    @cached_property
    def metadata(self) -> NetworkMetadata:
        """The spec of the network and the facts about its weights; None and {} in files of other programs.

        Raises:
            ValueError: if they are damaged.
        """
        try:
            if text := self.config.get(METADATA_KEY):
                return checked_metadata(parse_json(checked(text, str, METADATA_KEY)))
            model = self.config.get("config")
            return checked_metadata(model.get("resnet") if isinstance(model, dict) else None)
        except ValueError as error:
            raise ValueError(f"`{self.path}` should contain intact metadata. Received: {error}") from error


def strip_prefixes(arrays: dict[str, StoredArray]) -> dict[str, StoredArray]:
    """Arrays without the prefixes that all names share, and without batch norm's `num_batches_tracked` counters."""
    for _ in range(_MAX_PREFIXES):
        prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in arrays)), "")
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}


def dtype_in_memory(stored: Any) -> np.dtype:
    """dtype of arrays in memory for a stored dtype: a NumPy dtype, its name, or "bfloat16"."""
    floating = stored == "bfloat16" or np.dtype(stored).kind == "f"
    return np.dtype(np.float32) if floating else np.dtype(stored).newbyteorder("=")


def decode(raw: np.ndarray, dtype: Any, byteorder: str = "<") -> np.ndarray:
    """Array of `dtype` from bytes or from an HDF5 array; bfloat16, the upper half of a float32, becomes float32."""
    if dtype == "bfloat16":
        return (raw.view(f"{byteorder}u2").astype(np.uint32) << 16).view(np.float32)
    return raw if raw.dtype == dtype else raw.view(np.dtype(dtype).newbyteorder(byteorder))


def read_bytes(file: Any, size: int) -> np.ndarray:
    """The next `size` bytes as uint8; the caller has checked that the file is large enough."""
    raw = np.empty(size, np.uint8)
    if file.readinto(raw) != size:
        raise WeightsFileError(f"{size} bytes should follow, but the file ends.")
    return raw


def open_zip(file: BinaryIO, budget: Budget) -> zipfile.ZipFile:
    """A zip file with unique names of members, of which each costs steps, since zipfile reads all their headers."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        budget.spend(steps=16 * sum(1 for _ in re.finditer(rb"PK\x01\x02", content)))
    archive = zipfile.ZipFile(file)
    if len(set(archive.namelist())) < len(archive.namelist()):
        raise WeightsFileError("A zip file should have unique names of members.")
    return archive


def member_size(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Uncompressed bytes of a zip member; raises WeightsFileError if it cannot be read or too few bytes are stored."""
    ratios = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _MAX_COMPRESSION_RATIO}  # LZMA allocates what the file says
    if info.flag_bits & 1 or info.compress_type not in ratios:
        raise WeightsFileError(f"`{info.filename}` in the zip file should be stored or deflated, and not encrypted.")
    end = archive.fp.seek(0, io.SEEK_END) if archive.fp else 0
    too_large = info.file_size > ratios[info.compress_type] * info.compress_size
    if too_large or info.header_offset + info.compress_size > end:
        raise WeightsFileError(
            f"Too few bytes of `{info.filename}` are stored: {info.compress_size} for {info.file_size}."
        )
    return info.file_size


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: Budget) -> np.ndarray:
    """Bytes of a zip member, whose checksum is compared; raises WeightsFileError as `member_size` does."""
    size = member_size(archive, info)
    budget.spend(bytes=size)
    with archive.open(info) as member:
        return read_bytes(member, size)  # `read()` without a size would decompress whatever is there


def read_text(archive: zipfile.ZipFile, name: str, budget: Budget) -> bytes:
    """Bytes of a short zip member; raises WeightsFileError if it is too long."""
    info = archive.getinfo(name)
    if info.file_size > _MAX_TEXT_BYTES:
        raise WeightsFileError(f"`{name}` in the zip file should have at most {_MAX_TEXT_BYTES} bytes.")
    return read_member(archive, info, budget).tobytes()
