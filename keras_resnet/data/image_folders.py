"""Folders of class folders -> Dataset. Every file is checked before training begins."""

import warnings
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from keras_resnet.data.datasets import (
    TEST_SPLITS,
    Dataset,
    Split,
    count_classes,
    default_preprocessing,
    fits_in_memory,
)
from keras_resnet.data.image_checks import CHECKS, TENSORFLOW_SUFFIXES, orientations_of, training_check
from keras_resnet.data.image_files import format_errors, images_in_folder, raise_if_unreadable
from keras_resnet.data.manifests import read_files


def load_folder(path, validation_split=None, skip_bad=False):
    """Loads images from class folders. See `load_dataset` for the arguments.

    The folder has either PATH/train/<class>/... and PATH/val/<class>/... (or another of TEST_SPLITS), or
    PATH/<class>/..., whose images are split: by default, a fifth is held out for testing. Images in subfolders of a
    class folder belong to the class, links are followed, hidden files and files with other suffixes are ignored. Files
    that fit in memory are kept there. With `skip_bad`, a warning lists the unreadable files.

    Raises:
        ValueError: for fewer than two class folders, a class without images, different classes in training and test
            folder, and unreadable files.
        OSError: for a folder that cannot be read.
    """
    folder = Path(path)
    train_folder, test_folders = _train_and_test_folders(folder)
    if validation_split is None and train_folder != folder and not test_folders:
        raise ValueError(
            f"Expected a folder {' or '.join(TEST_SPLITS)} beside train, or a `validation_split`. "
            f"Received: path={str(folder)!r}"
        )
    roots = [train_folder, *test_folders[: validation_split is None]]
    classes = [_images_by_class(root) for root in roots]
    _check_classes(roots, classes)
    groups = [_labelled_paths(images) for images in classes]
    return load_training_files(groups, tuple(classes[0]), folder, validation_split, skip_bad)


def load_training_files(groups, class_names, folder, held_out=None, skip_bad=False):
    """A Dataset of groups of pairs (path, label): training and test images, or one group of which a part is held out.

    Args:
        groups: lists of (path, label), where labels are as in a Split.
        class_names: tuple of names.
        folder: Path of the folder that the images are in.
        held_out: as for `Split.stratified_split`; None: a fifth.
        skip_bad: whether to skip unreadable images.

    Raises:
        ValueError: for unreadable images without `skip_bad`, and for a class without a readable image.
    """
    groups, skipped = _check_files(groups, training_check(), folder, skip_bad)
    keep = fits_in_memory(sum(record.size for group in groups for _, _, record in group))
    splits = [training_split(group, keep) for group in groups]
    return training_dataset(folder, splits, class_names, held_out, skipped)


def training_dataset(folder, splits, class_names, held_out, skipped):
    """A Dataset of a training and a test Split, or of one of which a part is held out; see `load_training_files`."""
    if skipped:
        message = f"Skipped {len(skipped)} unreadable images in {folder}:\n  {format_errors(skipped)}"
        warnings.warn(message, stacklevel=5)
    for split in splits[: None if skipped else 1]:
        counts = count_classes(split.labels, len(class_names))
        if empty := [name for name, count in zip(class_names, counts, strict=True) if not count]:
            raise ValueError(f"Expected readable images of every class. Received: {folder} with none in {empty}")
    train, test = splits if len(splits) == 2 else splits[0].stratified_split(held_out)
    return Dataset(folder.resolve().name, train, test, class_names, default_preprocessing((None, None, 3)), skipped)


def load_test_folder(path, split=None, skip_bad=False):
    """Loads test images from class folders: a Dataset of paths without `train`. See `load_test` for the arguments.

    The images are those of PATH/SPLIT/<class>/...; without `split`, those of a test folder beside "train", or all of
    PATH/<class>/... There may be a single class, and classes without images.
    """
    folder = Path(path)
    root = folder / split if split else [*_train_and_test_folders(folder)[1], folder][0]
    images = _images_by_class(root)
    dataset = load_test_files(_labelled_paths(images), tuple(images), root, skip_bad)
    return replace(dataset, name=folder.resolve().name)


