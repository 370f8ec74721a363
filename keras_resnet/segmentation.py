"""`segment`: images -> the class of each pixel."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import keras
import numpy as np

from keras_resnet.architecture.metadata import model_spec
from keras_resnet.architecture.segmenter_spec import SegmenterSpec
from keras_resnet.data.detection_preprocessing import resize_bilinearly
from keras_resnet.data.image_files import as_pil_image
from keras_resnet.data.prefetch import prepare_in_threads
from keras_resnet.data.protocols import SegmentationProtocol, get_segmentation_protocol
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.detection import image_sources
from keras_resnet.errors import check_integers, value_error
from keras_resnet.models.preprocessing import class_names, colors, preprocessing
from keras_resnet.prediction import run_on_batch, softmax
from keras_resnet.variants import network_name

BAND_VALUES = 2**22
"""Probabilities of an image that are enlarged together, 16 MiB: those of a large image and many classes take
gigabytes."""

Colors = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """The class of each pixel of one image, or the error that kept its file from being read."""

    path: Path | None
    """None for an image in memory."""
    mask: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), "uint8"))
    """(H, W) uint8: class of each pixel of the upright image, from 0; 255 (IGNORED) in true masks: none."""
    class_names: tuple[str, ...] = ()
    """Names of all K classes."""
    colors: Colors | None = None
    """(red, green, blue) of each class, from 0 to 255; None: `default_colors`."""
    error: str | None = None

    def __repr__(self):
        return f"{type(self).__name__}(path={self.path}, size={self.size}, error={self.error!r})"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        height, width = self.mask.shape
        return height, width

    @property
    def classes(self) -> list[tuple[int, str, float]]:
        """(index, name, share of the image's pixels) of the classes that occur, the largest first.

        >>> import numpy as np
        >>> from keras_resnet.segmentation import Segmentation
        >>> Segmentation(None, np.array([[1, 1], [1, 0]], "uint8"), ("sky", "road", "car")).classes
        [(1, 'road', 0.75), (0, 'sky', 0.25)]
        """
        counts = np.bincount(self.mask.ravel(), minlength=len(self.class_names))[: len(self.class_names)]
        found = [index for index in np.argsort(-counts, kind="stable").tolist() if counts[index]]
        return [(index, self.class_names[index], float(counts[index] / self.mask.size)) for index in found]


class KerasSegmenter:
    """A Keras segmenter with its preprocessing, class names and colours.

    `segment` also takes other objects with the same attributes and methods, such as an exported segmenter.

    Args:
        model: what `create` returned for the name of a segmenter.

    Raises:
        ValueError: on construction, for other models.
    """

    def __init__(self, model: keras.Model):
        if not isinstance(model_spec(model), SegmenterSpec):
            hint = "`predict` takes classifiers, `detect` detectors; the arguments are `segment(images, model)`."
            raise value_error(
                "model", network_name(model), "a segmenter, such as `create('deeplabv3_resnet50', ...)`", hint
            )
        self.model, self.name = model, model.name
        self.class_names: tuple[str, ...] = tuple(class_names(model) or ())
        """Names of the K classes."""
        self.colors: Colors | None = colors(model)
        """Colours of the K classes, if they are known."""
        known: Any = preprocessing(model)
        self.preprocessing: SegmentationPreprocessing = known
        if keras.backend.backend() == "tensorflow" and not model.compiled:
            model.jit_compile = False  # XLA would compile again for every image size

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Normalised images (B, h, w, 3) float32 -> probabilities of the classes (B, h, w, K) float32."""
        return softmax(run_on_batch(self.model, images))


def is_segmenter(model: Any) -> bool:
    """Whether `segment` takes a model: a Keras segmenter, or an object with the methods of a KerasSegmenter."""
    prepared = getattr(model, "preprocessing", None)
    return isinstance(prepared, SegmentationPreprocessing) or isinstance(model_spec(model), SegmenterSpec)


def as_segmenter(model: Any) -> Any:
    """The model as a KerasSegmenter, unless it has the same methods already.

    Raises:
        ValueError: for a model that is not a segmenter.
    """
    has_methods = is_segmenter(model) and not isinstance(model, keras.Model)
    return model if has_methods else KerasSegmenter(model)


class ImageSegmenter:
    """A segmenter under a SegmentationProtocol, for images of a size.

    Args:
        model: a segmenter, also an exported one.
        protocol: SegmentationProtocol.
        size: length of the shorter side of its inputs in pixels; None: that of the model's preprocessing.
        batch_size: number of windows, or of images of one size, in a batch.

    Raises:
        ValueError: on construction, for other models, for a size that is invalid, and for a size, scales or windows and
            an exported network that resizes images itself.
    """

    def __init__(self, model: Any, protocol: SegmentationProtocol, size: int | None = None, batch_size: int = 1):
        self.segmenter, self.protocol, self.batch_size = as_segmenter(model), protocol, batch_size
        if getattr(self.segmenter, "resizes_images", False):
            for name, value in {"scales": protocol.scales, "window": protocol.window, "size": size}.items():
                if value:
                    raise value_error(name, value, f"left out: {self.segmenter.name} resizes images itself")
        self.preprocessing: SegmentationPreprocessing = self.segmenter.preprocessing.for_size(size)
        self.class_names: tuple[str, ...] = tuple(self.segmenter.class_names)
        self.colors: Colors | None = self.segmenter.colors

    def inputs(self, image: Any) -> "SegmenterInputs":
        """A path, a PIL image or a uint8 array (H, W, 3), prepared at each scale of the protocol.

        Raises:
            ValueError, OSError: as SegmentationPreprocessing.
        """
        upright = as_pil_image(image, 3)
        height, width = upright.height, upright.width
        return SegmenterInputs((height, width), [it(upright) for it in self._preprocessings(height, width)])

    def _preprocessings(self, height, width):
        """The SegmentationPreprocessing for each scale of an image."""
        if not self.protocol.scales:
            return [self.preprocessing]
        side = min(self.preprocessing.resized(height, width))
        return [self.preprocessing.for_size(max(1, round(side * scale))) for scale in self.protocol.scales]

    def masks(self, images: "Sequence[SegmenterInputs]") -> list[np.ndarray]:
        """The masks (H, W) uint8 of images whose inputs have the same sizes, each in the pixels of its image.

        Raises:
            FloatingPointError: for probabilities that are NaN or infinite.
        """
        scales = zip(*(image.scales for image in images), strict=True)
        maps = [self.probabilities(np.concatenate(scale)) for scale in scales]
        return [most_probable([it[row] for it in maps], image.size) for row, image in enumerate(images)]

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """Inputs (B, h, w, 3) of one scale -> probabilities (B, h, w, K), averaged over mirror images and windows."""
        probabilities = self._windowed(inputs)
        if self.protocol.flip:
            probabilities += self._windowed(inputs[:, :, ::-1])[:, :, ::-1]
            probabilities /= 2
        if not np.isfinite(probabilities).all():
            name = self.segmenter.name
            raise FloatingPointError(f"`model` should return finite numbers. Received: NaN or Inf from {name}")
        return probabilities

    def _windowed(self, inputs):
        """Probabilities, averaged over the windows that contain a pixel."""
        windows = self.protocol.windows(*inputs.shape[1:3])
        if len(windows) == 1:
            return np.array(self.segmenter.probabilities(np.ascontiguousarray(inputs)))
        pairs = [(image, window) for image in range(len(inputs)) for window in windows]
        total: Any = 0
        for first in range(0, len(pairs), self.batch_size):
            batch = pairs[first : first + self.batch_size]
            found = self.segmenter.probabilities(np.stack([_part(inputs[image], window) for image, window in batch]))
            if first == 0:
                total = np.zeros((*inputs.shape[:3], found.shape[-1]), "float32")
            for (image, window), probabilities in zip(batch, found, strict=True):
                _part(total[image], window)[...] += probabilities
        counts = np.zeros((*inputs.shape[1:3], 1), "float32")
        for window in windows:
            _part(counts, window)[...] += 1
        total /= counts
        return total


class SegmenterInputs(NamedTuple):
    """One image as inputs of a segmenter."""

    size: tuple[int, int]
    """Height and width of the image in pixels, upright."""
    scales: list[np.ndarray]
    """(1, h, w, 3) float32 for each scale."""


def _part(array, window):
    """The part of an array (H, W, ...) in a window (top, left, height, width)."""
    top, left, height, width = window
    return array[top : top + height, left : left + width]


def most_probable(maps: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The class of each pixel that is most probable in the mean of some maps, resized bilinearly to one size.

    >>> import numpy as np
    >>> from keras_resnet.segmentation import most_probable
    >>> most_probable([np.array([[[0.9, 0.1], [0.2, 0.8]]], "float32")], size=(1, 6))
    array([[0, 0, 0, 1, 1, 1]], dtype=uint8)

    As torch's `interpolate(mode="bilinear", align_corners=False)`, a band of rows after the other.

    Args:
        maps: (h, w, K) float32 each, probabilities, of one size or several.
        size: height and width of the mask, (H, W).

    Returns:
        (H, W) uint8; of equally probable classes the first.
    """
    height, width = size
    mask = np.empty(size, "uint8")
    rows = max(1, BAND_VALUES // (width * maps[0].shape[-1]))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        mask[top:bottom] = sum(_resized_rows(it, size, top, bottom) for it in maps).argmax(axis=-1)
    return mask


def _resized_rows(maps, size, top, bottom):
    """Rows from `top` to `bottom` of maps (h, w, K) that are resized to a size."""
    if maps.shape[:2] == size:
        return maps[top:bottom]
    scale = maps.shape[0] / size[0]
    return resize_bilinearly(maps, (bottom - top, size[1]), (0, top * scale, maps.shape[1], bottom * scale))


@overload
def segment(
    images: Any,
    model: Any,
    protocol: SegmentationProtocol | str = ...,
    batch_size: int = ...,
    stream: Literal[False] = ...,
    size: int | None = ...,
    **changes: Any,
) -> list[Segmentation]: ...
@overload
def segment(
    images: Any,
    model: Any,
    protocol: SegmentationProtocol | str = ...,
    batch_size: int = ...,
    *,
    stream: Literal[True],
    size: int | None = ...,
    **changes: Any,
) -> Iterator[Segmentation]: ...
def segment(
    images: Any,
    model: Any,
    protocol: SegmentationProtocol | str = "whole",
    batch_size: int = 1,
    stream: bool = False,
    size: int | None = None,
    **changes: Any,
) -> list[Segmentation] | Iterator[Segmentation]:
    """Predicts the class of each pixel of images.

    >>> import numpy as np
    >>> import keras_resnet
    >>> model = keras_resnet.create("fcn_resnet18", classes=3)
    >>> (found,) = keras_resnet.segment(np.zeros((48, 64, 3), "uint8"), model)
    >>> found.mask.shape, found.mask.dtype, found.class_names
    ((48, 64), dtype('uint8'), ('class 0', 'class 1', 'class 2'))

    Masks have the size of the images: probabilities are resized bilinearly to it, before the most probable class of
    each pixel is taken. They do not depend on the other images: only images whose inputs have the same size form a
    batch.

    Args:
        images: as for `detect`.
        model: a segmenter that `create` or `load_model` returned, or a KerasSegmenter.
        protocol: a name in SEGMENTATION_PROTOCOLS, or a SegmentationProtocol: scales, mirror images and windows whose
            probabilities are averaged.
        batch_size: number of successive images that are in memory together, and of windows in a batch.
        stream: whether to return an iterator, which reads the images batch by batch as they are requested.
        size: length of the shorter side of the model's inputs in pixels; None: that of the model's preprocessing.
        **changes: fields of the protocol to change, such as `flip=True` or `window=512`.

    Returns:
        A list with a Segmentation for each image, in order; an iterator of them if `stream`. Its `error` is set for a
        file that is not an image or is damaged.

    Raises:
        ValueError: for a folder without images, an object in memory that is not an image, a model that is not a
            segmenter, an unknown protocol, and a size that is invalid.
        FileNotFoundError: if a file does not exist.
        FloatingPointError: if the model returns NaN or Inf.
    """
    check_integers(batch_size=batch_size)
    segmenter = ImageSegmenter(model, get_segmentation_protocol(protocol, **changes), size, batch_size)
    segmentations = iterate_segmentations(segmenter, image_sources(images), batch_size)
    return segmentations if stream else list(segmentations)


def iterate_segmentations(
    segmenter: ImageSegmenter, sources: Iterable[Any], batch_size: int = 1
) -> Iterator[Segmentation]:
    """Yields the Segmentation of each source, in order; see `segment`.

    Args:
        segmenter: an ImageSegmenter.
        sources: paths (Path), contents of files (bytes), PIL images and uint8 arrays (H, W, 3); they are taken a few
            ahead.
        batch_size: number of successive images that are in memory together.
    """
    known = partial(Segmentation, class_names=segmenter.class_names, colors=segmenter.colors)
    for batch in prepare_in_threads(segmenter.inputs, sources, batch_size):
        paths = (image.source if isinstance(image.source, Path) else None for image in batch)
        found = [known(path, error=image.error) for path, image in zip(paths, batch, strict=True)]
        prepared = {index: image.value for index, image in enumerate(batch) if image.error is None}
        for indices in _of_equal_shape(prepared):
            masks = segmenter.masks([prepared[index] for index in indices])
            for index, mask in zip(indices, masks, strict=True):
                found[index] = replace(found[index], mask=mask)
        yield from found


def _of_equal_shape(prepared):
    """Lists of the indices of those SegmenterInputs that form a batch."""

    def shapes(index):
        return [scale.shape for scale in prepared[index].scales]

    return [list(indices) for _, indices in groupby(sorted(prepared, key=shapes), shapes)]
