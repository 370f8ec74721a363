"""Masks of classes, rendered from the masks of objects in any format of `Annotations` -> Dataset, with `masks`."""

from dataclasses import dataclass, replace

import numpy as np

from keras_resnet.architecture.segmenter_spec import IGNORED
from keras_resnet.data.annotations import AnnotatedSplit, Annotations, load_annotations, load_test_annotations
from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.mask_checks import ClassTable, check_table
from keras_resnet.data.objects import Objects
from keras_resnet.data.semantic_masks import SemanticMasks, class_values
from keras_resnet.errors import DETECTION, check_installed

BACKGROUND = "background"
"""Name of class 0, of pixels without an object."""


@dataclass(frozen=True)
class ObjectMasks:
    """Source of SemanticMasks that are rendered from the masks of objects; the class of an object is its label plus 1.

    Pixels in several objects have the value IGNORED, whatever their classes, and crowds are objects like any other:
    torchvision, references/segmentation/coco_utils.py.
    """

    objects: Objects
    """Those without a mask are left out."""
    classes: np.ndarray | None = None
    """(256,) uint8, the class of each value, see `class_values`."""

    def __call__(self, position: int) -> np.ndarray:
        """The mask of an image: (H, W) uint8."""
        height, width = self.objects.sizes[position].tolist()
        rendered = np.zeros((height, width), "uint8")
        covered, overlapping = np.zeros((2, height, width), bool)
        first, last = np.searchsorted(self.objects.image, [position, position + 1])
        for index in range(first, last):
            if (mask := self.objects.mask(index)) is None:
                continue
            np.copyto(rendered, self.objects.labels[index] + 1, where=mask, casting="unsafe")
            overlapping |= covered & mask
            covered |= mask
        rendered[overlapping] = IGNORED
        return rendered if self.classes is None else self.classes[rendered]


def load_object_masks(annotations: Annotations, held_out=None, skip_bad=False, ignore_index=None) -> Dataset:
    """Loads the masks of Annotations for training; see `load_annotations` and `load_masks` for arguments and errors.

    Class 0 is "background", and class i + 1 the class i of the objects. An object without a mask, of which only the box
    is known, is an error; with `skip_bad`, it is left out.
    """
    return _with_masks(load_annotations(_requiring_masks(annotations), held_out, skip_bad), ignore_index)


def load_test_object_masks(annotations: Annotations, split=None, skip_bad=False, ignore_index=None) -> Dataset:
    """Loads the masks of a split of Annotations for testing. See `load_object_masks` and `load_test`."""
    return _with_masks(load_test_annotations(_requiring_masks(annotations), split, skip_bad), ignore_index)


def _requiring_masks(annotations):
    """Annotations whose objects without a mask are errors."""

    def read(name):
        split = annotations.read(name)
        errors = [
            f"{image.source}, object {item.number} (it has a box, but no mask)"
            for image in split.images
            for item in image.objects
            if item.segmentation is None
        ]
        images = [
            image._replace(objects=[item for item in image.objects if item.segmentation is not None])
            for image in split.images
        ]
        return AnnotatedSplit(images, split.class_names, [*split.errors, *errors])

    return replace(annotations, read=read)


def _with_masks(dataset, ignore_index):
    """A Dataset with masks instead of objects."""
    check_installed("Masks of polygons", ["faster_coco_eval"], DETECTION)
    classes = class_values(ignore_index)
    table = ClassTable((BACKGROUND, *dataset.class_names)).without(ignore_index)
    check_table(table, dataset.name)
    train, test = (
        None if split is None else _masked_split(split, len(table.names), classes)
        for split in (dataset.train, dataset.test)
    )
    return replace(dataset, train=train, test=test, class_names=table.names)


def _masked_split(split, num_classes, classes):
    """A Split with masks instead of objects. Labels are the classes of the objects, and the background."""
    labels = np.insert(split.objects.label_matrix(num_classes)[:, : num_classes - 1], 0, 1, axis=1)
    if classes is not None:
        labels[:, classes[:num_classes] == IGNORED] = 0
    masks = SemanticMasks(split.objects.sizes, ObjectMasks(split.objects, classes), np.arange(len(split)))
    return Split(split.images, labels, split.orientations, masks=masks)
