"""Folders of class folders -> Dataset: every file is looked at before anything is trained."""

import io
import os
import stat
import warnings
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from keras_resnet.data.datasets import DEFAULT_VALIDATION_SPLIT, Dataset, Split, default_preprocessing, fits_in_memory
from keras_resnet.data.image_files import (
    FORMATS,
    UnreadableImageError,
    check_image,
    format_errors,
    load_image,
    raise_if_unreadable,
)

TEST_FOLDER_NAMES = ("val", "valid", "validation", "test")
"""What the folder beside "train" may be called; the first one found tests."""
READABLE = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
"""Formats that TensorFlow decodes too."""
NO_FILE = "it is no file"
ORIENTATION = 0x0112
"""Number of the EXIF entry that says how a camera was held."""


def load_folder(path, validation_split=None, skip_bad=False):
    """Images in folders named like their classes.

    Either PATH/train/<class>/... and PATH/val/<class>/... (or another of TEST_FOLDER_NAMES), or PATH/<class>/..., of
    which a part is held out. Subfolders of a class folder belong to the class, links are followed, hidden files and
    files with other suffixes are skipped. Images are held as files if they fit in memory, turned upright where EXIF
    says so, and as paths otherwise; TensorFlow, which reads those, does not turn them.

    Args:
        path: the folder.
        validation_split: share in (0, 1) or number of the training images that is set aside to test on; a test folder
            then stays untouched. None: the test folder, or a fifth if there is none.
        skip_bad: whether unreadable files are left out, with a warning that lists them.

    Raises:
        ValueError: for a folder without class folders or with a single one, a class without images, classes that
            differ between train and test, and unreadable files, all of which it counts.
        OSError: for a folder that cannot be read.
    """
    folder = Path(path)
    found = _images_at(folder, with_test=validation_split is None)
    _check_classes(found, folder)
    splits, skipped = _read([_numbered(classes) for _, classes in found], folder, skip_bad)
    for (root, classes), split in zip(found, splits, strict=True):
        _check_left(root, classes, split)
    train, test = (
        splits if len(splits) == 2 else splits[0].stratified_split(validation_split or DEFAULT_VALIDATION_SPLIT)
    )
    class_names = tuple(found[0][1])
    return Dataset(folder.resolve().name, train, test, class_names, default_preprocessing((None, None, 3)), skipped)


def load_test_folder(path, split=None, skip_bad=False):
    """Images to test on, in folders named like their classes: all of PATH/<class>/..., or of PATH/val/<class>/...

    Args:
        path: the folder.
        split: name of the folder within it that is meant; None: one of TEST_FOLDER_NAMES beside "train", else `path`.
        skip_bad: whether files that are no images are left out; the Dataset lists them.

    Returns:
        A Dataset of paths, without `train`. Its classes may be few, or a single one, or lack images.

    Raises:
        ValueError: for a folder without class folders or without any images, and files that are no images.
        OSError: for a folder that cannot be read.
    """
    folder = Path(path)
    tests = [folder / name for name in TEST_FOLDER_NAMES if _subfolders(folder / "train") and (folder / name).is_dir()]
    root = folder / split if split else (tests or [folder])[0]
    _, classes = _classes_in(root)
    return load_files(_numbered(classes), tuple(classes), root, skip_bad)


def load_files(labelled, class_names, folder, skip_bad=False):
    """Image files to test on: their heads are looked at, the rest is read when they are tested.

    Args:
        labelled: pairs (path, number of the class).
        class_names: as a Dataset has them.
        folder: where they are, for the name of the set and for messages.
        skip_bad: whether files that are no images are left out; the Dataset lists them.

    Raises:
        ValueError: if there are none, and for files that are no images, all of which it counts.
    """
    if not labelled:
        raise ValueError(
            f"Expected images ({_suffixes()}) in a folder for each class, or `labels` (--labels), a file that says "
            f"which class each is of. Received: path={str(folder)!r}"
        )
    with ThreadPool() as threads:
        found = threads.map(lambda row: _fault_of_head(row[0]), labelled, chunksize=64)
    faults = tuple(f"{path} ({fault})" for (path, _), fault in zip(labelled, found, strict=True) if fault)
    raise_if_unreadable(faults, skip_bad, folder)
    good = [row for row, fault in zip(labelled, found, strict=True) if not fault]
    if not good:
        raise ValueError(f"Expected images that can be read. Received: none of {len(labelled)} in {folder}")
    test = Split(np.array([path for path, _ in good]), np.array([label for _, label in good]))
    preprocessing = default_preprocessing((None, None, 3))
    return Dataset(folder.resolve().name, None, test, class_names, preprocessing, faults)


def _fault_of_head(path):
    """Why a file is no image, or None."""
    try:
        if not _is_file(path):
            return NO_FILE
        check_image(path)
    except OSError as error:
        return error.strerror
    except UnreadableImageError as error:
        return error.reason


def _images_at(folder, with_test):
    """[(folder, {class: paths})] of what trains and, if it has a folder of its own, what tests."""
    roots = [folder]
    if _subfolders(folder / "train"):
        tests = [folder / name for name in TEST_FOLDER_NAMES if (folder / name).is_dir()]
        if with_test and not tests:
            raise ValueError(
                f"Expected a folder {' or '.join(TEST_FOLDER_NAMES)} beside train, or a `validation_split`. "
                f"Received: path={str(folder)!r}"
            )
        roots = [folder / "train", *tests[:with_test]]
    return [_classes_in(root) for root in roots]


