"""Feature files (.npz): written by runs that can be killed and resumed; read without pickle, and checked first."""

import glob
import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet.architecture.metadata import model_info, model_spec
from keras_resnet.data.datasets import UNLABELLED
from keras_resnet.data.prefetch import describe_errors
from keras_resnet.data.sources import image_source
from keras_resnet.errors import error_summary, unknown_name_error, value_error
from keras_resnet.files import atomic_write, check_regular_file, check_writable, read_json, remove_leftovers, write_json
from keras_resnet.locks import LOCK, folder_lock
from keras_resnet.models.feature_extractor import PRE_LOGITS
from keras_resnet.models.preprocessing import preprocessing, weights_digest
from keras_resnet.models.transforms import with_input_size
from keras_resnet.precision import precision_of
from keras_resnet.schema import parse_json
from keras_resnet.training.checkpoints import OVERWRITE_HINT, check_settings
from keras_resnet.transfer.extraction import (
    Features,
    check_any_read,
    check_batch_size,
    extract_batches,
    vector_extractor,
)
from keras_resnet.weights.weights_file import member_size

ARRAYS = {"features": ("f", 2), "names": ("U", 1), "labels": ("iu", 1), "class_names": ("U", 1), "settings": ("U", 0)}
"""Name of each array in the file -> (kinds of its dtype, number of axes)."""
LISTS = {"shape": int, "class_names": str, "skipped": str}
"""Name of each list in the settings -> type of its items."""
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
SETTINGS, ROWS, JOURNAL = "settings.json", "rows.float32", "journal.jsonl"
_REPLACE = OVERWRITE_HINT.format("file")


def write_features(
    model: keras.Model,
    folder: str | os.PathLike,
    out: str | os.PathLike,
    endpoint: str = PRE_LOGITS,
    pooling: str = "avg",
    batch_size: int = 100,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    size: int | None = None,
) -> dict[str, Any]:
    """Writes the features of every image in a folder to a file for `read_features`.

    Finished batches are kept in OUT.partial/. After an interruption of any kind, SIGKILL included, the same call
    continues there and writes the same file as an uninterrupted run. A complete OUT with the same settings is kept.

    >>> from pathlib import Path
    >>> from PIL import Image
    >>> import keras_resnet
    >>> from keras_resnet import transfer
    >>> Path("photos").mkdir()
    >>> Image.new("RGB", (32, 32)).save("photos/black.png")
    >>> model = keras_resnet.create("resnet20", input_shape=(32, 32, 3), classes=10)
    >>> model.info["preprocessing"] = keras_resnet.Preprocessing("tf", size=32, resize=None).to_config()
    >>> transfer.write_features(model, "photos", "photos.npz")["shape"]
    [1, 64]

    Args:
        model: Keras model whose preprocessing is known, or a `feature_extractor`.
        folder: searched recursively for images; names in the file are relative to it. Classes as in `extract`. The
            images of Parquet and tar files, see `load_dataset`, are numbered instead.
        out: .npz file to write, with arrays "features" (N, D) float32, "names" (N,), "labels" (N,) int32 (-1: no
            class), "class_names" and "settings" (JSON). NumPy loads it without pickle.
        endpoint, pooling, batch_size: as for `extract`.
        overwrite: whether to replace an existing OUT or OUT.partial/ that has other settings.
        progress: called with (number of images done, total) at the start and after every batch.
        size: as for `extract`.

    Returns:
        The settings as JSON values: how the vectors were computed, their `shape` [N, D], the `class_names`, and
        `skipped`, the images that could not be read with their errors.

    Raises:
        ValueError: as `extract`; for another suffix; if OUT or OUT.partial/ has other settings, weights or images;
            and if no image can be read.
        OSError: if the folder does not exist, OUT cannot be written, or another process is writing it.
        FloatingPointError: if the model returns NaN or Inf.
    """
    _check_suffix(out)
    if not Path(folder).is_dir():
        raise NotADirectoryError(f"`folder` should be a folder of images. Received: folder={str(folder)!r}")
    source, extractor = image_source(Path(folder)), vector_extractor(with_input_size(model, size), endpoint, pooling)
    check_batch_size(extractor, batch_size)
    settings = _extraction_settings(extractor, source, endpoint, pooling, batch_size)
    partial = PartialFeatures(Path(f"{out}.partial"), extractor.outputs[0].shape[-1])
    if not overwrite and Path(out).exists():
        found = _read(out, ["settings"])["settings"]
        check_settings({name: found.get(name) for name in settings}, settings, out, _REPLACE)
        if partial.folder.exists():
            with partial.locked():
                partial.remove()
        return found
    target, total = check_writable(out), len(source.split)  # fail now rather than after the extraction
    progress = progress or (lambda done, total: None)
    with partial.locked():
        remove_leftovers(target.parent, glob.escape(target.name))
        partial.begin_or_resume(settings, overwrite)
        progress(partial.done, total)
        for batch, vectors in extract_batches(extractor, source.split, endpoint, pooling, batch_size, partial.done):
            partial.append(batch.stop, vectors, batch.read_errors)
            progress(batch.stop, total)
        features = partial.features(source)
        lists = {"shape": features.vectors.shape, "class_names": features.class_names, "skipped": features.skipped}
        settings |= {name: list(values) for name, values in lists.items()}
        with atomic_write(target) as temporary:
            np.savez(  # copies the memory-mapped vectors in chunks
                temporary,
                features=features.vectors,
                names=np.array(features.names, str),
                labels=features.labels,
                class_names=np.array(features.class_names, str),
                settings=np.array(json.dumps(settings)),
            )
        partial.remove()
    return settings


