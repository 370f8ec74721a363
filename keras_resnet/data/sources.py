"""Images by a name, a folder or arrays: `load_dataset`, `load_test`, `from_arrays`, `image_source`."""

import os
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from keras_resnet.architecture.segmenter_spec import IGNORED, MAX_CLASSES
from keras_resnet.data.datasets import (
    SPLITS,
    UNLABELLED,
    Dataset,
    Fold,
    Split,
    Stream,
    default_preprocessing,
)
from keras_resnet.data.image_files import find_images
from keras_resnet.data.labels import placeholder_names
from keras_resnet.data.mask_checks import ClassTable, check_table
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.semantic_masks import class_values, masks_in_memory
from keras_resnet.data.source_kinds import SOURCES, LoadOptions, find_source
from keras_resnet.data.stored_files import StoredFiles
from keras_resnet.errors import value_error


def load_dataset(
    name: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    download: bool = True,
    validation_split: float | int | None = None,
    skip_bad: bool = False,
    labels: str | os.PathLike | None = None,
    fold: str | None = None,
    masks: bool = False,
    ignore_index: int | None = None,
) -> Dataset:
    """Loads a dataset for training.

    >>> import keras_resnet
    >>> dataset = keras_resnet.load_dataset("digits", validation_split=0.1)
    >>> len(dataset.train), len(dataset.test), dataset.input_shape
    (1293, 144, (8, 8, 1))

    Args:
        name: "digits"; a folder of class folders, see `load_folder`; a folder of images with boxes or masks of objects,
            as COCO, PASCAL VOC or YOLO (data.yaml) have them, see `load_annotations`, or with one class and boxes, as
            ImageNet's localization task has them, see `open_localization`; a folder of images and of masks with the
            class of every pixel, see `open_masks` and `open_voc_masks`; a folder of Parquet files or one
            written by `datasets.save_to_disk`; "hf://owner/name" on the Hugging Face hub; WebDataset's tar files, as a
            folder or a pattern such as "train-{000..146}.tar"; or a dataset of tensorflow-datasets for image
            classification, object detection or semantic segmentation, such as "cifar10", "cifar10:3.0.2",
            "emnist/letters", "voc" or "oxford_iiit_pet".
        data_dir: folder of tensorflow-datasets, or cache of Hugging Face's datasets; None: the default folder.
        download: whether to download datasets that are missing in `data_dir`.
        validation_split: fraction in (0, 1) or number of the training images to test on instead of the test images,
            which stay unused. They are stratified by class (He et al. 2015, sec. 4.2: 45k/5k).
        skip_bad: whether to skip images that cannot be read, or whose masks are invalid, and objects whose boxes or
            masks are invalid.
        labels: file with the class, or the classes, of each image of a folder, such as a CSV with the columns file and
            label. See `load_labelled_folder`.
        fold: "2/5" to test on the second of five equal parts of the training images and train on the others, for k-fold
            cross-validation; None: no folds. The parts are stratified by class and always the same ones.
        masks: whether to read the class of every pixel, for semantic segmentation, from a data set that has other
            annotations, too: see `load_masks`, and `load_object_masks` for those of COCO.
        ignore_index: value in masks of pixels that do not count, besides 255.

    Raises:
        ValueError: for an unknown name, a dataset that is not for image classification, and invalid images or labels.
        OSError: for a missing folder, and a dataset that cannot or may not be downloaded.
    """
    if fold is not None and validation_split is not None:
        raise value_error("validation_split", validation_split, "left out with `fold`, which holds out a part itself")
    held_out = validation_split if fold is None else Fold.parse(fold)
    options = LoadOptions(data_dir, download, skip_bad, labels, held_out, masks=masks, ignore_index=ignore_index)
    kind, found = find_source(name, options)
    dataset = SOURCES[kind].load(found, options)
    # The name of the run: those with other folds of the same size are other runs
    return dataset if fold is None else replace(dataset, name=f"{dataset.name}, fold {fold}")


def as_dataset(dataset, masks: bool = False) -> Dataset:
    """A Dataset, given as such, as a function that returns it, or by its name, which `load_dataset` loads."""
    dataset = dataset() if callable(dataset) else dataset
    return dataset if isinstance(dataset, Dataset) else load_dataset(dataset, masks=masks)


def load_test(
    name: str | os.PathLike,
    split: str | None = None,
    data_dir: str | os.PathLike | None = None,
    download: bool = True,
    labels: str | os.PathLike | None = None,
    skip_bad: bool = False,
    masks: bool = False,
    ignore_index: int | None = None,
) -> Dataset:
    """Loads test images.

    Args:
        name: as for `load_dataset`; or a folder of images, with `labels`. Of a folder of class folders all images are
            used, unless it has a folder "train" and a test folder.
        split: "train", the name of a folder or another split, a value of the column "split" of `labels`, or a split of
            tensorflow-datasets such as "train[:1000]"; None: the test images.
        data_dir, download: as for `load_dataset`.
        labels: file with the class, or the classes, of each image in a folder. See `load_labelled_test_folder`.
        skip_bad: whether to skip images that cannot be read, and objects whose boxes or masks are invalid.
        masks, ignore_index: as for `load_dataset`.

    Returns:
        A Dataset whose `train` is None.

    Raises:
        ValueError, OSError: as `load_dataset`, and for an unknown split.
    """
    if labels is not None and not os.path.isdir(name):
        raise value_error("dataset", str(name), "a folder of images, as `labels` is given")
    options = LoadOptions(data_dir, download, skip_bad, labels, None, split, masks, ignore_index)
    kind, found = find_source(name, options)
    return SOURCES[kind].load_test(found, options)


