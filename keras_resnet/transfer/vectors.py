"""A folder of images -> a file of vectors: a batch in memory at a time, and a run that is killed goes on."""

import glob
import hashlib
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from keras_resnet.architecture.metadata import model_info, model_spec
from keras_resnet.errors import check_integers
from keras_resnet.files import atomic_write, check_writable, read_json, remove_leftovers, write_json
from keras_resnet.models.feature_extractor import PRE_LOGITS
from keras_resnet.models.preprocessing import preprocessing, weights_digest
from keras_resnet.training.checkpoints import OTHERWISE, check_settings
from keras_resnet.transfer.extraction import (
    Features,
    batches,
    check_any,
    find_source,
    named,
    to_vectors,
    width,
)
from keras_resnet.transfer.vector_files import check_format, read_settings, write_vectors

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SETTINGS, ROWS, JOURNAL, LOCK = "settings.json", "rows.float32", "journal.jsonl", "lock"


def write_features(
    model, folder, out, endpoint=PRE_LOGITS, pooling="avg", batch_size=100, overwrite=False, progress=None
):
    """Writes the features of every image in a folder; `read_features` reads them.

    What is done is kept in OUT.partial/ until all is: the same call goes on there after whatever ended an earlier one,
    SIGKILL included, and leaves the same file. Where OUT is complete already, nothing is done.

    Args:
        model: a network whose preprocessing is known, or a `feature_extractor`.
        folder: searched for images with all its folders; see `extract` for their classes. Names are relative to it.
        out: the file: .npz, with arrays "features" (N, D) float32, "names", "labels" (N,) int32, -1 without a class,
            "class_names" and "settings" (JSON), which NumPy loads without pickle; or .parquet, with the first three as
            columns and the JSON in its metadata.
        endpoint, pooling, batch_size: as for `extract`.
        overwrite: whether an earlier OUT, or OUT.partial/, with other settings is replaced.
        progress: called with the number of images that are done, and that of all, at the start and after every batch.

    Returns:
        The JSON values of `settings`: how the vectors were made, their `shape` [N, D], the `class_names`, and under
        `left_out` which images could not be read, and why.

    Raises:
        ValueError: as `extract`, for another suffix, if OUT or OUT.partial/ is of other settings, weights or files, and
            if no image can be read.
        OSError: for a folder that is not there, and an OUT that cannot be written, or that another process is writing.
        ImportError: for Parquet without pyarrow.
        FloatingPointError: if the network returns what is no number.
    """
    check_format(out)
    check_integers(batch_size=batch_size)
    if not Path(folder).is_dir():
        raise NotADirectoryError(f"Expected a folder of images. Received: folder={str(folder)!r}")
    source, extractor = find_source(Path(folder)), to_vectors(model, endpoint, pooling)
    settings = _settings(extractor, source, endpoint, pooling, batch_size)
    partial = Partial(Path(f"{out}.partial"), width(extractor))
    if not overwrite and Path(out).exists():
        found = read_settings(out)
        check_settings({name: found.get(name) for name in settings}, settings, out, OTHERWISE.format("file"))
        if partial.folder.exists():
            with partial.locked():
                partial.remove()
        return found
    target = check_writable(out)  # whatever would fail at the end fails now
    with partial.locked():
        remove_leftovers(target.parent, glob.escape(target.name))
        partial.open(settings, overwrite)
        _extract(extractor, source, endpoint, pooling, batch_size, partial, progress)
        features = partial.features(source)
        found = {"shape": features.vectors.shape, "class_names": features.class_names, "left_out": features.left_out}
        about = settings | {name: list(values) for name, values in found.items()}
        with atomic_write(target) as beside:
            write_vectors(beside, features, about)
        partial.remove()
    return about


def _extract(extractor, source, endpoint, pooling, batch_size, partial, progress):
    """Whatever is still to be done."""
    total = len(source.split)
    if progress:
        progress(partial.done, total)
    for batch in batches(extractor, source.split, endpoint, pooling, batch_size, partial.done):
        partial.append(batch)
        if progress:
            progress(batch.stop, total)


def _settings(extractor, source, endpoint, pooling, batch_size):
    """What decides on the vectors, as JSON values."""
    sizes = (os.path.getsize(path) for path in source.split.images)
    files = "\n".join(f"{name}\t{size}" for name, size in zip(source.names, sizes, strict=True))
    return {
        "model": extractor.name,
        "spec": (spec := model_spec(extractor)) and spec.to_config(),
        "weights": model_info(extractor).get("weights"),
        "preprocessing": preprocessing(extractor).to_config(),
        "precision": _precision(extractor),
        "endpoint": endpoint,
        "pooling": pooling,
        "batch_size": batch_size,
        "files": len(source.names),
        "files_sha256": hashlib.sha256(files.encode("utf-8", "surrogateescape")).hexdigest(),
        "weights_sha256": weights_digest(extractor),
    }


