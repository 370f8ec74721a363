"""`localize`: images -> their classes and a box for each, by a localizer or by a classifier's class activation maps."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from keras_resnet.architecture.localizer_spec import LocalizerSpec
from keras_resnet.architecture.metadata import model_spec, to_channels_last, to_data_format
from keras_resnet.data.crops import test_crop_box, whole_image_box
from keras_resnet.data.image_files import as_pil_image
from keras_resnet.data.labels import class_ids_and_names
from keras_resnet.data.prefetch import prepare_in_threads
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.protocols import LocalizationProtocol, get_localization_protocol, image_views
from keras_resnet.detection import Detection, image_sources
from keras_resnet.errors import check_integers, value_error
from keras_resnet.models.cloning import as_functional, clone
from keras_resnet.models.preprocessing import OTHER_TASKS, class_names, preprocessing, thresholds
from keras_resnet.models.transforms import channels_last, pooling_index
from keras_resnet.normalization import normalize
from keras_resnet.prediction import run_on_batch, softmax


class Localized(NamedTuple):
    """What was predicted for a batch of B images."""

    probabilities: np.ndarray
    """(B, K) float32."""
    boxes: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    """Classes (B, n) -> (boxes (B, n, 4) float32 as shares of the input's sides, scores (B, n) float32)."""


def is_localizer(model: Any) -> bool:
    """Whether a model, or an exported network, has a box head."""
    return getattr(model, "has_boxes", False) or isinstance(model_spec(model), LocalizerSpec)


class ImageLocalizer:
    """A localizer, or a classifier whose class activation maps give boxes, under a LocalizationProtocol.

    Args:
        model: a Localizer, exported or not, or a classifier that ends in global average pooling and a dense layer.
        protocol: LocalizationProtocol.

    Raises:
        ValueError: on construction, for other models, and for whole images and a box head that needs one size.
    """

    def __init__(self, model: Any, protocol: LocalizationProtocol):
        self.name, self.protocol = model.name, protocol
        self.preprocessing: Preprocessing = _preprocessing(model)
        names = class_names(model) if isinstance(model, keras.Model) else model.class_names
        self.classes: tuple[tuple[str, str], ...] = class_ids_and_names(names)
        """(id, name) of the K classes."""
        self._predict = _head_boxes(model, protocol) if is_localizer(model) else _map_boxes(model, protocol)

    def inputs(self, image: Any) -> list[np.ndarray]:
        """For each scale the inputs (1, h, w, C) float32 of an image."""
        scales = image_views([image], self.preprocessing, self.protocol.views)
        return [normalize(views[0], self.preprocessing.mode, "channels_last") for views in scales]

    def __call__(self, scales: list[np.ndarray]) -> Localized:
        """Inputs (B, h, w, C) of each scale -> Localized, with probabilities averaged and the boxes of the best scores.

        Raises:
            FloatingPointError: for probabilities or boxes that are NaN or infinite.
        """
        found = [self._predict(inputs) for inputs in scales]
        probabilities = np.mean([it.probabilities for it in found], axis=0)
        self._check(probabilities)
        return Localized(probabilities, partial(self._best_boxes, found))

    def _best_boxes(self, found, classes):
        boxes, scores = map(np.stack, zip(*(it.boxes(classes) for it in found), strict=True))
        self._check(boxes)
        best = scores.argmax(axis=0)[None]
        return (
            np.take_along_axis(boxes, best[..., None], axis=0)[0],
            np.take_along_axis(scores, best, axis=0)[0],
        )

    def _check(self, values):
        if not np.isfinite(values).all():
            raise FloatingPointError(f"`model` should return finite numbers. Received: NaN or Inf from {self.name}")

    def to_pixels(self, boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Boxes (B, n, 4) as shares of the input's sides -> in pixels of the images, and inside them.

        Args:
            boxes: what a Localized returns.
            sizes: (B, 2), height and width of the images.
        """
        height, width = np.asarray(sizes, "int32").T
        is_cropped = not self.protocol.scales
        crops = test_crop_box(height, width, self.preprocessing) if is_cropped else whole_image_box(height, width)
        top, left, crop_height, crop_width = keras.ops.convert_to_numpy(crops).T
        sides, corner = np.stack([crop_width, crop_height] * 2, axis=-1), np.stack([left, top] * 2, axis=-1)
        limits = np.stack([width, height] * 2, axis=-1)
        return np.clip(boxes * sides[:, None] + corner[:, None], 0, limits[:, None]).astype("float32")


def _preprocessing(model):
    """The Preprocessing of a model's images; without the normalisation that an exported network contains."""
    if not isinstance(model, keras.Model) and is_localizer(model):
        return model.preprocessing if model.metadata.raw else replace(model.preprocessing, mode="pixels")
    found = preprocessing(model) if isinstance(model, keras.Model) else None
    if not isinstance(found, Preprocessing) or (not is_localizer(model) and thresholds(model) is not None):
        expected = "a localizer, or a Keras classifier of one class an image"
        raise value_error("model", model.name, expected, OTHER_TASKS)
    return found


def _head_boxes(model, protocol):
    """A function of inputs that returns the Localized of a localizer."""
    if protocol.scales:
        if getattr(model_spec(model), "boxes", None) != "dense":
            expected = "(), as the box head needs images of one size", 'Only the boxes "dense" have no such head.'
            raise value_error("scales", protocol.scales, *expected)
        model = _of_any_size(model)
    run = partial(run_on_batch, model) if isinstance(model, keras.Model) else partial(_run_exported, model)

    def predict(inputs):
        outputs = {name: keras.ops.convert_to_numpy(it) for name, it in run(inputs).items()}

        def boxes(classes):
            chosen = np.minimum(classes, outputs["boxes"].shape[1] - 1)  # one box may be that of all classes
            found = np.take_along_axis(outputs["boxes"], chosen[..., None], axis=1)
            scores = outputs.get("scores", outputs["probabilities"])
            return found, np.take_along_axis(scores, classes, axis=1)

        return Localized(outputs["probabilities"], boxes)

    return predict


def _run_exported(model, inputs):
    """Outputs of an exported localizer, which takes pixels as integers, unless it is raw."""
    return model(inputs if model.metadata.raw else inputs.astype("uint8"))


def _map_boxes(model, protocol):
    """A function of inputs that returns the Localized of a classifier, by its class activation maps."""
    model = as_functional(model)
    if protocol.scales:
        model = _of_any_size(channels_last(model))
    position = pooling_index(model)
    dense = [layer for layer in model.layers[position:] if isinstance(layer, layers.Dense)]
    if len(dense) != 1:
        raise value_error("model", model.name, "a classifier with one dense layer, for class activation maps")
    has_logits = getattr(model.layers[-1], "activation", None) is keras.activations.linear
    network = keras.Model(model.inputs[0], [model.layers[position].input, model.outputs[0]])
    network.jit_compile = model.jit_compile
    kernel = keras.ops.convert_to_numpy(dense[0].kernel).astype("float32")

    def predict(inputs):
        features, outputs = (
            keras.ops.convert_to_numpy(it).astype("float32")
            for it in run_on_batch(network, to_data_format(model, inputs))
        )
        features = to_channels_last(model, features)

        def boxes(classes):
            maps = class_activation_maps(features, kernel, classes, inputs.shape[1:3])
            found = [[activation_box(one, protocol.threshold) for one in image] for image in maps]
            return np.array(found, "float32"), maps.max(axis=(2, 3))

        return Localized(softmax(outputs) if has_logits else outputs, boxes)

    return predict


def _of_any_size(model):
    """A copy of the model for images of any size."""
    copy = clone(model, (None, None, model.inputs[0].shape[-1]))
    if keras.backend.backend() == "tensorflow":
        copy.jit_compile = False  # XLA would compile again for every image size
    return copy


def class_activation_maps(
    features: np.ndarray, kernel: np.ndarray, classes: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Class activation maps (Zhou et al. 2016, arXiv:1512.04150, eq. 2), resized bilinearly: (B, n, H, W) float32.

    Args:
        features: (B, h, w, C), the last feature maps.
        kernel: (C, K), of the dense layer after global average pooling.
        classes: (B, n) integers.
        size: (H, W).
    """
    maps = np.einsum("bhwc,bnc->bhwn", features, kernel.T[classes])
    resized = keras.ops.image.resize(maps, size, interpolation="bilinear", data_format="channels_last")
    return np.moveaxis(keras.ops.convert_to_numpy(resized), -1, 1)


def activation_box(heat: np.ndarray, threshold: float) -> tuple[float, float, float, float]:
    """The box around the largest connected region of a map, as shares of its sides: x1, y1, x2, y2.

    >>> import numpy as np
    >>> activation_box(np.array([[0, 0, 0, 4], [0, 2, 3, 0], [0, 0, 1, 0], [5, 0, 0, 0]]), threshold=0.2)
    (0.25, 0.25, 0.75, 0.75)

    Args:
        heat: (H, W).
        threshold: smallest value in a region, as a share of the largest value of the map (Zhou et al. 2016, sec. 3.2:
            0.2). Of a map without positive values, it is the box of the whole map.
    """
    from scipy.ndimage import find_objects, label

    regions, _ = label(heat >= threshold * heat.max() if heat.max() > 0 else np.ones_like(heat, bool))
    largest = np.bincount(regions[regions > 0]).argmax()
    rows, columns = find_objects(regions)[largest - 1]
    height, width = heat.shape
    return columns.start / width, rows.start / height, columns.stop / width, rows.stop / height


def localize(
    images: Any,
    model: Any,
    top: int = 1,
    batch_size: int = 32,
    protocol: LocalizationProtocol | str = "localization",
    stream: bool = False,
) -> list[Detection] | Iterator[Detection]:
    """Classifies images and finds the box of each of the most probable classes.

    >>> import numpy as np
    >>> import keras_resnet
    >>> model = keras_resnet.create("resnet20", weights="cifar10")  # a classifier: by its class activation maps
    >>> (found,) = keras_resnet.localize(np.full((48, 64, 3), 128, "uint8"), model)
    >>> found.size, found.names, found.boxes.shape
    ((48, 64), ('cat',), (1, 4))

    Args:
        images: as for `detect`.
        model: a localizer, also what `load_exported` returned for one, or a Keras classifier that ends in global
            average pooling and a dense layer.
        top: number of classes for each image.
        batch_size: number of images that are in memory together.
        protocol: a name in LOCALIZATION_PROTOCOLS, or a LocalizationProtocol.
        stream: whether to return an iterator, which reads the images batch by batch as they are requested.

    Returns:
        A list with a Detection for each image, in order; an iterator of them if `stream`. Its objects are the `top`
        most probable classes, with their probabilities as scores; labels are counted from 1, as for `detect`.

    Raises:
        ValueError: for a folder without images, an object in memory that is not an image, a detector, a model of
            unknown preprocessing, and a protocol that the model does not allow.
        FileNotFoundError: if a file does not exist.
    """
    check_integers(top=top, batch_size=batch_size)
    localizer = ImageLocalizer(model, get_localization_protocol(protocol))
    found = _localizations(localizer, image_sources(images), top, 1 if localizer.protocol.scales else batch_size)
    return found if stream else list(found)


def _localizations(localizer, sources, top, batch_size) -> Iterator[Detection]:
    """Yields the Detection of each image."""

    def prepare(source):
        image = as_pil_image(source, localizer.preprocessing.channels)
        return localizer.inputs(image), image.size[::-1]

    for batch in prepare_in_threads(prepare, sources, batch_size):
        found = {index: image.value for index, image in enumerate(batch) if image.error is None}
        objects = dict(zip(found, _objects(localizer, list(found.values()), top), strict=True)) if found else {}
        for index, image in enumerate(batch):
            path = image.source if isinstance(image.source, Path) else None
            yield Detection(path, error=image.error, **objects.get(index, {}))


def _objects(localizer, prepared, top):
    """The fields of the Detection of each of some images, given as (inputs of each scale, size)."""
    inputs, sizes = zip(*prepared, strict=True)
    localized = localizer([np.concatenate(scale) for scale in zip(*inputs, strict=True)])
    classes = top_classes(localized.probabilities, top)
    boxes = localizer.to_pixels(localized.boxes(classes)[0], np.array(sizes))
    scores = np.take_along_axis(localized.probabilities, classes, axis=1)
    for row in range(len(prepared)):
        yield {
            "size": sizes[row],
            "boxes": boxes[row],
            "scores": scores[row],
            "labels": classes[row].astype("int32") + 1,
            "names": tuple(localizer.classes[index][1] for index in classes[row]),
        }


def top_classes(probabilities: np.ndarray, count: int) -> np.ndarray:
    """(B, n) indices of the `count` most probable classes, or of all, the most probable first; of equal ones the first.

    >>> import numpy as np
    >>> top_classes(np.array([[0.25, 0.5, 0.25]]), 2)
    array([[1, 0]])
    """
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
