"""Kinds of data sets by name: `SOURCES`, one row each."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from keras_resnet.data.annotations import load_annotations, load_test_annotations
from keras_resnet.data.archives import load_archive, load_test_archive
from keras_resnet.data.coco_files import find_coco, open_coco
from keras_resnet.data.datasets import Dataset, Fold, Split
from keras_resnet.data.hugging_face import is_hugging_face, open_hugging_face
from keras_resnet.data.image_folders import load_folder, load_test_folder
from keras_resnet.data.labelled_folders import load_labelled_folder, load_labelled_test_folder
from keras_resnet.data.localization_files import find_localization, open_localization
from keras_resnet.data.mask_folders import find_masks, load_masks, load_test_masks, open_masks
from keras_resnet.data.object_masks import load_object_masks, load_test_object_masks
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.tfds import find_builder, list_tfds, load_tfds, load_tfds_split
from keras_resnet.data.voc_files import find_voc, find_voc_masks, open_voc, open_voc_masks
from keras_resnet.data.webdataset_shards import find_shards, open_shards
from keras_resnet.data.yolo_files import find_yolo, open_yolo
from keras_resnet.errors import unknown_name_error, value_error


def digits() -> Dataset:
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels in ten classes, without a download.

    Alpaydin and Kaynak 1998, https://archive.ics.uci.edu/dataset/80. A fixed fifth, stratified by class, is for tests.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.round(found.images[..., None] * (255 / 16)).astype("uint8")
    train, test = Split(images, found.target.astype("int32")).stratified_split()
    names = tuple(str(name) for name in found.target_names)
    return Dataset("digits", train, test, names, Preprocessing(mode="tf", size=8, resize=None, channels=1))


DATASETS = {"digits": digits}
"""Datasets that need neither files nor a download."""


@dataclass(frozen=True)
class LoadOptions:
    """Arguments of `load_dataset` and `load_test`."""

    data_dir: str | os.PathLike | None = None
    download: bool = True
    skip_bad: bool = False
    labels: str | os.PathLike | None = None
    held_out: float | Fold | None = None
    """As for `Split.stratified_split`."""
    split: str | None = None
    masks: bool = False
    """Whether the class of every pixel is read, of data sets that have other annotations, too."""
    ignore_index: int | None = None
    """Value in masks of pixels that do not count, besides IGNORED."""


ANNOTATIONS = ("classes", "objects", "masks")
"""Annotations of images: classes of the whole image, boxes or masks of objects, or the class of every pixel."""


@dataclass(frozen=True)
class SourceKind:
    """A kind of data sets."""

    find: Callable
    """(name: str, LoadOptions) -> what the other functions get; None for a name of another kind."""
    load: Callable
    """(what was found, LoadOptions) -> Dataset for training."""
    load_test: Callable
    """(what was found, LoadOptions) -> Dataset without `train`."""
    has_image_files: bool = False
    """Whether they are folders of image files, which can be read without labels."""
    annotation: str = "classes"
    """What the images are annotated with, one of ANNOTATIONS."""


def _load_built_in(function, options):
    dataset = function()
    if options.held_out is None:
        return dataset
    train, test = dataset.train.stratified_split(options.held_out)
    return replace(dataset, train=train, test=test)


def _load_built_in_test(function, options):
    if options.split not in (None, "train", "test"):
        raise unknown_name_error("split", options.split, ("train", "test"))
    dataset = function()
    return replace(dataset, train=None, test=getattr(dataset, options.split or "test"))


def _load_folder(folder, options):
    if options.labels is None:
        return load_folder(folder, options.held_out, options.skip_bad)
    return load_labelled_folder(folder, options.labels, options.held_out, options.skip_bad)


def _load_test_folder(folder, options):
    if options.labels is None:
        return load_test_folder(folder, options.split, options.skip_bad)
    return load_labelled_test_folder(folder, options.labels, options.split, options.skip_bad)


def _archive(open_archive):
    """(`load`, `load_test`) of a kind whose data sets `open_archive`, of what was found and LoadOptions, opens."""
    return (
        lambda found, options: load_archive(open_archive(found, options), options.held_out, options.skip_bad),
        lambda found, options: load_test_archive(open_archive(found, options), options.split, options.skip_bad),
    )


def _annotated(find, open_annotations):
    """The SourceKind of annotated objects: whether a name is of the kind, and a function of the name -> Annotations."""
    return SourceKind(
        lambda name, options: name if options.labels is None and find(name) else None,
        lambda name, options: load_annotations(open_annotations(name), options.held_out, options.skip_bad),
        lambda name, options: load_test_annotations(open_annotations(name), options.split, options.skip_bad),
        has_image_files=True,
        annotation="objects",
    )


def _masked(find, open_folder, load=load_masks, load_test=load_test_masks, if_requested=False):
    """The SourceKind of masks of classes.

    Args:
        find: whether a name is of the kind.
        open_folder: the name -> what `load` and `load_test` get, a MaskFolder or Annotations.
        load, load_test: as `load_masks` and `load_test_masks`.
        if_requested: whether the masks are only read if LoadOptions say so.
    """

    def find_if_requested(name, options):
        is_searched = options.labels is None and (options.masks or not if_requested)
        return name if is_searched and find(name) else None

    return SourceKind(
        find_if_requested,
        lambda name, options: load(open_folder(name), options.held_out, options.skip_bad, options.ignore_index),
        lambda name, options: load_test(open_folder(name), options.split, options.skip_bad, options.ignore_index),
        annotation="masks",
    )


def _rendered(find, open_annotations):
    """The SourceKind of masks that are rendered from those of objects, if they are requested."""
    return _masked(find, open_annotations, load_object_masks, load_test_object_masks, if_requested=True)


def _tfds(masks):
    """The SourceKind of tensorflow-datasets, with their masks or with their other annotations."""

    def find(name, options):
        return find_builder(name, options.data_dir) if options.masks == masks else None

    def load(builder, options):
        masks = options.masks, options.ignore_index
        return load_tfds(builder, options.download, options.held_out, options.skip_bad, *masks)

    def load_test(builder, options):
        masks = options.masks, options.ignore_index
        return load_tfds_split(builder, options.split, options.download, options.skip_bad, *masks)

    return SourceKind(find, load, load_test, annotation="masks" if masks else "classes")


SOURCES = {
    "built-in": SourceKind(lambda name, options: DATASETS.get(name), _load_built_in, _load_built_in_test),
    "webdataset": SourceKind(
        lambda name, options: find_shards(name), *_archive(lambda paths, options: open_shards(paths))
    ),
    "hugging face": SourceKind(
        lambda name, options: name if is_hugging_face(name) else None,
        *_archive(lambda name, options: open_hugging_face(name, options.data_dir, options.download)),
    ),
    "localization": _annotated(find_localization, open_localization),
    "coco": _annotated(find_coco, open_coco),
    "voc": _annotated(find_voc, open_voc),
    "yolo": _annotated(find_yolo, open_yolo),
    "masks": _masked(find_masks, open_masks),
    "voc masks": _masked(find_voc_masks, open_voc_masks),
    "coco masks": _rendered(find_coco, open_coco),
    "yolo masks": _rendered(find_yolo, open_yolo),
    "folder": SourceKind(
        lambda name, options: name if os.path.exists(name) else None,
        _load_folder,
        _load_test_folder,
        has_image_files=True,
    ),
    "tensorflow-datasets": _tfds(masks=False),
    "tensorflow-datasets masks": _tfds(masks=True),
}
"""Kinds of data sets, in the order in which a name is compared with them."""


MASKED_DATA = (
    "a data set with masks: a folder with the folders images and masks, also below train, val and test or above them, "
    "with SegmentationClass and JPEGImages of PASCAL VOC, or with a JSON file of COCO; or a dataset of "
    "tensorflow-datasets"
)
"""What has masks of classes, for messages."""


def find_source(name, options: LoadOptions) -> tuple[str, Any]:
    """(the first kind in SOURCES that a data set is of, what its functions get); raises as `load_dataset`."""
    if isinstance(name, (str, os.PathLike)) and os.fspath(name):
        kinds = {kind: row for kind, row in SOURCES.items() if row.annotation == "masks" or not options.masks}
        found = ((kind, row.find(os.fspath(name), options)) for kind, row in kinds.items())
        if match := next((pair for pair in found if pair[1]), None):
            _check_options(name, match[0], options)
            return match
        if options.masks and (os.path.exists(name) or name in DATASETS):
            raise value_error("dataset", str(name), MASKED_DATA)
        if os.fspath(name).count(os.sep) > 1 or not isinstance(name, str) or name.startswith((".", "~", os.sep)):
            expected = "images and masks" if options.masks else "a folder for each class"
            raise FileNotFoundError(f"Expected a folder with {expected}. Received: dataset={str(name)!r}")
    expected = (
        f"one of {list(DATASETS)}, a folder of class folders, annotated images, Parquet files or tar files, "
        "hf://owner/name, or a dataset of tensorflow-datasets"
    )
    raise unknown_name_error("dataset", name, [*DATASETS, *list_tfds()], expected)


def _check_options(name, kind, options):
    """Raises ValueError for LoadOptions that do not apply to a data set of a kind."""
    if options.labels is not None and kind != "folder":
        raise value_error("labels", str(options.labels), f"left out for {str(name)!r}, which has labels")
    if options.ignore_index is not None and SOURCES[kind].annotation != "masks":
        raise value_error("ignore_index", options.ignore_index, f"left out for {str(name)!r}, read without masks")
