"""Images of one class with the boxes of its objects, as in ImageNet's localization task -> `Annotations`.

The first and last column and row of a box are numbers of pixels from 0: (0, 0, 63, 63) is all of an image of 64 x 64
pixels, here (0, 0, 64, 64).
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from keras_resnet.data.annotation_checks import AnnotatedImage, AnnotatedObject
from keras_resnet.data.annotations import MAX_LIST_BYTES, AnnotatedSplit, Annotations, path_inside, read_text
from keras_resnet.data.datasets import SPLITS
from keras_resnet.data.image_files import images_in_folder
from keras_resnet.data.manifests import FileRecord, read_files
from keras_resnet.data.voc_files import read_voc
from keras_resnet.errors import error_summary, value_error

READER = "localization 1"
"""Name and version of the reader of XML files, for the manifest of its results."""
IMAGENET = ("ILSVRC", "Data", "CLS-LOC")
"""Folders above the images of a split in ImageNet's archive, as Kaggle has it; the first may be missing."""


@dataclass(frozen=True)
class LocalizationFormat:
    """A row of FORMATS."""

    find: Callable[[Path], dict[str, Any]]
    """Folder -> {name of a split: what `read` gets}; empty for a folder of another format."""
    read: Callable[[Path, str, Any], AnnotatedSplit]
    """(folder, name of a split, its value of `find`) -> AnnotatedSplit."""


class BoxLine(NamedTuple):
    """A line of a text file: an image, its class, and the corners of one or several boxes."""

    number: int
    """From 1."""
    image: str
    """Path of the image."""
    class_name: str
    corners: list[str]
    """x1, y1, x2, y2 of each box."""


def find_localization(folder: str | os.PathLike) -> bool:
    """Whether a folder has annotations in one of FORMATS."""
    return any(row.find(Path(folder)) for row in FORMATS.values())


def open_localization(folder: str | os.PathLike) -> Annotations:
    """The Annotations of a folder in one of FORMATS; the class names of a split are sorted.

    - `train_boxes.tsv`, `val_boxes.tsv`: lines of file (below train or val), class, x1, y1, x2 and y2.
    - Tiny ImageNet: `train/<class>/<class>_boxes.txt` and `val/val_annotations.txt`, images in folders `images`.
    - Kaggle: `LOC_train_solution.csv` and `LOC_val_solution.csv`, whose lines name an image and list its classes and
      boxes; images are in ImageNet's archive (`ILSVRC/Data/CLS-LOC/train`) or in folders of the splits.
    - XML files in `Annotations/train` and `Annotations/val`, or in ImageNet's archive (`ILSVRC/Annotations/CLS-LOC`),
      for images in the same folders as above. The class is that of the image's folder, else that of its objects.
      An image in a class folder may have no XML file, as most of ImageNet's training images.
    """
    folder = Path(folder)
    parts = {kind: found for kind, row in FORMATS.items() if (found := row.find(folder))}
    kind, splits = next(iter(parts.items()))
    return Annotations(folder, tuple(splits), lambda split: FORMATS[kind].read(folder, split, splits[split]))


