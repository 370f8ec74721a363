"""Images -> a vector for each, in a stream; equal pixels give equal vectors, to the bit."""

import os
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import keras
import numpy as np

from keras_resnet.architecture.metadata import to_data_format
from keras_resnet.data.datasets import Dataset, Split, Stream
from keras_resnet.data.image_files import find_images, raise_if_unreadable
from keras_resnet.data.image_folders import TESTS
from keras_resnet.data.prefetch import prefetch_batches
from keras_resnet.data.protocols import get_protocol
from keras_resnet.data.sources import DATASETS, load_test
from keras_resnet.errors import check_integers, unknown_name_error
from keras_resnet.models.feature_extractor import POOLINGS, PRE_LOGITS, feature_extractor
from keras_resnet.models.layers import check_network
from keras_resnet.models.preprocessing import preprocessing

UNLABELLED = -1
"""The label of an image whose class is not known."""
_MOST = 2**32


@dataclass(frozen=True)
class Features:
    """A vector for each image that could be read."""

    vectors: np.ndarray
    """(N, D) float32."""
    labels: np.ndarray
    """(N,) int32: number of the class, or UNLABELLED."""
    names: tuple[str, ...]
    """Of the images: their paths, or their numbers where they come from no files."""
    class_names: tuple[str, ...] = ()
    """Empty if the labels have none."""
    skipped: tuple[str, ...] = ()
    """Images that could not be read, with what is wrong with them."""
    settings: dict = field(default_factory=dict)
    """How they were made, if they come from a file."""


@dataclass(frozen=True)
class Source:
    """What is looked at."""

    split: Split | Stream
    names: Sequence[str]
    class_names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeatureBatch:
    """What has become of some images that follow each other."""

    stop: int
    """Number of the first image that comes after them."""
    indices: np.ndarray
    """(B,) of those that could be read."""
    labels: np.ndarray
    """(B,) int32."""
    vectors: np.ndarray
    """(B, D) float32."""
    read_errors: dict[int, str]
    """{index of an image that could not be read: error}."""


def extract(
    model, images, endpoint=PRE_LOGITS, pooling="avg", batch_size=100, skip_bad=False, progress=None
) -> Features:
    """The features of images, as vectors in memory.

    Images are read as `predict` reads them, while the network is at work. The network always sees batches of the full
    size, and an image that cannot be read leaves its place empty, so that a vector does not depend on what else is
    looked at: a batch of another size may be summed in another order.

    Args:
        model: a network whose preprocessing is known, or a `feature_extractor`.
        images: a folder, of which every image is taken, with the name of its class folder as its class; a file, or
            a list of them; a name for `load_test`; a Dataset, of which `test` is used; a Split or Stream; or pixels,
            (N, H, W, C) uint8.
        endpoint: see `feature_extractor`.
        pooling: "avg" or "max", what makes vectors of maps.
        batch_size: images that the network sees at a time.
        skip_bad: whether images that cannot be read are left out.
        progress: called with the number of images that are done, after every batch.

    Raises:
        ValueError: for an unknown endpoint, a network of unknown preprocessing, a batch size below 1, what holds no
            images, and an image that cannot be read.
        OSError: for a path where nothing is.
        FloatingPointError: if the network returns what is no number.
    """
    check_integers(batch_size=batch_size)
    source = find_source(images)
    found, left_out = [], list(source.left_out)
    for batch in extract_batches(model, source.split, endpoint, pooling, batch_size):
        faults = describe_errors(batch.read_errors, source.names)
        raise_if_unreadable(faults, skip_bad)
        left_out += faults
        found.append(batch)
        if progress:
            progress(batch.stop)
    check_any_read(sum(len(batch.indices) for batch in found), source)
    numbers, labels, vectors = (
        np.concatenate([getattr(batch, column) for batch in found]) for column in ("indices", "labels", "vectors")
    )
    names = tuple(source.names[number] for number in numbers)
    return Features(vectors, labels, names, source.class_names, tuple(left_out))


def describe_errors(faults, names):
    """{number: what is wrong} -> what is wrong with which image, in words."""
    return [f"{names[number]}: {fault}" for number, fault in faults.items()]


def check_any_read(count, source):
    """Raises ValueError if none of the images could be read."""
    if not count:
        raise ValueError(f"Expected images that can be read. Received: none of {len(source.split)}")


def find_source(images):
    """The Source for what `extract` takes."""
    if isinstance(images, (str, os.PathLike)):
        if images in DATASETS or not os.path.exists(images):
            return find_source(load_test(images))
        return _folder(Path(images)) if os.path.isdir(images) else _files([images])
    if isinstance(images, Dataset):
        about = {"class_names": tuple(images.class_names or ()), "left_out": tuple(images.left_out)}
        return replace(find_source(images.test), **about)
    if isinstance(images, (Split, Stream)):
        paths = len(images) and images.paths
        return Source(images, images.images.tolist() if paths else [str(n) for n in range(len(images))])
    if isinstance(images, np.ndarray):
        return find_source(Split(images, np.full(len(images), UNLABELLED)))
    return _files(images)


