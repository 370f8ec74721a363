"""Keras's .keras files, zip archives of a config, of weights in HDF5 and of assets: checked, read, and written."""

import io
import os
import zipfile
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras

from keras_resnet.files import atomic_write
from keras_resnet.schema import parse_json
from keras_resnet.weights.hdf5_files import count_values, open_hdf5_bytes
from keras_resnet.weights.weights_file import (
    Budget,
    WeightsFile,
    WeightsFileError,
    member_size,
    open_zip,
    read_member,
    read_text,
)

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
"""Members of the archive."""


def open_keras(path: Path, archive: zipfile.ZipFile, stack: ExitStack, budget: Budget) -> WeightsFile:
    """WeightsFile of a .keras file, an open ZipFile. It stays open until `stack` closes."""
    config = _parse_config(read_text(archive, CONFIG, budget))
    content = read_member(archive, archive.getinfo(WEIGHTS), budget).tobytes()
    return replace(open_hdf5_bytes(path, content, stack, budget), format="keras", config=config)


def check_keras_file(path: Path) -> tuple[dict[str, Any], int]:
    """Check everything in a .keras file that Keras reads: checksums, sizes, and how the arrays are stored.

    Returns:
        The config of the model, and the number of values in all arrays.

    Raises:
        ValueError, OSError or zipfile.BadZipFile: if the file is damaged, or needs more memory than its size justifies.
    """
    budget = Budget(path.stat().st_size)
    with open(path, "rb") as file, open_zip(file, budget) as archive:
        for info in archive.infolist():
            _check_member(archive, info, budget)
        config = _parse_config(read_text(archive, CONFIG, budget))
        return config, count_values(archive.read(WEIGHTS), budget)


def _parse_config(text):
    return parse_json(text, dict[str, Any], CONFIG)


def _check_member(archive, info, budget):
    """Raises an error for a wrong checksum, or a wrong size: Keras reads members whole, whatever they expand to."""
    budget.spend(bytes=member_size(archive, info))
    longer = copy(info)
    longer.file_size += 1  # zipfile ends a member at this size
    with archive.open(longer) as member:
        size = len(member.read(longer.file_size))
    if size != info.file_size:
        raise WeightsFileError(f"`{info.filename}` should have {info.file_size} bytes; it has others.")


def save_keras(model: keras.Model, path: str | os.PathLike) -> None:
    """Write a model to a .keras file, as `model.save`, but atomically.

    Raises:
        OSError: if the folder does not exist or is not writable, or its disk is full.
    """
    content = _keras_bytes(model)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def save_keras_weights(model: keras.Model, path: str | os.PathLike, metadata: dict[str, str]) -> None:
    """Write a .weights.h5 file, as `model.save_weights`, but atomically; `metadata` becomes attributes of the file.

    Raises:
        OSError: as `save_keras`.
    """
    import h5py

    with zipfile.ZipFile(_keras_bytes(model)) as archive:
        content = io.BytesIO(archive.read(WEIGHTS))
    with h5py.File(content, "r+") as file:
        file.attrs.update(metadata)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _keras_bytes(model):
    """The .keras file of a model, written in memory: libhdf5 crashes if it writes to a full disk."""
    content = io.BytesIO()
    keras.saving.save_model(model, content, zipped=False)  # into a buffer, it is a zip archive all the same
    return content
