"""A folder of pictures -> a file of vectors: a batch in memory at a time, and a run that is killed goes on."""

import glob
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from keras_resnet.files import replacing
from keras_resnet.models import preprocessing
from keras_resnet.training.checkpoints import check_settings
from keras_resnet.training.workdir import read_json, write_json
from keras_resnet.transfer.extraction import Features, batches, check_any, find_source, named, to_vectors, width
from keras_resnet.transfer.features import PRE_LOGITS
from keras_resnet.transfer.vector_files import check_format, read_settings, write_vectors

SETTINGS, ROWS, JOURNAL = "settings.json", "rows.float32", "journal.jsonl"


def write_features(
    model, folder, out, endpoint=PRE_LOGITS, pooling="avg", batch_size=100, overwrite=False, progress=None
):
    """Writes the features of every picture in a folder; `read_features` reads them.

    What is done is kept in OUT.partial/ until all is: the same call goes on there after whatever ended an earlier one,
    SIGKILL included, and leaves the same file. Where OUT is complete already, nothing is done.

    Args:
        model: a network whose preprocessing is known, or a `feature_extractor`.
        folder: searched for pictures with all its folders; see `extract` for their classes. Names are relative to it.
        out: the file: .npz, with arrays "features" (N, D) float32, "names", "labels" (N,) int32, -1 without a class,
            "class_names" and "settings" (JSON), which NumPy loads without pickle; or .parquet, with the first three as
            columns and the JSON in its metadata.
        endpoint, pooling, batch_size: as for `extract`.
        overwrite: whether an earlier OUT, or OUT.partial/, with other settings is replaced.
        progress: called with the number of pictures that are done, and that of all, at the start and after every batch.

    Returns:
        The JSON values of `settings`: how the vectors were made, their `shape` [N, D], the `class_names`, and under
        `left_out` which pictures could not be read, and why.

    Raises:
        ValueError: as `extract`, for another suffix, if OUT or OUT.partial/ is of other settings, weights or files, and
            if no picture can be read.
        OSError: for a folder that is not there, and an OUT that cannot be written.
        ImportError: for Parquet without pyarrow.
        FloatingPointError: if the network returns what is no number.
    """
    check_format(out)
    if not Path(folder).is_dir():
        raise NotADirectoryError(f"Expected a folder of pictures. Received: folder={str(folder)!r}")
    source, extractor = find_source(Path(folder)), to_vectors(model, endpoint, pooling)
    settings = _settings(extractor, source, endpoint, pooling, batch_size)
    partial = Partial(Path(f"{out}.partial"), width(extractor))
    if not overwrite and Path(out).exists():
        found = read_settings(out)
        _check_same({name: found.get(name) for name in settings}, settings, out)
        partial.remove()
        return found
    _sweep(Path(out).resolve())
    with replacing(out) as beside:  # whatever would fail at the end fails now
        partial.open(settings, overwrite)
        _extract(extractor, source, endpoint, pooling, batch_size, partial, progress)
        features = partial.features(source)
        found = {"shape": features.vectors.shape, "class_names": features.class_names, "left_out": features.left_out}
        about = settings | {name: list(values) for name, values in found.items()}
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
    sizes = (os.path.getsize(path) for path in source.split.pictures)
    files = "\n".join(f"{name}\t{size}" for name, size in zip(source.names, sizes, strict=True))
    weights = hashlib.sha256()
    for array in extractor.get_weights():
        weights.update(array.tobytes())
    return {
        "model": extractor.name,
        "spec": extractor.spec and extractor.spec.to_config(),
        "weights": extractor.info.get("weights"),
        "preprocessing": preprocessing(extractor).to_config(),
        "endpoint": endpoint,
        "pooling": pooling,
        "batch_size": batch_size,
        "files": len(source.names),
        "files_sha256": hashlib.sha256(files.encode("utf-8", "surrogateescape")).hexdigest(),
        "weights_sha256": weights.hexdigest(),
    }


def _check_same(found, settings, path):
    try:
        check_settings(found, settings, path)
    except ValueError as error:
        raise ValueError(f"{error}. Take another file, or replace it by --overwrite (overwrite=True).") from None


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

    def open(self, settings, overwrite):
        """Makes the folder, or takes up what is in it.

        Raises:
            ValueError: if that is of other settings.
            OSError: if it cannot be written.
        """
        if overwrite:
            self.remove()
        self.folder.mkdir(exist_ok=True)
        path = self.folder / SETTINGS
        if path.exists():
            _check_same(read_json(path), settings, path)
        else:
            write_json(settings, path)
        whole = self._take_up()
        for name, size in ((JOURNAL, whole), (ROWS, self._bytes())):
            with open(self.folder / name, "ab") as file:
                file.truncate(size)

    def _take_up(self):
        """Reads the journal; returns how many bytes of it count."""
        journal, rows = self.folder / JOURNAL, self.folder / ROWS
        stored, whole = rows.stat().st_size if rows.exists() else 0, 0
        for line in journal.read_bytes().splitlines(keepends=True) if journal.exists() else ():
            before = self.done, self.faults
            try:
                stop, faults = json.loads(line)
            except ValueError:
                break
            self._count(stop, {int(number): fault for number, fault in faults.items()})
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
        """Removes the folder; files that are not ours keep it. The journal goes first: without it nothing is done."""
        for name in (JOURNAL, ROWS, SETTINGS):
            (self.folder / name).unlink(missing_ok=True)
        _sweep(self.folder / SETTINGS)
        with suppress(OSError):
            self.folder.rmdir()


def _sweep(path):
    """Removes what `replacing` left in a process that was killed."""
    for left in path.parent.glob(f".????????.{glob.escape(path.name)}"):
        left.unlink()
