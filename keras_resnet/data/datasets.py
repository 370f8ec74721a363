"""Labelled images: `Dataset`, which consists of `Split`s or `Stream`s."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.errors import is_number, value_error

DEFAULT_VALIDATION_SPLIT = 0.2
"""Fraction of the images that is held out where a dataset has no test split."""
UNLABELLED = -1
"""Label of an image whose class is unknown."""
MEMORY_FRACTION = 0.25
"""Fraction of the machine's memory that images may occupy."""


@dataclass(frozen=True)
class Split:
    """Labelled images with random access. The constructor raises ValueError for other shapes and dtypes."""

    images: np.ndarray
    """(N, H, W, C) uint8; or (N,) encoded files (bytes, dtype object); or (N,) paths (str)."""
    labels: np.ndarray
    """(N,) int32."""

    def __post_init__(self):
        shape, dtype = self.images.shape, self.images.dtype
        if not (len(shape) == 1 or (len(shape) == 4 and dtype == np.uint8)):
            raise ValueError(
                f"`images` should be (N, H, W, C) uint8, or (N,) files. Received: images of shape {shape}, {dtype}"
            )
        if self.labels.shape != shape[:1] or self.labels.dtype.kind not in "iu":
            raise ValueError(
                f"`labels` should be {shape[0]} integers, one for each image. "
                f"Received: labels of shape {self.labels.shape}, {self.labels.dtype}"
            )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, indices):
        return Split(self.images[indices], self.labels[indices])

    @property
    def is_decoded(self) -> bool:
        """Whether the images are pixels, not files."""
        return self.images.ndim == 4

    @property
    def has_paths(self) -> bool:
        """Whether the images are paths of files."""
        return not self.is_decoded and isinstance(self.images[0], str)

    def stratified_split(self, amount: float) -> tuple["Split", "Split"]:
        """(the remaining images, the images held out): stratified by class and always the same ones.

        Raises:
            ValueError: as `num_held_out`, and if either side would have fewer images than there are classes.
        """
        from sklearn.model_selection import train_test_split

        count = num_held_out(amount, len(self))
        sizes = np.unique(self.labels, return_counts=True)[1]
        if sizes.min() < 2 or not len(sizes) <= count <= len(self) - len(sizes):
            expected = f"an amount that leaves an image of each of the {len(sizes)} classes on both sides"
            hint = f"There are {len(self)} images, {sizes.min()} in the smallest class."
            raise value_error("validation_split", amount, expected, hint)
        rest, held_out = train_test_split(np.arange(len(self)), test_size=count, stratify=self.labels, random_state=0)
        return self[rest], self[held_out]


@dataclass(frozen=True)
class Stream:
    """Labelled images with sequential access: a dataset larger than memory."""

    examples: Callable
    """seed -> tf.data.Dataset of (encoded file or (H, W, C) uint8, integer label), shuffled by the seed; None -> in
    order."""
    length: int

    is_decoded = has_paths = False

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

    def __post_init__(self):
        for split in (self.train, self.test) if self.class_names is not None else ():
            labels = getattr(split, "labels", np.empty(0))
            invalid = labels[(labels < 0) | (labels >= len(self.class_names))]
            if invalid.size:
                raise ValueError(
                    f"Labels of {self.name!r} should be from 0 to {len(self.class_names) - 1}, one for each class. "
                    f"Received: {invalid[0]}, and {invalid.size} invalid labels in all"
                )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the model input."""
        return (self.preprocessing.size, self.preprocessing.size, self.preprocessing.channels)


def num_held_out(amount, length):
    """The number of images to hold out of `length`.

    `amount` is a fraction in (0, 1), rounded up to whole images as in scikit-learn, or an integer, the number itself.
    """
    is_count = isinstance(amount, (int, np.integer))
    if not is_number(amount) or not 0 < amount < (length if is_count else 1):
        raise value_error("validation_split", amount, f"a fraction in (0, 1), or a number of images below {length}")
    return int(amount) if is_count else math.ceil(amount * length)


def fits_in_memory(num_bytes):
    """Whether images of this size may be held in memory: up to MEMORY_FRACTION of all memory, free or not."""
    return num_bytes <= MEMORY_FRACTION * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def default_preprocessing(shape):
    """The Preprocessing of a dataset that does not define one: of mode "torch", or "tf" for grey images.

    `shape` is (H, W, C), with None for sides that vary. Square images of one size are not resized; others are, as
    ImageNet's test images (He et al. 2015, sec. 3.4).
    """
    height, width, channels = shape
    is_square = height is not None and height == width
    sizes = {"size": height, "resize": None} if is_square else {"size": 224, "resize": 256}
    return Preprocessing("tf" if channels == 1 else "torch", channels=channels, **sizes)
