"""Masks as files state them -> `SemanticMasks`: of the size of their image, with indices of known classes."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_resnet.architecture.segmenter_spec import IGNORED, MAX_CLASSES
from keras_resnet.data.annotation_checks import StoredSize
from keras_resnet.data.labels import placeholder_names
from keras_resnet.data.semantic_masks import VALUES, SemanticMasks, mask_files, read_palette
from keras_resnet.errors import value_error

Color = tuple[int, int, int]


class ClassTable(NamedTuple):
    """The classes of masks."""

    names: tuple[str, ...]
    colors: tuple[Color, ...] | None = None

    def without(self, ignore_index: int | None) -> "ClassTable":
        """The classes without the last one, if its pixels do not count; other classes keep their indices."""
        if ignore_index is None or ignore_index != len(self.names) - 1:
            return self
        return ClassTable(self.names[:-1], None if self.colors is None else self.colors[:-1])


class MaskedImage(NamedTuple):
    """An image and the mask file that belongs to it."""

    image_name: str
    mask_name: str
    size: StoredSize
    """Of the image."""
    description: dict[str, Any]
    """Of the mask, from `describe_mask`."""

    @property
    def mask_orientation(self) -> int:
        """EXIF orientation by which the mask is made upright: that of the image, if both have the same stored size."""
        is_stored = tuple(self.description["size"]) == self.size.stored != self.size.upright
        return self.size.orientation if is_stored else 1

    def errors(self, table: ClassTable, classes: np.ndarray | None) -> Iterator[str]:
        """Yields a message for each reason why the mask fits neither its image nor the classes.

        `classes`: the class of each value, see `class_values`.
        """
        size = tuple(self.description["size"])
        if size not in (self.size.upright, self.size.stored):
            pixels = [f"{width} x {height}" for height, width in (size, self.size.upright)]
            yield f"{self.mask_name} (has {pixels[0]} pixels, but its image {self.image_name} has {pixels[1]})"
        values, count = [value for value, *_ in self.description["values"]], len(table.names)
        if unknown := [v for v in values if count <= (v if classes is None else classes[v]) < IGNORED]:
            yield f"{self.mask_name} (has the indices {unknown[:10]}, but there are {count} classes, from index 0)"


def placeholder_table(descriptions: Iterable[dict], classes: np.ndarray | None, where: str | os.PathLike) -> ClassTable:
    """Placeholders for the classes up to the highest index; warns if less than half of them occur.

    Args:
        descriptions: of the training masks, from `describe_mask`.
        classes: the class of each value, see `class_values`.
        where: name of the data set, for the warning.
    """
    values = np.array(sorted({value for mask in descriptions for value, *_ in mask["values"]}), int)
    occurring = {*(values if classes is None else classes[values]).tolist()} - {IGNORED}
    names = placeholder_names(max(occurring, default=-1) + 1)
    if len(occurring) < len(names) / 2:
        warnings.warn(
            f"Only {len(occurring)} of the {len(names)} indices up to the highest occur in the masks of {where}: "
            "values of masks should be indices of classes, from 0 without gaps",
            stacklevel=6,
        )
    return ClassTable(tuple(names))


def check_table(table: ClassTable, where: str | os.PathLike) -> None:
    """Raises ValueError for fewer than two classes, or more than MAX_CLASSES; `where` names the data set."""
    if not 2 <= len(table.names) <= MAX_CLASSES:
        expected = f"a data set whose masks have 2 to {MAX_CLASSES} classes, not {len(table.names)}"
        hint = f"Pixels of value {IGNORED} do not count: masks of two classes have the values 0 and 1."
        raise value_error("dataset", str(where), expected, hint)


def palette_colors(masks: Sequence[tuple[str | bytes, dict]], count: int) -> tuple[Color, ...] | None:
    """Colours of `count` classes in the palettes of masks; None if they have none, or differ, with a warning.

    Args:
        masks: path or contents of each mask file, and what `describe_mask` says of it.
        count: number of classes.
    """
    used: dict[int, Color] = {}
    first, differing = None, set()
    for number, (source, description) in enumerate(masks):
        for value, _, found in description["values"]:
            if found is None:
                continue
            color = _color(found)
            first = source if first is None else first
            if used.setdefault(value, color) != color:
                differing.add(number)
    if differing:
        warnings.warn(
            f"The palettes of {len(differing)} masks have other colours for the same indices than those before: the "
            "classes of pixels are their indices, whatever the colours",
            stacklevel=6,
        )
    if differing or first is None:
        return None
    palette = {index: _color(found) for index, found in enumerate(read_palette(first))} | used
    colors = tuple(palette[index] for index in range(count) if index in palette)
    is_grey_ramp = all(color == (index,) * 3 for index, color in enumerate(colors))  # Pillow's, if none is given
    return None if is_grey_ramp or len(colors) < count else colors


def _color(channels):
    red, green, blue = channels
    return red, green, blue


def to_masks(images: Sequence[MaskedImage], files: Sequence[str | bytes], classes: np.ndarray | None) -> SemanticMasks:
    """The SemanticMasks of images without errors, and of the paths or contents of their mask files."""
    orientations = [image.mask_orientation for image in images]
    counts = np.zeros((len(images), VALUES), "uint32")
    for row, image in zip(counts, images, strict=True):
        for value, count, _ in image.description["values"]:
            row[value] = count
    return mask_files(
        files,
        np.array([image.size.upright for image in images]),
        [image.mask_name for image in images],
        orientations if any(orientation > 1 for orientation in orientations) else None,
        classes,
        counts,
    )
