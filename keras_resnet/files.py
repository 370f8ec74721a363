"""Files that are either whole or untouched."""

import json
import os
import secrets
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path):
    """Write beside, then rename: yields a temporary Path in the folder of `path`, named like it, suffix and all.

    The file written there takes the place of `path` when the block ends; if the block fails, it is removed and what
    was at `path` stays as it was. A link is followed: its target is replaced, not the link.

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


def remove_leftovers(folder, *patterns):
    """Removes the temporary files that killed `atomic_write` calls left in a folder, for files that match a pattern."""
    for pattern in patterns:
        for left in folder.glob(f".????????.{pattern}"):
            left.unlink()


def check_writable(path):
    """The Path at which `atomic_write` would put a file.

    Raises:
        OSError: as `atomic_write`.
    """
    target = Path(path).resolve()
    if target.is_dir():
        raise IsADirectoryError(f"`path` should be a file, not a folder. Received: path={str(path)!r}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"The folder of `path` should exist. Received: path={str(path)!r}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"The folder of `path` should be writable. Received: path={str(path)!r}")
    return target


def read_json(path):
    """The values in a JSON file.

    Raises:
        ValueError: if the file is not JSON. OSError: if it cannot be read.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected a JSON file ({error}). Received: {path}") from error


def write_json(values, path):
    """Writes values as a JSON file, atomically.

    Raises:
        OSError: as `atomic_write`.
    """
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def save_figure(figure, path):
    """Writes a matplotlib Figure as PNG, whole or not at all.

    Raises:
        OSError: as `atomic_write`.
    """
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=100, bbox_inches="tight")
