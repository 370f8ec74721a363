"""Images with labels: what a data set is, whatever it was read from."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.errors import is_number

DEFAULT_VALIDATION_SPLIT = 0.2
"""Of the images, set aside where a source says nothing of what tests."""
UNLABELLED = -1
"""Label of an image whose class is unknown."""
MEMORY_FRACTION = 0.25
"""Of the machine's memory, what images may take."""


@dataclass(frozen=True)
class Split:
    """Labelled images that can be reached by number.

    Raises:
        ValueError: on construction, for images of another kind, or labels that are not an integer for each of them.
    """

    images: np.ndarray
    """(N, H, W, C) uint8; or (N,) of encoded files (dtype object, bytes); or (N,) of paths (str)."""
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

    def __getitem__(self, numbers):
        return Split(self.images[numbers], self.labels[numbers])

    @property
    def is_decoded(self):
        """Whether the images are pixels of one size, and not files."""
        return self.images.ndim == 4

    @property
    def has_paths(self):
        """Whether the images are names of files, and not their contents."""
        return not self.is_decoded and isinstance(self.images[0], str)

    def stratified_split(self, amount):
        """(the rest, what is set aside): two Splits, stratified by class, the same ones every time.

        Args:
            amount: as for `validation_size`.

        Raises:
            ValueError: for another amount, or one that leaves a side with fewer images than there are classes.
        """
        from sklearn.model_selection import train_test_split

        count = validation_size(amount, len(self))
        sizes = np.unique(self.labels, return_counts=True)[1]
        if sizes.min() < 2 or not len(sizes) <= count <= len(self) - len(sizes):
            raise ValueError(
                f"`validation_split` should leave an image of each of the {len(sizes)} classes on both sides; there "
                f"are {len(self)} images, {sizes.min()} in the smallest class. Received: validation_split={amount}"
            )
        rest, aside = train_test_split(np.arange(len(self)), test_size=count, stratify=self.labels, random_state=0)
        return self[rest], self[aside]


@dataclass(frozen=True)
class Stream:
    """Labelled images that only come one after another: a prepared set that is larger than memory."""

    examples: Callable
    """seed -> tf.data.Dataset of (encoded file or uint8 (H, W, C), integer label), shuffled, the same for the same
    seed; None -> in order."""
    length: int

    is_decoded = has_paths = False

    def __len__(self):
        return self.length


@dataclass(frozen=True)
class Dataset:
    """Labelled images, split into those that train and those that test.

    Raises:
        ValueError: on construction, for a label that has no class name. Those of a Stream are not known yet.
    """

    name: str
    train: Split | Stream | None
    """None where there is nothing to train on: `load_test`."""
    test: Split | Stream
    class_names: tuple[str, ...] | None
    """None where labels are the numbers of whatever classes a network has."""
    preprocessing: Preprocessing
    """How a network wants these images when it is tested, also those that come later from files."""
    skipped: tuple[str, ...] = ()
    """UnreadableImageError files that are missing here, with what is wrong with them."""

    def __post_init__(self):
        for split in (self.train, self.test) if self.class_names is not None else ():
            labels = getattr(split, "labels", np.empty(0))
            outside = labels[(labels < 0) | (labels >= len(self.class_names))]
            if outside.size:
                raise ValueError(
                    f"Labels of {self.name!r} should be from 0 to {len(self.class_names) - 1}, one for each class. "
                    f"Received: {outside[0]}, and {outside.size} outside in all"
                )

    @property
    def input_shape(self):
        """(H, W, C) of one image as the network gets it."""
        return (self.preprocessing.size, self.preprocessing.size, self.preprocessing.channels)


def validation_size(amount, length):
    """How many of `length` images are set aside.

    Args:
        amount: a share in (0, 1), rounded up to whole images as scikit-learn does it; or an integer, their number.

    Raises:
        ValueError: for another amount.
    """
    whole = isinstance(amount, (int, np.integer))
    if not is_number(amount) or not 0 < amount < (length if whole else 1):
        raise ValueError(
            f"`validation_split` should be a share in (0, 1), or a number of images below {length}. "
            f"Received: validation_split={amount!r}"
        )
    return int(amount) if whole else math.ceil(amount * length)


def fits_in_memory(size):
    """Whether so many bytes of images may be held: MEMORY_FRACTION of all memory; how much of it is free may change."""
    return size <= MEMORY_FRACTION * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def default_preprocessing(shape):
    """Images of one square size as they are; others as ImageNet's are tested (He et al. 2015, sec. 3.4).

    Args:
        shape: (H, W, C), with None for sides that differ from image to image.

    Returns:
        A Preprocessing of mode "torch", or "tf" for grey images.
    """
    height, width, channels = shape
    square = height is not None and height == width
    sizes = {"size": height, "resize": None} if square else {"size": 224, "resize": 256}
    return Preprocessing("tf" if channels == 1 else "torch", channels=channels, **sizes)
