"""Datasets of tensorflow-datasets with boxes of objects, such as "coco" and "voc" -> Split with objects."""

from pathlib import Path

import numpy as np

from keras_resnet.data.annotation_checks import (
    AnnotatedImage,
    AnnotatedObject,
    StoredSize,
    check_image,
    to_objects,
    with_size,
)
from keras_resnet.data.annotations import raise_or_warn
from keras_resnet.data.datasets import Split, default_preprocessing, fits_in_memory
from keras_resnet.data.image_checks import CHECKS, orientations_of
from keras_resnet.errors import value_error

OPTIONAL = {"is_difficult": False, "is_crowd": False, "area": None}
"""Feature of an object that not all datasets have -> its default."""
NAMES = ("image/id", "image/filename")
"""Features that name an image."""
FIRST_PIXEL = {"voc": 1}
"""Dataset -> the coordinate of its first pixel, if not 0."""
SEARCHED = 20
"""Number of examples that are searched for an object, to find out whether a split for testing has any."""


def has_objects(builder) -> bool:
    """Whether the examples of a tfds.core.DatasetBuilder have an image, and objects with boxes and classes."""
    features = dict(getattr(builder.info.features, "items", dict)())
    return "image" in features and {"bbox", "label"} <= set(getattr(features.get("objects"), "keys", set)())


class ObjectSource:
    """A prepared dataset whose examples have objects."""

    def __init__(self, builder, skip_bad=False):
        self.builder = builder
        self.skip_bad = skip_bad
        self.class_names = tuple(_class_label(builder).names)
        self.preprocessing = default_preprocessing((None, None, 3))
        self.skipped: tuple[str, ...] = ()

    def test_splits(self):
        """Names of the splits for testing that have objects; those of VOC 2012's test images are withheld."""
        names = [name for name in ("test", "validation") if name in self.builder.info.splits]
        return [
            name for name in names if any(len(found["objects"]["label"]) for found in self._examples(name, SEARCHED))
        ]

    def read(self, splits, validation_split=None):
        """A Split of encoded images with objects for each name of a split."""
        infos = [self.builder.info.splits[split] for split in splits]
        if not fits_in_memory(sum(info.num_bytes for info in infos)):
            expected = "images with objects that fit in memory; read larger data sets from a folder of COCO or VOC"
            raise value_error("dataset", self.builder.name, expected)
        return [self._split(split) for split in splits]

    def _examples(self, split, count=None):
        """Iterator over {name: array}."""
        import tensorflow_datasets as tfds

        features = self.builder.info.features
        wanted = {name: True for name in ("image", *NAMES) if name in features}
        fields = {name for name in ("bbox", "label", *OPTIONAL) if name in features["objects"].keys()}  # noqa: SIM118
        found = self.builder.as_dataset(
            split=split,
            decoders=tfds.decode.PartialDecoding(wanted | {"objects": fields}, {"image": tfds.decode.SkipDecoding()}),
            read_config=tfds.ReadConfig(try_autocache=False),
        )
        return found.take(count or -1).as_numpy_iterator()

    def _split(self, split):
        contents, images, sizes, errors = [], [], [], []
        for index, example in enumerate(self._examples(split)):
            size = StoredSize(*with_size(CHECKS["header"]).function(example["image"]))
            annotated = self._annotated(example, f"{split} {index}", size, errors)
            image, found = check_image(annotated, size)
            errors += found
            contents.append(example["image"])
            images.append(image)
            sizes.append(size)
        raise_or_warn(self.builder.name, errors, self.skip_bad)
        self.skipped += tuple(errors)
        objects = to_objects(images, self.class_names)
        labels = objects.label_matrix(len(self.class_names))
        orientations = orientations_of(size.orientation for size in sizes)
        return Split(np.array(contents, object), labels, orientations, objects)

    def _annotated(self, example, name, size, errors):
        """The AnnotatedImage of an example; messages about objects of no class go to `errors`."""
        found = example["objects"]
        first = FIRST_PIXEL.get(self.builder.name, 0) / np.array(size.upright, float)
        boxes = found["bbox"].astype(float) - [*first, 0, 0]
        columns = [found.get(field, [default] * len(boxes)) for field, default in OPTIONAL.items()]
        rows = zip(boxes.tolist(), found["label"], *columns, strict=True)
        objects = []
        for number, ((y1, x1, y2, x2), label, difficult, crowd, area) in enumerate(rows, 1):
            if 0 <= label < len(self.class_names):  # -1 is no label
                item = self.class_names[label], (x1, y1, x2, y2), None, bool(difficult), bool(crowd), area
                objects.append(AnnotatedObject(number, *item))
            else:
                errors.append(f"{name}, object {number} (class {label} of {len(self.class_names)}, from 0)")
        return AnnotatedImage(name, name, _image_id(example, name), objects, relative=True)


def _class_label(builder):
    """The feature of the classes of objects; ValueError for one that does not name them."""
    feature = builder.info.features["objects"]["label"]
    if not hasattr(feature, "names"):
        expected = "a dataset whose feature objects/label is a ClassLabel"
        raise value_error("dataset", builder.name, f"{expected}, not {type(feature).__name__}")
    return feature


def _image_id(example, name):
    """The id, a number or text, else the name of the file, else `name`."""
    if "image/id" in example:
        image_id = example["image/id"]
        return image_id.decode() if isinstance(image_id, bytes) else int(image_id)
    return Path(example["image/filename"].decode()).stem if "image/filename" in example else name
