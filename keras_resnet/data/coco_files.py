"""COCO's JSON files of instances, with the folders of their images -> `Annotations`.

The format: https://cocodataset.org/#format-data.
"""

import os
import re
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from keras_resnet.data.annotation_checks import AnnotatedImage, AnnotatedObject
from keras_resnet.data.annotations import AnnotatedSplit, Annotations, path_inside
from keras_resnet.data.datasets import SPLITS
from keras_resnet.errors import error_summary, value_error
from keras_resnet.schema import MAX_JSON_VALUES, checked, parse_json

PATTERNS = (
    "annotations/instances*.json",
    "annotations/*.json",
    "*/_annotations.coco.json",
    "_annotations.coco.json",
    "instances*.json",
    "annotations.json",
)
"""Where a folder has annotation files, as COCO and Roboflow write them; the first pattern with files counts."""
MAX_BYTES = 2**31
"""Largest size of an annotation file; COCO's largest, instances_train2017.json, has 449 MB."""
BYTES_PER_VALUE, BYTES_PER_CONTAINER = 2, 8
"""Least mean length of a JSON value, such as "1," in lengths of runs, and of a list or an object, such as a polygon."""
HEAD_BYTES = 2**16
"""Size of the beginning of a file that has one of the lists of COCO; before it, there are only info and licenses."""


class _Category(TypedDict):
    id: int
    name: str


class _File(TypedDict):
    images: list[Any]
    annotations: list[Any]
    categories: list[_Category]


class _Image(TypedDict):
    id: int | str
    file_name: str
    height: NotRequired[int | None]
    width: NotRequired[int | None]


class _Annotation(TypedDict):
    image_id: int | str
    category_id: int
    bbox: tuple[float, ...]
    id: NotRequired[int]
    iscrowd: NotRequired[bool | int | None]
    area: NotRequired[float | None]


def find_coco(folder: str | os.PathLike) -> list[str]:
    """Sorted paths of the annotation files in a folder, one of which has COCO's name or beginning; empty without."""
    for pattern in PATTERNS:
        files = sorted(str(path) for path in Path(folder).glob(pattern) if path.is_file())
        if any(map(_may_be_coco, files)):
            return files
    return []


def _may_be_coco(file):
    """Whether a file has a name of COCO's or Roboflow's, or begins as an object with one of the lists of COCO."""
    if re.match(r"instances_|_annotations\.coco", os.path.basename(file)):
        return True
    with open(file, "rb") as opened:
        head = opened.read(HEAD_BYTES)
    return re.match(rb'\s*\{.*"(images|annotations|categories)"\s*:\s*\[', head, re.DOTALL) is not None


def open_coco(folder: str | os.PathLike) -> Annotations:
    """The Annotations of a folder in which `find_coco` finds files.

    A split is named by its file or folder: "instances_train2017.json" is train. Its images are in a folder of the same
    name (train2017 or train), beside the file, in "images", or in the folder itself.

    Raises:
        ValueError: for two files of one split, or several files without the name of a split.
    """
    files, by_split = find_coco(folder), {}
    for file in files:
        split = _split_name(os.path.relpath(file, folder)) or ("train" if len(files) == 1 else None)
        if split is None or split in by_split:
            expected = f"a folder with one annotation file for each of {', '.join(SPLITS)}"
            raise value_error("dataset", [os.path.relpath(path, folder) for path in files], expected)
        by_split[split] = file
    return Annotations(Path(folder), tuple(by_split), lambda split: _read(by_split[split], split, Path(folder)))


def _split_name(path):
    """The first name of a split among the words of a path, or None."""
    return next((word for word in re.split(r"[^a-z]+", path.lower()) if word in SPLITS), None)


def _read(file, split, folder):
    """The AnnotatedSplit of a file."""
    name = os.path.relpath(file, folder)
    content = _parse(file)
    categories = _categories(content["categories"], name)
    errors: list[str] = []
    images: dict[int | str, AnnotatedImage] = {}

    def add_image(row):
        image = _image(row, name)
        if image.image_id in images:
            raise value_error("id", image.image_id, "another one for each image")
        images[image.image_id] = image

    def add_object(row):
        image_id, item = _object(row, categories)
        if image_id not in images:
            raise value_error("image_id", image_id, "the id of an image in the file")
        images[image_id].objects.append(item)

    _for_each(content["images"], f"{name}, image", add_image, errors)
    _for_each(content["annotations"], f"{name}, object", add_object, errors)
    root = _image_folder(file, split, folder, [image.path for image in images.values()])
    located = [image._replace(path=os.path.join(root, image.path)) for image in images.values()]
    return AnnotatedSplit(located, tuple(categories.values()), errors)


def _parse(file):
    """The content of a file as a _File."""
    size = os.path.getsize(file)
    if size > MAX_BYTES:
        raise value_error("dataset", str(file), f"a JSON file of at most {MAX_BYTES} bytes, not {size}")
    try:
        limits = (MAX_JSON_VALUES + size // length for length in (BYTES_PER_VALUE, BYTES_PER_CONTAINER))
        return parse_json(Path(file).read_bytes(), _File, "content", MAX_BYTES, *limits)
    except ValueError as error:
        raise ValueError(f"Expected a JSON file of COCO ({error}). Received: {file}") from error


def _categories(rows, name):
    """{id: name} in the order of the ids."""
    categories = {row["id"]: row["name"] for row in sorted(rows, key=lambda row: row["id"])}
    if len(set(categories.values())) < len(rows):
        raise value_error(
            f"{name}.categories", [row["name"] for row in rows], "categories with different ids and names"
        )
    return categories


def _for_each(rows, name, function, errors):
    """Calls a function with each of some JSON objects; a message for each ValueError is appended to `errors`."""
    for index, row in enumerate(rows):
        try:
            function(row)
        except ValueError as error:
            number = row.get("id", index) if isinstance(row, dict) else index
            errors.append(f"{name} {str(number)[:50]} ({error_summary(error)})")


def _image(row, source):
    """An AnnotatedImage whose path is the name of its file."""
    row = checked(row, _Image, "image")
    height, width = row.get("height"), row.get("width")
    path_inside("", row["file_name"])
    return AnnotatedImage(row["file_name"], source, row["id"], [], (height, width) if height and width else None)


def _object(row, categories):
    """(id of the image, AnnotatedObject)."""
    row = checked(row, _Annotation, "annotation")
    if row["category_id"] not in categories:
        raise value_error("category_id", row["category_id"], "the id of a category in the file")
    if len(row["bbox"]) != 4:
        raise value_error("bbox", row["bbox"], "x, y, width and height")
    x, y, width, height = row["bbox"]
    return row["image_id"], AnnotatedObject(
        row.get("id", 0),
        categories[row["category_id"]],
        (x, y, x + width, y + height),
        row.get("segmentation") or None,
        crowd=bool(row.get("iscrowd")),
        area=row.get("area"),
    )


def _image_folder(file, split, folder, names):
    """The first folder with most of the first 100 images."""
    stem = Path(file).stem.removeprefix("instances_")
    candidates = [Path(folder, parent, name) for name in (stem, split) for parent in ("", "images")]
    candidates += [Path(file).parent, folder / "images", folder]
    return max(candidates, key=lambda root: sum(os.path.isfile(root / name) for name in names[:100]))