def _extraction_settings(extractor, source, endpoint, pooling, batch_size):
    """Everything that determines the vectors, as JSON values."""
    sizes = map(os.path.getsize if source.split.has_paths else len, source.split.images)
    files = "\n".join(f"{name}\t{size}" for name, size in zip(source.names, sizes, strict=True))
    spec = model_spec(extractor)
    return {
        "model": extractor.name,
        "spec": spec and spec.to_config(),
        "weights": model_info(extractor).get("weights"),
        "preprocessing": preprocessing(extractor).to_config(),
        # of its layers: the model's own policy is the one that was set when the model was created
        "precision": ", ".join(sorted({precision_of(layer.dtype_policy) for layer in extractor.layers})),
        "endpoint": endpoint,
        "pooling": pooling,
        "batch_size": batch_size,
        "files": len(source.names),
        "files_sha256": hashlib.sha256(files.encode("utf-8", "surrogateescape")).hexdigest(),
        "weights_sha256": weights_digest(extractor),
    }


class PartialFeatures:
    """The folder of an unfinished extraction: vectors as rows of float32, and a journal with a line for each batch.

    A batch is finished when its line is in the journal. Anything after the last complete line is truncated.
    """

    def __init__(self, folder, vector_size):
        self.folder, self.bytes_per_row = folder, 4 * vector_size
        self.done, self.read_errors = 0, {}

    @property
    def num_rows(self):
        """Number of stored vectors: one for each image that could be read."""
        return self.done - len(self.read_errors)

    @contextmanager
    def locked(self):
        """Creates the folder, and holds its lock, which ends with the process. Raises OSError if another holds it."""
        self.folder.mkdir(exist_ok=True)
        with folder_lock(self.folder, "out", self.folder.with_suffix("")):
            yield

    def begin_or_resume(self, settings, overwrite):
        """Starts in an empty folder, or resumes what it holds; raises ValueError if that has other settings."""
        if overwrite:
            self._clear()
        path = self.folder / SETTINGS
        if path.exists():
            check_settings(read_json(path, dict[str, Any]), settings, path, _REPLACE)
        else:
            write_json(settings, path)
        journal_bytes = self._read_journal(settings["batch_size"], settings["files"])
        for name, size in ((JOURNAL, journal_bytes), (ROWS, self.bytes_per_row * self.num_rows)):
            with open(self.folder / name, "ab") as file:
                file.truncate(size)

    def _read_journal(self, batch_size, num_images):
        """Reads the finished batches; returns the size of their lines in bytes."""
        journal, rows = self.folder / JOURNAL, self.folder / ROWS
        stored, size = rows.stat().st_size if rows.exists() else 0, 0
        for line in journal.read_bytes().splitlines(keepends=True) if journal.exists() else ():
            stop = min(self.done + batch_size, num_images)
            errors = _parse_line(line, self.done, stop)
            if errors is None or self.bytes_per_row * (stop - len(self.read_errors | errors)) > stored:
                break
            self.done, self.read_errors, size = stop, self.read_errors | errors, size + len(line)
        return size

    def append(self, stop, vectors, read_errors):
        """Stores the vectors and read errors of one batch, which ends before image `stop`."""
        with open(self.folder / ROWS, "ab") as file:
            file.write(vectors.tobytes())
        with open(self.folder / JOURNAL, "ab") as file:
            file.write(json.dumps([stop, read_errors]).encode() + b"\n")
        self.done, self.read_errors = stop, self.read_errors | read_errors

    def features(self, source):
        """Features of the images that could be read, their vectors memory-mapped; raises ValueError without any."""
        check_any_read(self.num_rows, source)
        indices = [index for index in range(self.done) if index not in self.read_errors]
        vectors = np.memmap(self.folder / ROWS, "float32", "r").reshape(self.num_rows, -1)
        names = tuple(source.names[index] for index in indices)
        skipped = tuple(describe_errors(self.read_errors, source.names))
        return Features(vectors, source.split.labels[indices], names, source.class_names, skipped)

    def remove(self):
        """Removes the folder, unless it holds other files as well."""
        self._clear()
        (self.folder / LOCK).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _clear(self):
        """Deletes the journal first: without it, no batch counts as finished."""
        for name in (JOURNAL, ROWS, SETTINGS):
            (self.folder / name).unlink(missing_ok=True)
        remove_leftovers(self.folder, SETTINGS)


