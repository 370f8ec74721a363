"""Sets of tensorflow-datasets -> Dataset: any that has an image and a class for each example."""

import logging
import re
import shutil
import sys
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

import numpy as np

from keras_resnet.data.datasets import Dataset, Split, Stream, default_preprocessing, fits_in_memory, num_held_out
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.errors import unknown_name_error

PREPROCESSING = {name: Preprocessing("cifar", size=32, resize=None) for name in ("cifar10", "cifar100")}
"""Sets that are normalised by their own mean and deviation."""
BATCH = 1000
"""Examples read at once."""
BUFFER = 8192
"""Encoded images among which a Stream draws the next one."""


def list_tfds():
    """Names of the sets that tensorflow-datasets knows, whatever they hold."""
    import tensorflow_datasets as tfds

    return tfds.list_builders(with_community_datasets=False)


def find_builder(name, data_dir=None):
    """The tfds.core.DatasetBuilder for "name", "name/config" or either with ":version"; None if there is no such set.

    Args:
        name: the set.
        data_dir: folder of prepared sets, also such as only their files know of; None: tensorflow-datasets' own.

    Raises:
        ValueError: for a config or version that the set does not have.
    """
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"\w+(/[\w.+-]+)?(:\d+\.\d+\.\d+)?", name):
        return None
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        return None
    except (AssertionError, ValueError, RuntimeError) as error:
        reason = _one_line(error).rpartition('}": ')[2]  # without the arguments, which it names first
        raise ValueError(
            f"`dataset` should name a config and version that exist ({reason}). Received: dataset={name!r}"
        ) from error


def load_tfds(builder, download=True, validation_split=None):
    """Reads what `find_builder` found.

    Images of one square size are held as pixels if they fit in memory; others as encoded files if these fit, and as a
    Stream otherwise. "train" trains; "test" tests, or "validation" where there is no test split or its labels are
    withheld, as ImageNet's are.

    Args:
        builder: tfds.core.DatasetBuilder.
        download: whether a set that is not prepared may be downloaded.
        validation_split: share in (0, 1) or number of the training images that is set aside to test on, stratified
            by class; of a Stream, the last ones.

    Raises:
        ValueError: for a set that is not for image classification or lacks a split, and a label without a class.
        OSError: for a set that is not prepared and not to be downloaded, or fails to be downloaded or read.
    """
    keys = _keys(builder)
    _prepare(builder, download)
    splits = _splits(builder, keys, with_test=validation_split is None)
    found, preprocessing, class_names = _load(builder, keys, splits, validation_split)
    train, test = found if len(found) == 2 else found[0].stratified_split(validation_split)
    return Dataset(builder.name, train, test, class_names, preprocessing)


def load_tfds_split(builder, split=None, download=True):
    """Likewise one split alone: a Dataset without `train`.

    Args:
        builder: tfds.core.DatasetBuilder.
        split: its name, or a part of one such as "train[:1000]"; None: "test", or "validation".
        download: whether a set that is not prepared may be downloaded.

    Raises:
        ValueError, OSError: as `load_tfds`, and for an unknown split.
    """
    keys = _keys(builder)
    _prepare(builder, download)
    split = split or next(iter(_tests(builder, keys)), None)
    try:
        length = builder.info.splits[split].num_examples
    except (KeyError, ValueError, AttributeError):
        length = 0
    if not length:
        raise unknown_name_error(
            "split", split, builder.info.splits, f"one of {list(builder.info.splits)}, and not empty"
        )
    (test,), preprocessing, class_names = _load(builder, keys, [split])
    return Dataset(builder.name, None, test, class_names, preprocessing)


def _load(builder, keys, splits, validation_split=None):
    """([Split or Stream], Preprocessing, class names) of some splits; of a Stream, two for a part that is set aside."""
    image, label = (builder.info.features[key] for key in keys)
    shape = (*image.shape[:2], image.shape[2] or 3)
    square = None not in shape and shape[0] == shape[1]
    infos = [builder.info.splits[split] for split in splits]
    if square and fits_in_memory(sum(info.num_examples for info in infos) * int(np.prod(shape))):
        found = [_read(builder, keys, split, shape) for split in splits]
    elif fits_in_memory(sum(info.num_bytes for info in infos)):
        found = [_read(builder, keys, split, None) for split in splits]
    else:
        found = [_stream(builder, keys, part) for part in _slices(builder, splits, validation_split)]
    return found, PREPROCESSING.get(builder.name) or default_preprocessing(shape), tuple(label.names)


def _keys(builder):
    """Names of the features that are the image and its class."""
    import tensorflow_datasets as tfds

    features = dict(getattr(builder.info.features, "items", dict)())
    images = [
        key
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image) and not isinstance(feature, tfds.features.LabeledImage)
        if feature.np_dtype == np.uint8 and feature.shape[2] in (1, 3, None)
    ]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    supervised = builder.info.supervised_keys
    if supervised and len(supervised) == 2 and supervised[0] in images and supervised[1] in labels:
        return supervised
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    raise ValueError(
        "`dataset` should be for image classification: with an image in eight bits, grey or RGB, and a class for each "
        f"example. Received: dataset={builder.name!r}, whose features are {list(features)}"
    )


