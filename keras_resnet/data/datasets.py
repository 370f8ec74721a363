"""Labelled images: `Dataset`, which consists of `Split`s or `Stream`s."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from keras_resnet.data.objects import Objects
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.semantic_masks import SemanticMasks
from keras_resnet.data.stored_files import StoredFiles
from keras_resnet.errors import is_number, value_error

DEFAULT_VALIDATION_SPLIT = 0.2
"""Fraction of the images that is held out where a dataset has no test split."""
TEST_SPLITS = ("val", "valid", "validation", "test")
"""Names of a split for testing, such as a folder beside "train"; the first one that a data set has is used."""
SPLITS = ("train", *TEST_SPLITS)
"""Names of splits."""
UNLABELLED = -1
"""Label of an image whose class is unknown."""
DEFAULT_SIZES = {"size": 224, "resize": 256}
"""Sizes in the Preprocessing of images that may have any size (He et al. 2015, sec. 3.4)."""
MEMORY_FRACTION = 0.25
"""Fraction of the machine's memory that images may occupy."""


@dataclass(frozen=True)
class Fold:
    """One of several equal parts of the training images, held out to test on: k-fold cross-validation."""

    number: int
    """From 1 to `count`."""
    count: int

    def __str__(self):
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Fold":
        """ "2/5" -> Fold(2, 5); ValueError for anything else."""
        found = re.fullmatch(r"(\d+)/(\d+)", str(text))
        fold = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= fold.number <= fold.count or fold.count < 2:
            raise value_error("fold", text, 'a fold and the number of folds, such as "2/5"')
        return fold