def _files(images):
    paths = list(images) if isinstance(images, Iterable) else [images]
    if not all(isinstance(path, (str, os.PathLike)) for path in paths):
        raise ValueError(
            "`images` should be a folder, files, the name of a data set, a Dataset, a Split or Stream, or one array "
            f"of pixels. Received: images={reprlib.repr(images)}"
        )
    found = [str(path) for path in find_images(paths)]
    return find_source(np.array(found, str))


def _folder(folder):
    """Every image of a folder, named by its way from there."""
    paths = find_images(folder)
    names = [path.relative_to(folder).as_posix() for path in paths]
    classes = [_class_of(name) for name in names]
    class_names = tuple(sorted(set(classes) - {None}))
    numbers = {None: UNLABELLED} | {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers[name] for name in classes], "int32")
    return Source(Split(np.array([str(path) for path in paths]), labels), names, class_names)


def _class_of(name):
    """The first folder on the way to an image that is none of the parts that data sets have; None without one."""
    return next((part for part in name.split("/")[:-1] if part not in ("train", *TESTS)), None)


def extract_batches(model, split, endpoint=PRE_LOGITS, pooling="avg", batch_size=100, start=0):
    """The features of images, batch by batch, in order.

    Args:
        model, endpoint, pooling, batch_size: as for `extract`.
        split: Split or Stream.
        start: number of the first image; to get the vectors of an earlier run, a multiple of `batch_size`.

    Yields:
        A FeatureBatch.
    """
    extractor = vector_extractor(model, endpoint, pooling)
    look, first = preprocessing(model), start
    for packed, shown, faults in prefetch_batches(_numbered(split, start), [look], get_protocol("center"), batch_size):
        labels, numbers = np.divmod(packed, _MOST)
        stop = first + len(numbers) + len(faults)
        vectors = np.empty((0, vector_size(extractor)), "float32")
        if len(numbers):
            vectors = _vectors(extractor, shown[0][0], numbers - first, batch_size)
        unread = sorted(set(range(first, stop)) - set(numbers.tolist()))
        reasons = [fault.partition(": ")[2] for fault in faults]
        yield FeatureBatch(stop, numbers, labels.astype("int32"), vectors, dict(zip(unread, reasons, strict=True)))
        first = stop


def vector_extractor(model, endpoint=PRE_LOGITS, pooling="avg"):
    """The extractor of one endpoint as vectors; a model that is such a one stays as it is."""
    if pooling not in POOLINGS:
        raise unknown_name_error("pooling", pooling, POOLINGS)
    if not isinstance(endpoint, str):
        raise ValueError(f"`endpoint` should be the name of one. Received: endpoint={endpoint!r}")
    check_network(model)
    if isinstance(model.output, dict) and [*model.output] == [endpoint] and len(model.output[endpoint].shape) == 2:
        return model
    return feature_extractor(model, endpoints=endpoint, pooling=pooling)


def vector_size(extractor):
    """How many numbers its vectors have."""
    return extractor.outputs[0].shape[-1]


def _numbered(split, start):
    """The images from `start` on, with labels that say their numbers too: those that are not read get lost."""
    if isinstance(split, Split):
        labels = _packed(split.labels[start:].astype("int64"), np.arange(start, len(split)))
        return Split(split.images[start:], labels)
    import tensorflow as tf

    def row(number, example):
        image, label = example
        return image, _packed(tf.cast(label, "int64"), number)

    return replace(split, examples=lambda seed: split.examples(seed).enumerate().skip(start).map(row))


def _packed(labels, numbers):
    """Two integers in one; `np.divmod(packed, _MOST)` has them again, also labels below zero."""
    return labels * _MOST + numbers


def _vectors(extractor, inputs, places, batch_size):
    """(B, H, W, C), and their places in a full batch -> (B, D) float32."""
    if len(inputs) < batch_size:
        full = np.zeros((batch_size, *inputs.shape[1:]), inputs.dtype)
        full[places] = inputs
        return _vectors(extractor, full, slice(None), batch_size)[places]
    (vectors,) = extractor.predict_on_batch(to_data_format(extractor, inputs)).values()
    vectors = np.asarray(keras.ops.convert_to_numpy(vectors), "float32")
    if not np.isfinite(vectors).all():
        raise FloatingPointError(f"`model` should return numbers. Received: NaN or Inf from {extractor.name}")
    return vectors
