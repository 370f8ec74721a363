"""The preprocessing and the class names that belong to a model's weights."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import keras
import numpy as np

from keras_resnet.architecture.detector_spec import DetectorSpec
from keras_resnet.architecture.metadata import channel_axis, image_shape, input_size, model_info, model_spec
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.labels import BACKGROUND, DEFAULT_THRESHOLD, coco_classes, imagenet_classes, placeholder_names
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.errors import unknown_name_error, value_error
from keras_resnet.models.nested import inherited_info
from keras_resnet.normalization import Normalization, normalize
from keras_resnet.variants import canonical_name, check_classifier
from keras_resnet.weights.catalog import WEIGHTS

_FIELD_OF_KIND: dict[str, Any] = {"min_size": DetectionPreprocessing, "shorter_side": SegmentationPreprocessing}
"""Field that only one kind of preprocessing has -> its class."""

OTHER_TASKS = "`keras_resnet.detect` takes detectors, `localize` localizers, `segment` segmenters."
"""Hint of errors about a model that is not a classifier."""


def preprocessing(
    model_or_weights: keras.Model | str, variant: str | None = None
) -> Preprocessing | DetectionPreprocessing | SegmentationPreprocessing:
    """The Preprocessing with which a model's weights were trained: a callable that prepares images.

    >>> from keras_resnet import preprocessing
    >>> preprocessing("torchvision:IMAGENET1K_V2")
    Preprocessing(mode='torch', size=224, resize=232, interpolation='bilinear', channels=3)

    Args:
        model_or_weights: a model whose weights have a known preprocessing, a model around such a network (with
            augmentation before it and a new head, for instance), or a tag of WEIGHTS, such as
            "torchvision:IMAGENET1K_V2".
        variant: the network, for a tag whose networks differ in their preprocessing.

    Returns:
        A Preprocessing; `preprocessing(model)(images)` is the input of `model`. For a model built for images of another
        size than that of its weights, it has this size and the same crop share. For a detector a
        DetectionPreprocessing, which returns an ImageBatch: the input is `preprocessing(model)(images).images`. For a
        segmenter a SegmentationPreprocessing.

    Raises:
        ValueError: if the preprocessing is not known; with another one, images would silently be misclassified.
    """
    if isinstance(model_or_weights, str):
        return _preprocessing_of_tag(model_or_weights, variant and canonical_name(variant))
    found = known_preprocessing(model_or_weights)
    if found is None:
        raise ValueError(
            "`model` should have weights with a known preprocessing, which random weights and files of unknown origin "
            "do not have. Use `preprocess_input(images, mode=...)` with the mode it was trained with, or set "
            "`model.info = {'preprocessing': Preprocessing(...).to_config()}`. "
            f"Received: model={getattr(model_or_weights, 'name', model_or_weights)!r}"
        )
    return found


def known_preprocessing(model: keras.Model) -> Any:
    """`preprocessing(model)`, or None if it is not known."""
    config = inherited_info(model).get("preprocessing")
    if config is None:
        return None
    kind: Any = next((kind for field, kind in _FIELD_OF_KIND.items() if field in config), Preprocessing)
    found, size = kind.from_config(config), input_size(model)
    return found.for_size(size) if size and isinstance(found, Preprocessing) else found


def classifier_preprocessing(model: keras.Model) -> Preprocessing:
    """`preprocessing(model)` of a classifier; raises ValueError for networks of other tasks too."""
    check_classifier("model", model, OTHER_TASKS)
    return cast(Preprocessing, preprocessing(model))


def preprocess_input(
    images: Any,
    mode: str | Normalization | Preprocessing | DetectionPreprocessing | SegmentationPreprocessing | keras.Model,
    data_format: str | None = None,
) -> Any:
    """Normalises the pixels of images for a model, without modifying the argument, unlike keras.applications.

    >>> import numpy as np
    >>> import keras_resnet
    >>> images = np.array([[[[0, 127.5, 255]]]])
    >>> keras_resnet.preprocess_input(images, mode="tf", data_format="channels_last")
    array([[[[-1.,  0.,  1.]]]])

    Images are not resized, even if `mode` is a Preprocessing or a model; `preprocessing(model)(images)` does that.

    Args:
        images: (B, H, W, C) or (H, W, C), integers or floats in 0..255, RGB: a NumPy array, a tensor of the Keras
            backend, or a KerasTensor. For "channels_first", (B, C, H, W) or (C, H, W).
        mode: a name in MODES ("caffe", "torch", "tf", "cifar", "pixels"), a Normalization, a Preprocessing, or a model
            whose preprocessing is known.
        data_format: "channels_last", "channels_first", or None for that of the model, else Keras's configured format.

    Returns:
        The same type and shape: float32, or the dtype of `images` if that is a float. float16 and bfloat16 are computed
        in float32 and rounded once.

    Raises:
        ValueError: for an unknown mode or data format, another rank, or another number of channels than the mode has,
            and for a model of unknown preprocessing.
    """
    if isinstance(mode, keras.Model):
        data_format = data_format or ("channels_first" if channel_axis(mode) == 1 else "channels_last")
        mode = preprocessing(mode)
    kinds = (Preprocessing, DetectionPreprocessing, SegmentationPreprocessing)
    return normalize(images, mode.mode if isinstance(mode, kinds) else mode, data_format)


def set_preprocessing(model: keras.Model, default: Preprocessing, mode: str | None) -> None:
    """Sets the model's preprocessing to `default` with another mode, unless its weights already define one.

    Its size and channels become those of the model. A mode of None changes nothing.
    """
    if mode is None:
        return
    if known := known_preprocessing(model):
        if known.mode != mode:
            warnings.warn(f"mode={mode!r} is ignored: the weights of {model.name} define {known.mode!r}", stacklevel=2)
        return
    found = replace(default.for_size(input_size(model) or default.size), mode=mode, channels=image_shape(model)[-1])
    model.info = model_info(model) | {"preprocessing": found.to_config()}


def set_class_names(model: keras.Model, names: Sequence[str]) -> None:
    """Sets the names of a detector's classes, in the order of its labels from 1, or of a segmenter's, from 0.

    Only for weights that have none.

    Raises:
        ValueError: for another number of names, and for weights with other names.
    """
    background = [BACKGROUND] if isinstance(model_spec(model), DetectorSpec) else []
    known, given = class_names(model) or [], [*background, *names]
    first = len(background)
    if len(given) != len(known):
        expected = f"{len(known) - first} names, one for each class of {model.name}"
        raise value_error("class_names", list(names), expected)
    if model_info(model).get("class_names") not in (None, given):
        raise value_error("class_names", list(names), f"left out: the weights have the names {known[first:]}")
    model.info = model_info(model) | {"class_names": given}


def weights_digest(model: keras.Model) -> str:
    """SHA-256 of a model's weights, in hexadecimal digits."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _preprocessing_of_tag(tag, variant):
    found = {source.preprocessing for (name, t), source in WEIGHTS.items() if t == tag and variant in (None, name)}
    if len(found) == 1:
        return found.pop()
    if not found:
        raise unknown_name_error("model_or_weights", tag, sorted({tag for _, tag in WEIGHTS}))
    raise value_error("variant", variant, f"the network: the weights of {tag!r} differ in their preprocessing")


