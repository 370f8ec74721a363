"""A built model from inside: its layers by name and by role, and whether images fit it."""

import keras
import numpy as np
from keras import layers

from keras_resnet.architecture.network import num_stages, stage_index
from keras_resnet.errors import unknown_name_error


def check_graph(model):
    """Raises ValueError unless `model` is a graph of layers: Functional, or Sequential and built."""
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ValueError(f"`model` should be a built Functional or Sequential model. Received: model={model!r}")


def check_network(model):
    """Raises ValueError unless `model` is a graph of layers with one input."""
    check_graph(model)
    if len(model.inputs) != 1:
        raise ValueError(f"`model` should have one input. Received: {model.name!r} with {len(model.inputs)}")


def check_inputs(model, inputs):
    """Network inputs as a float32 array, if they are a batch that fits `model`.

    Raises:
        ValueError: for an empty batch, for another shape than the model's, and for a model with several inputs.
    """
    check_network(model)
    expected = model.inputs[0].shape[1:]
    batch = np.asarray(keras.ops.convert_to_numpy(inputs), "float32")
    fits = batch.ndim == len(expected) + 1 and all(
        want in (None, got) for want, got in zip(expected, batch.shape[1:], strict=True)
    )
    if not fits or not batch.size:
        raise ValueError(
            f"`inputs` should be a batch of the shape {(None, *expected)}, not empty. Received: shape {batch.shape}"
        )
    return batch


def convolutions(model):
    """The Conv2D layers of a model, first to last; models within it are not looked into.

    Raises:
        ValueError: if there is none.
    """
    check_network(model)
    found = [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]
    if not found:
        raise ValueError(f"`model` should have convolutions. Received: {model.name!r} with none among its layers")
    return found


def responses(model):
    """What leaves each convolution, before ReLU and addition: {layer name: Keras tensor}, first to last.

    That is the output of the batch norm that reads the convolution, or, where none does (the last convolution of F in
    a pre-activation net), of the convolution itself.
    """
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    normalised = {id(norm.input): norm.output for norm in norms}
    return {layer.name: normalised.get(id(layer.output), layer.output) for layer in convolutions(model)}


def endpoints_of(model):
    """The layers that end a residual network's stem and stages: {"stem": layer, "stage1": layer, ...}.

    They are found by the names of keras.applications, so in its networks too. A layer comes after all that it depends
    on, and the end of a stage depends on all of its stage.
    """
    stages, found = num_stages(model), {}
    for layer in model.layers:
        if (number := stage_index(layer.name, stages)) <= stages:
            found[f"stage{number}" if number else "stem"] = layer
    return found


def find_layer(model, name):
    """The layer with a feature map, (B, h, w, C) or (B, C, h, w), that `name` means.

    Args:
        model: keras.Model.
        name: of a layer, or of an endpoint of a residual network ("stem", "stage1", ...).

    Raises:
        ValueError: for an unknown name, with the nearest known ones, and for a layer without height and width.
    """
    check_network(model)
    known = endpoints_of(model) | {layer.name: layer for layer in model.layers}
    maps = {key: layer for key, layer in known.items() if _leaves_maps(layer)}
    if name not in maps:
        raise unknown_name_error(
            "layer", name, maps, "a layer with a feature map, by its name, or an endpoint such as 'stage2'"
        )
    return maps[name]


def last_feature_map(model):
    """The last layer that leaves height and width."""
    check_network(model)
    maps = [layer for layer in model.layers if _leaves_maps(layer)]
    if not maps:
        raise ValueError(f"`model` should have feature maps. Received: {model.name!r} with none among its layers")
    return maps[-1]


def _leaves_maps(layer):
    """Whether its output is of rank 4; the output of a model within the model is no part of this graph."""
    return not isinstance(layer, keras.Model) and len(getattr(layer.output, "shape", ())) == 4


def class_scores(model):
    """(B, classes) scores of a classifier before its softmax, as a Keras tensor.

    A last layer that ends in a softmax is taken twice: once without, with the same weights.

    Raises:
        ValueError: if the outputs of `model` are no (B, classes).
    """
    check_network(model)
    if len(model.outputs) != 1 or len(model.outputs[0].shape) != 2:
        raise ValueError(f"`model` should be a classifier. Received: a model with outputs {model.output_shape}")
    last = model.layers[-1]
    ends_in_softmax = getattr(last, "activation", None) is keras.activations.softmax
    if last.output is not model.outputs[0] or not (ends_in_softmax or isinstance(last, layers.Softmax)):
        return model.outputs[0]
    if isinstance(last, (layers.Softmax, layers.Activation)):
        return last.input
    bare = type(last).from_config({**last.get_config(), "activation": "linear"})
    scores = bare(last.input)
    bare.set_weights(last.get_weights())
    return scores
