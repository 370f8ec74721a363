"""`detect`: images -> the boxes, classes and masks of objects."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from io import IOBase
from itertools import chain, groupby
from os import PathLike
from pathlib import Path
from typing import Any, Literal, overload

import keras
import numpy as np

from keras_resnet.architecture.detector_spec import DetectorSpec
from keras_resnet.architecture.metadata import model_spec
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing, ImageBatch
from keras_resnet.data.image_files import find_images, image_list
from keras_resnet.data.masks import encode_mask, paste_mask
from keras_resnet.data.objects import corner_and_sides
from keras_resnet.data.prefetch import prepare_in_threads
from keras_resnet.errors import check_integers, is_number, value_error
from keras_resnet.models.preprocessing import class_names, preprocessing
from keras_resnet.prediction import run_on_batch


@dataclass(frozen=True, eq=False)
class Detection:
    """The objects that a detector found in one image, or the error that kept its file from being read."""

    path: Path | None
    """None for an image in memory."""
    size: tuple[int, int] = (0, 0)
    """Height and width of the image in pixels, upright."""
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), "float32"))
    """(N, 4) float32: x1, y1, x2, y2 in pixels of the image, the object with the highest score first."""
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, "float32"))
    """(N,) float32, from 0 to 1."""
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, "int32"))
    """(N,) int32: classes, numbered from 1 as by torchvision, where 0 is the background."""
    names: tuple[str, ...] = ()
    """Names of the N classes."""
    mask_probabilities: np.ndarray | None = None
    """(N, 28, 28) float32: probabilities of the object on a grid over its box; None from a detector without masks."""
    error: str | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def masks(self) -> np.ndarray | None:
        """(N, H, W) bool: masks of the objects in pixels of the image, computed at every access; None without masks."""
        if self.mask_probabilities is None:
            return None
        return np.array([self.mask(index) for index in range(len(self))], bool).reshape(-1, *self.size)

    def mask(self, index: int) -> np.ndarray:
        """(H, W) bool: the mask of one object."""
        mask = np.zeros(self.size, bool)
        top, left, part = self.mask_part(index)
        mask[top : top + part.shape[0], left : left + part.shape[1]] = part
        return mask

    def mask_part(self, index: int) -> tuple[int, int, np.ndarray]:
        """First row, first column and (h, w) bool mask of the part of the image that contains one object."""
        if self.mask_probabilities is None:
            raise ValueError("`detection` should have masks. Received: one of a detector without masks")
        return paste_mask(self.mask_probabilities[index], self.boxes[index], self.size)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """The objects as rows of COCO's results format, with JSON values; masks as compressed RLE.

        >>> import numpy as np
        >>> from keras_resnet.detection import Detection
        >>> box, score = np.array([[1, 2, 4, 8]], "float32"), np.array([0.5], "float32")
        >>> Detection(None, (10, 20), box, score, np.array([3]), ("car",)).to_coco(image_id=7)
        [{'image_id': 7, 'category_id': 3, 'bbox': [1.0, 2.0, 3.0, 6.0], 'score': 0.5}]
        """
        columns = (self.labels.tolist(), corner_and_sides(self.boxes).tolist(), self.scores.tolist())
        rows = [
            {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
            for label, box, score in zip(*columns, strict=True)
        ]
        if self.mask_probabilities is not None:
            for index, row in enumerate(rows):
                row["segmentation"] = encode_mask(self.mask(index))
        return rows


class KerasDetector:
    """A Keras detector with its preprocessing and class names.

    `detect` also takes other objects with the same attributes and methods, such as an exported detector.

    Args:
        model: what `create` returned for the name of a detector.
        **sizes: fields of its DetectionPreprocessing to change, such as `min_size`.

    Raises:
        ValueError: on construction, for other models, and for sizes that are invalid.
    """

    def __init__(self, model: keras.Model, **sizes: int):
        if not isinstance(model_spec(model), DetectorSpec):
            name = getattr(model, "name", model)
            hint = (
                "Classifiers are for `keras_resnet.predict`, segmenters for `segment`; write `detect(images, model)`."
            )
            raise value_error("model", name, "a detector, such as `create('fasterrcnn_resnet50_fpn', ...)`", hint)
        self.model, self.name = model, model.name
        self.class_names: tuple[str, ...] = tuple(class_names(model) or ())
        """Names of the labels, the background first."""
        known: Any = preprocessing(model)
        self.preprocessing: DetectionPreprocessing = replace(known, **sizes)
        self.score_threshold: float = model.settings.score_threshold
        """Smallest score that it returns."""

    def prepare(self, image: Any) -> ImageBatch:
        """A path, a PIL image or a uint8 array (H, W, 3) as a batch of one; batches of equal shape are concatenated."""
        return self.preprocessing(image)

    def detections(self, batch: ImageBatch) -> dict[str, np.ndarray]:
        """The outputs of a Detector for a batch, with `boxes` (B, N, 4) in pixels of the original images."""
        outputs = {name: keras.ops.convert_to_numpy(it) for name, it in run_on_batch(self.model, batch.images).items()}
        return outputs | {"boxes": batch.to_original(outputs["boxes"])}


@overload
def detect(
    images: Any,
    model: Any,
    score_threshold: float = ...,
    batch_size: int = ...,
    stream: Literal[False] = ...,
    min_size: int | None = ...,
    max_size: int | None = ...,
) -> list[Detection]: ...
@overload
def detect(
    images: Any,
    model: Any,
    score_threshold: float = ...,
    batch_size: int = ...,
    *,
    stream: Literal[True],
    min_size: int | None = ...,
    max_size: int | None = ...,
) -> Iterator[Detection]: ...
def detect(
    images: Any,
    model: Any,
    score_threshold: float = 0.5,
    batch_size: int = 1,
    stream: bool = False,
    min_size: int | None = None,
    max_size: int | None = None,
) -> list[Detection] | Iterator[Detection]:
    """Finds objects in images: their boxes, classes, scores, and masks if the detector has them.

    >>> import numpy as np
    >>> import keras_resnet
    >>> model = keras_resnet.create("fasterrcnn_resnet18_fpn", classes=3, min_size=64)
    >>> (found,) = keras_resnet.detect(np.zeros((48, 64, 3), "uint8"), model, score_threshold=0.5)
    >>> found.size, found.boxes.shape == (len(found), 4), found.masks
    ((48, 64), True, None)

    The detections of an image do not depend on the other images: only images whose inputs have the same size form a
    batch.

    Args:
        images: a file, a folder (searched for images, with its folders), the contents of a file (bytes), a PIL image, a
            uint8 array (H, W, 3), or a sequence or iterator of these, of which an iterator is read a few images ahead.
            Images are turned upright by their EXIF orientation.
        model: a detector that `create` or `load_model` returned, or a KerasDetector.
        score_threshold: smallest score of an object; the model returns none below that of its `settings`.
        batch_size: number of successive images that are in memory together.
        stream: whether to return an iterator, which reads the images batch by batch as they are requested.
        min_size: length of the shorter side of the model's inputs in pixels; None: that of the model's preprocessing.
        max_size: largest length of their longer side in pixels; None: that of the model's preprocessing.

    Returns:
        A list with a Detection for each image, in order; an iterator of them if `stream`. Its `error` is set for a
        file that is not an image or is damaged.

    Raises:
        ValueError: for a folder without images, an object in memory that is not an image, a model that is not a
            detector, and a threshold or sizes that are invalid.
        FileNotFoundError: if a file does not exist.
    """
    check_integers(batch_size=batch_size)
    if not is_number(score_threshold) or not 0 <= score_threshold <= 1:
        raise value_error("score_threshold", score_threshold, "a number from 0 to 1")
    detector = as_detector(model, min_size=min_size, max_size=max_size)
    if score_threshold < detector.score_threshold:
        least = f"its own is {detector.score_threshold}, see `keras_resnet.with_settings`"
        warnings.warn(f"{detector.name} returns no scores below its threshold: {least}", stacklevel=2)
    detections = iterate_detections(detector, image_sources(images), batch_size, score_threshold)
    return detections if stream else list(detections)


def is_detector(model: Any) -> bool:
    """Whether `detect` takes a model."""
    return hasattr(model, "detections") or isinstance(model_spec(model), DetectorSpec)


def as_detector(model: Any, **sizes: int | None) -> Any:
    """The model as a KerasDetector with other sizes of its inputs, unless it has the same methods already.

    Raises:
        ValueError: for a model that is not a detector, and for sizes that are invalid.
    """
    changes = {name: size for name, size in sizes.items() if size is not None}
    if not hasattr(model, "detections"):
        return KerasDetector(model, **changes)
    for name, size in changes.items():
        raise value_error(name, size, "None: the sizes of an exported detector are fixed")
    return model


def image_sources(images: Any) -> Iterable[Any]:
    """Paths of files, and images in memory; a list, or an iterator of what an iterator yields. See `detect`."""
    if isinstance(images, Iterator) and not isinstance(images, IOBase):
        return chain.from_iterable(map(_files_in, images))
    return list(chain.from_iterable(map(_files_in, image_list(images))))


def _files_in(image):
    """Paths of a file or the files in a folder, or the image in memory, as a list."""
    return find_images(image) if isinstance(image, (str, PathLike)) else [image]


def iterate_detections(
    detector: Any, sources: Iterable[Any], batch_size: int, score_threshold: float
) -> Iterator[Detection]:
    """Yields the Detection of each source, in order; see `detect`.

    Args:
        detector: a KerasDetector, or an exported detector.
        sources: paths (Path), contents of files (bytes), PIL images and uint8 arrays (H, W, 3); they are taken a few
            ahead.
        batch_size, score_threshold: as for `detect`.
    """
    for batch in prepare_in_threads(detector.prepare, sources, batch_size):
        paths = (image.source if isinstance(image.source, Path) else None for image in batch)
        found = [Detection(path, error=image.error) for path, image in zip(paths, batch, strict=True)]
        prepared = {index: image.value for index, image in enumerate(batch) if image.error is None}
        for indices in _of_equal_shape(prepared):
            inputs = ImageBatch.concatenate([prepared[index] for index in indices])
            outputs = detector.detections(inputs)
            for row, index in enumerate(indices):
                size = tuple(inputs.original_sizes[row].astype(int).tolist())
                of_image = {name: values[row] for name, values in outputs.items()}
                objects = _objects(of_image, detector.class_names, score_threshold)
                found[index] = replace(found[index], size=size, **objects)
        yield from found


def _of_equal_shape(prepared):
    """Lists of the indices of those ImageBatches that can be concatenated."""

    def shape(index):
        return prepared[index].images.shape

    return [list(indices) for _, indices in groupby(sorted(prepared, key=shape), shape)]


def _objects(outputs, names, score_threshold):
    """The fields of a Detection from the outputs of a detector for one image, with the objects from a score on."""
    kept = np.flatnonzero(outputs["scores"][: outputs["count"]] >= score_threshold)
    labels = outputs["labels"][kept]
    return {
        "boxes": outputs["boxes"][kept],
        "scores": outputs["scores"][kept],
        "labels": labels,
        "names": tuple(names[label] for label in labels),
        "mask_probabilities": outputs["masks"][kept] if "masks" in outputs else None,
    }