@dataclass(frozen=True)
class Split:
    """Labelled images with random access. The constructor raises ValueError for other shapes and dtypes."""

    images: np.ndarray | StoredFiles
    """(N, H, W, C) uint8; or (N,) encoded files (bytes, dtype object), in memory or stored; or (N,) paths (str)."""
    labels: np.ndarray
    """(N,) int32: the class of each image; or multi-label (N, K) uint8: 1 for each class of the image, else 0."""
    orientations: np.ndarray | None = None
    """(N,) uint8: EXIF orientations of the files, from 1 to 8; None if all are upright. Pixels are upright."""
    objects: Objects | None = None
    """The objects in the images, whose classes are the `labels`: all objects of an image have its class, unless the
    labels are multi-label. None if only the images have labels."""
    masks: SemanticMasks | None = None
    """The class of every pixel; then the labels are multi-label, the classes that have pixels in the image."""

    def __post_init__(self):
        shape, dtype = self.images.shape, self.images.dtype
        if not (len(shape) == 1 or (len(shape) == 4 and dtype == np.uint8)):
            raise ValueError(
                f"`images` should be (N, H, W, C) uint8, or (N,) files. Received: images of shape {shape}, {dtype}"
            )
        if self.multi_label:
            is_valid = self.labels.dtype == np.uint8 and self.labels.max(initial=0) <= 1
        else:
            is_valid = self.labels.ndim == 1 and self.labels.dtype.kind in "iu"
        if self.labels.shape[:1] != shape[:1] or not is_valid:
            raise ValueError(
                f"`labels` should be {shape[0]} integers, one for each image, or ({shape[0]}, classes) uint8 zeros and "
                f"ones. Received: labels of shape {self.labels.shape}, {self.labels.dtype}"
            )
        turned = self.orientations
        if turned is not None and (turned.shape != shape or turned.dtype != np.uint8 or not (turned - 1 < 8).all()):
            raise value_error("orientations", turned, f"{shape[0]} numbers from 1 to 8 (uint8), for encoded files")
        if self.objects is not None and len(self.objects.sizes) != shape[0]:
            raise value_error("objects", len(self.objects.sizes), f"of {shape[0]} images, one for each label")
        if self.masks is not None:
            self._check_masks()
        if self.objects is not None and not self.multi_label:
            others = self.objects.labels[self.objects.labels != self.labels[self.objects.image]]
            if others.size:
                raise value_error("objects", others[:5], "of the class of their image, unless `labels` are multi-label")

    def _check_masks(self):
        sizes = {tuple(size) for size in self.masks.sizes.tolist()}
        if len(self.masks) != len(self) or not self.multi_label:
            raise value_error("masks", len(self.masks), f"of {len(self)} images, whose labels are multi-label")
        if self.is_decoded and not sizes <= {self.images.shape[1:3]}:
            raise value_error("masks", sizes, f"of the size of the images, {self.images.shape[1:3]}")

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, indices):
        return Split(
            self.images[indices],
            self.labels[indices],
            None if self.orientations is None else self.orientations[indices],
            None if self.objects is None else self.objects.select(indices),
            None if self.masks is None else self.masks.select(indices),
        )

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes, or none: `labels` is (N, K)."""
        return self.labels.ndim == 2

    @property
    def strata(self) -> np.ndarray:
        """(N,) integers by which splits are stratified: the class; of several, the rarest one in the split.

        Images whose number occurs only once share one with the most frequent, since a single image cannot be split.
        Multi-label images with objects or masks all have the same number: most have many classes, and rare classes
        occur in one image.
        """
        if not self.multi_label:
            return self.labels
        if self.has_annotations:
            return np.zeros(len(self), int)
        rarity = self.labels / np.maximum(1, self.labels.sum(axis=0))
        strata = np.where(self.labels.any(axis=1), rarity.argmax(axis=1), self.labels.shape[1])
        counts = np.bincount(strata)
        return np.where(counts[strata] == 1, counts.argmax(), strata)

    @property
    def has_annotations(self) -> bool:
        """Whether the images have objects or masks, of which the labels are a summary."""
        return self.objects is not None or self.masks is not None

    @property
    def is_decoded(self) -> bool:
        """Whether the images are pixels, not files."""
        return self.images.ndim == 4

    @property
    def has_paths(self) -> bool:
        """Whether the images are paths of files."""
        return not self.is_decoded and isinstance(self.images[0], str)

    def stratified_split(self, amount: float | Fold | None = None) -> tuple["Split", "Split"]:
        """(the remaining images, the images held out): stratified by `strata` and always the same ones.

        Args:
            amount: a fraction or a number of images, see `num_held_out`; a Fold; or None for a fifth.

        Raises:
            ValueError: as `num_held_out`, and if a class would be missing on either side.
        """
        from sklearn.model_selection import StratifiedKFold, train_test_split

        amount = DEFAULT_VALIDATION_SPLIT if amount is None else amount
        indices, strata = np.arange(len(self)), self.strata
        sizes = np.unique(strata, return_counts=True)[1]
        if isinstance(amount, Fold):
            self._check_split(amount, sizes.min() >= amount.count)
            folds = StratifiedKFold(amount.count, shuffle=True, random_state=0).split(indices, strata)
            rest, held_out = next(islice(folds, amount.number - 1, None))
        else:
            count = num_held_out(amount, len(self))
            self._check_split(amount, sizes.min() >= 2 and len(sizes) <= count <= len(self) - len(sizes))
            rest, held_out = train_test_split(indices, test_size=count, stratify=strata, random_state=0)
        if self.multi_label and not self.has_annotations:
            self._check_split(amount, (self.labels[rest].any(axis=0) & self.labels[held_out].any(axis=0)).all())
        return self[rest], self[held_out]

    def _check_split(self, amount, is_possible):
        if not is_possible:
            counts = count_classes(self.labels, 0)
            expected = f"an amount that leaves an image of each of the {(counts > 0).sum()} classes on both sides"
            hint = f"There are {len(self)} images, {counts[counts > 0].min()} in the smallest class."
            raise value_error(*_argument(amount), expected, hint)


@dataclass(frozen=True)
class Stream:
    """Labelled images with sequential access: a dataset larger than memory."""

    examples: Callable
    """seed -> tf.data.Dataset of (encoded file or (H, W, C) uint8, integer label), shuffled by the seed; None -> in
    order."""
    length: int

    is_decoded = has_paths = multi_label = False

    def __len__(self):
        return self.length


@dataclass(frozen=True)
class Dataset:
    """Labelled images for training and testing.

    The constructor raises ValueError for a label without a class name, except for the labels of a Stream.
    """

    name: str
    train: Split | Stream | None
    """None if the dataset is only for testing, as those of `load_test`."""
    test: Split | Stream
    class_names: tuple[str, ...] | None
    """None if the labels are class indices of any model."""
    preprocessing: Preprocessing
    """Preprocessing of the images in testing."""
    skipped: tuple[str, ...] = ()
    """Unreadable files that were skipped, with the reason."""
    colors: tuple[tuple[int, int, int], ...] | None = None
    """Red, green and blue, from 0 to 255, of each class, as masks are drawn; None if the data set defines none."""

    def __post_init__(self):
        splits = [split for split in (self.train, self.test) if isinstance(split, Split)]
        widths = {split.labels.shape[1:] for split in splits}
        count = len(self.class_names or ())
        if len(widths) > 1 or (self.multi_label and widths != {(count,)}):
            raise ValueError(
                f"Multi-label images of {self.name!r} should have a label for each of {count} classes, in training and "
                f"testing. Received: labels of shapes {[split.labels.shape for split in splits]}"
            )
        if self.colors is not None and len(self.colors) != count:
            raise value_error("colors", self.colors, f"a colour for each of {count} classes")
        for split in splits if self.class_names is not None and not self.multi_label else ():
            invalid = split.labels[(split.labels < 0) | (split.labels >= count)]
            if invalid.size:
                raise ValueError(
                    f"Labels of {self.name!r} should be from 0 to {count - 1}, one for each class. "
                    f"Received: {invalid[0]}, and {invalid.size} invalid labels in all"
                )

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes, or none; its labels are zeros and ones, see `Split`."""
        return self.test.multi_label

    @property
    def has_any_size(self) -> bool:
        """Whether the images have any size and none was chosen: that of `preprocessing` is a default."""
        return {"size": self.preprocessing.size, "resize": self.preprocessing.resize} == DEFAULT_SIZES

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the model input."""
        return (self.preprocessing.size, self.preprocessing.size, self.preprocessing.channels)

    def class_counts(self) -> np.ndarray | None:
        """(K,) integers, the number of training images of each class; None for a Stream, whose labels are not known."""
        if not isinstance(self.train, Split) or self.class_names is None:
            return None
        return count_classes(self.train.labels, len(self.class_names))


def count_classes(labels, num_classes):
    """(K,) integers, the number of images of each class, for labels as in a Split."""
    return labels.sum(axis=0, dtype=int) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)


def evenly_spaced(length, count):
    """At most `count` indices of a sequence of `length` items, evenly spaced from the first to the last."""
    return np.linspace(0, length - 1, min(count, length)).astype(int)


def _argument(amount):
    """(name, value) of the argument of `load_dataset` that gave an amount to hold out."""
    return ("fold", str(amount)) if isinstance(amount, Fold) else ("validation_split", amount)


def num_held_out(amount, length):
    """The number of images to hold out of `length`.

    `amount` is a fraction in (0, 1), rounded up to whole images as in scikit-learn, or an integer, the number itself.
    """
    is_count = isinstance(amount, (int, np.integer))
    if isinstance(amount, Fold):
        raise value_error("fold", str(amount), "left out for a data set that is read as a stream, as this one")
    if not is_number(amount) or not 0 < amount < (length if is_count else 1):
        raise value_error("validation_split", amount, f"a fraction in (0, 1), or a number of images below {length}")
    return int(amount) if is_count else math.ceil(amount * length)


def fits_in_memory(num_bytes):
    """Whether images of this size may be held in memory: up to MEMORY_FRACTION of all memory, free or not."""
    return num_bytes <= MEMORY_FRACTION * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def default_preprocessing(shape):
    """The Preprocessing of a dataset that does not define one: of mode "torch", or "tf" for grey images.

    `shape` is (H, W, C), with None for sides that vary. Square images of one size are not resized; others are, to
    DEFAULT_SIZES.
    """
    height, width, channels = shape
    is_square = height is not None and height == width
    sizes = {"size": height, "resize": None} if is_square else DEFAULT_SIZES
    return Preprocessing("tf" if channels == 1 else "torch", channels=channels, **sizes)
