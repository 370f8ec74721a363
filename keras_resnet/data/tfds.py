"""Datasets of tensorflow-datasets with one image, and a class, boxes of objects or a mask of classes, per example."""

import importlib.util
import logging
import re
import shutil
import sys
from contextlib import contextmanager, redirect_stdout, suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np

from keras_resnet.data.datasets import Dataset, Split, Stream, default_preprocessing, fits_in_memory, num_held_out
from keras_resnet.data.image_files import exif_orientation
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.tfds_masks import MASK_NAMES, MaskSource, mask_features
from keras_resnet.data.tfds_objects import ObjectSource, has_objects
from keras_resnet.errors import TENSORFLOW, check_installed, unknown_name_error, value_error

PREPROCESSING = {name: Preprocessing("cifar", size=32, resize=None) for name in ("cifar10", "cifar100")}
"""Datasets that are normalised by their own mean and standard deviation."""
READ_SIZE = 1000
"""Number of examples read at once."""
SHUFFLE_BUFFER = 8192
"""Number of encoded images in the shuffle buffer of a Stream."""


def list_tfds():
    """Names of all datasets of tensorflow-datasets, for any task; none if it is not installed."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        return []
    import tensorflow_datasets as tfds

    return tfds.list_builders(with_community_datasets=False)


def find_builder(name, data_dir=None):
    """The tfds.core.DatasetBuilder for "name", "name/config", or either with ":version"; None for an unknown dataset.

    `data_dir` may hold prepared datasets that are not registered. Raises ValueError for an unknown config or version.
    """
    if not re.fullmatch(r"\w+(/[\w.+-]+)?(:\d+\.\d+\.\d+)?", name):
        return None
    check_installed(f"The data set {name!r}, if not a folder,", ["tensorflow", "tensorflow_datasets"], TENSORFLOW)
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        return None
    except (AssertionError, ValueError, RuntimeError) as error:
        reason = _one_line(error).rpartition('}": ')[2]  # the message begins with all arguments
        raise value_error("dataset", name, f"a dataset with an existing config and version ({reason})") from error


def load_tfds(builder, download=True, validation_split=None, skip_bad=False, masks=False, ignore_index=None):
    """Loads the dataset of a tfds.core.DatasetBuilder for training. See `load_dataset` for the arguments and errors.

    Square images of one size are decoded if they fit in memory; other images are kept as encoded files if these fit,
    and read as a Stream otherwise; then `validation_split` holds out the last images. The test split is "test", or
    "validation" if "test" is missing or has no labels, as in ImageNet.
    """
    source = _open(builder, download, skip_bad, masks, ignore_index)
    tests = source.test_splits() if validation_split is None else []
    splits = builder.info.splits
    if "train" not in splits or (validation_split is None and not tests):
        raise ValueError(
            "`dataset` should have the split train, and a labelled split test or validation, or a `validation_split` "
            f"should be given. Received: dataset={builder.name!r} with the splits {list(splits)}"
        )
    parts = source.read(["train", *tests[:1]], validation_split)
    train, test = parts if len(parts) == 2 else parts[0].stratified_split(validation_split)
    return Dataset(builder.name, train, test, source.class_names, source.preprocessing, source.skipped)


def load_tfds_split(builder, split=None, download=True, skip_bad=False, masks=False, ignore_index=None):
    """Loads one split for testing, as a Dataset without `train`. See `load_test` for the arguments and errors."""
    source = _open(builder, download, skip_bad, masks, ignore_index)
    splits = builder.info.splits
    split = split or next(iter(source.test_splits()), None)
    try:
        length = splits[split].num_examples
    except (KeyError, ValueError, AttributeError):
        length = 0
    if not length:
        raise unknown_name_error("split", split, splits, f"one of {list(splits)}, and not empty")
    (test,) = source.read([split])
    return Dataset(builder.name, None, test, source.class_names, source.preprocessing, source.skipped)


def _open(builder, download, skip_bad, masks, ignore_index):
    """The source of the splits of a dataset, which is downloaded first; see `load_dataset` for the arguments."""
    if not masks and not has_objects(builder):
        return _Source(builder, download)
    if masks:
        mask_features(builder)
    _prepare(builder, download)
    return MaskSource(builder, skip_bad, ignore_index) if masks else ObjectSource(builder, skip_bad)


class _Source:
    """A prepared dataset of images and class labels. The constructor raises the errors of `load_dataset`."""

    skipped: tuple[str, ...] = ()
    """Images that were left out."""

    def __init__(self, builder, download):
        self.builder = builder
        self.image, self.label = _image_and_label(builder)
        image, label = (builder.info.features[name] for name in (self.image, self.label))
        self.shape = (*image.shape[:2], image.shape[2] or 3)
        self.class_names = tuple(label.names)
        self.preprocessing = PREPROCESSING.get(builder.name) or default_preprocessing(self.shape)
        _prepare(builder, download)

    def test_splits(self):
        """Names of the splits for testing: those with labels; withheld labels are -1."""
        names = [name for name in ("test", "validation") if name in self.builder.info.splits]
        return [name for name in names if next(iter(self._examples(f"{name}[:1]")))[self.label] >= 0]

    def read(self, splits, validation_split=None):
        """A Split or Stream for each name; of a Stream, one more for the part that is held out."""
        infos = [self.builder.info.splits[split] for split in splits]
        is_square = None not in self.shape and self.shape[0] == self.shape[1]
        if is_square and fits_in_memory(sum(info.num_examples for info in infos) * int(np.prod(self.shape))):
            return [self._split(split, self.shape) for split in splits]
        if fits_in_memory(sum(info.num_bytes for info in infos)):
            return [self._split(split, None) for split in splits]
        if validation_split is not None:
            rest = infos[0].num_examples - num_held_out(validation_split, infos[0].num_examples)
            splits = [f"train[:{rest}]", f"train[{rest}:]"]
        return [self._stream(split) for split in splits]

    def _examples(self, split, decode=False, seed=None, batch_size=None):
        """tf.data.Dataset of {name: array}, in order if there is no seed."""
        import tensorflow_datasets as tfds

        decoders = {} if decode else {self.image: tfds.decode.SkipDecoding()}
        return self.builder.as_dataset(
            split=split,
            batch_size=batch_size,
            shuffle_files=seed is not None,
            decoders=tfds.decode.PartialDecoding({self.image: True, self.label: True}, decoders=decoders),
            read_config=tfds.ReadConfig(shuffle_seed=seed, try_autocache=False),
        )

    def _split(self, split, shape):
        """A Split of decoded images of a shape, or of encoded files for None."""
        import tensorflow as tf

        count = self.builder.info.splits[split].num_examples
        images = np.empty((count, *shape), "uint8") if shape else np.empty(count, object)
        labels = np.empty(count, "int32")
        start = 0
        try:
            for batch in self._examples(split, bool(shape), batch_size=READ_SIZE).as_numpy_iterator():
                stop = start + len(batch[self.label])
                images[start:stop], labels[start:stop] = batch[self.image], batch[self.label]
                start = stop
        except tf.errors.OpError as error:
            raise OSError(
                f"Expected a complete dataset in {self.builder.data_path}. Received: damaged files ({_one_line(error)})"
            ) from error
        if shape:
            return Split(images, labels)
        with ThreadPool() as threads:
            orientations = np.array(threads.map(exif_orientation, images), "uint8")
        return Split(images, labels, orientations)

    def _stream(self, split):
        """A Stream of encoded files, shuffled by the order of the shards and by a buffer."""
        import tensorflow as tf

        def check(example):
            label = tf.cast(example[self.label], "int32")
            tf.debugging.assert_non_negative(label, "labels should be from 0")
            tf.debugging.assert_less(label, len(self.class_names), "labels should be below the number of classes")
            return example[self.image], label

        def examples(seed):
            found = self._examples(split, seed=seed)
            shuffled = found if seed is None else found.shuffle(SHUFFLE_BUFFER, seed)
            return shuffled.map(check, tf.data.AUTOTUNE)

        return Stream(examples, self.builder.info.splits[split].num_examples)


def _image_and_label(builder):
    """Names of the features with the image and its class."""
    import tensorflow_datasets as tfds

    features = dict(getattr(builder.info.features, "items", dict)())

    def is_image(feature):
        is_plain = isinstance(feature, tfds.features.Image) and not isinstance(feature, tfds.features.LabeledImage)
        return is_plain and feature.np_dtype == np.uint8 and feature.shape[2] in (1, 3, None)

    images = [name for name, feature in features.items() if is_image(feature) and name not in MASK_NAMES]
    labels = [name for name, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    supervised = builder.info.supervised_keys
    if supervised and len(supervised) == 2 and supervised[0] in images and supervised[1] in labels:
        return supervised
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    raise ValueError(
        "`dataset` should be for image classification or object detection, with one grey or RGB image in eight bits, "
        "and one class or boxes of objects, per example; or, with `masks=True`, for semantic segmentation. "
        f"Received: dataset={builder.name!r}, whose features are {list(features)}"
    )


def _prepare(builder, download):
    if builder.is_prepared():
        return
    folder, name = builder.data_path, builder.info.full_name
    if not download:
        raise FileNotFoundError(
            f"`data_dir` should contain the prepared dataset {name}, or `download` should be True. "
            f"Received: download=False, and nothing in {folder}"
        )
    root = Path(folder).parents[name.count("/")]
    try:
        with redirect_stdout(sys.stderr), _few_retries(), _cleanup_on_failure(root, builder.name):
            builder.download_and_prepare(download_dir=root / "downloads")
    except Exception as error:  # networks, archives and the code of 445 datasets raise exceptions of almost any type
        raise OSError(
            f"Expected to download and prepare {name} in {root} (`data_dir`). Received: {_one_line(error)}"
        ) from error


def _one_line(error, length=400):
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else f"{text[:length]}..."


@contextmanager
def _few_retries():
    """Five quiet attempts to connect, which take seconds; tensorflow-datasets' eleven attempts take minutes."""
    from tensorflow_datasets.core.download import downloader

    log = logging.getLogger("urllib3.connectionpool")
    retries, level = downloader.MAX_RETRIES, log.level
    downloader.MAX_RETRIES = 4
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        downloader.MAX_RETRIES = retries
        log.setLevel(level)


@contextmanager
def _cleanup_on_failure(root, name):
    """Removes incomplete files after a failure; complete downloads are kept for another attempt."""
    downloads = root / "downloads"
    before = {path for path in (root, root / name, *(downloads / name).glob("*")) if path.exists()}
    try:
        yield
    except BaseException:
        for path in set((downloads / name).glob("*.tmp.*")) - before:
            shutil.rmtree(path, ignore_errors=True)
        if root / name not in before:
            shutil.rmtree(root / name, ignore_errors=True)
        for folder in (downloads / name, downloads / "extracted", downloads, *({root} - before)):
            with suppress(OSError):  # missing, or not empty
                folder.rmdir()
        raise
