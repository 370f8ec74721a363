"""What a Keras model knows beyond its layers: its spec, facts about its weights, its data format."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import keras
import numpy as np

from keras_resnet.architecture.detector_spec import DetectorSpec
from keras_resnet.architecture.localizer_spec import LocalizerSpec
from keras_resnet.architecture.segmenter_spec import SegmenterSpec
from keras_resnet.architecture.spec import ResNetSpec, spec_from_config
from keras_resnet.normalization import Normalization
from keras_resnet.schema import checked


class PreprocessingInfo(TypedDict):
    """What of a Preprocessing's values is checked when a model is loaded; the Preprocessing checks all of them."""

    mode: str | Normalization


class Info(TypedDict, total=False):
    """Facts about a model's weights on which functions rely; there may be others."""

    preprocessing: PreprocessingInfo | None
    class_names: list[str] | None
    colors: list[list[int]] | None
    multi_label: bool
    thresholds: list[float] | None
    results: dict[str, Any]


class StoredMetadata(TypedDict, total=False):
    """What a file of a network has beside the arrays."""

    spec: dict[str, Any] | None
    info: Info | None


class NetworkMetadata(NamedTuple):
    """Checked metadata of a file of a network."""

    spec: ResNetSpec | DetectorSpec | LocalizerSpec | SegmenterSpec | None
    info: dict[str, Any]
    """Facts about the weights as JSON values, `model.info`."""


def checked_metadata(metadata: Mapping | None) -> NetworkMetadata:
    """The metadata of a file as StoredMetadata says; without metadata, no spec and no facts.

    Raises:
        ValueError: for values that are not those of a spec or an info.
    """
    metadata = metadata or {}
    found = checked(metadata, StoredMetadata, "metadata")
    spec = _stored_spec(found["spec"]) if found.get("spec") else None
    return NetworkMetadata(spec, dict(metadata.get("info") or {}))


def _stored_spec(config):
    """The spec of a network; those around a backbone are told apart by a field that only they have."""
    if "backbone" not in config:
        return spec_from_config(config)
    kind = LocalizerSpec if "boxes" in config else SegmenterSpec if "rates" in config else DetectorSpec
    return spec_from_config(config | {"backbone": spec_from_config(config["backbone"])}, kind)


def model_spec(model: keras.Model) -> ResNetSpec | None:
    """The ResNetSpec of a model; None for a model that was not built from one."""
    return getattr(model, "spec", None)


def model_info(model: keras.Model) -> dict:
    """A copy of the facts that belong to a model's weights: source, preprocessing, class names; {} if unknown."""
    return dict(getattr(model, "info", None) or {})


def info_without_head(info: dict) -> dict:
    """The facts about weights without those about their classifier, for a model with a new one."""
    of_head = ("class_names", "colors", "multi_label", "thresholds", "results")
    return {name: fact for name, fact in info.items() if name not in of_head}


def copy_metadata(model, source):
    """Gives `model` the spec, the info and a detector's settings of the model it was made from; returns `model`."""
    model.spec, model.info = model_spec(source), model_info(source)
    if settings := getattr(source, "settings", None):
        model.settings = settings
    return model


def channel_axis(model: keras.Model) -> int:
    """Axis of the channels in a model's batches: 3, or 1 for channels first.

    The model's spec decides; without one, the data format of the first layer that has one, of inner models too; and
    for a model without such layers, Keras's configured data format.
    """
    if spec := model_spec(model):
        return spec.channel_axis
    return 1 if next(_data_formats(model), keras.config.image_data_format()) == "channels_first" else 3


def _data_formats(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _data_formats(layer)
        elif getattr(layer, "data_format", None) in ("channels_first", "channels_last"):
            yield layer.data_format


def layer_channel_axis(layer: keras.Layer) -> int:
    """Axis of the channels in what a layer returns: -1, or 1 for channels first."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def image_shape(model: keras.Model) -> tuple:
    """(height, width, channels) of a model's input images, whatever its data format."""
    first, *rest = model.input_shape[1:]
    return (*rest, first) if channel_axis(model) == 1 else (first, *rest)


def input_size(model: keras.Model) -> int | None:
    """Side of a model's square input images in pixels; None if they may have any size, or are not square."""
    if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4:
        return None
    height, width, _ = image_shape(model)
    return height if height == width else None


def to_data_format(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """(B, H, W, C) images in the model's data format: the same, or (B, C, H, W) for channels first."""
    return np.moveaxis(images, -1, channel_axis(model))


def to_channels_last(model: keras.Model, maps: np.ndarray) -> np.ndarray:
    """(B, H, W, C) feature maps, from maps in the model's data format."""
    return np.moveaxis(maps, channel_axis(model), -1)
