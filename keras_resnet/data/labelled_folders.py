"""Folders of images whose classes a label file names -> Dataset."""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from keras_resnet.data.datasets import SPLITS, TEST_SPLITS, count_classes
from keras_resnet.data.image_files import find_images, format_errors
from keras_resnet.data.image_folders import load_test_files, load_training_files
from keras_resnet.data.label_files import LabelRow, read_label_file
from keras_resnet.data.labels import imagenet_classes
from keras_resnet.errors import check_known


@dataclass(frozen=True)
class LabelledImages:
    """The images that a label file names."""

    paths: Sequence[str]
    labels: np.ndarray
    """(N,) int32 or (N, K) uint8, as in a Split."""
    class_names: tuple[str, ...]
    splits: np.ndarray
    """(N,) values of the column "split", empty without it."""
    unmatched: dict[str, list[str]]
    """{"not found": names in the file without an image, "not in the file": names of images that it does not have}."""

    @property
    def test_split(self):
        """The first of TEST_SPLITS that occurs in `splits`, else None."""
        return next((name for name in TEST_SPLITS if name in self.splits), None)

    def select(self, split):
        """[(path, label)] of a split; None: of all images."""
        indices = np.arange(len(self.paths)) if split is None else np.flatnonzero(self.splits == split)
        return [(self.paths[index], self.labels[index]) for index in indices]


def load_labelled_folder(folder, labels, held_out=None, skip_bad=False):
    """Loads images for training from a folder with its subfolders, and their classes from a file.

    The file has one of the forms of `read_label_file`. Its column "split" names the test images; without it, or
    with `held_out`, part of the training images is held out. If an image has several classes, or none, the Dataset is
    multi-label. Classes are in the order of their columns, else sorted, numbers by their values.

    Args:
        folder: folder of images.
        labels: path of the label file.
        held_out: as for `Split.stratified_split`; None: a fifth.
        skip_bad: whether to skip unreadable images, images without a class, and lines without an image.

    Raises:
        FileNotFoundError: if the folder or the file does not exist.
        ValueError: for an invalid label file, lines without an image and images without a line, fewer than two classes,
            a class without training images, and unreadable images.
    """
    file = read_label_file(labels)
    found = _match_images(folder, file)
    unmatched = [f"{name} ({reason})" for reason, names in found.unmatched.items() for name in names]
    if unmatched and not skip_bad:
        expected = "have a line for each image, and an image for each line (`skip_bad`, --skip-bad, skips the others)"
        raise file.error(expected, f" with {len(unmatched)} unmatched:\n  {format_errors(unmatched)}")
    if unmatched:
        warnings.warn(
            f"Skipped {len(unmatched)} unmatched lines or images:\n  {format_errors(unmatched)}", stacklevel=4
        )
    test_split = found.test_split if held_out is None else None
    groups = [found.select("train" if any(found.splits) else None)]
    groups += [found.select(test_split)] if test_split else []
    _check_classes(file, found.class_names, groups)
    dataset = load_training_files(groups, found.class_names, Path(folder), held_out, skip_bad)
    return replace(dataset, skipped=(*dataset.skipped, *unmatched))


def _check_classes(file, class_names, groups):
    """Raises ValueError for fewer than two classes, and for classes without an image for training, and testing."""
    if not groups[0]:
        raise file.error('have images with the split "train"')
    if len(class_names) < 2:
        raise file.error("have two classes at least", f" with {list(class_names)}")
    least = 2 if len(groups) == 1 else 1  # part of a single group is held out
    counts = count_classes(np.array([label for _, label in groups[0]]), len(class_names))
    if rare := [name for name, count in zip(class_names, counts, strict=True) if count < least]:
        expected = f"have {least} training images of each class at least"
        raise file.error(expected, f" with fewer of {len(rare)} classes, such as {rare[:3]}")


def load_labelled_test_folder(folder, labels, split=None, skip_bad=False):
    """Loads test images as `load_labelled_folder`: a Dataset without `train`.

    Lines without an image are ignored. `class_names` is None if the classes are numbers, which then are indices of the
    model's classes, and ImageNet's if all classes are WordNet ids.

    Args:
        folder, labels, skip_bad: as for `load_labelled_folder`.
        split: a value of the column "split"; None: its test images, or without the column all images.
    """
    file = read_label_file(labels)
    found = _match_images(folder, file)
    unlabelled = found.unmatched["not in the file"]
    if unlabelled and not skip_bad:
        details = f" without {len(unlabelled)} of {len(found.paths) + len(unlabelled)}, such as {unlabelled[:3]}"
        raise file.error("have the class of every image", details)
    if split is not None:
        check_known("split", split, sorted(set(found.splits) - {""}))
    images, names = found.select(split or found.test_split), found.class_names
    if found.labels.ndim == 1:
        names, indices = _model_classes(file, names)
        images = [(path, indices[label]) for path, label in images]
    dataset = load_test_files(images, names, Path(folder), skip_bad)
    return replace(dataset, skipped=(*dataset.skipped, *(f"{name} (not in the file)" for name in unlabelled)))


