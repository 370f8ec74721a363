"""Atomic writing of files, JSON files, and figures as PNG files."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path` and with its suffix; renames it to `path` afterwards.

    >>> with atomic_write("notes.txt") as temporary:
    ...     _ = temporary.write_text("complete")
    >>> open("notes.txt").read()
    'complete'

    If the block raises, the temporary file is removed and `path` keeps its former content. Of a symbolic link, the
    target is replaced.

    Raises:
        OSError: if the folder of `path` does not exist or cannot be written to, or if `path` is itself a folder.
    """
    target = check_writable(path)
    temporary = target.with_name(f".{secrets.token_hex(4)}.{target.name}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, *patterns: str) -> None:
    """Removes temporary files of killed `atomic_write` calls for files in `folder` that match one of the patterns."""
    for pattern in patterns:
        for temporary in folder.glob(f".????????.{pattern}"):
            temporary.unlink()


def check_writable(path: str | os.PathLike) -> Path:
    """The resolved path that `atomic_write` would write; raises OSError as `atomic_write`."""
    target = Path(path).resolve()
    if target.is_dir():
        raise IsADirectoryError(f"`path` should be a file, not a folder. Received: path={str(path)!r}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"The folder of `path` should exist. Received: path={str(path)!r}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"The folder of `path` should be writable. Received: path={str(path)!r}")
    return target


def read_json(path: str | os.PathLike) -> Any:
    """The values in a JSON file; raises ValueError if it is not JSON."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
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
