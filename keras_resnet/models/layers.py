"""Layers of a built model by name and role, and checks of models and inputs."""

from typing import Any

import keras
import numpy as np
from keras import layers

from keras_resnet.architecture.detector import Detector, backbone_spec
from keras_resnet.architecture.network import num_stages, stage_index
from keras_resnet.errors import check_known, value_error


def check_graph(model: keras.Model) -> None:
    """Raises ValueError unless `model` is a graph of layers: Functional, or Sequential and built."""
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise value_error("model", model, "a built Functional or Sequential model")


def check_network(model: keras.Model) -> None:
    """Raises ValueError unless `model` is a graph of layers with one input."""
    check_graph(model)
    if len(model.inputs) != 1:
        raise ValueError(f"`model` should have one input. Received: {model.name} with {len(model.inputs)}")


def check_inputs(model: keras.Model, inputs: Any) -> np.ndarray:
    """The inputs as a float32 array, checked to be a batch that fits `model`.

    Raises:
        ValueError: for an empty batch, for another shape than the model's, and for a model with several inputs.
    """
    check_network(model)
    expected = model.inputs[0].shape[1:]
    batch = np.asarray(keras.ops.convert_to_numpy(inputs), "float32")
    sides = zip(expected, batch.shape[1:], strict=False)
    if not batch.size or batch.ndim != len(expected) + 1 or any(want not in (None, got) for want, got in sides):
        raise ValueError(
            f"`inputs` should be a batch of the shape {(None, *expected)}, not empty. Received: shape {batch.shape}"
        )
    return batch


def convolutions(model: keras.Model) -> list[layers.Conv2D]:
    """The Conv2D layers of a model from first to last, without those of inner models.

    Raises:
        ValueError: if there are none.
    """
    check_network(model)
    found = [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]
    if not found:
        raise ValueError(f"`model` should have convolutions. Received: {model.name!r} with none among its layers")
    return found


def responses(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """{layer name: response} of each convolution, before ReLU and addition, from first to last.

    The response is the output of the batch norm that follows the convolution, or of the convolution itself if none
    does (the last convolution of F in a pre-activation network).
    """
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    normalised = {id(norm.input): norm.output for norm in norms}
    return {layer.name: normalised.get(id(layer.output), layer.output) for layer in convolutions(model)}


def endpoint_layers(model: keras.Model) -> dict[str, keras.Layer]:
    """The last layer of the stem and of each stage: {"stem": layer, "stage1": layer, ...}.

    Layers are recognized by the names of keras.applications, and are in topological order. A detector has those before
    its neck.
    """
    stages = len(backbone_spec(model.spec).stages) if isinstance(model, Detector) else num_stages(model)
    found = {}
    for layer in model.layers:
        if (number := stage_index(layer.name, stages)) <= stages:
            found[f"stage{number}" if number else "stem"] = layer
    return found


def find_layer(model: keras.Model, name: str) -> keras.Layer:
    """The layer with this name, or the last one of the endpoint with this name ("stem", "stage1", ...).

    Raises:
        ValueError: for an unknown name, with the nearest known ones, and for a layer that outputs no feature map.
    """
    check_network(model)
    known = endpoint_layers(model) | {layer.name: layer for layer in model.layers}
    maps = {key: layer for key, layer in known.items() if _outputs_map(layer)}
    check_known("layer", name, maps, "a layer with a feature map, or an endpoint such as 'stage2'")
    return maps[name]


def last_feature_map(model: keras.Model) -> keras.Layer:
    """The last layer that outputs a feature map; of a detector, the last one before its neck."""
    check_network(model)
    if isinstance(model, Detector):
        return list(endpoint_layers(model).values())[-1]
    maps = [layer for layer in model.layers if _outputs_map(layer)]
    if not maps:
        raise ValueError(f"`model` should have feature maps. Received: {model.name!r} with none among its layers")
    return maps[-1]


def _outputs_map(layer):
    """Whether a layer outputs a feature map, of rank 4; False for inner models, which are graphs of their own."""
    return not isinstance(layer, keras.Model) and len(getattr(layer.output, "shape", ())) == 4


def logits_of(model: keras.Model) -> keras.KerasTensor:
    """(B, classes) outputs of a classifier before its softmax or sigmoid.

    If necessary, they come from a copy of the last layer without its activation.

    Raises:
        ValueError: if `model` does not output (B, classes).
    """
    check_network(model)
    if len(model.outputs) != 1 or len(model.outputs[0].shape) != 2:
        raise ValueError(f"`model` should be a classifier. Received: a model with outputs {model.output_shape}")
    last = model.layers[-1]
    activated = getattr(last, "activation", None) in (keras.activations.softmax, keras.activations.sigmoid)
    if last.output is not model.outputs[0] or not (activated or isinstance(last, layers.Softmax)):
        return model.outputs[0]
    if isinstance(last, (layers.Softmax, layers.Activation)):
        return last.input
    linear = type(last).from_config({**last.get_config(), "activation": "linear"})
    logits = linear(last.input)
    linear.set_weights(last.get_weights())
    return logits


def class_scores(model: keras.Model) -> keras.KerasTensor:
    """(B, classes): the logits of a classifier; of a detector, the score of the best detection of each class.

    Raises:
        ValueError: if `model` is neither.
    """
    if not isinstance(model, Detector):
        return logits_of(model)
    chosen = keras.ops.one_hot(model.output["labels"], model.spec.classes)
    return keras.ops.max(chosen * model.output["scores"][..., None], axis=1)