def _classes_in(folder):
    """(folder, {class: paths of its images})."""
    if not folder.is_dir():
        raise NotADirectoryError(f"Expected a folder with a folder for each class. Received: path={str(folder)!r}")
    return folder, {child.name: _images_in(child) for child in _subfolders(folder)}


def _subfolders(folder):
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _images_in(folder):
    """Paths of the files that are images by their suffix; a folder that links lead to again is not entered again."""
    suffixes = tuple(suffix for row in FORMATS.values() for suffix in row)
    seen = {str(parent) for parent in folder.resolve().parents}
    images = []
    for root, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and os.path.realpath(os.path.join(root, name)) not in seen
        ]
        named = (name for name in sorted(files) if not name.startswith(".") and name.lower().endswith(suffixes))
        images += [os.path.join(root, name) for name in named]
    return images


def _check_classes(found, folder):
    for root, classes in found:
        if len(classes) < 2:
            raise ValueError(
                f"Expected a folder for each class, two at least. Received: {root} with {len(classes)} "
                f"({', '.join(classes) or 'no folders'})"
            )
        if empty := [name for name, images in classes.items() if not images]:
            raise ValueError(
                f"Expected images in every class folder ({_suffixes()}). Received: {root} with none in {empty}"
            )
    (first, train), (last, test) = found[0], found[-1]
    if differing := sorted(train.keys() ^ test.keys()):
        raise ValueError(f"Expected the same classes in {first} and {last}. Received: only one of them has {differing}")


def _suffixes():
    return " ".join(suffix for name in READABLE for suffix in FORMATS[name])


def _numbered(classes):
    """{class: paths} -> [(path, number of the class)]."""
    return [(path, number) for number, paths in enumerate(classes.values()) for path in paths]


def _read(groups, folder, skip_bad):
    """([Split] for each group of (path, label), what was left out), after all files have been looked at."""
    paths = [path for group in groups for path, _ in group]
    keep = fits_in_memory(sum(os.path.getsize(path) for path in paths if os.path.isfile(path)))
    with ThreadPool() as threads:
        looked_at = dict(zip(paths, threads.imap(lambda path: _look_at(path, keep), paths, chunksize=16), strict=True))
    faults = tuple(f"{path} ({fault})" for path, (_, fault) in looked_at.items() if fault)
    raise_if_unreadable(faults, skip_bad, folder)
    if faults:
        warnings.warn(f"Left out {len(faults)} unreadable images in {folder}:\n  {format_errors(faults)}", stacklevel=4)
    splits = []
    for group in groups:
        rows = [(path, label) for path, label in group if not looked_at[path][1]]
        images = np.array([looked_at[path][0] if keep else path for path, _ in rows], object if keep else str)
        splits.append(Split(images, np.array([label for _, label in rows], "int32")))
    return splits, faults


def _check_left(root, classes, split):
    if empty := [name for label, name in enumerate(classes) if label not in split.labels]:
        raise ValueError(f"Expected a readable image in every class folder. Received: {root} with none in {empty}")


def _is_file(path):
    """Whether it can be read to its end: a pipe would be waited for."""
    return stat.S_ISREG(os.stat(path).st_mode)


def _look_at(path, keep):
    """(content, None) for a readable file, its content only if it is kept; (None, why not) for another."""
    try:
        if not _is_file(path):
            return None, NO_FILE
        content = Path(path).read_bytes()
    except OSError as error:
        return None, error.strerror
    fault = _fault(content)
    return (_upright(content) if keep and not fault else None), fault


def _upright(content):
    """The file; re-encoded, if EXIF says that the image is to be turned: TensorFlow would not turn it."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        if image.getexif().get(ORIENTATION, 1) == 1:
            return content
    turned = io.BytesIO()
    load_image(content).save(turned, "PNG")
    return turned.getvalue()


def _fault(content):
    """Why an image cannot be trained on, or None. Pillow says what it is, TensorFlow whether it can be decoded."""
    import tensorflow as tf
    from PIL import Image

    if not content:
        return "it is empty"
    try:
        with Image.open(io.BytesIO(content), formats=tuple(FORMATS)) as image:
            kind, mode, pixels = image.format, image.mode, image.width * image.height
    except Exception:  # on damaged files Pillow's readers raise nearly anything
        return "it holds something else or is damaged"
    if Image.MAX_IMAGE_PIXELS and pixels > Image.MAX_IMAGE_PIXELS:
        return f"{pixels} pixels are more than the {Image.MAX_IMAGE_PIXELS} of PIL.Image.MAX_IMAGE_PIXELS"
    palette = kind == "BMP" and mode in ("1", "P")  # TensorFlow takes its numbers for grey
    if kind not in READABLE or palette:
        return f"TensorFlow does not read {kind}{' with a palette' if palette else ''}"
    try:
        if kind == "JPEG":
            tf.io.decode_jpeg(content, channels=3, ratio=8)  # reads all, computes little
        else:
            tf.io.decode_image(content, channels=3, expand_animations=False)
    except tf.errors.OpError:
        return "it is damaged or cut off"
    return None