def _model_classes(file, class_names):
    """(class names of a test Dataset or None, the index in them of each of the file's classes)."""
    wordnet_ids = tuple(wnid for wnid, _ in imagenet_classes())
    if set(class_names) <= set(wordnet_ids):
        return wordnet_ids, [wordnet_ids.index(name) for name in class_names]
    if file.has_names and all(name.isdecimal() for name in class_names):
        return None, [int(name) for name in class_names]
    return class_names, range(len(class_names))


def _match_images(folder, file):
    """The LabelledImages of a LabelFile in a folder."""
    folder = Path(folder)
    images = sorted(find_images(folder), key=lambda path: path.name)
    if file.has_names:
        rows, not_found = _rows_by_image(file, images, folder)
    elif len(file.rows) == len(images):
        rows, not_found = {index: [row] for index, row in enumerate(file.rows)}, []
    else:
        expected = f"have a class for each of {len(images)} images, or name the images"
        raise file.error(expected, f" with {len(file.rows)} lines")
    merged = [_merge_rows(file, rows[index]) for index in sorted(rows)]
    labels, class_names = _labels(file, [row.classes for row in merged])
    if file.class_names is None and labels.ndim == 2 and any(len(found) > 1 for found in rows.values()):
        name, classes, _ = next(row for row in merged if len(row.classes) > 1)
        warnings.warn(
            f"{file.path} has several lines for an image, such as {name!r} ({', '.join(classes)}): the data set is "
            "multi-label",
            stacklevel=4,
        )
    return LabelledImages(
        [str(images[index]) for index in sorted(rows)],
        labels,
        class_names,
        np.array([row.split for row in merged]),
        {
            "not found": not_found,
            "not in the file": [str(path.relative_to(folder)) for i, path in enumerate(images) if i not in rows],
        },
    )


def _rows_by_image(file, images, folder):
    """({index of an image: its LabelRows}, names that are no image)."""
    aliases, relative = defaultdict(set), [path.relative_to(folder) for path in images]
    for index, path in enumerate(relative):
        for alias in (path.with_suffix("").as_posix(), path.name, path.stem, (folder.resolve().name / path).as_posix()):
            aliases[alias].add(index)
    aliases |= {path.as_posix(): {index} for index, path in enumerate(relative)}
    rows, not_found = defaultdict(list), []
    for row in file.rows:
        indices = aliases.get(row.name, ())
        if len(indices) > 1:
            raise file.error("include the folders of images with equal names", f" with {row.name!r}")
        for index in indices:
            rows[index].append(row)
        if not indices:
            not_found.append(row.name)
    return rows, not_found


def _merge_rows(file, rows):
    """The LabelRows of an image as one."""
    name, classes = rows[0].name, [name for row in rows for name in row.classes]
    if len(set(classes)) < len(classes) or (file.class_names and len(rows) > 1):
        raise file.error("have each line once", f" with {len(rows)} for {name!r}")
    if len({row.split for row in rows}) > 1:
        raise file.error("have one split for each image", f" with {[row.split for row in rows]} for {name!r}")
    if file.has_splits and rows[0].split not in SPLITS:
        raise file.error(
            f"have one of {', '.join(SPLITS)} in its column split", f" with {rows[0].split!r} for {name!r}"
        )
    return LabelRow(name, tuple(classes), rows[0].split)


def _labels(file, classes):
    """(labels as in a Split, class names) of the classes of each image."""
    found = set(chain(*classes))
    class_names = file.class_names or tuple(sorted(found, key=int if all(map(str.isdecimal, found)) else None))
    index = {name: i for i, name in enumerate(class_names)}
    if all(len(names) == 1 for names in classes):
        return np.array([index[name] for (name,) in classes], "int32"), class_names
    labels = np.zeros((len(classes), len(class_names)), "uint8")
    for row, names in zip(labels, classes, strict=True):
        row[[index[name] for name in names]] = 1
    return labels, class_names
