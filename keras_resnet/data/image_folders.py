"""Folders of class folders -> Dataset. Every file is checked before training begins."""

import io
import os
import stat
import warnings
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from keras_resnet.data.datasets import (
    DEFAULT_VALIDATION_SPLIT,
    Dataset,
    Split,
    count_classes,
    default_preprocessing,
    fits_in_memory,
)
from keras_resnet.data.image_files import (
    FORMATS,
    UnreadableImageError,
    format_errors,
    images_in_folder,
    load_image,
    raise_if_unreadable,
    with_pil_image,
)

TEST_FOLDER_NAMES = ("val", "valid", "validation", "test")
"""Names of a test folder beside "train"; the first one that exists is used."""
TENSORFLOW_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
"""Formats that TensorFlow decodes as well."""
TENSORFLOW_SUFFIXES = " ".join(suffix for name in TENSORFLOW_FORMATS for suffix in FORMATS[name])
EXIF_ORIENTATION = 0x0112


def load_folder(path, validation_split=None, skip_bad=False):
    """Loads images from class folders. See `load_dataset` for the arguments.

    The folder has either PATH/train/<class>/... and PATH/val/<class>/... (or another of TEST_FOLDER_NAMES), or
    PATH/<class>/..., whose images are split: by default, a fifth is held out for testing. Images in subfolders of a
    class folder belong to the class, links are followed, hidden files and files with other suffixes are ignored. Files
    that fit in memory are kept there, turned upright as EXIF says; otherwise paths are kept, and TensorFlow, which
    reads them, ignores EXIF. With `skip_bad`, a warning lists the unreadable files.

    Raises:
        ValueError: for fewer than two class folders, a class without images, different classes in training and test
            folder, and unreadable files.
        OSError: for a folder that cannot be read.
    """
    folder = Path(path)
    train_folder, test_folders = _train_and_test_folders(folder)
    if validation_split is None and train_folder != folder and not test_folders:
        raise ValueError(
            f"Expected a folder {' or '.join(TEST_FOLDER_NAMES)} beside train, or a `validation_split`. "
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
    keep = fits_in_memory(sum(os.path.getsize(path) for group in groups for path, _ in group if os.path.isfile(path)))
    splits, skipped = _read_splits(groups, folder, skip_bad, lambda path: _read_for_training(path, keep))
    if skipped:
        message = f"Skipped {len(skipped)} unreadable images in {folder}:\n  {format_errors(skipped)}"
        warnings.warn(message, stacklevel=4)
    for split in splits[: None if skipped else 1]:
        counts = count_classes(split.labels, len(class_names))
        if empty := [name for name, count in zip(class_names, counts, strict=True) if not count]:
            raise ValueError(f"Expected readable images of every class. Received: {folder} with none in {empty}")
    amount = DEFAULT_VALIDATION_SPLIT if held_out is None else held_out
    train, test = splits if len(splits) == 2 else splits[0].stratified_split(amount)
    return Dataset(folder.resolve().name, train, test, class_names, default_preprocessing((None, None, 3)), skipped)


def load_test_folder(path, split=None, skip_bad=False):
    """Loads test images from class folders: a Dataset of paths without `train`. See `load_test` for the arguments.

    The images are those of PATH/SPLIT/<class>/...; without `split`, those of a test folder beside "train", or all of
    PATH/<class>/... There may be a single class, and classes without images.
    """
    folder = Path(path)
    root = folder / split if split else [*_train_and_test_folders(folder)[1], folder][0]
    images = _images_by_class(root)
    return load_test_files(_labelled_paths(images), tuple(images), root, skip_bad)


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

    def check_header(path):
        return with_pil_image(path, lambda image: path)

    (test,), skipped = _read_splits([labelled_paths], folder, skip_bad, check_header)
    if not len(test):
        raise ValueError(f"Expected readable images. Received: none of {len(labelled_paths)} in {folder}")
    return Dataset(folder.resolve().name, None, test, class_names, default_preprocessing((None, None, 3)), skipped)


def _train_and_test_folders(folder):
    """(PATH/train, list of the test folders beside it); (PATH, []) without class folders in PATH/train."""
    if not _subfolders(folder / "train"):
        return folder, []
    return folder / "train", [folder / name for name in TEST_FOLDER_NAMES if (folder / name).is_dir()]


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
                f"({', '.join(images) or 'no folders'})"
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


def _read_splits(groups, folder, skip_bad, read):
    """Reads the files of groups of (path, label) in threads.

    Args:
        read: function path -> path or contents, which raises for an unreadable file.

    Returns:
        (a Split for each group, messages about the unreadable files).
    """
    paths = [path for group in groups for path, _ in group]
    with ThreadPool() as threads:
        results = threads.imap(lambda path: _try_to_read(path, read), paths, chunksize=16)
        results = dict(zip(paths, results, strict=True))
    errors = tuple(f"{path} ({error})" for path, (_, error) in results.items() if error)
    raise_if_unreadable(errors, skip_bad, folder)
    splits = []
    for group in groups:
        images = [(results[path][0], label) for path, label in group if not results[path][1]]
        dtype = object if images and isinstance(images[0][0], bytes) else str
        labels = [label for _, label in images]
        splits.append(
            Split(
                np.array([i for i, _ in images], dtype), np.array(labels, "uint8" if np.ndim(labels) == 2 else "int32")
            )
        )
    return splits, errors


def _try_to_read(path, read):
    """(result of `read`, None), or (None, why the file cannot be read)."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would block
            return None, "not a file"
        return read(path), None
    except OSError as error:
        return None, error.strerror
    except UnreadableImageError as error:
        return None, error.reason


def _read_for_training(path, keep):
    """The contents of an image file, or its path if contents are not kept."""
    contents = Path(path).read_bytes()
    _check_decodable(contents)
    if not keep:
        return path
    if with_pil_image(contents, lambda image: image.getexif().get(EXIF_ORIENTATION, 1)) == 1:
        return contents
    upright = io.BytesIO()
    load_image(contents).save(upright, "PNG")
    return upright.getvalue()


def _check_decodable(contents):
    """Raises UnreadableImageError unless Pillow identifies an image that TensorFlow can decode."""
    import tensorflow as tf

    name, mode = with_pil_image(contents, lambda image: (image.format, image.mode))
    has_palette = name == "BMP" and mode in ("1", "P")  # TensorFlow would read the indices as grey
    if name not in TENSORFLOW_FORMATS or has_palette:
        reason = f"TensorFlow does not read {name}{' with a palette' if has_palette else ''}"
        raise UnreadableImageError(f"{len(contents)} bytes", reason)
    try:
        if name == "JPEG":
            tf.io.decode_jpeg(contents, channels=3, ratio=8)  # reads all data at little cost
        else:
            tf.io.decode_image(contents, channels=3, expand_animations=False)
    except tf.errors.OpError as error:
        raise UnreadableImageError(f"{len(contents)} bytes", "damaged or truncated") from error
