"""Results of reading each file of a folder, kept in a cache: only new and changed files are read again.

The cache has a manifest for each folder: path, size, modification time and result of every file. `KERAS_RESNET_CACHE`
names another folder than `~/.keras/keras_resnet`; it may be deleted at any time.
"""

import gzip
import hashlib
import json
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from keras_resnet.files import atomic_write

FORMAT = 1
"""Version of the form of manifests."""
PROGRESS_SECONDS = 10
"""Interval between two lines about the progress."""


class FileRecord(NamedTuple):
    """The state of a file, and the result of reading it."""

    size: int | None
    """In bytes; None if the system could not read the file, so that the next start tries again."""
    time: int | None
    """Of the last modification, in nanoseconds."""
    result: Any = None
    """What the function of `read_files` returned: any value that JSON has."""
    error: str | None = None
    """Why the file cannot be read."""


def cache_folder() -> Path:
    """The folder of manifests: KERAS_RESNET_CACHE, or `keras_resnet` in Keras's own folder."""
    keras_folder = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    return Path(os.environ.get("KERAS_RESNET_CACHE") or Path(keras_folder) / "keras_resnet")


def read_files(read: Callable, paths: Iterable[str], folder: str | os.PathLike, kind: str) -> dict[str, FileRecord]:
    """Applies a function to files in threads, except to those that are as they were the last time.

    Args:
        read: path -> a value that JSON has. A ValueError that it raises is kept, by its `reason`.
        paths: of regular files in the folder; of other files, `read` is not called.
        folder: of the manifest.
        kind: name and version of the function; another one reads all files again.

    Returns:
        {path: FileRecord}, in the order of `paths`.
    """
    paths = list(paths)
    header = {"format": FORMAT, "folder": os.path.realpath(folder), "kind": kind}
    manifest = cache_folder() / f"{hashlib.sha256(json.dumps(header).encode()).hexdigest()[:32]}.json.gz"
    prefix = os.path.join(folder, "")
    known = _read_manifest(manifest, header)
    with ThreadPool() as threads:
        records = dict(zip(paths, threads.imap(_stat, paths, chunksize=1024), strict=True))
        for path, record in records.items():
            earlier = known.get(path.removeprefix(prefix))
            if earlier and earlier[:2] == record[:2]:
                records[path] = earlier
        unknown = [path for path, (_, _, result, error) in records.items() if result is error is None]
        try:
            # Shards and tables are few and large
            results = threads.imap(lambda path: _read(path, read), unknown, chunksize=min(16, 1 + len(unknown) // 256))
            for path, result in zip(unknown, _with_progress(results, len(unknown)), strict=True):
                records[path] = records[path]._replace(**result)
        finally:  # also after Ctrl-C
            if unknown:
                found = {path.removeprefix(prefix): record for path, record in records.items()}
                others = {name: record for name, record in known.items() if os.path.exists(prefix + name)}
                _write_manifest(others | found, manifest, header)
    return records


def _with_progress(results, total):
    """Yields results, and prints a line about their number on standard error every PROGRESS_SECONDS."""
    console, printed = Console(stderr=True), time.monotonic()
    for count, result in enumerate(results, 1):
        if time.monotonic() - printed >= PROGRESS_SECONDS:
            console.print(f"{count:,} of {total:,} files checked", highlight=False)
            printed = time.monotonic()
        yield result


def _stat(path):
    """FileRecord without a result."""
    try:
        status = os.stat(path)
    except OSError as error:
        return FileRecord(None, None, error=error.strerror)
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
        return FileRecord(None, None, error="not a file")
    return FileRecord(status.st_size, status.st_mtime_ns)


def _read(path, read):
    """Fields of the FileRecord of a file."""
    try:
        return {"result": read(path)}
    except OSError as error:
        return {"size": None, "error": error.strerror or str(error)}
    except ValueError as error:
        return {"error": getattr(error, "reason", str(error))}


def _read_manifest(path, header):
    """{name: FileRecord} of the files in a manifest; empty if it is missing, damaged, or that of something else."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            content = json.load(file)
        if content["header"] != header:
            return {}
        return {name: FileRecord(*record) for name, *record in content["files"]}
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError):
        return {}


def _write_manifest(records, path, header):
    """Writes a manifest; where the cache cannot be written, there is none."""
    rows = [
        (name, *record) for name, record in records.items() if record.size is not None and record[2:] != (None,) * 2
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, gzip.open(temporary, "wt", compresslevel=1, encoding="utf-8") as file:
            json.dump({"header": header, "files": rows}, file)
    except OSError:
        pass
