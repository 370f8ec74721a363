"""Feature files (.npz): written and read without pickle; sizes are checked before memory is allocated."""

import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from keras_resnet.data.datasets import UNLABELLED
from keras_resnet.errors import error_summary, unknown_name_error
from keras_resnet.transfer.extraction import Features
from keras_resnet.weights.zip_members import member_size

SUFFIX = ".npz"
ARRAYS = {"features": ("f", 2), "names": ("U", 1), "labels": ("iu", 1), "class_names": ("U", 1), "settings": ("U", 0)}
"""Name of each array in the file -> (kinds of its dtype, number of axes)."""
LISTS = {"shape": int, "class_names": str, "skipped": str}
"""Name of each list in the settings -> type of its items."""
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def check_suffix(path):
    """Raises ValueError unless the file name ends in .npz."""
    if Path(path).suffix != SUFFIX:
        raise unknown_name_error("out", str(path), [SUFFIX], f"a file that ends in {SUFFIX}")


def save_features(path, features, settings):
    """Writes Features and their settings; vectors in a memory-mapped file are copied in chunks."""
    np.savez(
        path,
        features=features.vectors,
        names=np.array(features.names, str),
        labels=features.labels,
        class_names=np.array(features.class_names, str),
        settings=np.array(json.dumps(settings)),
    )


def read_features(path: str | os.PathLike) -> Features:
    """Reads a feature file.

    >>> import numpy as np
    >>> from keras_resnet import transfer
    >>> vectors, names = np.eye(2, dtype="float32"), ["a.png", "b.png"]
    >>> np.savez("two.npz", features=vectors, names=names, labels=[0, 0], class_names=["ant"], settings="{}")
    >>> transfer.read_features("two.npz").names
    ('a.png', 'b.png')

    Args:
        path: a file that `write_features` wrote, or another .npz file with the same arrays.

    Returns:
        Features, with their `settings`.

    Raises:
        ValueError: if the file has another format or is damaged.
        OSError: if it cannot be read.
    """
    arrays = _read(path, ARRAYS)
    settings = arrays["settings"]
    return Features(
        vectors=np.asarray(arrays["features"], "float32"),
        labels=np.asarray(arrays["labels"], "int32"),
        names=tuple(arrays["names"].tolist()),
        class_names=tuple(arrays["class_names"].tolist()),
        skipped=tuple(settings.get("skipped", ())),
        settings=settings,
    )


def read_settings(path):
    """The settings of a feature file. Raises as `read_features`."""
    return _read(path, ["settings"])["settings"]


def _read(path, names):
    """{name: array} for some of ARRAYS, validated; the settings as a dict."""
    check_suffix(path)
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                arrays = {name: _read_array(archive, archive.getinfo(f"{name}.npy")) for name in names}
            _check_arrays(arrays)
            return arrays | {"settings": _parse_settings(str(arrays["settings"]))}
        except Exception as error:  # on damaged files zipfile and NumPy raise exceptions of almost any type
            raise ValueError(
                f"`path` should be a file written by `keras-resnet features` ({error_summary(error)}). Received: {path}"
            ) from error


def _read_array(archive, info):
    """One array of the archive, after checking that as many bytes are stored as its header claims."""
    size = member_size(archive, info)
    with archive.open(info) as file:
        shape, fortran_order, dtype = _READ_HEADER[np.lib.format.read_magic(file)](file)
        stored, claimed = size - file.tell(), math.prod(shape) * dtype.itemsize
        if dtype.hasobject or not dtype.itemsize or 0 in shape[1:] or stored != claimed:
            raise ValueError(f"{info.filename} has {stored} bytes, which is not an array of shape {shape}, {dtype}")
        return np.ndarray(shape, dtype, file.read(claimed), order="F" if fortran_order else "C")


def _check_arrays(arrays):
    """Raises ValueError for arrays with a wrong dtype or number of axes, or that do not match each other."""
    for name, array in arrays.items():
        kinds, axes = ARRAYS[name]
        if array.dtype.kind not in kinds or array.ndim != axes:
            raise ValueError(f"{name} has dtype {array.dtype} and {array.ndim} axes")
    lengths = {name: len(arrays[name]) for name in ("features", "names", "labels") if name in arrays}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the numbers of rows differ: {lengths}")
    labels, num_classes = arrays.get("labels", np.empty(0)), len(arrays.get("class_names", ()))
    if labels.size and not UNLABELLED <= labels.min() <= labels.max() < max(num_classes, 1):
        raise ValueError(f"labels are from {labels.min()} to {labels.max()}, with {num_classes} class names")


def _parse_settings(text):
    """JSON -> dict. Raises ValueError for other JSON values and for wrong items in one of LISTS."""
    settings = json.loads(text)
    if not isinstance(settings, dict):
        raise ValueError("the settings are not a JSON object")
    for name, item_type in LISTS.items():
        values = settings.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, item_type) for value in values):
            raise ValueError(f"`{name}` in the settings is not a list of {item_type.__name__}")
    return settings