def from_arrays(
    train: tuple[ArrayLike, ArrayLike],
    test: tuple[ArrayLike, ArrayLike] | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
    preprocessing: Preprocessing | None = None,
    validation_split: float | None = None,
    ignore_index: int | None = None,
) -> Dataset:
    """Makes a Dataset from images and labels, or masks, in memory.

    >>> import numpy as np
    >>> import keras_resnet
    >>> images, labels = np.zeros((20, 8, 8, 3), "uint8"), np.arange(20) % 2
    >>> dataset = keras_resnet.from_arrays((images, labels), class_names=["cat", "dog"])
    >>> len(dataset.train), len(dataset.test)
    (16, 4)

    Args:
        train: (images, labels): images are (N, H, W) or (N, H, W, C) uint8, or whole numbers from 0 to 255, square
            unless the labels are masks, with 1 or 3 channels; labels are (N,) or (N, 1) integers; or (N, K) zeros and
            ones, which are multi-label unless every row has exactly one 1; or masks (N, H, W) of integers, the class
            of every pixel, or 255 for pixels that do not count.
        test: the same, of equal shape.
        class_names: in the order of the labels; None: "class 0", "class 1", ..., the indices of any model's classes.
        name: of the dataset, for reports.
        preprocessing: Preprocessing; None: neither resized nor cropped, with mode "torch", or "tf" for grey images.
        validation_split: fraction in (0, 1) or number of the training images to hold out as `test`; None: a fifth if
            `test` is not given.
        ignore_index: value in masks of pixels that do not count, besides 255.

    Raises:
        ValueError: for other images or labels, and for test images, class names or a preprocessing that do not match.
    """
    has_masks = np.ndim(train[1]) > 2
    if ignore_index is not None and not has_masks:
        raise value_error("ignore_index", ignore_index, "left out for labels that are no masks")
    make = partial(_masked_split, classes=class_values(ignore_index)) if has_masks else _array_split
    parts = [make(*arrays, argument) for arrays, argument in ((train, "train"), (test, "test")) if arrays]
    shape = parts[0].images.shape[1:]
    if parts[-1].images.shape[1:] != shape:
        raise ValueError(f"`test` should have images of {shape}, like `train`. Received: {parts[-1].images.shape[1:]}")
    if has_masks:
        class_names = _mask_classes(parts[0], class_names, ignore_index, name)
        parts = [_with_classes(part, len(class_names)) for part in parts]
    elif all(part.multi_label and (part.labels.sum(axis=1) == 1).all() for part in parts):
        parts = [replace(part, labels=part.labels.argmax(axis=1)) for part in parts]
    if class_names is None:
        labels = parts[0].labels
        class_names = placeholder_names(labels.shape[1] if labels.ndim == 2 else max(0, labels.max()) + 1)
    if validation_split is not None or not test:
        parts = [*parts[0].stratified_split(validation_split)]
    preprocessing = preprocessing or default_preprocessing(shape)
    if preprocessing.channels != shape[-1]:
        raise value_error("preprocessing", preprocessing, f"for {shape[-1]} channels, as many as the images have")
    return Dataset(name, parts[0], parts[1], tuple(str(name) for name in class_names), preprocessing)


def _array_split(images, labels, argument):
    """A Split of (N, H, W, C) uint8 images and (N,) int32 labels, after validation."""
    images, labels = _array_images(images, argument), np.asarray(labels)
    if images.shape[1] != images.shape[2]:
        raise ValueError(
            f"Images of `{argument}` should be square; images of other shapes can be loaded from a folder. "
            f"Received: shape {images.shape}"
        )
    if labels.ndim == 2 and labels.shape[1] > 1 and ((labels == 0) | (labels == 1)).all():
        return Split(images, labels.astype("uint8"))
    if labels.shape[1:] not in ((), (1,)) or labels.ndim == 0 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"Labels of `{argument}` should be (N,) or (N, 1) integers, or (N, K) zeros and ones, or masks (N, H, W). "
            f"Received: shape {labels.shape}, {labels.dtype}"
        )
    return Split(images, labels.reshape(-1).astype("int32"))


