"""Where an export goes: looked at first, written in a folder beside it, and renamed when all is there."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from keras_resnet.files import check_writable

REPORTS = (".report.md", ".report.json")
"""What follows the name of an exported network in those of its reports."""
DISAGREES = ".disagrees"
"""Stands in the name of a network that does not say what its Keras network says."""
WORKING = ".exporting."
"""Begins the name of a folder in which a process writes; its number follows."""


def check_place(target, row, overwrite):
    """Raises OSError if an export of a Format cannot go to a Path, or would replace what nobody said it may."""
    if row.suffix or not target.is_dir():
        check_writable(target)
    there = [path for path in (target, *_others(target, row)) if path.exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"Something is there already; `overwrite` (--overwrite) replaces it. Received: path={str(there[0])!r}"
        )
    if not row.suffix and target.exists() and not (target / "saved_model.pb").exists():
        raise FileExistsError(
            f"Of what exists, only a {row.title} is replaced by another. Received: path={str(target)!r}"
        )


def _others(target, row):
    """What is written beside a network."""
    return [target.with_suffix(suffix) for suffix in row.companions] + [
        target.with_name(target.name + suffix) for suffix in REPORTS
    ]


@contextmanager
def beside(target):
    """A folder in that of `target`, in which files become whole; what killed processes left there goes first."""
    for left in target.parent.glob(f"{WORKING}*"):
        if not _is_alive(left.name.split(".")[2]):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{WORKING}{os.getpid()}.", dir=target.parent) as folder:
        yield Path(folder)


def _is_alive(number):
    """Whether a process of that number runs; what is no number belongs to somebody else."""
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        return True
    return True


def place(folder, target, row, agrees):
    """Gives what is in a folder its place beside `target`, under other names if it does not agree with Keras.

    Returns:
        The Path of the network.
    """
    stem = target.name.removesuffix(row.suffix)
    final = stem if agrees else stem + DISAGREES
    names = {path.name: final + path.name.removeprefix(stem) for path in folder.iterdir()}
    for name in sorted(names, key=lambda name: name == target.name):  # what says that all is there comes last
        there = target.with_name(names[name])
        if there.is_dir():
            os.replace(there, folder / "replaced")
        os.replace(folder / name, there)
    return target.with_name(names[target.name])
