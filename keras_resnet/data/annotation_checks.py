"""Objects as annotation files state them -> `Objects`: checked, and in the pixels of the upright image."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from keras_resnet.data.image_checks import ImageCheck
from keras_resnet.data.image_files import REVERSALS, orientation_of, turn_upright, with_pil_image
from keras_resnet.data.masks import TOLERANCE, check_segmentation, decode_mask, encode_mask, mask_area
from keras_resnet.data.objects import Objects
from keras_resnet.errors import error_summary


class StoredSize(NamedTuple):
    """Orientation and size from the header of an image file."""

    orientation: int
    """EXIF orientation, from 1 to 8."""
    height: int
    width: int
    """Of the stored pixels."""

    @property
    def stored(self) -> tuple[int, int]:
        """Height and width of the stored pixels."""
        return self.height, self.width

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        return self.stored[::-1] if self.orientation > 4 else self.stored


class AnnotatedObject(NamedTuple):
    """An object as an annotation file states it."""

    number: int
    """For messages: its id in a COCO file, else its number in its file, from 1; in a YOLO file, that of its line."""
    class_name: str
    box: tuple[float, ...]
    """x1, y1, x2, y2."""
    segmentation: Any = None
    """In COCO's form; None without a mask."""
    difficult: bool = False
    crowd: bool = False
    area: float | None = None
    """In pixels, as stated; None for that of the mask, else of the box."""


class AnnotatedImage(NamedTuple):
    """An image as an annotation file states it."""

    path: str
    source: str
    """The annotation file, for messages."""
    image_id: int | str
    objects: list[AnnotatedObject]
    size: tuple[int, int] | None = None
    """Height and width in the annotation file; None if they are not there."""
    relative: bool = False
    """Whether coordinates are shares of the width and height of the upright image."""
    error: str | None = None
    """Why the annotation cannot be read."""
    class_name: str | None = None
    """The class of the image and of all its objects; None if each object has its own."""


def with_size(check: ImageCheck) -> ImageCheck:
    """An ImageCheck whose result is a StoredSize."""
    return ImageCheck(f"{check.name} and size", partial(_check_with_size, check.function), check.libraries)


def _check_with_size(check, source):
    check(source)
    return with_pil_image(source, lambda image: StoredSize(orientation_of(image), image.height, image.width))


def check_image(image: AnnotatedImage, found: StoredSize) -> tuple[AnnotatedImage | None, list[str]]:
    """(the image with the objects that are valid, a message for each that is not); no image if its size differs.

    Coordinates are in the pixels of the upright image, unless the size in the annotation file is that of the stored
    pixels, before the rotation by EXIF: then boxes and masks are rotated, too. Boxes are clipped to the image.
    """
    if image.size not in (None, found.upright, found.stored):
        sizes = [f"{width} x {height}" for height, width in (image.size, found.upright)]
        return None, [f"{image.path} (has {sizes[1]} pixels, but {sizes[0]} in {image.source})"]
    is_stored = image.size == found.stored != found.upright
    objects, errors = [], []
    for item in image.objects:
        try:
            if image.class_name not in (None, item.class_name):
                raise ValueError(f"its class is {item.class_name}, but that of the image {image.class_name}")
            scaled = _scaled(item, found.upright) if image.relative else item
            checked = _checked(scaled, found.stored if is_stored else found.upright)
            objects.append(_turned(checked, found) if is_stored else checked)
        except ValueError as error:
            errors.append(f"{image.source}, object {item.number} ({error_summary(error)})")
    return image._replace(objects=objects, size=found.upright), errors


def _checked(item, size):
    """An AnnotatedObject with an area, its box clipped to the image; ValueError for one that is empty or outside."""
    limits = (size[1], size[0]) * 2
    if not all(-TOLERANCE <= side <= limit + TOLERANCE for side, limit in zip(item.box, limits, strict=True)):
        raise ValueError(f"its box {list(item.box)} is outside of the image of {size[1]} x {size[0]} pixels")
    x1, y1, x2, y2 = (min(max(side, 0), limit) for side, limit in zip(item.box, limits, strict=True))
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"its box {list(item.box)} is empty")
    if item.segmentation is not None:
        check_segmentation(item.segmentation, size)
    area = item.area
    if area is None:
        area = (x2 - x1) * (y2 - y1) if item.segmentation is None else mask_area(item.segmentation, size)
    return item._replace(box=(x1, y1, x2, y2), area=area)


def _scaled(item, size):
    """An AnnotatedObject in pixels, from shares of the width and height."""
    sides = np.array(size[::-1], float)
    return _with_points(item, lambda points: points * sides)


def _turned(item, found):
    """An AnnotatedObject in the upright image, from the stored pixels."""
    reversals = np.array(REVERSALS[found.orientation][::-1])
    sides = np.array(found.upright[::-1], float)

    def turn(points):
        points = points[:, ::-1] if found.orientation > 4 else points
        return np.where(reversals, sides - points, points)

    if not isinstance(item.segmentation, dict):
        return _with_points(item, turn)
    mask = turn_upright(decode_mask(item.segmentation, found.stored), found.orientation)
    return _with_points(item._replace(segmentation=None), turn)._replace(segmentation=encode_mask(mask))


def _with_points(item, function: Callable[[np.ndarray], np.ndarray]):
    """An AnnotatedObject whose box and polygons are mapped by a function of points (N, 2), x and y."""
    corners = np.sort(function(np.array(item.box, float).reshape(2, 2)), axis=0)
    polygons = item.segmentation
    if polygons is not None:
        polygons = [function(np.array(polygon, float).reshape(-1, 2)).ravel().tolist() for polygon in polygons]
    return item._replace(box=tuple(corners.ravel().tolist()), segmentation=polygons)


def to_objects(images: Iterable[AnnotatedImage], class_names: Sequence[str]) -> Objects:
    """The Objects of images from `check_image`."""
    images = list(images)
    labels = {name: label for label, name in enumerate(class_names)}
    items = [item for image in images for item in image.objects]
    masks = np.empty(len(items), object)
    for index, item in enumerate(items):  # NumPy would make equally long polygons one array
        masks[index] = item.segmentation
    return Objects(
        np.repeat(np.arange(len(images)), [len(image.objects) for image in images]),
        np.array([item.box for item in items], "float32").reshape(-1, 4),
        np.array([labels[item.class_name] for item in items], "int32"),
        np.array([item.crowd for item in items], bool),
        np.array([item.difficult for item in items], bool),
        np.array([item.area for item in items], float),
        masks if any(mask is not None for mask in masks) else None,
        np.array([image.size for image in images], "int32").reshape(-1, 2),
        np.array([image.image_id for image in images], object),
    )