def pixel_box(x1: float, y1: float, x2: float, y2: float) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a box whose corners are pixels that belong to it."""
    return x1, y1, x2 + 1, y2 + 1


def _find_tables(folder):
    return _existing(lambda split: folder / f"{split}_boxes.tsv")


def _read_table(folder, split, file):
    def parse(line):
        name, class_name, *corners = line.split("\t")
        return path_inside(folder / split, name), class_name, corners

    return _split_of_lines(folder, [file], lambda _: parse)


def _find_tiny_imagenet(folder):
    train = sorted(folder.glob("train/*/*_boxes.txt"))
    lists = _existing(lambda split: folder / split / f"{split}_annotations.txt")
    return ({"train": train} if train else {}) | {split: [file] for split, file in lists.items()}


def _read_tiny_imagenet(folder, split, files):
    def parser(file):
        def parse(line):
            name, *words = line.split()
            class_name, corners = (file.parent.name, words) if split == "train" else (words[0], words[1:])
            return path_inside(file.parent / "images", name), class_name, corners

        return parse

    return _split_of_lines(folder, files, parser)


def _find_kaggle(folder):
    return _existing(lambda split: folder / f"LOC_{split}_solution.csv")


def _read_kaggle(folder, split, file):
    root = _image_folder(folder, split)
    images = _by_stem(images_in_folder(root))

    def parse(line):
        name, _, text = line.partition(",")
        words = text.split()
        if name == "ImageId":
            return None
        if len(set(words[::5])) != 1:
            raise ValueError("should have boxes of one class")
        corners = [word for index, word in enumerate(words) if index % 5]
        return images.get(name) or path_inside(root, f"{name}.JPEG"), words[0], corners

    return _split_of_lines(folder, [file], lambda _: parse)


def _find_xml(folder):
    roots = (folder / "ILSVRC" / "Annotations" / "CLS-LOC", folder / "Annotations" / "CLS-LOC", folder / "Annotations")
    for root in roots:
        if found := _existing(lambda split, root=root: root / split):
            return found
    return {}


def _read_xml(folder, split, xml_folder):
    root = _image_folder(folder, split)
    images, files = _by_stem(images_in_folder(root)), _by_stem(map(str, sorted(xml_folder.rglob("*.xml"))))
    records = read_files(partial(read_voc, to_box=pixel_box), files.values(), folder, READER)
    missing = {stem: str(root / f"{stem}.JPEG") for stem in files if stem not in images}
    found = []
    for stem, path in (images | missing).items():
        file, folders = files.get(stem), Path(path).relative_to(root).parts[:-1]
        record = records[file] if file else FileRecord(None, None)
        source = os.path.relpath(file or path, folder)
        found.append(_annotated(AnnotatedImage(path, source, stem, []), record, next(iter(folders), None)))
    return _sorted_split(found)


def _annotated(image, record, class_name):
    """The AnnotatedImage with the content of its XML file; `class_name`: that of its folder, or None."""
    content = record.result or {"size": None, "objects": []}
    objects = [AnnotatedObject(*item) for item in content["objects"]]
    class_name = class_name or next((item.class_name for item in objects), None)
    error = record.error or (None if class_name else "has neither a class folder nor an XML file with an object")
    size = content["size"] and tuple(content["size"])
    return image._replace(objects=objects, size=size, error=error, class_name=class_name or "")


def _existing(path_of):
    """{split: path} of the paths that exist."""
    return {split: path for split in SPLITS if (path := path_of(split)).exists()}


def _image_folder(folder, split):
    """The folder of a split's images."""
    places = (folder.joinpath(*IMAGENET, split), folder.joinpath(*IMAGENET[1:], split))
    return next((place for place in places if place.is_dir()), folder / split)


def _by_stem(paths: Iterable[str]) -> dict[str, str]:
    """{name of a file without suffix: its path}."""
    return {Path(path).stem: path for path in paths}


def _split_of_lines(folder, files, parser):
    """AnnotatedSplit of text files; `parser`: file -> function of a line -> the last fields of a BoxLine, or None."""
    images: dict[str, AnnotatedImage] = {}
    errors: list[str] = []
    for file in files:
        source, parse = os.path.relpath(file, folder), parser(file)
        for number, line in _lines(file):
            try:
                if parsed := parse(line):
                    _add(images, source, BoxLine(number, *parsed))
            except ValueError as error:
                errors.append(f"{source}, line {number} ({error_summary(error)})")
    if errors and not images:
        raise value_error("dataset", str(folder), "lists of boxes with valid lines", f"The first line: {errors[0]}.")
    return _sorted_split(images.values(), errors)


def _lines(file) -> Iterator[tuple[int, str]]:
    """Yields (number from 1, line) of the lines that are not blank."""
    try:
        text = read_text(file, MAX_LIST_BYTES)
    except ValueError as error:
        raise value_error("dataset", str(file), f"a file of boxes, which {error}") from error
    return ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _add(images, source, line):
    """Adds the boxes of a BoxLine to its image; ValueError unless they are four numbers each."""
    numbers = [float(text) for text in line.corners]
    if not line.class_name or not numbers or len(numbers) % 4 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"should have a class and four numbers for each box, not {line.class_name} {line.corners}")
    new = AnnotatedImage(line.image, source, Path(line.image).stem, [], class_name=line.class_name)
    image = images.setdefault(line.image, new)
    for first in range(0, len(numbers), 4):
        box = pixel_box(*numbers[first : first + 4])
        image.objects.append(AnnotatedObject(line.number, line.class_name, box))


def _sorted_split(images, errors=()):
    names = tuple(sorted({image.class_name for image in images} - {"", None}))
    return AnnotatedSplit(sorted(images, key=lambda image: image.path), names, errors)


FORMATS = {
    "tables": LocalizationFormat(_find_tables, _read_table),
    "tiny imagenet": LocalizationFormat(_find_tiny_imagenet, _read_tiny_imagenet),
    "kaggle": LocalizationFormat(_find_kaggle, _read_kaggle),
    "xml": LocalizationFormat(_find_xml, _read_xml),
}
"""Formats of annotations, in the order in which a folder is compared with them."""
