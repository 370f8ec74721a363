"""PASCAL VOC's XML files, one for each image -> `Annotations`; its masks of classes -> `MaskFolder`.

The format: Everingham et al. 2010, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html.
"""

import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from keras_resnet.data.annotation_checks import AnnotatedImage, AnnotatedObject
from keras_resnet.data.annotations import AnnotatedSplit, Annotations, path_inside, read_list, read_text
from keras_resnet.data.datasets import SPLITS
from keras_resnet.data.image_files import images_in_folder
from keras_resnet.data.manifests import read_files
from keras_resnet.data.mask_checks import ClassTable
from keras_resnet.data.mask_folders import MaskedSplit, MaskFolder, find_classes
from keras_resnet.errors import error_summary, value_error

FOLDERS = (("Annotations", "JPEGImages"), ("Annotations", "images"), ("annotations", "images"))
"""Names of the folders of XML files and of images."""
MASK_FOLDERS = ("SegmentationClass", "JPEGImages")
"""Names of the folders of masks and of images."""
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Classes of the masks, by their index."""
MAX_XML_BYTES = 2**22
"""Largest size of an XML file, enough for 10,000 objects."""
MAX_XML_DEPTH = 20
READER = "voc 1"
"""Name and version of `read_voc`, for the manifest of its results."""
MAX_NAME = 200
"""Longest name of a class."""


def find_voc(folder: str | os.PathLike) -> list[tuple[Path, Path]]:
    """Pairs of the folders of XML files and of images in a folder: of FOLDERS, or split folders that have both."""
    pairs = ((Path(folder, xml), Path(folder, images)) for xml, images in FOLDERS)
    if pair := next((pair for pair in pairs if pair[1].is_dir() and _has_xml(pair[0])), None):
        return [pair]
    return [(split, split) for split in (Path(folder, name) for name in SPLITS) if _has_xml(split)]


def _has_xml(folder):
    return next(folder.glob("*.xml"), None) is not None


def open_voc(folder: str | os.PathLike) -> Annotations:
    """The Annotations of a folder in which `find_voc` finds folders.

    The images of a split are named by ImageSets/Main/train.txt and so on; without these files, all images are one
    split. An image has the name of its XML file: paths inside the XML are ignored. The classes are the names in the XML
    files of all splits, sorted.
    """
    folder = Path(folder)
    parts = _find_parts(folder)
    records = read_files(read_voc, [file for part in parts.values() for file in part.files()], folder, READER)
    contents = [record.result for record in records.values() if record.error is None]
    class_names = tuple(sorted({name for content in contents for _, name, *_ in content["objects"]}))

    def read(split):
        part = parts[split]
        images = _images_by_name(part.images)
        found = []
        for name, file in zip(part.names, part.files(), strict=True):
            image = _image_of(name, images, part.images)
            found.append(_annotated(image, os.path.relpath(file, folder), name, records[file]))
        return AnnotatedSplit(found, class_names)

    return Annotations(folder, tuple(parts), read)


def find_voc_masks(folder: str | os.PathLike) -> bool:
    """Whether a folder has MASK_FOLDERS."""
    return all(Path(folder, name).is_dir() for name in MASK_FOLDERS)


def open_voc_masks(folder: str | os.PathLike) -> MaskFolder:
    """The MaskFolder of a folder in which `find_voc_masks` finds folders.

    The images of a split are named by ImageSets/Segmentation/train.txt and so on; without these files, all masks are
    one split. The classes are VOC_CLASSES, unless the file classes.txt names others, see `read_classes`.

    Raises:
        ValueError: for an invalid classes.txt.
    """
    folder = Path(folder)
    masks, images = (folder / name for name in MASK_FOLDERS)
    names = _listed(folder, "Segmentation") or {SPLITS[0]: sorted(path.stem for path in masks.glob("*.png"))}

    def read(split):
        paths = _images_by_name(images)
        return MaskedSplit(
            [(_image_of(name, paths, images), path_inside(masks, f"{name}.png")) for name in names[split]]
        )

    return MaskFolder(folder, tuple(names), read, find_classes(folder) or ClassTable(VOC_CLASSES))


def _listed(folder, task):
    """{split: names of its images} from ImageSets/TASK/train.txt and so on; empty without these files."""
    lists = {split: folder / "ImageSets" / task / f"{split}.txt" for split in SPLITS}
    return {split: read_list(file) for split, file in lists.items() if file.is_file()}


def _images_by_name(folder):
    """{path of an image below a folder, without its suffix: path}."""
    return {os.path.splitext(os.path.relpath(path, folder))[0]: path for path in images_in_folder(folder)}


def _image_of(name, paths, folder):
    """The path of an image from `_images_by_name`, or one that is missing."""
    return paths.get(name) or path_inside(folder, f"{name}.jpg")


class _Part(NamedTuple):
    """The files of a split."""

    xml: Path
    """Folder of the XML files."""
    images: Path
    """Folder of the images."""
    names: list[str]
    """Paths below both folders, without suffixes."""

    def files(self):
        """Paths of the XML files."""
        return [path_inside(self.xml, f"{name}.xml") for name in self.names]


def _find_parts(folder):
    """{split: _Part}."""
    pairs = find_voc(folder)
    if names := _listed(folder, "Main"):
        return {split: _Part(*pairs[0], listed) for split, listed in names.items()}
    return {
        xml.name if xml == images else "train": _Part(xml, images, sorted(path.stem for path in xml.glob("*.xml")))
        for xml, images in pairs
    }


def _annotated(image, source, name, record):
    """The AnnotatedImage of the path of an image, and the FileRecord of its XML file."""
    content = record.result or {"size": None, "objects": []}
    objects = [AnnotatedObject(*item) for item in content["objects"]]
    size = content["size"] and tuple(content["size"])
    return AnnotatedImage(image, source, name, objects, size, error=record.error)


def voc_box(x1: float, y1: float, x2: float, y2: float) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a box whose corners are pixels, counted from 1, that belong to it; of equal ones, no box."""
    first = 1 if x1 < x2 and y1 < y2 else 0
    return x1 - first, y1 - first, x2, y2


