"""The folder of a run: what is in it, and that it can hold what will come."""

import csv
import shutil
from contextlib import contextmanager
from pathlib import Path

from keras_resnet.files import atomic_write, read_json, remove_leftovers, write_json
from keras_resnet.training.checkpoints import check_settings

MODEL, CHECKPOINT, HISTORY, CURVES = "model.keras", "checkpoint.safetensors", "history.csv", "curves.png"
SETTINGS, REPORT, TENSORBOARD = "settings.json", "report.json", "tensorboard"
BEST = "best_{}.safetensors"
"""Of the best epoch so far, which is in its name."""
FILES = (SETTINGS, CHECKPOINT, MODEL, HISTORY, CURVES, REPORT, TENSORBOARD)


def prepare(workdir, settings, size, overwrite=False, resume=False, write=True):
    """Makes the folder and writes the settings into it; whatever would fail at the end fails now.

    Args:
        workdir: path.
        settings: JSON values that say what run this is.
        size: bytes of one checkpoint.
        overwrite: whether an earlier run is removed.
        resume: whether it is gone on with; a folder without one is as good as a new one.
        write: whether this machine is the one that writes.

    Returns:
        Path.

    Raises:
        FileExistsError: if the folder holds another run, and neither is wanted.
        ValueError: if the run there has other settings than the one to resume.
        OSError: if the folder cannot be written, or its disk has no room.
    """
    folder = Path(workdir)
    if not write:
        return folder
    earlier = [name for name in FILES if (folder / name).exists()]
    if earlier and not (overwrite or resume):
        raise FileExistsError(
            f"`workdir` should be a new or empty folder: it holds another run ({earlier[0]}). Go on by --resume "
            f"(resume=True), or replace it by --overwrite (overwrite=True). Received: workdir={str(workdir)!r}"
        )
    if resume and SETTINGS in earlier:
        check_settings(read_json(folder / SETTINGS), settings, folder / SETTINGS)
    with writable(workdir):
        _check_room(folder, size)
        if not resume:
            _remove([*(folder / name for name in earlier), *folder.glob(BEST.format("*"))])
        remove_leftovers(folder, *FILES, BEST.format("*"))
        write_json(settings, folder / SETTINGS)
    return folder


@contextmanager
def writable(workdir):
    """Makes the folder, unless it exists; an OSError, here or within the block, says that it cannot be written."""
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"`workdir` should be a folder that can be written ({reason}). Received: {workdir}") from error


def _remove(paths):
    for path in paths:
        remove = shutil.rmtree if path.is_dir() else Path.unlink
        remove(path)


def _check_room(folder, size):
    """The last checkpoint, the next one beside it, the best weights, and the model at the end."""
    needed, free = 4 * size + 2**20, shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"its disk has {free / 2**20:,.0f} MiB free, the run needs {needed / 2**20:,.0f} MiB")


def write_run(model, report, folder):
    """The trained network and what is to be said of it -> the folder."""
    with atomic_write(folder / MODEL) as partial:
        model.save(partial)
    write_json(report, folder / REPORT)


def columns(rows):
    """{name: [its value in each row, or None]}."""
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def write_history(rows, path):
    """Rows of one run -> CSV file, whole or not at all."""
    with atomic_write(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(rows))
        writer.writeheader()
        writer.writerows(rows)
