"""Datasets of tensorflow-datasets with masks of classes, such as "oxford_iiit_pet" -> Split with masks."""

from contextlib import suppress

import numpy as np

from keras_resnet.data.annotation_checks import StoredSize, with_size
from keras_resnet.data.annotations import raise_or_warn
from keras_resnet.data.datasets import Split, default_preprocessing, fits_in_memory
from keras_resnet.data.image_checks import CHECKS, orientations_of
from keras_resnet.data.image_files import UnreadableImageError
from keras_resnet.data.mask_checks import ClassTable, MaskedImage, check_table, placeholder_table, to_masks
from keras_resnet.data.semantic_masks import UnreadableMaskError, class_values, describe_mask
from keras_resnet.errors import value_error

MASK_NAMES = ("segmentation_mask", "segmentation_label", "segmentation", "mask")
"""Names of features with masks, in datasets whose masks are plain images."""
IMAGE_NAMES = ("image", "image_left")
"""Names of features with images."""
FIRST_CLASS = {"oxford_iiit_pet": (1, ("pet", "background", "border"))}
"""Dataset -> the value of the first class in masks, if not 0, and the names of the classes."""


def mask_features(builder) -> tuple[str, str]:
    """Names of the features of a tfds.core.DatasetBuilder with the image and the mask; ValueError without them."""
    import tensorflow_datasets as tfds

    features = dict(getattr(builder.info.features, "items", dict)())

    def is_mask(name):
        feature = features[name]
        is_labelled = isinstance(feature, tfds.features.LabeledImage)
        is_named = name in MASK_NAMES and isinstance(feature, tfds.features.Image)
        return (is_labelled or is_named) and feature.shape[2] == 1

    masks = sorted(filter(is_mask, features), key=lambda name: (name not in MASK_NAMES, name))
    image = next((name for name in IMAGE_NAMES if name in features), None)
    if not masks or not image:
        expected = f"a dataset with an image, and with a LabeledImage or an Image of one channel named {MASK_NAMES}"
        raise value_error("dataset", builder.name, f"{expected}, not {list(features)}")
    return image, masks[0]


class MaskSource:
    """A prepared dataset whose examples have an image and a mask of classes.

    The classes are those of the mask's feature, a LabeledImage, or of FIRST_CLASS; otherwise there are as many as the
    training masks have. The constructor raises ValueError for a dataset without masks, or with too many classes.
    """

    def __init__(self, builder, skip_bad=False, ignore_index=None):
        self.builder, self.skip_bad = builder, skip_bad
        self.image, self.mask = mask_features(builder)
        first, known = FIRST_CLASS.get(builder.name, (0, None))
        self.classes = class_values(ignore_index, first)
        self.table = self._table(known, first, ignore_index)
        self.class_names = self.table.names
        self.preprocessing = default_preprocessing((None, None, 3))
        self.skipped: tuple[str, ...] = ()

    def _table(self, known, first, ignore_index):
        """The ClassTable; without known names, the training masks are read."""
        feature, splits = self.builder.info.features[self.mask], self.builder.info.splits
        if known is None and getattr(feature, "num_classes", None):
            known = feature.names
        if known is None:
            described = self._readable_masks("train" if "train" in splits else next(iter(splits)))
            table = placeholder_table((row for _, row in described), self.classes, self.builder.name)
        else:
            table = ClassTable(tuple(known)).without(None if ignore_index is None else ignore_index - first)
        check_table(table, self.builder.name)
        return table

    def _readable_masks(self, split):
        """Yields the contents of each mask that can be read, and what `describe_mask` says of it."""
        for example in self._examples(split, [self.mask]):
            with suppress(UnreadableMaskError):
                yield example[self.mask], describe_mask(example[self.mask])

    def test_splits(self) -> list[str]:
        """Names of the splits for testing that have masks."""
        names = [name for name in ("test", "validation") if name in self.builder.info.splits]
        return [name for name in names if any(True for _ in self._readable_masks(f"{name}[:1]"))]

    def read(self, splits, validation_split=None) -> list[Split]:
        """A Split of encoded images with masks for each name of a split."""
        infos = [self.builder.info.splits[split] for split in splits]
        if not fits_in_memory(sum(info.num_bytes for info in infos)):
            expected = "images with masks that fit in memory; read larger data sets from folders"
            raise value_error("dataset", self.builder.name, expected)
        return [self._split(split) for split in splits]

    def _examples(self, split, names):
        """Iterator over {name: encoded file} of features."""
        import tensorflow_datasets as tfds

        decoders = dict.fromkeys(names, tfds.decode.SkipDecoding())
        found = self.builder.as_dataset(
            split=split,
            decoders=tfds.decode.PartialDecoding(dict.fromkeys(names, True), decoders),
            read_config=tfds.ReadConfig(try_autocache=False),
        )
        return found.as_numpy_iterator()

    def _split(self, split):
        contents, files, images, errors = [], [], [], []
        for index, example in enumerate(self._examples(split, [self.image, self.mask])):
            try:
                image = self._masked_image(example, f"{split} {index}")
            except (UnreadableImageError, UnreadableMaskError) as error:
                errors.append(f"{split} {index} ({error.reason})")
                continue
            found = list(image.errors(self.table, self.classes))
            if not found:
                contents.append(example[self.image])
                files.append(example[self.mask])
                images.append(image)
            errors += found
        raise_or_warn(self.builder.name, errors, self.skip_bad, "readable images with valid masks")
        self.skipped += tuple(errors)
        masks = to_masks(images, files, self.classes)
        labels = masks.label_matrix(len(self.table.names))
        orientations = orientations_of(image.size.orientation for image in images)
        return Split(np.array(contents, object), labels, orientations, masks=masks)

    def _masked_image(self, example, name):
        size = StoredSize(*with_size(CHECKS["header"]).function(example[self.image]))
        return MaskedImage(f"{name}, {self.image}", f"{name}, {self.mask}", size, describe_mask(example[self.mask]))