def read_voc(path: str | os.PathLike, to_box: Callable = voc_box) -> dict:
    """Reads an XML file.

    Coordinates count pixels from 1, and a box contains the pixels of both corners, so (1, 1, 640, 480) is all of an
    image of 640 x 480 pixels: here (0, 0, 640, 480). A box with xmin = xmax or ymin = ymax is empty.

    Args:
        path: of the file.
        to_box: xmin, ymin, xmax, ymax -> x1, y1, x2, y2, where files count in another way.

    Returns:
        {"size": [height, width] or None, "objects": rows of an AnnotatedObject}.

    Raises:
        ValueError: for a file that is not such XML, is too large, or has a document type, which could define entities.
    """
    root = _parse_xml(read_text(path, MAX_XML_BYTES))
    if root.tag != "annotation":
        raise value_error("root", root.tag, "an element 'annotation'")
    size = [round(_number(root, name, 0)) for name in ("size/height", "size/width")]
    items = enumerate(root.findall("object"), 1)
    return {"size": size if all(size) else None, "objects": [_object(number, item, to_box) for number, item in items]}


def _parse_xml(text):
    """The root of an XML text; ValueError for a text that is not XML, has a document type, or is too deep."""
    if "<!" in text.replace("<!--", "").replace("<![CDATA[", ""):
        raise ValueError("should be XML without a document type")
    try:
        return ElementTree.fromstring(text, ElementTree.XMLParser(target=_LimitedTree()))
    except ElementTree.ParseError as error:
        raise ValueError(f"should be XML: {error_summary(error)}") from error


class _LimitedTree(ElementTree.TreeBuilder):
    """A TreeBuilder that raises ValueError for an element deeper than MAX_XML_DEPTH."""

    depth = 0

    def start(self, tag, attributes):
        self.depth += 1
        if self.depth > MAX_XML_DEPTH:
            raise ValueError(f"should be XML of at most {MAX_XML_DEPTH} levels")
        return super().start(tag, attributes)

    def end(self, tag):
        self.depth -= 1
        return super().end(tag)


def _object(number, item, to_box):
    """A row of an AnnotatedObject."""
    name = item.findtext("name", "").strip()
    if not 0 < len(name) <= MAX_NAME:
        raise value_error("name", name, f"the name of a class of at most {MAX_NAME} characters")
    corners = (_number(item, f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax"))
    return number, name, to_box(*corners), None, item.findtext("difficult", "").strip() == "1"


def _number(element, name, default=None):
    text = element.findtext(name)
    if text is None and default is not None:
        return default
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise value_error(name, text, "a number")
    return number
