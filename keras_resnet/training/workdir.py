"""The folder of a run, on disk or in object storage: its files, its lock, and checks that it can be written."""

import csv
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypedDict

from keras_resnet.errors import error_summary
from keras_resnet.files import atomic_write, local_copy, make_folder, read_json, remove, remove_leftovers, write_json
from keras_resnet.locks import folder_lock
from keras_resnet.training.checkpoints import check_settings
from keras_resnet.weights.keras_archives import save_keras

MODEL, CHECKPOINT, HISTORY, CURVES = "model.keras", "checkpoint.safetensors", "history.csv", "curves.png"
SETTINGS, REPORT, TENSORBOARD = "settings.json", "report.json", "tensorboard"
DETECTIONS = "detections.jpg"
"""Test images of a detector with true and found objects."""
SEGMENTATIONS = "segmentations.jpg"
"""Test images of a segmenter with true and predicted masks."""
BEST = "best_{}.safetensors"
"""Weights of the best epoch so far, with its number."""
FILES = (SETTINGS, CHECKPOINT, MODEL, HISTORY, CURVES, REPORT, DETECTIONS, SEGMENTATIONS, TENSORBOARD)


def check_workdir(folder, settings, size, options):
    """Checks that a run can be written to a folder, or continue there; writes nothing.

    Args:
        folder: Path or UPath, an existing folder.
        settings: JSON values that identify the run.
        size: bytes of one checkpoint.
        options: RunOptions. To resume in a folder without a run is to start there.

    Raises:
        FileExistsError: if the folder holds another run, with neither `overwrite` nor `resume`.
        ValueError: if the run to resume has other settings.
        OSError: if the disk has no room.
    """
    earlier = [name for name in FILES if (folder / name).exists()]
    if earlier and not (options.overwrite or options.resume):
        raise FileExistsError(
            f"`workdir` should be a new or empty folder: it holds another run ({earlier[0]}). Continue it by --resume "
            f"(resume=True), or replace it by --overwrite (overwrite=True). Received: workdir={str(folder)!r}"
        )
    if options.resume and SETTINGS in earlier:
        check_settings(read_json(folder / SETTINGS, dict[str, Any]), settings, folder / SETTINGS)
    with workdir_errors(folder):
        if isinstance(folder, Path):
            _check_free_space(folder, size)


def begin_run(folder, settings, resume=False):
    """Writes the settings of a run that starts in a folder or continues there; removes what other runs have left."""
    with workdir_errors(folder):
        if not resume:
            clear_run(folder)
        remove_leftovers(folder, *FILES, BEST.format("*"))
        write_json(settings, folder / SETTINGS)


def clear_run(folder):
    """Removes the files of a run from a folder; others stay."""
    for path in (*(folder / name for name in FILES), *folder.glob(BEST.format("*"))):
        if path.exists():
            remove(path)


@contextmanager
def locked_workdir(folder):
    """Makes the folder, and holds its lock within the block; None is no folder. Raises as `folder_lock`."""
    with ExitStack() as stack:
        if folder:
            with workdir_errors(folder):
                make_folder(folder)
                stack.enter_context(folder_lock(folder))
        yield


def clear_runs(folders, remove_run=clear_run):
    """Removes the runs in some folders; none of them if another process has the lock of one."""
    with ExitStack() as stack:
        existing = [folder for folder in folders if folder.exists()]
        for folder in existing:
            stack.enter_context(folder_lock(folder))
        for folder in existing:
            remove_run(folder)


def make_workdir(folder):
    """Makes the folder unless it exists, and checks that object storage can be used, see `make_folder`."""
    with workdir_errors(folder):
        make_folder(folder)


@contextmanager
def workdir_errors(workdir):
    """Within the block, an OSError becomes one that names the workdir, as that of `folder_lock` does already."""
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        summary = error.strerror or error
        raise OSError(f"`workdir` should be a folder that can be written ({summary}). Received: {workdir}") from error


def _check_free_space(folder, size):
    # room for the last checkpoint, the next one beside it, the best weights, and the model at the end
    needed, free = 4 * size + 2**20, shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"its disk has {free / 2**20:,.0f} MiB free, the run needs {needed / 2**20:,.0f} MiB")


def write_run(model, report, folder):
    """Writes the trained model and its report."""
    save_keras(model, folder / MODEL)
    write_json(report, folder / REPORT)


def columns(rows):
    """[{name: value}] -> {name: [its value, or None, in each row]}."""
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def write_history(rows, path):
    """Writes the rows of a history as a CSV file, atomically."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(rows))
        writer.writeheader()
        writer.writerows(rows)


def read_history(path):
    """The rows that `write_history` wrote, without empty values.

    Raises:
        ValueError: for other values than numbers, and for rows without a step or an accuracy.
    """
    try:
        with local_copy(path) as local, open(local, newline="", encoding="utf-8") as file:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        if not rows or not all({"step", "accuracy"} <= row.keys() for row in rows):
            raise ValueError("it should have rows with a step and an accuracy")
    except (ValueError, TypeError, csv.Error) as error:  # TypeError: a row that is longer than the header
        raise ValueError(f"Expected the history of a run ({error_summary(error)}). Received: {path}") from error
    return rows


class Report(TypedDict):
    """Values of a run's report that others read: those of a run with one class for each image."""

    parameters: int
    training_images: int
    test_images: int
    top1_accuracy: float
    wall_time_s: float


def read_report(folder):
    """The Report of a finished run, with all its other values; raises ValueError for a damaged file."""
    return read_json(folder / REPORT, Report)