def _array_images(images, argument):
    """Images as (N, H, W, C) uint8, after validation."""
    images = np.asarray(images)
    shape = images.shape if images.ndim != 3 else (*images.shape, 1)
    if len(shape) != 4 or shape[3] not in (1, 3) or not images.size:
        raise ValueError(
            f"Images of `{argument}` should be (N, H, W) or (N, H, W, C), with 1 or 3 channels. "
            f"Received: shape {images.shape}"
        )
    if images.dtype != np.uint8:
        is_number = images.dtype.kind in "iuf"
        if not is_number or not ((images >= 0) & (images <= 255) & (images == np.floor(images))).all():
            value_range = f" from {images.min()} to {images.max()}" if is_number else ""
            raise ValueError(
                f"Images of `{argument}` should be uint8, or whole numbers from 0 to 255. "
                f"Received: {images.dtype}{value_range}"
            )
    return images.astype("uint8", copy=False).reshape(shape)


def _masked_split(images, masks, argument, classes):
    """A Split of (N, H, W, C) uint8 images with masks, and labels of MAX_CLASSES classes; `classes` of each value."""
    images, masks = _array_images(images, argument), np.asarray(masks)
    masks = masks[..., 0] if masks.ndim == 4 and masks.shape[-1] == 1 else masks
    is_valid = masks.shape == images.shape[:3] and masks.dtype.kind in "biu" and masks.min() >= 0
    if not is_valid or masks.max() > IGNORED:
        raise ValueError(
            f"Masks of `{argument}` should be integers from 0 to {IGNORED} of the shape {images.shape[:3]}, like the "
            f"images. Received: shape {masks.shape}, {masks.dtype}"
        )
    found = masks_in_memory(masks, classes)
    return Split(images, found.label_matrix(MAX_CLASSES), masks=found)


def _mask_classes(train, class_names, ignore_index, name):
    """Names of the classes of masks; None: placeholders up to the highest index in the training masks."""
    if class_names is None:
        class_names = placeholder_names(np.flatnonzero(train.labels.any(axis=0)).max(initial=-1) + 1)
    table = ClassTable(tuple(class_names)).without(ignore_index)
    check_table(table, name)
    return table.names


def _with_classes(split, count):
    """A Split of `_masked_split` with labels of as many classes; ValueError for an index of no class."""
    if (unknown := np.flatnonzero(split.labels[:, count:].any(axis=0))).size:
        raise value_error("masks", f"index {unknown[0] + count}", f"indices of {count} classes, or {IGNORED}")
    return replace(split, labels=split.labels[:, :count])


@dataclass(frozen=True)
class ImageSource:
    """Images with their names, labelled or not."""

    split: Split | Stream
    """Images; labels are UNLABELLED where no class is known."""
    names: Sequence[str]
    """Paths of the images, their names in tar or Parquet files, or their indices if they come from no files."""
    class_names: tuple[str, ...] = ()
    """Names of the labels; empty if there are none."""
    skipped: tuple[str, ...] = ()
    """Images that could not be read, as "name: error"."""


def image_source(images):
    """The ImageSource of any images.

    Args:
        images: a folder, searched for images, whose class folders give the labels; a file or a list of files; a
            dataset name, as for `load_test`; a Dataset, whose `test` is used; a Split or Stream; an array (N, H, W, C)
            uint8; or an ImageSource, which is returned.

    Raises:
        ValueError, OSError: as `load_test`, and for other values, missing paths and folders without images.
    """
    if isinstance(images, ImageSource):
        return images
    if isinstance(images, (str, os.PathLike)):
        if not SOURCES[find_source(images, LoadOptions())[0]].has_image_files:
            return image_source(load_test(images))
        if os.path.isdir(images):
            return _folder_source(Path(images))
        images = [images]
    if isinstance(images, Dataset):
        class_names = tuple(images.class_names or ())
        return replace(image_source(images.test), class_names=class_names, skipped=tuple(images.skipped))
    if isinstance(images, (Split, Stream)):
        return ImageSource(images, _names(images))
    if isinstance(images, np.ndarray):
        return image_source(Split(images, np.full(len(images), UNLABELLED)))
    paths = list(images) if isinstance(images, Iterable) else [images]
    if not all(isinstance(path, (str, os.PathLike)) for path in paths):
        raise ValueError(
            "`images` should be a folder, files, a dataset name, a Dataset, a Split or Stream, or one uint8 array "
            f"(N, H, W, C). Received: images={reprlib.repr(images)}"
        )
    return image_source(np.array([str(path) for path in find_images(paths)], str))


def _names(images):
    """`ImageSource.names` of a Split or Stream."""
    if len(images) and images.has_paths:
        return images.images.tolist()
    is_stored = isinstance(images, Split) and isinstance(images.images, StoredFiles)
    return images.images.names if is_stored else [str(index) for index in range(len(images))]


def _folder_source(folder):
    """All images of a folder, named by their relative paths, labelled by their class folders."""
    paths = find_images(folder)
    names = [path.relative_to(folder).as_posix() for path in paths]
    # A class folder is the first folder of a path that is not the name of a split
    folders = ([part for part in name.split("/")[:-1] if part not in SPLITS] for name in names)
    classes = [next(iter(parts), None) for parts in folders]
    class_names = tuple(sorted(set(classes) - {None}))
    labels = {None: UNLABELLED} | {name: label for label, name in enumerate(class_names)}
    split = Split(np.array([str(path) for path in paths]), np.array([labels[name] for name in classes], "int32"))
    return ImageSource(split, names, class_names)
