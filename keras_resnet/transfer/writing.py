"""`write_features`: a folder of images -> a feature file, one batch in memory at a time; a killed run can continue."""

import glob
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet.architecture.metadata import model_info, model_spec
from keras_resnet.data.prefetch import describe_errors
from keras_resnet.data.sources import image_source
from keras_resnet.errors import check_integers
from keras_resnet.files import atomic_write, check_writable, read_json, remove_leftovers, write_json
from keras_resnet.models.feature_extractor import PRE_LOGITS
from keras_resnet.models.preprocessing import preprocessing, weights_digest
from keras_resnet.precision import precision_of
from keras_resnet.training.checkpoints import OVERWRITE_HINT, check_settings
from keras_resnet.transfer.extraction import (
    Features,
    check_any_read,
    extract_batches,
    vector_extractor,
    vector_size,
)
from keras_resnet.transfer.feature_files import check_suffix, read_settings, save_features

SETTINGS, ROWS, JOURNAL, LOCK = "settings.json", "rows.float32", "journal.jsonl", "lock"
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
        folder: searched recursively for images; names in the file are relative to it. Classes as in `extract`.
        out: .npz file to write, with arrays "features" (N, D) float32, "names" (N,), "labels" (N,) int32 (-1: no
            class), "class_names" and "settings" (JSON). NumPy loads it without pickle.
        endpoint, pooling, batch_size: as for `extract`.
        overwrite: whether to replace an existing OUT or OUT.partial/ that has other settings.
        progress: called with (number of images done, total) at the start and after every batch.

    Returns:
        The settings as JSON values: how the vectors were computed, their `shape` [N, D], the `class_names`, and
        `skipped`, the images that could not be read with their errors.

    Raises:
        ValueError: as `extract`; for another suffix; if OUT or OUT.partial/ has other settings, weights or images;
            and if no image can be read.
        OSError: if the folder does not exist, OUT cannot be written, or another process is writing it.
        FloatingPointError: if the model returns NaN or Inf.
    """
    check_suffix(out)
    check_integers(batch_size=batch_size)
    if not Path(folder).is_dir():
        raise NotADirectoryError(f"`folder` should be a folder of images. Received: folder={str(folder)!r}")
    source, extractor = image_source(Path(folder)), vector_extractor(model, endpoint, pooling)
    settings = _extraction_settings(extractor, source, endpoint, pooling, batch_size)
    partial = PartialFeatures(Path(f"{out}.partial"), vector_size(extractor))
    if not overwrite and Path(out).exists():
        found = read_settings(out)
        check_settings({name: found.get(name) for name in settings}, settings, out, _REPLACE)
        if partial.folder.exists():
            with partial.locked():
                partial.remove()
        return found
    target = check_writable(out)  # fail now rather than after the extraction
    with partial.locked():
        remove_leftovers(target.parent, glob.escape(target.name))
        partial.begin_or_resume(settings, overwrite)
        total = len(source.split)
        if progress:
            progress(partial.done, total)
        for batch, vectors in extract_batches(extractor, source.split, endpoint, pooling, batch_size, partial.done):
            partial.append(batch.stop, vectors, batch.read_errors)
            if progress:
                progress(batch.stop, total)
        features = partial.features(source)
        lists = {"shape": features.vectors.shape, "class_names": features.class_names, "skipped": features.skipped}
        settings |= {name: list(values) for name, values in lists.items()}
        with atomic_write(target) as temporary:
            save_features(temporary, features, settings)
        partial.remove()
    return settings


def _extraction_settings(extractor, source, endpoint, pooling, batch_size):
    """Everything that determines the vectors, as JSON values."""
    sizes = (os.path.getsize(path) for path in source.split.images)
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
    """The folder of an unfinished extraction: vectors as rows of float32, and a journal with a line per batch.

    A batch is finished when its line is in the journal. Anything after the last complete line is truncated.
    """

    def __init__(self, folder, vector_size):
        self.folder, self.vector_size = folder, vector_size
        self.done, self.read_errors = 0, {}

    @property
    def num_rows(self):
        """Number of stored vectors: one for each image that could be read."""
        return self.done - len(self.read_errors)

    @contextmanager
    def locked(self):
        """Creates the folder and locks it for this process; the lock ends with the process.

        Raises:
            OSError: if another process has locked the folder, or it cannot be created.
        """
        self.folder.mkdir(exist_ok=True)
        with open(self.folder / LOCK, "wb") as file:
            if not _lock(file):
                out = str(self.folder.with_suffix(""))
                raise BlockingIOError(f"`out` should be a file that no other process writes. Received: out={out!r}")
            yield

    def begin_or_resume(self, settings, overwrite):
        """Starts in an empty folder, or continues with what the folder holds.

        Raises:
            ValueError: if the folder holds an extraction with other settings.
            OSError: if the folder cannot be written.
        """
        if overwrite:
            self._clear()
        path = self.folder / SETTINGS
        if path.exists():
            check_settings(read_json(path), settings, path, _REPLACE)
        else:
            write_json(settings, path)
        journal_bytes = self._read_journal(settings["batch_size"], settings["files"])
        for name, size in ((JOURNAL, journal_bytes), (ROWS, 4 * self.vector_size * self.num_rows)):
            with open(self.folder / name, "ab") as file:
                file.truncate(size)

    def _read_journal(self, batch_size, num_images):
        """Reads the finished batches; returns the size of their lines in bytes."""
        journal, rows = self.folder / JOURNAL, self.folder / ROWS
        stored, size = rows.stat().st_size if rows.exists() else 0, 0
        for line in journal.read_bytes().splitlines(keepends=True) if journal.exists() else ():
            stop = min(self.done + batch_size, num_images)
            read_errors = _parse_line(line, self.done, stop)
            if read_errors is None or 4 * self.vector_size * (stop - len(self.read_errors | read_errors)) > stored:
                break
            self._count(stop, read_errors)
            size += len(line)
        return size

    def append(self, stop, vectors, read_errors):
        """Stores the vectors and read errors of one batch, which ends before image `stop`."""
        with open(self.folder / ROWS, "ab") as file:
            file.write(vectors.tobytes())
        with open(self.folder / JOURNAL, "ab") as file:
            file.write(json.dumps([stop, read_errors]).encode() + b"\n")
        self._count(stop, read_errors)

    def _count(self, stop, read_errors):
        self.done, self.read_errors = stop, self.read_errors | read_errors

    def features(self, source):
        """Features of all images that could be read, their vectors memory-mapped.

        Raises:
            ValueError: if there are none.
        """
        check_any_read(self.num_rows, source)
        indices = [index for index in range(self.done) if index not in self.read_errors]
        vectors = np.memmap(self.folder / ROWS, "float32", "r", shape=(self.num_rows, self.vector_size))
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


def _lock(file):
    """Locks an open file for this process until it is closed; returns whether that succeeded.

    True without a lock where the platform or the file system has none.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Windows, or a file system without locks
        return True
    return os.fstat(file.fileno()).st_nlink > 0  # 0: the process that had it has just finished and removed it
