"""Models around other models, such as a network with augmentation before it and a new head: what they inherit."""

from dataclasses import replace

import keras
import numpy as np

from keras_resnet.architecture.metadata import (
    image_shape,
    input_size,
    model_info,
    model_spec,
    to_channels_last,
    to_data_format,
)
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.preprocessing import Preprocessing

MAX_PIXEL = 256
"""Layers that return larger values for pixels in 0..255 were made for other inputs, such as pixels in 0..1."""


def inner_models(model: keras.Model) -> list[keras.Model]:
    """The models among the layers of a model, without those inside them."""
    return [layer for layer in getattr(model, "layers", ()) if isinstance(layer, keras.Model)]


def inherited_spec(model: keras.Model) -> ResNetSpec | None:
    """The spec of a model, or of the first network inside it that has one."""
    return model_spec(model) or next(filter(None, map(inherited_spec, inner_models(model))), None)


def inherited_info(model: keras.Model) -> dict:
    """The info of a model, and what it inherits from the networks inside it.

    The preprocessing is that of the inner network, if the layers before it leave pixels as they are, or accounts for
    them, as `preprocessing_before` does; networks that need different ones leave it unknown. The other facts, such as
    class names, are only inherited by a model that returns the outputs of the inner network.
    """
    info = model_info(model)
    inner = inner_models(model)
    if not inner or info.get("preprocessing"):
        return info
    graph = functional(model)
    for network in inner:
        if any(tensor._keras_history.operation is network for tensor in graph.outputs):
            info = inherited_info(network) | info
    info.pop("preprocessing", None)
    found = [_inherited_preprocessing(graph, network) for network in inner]
    known = [config for config in found if config is not None]
    return info | {"preprocessing": known[0]} if known and all(config == known[0] for config in known) else info


def functional(model: keras.Model) -> keras.Model:
    """The model as a Functional one: a Sequential model is converted, other models are returned as they are."""
    if isinstance(model, keras.Sequential) and model.built:
        return keras.Model(model.inputs, model.outputs[0], name=model.name)
    return model


def _inherited_preprocessing(graph, network):
    """The preprocessing of the inner network as that of the whole model, as JSON values; None if it is not known."""
    config = inherited_info(network).get("preprocessing")
    calls = [node for nodes in graph._nodes_by_depth.values() for node in nodes if node.operation is network]
    if config is None or len(calls) != 1 or len(graph.inputs) != 1:
        return None
    needed = Preprocessing.from_config(config)
    needed = needed.for_size(input_size(network) or needed.size)
    found = preprocessing_before(graph, calls[0].input_tensors[0], needed)
    return found and found.to_config()


def preprocessing_before(model: keras.Model, inputs: keras.KerasTensor, needed: Preprocessing) -> Preprocessing | None:
    """The preprocessing of a model some of whose layers prepare images for the network that follows them.

    Layers that do not change pixels (augmentation, resizing) leave the network's normalisation to be done before the
    model. All others (`Rescaling`, `Normalization`, `Preprocessing.layer()`, `preprocess_input`) normalise, so that the
    model takes pixels in 0..255. Layers that resize or crop get the whole centre square.

    Args:
        model: a model with one input, which knows no preprocessing itself.
        inputs: the input of the network inside it.
        needed: the preprocessing of this network.

    Returns:
        The preprocessing of `model`; None if its layers seem to be made for other values than pixels, or for
        another number of channels.
    """
    if inputs is model.inputs[0]:
        return needed
    if image_shape(model)[-1] != needed.channels:
        return None
    size = input_size(model) or needed.resize or needed.size
    colours = np.random.default_rng(0).integers(0, 256, (16, needed.channels)).astype("float32")
    colours[0] = 0
    images = np.tile(colours[:, None, None], (1, size, size, 1))
    images[:, 0, 0] = colours[0]
    outputs = keras.Model(model.inputs[0], inputs)(to_data_format(model, images), training=False)
    outputs = to_channels_last(model, keras.ops.convert_to_numpy(outputs))
    values = outputs[:, outputs.shape[1] // 2, outputs.shape[2] // 2]
    if not (np.abs(values) <= MAX_PIXEL).all():
        return None
    unchanged = values.shape == colours.shape and np.allclose(values, colours, atol=0.01)
    cropped = not np.allclose(outputs[:, 0, 0], values[0], atol=0.01)  # the corner is not black, or gone
    found = replace(needed, mode=needed.mode if unchanged else "pixels")
    return replace(found, size=size, resize=needed.resize and size) if cropped else found
