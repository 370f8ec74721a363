"""`Objects`: boxes, classes and masks of the objects in the images of a split."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from keras_resnet.data.masks import decode_mask
from keras_resnet.errors import value_error


@dataclass(frozen=True)
class Objects:
    """The objects in N images, M in all, as arrays; the objects of an image follow each other, images are in order.

    The constructor raises ValueError for arrays of other shapes, and images that are not in order.
    """

    image: np.ndarray
    """(M,) int64: index of the image, ascending."""
    boxes: np.ndarray
    """(M, 4) float32: x1, y1, x2, y2 in pixels of the upright image."""
    labels: np.ndarray
    """(M,) int32: index of the class in the class names of the Dataset, which have no background."""
    crowd: np.ndarray
    """(M,) bool: whether the box or mask is around several objects of the class (COCO's iscrowd)."""
    difficult: np.ndarray
    """(M,) bool: whether the object does not count in an evaluation (PASCAL VOC's difficult)."""
    areas: np.ndarray
    """(M,) float64, in pixels: as annotated, else of the polygons, else of the box; COCO calls objects small, medium or
    large by it."""
    masks: np.ndarray | None
    """(M,) object: polygons or RLE in COCO's form for `decode_mask`, or None; None if there are no masks at all."""
    sizes: np.ndarray
    """(N, 2) int32: height and width of the upright images."""
    image_ids: np.ndarray
    """(N,) object: id of each image in a COCO file (int), else the name of its file without the suffix (str)."""

    def __post_init__(self):
        count, images = len(self.image), len(self.sizes)
        shapes = {
            "boxes": (count, 4),
            **dict.fromkeys(("labels", "crowd", "difficult", "areas"), (count,)),
            **({} if self.masks is None else {"masks": (count,)}),
            "sizes": (images, 2),
            "image_ids": (images,),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise value_error(name, array.shape, f"an array of shape {shape}, as there are {count} objects")
        if count and (self.image[0] < 0 or self.image[-1] >= images or (np.diff(self.image) < 0).any()):
            raise value_error("image", self.image, f"ascending indices of {images} images")

    def __len__(self):
        return len(self.image)

    def select(self, indices: Any) -> "Objects":
        """The Objects of some of the images, which are then numbered from 0.

        Args:
            indices: whatever indexes an array of N images: a slice, indices in any order, or N times bool.
        """
        indices = np.atleast_1d(np.arange(len(self.sizes))[indices])
        first, last = np.searchsorted(self.image, indices), np.searchsorted(self.image, indices, "right")
        counts = last - first
        # The objects of image i are first[i], first[i] + 1, ..., last[i] - 1
        rows = np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        return Objects(
            **self._arrays_of(rows) | {"image": np.repeat(np.arange(len(indices)), counts)},
            sizes=self.sizes[indices],
            image_ids=self.image_ids[indices],
        )

    def keep(self, rows: np.ndarray) -> "Objects":
        """Some of the objects, M times bool; all images stay."""
        return replace(self, **self._arrays_of(rows))

    def _arrays_of(self, rows):
        """{name of a field: its array} of some of the objects."""
        names = ("image", "boxes", "labels", "crowd", "difficult", "areas")
        return {name: getattr(self, name)[rows] for name in names} | {
            "masks": None if self.masks is None else self.masks[rows]
        }

    def mask(self, index: int) -> np.ndarray | None:
        """(height, width) bool, the mask of an object; None if it has none. Raises as `decode_mask`."""
        if self.masks is None or self.masks[index] is None:
            return None
        height, width = self.sizes[self.image[index]].tolist()
        return decode_mask(self.masks[index], (height, width))

    def label_matrix(self, num_classes: int) -> np.ndarray:
        """(N, num_classes) uint8: 1 for each class with an object in the image, for multi-label classification."""
        labels = np.zeros((len(self.sizes), num_classes), "uint8")
        labels[self.image, self.labels] = 1
        return labels

    def class_counts(self, num_classes: int) -> np.ndarray:
        """(num_classes,) integers, the number of objects of each class."""
        return np.bincount(self.labels, minlength=num_classes)


def corner_and_sides(boxes: np.ndarray) -> np.ndarray:
    """Boxes (N, 4), x1, y1, x2, y2 -> (N, 4) float64, x1, y1, width, height, as in COCO's files.

    >>> import numpy as np
    >>> from keras_resnet.data.objects import corner_and_sides
    >>> corner_and_sides(np.array([[1, 2, 4, 8]], "float32"))
    array([[1., 2., 3., 6.]])
    """
    boxes = boxes.astype("float64")
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