def class_names(model: keras.Model) -> list[str] | None:
    """The class names stored in a model; else None for 1000 classes (ImageNet's), or "class 0", "class 1", ...

    Those of a detector are indexed by its labels: "__background__" comes first. Without stored names, 91 are COCO's.
    """
    spec, stored = model_spec(model), inherited_info(model).get("class_names")
    count = getattr(spec, "classes", None) or model.output_shape[-1]
    if stored and len(stored) == count:
        return stored
    if isinstance(spec, DetectorSpec):
        return list(coco_classes()) if count == len(coco_classes()) else [BACKGROUND, *placeholder_names(count)[1:]]
    return None if count == len(imagenet_classes()) else placeholder_names(count)


def colors(model: keras.Model) -> tuple[tuple[int, int, int], ...] | None:
    """Red, green and blue, from 0 to 255, of each class of a segmenter, as its data set draws them; None if unknown.

    >>> import keras_resnet
    >>> from keras_resnet.models.preprocessing import colors
    >>> model = keras_resnet.create("fcn_resnet18", classes=2)
    >>> model.info["colors"] = [[128, 64, 128], [70, 130, 180]]
    >>> colors(model)
    ((128, 64, 128), (70, 130, 180))
    """
    stored = inherited_info(model).get("colors")
    count = getattr(model_spec(model), "classes", None)
    if not stored or len(stored) != count or any(len(color) != 3 for color in stored):
        return None
    limited = ([min(max(value, 0), 255) for value in color] for color in stored)
    return tuple((red, green, blue) for red, green, blue in limited)


def thresholds(model: keras.Model) -> tuple[float, ...] | None:
    """The probability of each class from which on a multi-label model predicts it; None for one class an image."""
    info = inherited_info(model)
    if not info.get("multi_label"):
        return None
    return tuple(info.get("thresholds") or [DEFAULT_THRESHOLD] * model.output_shape[-1])
