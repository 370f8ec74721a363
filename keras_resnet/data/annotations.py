"""`Annotations`: folders of images with boxes and masks of objects -> Dataset. Everything is checked first."""

import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from keras_resnet.data.annotation_checks import AnnotatedImage, StoredSize, check_image, to_objects, with_size
from keras_resnet.data.archives import test_split_name, training_split_names
from keras_resnet.data.datasets import Dataset, default_preprocessing, fits_in_memory
from keras_resnet.data.image_checks import CHECKS, ImageCheck, training_check
from keras_resnet.data.image_files import format_errors
from keras_resnet.data.image_folders import path_split, training_split
from keras_resnet.data.manifests import FileRecord, read_files
from keras_resnet.errors import value_error

MAX_LIST_BYTES = 2**26
"""Largest size of a list of images; COCO's has 4 MB in YOLO's form."""


@dataclass(frozen=True)
class AnnotatedSplit:
    """The images of a split as the annotation files state them."""

    images: Sequence[AnnotatedImage]
    class_names: tuple[str, ...]
    errors: Sequence[str] = ()
    """A message for each image or object that is invalid in the annotation files."""


@dataclass(frozen=True)
class Annotations:
    """Images with annotated objects, in any format."""

    folder: Path
    splits: Sequence[str]
    """Names of the splits."""
    read: Callable[[str], AnnotatedSplit]
    """Name of a split -> AnnotatedSplit; raises ValueError for a file that cannot be read."""

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.folder.resolve().name


def load_annotations(annotations: Annotations, held_out=None, skip_bad=False) -> Dataset:
    """Loads Annotations for training: the split "train", or the only one, and the first of TEST_SPLITS.

    The Dataset has `Split.objects`, and is multi-label unless each image has one class. Files that fit in memory are
    kept there.

    Args:
        annotations: Annotations.
        held_out: as for `Split.stratified_split`; None: a fifth if there is no split for testing.
        skip_bad: whether to leave out invalid images and objects, with a warning.

    Raises:
        ValueError: for annotation files that cannot be read, splits with different classes, and unless `skip_bad` for
            missing and unreadable images, images of another size than annotated, boxes and masks that are empty or
            outside of their images, and objects of unknown images and classes: all are listed.
    """
    opened = _open_splits(annotations, training_split_names(annotations, held_out), training_check(), skip_bad)
    keep = fits_in_memory(sum(record.size for split in opened.splits for _, record in split))
    splits = [
        opened.to_split(index, lambda group: training_split(group, keep)) for index, _ in enumerate(opened.splits)
    ]
    train, test = splits if len(splits) == 2 else splits[0].stratified_split(held_out)
    return opened.to_dataset(annotations, train, test)


def load_test_annotations(annotations: Annotations, split=None, skip_bad=False) -> Dataset:
    """Loads a split of Annotations for testing; None: the first of TEST_SPLITS, or "train". See `load_test`."""
    opened = _open_splits(annotations, [test_split_name(annotations, split)], CHECKS["header"], skip_bad)
    return opened.to_dataset(annotations, None, opened.to_split(0, path_split))


def path_inside(folder: str | os.PathLike, name: str) -> str:
    """Path of a file that an annotation file names; ValueError unless the name is a relative path without "..".

    >>> from keras_resnet.data.annotations import path_inside
    >>> path_inside("coco", "../secret.jpg")
    Traceback (most recent call last):
    ValueError: `file` should be a path inside the folder of the data set. Received: file='../secret.jpg'
    """
    is_name = name and not re.search("[\0\ud800-\udfff]", name)  # characters that no file name has
    if not is_name or os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
        raise value_error("file", name, "a path inside the folder of the data set")
    return os.path.join(folder, name)


def read_text(path: str | os.PathLike, max_bytes: int) -> str:
    """Text of a file in UTF-8.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for one that is larger than `max_bytes` or not in UTF-8.
    """
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"should have at most {max_bytes} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"should be text in UTF-8 ({error.reason} at byte {error.start})") from error