def _parse_line(line, start, stop):
    """Read errors {index: message} in the journal line of the images [start, stop); None if it is not that line."""
    try:
        found, read_errors = json.loads(line)
        read_errors = {int(index): error for index, error in read_errors.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    complete = line.endswith(b"\n") and found == stop and read_errors.keys() <= set(range(start, stop))
    return read_errors if complete else None


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


def _read(path, names):
    """{name: array} for some of ARRAYS, validated; the settings as a dict."""
    _check_suffix(path)
    check_regular_file(path)
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                arrays = {name: _read_array(archive, archive.getinfo(f"{name}.npy")) for name in names}
            _check_arrays(arrays)
            return arrays | {"settings": _parse_settings(str(arrays["settings"]))}
        except Exception as error:  # on damaged files zipfile and NumPy raise exceptions of almost any type
            expected = f"a file written by `keras-resnet features` ({error_summary(error)})"
            raise value_error("path", str(path), expected) from error


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
        if array.dtype.kind == "U":
            array.tolist()  # raises an error for numbers that are no characters
    lengths = {name: len(arrays[name]) for name in ("features", "names", "labels") if name in arrays}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the numbers of rows differ: {lengths}")
    labels, num_classes = arrays.get("labels", np.empty(0)), len(arrays.get("class_names", ()))
    if labels.size and not UNLABELLED <= labels.min() <= labels.max() < max(num_classes, 1):
        raise ValueError(f"labels are from {labels.min()} to {labels.max()}, with {num_classes} class names")


def _parse_settings(text):
    """JSON -> dict. Raises ValueError for other JSON values and for wrong items in one of LISTS."""
    settings = parse_json(text, dict[str, Any], "settings")
    for name, item_type in LISTS.items():
        values = settings.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, item_type) for value in values):
            raise ValueError(f"`{name}` in the settings is not a list of {item_type.__name__}")
    return settings


def _check_suffix(path):
    if Path(path).suffix != ".npz":
        raise unknown_name_error("out", str(path), [".npz"], "a file that ends in .npz")
