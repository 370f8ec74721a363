"""`MaskFolder`: folders of images and of masks of classes -> Dataset, with `masks`. Every file is checked first."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_resnet.architecture.segmenter_spec import IGNORED, MAX_CLASSES
from keras_resnet.data.annotation_checks import StoredSize, with_size
from keras_resnet.data.annotations import raise_or_warn, read_list
from keras_resnet.data.archives import test_split_name, training_split_names
from keras_resnet.data.datasets import SPLITS, Dataset, Split, default_preprocessing, fits_in_memory
from keras_resnet.data.image_checks import CHECKS, ImageCheck, training_check
from keras_resnet.data.image_files import images_in_folder
from keras_resnet.data.image_folders import path_split, training_split
from keras_resnet.data.labels import placeholder_names
from keras_resnet.data.manifests import FileRecord, read_files
from keras_resnet.data.mask_checks import (
    ClassTable,
    MaskedImage,
    check_table,
    palette_colors,
    placeholder_table,
    to_masks,
)
from keras_resnet.data.semantic_masks import VALUES, class_values, describe_mask
from keras_resnet.errors import value_error

IMAGES, MASKS = "images", "masks"
"""Names of the folders of images and of masks."""
SUFFIX = ".png"
"""Suffix of a mask."""
READER = "mask 1"
"""Name and version of `describe_mask`, for the manifest of its results."""
CLASSES_FILE = "classes.txt"
"""Name of the file with the names and colours of the classes."""
COLORED_LINE = re.compile(r"(.*[^\s,:])[\s,:]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})")
"""A line of this file that ends with red, green and blue."""
NUMBERED_LINE = re.compile(r"(\d{1,3})[\s,:]+(.+)")
"""A line of this file that begins with an index."""


@dataclass(frozen=True)
class MaskedSplit:
    """The files of a split."""

    pairs: Sequence[tuple[str, str]]
    """Paths of each image and of its mask."""
    errors: Sequence[str] = ()
    """A message for each file without its counterpart."""


@dataclass(frozen=True)
class MaskFolder:
    """A folder of images and masks, in any layout."""

    folder: Path
    splits: Sequence[str]
    """Names of the splits."""
    read: Callable[[str], MaskedSplit]
    """Name of a split -> MaskedSplit."""
    table: ClassTable | None = None
    """None: as many classes as the training masks have, with the colours of their palettes."""

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.folder.resolve().name


def find_masks(folder: str | os.PathLike) -> dict[str, tuple[Path, Path]]:
    """{split: (folder of its images, folder of its masks)} of a folder; empty if it has none.

    The layouts are {train,val,test}/{images,masks}, {images,masks}/{train,val,test} and {images,masks}, which is the
    split "train".
    """
    folder = Path(folder)
    layouts: list[dict[str, tuple[Path, Path]]] = [
        {split: (folder / split / IMAGES, folder / split / MASKS) for split in SPLITS},
        {split: (folder / IMAGES / split, folder / MASKS / split) for split in SPLITS},
        {SPLITS[0]: (folder / IMAGES, folder / MASKS)},
    ]
    found = (
        {split: pair for split, pair in layout.items() if all(path.is_dir() for path in pair)} for layout in layouts
    )
    return next((layout for layout in found if layout), {})


def open_masks(folder: str | os.PathLike) -> MaskFolder:
    """The MaskFolder of a folder in which `find_masks` finds splits.

    The mask of the image `a/b.jpg` is `a/b.png`. The file classes.txt may name the classes, see `read_classes`.

    Raises:
        ValueError: for an invalid classes.txt.
    """
    pairs = find_masks(folder)
    return MaskFolder(Path(folder), tuple(pairs), lambda split: match_files(*pairs[split]), find_classes(folder))


def match_files(images: Path, masks: Path) -> MaskedSplit:
    """The MaskedSplit of all images and masks in two folders; files of both have the same paths without suffixes."""
    by_name: dict[str, str] = {}
    errors = []
    for path in images_in_folder(images):
        other = by_name.setdefault(_stem(path, images), path)
        if other != path:
            errors.append(f"{path} (has the name of {other}, whose mask is {_stem(path, images)}{SUFFIX})")
    found = {}
    for path in images_in_folder(masks):
        if path.lower().endswith(SUFFIX):
            found[_stem(path, masks)] = path
        else:
            errors.append(f"{path} (a mask should be a PNG file, {SUFFIX})")
    errors += [f"{path} (has no mask {masks / (name + SUFFIX)})" for name, path in by_name.items() if name not in found]
    errors += [f"{path} (has no image {images / name}.*)" for name, path in found.items() if name not in by_name]
    return MaskedSplit([(path, found[name]) for name, path in by_name.items() if name in found], errors)


def _stem(path, folder):
    return os.path.splitext(os.path.relpath(path, folder))[0]


def find_classes(folder: str | os.PathLike) -> ClassTable | None:
    """The ClassTable of a folder with the file classes.txt; None without. Raises as `read_classes`."""
    path = Path(folder, CLASSES_FILE)
    return read_classes(path) if path.is_file() else None


def read_classes(path: str | os.PathLike) -> ClassTable:
    """Reads names, and perhaps indices and colours, of classes: one line each.

    A line is `name`, `index name`, `name red green blue` or `index name red green blue`, separated by blanks, commas or
    colons, and all lines have the same form. Without indices, lines are numbered from 0. A line for 255 is left out.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for one without classes, with equal names or indices, or with more than MAX_CLASSES.
    """
    names = read_list(path)
    numbers, colors = list(range(len(names))), [(0, 0, 0)] * len(names)
    if colored := _match_all(COLORED_LINE, names):
        names = [match[1] for match in colored]
        colors = [(int(match[2]), int(match[3]), int(match[4])) for match in colored]
    if numbered := _match_all(NUMBERED_LINE, names):
        numbers, names = [int(match[1]) for match in numbered], [match[2] for match in numbered]
    rows = dict(zip(numbers, zip(names, colors, strict=True), strict=True))
    is_valid = len({*names}) == len(rows) == len(names) and max(map(max, colors), default=0) < VALUES
    if numbered:
        rows.pop(IGNORED, None)
    if not rows or not is_valid or max(rows) >= MAX_CLASSES:
        expected = f"lines with different names, and perhaps indices below {MAX_CLASSES} and colours, of classes"
        raise value_error("classes", [str(path), *names], expected)
    table = [rows.get(index, (name, (0, 0, 0))) for index, name in enumerate(placeholder_names(max(rows) + 1))]
    return ClassTable(tuple(name for name, _ in table), tuple(color for _, color in table) if colored else None)


def _match_all(pattern, lines):
    """The matches of all lines; none if a line does not match."""
    matches = [pattern.fullmatch(line) for line in lines]
    return matches if all(matches) else []


def load_masks(found: MaskFolder, held_out=None, skip_bad=False, ignore_index: int | None = None) -> Dataset:
    """Loads a MaskFolder for training: the split "train", or the only one, and the first of TEST_SPLITS.

    The Dataset has `Split.masks`. Values in masks are the indices of classes; pixels of value 255 and of `ignore_index`
    do not count. Files that fit in memory are kept there. A mask that has the size of the stored pixels of an image
    that EXIF turns is turned like the image; a mask of the size of the upright image, or of both, is not.

    Args:
        found: MaskFolder.
        held_out: as for `Split.stratified_split`; None: a fifth if there is no split for testing.
        skip_bad: whether to leave out invalid images and masks, with a warning.
        ignore_index: value in masks of pixels that do not count, besides 255. If it is the last class, there is one
            class less; other classes keep their indices.

    Raises:
        ValueError: unless `skip_bad` for unreadable images and masks, masks that are no class indices in eight bits, or
            of another size than their image, indices of no class, and images without masks and masks without images:
            all are listed. For fewer than two classes.
    """
    opened = _open_splits(found, training_split_names(found, held_out), training_check(), skip_bad, ignore_index)
    records = [record for split in opened.splits for pair in split for record in (pair.image, pair.mask)]
    keep = fits_in_memory(sum(record.size for record in records))
    splits = [opened.to_split(pairs, lambda group: training_split(group, keep), keep) for pairs in opened.splits]
    train, test = splits if len(splits) == 2 else splits[0].stratified_split(held_out)
    return opened.to_dataset(found, train, test)


def load_test_masks(found: MaskFolder, split=None, skip_bad=False, ignore_index: int | None = None) -> Dataset:
    """Loads a split of a MaskFolder for testing; None: the first of TEST_SPLITS, or "train". See `load_test`.

    The classes are those of `load_masks`; unless they are named, the training masks are read as well.
    """
    opened = _open_splits(found, [test_split_name(found, split)], CHECKS["header"], skip_bad, ignore_index)
    return opened.to_dataset(found, None, opened.to_split(opened.splits[0], path_split, False))


class _Pair(NamedTuple):
    """The valid files of an image and its mask."""

    masked: MaskedImage
    image: FileRecord
    mask: FileRecord


@dataclass(frozen=True)
class _OpenedSplits:
    """Splits whose images and masks are valid."""

    splits: Sequence[Sequence[_Pair]]
    table: ClassTable
    classes: np.ndarray | None
    """The class of each value, see `class_values`."""
    errors: tuple[str, ...]

    def to_split(self, pairs: Sequence[_Pair], make: Callable, keep: bool) -> Split:
        """The Split with masks; `make` makes one of a group of (path, label, FileRecord), see `path_split`.

        `keep`: whether the mask files are kept in memory.
        """
        names = [pair.masked.mask_name for pair in pairs]
        with ThreadPool() as threads:
            files = threads.map(lambda path: Path(path).read_bytes(), names, chunksize=16) if keep else names
        masks = to_masks([pair.masked for pair in pairs], files, self.classes)
        labels = masks.label_matrix(len(self.table.names))
        group = [
            (pair.masked.image_name, label, pair.image._replace(result=pair.masked.size.orientation))
            for pair, label in zip(pairs, labels, strict=True)
        ]
        return replace(make(group), masks=masks)

    def to_dataset(self, found: MaskFolder, train: Split | None, test: Split) -> Dataset:
        preprocessing = default_preprocessing((None, None, 3))
        return Dataset(found.name, train, test, self.table.names, preprocessing, self.errors, self.table.colors)


def _open_splits(found: MaskFolder, names, check: ImageCheck, skip_bad, ignore_index) -> _OpenedSplits:
    """_OpenedSplits of some splits; raises ValueError as `load_masks`."""
    splits, classes = [found.read(name) for name in names], class_values(ignore_index)
    # The training masks say how many classes there are
    training = splits[0] if found.table or SPLITS[0] not in found.splits else found.read(SPLITS[0])
    check = with_size(check)
    images = read_files(check.function, _paths(splits, 0), found.folder, check.kind)
    masks = read_files(describe_mask, _paths([*splits, training], 1), found.folder, f"{READER} {version('pillow')}")
    described = [(path, masks[path].result) for path in _paths([training], 1) if masks[path].error is None]
    table = found.table or placeholder_table([row for _, row in described], classes, found.folder)
    table = table.without(ignore_index)
    errors = [error for split in splits for error in split.errors]
    checked = [_checked_pairs(split.pairs, images, masks, (table, classes), errors) for split in splits]
    errors = list(dict.fromkeys(errors))  # splits may have the same images
    raise_or_warn(found.folder, errors, skip_bad, "readable images with valid masks")
    check_table(table, found.folder)
    if empty := [name for name, pairs in zip(names, checked, strict=True) if not pairs]:
        raise value_error("dataset", str(found.folder), f"a data set with valid images and masks; {empty} has none")
    if table.colors is None:
        table = table._replace(colors=palette_colors(described, len(table.names)))
    return _OpenedSplits(checked, table, classes, tuple(errors))


def _paths(splits, column):
    """Paths of all images (column 0) or masks (1) of some splits, once each."""
    return list(dict.fromkeys(pair[column] for split in splits for pair in split.pairs))


def _checked_pairs(paths, images, masks, expected, errors) -> list[_Pair]:
    """The _Pairs that are valid; messages about the others go to `errors`. `expected`: as for `MaskedImage.errors`."""
    checked = []
    for image_path, mask_path in paths:
        image, mask = images[image_path], masks[mask_path]
        rows = ((image_path, image.error), (mask_path, mask.error))
        found = [f"{path} ({error})" for path, error in rows if error is not None]
        if not found:
            masked = MaskedImage(image_path, mask_path, StoredSize(*image.result), mask.result)
            found = list(masked.errors(*expected))
            checked += [] if found else [_Pair(masked, image, mask)]
        errors += found
    return checked
