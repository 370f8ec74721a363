"""WebDataset's tar files -> Archive.

The form is that of https://github.com/webdataset/webdataset. Images are read where they lie in the uncompressed files,
so that any order costs the same. Only images, "cls" and "json" are read; nothing is unpacked and nothing unpickled.
"""

import glob
import json
import mmap
import os
import re
import tarfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.data.archives import (
    Archive,
    ArchivedSplit,
    check_contents,
    find_archives,
)
from keras_resnet.data.datasets import SPLITS
from keras_resnet.data.image_files import SUFFIXES, UnreadableImageError, images_in_folder
from keras_resnet.data.image_limits import MAX_FILE_BYTES
from keras_resnet.data.manifests import read_files
from keras_resnet.errors import check_installed, value_error

CLASS_NAMES = "classnames.txt"
"""File beside the shards with the name of a class a line, as in the data sets of CLIP's benchmark."""
LABEL_KEYS = ("label", "cls")
"""Keys of the class in a sample's "json"."""
MAX_LABEL_BYTES = 2**20
"""Largest size of a sample's "cls" or "json"."""


def find_shards(name: str) -> list[str] | None:
    """Paths of the shards that a folder, a file or a pattern such as "train-{000..146}.tar" or "*.tar" names, or None.

    A folder that has images as well is one of class folders, beside which the files that they were unpacked from lie.

    Raises FileNotFoundError for shards that do not exist.
    """
    if os.path.isdir(name):
        shards = find_archives(name, ".tar")
        return shards if shards and not images_in_folder(name) else None
    if not name.endswith(".tar"):
        return None
    check_installed("A data set of tar files", ["webdataset"], "keras-residual[webdataset]")
    from braceexpand import braceexpand  # which WebDataset uses

    paths = [path for pattern in braceexpand(name) for path in (sorted(glob.glob(pattern)) or [pattern])]
    if missing := [path for path in paths if not os.path.isfile(path)]:
        raise FileNotFoundError(f"Expected tar files. Received: dataset={name!r} without {missing[:3]}")
    return paths


def open_shards(paths: list[str]) -> Archive:
    """The Archive of shards.

    A split is a word in the names of the shards, or of their folders below the common one; without such a word, all
    are of the split "train". A sample's class is an index or a name, in "cls" or under LABEL_KEYS in "json".
    """
    check_installed("A data set of tar files", ["webdataset"], "keras-residual[webdataset]")
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    splits: dict[str, list[str]] = {}
    for path in paths:
        words = re.split(r"[^a-z]+", os.path.relpath(path, folder).lower())
        splits.setdefault(next((word for word in words if word in SPLITS), "train"), []).append(path)
    names = Path(folder, CLASS_NAMES)
    class_names = tuple(names.read_text("utf-8").splitlines()) if names.is_file() else None
    return Archive(folder, tuple(splits), class_names, lambda split, check: _open_split(splits[split], folder, check))


def _open_split(paths, folder, check):
    """The ArchivedSplit of shards."""
    records = read_files(partial(_read_shard, check=check), paths, folder, f"webdataset {check.kind}")
    if damaged := {path: record.error for path, record in records.items() if record.error is not None}:
        path, error = next(iter(damaged.items()))
        raise value_error("dataset", path, f"uncompressed tar files that can be read ({error})")
    samples = [sample for record in records.values() for sample in record.result]
    shards = np.repeat(np.arange(len(paths)), [len(record.result) for record in records.values()])
    offsets, sizes = np.array([sample[1:3] for sample in samples], "int64").reshape(-1, 2).T

    def read(index):
        with open(paths[shards[index]], "rb") as file:
            return _read_part(file, int(offsets[index]), int(sizes[index]))

    return ArchivedSplit(
        read,
        [sample[3] for sample in samples],
        [sample[4:] for sample in samples],
        lambda index: f"{os.path.relpath(paths[shards[index]], folder)}/{samples[index][0]}",
    )


def _read_part(file, offset, size):
    file.seek(offset)
    contents = file.read(size)
    if len(contents) < size:
        raise UnreadableImageError(file.name, "the tar file is incomplete")
    return contents


def _read_shard(path: str, check) -> list[list[Any]]:
    """[[key, offset, size, class, orientation, error]] of the samples of a shard."""
    from webdataset.tariterators import group_by_keys

    try:
        with open(path, "rb") as file, _mapped(file) as contents, tarfile.open(fileobj=contents, mode="r:") as tar:
            parts: Iterable[dict] = (
                {"fname": member.name, "data": (member.offset_data, member.size), "__url__": path}
                for member in tar
                if member.isreg() and not member.issparse()
            )
            samples = [_read_sample(sample, file, check) for sample in group_by_keys(parts)]
            _read_part(file, tar.offset, tarfile.BLOCKSIZE)  # the end mark, which an incomplete file lacks
            return samples
    except tarfile.TarError as error:
        raise ValueError(str(error)) from error


def _mapped(file):
    """The contents as a file whose `read` allocates no more than there is, whatever size a header of the tar says."""
    if not os.fstat(file.fileno()).st_size:
        raise ValueError("the file is empty")
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read_sample(sample, file, check):
    """[key, offset, size, class, orientation, error] of a sample, {suffix: (offset, size)}."""
    offset, size = next((sample[suffix[1:]] for suffix in SUFFIXES if suffix[1:] in sample), (0, 0))
    label, checked = None, [None, "no image"]
    if size > MAX_FILE_BYTES:
        checked = [None, f"more than {MAX_FILE_BYTES} bytes"]
    elif size:
        label = _read_label(sample, file)
        checked = check_contents(_read_part(file, offset, size), check)
    if label is None and checked[1] is None:
        checked = [None, "no class in cls or json"]
    return [sample["__key__"], offset, size, label, *checked]


def _read_label(sample, file):
    """Index or name of the class, or None."""
    field = next((name for name in ("cls", "json") if name in sample), None)
    if field is None or sample[field][1] > MAX_LABEL_BYTES:
        return None
    try:
        text = _read_part(file, *sample[field]).decode("utf-8").strip()
        value = json.loads(text) if field == "json" or re.fullmatch(r"\d+", text) else text
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = next((value[key] for key in LABEL_KEYS if key in value), None)
    is_label = isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))
    return value if is_label and value != "" else None