def read_list(path: str | os.PathLike) -> list[str]:
    """Lines of a list of images that are not blank.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for one that is larger than MAX_LIST_BYTES or not in UTF-8; the message names it.
    """
    try:
        lines = read_text(path, MAX_LIST_BYTES).split("\n")
    except ValueError as error:
        raise value_error("dataset", str(path), f"a list of images, which {error}") from error
    return [line.strip() for line in lines if line.strip()]


def raise_or_warn(
    where: str | os.PathLike,
    errors: Sequence[str],
    skip_bad: bool,
    expected: str = "readable images with valid objects",
) -> None:
    """Raises ValueError for messages about images and objects of a data set; with `skip_bad`, warns of them."""
    if not errors:
        return
    listed = f"{len(errors)} invalid in {where}:\n  {format_errors(errors)}"
    if not skip_bad:
        raise ValueError(
            f"Expected {expected}; pass `skip_bad=True` (--skip-bad) to leave the others out. Received: {listed}"
        )
    warnings.warn(f"Left out {listed}", stacklevel=5)


@dataclass(frozen=True)
class _OpenedSplits:
    """Splits whose images and objects are valid."""

    splits: Sequence[Sequence[tuple[AnnotatedImage, FileRecord]]]
    class_names: tuple[str, ...]
    errors: tuple[str, ...]

    def to_split(self, index, make):
        """The Split with objects; `make` makes one of a group of (path, label, FileRecord), see `path_split`."""
        images = [image for image, _ in self.splits[index]]
        objects = to_objects(images, self.class_names)
        if images[0].class_name is None:
            labels = objects.label_matrix(len(self.class_names))
        else:
            numbers = {name: number for number, name in enumerate(self.class_names)}
            labels = [numbers[image.class_name] for image in images]
        group = [(image.path, label, record) for (image, record), label in zip(self.splits[index], labels, strict=True)]
        return replace(make(group), objects=objects)

    def to_dataset(self, annotations, train, test):
        preprocessing = default_preprocessing((None, None, 3))
        return Dataset(annotations.name, train, test, self.class_names, preprocessing, self.errors)


def _open_splits(annotations, names, check: ImageCheck, skip_bad) -> _OpenedSplits:
    """_OpenedSplits of some splits; raises ValueError as `load_annotations`."""
    splits = [annotations.read(name) for name in names]
    _check_classes(annotations, names, [split.class_names for split in splits])
    errors = [error for split in splits for error in split.errors]
    paths = [image.path for split in splits for image in split.images]
    check = with_size(check)
    records = read_files(check.function, paths, annotations.folder, check.kind)
    checked = [_checked_images(split.images, records, errors) for split in splits]
    errors = list(dict.fromkeys(errors))  # splits may have the same images
    raise_or_warn(annotations.folder, errors, skip_bad)
    if not splits[0].class_names:
        raise value_error("dataset", str(annotations.folder), "a data set with objects of one class or more")
    if empty := [name for name, images in zip(names, checked, strict=True) if not images]:
        raise value_error("dataset", str(annotations.folder), f"a data set with valid images; {empty} has none")
    return _OpenedSplits(checked, splits[0].class_names, tuple(errors))


def _checked_images(images, records, errors):
    """[(AnnotatedImage, FileRecord)] of the valid images and objects; messages about the others go to `errors`."""
    checked = []
    for image in images:
        record = records[image.path]
        if reason := record.error or image.error:
            errors.append(f"{image.path if record.error else image.source} ({reason})")
            continue
        size = StoredSize(*record.result)
        valid, found = check_image(image, size)
        errors += found
        if valid is not None:
            checked.append((valid, record._replace(result=size.orientation)))
    return checked


def _check_classes(annotations, names, class_names):
    if differing := sorted(set(class_names[0]) ^ set(class_names[-1])):
        raise value_error(
            "dataset",
            str(annotations.folder),
            f"a data set with the same classes in {' and '.join(names)}",
            f"Only one has {differing[:10]}.",
        )