def _splits(builder, keys, with_test):
    """["train"], and the name of the split that tests."""
    known, tests = builder.info.splits, _tests(builder, keys) if with_test else []
    if "train" not in known or (with_test and not tests):
        raise ValueError(
            "`dataset` should have the split train, and test or validation with labels, or a `validation_split` be set "
            f"aside. Received: dataset={builder.name!r} with the splits {list(known)}"
        )
    return ["train", *tests[:1]]


def _tests(builder, keys):
    """Names of the splits that can test."""
    return [name for name in ("test", "validation") if name in builder.info.splits and _labelled(builder, keys, name)]


def _labelled(builder, keys, split):
    """Whether the labels of a split are given; withheld ones are -1."""
    return all(
        example[keys[1]] >= 0 for example in _batches(builder, keys, f"{split}[:1]").unbatch().as_numpy_iterator()
    )


def _slices(builder, splits, validation_split):
    if validation_split is None:
        return splits
    length = builder.info.splits["train"].num_examples
    rest = length - num_held_out(validation_split, length)
    return [f"train[:{rest}]", f"train[{rest}:]"]


def _batches(builder, keys, split, decoded=False):
    """tf.data.Dataset of {key: array of a batch}, in order."""
    return _dataset(builder, keys, split, decoded, batch_size=BATCH)


def _dataset(builder, keys, split, decoded=False, seed=None, batch_size=None):
    import tensorflow_datasets as tfds

    image, label = keys
    as_file = {} if decoded else {image: tfds.decode.SkipDecoding()}
    return builder.as_dataset(
        split=split,
        batch_size=batch_size,
        shuffle_files=seed is not None,
        decoders=tfds.decode.PartialDecoding({image: True, label: True}, decoders=as_file),
        read_config=tfds.ReadConfig(shuffle_seed=seed, try_autocache=False),
    )


def _read(builder, keys, split, shape):
    """A Split of pixels of this shape, or of encoded files for None."""
    import tensorflow as tf

    count = builder.info.splits[split].num_examples
    images = np.empty((count, *shape), "uint8") if shape else np.empty(count, object)
    labels = np.empty(count, "int32")
    start = 0
    try:
        for batch in _batches(builder, keys, split, decoded=bool(shape)).as_numpy_iterator():
            stop = start + len(batch[keys[1]])
            images[start:stop], labels[start:stop] = batch[keys[0]], batch[keys[1]]
            start = stop
    except tf.errors.OpError as error:
        reason = _one_line(error)
        raise OSError(f"Expected a whole set in {builder.data_path}. Received: a damaged one ({reason})") from error
    return Split(images, labels)


def _stream(builder, keys, split):
    """A Stream of encoded files: of shards in an order that a seed decides, through a buffer that shuffles."""
    import tensorflow as tf

    classes = builder.info.features[keys[1]].num_classes

    def example(features):
        label = tf.cast(features[keys[1]], "int32")
        tf.debugging.assert_non_negative(label, "labels should be from 0")
        tf.debugging.assert_less(label, classes, "labels should be below the number of classes")
        return features[keys[0]], label

    def examples(seed):
        images = _dataset(builder, keys, split, seed=seed)
        if seed is not None:
            images = images.shuffle(BUFFER, seed)
        return images.map(example, tf.data.AUTOTUNE)

    return Stream(examples, builder.info.splits[split].num_examples)


def _prepare(builder, download):
    if builder.is_prepared():
        return
    folder, name = builder.data_path, builder.info.full_name
    if not download:
        raise FileNotFoundError(
            f"`data_dir` should be where {name} is prepared, or `download` be True. "
            f"Received: download=False, and nothing in {folder}"
        )
    root = Path(folder).parents[name.count("/")]
    try:
        with redirect_stdout(sys.stderr), _few_retries(), _leaving_nothing(root, builder.name):
            builder.download_and_prepare(download_dir=root / "downloads")
    except Exception as error:  # networks, archives and scripts of 445 sets fail in nearly any way
        raise OSError(
            f"Expected to download and prepare {name} in {root} (`data_dir`). Received: {_one_line(error)}"
        ) from error


def _one_line(error, length=400):
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else f"{text[:length]}..."


@contextmanager
def _few_retries():
    """Five quiet attempts to connect, which take seconds; tensorflow-datasets' eleven take minutes, network or not."""
    from tensorflow_datasets.core.download import downloader

    log = logging.getLogger("urllib3.connectionpool")
    usual, level = downloader.MAX_RETRIES, log.level
    downloader.MAX_RETRIES = 4
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        downloader.MAX_RETRIES = usual
        log.setLevel(level)


@contextmanager
def _leaving_nothing(root, name):
    """On failure, removes what was begun; archives that were downloaded whole stay, for another attempt."""
    downloads = root / "downloads"
    before = {root, root / name, *(downloads / name).glob("*")}
    before = {path for path in before if path.exists()}
    try:
        yield
    except BaseException:
        for path in set((downloads / name).glob("*.tmp.*")) - before:
            shutil.rmtree(path, ignore_errors=True)
        if root / name not in before:
            shutil.rmtree(root / name, ignore_errors=True)
        for folder in (downloads / name, downloads / "extracted", downloads, *({root} - before)):
            with suppress(OSError):  # it is not there, or not empty
                folder.rmdir()
        raise
