"""Files on local disks and in object storage: atomic writing, JSON files, and figures as PNG files."""

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import url2pathname

from keras_resnet.errors import check_path, error_summary, value_error
from keras_resnet.schema import MAX_JSON_BYTES, parse_json

STORAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "memory": "fsspec",  # within this process
}
"""Object storages, which replace a file as a whole: scheme of the URL -> library through which fsspec uses it."""


def as_path(path: str | os.PathLike, argument: str = "path") -> Path:
    """A local path as pathlib.Path, a URL in object storage as a UPath, which has the same methods.

    >>> from keras_resnet.files import as_path
    >>> as_path("runs/paper").name, str(as_path("file:///data/runs")), str(as_path("memory://bucket/run") / "a.json")
    ('paper', '/data/runs', 'memory://bucket/run/a.json')

    Args:
        path: local path, file:// URL, URL with a scheme of STORAGES, or a UPath, such as one with options.
        argument: name of the argument in errors.

    Raises:
        ValueError: for a URL with another scheme. ImportError: if its library is not installed.
    """
    check_path(argument, path)
    url = re.fullmatch(r"([A-Za-z][\w+.-]+):/+(.*)", str(path))  # Path("s3://bucket") has lost a slash
    if not url:
        return Path(path)
    scheme, rest = url[1].lower(), url[2]
    if scheme == "file":
        return Path(url2pathname(f"/{rest}"))
    if scheme not in STORAGES:
        known = ", ".join(f"{name}://" for name in ("file", *STORAGES))
        raise value_error(argument, str(path), f"a local path, or a URL that starts with one of {known}")
    try:
        from fsspec import get_filesystem_class
        from upath import UPath

        get_filesystem_class(scheme)
    except ImportError as error:
        raise ImportError(
            f"`{argument}` needs {STORAGES[scheme]}: pip install universal_pathlib {STORAGES[scheme]}. "
            f"Received: {argument}={str(path)!r}"
        ) from error
    location = path if isinstance(path, UPath) else f"{scheme}://{rest}"
    return UPath(location, use_listings_cache=False)  # type: ignore  # other processes may write there


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary local path with the suffix of `path`; renames the file to `path`, or uploads it, afterwards.

    >>> with atomic_write("notes.txt") as temporary:
    ...     _ = temporary.write_text("complete")
    >>> open("notes.txt").read()
    'complete'

    If the block raises, the temporary file is removed and `path` keeps its former content. Of a symbolic link, the
    target is replaced.

    Raises:
        OSError: if the folder of `path` does not exist or cannot be written to, if `path` is itself a folder, or if
            object storage does not accept the file.
    """
    target = as_path(path)
    if not isinstance(target, Path):
        with TemporaryDirectory() as folder:
            temporary = Path(folder, target.name)
            yield temporary
            with _os_errors(target):
                target.fs.put_file(str(temporary), target.path)
        return
    local = check_writable(target)
    temporary = local.with_name(f".{secrets.token_hex(4)}.{local.name}")
    try:
        yield temporary
        os.replace(temporary, local)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a full disk has none, others have the temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_regular_file(path: str | os.PathLike) -> None:
    """Raises OSError for a pipe, a socket or a device, whose reading might not end; other errors are left to `open`.

    >>> from keras_resnet.files import check_regular_file
    >>> check_regular_file("/dev/zero")
    Traceback (most recent call last):
    OSError: Expected a regular file, not a pipe, a socket or a device. Received: path='/dev/zero'
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise OSError(f"Expected a regular file, not a pipe, a socket or a device. Received: path={str(path)!r}")


