"""Batch norm inside the convolutions: at test time it is a scale and a shift, which a convolution has anyway."""

import keras
import numpy as np
from keras import layers

from keras_resnet.architecture.network import made_from
from keras_resnet.errors import reason
from keras_resnet.models import anew, inputs_like

FOLDABLE = (layers.Conv2D, layers.Dense)
"""Layers with a kernel whose last axis is that of the channels they return; classes derived from them may compute with
another kernel than they have."""


def fold_batch_norm(model):
    """An equivalent network whose convolutions do the work of the batch norms that follow them.

    gamma * (K * x + b - mean) / sqrt(variance + epsilon) + beta = (s K) * x + (beta + s (b - mean)), with
    s = gamma / sqrt(variance + epsilon). In pre-activation networks the first batch norm of a block follows a sum, and
    stays. The result is for inference: training it would train another network.

    Args:
        model: Functional model.

    Returns:
        A model with the same inputs, outputs, layer names, dtype policies, spec and info. `info["unfolded"]` names the
        batch norms that stay: what they follow is no convolution, or others see it too.

    Raises:
        ValueError: for a model that is no graph of layers from one input, or has models among its layers or layers that
            cannot be made once more.
    """
    model = as_graph(model)
    if len(model.inputs) != 1:
        raise ValueError(f"`model` should have one input. Received: {model.name} with {len(model.inputs)}")
    pairs = _pairs(model)
    norms = {norm.name for norm in pairs.values()}

    def with_bias(layer):
        return anew(layer, use_bias=True) if layer.name in pairs else anew(layer)

    def call(layer, *arguments, **keywords):
        return arguments[0] if layer.name in norms else layer(*arguments, **keywords)

    copy = cloned(model, with_bias, call)
    for layer in copy.layers:
        original, norm = model.get_layer(layer.name), pairs.get(layer.name)
        layer.set_weights(_absorbed(original, norm) if norm else original.get_weights())
    copy.info["unfolded"] = [layer.name for layer in copy.layers if isinstance(layer, layers.BatchNormalization)]
    return copy


def as_graph(model):
    """The model as it is, a Sequential one as Functional.

    Raises:
        ValueError: for a model that is no graph of layers, or has models among its layers.
    """
    if isinstance(model, keras.Sequential) and model.built:
        model = made_from(keras.Model(model.inputs, model.outputs[0], name=model.name), model)
    layers_of = getattr(model, "layers", ())
    if inner := [layer.name for layer in layers_of if isinstance(layer, keras.Model)]:
        raise ValueError(
            "`model` should be one graph of layers: build upon `inner.output` instead of calling the inner model. "
            f"Received: {model.name} with the model {inner[0]!r} among its layers"
        )
    if not hasattr(model, "operations"):
        raise ValueError(f"`model` should be one graph of layers. Received: {model}")
    return model


def cloned(model, layer_again, call=None, inputs=None):
    """Keras's `clone_model`, with the names and the info of the model; with inputs like its own if none are given.

    Raises:
        ValueError: for a layer that cannot be made from its configuration.
    """
    given = inputs_like(model) if inputs is None else inputs

    def again(layer):
        try:
            copy = layer_again(layer)
        except Exception as error:  # whatever a layer's own code raises
            raise ValueError(
                "`model` should have layers that can be made once more from what their `get_config` returns. "
                f"Received: {model.name} with {type(layer).__name__} {layer.name!r} ({reason(error)})"
            ) from error
        copy.name = layer.name  # a layer without `get_config` forgets it
        return copy

    return made_from(keras.models.clone_model(model, given, again, call), model)


def _pairs(model):
    """{name of a layer with a kernel: the batch norm that is the only one to see what it returns}."""
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    pairs = ((norm.input._keras_history.operation, norm) for norm in norms if len(norm._inbound_nodes) == 1)
    return {before.name: norm for before, norm in pairs if _goes_with(before, norm, model)}


def _goes_with(before, norm, model):
    """Whether a layer can do the work of the batch norm that follows it."""
    if type(before) not in FOLDABLE or before.activation is not keras.activations.linear:
        return False
    if len(before.weights) != 1 + before.use_bias:  # others are LoRA's, or a quantised kernel's scales
        return False
    users = [node for node in before._outbound_nodes if node.operation in model.operations]
    called_once = len(before._inbound_nodes) == len(users) == 1
    is_output = any(tensor is before.output for tensor in model.outputs)
    return called_once and not is_output and norm.axis % len(norm.input.shape) == _channel_axis(before)


def _channel_axis(layer):
    """Of what a layer returns."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else len(layer.output.shape) - 1


def _absorbed(layer, norm):
    """Kernel and bias of a layer that does the work of its batch norm too, computed in float64."""
    kernel, *bias = (np.asarray(array, "float64") for array in layer.get_weights())
    gamma, beta, mean, variance = map(_float64, _values(norm))
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return [kernel * scale, beta + scale * (sum(bias) - mean)]


def _values(norm):
    """What a batch norm multiplies and adds; without scale or offset, 1 or 0."""
    ones, zeros = np.ones(norm.moving_mean.shape), np.zeros(norm.moving_mean.shape)
    return (
        norm.gamma if norm.scale else ones,
        norm.beta if norm.center else zeros,
        norm.moving_mean,
        norm.moving_variance,
    )


def _float64(values):
    return np.asarray(keras.ops.convert_to_numpy(values), "float64")
