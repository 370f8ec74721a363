"""What a Keras model knows beyond its layers: its spec, facts about its weights, its data format."""

import keras
import numpy as np
from keras import layers


def model_spec(model):
    """The ResNetSpec of a model; None for a model that was not built from one."""
    return getattr(model, "spec", None)


def model_info(model):
    """A copy of the facts that belong to a model's weights: source, preprocessing, class names; {} if unknown."""
    return dict(getattr(model, "info", None) or {})


def copy_metadata(model, source):
    """Gives `model` the spec and the info of the model it was made from; returns `model`."""
    model.spec, model.info = model_spec(source), model_info(source)
    return model


def channel_axis(model):
    """Axis of the channels in a model's batches: 3, or 1 for channels first.

    The model's spec says it; a model without one is asked for the data format of its first convolution or pooling
    layer, and a model without such layers for Keras's configured data format.
    """
    if spec := model_spec(model):
        return spec.channel_axis
    spatial = (layers.Conv2D, layers.MaxPooling2D, layers.AveragePooling2D, layers.GlobalAveragePooling2D)
    formats = (layer.data_format for layer in model.layers if isinstance(layer, spatial))
    return 1 if next(formats, keras.config.image_data_format()) == "channels_first" else 3


def image_shape(model):
    """(height, width, channels) of a model's input images, whatever its data format."""
    first, *rest = model.input_shape[1:]
    return (*rest, first) if channel_axis(model) == 1 else (first, *rest)


def to_data_format(model, images):
    """(B, H, W, C) images in the model's data format: the same, or (B, C, H, W) for channels first."""
    return np.moveaxis(images, -1, channel_axis(model))


def to_channels_last(model, maps):
    """(B, H, W, C) feature maps, from the model's data format."""
    return np.moveaxis(maps, channel_axis(model), -1)