def load_test_files(labelled_paths, class_names, folder, skip_bad=False):
    """A Dataset without `train` of pairs (path, label) in a folder. Only the headers of the files are read.

    Raises:
        ValueError: for no images, and for unreadable files unless `skip_bad`.
    """
    if not labelled_paths:
        raise ValueError(
            f"Expected images ({TENSORFLOW_SUFFIXES}) in a folder for each class, or `labels` (--labels), a file with "
            f"the class of each image. Received: path={str(folder)!r}"
        )

    (readable,), skipped = _check_files([labelled_paths], CHECKS["header"], folder, skip_bad)
    test = path_split(readable)
    if not len(test):
        raise ValueError(f"Expected readable images. Received: none of {len(labelled_paths)} in {folder}")
    return Dataset(folder.resolve().name, None, test, class_names, default_preprocessing((None, None, 3)), skipped)


def _train_and_test_folders(folder):
    """(PATH/train, list of the test folders beside it); (PATH, []) without class folders in PATH/train."""
    if not _subfolders(folder / "train"):
        return folder, []
    return folder / "train", [folder / name for name in TEST_SPLITS if (folder / name).is_dir()]


def _images_by_class(folder):
    """{class folder: paths of its images}."""
    if not folder.is_dir():
        raise NotADirectoryError(f"Expected a folder with a folder for each class. Received: path={str(folder)!r}")
    return {child.name: images_in_folder(child) for child in _subfolders(folder)}


def _subfolders(folder):
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _check_classes(roots, classes):
    for root, images in zip(roots, classes, strict=True):
        if len(images) < 2:
            raise ValueError(
                f"Expected a folder for each class, two at least. Received: {root} with {len(images)} "
                f"({', '.join(images) or 'no folders'}). For images without such folders, `labels` (--labels) names a "
                "file with their classes"
            )
        if empty := [name for name, paths in images.items() if not paths]:
            raise ValueError(
                f"Expected images in every class folder ({TENSORFLOW_SUFFIXES}). Received: {root} with none in {empty}"
            )
    if differing := sorted(classes[0].keys() ^ classes[-1].keys()):
        raise ValueError(f"Expected the same classes in {roots[0]} and {roots[-1]}. Received: {differing} in only one")


def _labelled_paths(images_by_class):
    """{class: paths} -> [(path, label)]."""
    return [(path, label) for label, paths in enumerate(images_by_class.values()) for path in paths]


def _check_files(groups, check, folder, skip_bad):
    """Groups of (path, label) -> (groups of (path, label, FileRecord) without the unreadable files, their messages)."""
    records = read_files(check.function, [path for group in groups for path, _ in group], folder, check.kind)
    errors = tuple(f"{path} ({record.error})" for path, record in records.items() if record.error is not None)
    raise_if_unreadable(errors, skip_bad, folder)
    readable = [[(*row, records[row[0]]) for row in group if records[row[0]].error is None] for group in groups]
    return readable, errors


def path_split(group):
    """A Split of the paths in a group of (path, label, FileRecord)."""
    labels = [label for _, label, _ in group]
    dtype = "uint8" if np.ndim(labels) == 2 else "int32"
    return Split(np.array([path for path, *_ in group], str), np.array(labels, dtype))


def training_split(group, keep):
    """A Split as `path_split`, with orientations; of the files' contents if they are kept in memory."""
    split = path_split(group)
    with ThreadPool() as threads:
        contents = threads.map(lambda path: Path(path).read_bytes(), split.images if keep else [], chunksize=16)
    orientations = orientations_of(record.result for _, _, record in group)
    return Split(np.array(contents, object) if keep else split.images, split.labels, orientations)
