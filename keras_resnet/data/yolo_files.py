"""YOLO's text files, one for each image, with their data.yaml -> `Annotations`.

The format: https://docs.ultralytics.com/datasets/detect/ and https://docs.ultralytics.com/datasets/segment/.
"""

import os
import re
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from keras_resnet.data.annotation_checks import AnnotatedImage, AnnotatedObject
from keras_resnet.data.annotations import AnnotatedSplit, Annotations, path_inside, read_list, read_text
from keras_resnet.data.datasets import SPLITS
from keras_resnet.data.image_files import images_in_folder
from keras_resnet.data.manifests import FileRecord, read_files
from keras_resnet.errors import error_summary, value_error
from keras_resnet.schema import checked

NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
"""Names of the file that describes a data set."""
MAX_YAML_BYTES = 2**18
"""Largest size of a data.yaml; that of the 1,203 classes of LVIS has 30,000 bytes."""
MAX_YAML_DEPTH = 20
MAX_LABEL_BYTES = 2**22
"""Largest size of the text file of an image."""
READER = "yolo 1"
"""Name and version of `read_yolo`, for the manifest of its results."""


class _Description(TypedDict):
    names: list[str] | dict[int, str]
    path: NotRequired[str | None]
    train: NotRequired[str | list[str] | None]
    val: NotRequired[str | list[str] | None]
    valid: NotRequired[str | list[str] | None]
    validation: NotRequired[str | list[str] | None]
    test: NotRequired[str | list[str] | None]


def find_yolo(name: str | os.PathLike) -> str | None:
    """Path of the data.yaml in a folder, or of a YAML file itself; None for anything else."""
    if str(name).endswith((".yaml", ".yml")) and os.path.isfile(name):
        return str(name)
    return next((str(path) for path in (Path(name, file) for file in NAMES) if path.is_file()), None)


def open_yolo(name: str | os.PathLike) -> Annotations:
    """The Annotations of a data.yaml that `find_yolo` finds: its classes, and its images for training and testing.

    Folders of images, or text files that list them, are searched for below "path", then in the folder of the
    data.yaml. The objects of images/train/1.jpg are in labels/train/1.txt; an image without such a file has none.

    Raises:
        ValueError: for another file, for paths that lead out of the folder, and for splits without such files.
    """
    file = Path(str(find_yolo(name)))
    folder = file.parent
    try:
        description = checked(parse_yaml(read_text(file, MAX_YAML_BYTES)), _Description, file.name)
    except ValueError as error:
        raise value_error("dataset", str(file), f"a description of a YOLO data set ({error_summary(error)})") from error
    class_names = _class_names(description["names"])
    parents = (folder / _relative(description.get("path") or ""), folder)
    parts = {split: description[split] for split in SPLITS if description.get(split)}

    def read(split):
        paths = parts[split] if isinstance(parts[split], list) else [parts[split]]
        return _read([image for path in paths for image in _images(path, parents)], class_names, folder)

    return Annotations(folder, tuple(parts), read)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; ValueError for one that is too deep, has references, or is not YAML."""
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_YAML_DEPTH or isinstance(event, yaml.AliasEvent):
                raise ValueError(f"should be YAML without references, of at most {MAX_YAML_DEPTH} levels")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"should be YAML: {' '.join(str(error).split())}") from error


def _class_names(names):
    """The names in the order of their numbers."""
    numbered = names if isinstance(names, dict) else dict(enumerate(names))
    if sorted(numbered) != list(range(len(numbered))) or len(set(numbered.values())) < len(numbered):
        raise value_error("names", names, "different names, numbered from 0")
    return tuple(numbered[number] for number in range(len(numbered)))


def _relative(path):
    """A path below the folder of the data.yaml: Roboflow's "../train/images" is in it; "" for one elsewhere."""
    path = re.sub(r"^(\.{1,2}/)+", "", path)
    return "" if os.path.isabs(path) or ".." in path.split("/") else path


def _images(path, parents):
    """Paths of the images in a folder, or in a list of images, that a data.yaml names."""
    inner = _relative(path)
    places = [path_inside(parent, inner) for parent in parents if inner]
    found = next((place for place in places if os.path.exists(place)), None)
    if found is None:
        raise value_error("dataset", path, f"a folder of images, or a list of images, in {parents[-1]}")
    if os.path.isdir(found):
        return images_in_folder(found)
    return [path_inside(os.path.dirname(found), line.removeprefix("./")) for line in read_list(found)]


def _read(images, class_names, folder):
    """The AnnotatedSplit of images."""
    files = {image: _label_file(image, folder) for image in images}
    existing = [file for file in files.values() if os.path.exists(file)]
    if images and not existing:
        raise value_error("dataset", str(folder), f"a data set with text files of objects, such as {files[images[0]]}")
    records = read_files(read_yolo, existing, folder, READER)
    annotated: list[AnnotatedImage] = []
    errors: list[str] = []
    for image, file in files.items():
        record, source = records.get(file, FileRecord(None, None)), os.path.relpath(file, folder)
        found = AnnotatedImage(image, source, Path(image).stem, [], relative=True, error=record.error)
        for number, label, *geometry in record.result or ():
            if label < len(class_names):
                found.objects.append(AnnotatedObject(number, class_names[label], *geometry))
            else:
                errors.append(f"{source}, object {number} (class {label} of {len(class_names)}, from 0)")
        annotated.append(found)
    return AnnotatedSplit(annotated, class_names, errors)


def _label_file(image, folder):
    """Path of the text file of an image: in the folder, below "labels" instead of "images", or else beside it."""
    before, images, after = f"/{Path(os.path.relpath(image, folder)).as_posix()}".rpartition("/images/")
    path = os.path.join(folder, f"{before}/labels/{after}".removeprefix("/")) if images else image
    return os.path.splitext(path)[0] + ".txt"


def read_yolo(path: str | os.PathLike) -> list:
    """Reads the objects of an image: on each line, the class, and centre, width and height of the box, or a polygon.

    Returns:
        Rows of (line, class, box, polygons or None), in shares of the image's width and height.

    Raises:
        ValueError: for any other line.
    """
    lines = enumerate(read_text(path, MAX_LABEL_BYTES).splitlines(), 1)
    return [_object(number, line.split()) for number, line in lines if line.strip()]


def _object(number, words):
    """A row of `read_yolo`."""
    try:
        label, numbers = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        label, numbers = -1, []
    is_polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
    if label < 0 or not (is_polygon or len(numbers) == 4):
        raise value_error(f"line {number}", " ".join(words), "a class and four numbers, or a class and a polygon")
    if is_polygon:
        x, y = numbers[::2], numbers[1::2]
        return number, label, (min(x), min(y), max(x), max(y)), [numbers]
    x, y, width, height = numbers
    return number, label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2), None
