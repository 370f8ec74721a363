"""Batch norm inside the convolutions: at test time it is a scale and a shift, which a convolution has anyway."""

from dataclasses import dataclass

import keras
import numpy as np
from keras import layers

from keras_resnet.architecture.network import made_from
from keras_resnet.models import inputs_like

FOLDABLE = (layers.Conv2D, layers.Dense)
"""Layers with a kernel whose last axis is that of the channels they return."""


@dataclass(frozen=True)
class Folded:
    """A network without the batch norms that follow a convolution."""

    model: keras.Model
    left: tuple[str, ...]
    """Names of the batch norms that stay: what they follow is no convolution, or others use it too."""


def fold_batch_norm(model):
    """An equivalent network whose convolutions do the work of the batch norms that follow them.

    gamma * (K * x + b - mean) / sqrt(variance + epsilon) + beta = (s K) * x + (beta + s (b - mean)), with
    s = gamma / sqrt(variance + epsilon). In pre-activation networks the first batch norm of a block follows a sum, and
    stays. The result is for inference: training it would train another network.

    Args:
        model: Functional model of plain layers.

    Returns:
        Folded, whose model has the same outputs, layer names, dtype policies, spec and info.

    Raises:
        ValueError: for a model that is no graph of layers, or one with models as layers.
    """
    if not hasattr(model, "operations") or any(isinstance(layer, keras.Model) for layer in model.layers):
        raise ValueError(f"`model` should be one graph of layers. Received: {model}")
    pairs = _pairs(model)
    norms = {norm.name for norm in pairs.values()}

    def anew(layer):
        config = layer.get_config()
        config |= {name: "zeros" for name in ("kernel_initializer",) if name in config}  # about to be overwritten
        return type(layer).from_config(config | ({"use_bias": True} if layer.name in pairs else {}))

    def call(layer, *arguments, **keywords):
        return arguments[0] if layer.name in norms else layer(*arguments, **keywords)

    copy = keras.models.clone_model(model, inputs_like(model), anew, call)
    for layer in copy.layers:
        original = model.get_layer(layer.name)
        norm = pairs.get(layer.name)
        layer.set_weights(_absorbed(original, norm) if norm else original.get_weights())
    kept = [layer.name for layer in copy.layers if isinstance(layer, layers.BatchNormalization)]
    return Folded(made_from(copy, model), tuple(kept))


def _pairs(model):
    """{name of a layer with a kernel: the batch norm that is the only one to see what it returns}."""
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    pairs = ((norm.input._keras_history.operation, norm) for norm in norms)
    return {before.name: norm for before, norm in pairs if _goes_with(before, norm, model)}


def _goes_with(before, norm, model):
    """Whether a layer can do the work of the batch norm that follows it."""
    if not isinstance(before, FOLDABLE) or not _is_linear(before):
        return False
    users = [node for node in before._outbound_nodes if node.operation in model.operations]
    is_output = any(tensor is before.output for tensor in model.outputs)
    return len(users) == 1 and not is_output and norm.axis % len(norm.input.shape) == _channel_axis(before)


def _is_linear(layer):
    return layer.activation is keras.activations.linear


def _channel_axis(layer):
    """Of what a layer returns."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else len(layer.output.shape) - 1


def _absorbed(layer, norm):
    """Kernel and bias of a layer that does the work of its batch norm too, computed in float64."""
    kernel, *bias = (np.asarray(array, "float64") for array in layer.get_weights())
    values = {name: np.asarray(keras.ops.convert_to_numpy(v), "float64") for name, v in _values(norm).items()}
    scale = values["gamma"] / np.sqrt(values["moving_variance"] + norm.epsilon)
    shift = values["beta"] + scale * ((bias[0] if bias else 0) - values["moving_mean"])
    return [kernel * scale, shift]


def _values(norm):
    """{name: array} of what a batch norm multiplies and adds; without scale or offset, 1 or 0."""
    return {
        "gamma": norm.gamma if norm.scale else np.ones(norm.moving_mean.shape),
        "beta": norm.beta if norm.center else np.zeros(norm.moving_mean.shape),
        "moving_mean": norm.moving_mean,
        "moving_variance": norm.moving_variance,
    }