@contextmanager
def local_copy(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a local path to read: `path` itself, or a temporary copy of a file in object storage.

    Raises:
        OSError: if a file in object storage cannot be read; for a pipe, a socket or a device.
    """
    source = as_path(path)
    if isinstance(source, Path):
        check_regular_file(source)
        yield source
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder, source.name)
        with _os_errors(source):
            source.fs.get_file(source.path, str(copy))
        yield copy


@contextmanager
def local_folder(path: str | os.PathLike) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Yields a local folder for a library that writes files itself, and a function that uploads them to `path`.

    A local `path` is that folder, and the function does nothing. Files that are uploaded again replace the earlier
    ones; the end of the block uploads as well.
    """
    target = as_path(path)
    if isinstance(target, Path):
        yield target, lambda: None
        return
    with TemporaryDirectory() as folder:

        def upload() -> None:
            for file in filter(Path.is_file, Path(folder).rglob("*")):
                with _os_errors(target):
                    target.fs.put_file(str(file), target.joinpath(*file.relative_to(folder).parts).path)

        try:
            yield Path(folder), upload
        finally:
            upload()


def make_folder(path: Path) -> None:
    """Makes a local folder unless it exists; in object storage, checks that files can be written, read and deleted.

    Args:
        path: as returned by `as_path`.

    Raises:
        OSError: if the folder cannot be made, or if the storage lacks credentials, a bucket or a permission.
    """
    if isinstance(path, Path):
        path.mkdir(parents=True, exist_ok=True)
        return
    probe = path / f".{secrets.token_hex(4)}.probe"
    with _os_errors(path):
        probe.fs.pipe_file(probe.path, b"probe")
        probe.fs.cat_file(probe.path)
        probe.fs.rm_file(probe.path)


def remove(path: Path) -> None:
    """Removes a file, or a folder with everything in it."""
    if not isinstance(path, Path):
        with _os_errors(path):
            path.fs.rm(path.path, recursive=True)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Within the block, errors of a storage's libraries, which share no class, become an OSError with the path."""
    try:
        yield
    except Exception as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        raise kind(f"{path}: {getattr(error, 'strerror', None) or error_summary(error)}") from error


def remove_leftovers(folder: Path, *patterns: str) -> None:
    """Removes temporary files of killed `atomic_write` calls for files in `folder` that match one of the patterns."""
    for pattern in patterns if isinstance(folder, Path) else ():
        for temporary in folder.glob(f".????????.{pattern}"):
            temporary.unlink()


def local_path(path: str | os.PathLike, argument: str = "path") -> Path:
    """A path as pathlib.Path; raises ValueError for one in object storage."""
    local = as_path(path, argument)
    if not isinstance(local, Path):
        raise value_error(argument, str(path), "a path on a local or mounted disk")
    return local


def check_writable(path: str | os.PathLike) -> Path:
    """The resolved local path that `atomic_write` would write.

    Raises:
        OSError: as `atomic_write`. ValueError: for a path in object storage.
    """
    target = local_path(path).resolve()
    if target.is_dir():
        raise IsADirectoryError(f"`path` should be a file, not a folder. Received: path={str(path)!r}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"The folder of `path` should exist. Received: path={str(path)!r}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"The folder of `path` should be writable. Received: path={str(path)!r}")
    return target


def read_json(path: str | os.PathLike, annotation: Any = Any) -> Any:
    """The value in a JSON file, as `parse_json` returns it.

    Args:
        path: a file of at most MAX_JSON_BYTES.
        annotation: the type that the value should have; see `checked`.

    Raises:
        ValueError: if the file is not JSON, too long or nested too deeply, or has other values; with its path.
        OSError: if it cannot be read.
    """
    try:
        with local_copy(path) as local, open(local, "rb") as file:
            return parse_json(file.read(MAX_JSON_BYTES + 1), annotation, local.stem)
    except ValueError as error:
        raise ValueError(f"Expected a JSON file ({error}). Received: {path}") from error


def write_json(values: Any, path: str | os.PathLike) -> None:
    """Writes values as a JSON file, by `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


@contextmanager
def figure_file(path: str | os.PathLike, **arguments: Any) -> Iterator[Any]:
    """Yields a matplotlib Figure with these arguments; writes it as a PNG file afterwards, by `atomic_write`."""
    from matplotlib.figure import Figure

    figure = Figure(**arguments)
    yield figure
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, bbox_inches="tight")


STAGING_PREFIX = ".staging."
"""Beginning of the names of temporary folders; the number of the process that writes into it follows."""


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`; such folders of processes that no longer run are deleted first."""
    for folder in target.parent.glob(f"{STAGING_PREFIX}*"):
        try:
            os.kill(int(folder.name.split(".")[2]), 0)  # signal 0 only asks whether the process runs
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, OSError):
            pass  # no process number: not a staging folder; or another user's process
    with TemporaryDirectory(prefix=f"{STAGING_PREFIX}{os.getpid()}.", dir=target.parent) as folder:
        yield Path(folder)
