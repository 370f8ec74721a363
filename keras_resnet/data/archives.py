"""Splits of images inside larger files -> Dataset. Every image is checked before training begins."""

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.data.datasets import SPLITS, TEST_SPLITS, UNLABELLED, Dataset, Split, default_preprocessing
from keras_resnet.data.image_checks import CHECKS, ImageCheck, orientations_of, training_check
from keras_resnet.data.image_files import UnreadableImageError, raise_if_unreadable
from keras_resnet.data.image_folders import training_dataset
from keras_resnet.data.image_limits import MAX_FILE_BYTES
from keras_resnet.data.labels import MAX_CLASS_NUMBER
from keras_resnet.data.stored_files import StoredFiles
from keras_resnet.errors import check_known, value_error


@dataclass(frozen=True)
class ArchivedSplit:
    """The images of a split, with their classes and the results of their checks."""

    read: Callable[[int], bytes]
    """Index -> contents of the file."""
    labels: Sequence
    """Class of each image: an index or a name."""
    checks: Sequence
    """[EXIF orientation, None] or [None, why it cannot be read] of each image."""
    name: Callable[[int], str]
    """Index -> name of the image."""


@dataclass(frozen=True)
class Archive:
    """Images inside larger files."""

    name: str
    splits: Sequence[str]
    """Names of the splits."""
    class_names: tuple[str, ...] | None
    """None if only the labels define them."""
    open_split: Callable[[str, ImageCheck], ArchivedSplit]


def find_archives(folder: str, suffix: str) -> list[str]:
    """Sorted paths of the files with a suffix in a folder, and in its folders "data" or with the name of a split."""
    folders = [folder, *(os.path.join(folder, name) for name in ("data", *SPLITS))]
    return sorted(path for parent in folders for path in glob.glob(f"{glob.escape(parent)}/*{suffix}"))


def check_contents(contents: bytes | None, check: ImageCheck) -> list[Any]:
    """An item of `ArchivedSplit.checks`, for the contents of a file."""
    if contents is None or len(contents) > MAX_FILE_BYTES:
        return [None, f"more than {MAX_FILE_BYTES} bytes" if contents else "no contents, only a path"]
    try:
        return [check.function(contents), None]
    except UnreadableImageError as error:
        return [None, error.reason]


def load_archive(archive: Archive, held_out=None, skip_bad=False) -> Dataset:
    """Loads an Archive for training: its split "train", or the only one, and the first of TEST_SPLITS.

    Args:
        archive: Archive.
        held_out: as for `Split.stratified_split`; None: a fifth if there is no split for testing.
        skip_bad: whether to skip unreadable images.

    Raises:
        ValueError: for missing splits, unreadable images unless `skip_bad`, and classes without an image.
    """
    names = training_split_names(archive, held_out)
    opened, errors = _open_splits(archive, names, training_check(), skip_bad)
    class_names = archive.class_names or _class_names(label for split in opened for label in split.labels)
    splits = [_split(split, class_names) for split in opened]
    return training_dataset(Path(archive.name), splits, class_names, held_out, errors)


def training_split_names(source, held_out=None) -> list[str]:
    """Names of the splits to train and test on: of all `source.splits`, or the one of which a part is held out.

    Raises:
        ValueError: for several splits without "train".
    """
    train = source.splits[0] if len(source.splits) == 1 else "train"
    if train not in source.splits:
        raise value_error("dataset", source.name, f"a data set with the split train, not only {list(source.splits)}")
    tests = [name for name in TEST_SPLITS if name in source.splits and name != train]
    return [train, *(tests[:1] if held_out is None else [])]


def test_split_name(source, split=None) -> str:
    """Name of the split to test on: `split`, else the first of TEST_SPLITS in `source.splits`, else the first one."""
    if split is not None:
        check_known("split", split, source.splits)
        return split
    return next((name for name in TEST_SPLITS if name in source.splits), source.splits[0])


def load_test_archive(archive: Archive, split=None, skip_bad=False) -> Dataset:
    """Loads a split of an Archive for testing; None: the first of TEST_SPLITS, or "train". See `load_test`."""
    (opened,), errors = _open_splits(archive, [test_split_name(archive, split)], CHECKS["header"], skip_bad)
    has_names = archive.class_names or any(isinstance(label, str) for label in opened.labels)
    class_names = (archive.class_names or _class_names(opened.labels)) if has_names else None
    test = _split(opened, class_names)
    return Dataset(Path(archive.name).name, None, test, class_names, default_preprocessing((None, None, 3)), errors)


@dataclass(frozen=True)
class _ReadableImages:
    """The images of an ArchivedSplit that can be read."""

    files: StoredFiles
    labels: list
    orientations: np.ndarray | None


def _open_splits(archive, names, check, skip_bad):
    """(_ReadableImages of each split, messages about the unreadable images)."""
    opened = [archive.open_split(name, check) for name in names]
    errors = tuple(
        f"{split.name(index)} ({error})"
        for split in opened
        for index, (_, error) in enumerate(split.checks)
        if error is not None
    )
    raise_if_unreadable(errors, skip_bad, archive.name)
    readable = [_readable_images(split) for split in opened]
    if empty := [name for name, images in zip(names, readable, strict=True) if not images.labels]:
        raise value_error("dataset", archive.name, f"a data set with readable images; {empty} has none")
    return readable, errors


def _readable_images(split):
    indices = np.array([index for index, (_, error) in enumerate(split.checks) if error is None], int)
    orientations = orientations_of(split.checks[index][0] for index in indices)
    return _ReadableImages(
        StoredFiles(split.read, split.name, indices), [split.labels[index] for index in indices], orientations
    )


def _class_names(labels: Iterable) -> tuple[str, ...]:
    """Sorted names, or the numbers up to the largest one."""
    found = set(labels)
    numbers = [label for label in found if not isinstance(label, str)]
    if wrong := [number for number in numbers if not 0 <= number <= MAX_CLASS_NUMBER]:
        raise value_error("labels", wrong[0], f"class numbers from 0 to {MAX_CLASS_NUMBER:,}")
    if numbers:
        return tuple(str(number) for number in range(max(numbers) + 1))
    return tuple(sorted(found))


def _split(images, class_names):
    """The Split of _ReadableImages; -1 for a name that is not one of the class names."""
    index = {name: number for number, name in enumerate(class_names or ())}
    labels = [index.get(label, UNLABELLED) if isinstance(label, str) else label for label in images.labels]
    return Split(images.files, np.array(labels, "int32"), images.orientations)
