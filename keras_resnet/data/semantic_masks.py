"""`SemanticMasks`: the class of every pixel, from PNG files, arrays or the masks of objects; checks of mask files."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np

from keras_resnet.architecture.segmenter_spec import IGNORED
from keras_resnet.data.image_files import ROWS, UnreadableImageError, orientation_of, turn_upright, with_pil_image
from keras_resnet.errors import check_integers, value_error

MODES = {
    # Pillow's mode -> what such a file is called in messages; None for masks
    "1": None,
    "L": None,
    "P": None,
    "I;16": "grey with 16 bits",
    "I": "grey with more than 8 bits",
    "LA": "grey with transparency",
    "RGB": "colours without a palette (RGB)",
    "RGBA": "colours without a palette (RGBA)",
}
"""What a PNG file may contain."""
VALUES = 256
"""Number of values that a pixel of a mask file may have."""


class UnreadableMaskError(ValueError):
    """A file that is no mask, or a damaged one."""

    def __init__(self, name, reason):
        super().__init__(
            "Expected a mask: a PNG file whose pixels are class indices in eight bits, grey or of a palette. "
            f"Received: {name} ({reason})"
        )
        self.reason = reason


@dataclass(frozen=True)
class SemanticMasks:
    """The class of every pixel of N images, read when it is needed, by any number of threads.

    >>> import numpy as np
    >>> from keras_resnet.data.semantic_masks import masks_in_memory
    >>> masks = masks_in_memory(np.array([[[0, 1]], [[1, 255]]]))
    >>> len(masks), masks.sizes.tolist(), masks.read(1), masks.class_counts(2)
    (2, [[1, 2], [1, 2]], array([[  1, 255]], dtype=uint8), array([1, 2]))

    The constructor raises ValueError for arrays of other shapes.
    """

    sizes: np.ndarray
    """(N, 2) int32: height and width of the upright images."""
    source: Callable[[int], np.ndarray]
    """Position -> (H, W) uint8, as `read` returns it; raises ValueError."""
    positions: np.ndarray
    """(N,) int64: position of each image's mask in the source."""
    counts: np.ndarray | None = None
    """(N, 256) uint32: number of pixels of each value; None if they have not been counted."""

    def __post_init__(self):
        count = len(self.positions)
        shapes = {"sizes": (count, 2), "positions": (count,), "counts": (count, VALUES)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise value_error(name, array.shape, f"an array of shape {shape}, as there are {count} masks")

    def __len__(self):
        return len(self.positions)

    def select(self, indices: Any) -> "SemanticMasks":
        """The SemanticMasks of some of the images: a slice, indices in any order, or N times bool."""
        indices = np.atleast_1d(np.arange(len(self))[indices])
        counts = None if self.counts is None else self.counts[indices]
        return SemanticMasks(self.sizes[indices], self.source, self.positions[indices], counts)

    def read(self, index: int) -> np.ndarray:
        """The mask of an image.

        Returns:
            (H, W) uint8, class indices of the pixels of the upright image; IGNORED (255) for pixels that do not count.

        Raises:
            ValueError: for a mask that cannot be read any more, or has another size than its image; it names the file.
        """
        return self.source(int(self.positions[index]))

    def class_counts(self, num_classes: int) -> np.ndarray:
        """(num_classes,) integers, the number of pixels of each class; reads the masks unless they are counted."""
        return self.pixel_counts[:, :num_classes].sum(axis=0, dtype=int)

    @cached_property
    def pixel_counts(self) -> np.ndarray:
        """(N, 256) uint32, the number of pixels of each value in each mask, of which IGNORED is the last."""
        if self.counts is not None:
            return self.counts
        with ThreadPool() as threads:
            counts = threads.map(lambda index: count_values(self.read(index)), range(len(self)))
        return np.array(counts, "uint32").reshape(-1, VALUES)

    def label_matrix(self, num_classes: int) -> np.ndarray:
        """(N, num_classes) uint8: 1 for each class that has pixels in the image, as labels of a Split."""
        return (self.pixel_counts[:, :num_classes] > 0).astype("uint8")


def count_values(mask: np.ndarray) -> np.ndarray:
    """(256,) integers, the number of pixels of each value in a mask (H, W) uint8."""
    counts = np.zeros(VALUES, int)
    for top in range(0, len(mask), ROWS):  # NumPy copies what it counts to integers of eight bytes
        counts += np.bincount(mask[top : top + ROWS].ravel(), minlength=VALUES)
    return counts


def class_values(ignore_index: int | None = None, first: int = 0) -> np.ndarray | None:
    """The class of each value in a mask file, for `mask_files`; None if values are classes.

    >>> from keras_resnet.data.semantic_masks import class_values
    >>> class_values(ignore_index=2)[:4], class_values(first=1)[:4]
    (array([  0,   1, 255,   3], dtype=uint8), array([255,   0,   1,   2], dtype=uint8))

    Args:
        ignore_index: value of pixels that do not count, besides IGNORED.
        first: value of the first class; pixels with values below do not count.

    Raises:
        ValueError: for an `ignore_index` that is not an integer from 0 to 255.
    """
    if ignore_index is None and not first:
        return None
    classes = np.arange(VALUES) - first
    classes[[*range(first), IGNORED]] = IGNORED
    if ignore_index is not None:
        check_integers(0, IGNORED, ignore_index=ignore_index)
        classes[ignore_index] = IGNORED
    return classes.astype("uint8")


@dataclass(frozen=True)
class _MaskFiles:
    """Source of SemanticMasks in files; the fields are the arguments of `mask_files`."""

    files: Sequence[str | bytes] | np.ndarray
    sizes: np.ndarray
    names: Sequence[str]
    orientations: Sequence[int] | None
    classes: np.ndarray | None

    def __call__(self, position: int) -> np.ndarray:
        name, size = self.names[position], self.sizes[position]
        try:
            mask = read_mask(self.files[position], name)
        except OSError as error:
            raise UnreadableMaskError(name, error.strerror or str(error)) from error
        mask = mask if self.orientations is None else turn_upright(mask, self.orientations[position])
        if mask.shape != tuple(size):
            raise UnreadableMaskError(name, f"it has {_size_text(mask.shape)} pixels, but its image {_size_text(size)}")
        return mask if self.classes is None else self.classes[mask]


def mask_files(
    files: Sequence[str | bytes] | np.ndarray,
    sizes: np.ndarray,
    names: Sequence[str],
    orientations: Sequence[int] | None = None,
    classes: np.ndarray | None = None,
    counts: np.ndarray | None = None,
) -> SemanticMasks:
    """SemanticMasks of N PNG files.

    Args:
        files: paths, or contents.
        sizes: (N, 2) integers, height and width of the upright images.
        names: of the files, for messages.
        orientations: EXIF orientations by which the stored pixels of the masks are made upright; None: all are upright.
        classes: (256,) uint8, the class of each value in the files; None: the values are the classes.
        counts: (N, 256) integers, the number of pixels of each value in the files; None: not counted.
    """
    if counts is not None:
        counts = counts.astype("uint32") if classes is None else _counts_of_classes(counts, classes)
    sizes = np.asarray(sizes, "int32").reshape(-1, 2)
    source = _MaskFiles(files, sizes, names, orientations, classes)
    return SemanticMasks(sizes, source, np.arange(len(files)), counts)


def _counts_of_classes(counts, classes):
    """Numbers of pixels of each class, from those of each value in the files."""
    found = np.zeros(counts.shape, "uint32")
    for value, number in enumerate(classes):
        found[:, number] += counts[:, value].astype("uint32")
    return found


def masks_in_memory(masks: np.ndarray, classes: np.ndarray | None = None) -> SemanticMasks:
    """SemanticMasks of an array (N, H, W) of integers from 0 to 255; `classes` as for `mask_files`."""
    masks = np.asarray(masks).astype("uint8")
    masks = masks if classes is None else classes[masks]
    counts = np.array([count_values(mask) for mask in masks], "uint32").reshape(-1, VALUES)
    sizes = np.tile(np.array(masks.shape[1:], "int32"), (len(masks), 1))
    return SemanticMasks(sizes, masks.__getitem__, np.arange(len(masks)), counts)


def read_mask(source: str | os.PathLike | bytes, name: str | None = None) -> np.ndarray:
    """Reads a PNG file of class indices, upright by its own EXIF orientation.

    Args:
        source: path or contents of the file. A pixel is the index of a class: in grey files of eight bits, its value;
            in files with a palette, its index; in files of one bit, 0 or 1.
        name: of the file, for messages; None: its path.

    Returns:
        (H, W) uint8.

    Raises:
        UnreadableMaskError: a ValueError, for files of other formats, with 16 bits, with colours that are not a
            palette, or with two or four bits of grey, which libraries scale to eight bits, for damaged ones, and for
            those beyond the limits of `image_limits.py`.
        OSError: for a file that cannot be opened.
    """
    return _with_mask(source, name, lambda image, mask: mask)


def describe_mask(source: str | os.PathLike | bytes) -> dict:
    """What is known about a mask before training; raises as `read_mask`.

    Returns:
        {"size": [height, width], "values": [[value, number of pixels, its colour in the palette or None], ...]}.
    """
    return _with_mask(source, None, _description)


def _description(image, mask):
    palette = palette_of(image)
    counts = count_values(mask)
    values = np.flatnonzero(counts).tolist()
    colors = [palette[value] if value < len(palette) else None for value in values]
    return {
        "size": list(mask.shape),
        "values": [list(row) for row in zip(values, counts[values].tolist(), colors, strict=True)],
    }


def palette_of(image) -> list[list[int]]:
    """[[red, green, blue], ...] of a PIL image; empty if it has no palette."""
    colors = image.palette.palette if image.mode == "P" and image.palette is not None else b""
    return np.frombuffer(colors, "uint8")[: len(colors) // 3 * 3].reshape(-1, 3).tolist()


def read_palette(source: str | os.PathLike | bytes) -> list[list[int]]:
    """[[red, green, blue], ...] in the palette of a mask file; raises as `read_mask`."""
    return _with_mask(source, None, lambda image, mask: palette_of(image))


def _with_mask(source, name, function):
    """Result of a function of the PIL image in a mask file, and its pixels (H, W) uint8."""

    def apply(image):
        _check_format(image)
        mask = np.array(image, "uint8")
        return function(image, turn_upright(mask, orientation_of(image)))

    try:
        return with_pil_image(source, apply)
    except UnreadableImageError as error:
        named = name or (f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source))
        raise UnreadableMaskError(named, error.reason) from error


def _check_format(image):
    """Raises ValueError for a PIL image that is no mask, before its pixels are read."""
    if image.format != "PNG":
        raise ValueError(f"a {image.format} file, not PNG")
    if image.mode not in MODES or MODES[image.mode]:
        kind = MODES.get(image.mode, f"Pillow's mode {image.mode}")
        raise ValueError(f"it is {kind}; the pixels of a mask should be class indices in eight bits, grey or a palette")
    raw = image.tile[0][3] if image.tile else image.mode
    if raw in ("L;2", "L;4"):
        raise ValueError(f"it is grey with {raw[-1]} bits, which libraries scale to eight; save it with eight bits")


def _size_text(size: Iterable[int]) -> str:
    height, width = size
    return f"{width} x {height}"