def _precision(extractor):
    """The dtype policies of its layers; its own says only where it was made."""
    return ", ".join(sorted({layer.dtype_policy.name for layer in extractor.layers}))


class Partial:
    """The folder of what is done: rows of numbers, one after another, and a journal of the batches they came in.

    A batch is done when its line is in the journal; what comes after the last whole line is cut off.
    """

    def __init__(self, folder, numbers):
        self.folder, self.numbers = folder, numbers
        self.done, self.faults = 0, {}

    @property
    def rows(self):
        """How many vectors there are."""
        return self.done - len(self.faults)

    @contextmanager
    def locked(self):
        """Makes the folder, for this process alone; one that is killed lets go of it.

        Raises:
            OSError: if another process has it, or it cannot be made.
        """
        self.folder.mkdir(exist_ok=True)
        with open(self.folder / LOCK, "wb") as file:
            if not _lock(file):
                out = str(self.folder.with_suffix(""))
                raise BlockingIOError(f"`out` should be a file that no other process writes. Received: out={out!r}")
            yield

    def open(self, settings, overwrite):
        """Begins in the folder, or takes up what is in it.

        Raises:
            ValueError: if that is of other settings.
            OSError: if it cannot be written.
        """
        if overwrite:
            self._clear()
        path = self.folder / SETTINGS
        if path.exists():
            check_settings(read_json(path), settings, path, OTHERWISE.format("file"))
        else:
            write_json(settings, path)
        whole = self._take_up(settings["batch_size"], settings["files"])
        for name, size in ((JOURNAL, whole), (ROWS, self._bytes())):
            with open(self.folder / name, "ab") as file:
                file.truncate(size)

    def _take_up(self, batch_size, files):
        """Reads the journal; returns how many bytes of it count."""
        journal, rows = self.folder / JOURNAL, self.folder / ROWS
        stored, whole = rows.stat().st_size if rows.exists() else 0, 0
        for line in journal.read_bytes().splitlines(keepends=True) if journal.exists() else ():
            before = self.done, self.faults
            try:
                self._count(*_entry(line, self.done, min(self.done + batch_size, files)))
            except (ValueError, TypeError, AttributeError, RecursionError):  # it is none, or one of something else
                break
            if not line.endswith(b"\n") or self._bytes() > stored:
                self.done, self.faults = before
                break
            whole += len(line)
        return whole

    def append(self, batch):
        """Keeps a Batch."""
        with open(self.folder / ROWS, "ab") as file:
            file.write(batch.vectors.tobytes())
        with open(self.folder / JOURNAL, "ab") as file:
            file.write(json.dumps([batch.stop, batch.faults]).encode() + b"\n")
        self._count(batch.stop, batch.faults)

    def _count(self, stop, faults):
        self.done, self.faults = stop, self.faults | faults

    def _bytes(self):
        return 4 * self.numbers * self.rows

    def features(self, source):
        """Features of all that is done; their vectors lie in the file.

        Raises:
            ValueError: if there are none.
        """
        check_any(self.rows, source)
        kept = [number for number in range(self.done) if number not in self.faults]
        vectors = np.memmap(self.folder / ROWS, "float32", "r", shape=(self.rows, self.numbers))
        names = tuple(source.names[number] for number in kept)
        left_out = tuple(named(self.faults, source.names))
        return Features(vectors, source.split.labels[kept], names, source.class_names, left_out)

    def remove(self):
        """Removes the folder; files that are not ours keep it."""
        self._clear()
        (self.folder / LOCK).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _clear(self):
        """The journal goes first: without it nothing is done."""
        for name in (JOURNAL, ROWS, SETTINGS):
            (self.folder / name).unlink(missing_ok=True)
        remove_leftovers(self.folder, SETTINGS)


def _entry(line, start, stop):
    """A line of the journal, of the batch of images [start, stop) -> (stop, {number: fault})."""
    found, faults = json.loads(line)
    faults = {int(number): fault for number, fault in faults.items()}
    if found != stop or not faults.keys() <= set(range(start, stop)):
        raise ValueError(f"a batch of other images than {start} to {stop}")
    return stop, faults


def _lock(file):
    """Whether an open file is this process's alone, until it is closed; where there are no locks, it is."""
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
    return os.fstat(file.fileno()).st_nlink > 0  # else its process has just ended, and removed it
