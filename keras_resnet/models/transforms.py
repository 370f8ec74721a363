"""Models made from models: cloned, batch norm folded, cast, channels last, fully convolutional, with a new head."""

from dataclasses import replace
from itertools import pairwise

import keras
import numpy as np
from keras import layers

from keras_resnet.architecture.metadata import copy_metadata
from keras_resnet.architecture.network import ResNet
from keras_resnet.errors import error_summary, unknown_name_error


def clone(model, input_shape=None):
    """A copy with layers and weights of its own, which knows what the model knows; `clone_model` of Keras forgets it.

    Args:
        model: Functional model with one input.
        input_shape: (H, W, C) of its images, or (C, H, W), where they are to be others; None for sides of any length.

    Raises:
        ValueError: for another kind of model.
    """
    copy = keras.models.clone_model(model, new_inputs(model, input_shape), rebuild_layer)
    copy.set_weights(model.get_weights())
    for layer in model.layers:
        if hasattr(layer, "kernel_initializer"):
            copy.get_layer(layer.name).kernel_initializer = layer.kernel_initializer
    return copy_metadata(copy, model)


def new_inputs(model, input_shape=None):
    """A keras.Input with the name and the dtype of a model's, nested as there; Keras's own clones have another name."""
    name, (given,) = model.layers[0].name, model.inputs
    shape = given.shape[1:] if input_shape is None else input_shape
    return keras.tree.map_structure(lambda _: keras.Input(shape, dtype=given.dtype, name=name), model.input)


def rebuild_layer(layer, kind=None, **changes):
    """The layer once more, with changes of its configuration; its kernel, about to be overwritten, is not drawn.

    `kind` is another class that takes the same configuration.
    """
    config = layer.get_config()
    if "kernel_initializer" in config:
        config["kernel_initializer"] = "zeros"
    return (kind or type(layer)).from_config(config | changes)


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
    model = as_functional(model)
    if len(model.inputs) != 1:
        raise ValueError(f"`model` should have one input. Received: {model.name} with {len(model.inputs)}")
    pairs = _pairs(model)
    norms = {norm.name for norm in pairs.values()}

    def with_bias(layer):
        return rebuild_layer(layer, use_bias=True) if layer.name in pairs else rebuild_layer(layer)

    def call(layer, *arguments, **keywords):
        return arguments[0] if layer.name in norms else layer(*arguments, **keywords)

    copy = clone_with(model, with_bias, call)
    for layer in copy.layers:
        original, norm = model.get_layer(layer.name), pairs.get(layer.name)
        layer.set_weights(_absorbed(original, norm) if norm else original.get_weights())
    copy.info["unfolded"] = [layer.name for layer in copy.layers if isinstance(layer, layers.BatchNormalization)]
    return copy


def as_functional(model):
    """The model as it is, a Sequential one as Functional.

    Raises:
        ValueError: for a model that is no graph of layers, or has models among its layers.
    """
    if isinstance(model, keras.Sequential) and model.built:
        model = copy_metadata(keras.Model(model.inputs, model.outputs[0], name=model.name), model)
    layers_of = getattr(model, "layers", ())
    if inner := [layer.name for layer in layers_of if isinstance(layer, keras.Model)]:
        raise ValueError(
            "`model` should be one graph of layers: build upon `inner.output` instead of calling the inner model. "
            f"Received: {model.name} with the model {inner[0]!r} among its layers"
        )
    if not hasattr(model, "operations"):
        raise ValueError(f"`model` should be one graph of layers. Received: {model}")
    return model


def clone_with(model, layer_again, call=None, inputs=None):
    """Keras's `clone_model`, with the names and the info of the model; with inputs like its own if none are given.

    Raises:
        ValueError: for a layer that cannot be made from its configuration.
    """
    given = new_inputs(model) if inputs is None else inputs

    def again(layer):
        try:
            copy = layer_again(layer)
        except Exception as error:  # whatever a layer's own code raises
            raise ValueError(
                "`model` should have layers that can be made once more from what their `get_config` returns. "
                f"Received: {model.name} with {type(layer).__name__} {layer.name!r} ({error_summary(error)})"
            ) from error
        copy.name = layer.name  # a layer without `get_config` forgets it
        return copy

    return copy_metadata(keras.models.clone_model(model, given, again, call), model)


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


PRECISIONS = ("float32", "bfloat16", "float16")
"""What Keras computes in."""


def cast_model(model, precision):
    """A copy that computes in other numbers than the model; inputs, outputs and what norms add up stay float32.

    Args:
        model: Functional model with one input.
        precision: a name in PRECISIONS.

    Raises:
        ValueError: for another one.
    """
    if precision not in PRECISIONS:
        raise unknown_name_error("precision", precision, PRECISIONS)

    last = [tensor._keras_history.operation for tensor in model.outputs]

    def policy(layer):
        if precision == "float32" or layer in last:
            return "float32"
        return f"mixed_{precision}" if isinstance(layer, layers.BatchNormalization) else precision

    def other(layer):
        dtype = {"dtype": policy(layer)} if "dtype" in layer.get_config() else {}  # operations have none
        return rebuild_layer(layer, GroupedConv2D if _is_grouped(layer) else None, **dtype)

    copy = clone_with(model, other)
    copy.set_weights(model.get_weights())
    return copy


@keras.saving.register_keras_serializable(package="keras_resnet")
class GroupedConv2D(layers.Conv2D):
    """A convolution in groups by TensorFlow's own kernel, which has no gradient on CPUs.

    Keras has XLA compile these, for their gradient: slower, and not to be expressed in other formats.
    """

    def convolution_op(self, inputs, kernel):
        import tensorflow as tf

        return tf.nn.conv2d(inputs, kernel, self.strides, self.padding.upper(), dilations=self.dilation_rate)


def _is_grouped(layer):
    """Whether Keras would have XLA compile it."""
    grouped = isinstance(layer, layers.Conv2D) and layer.groups > 1 and layer.data_format == "channels_last"
    return grouped and keras.backend.backend() == "tensorflow"


def channels_last(model):
    """The same network for (B, H, W, C) that took (B, C, H, W); kernels have their channels last in both.

    Args:
        model: Functional model with one input, (B, C, H, W).

    Returns:
        A model with the layer names, weights and info of `model`, and its spec but for the order.

    Raises:
        ValueError: for layers that see the order and cannot be told another one.
    """
    (given,) = model.inputs
    channels, *sides = given.shape[1:]
    inputs = keras.tree.map_structure(
        lambda _: keras.Input((*sides, channels), dtype=given.dtype, name=model.layers[0].name), model.input
    )
    try:
        copy = clone_with(model, lambda layer: rebuild_layer(layer, **_changes(layer)), inputs=inputs)
    except Exception as error:  # whatever a layer raises when shapes do not fit
        raise ValueError(
            f"`model` should have its channels last, or layers that can have them last ({error_summary(error)}). "
            f"Received: {model.name} with channels first"
        ) from error
    copy.set_weights(model.get_weights())
    copy.spec = model.spec and replace(model.spec, data_format="channels_last")
    return copy


def _changes(layer):
    """What the configuration of a layer says of the order, the other way round."""
    config = layer.get_config()
    if config.get("data_format") == "channels_last" and isinstance(layer, layers.ZeroPadding2D):
        # that of CIFAR shortcuts: it pads the channels
        return {"data_format": "channels_first", "padding": config["padding"][::-1]}
    changes = {"data_format": "channels_last"} if "data_format" in config else {}
    return changes | ({"axis": 3} if config.get("axis") == 1 and len(layer.output.shape) == 4 else {})


def fully_convolutional(model, side):
    """The same network as if it looked through a window of `side` pixels wherever its feature maps allow it.

    Global average pooling becomes an average over as many pixels of the last feature map as an image of side x side
    has there, at every place; the classifier follows there, as a 1x1 convolution would (Sermanet et al. 2013,
    arXiv:1312.6229; Simonyan and Zisserman 2014, arXiv:1409.1556, sec. 3.2); and the probabilities are averaged. On
    an image of side x side that is the network itself. Squeeze-excite gates go on seeing the whole image.

    Args:
        model: Functional classifier, channels last, that ends in global average pooling and layers for one vector.
        side: pixels; smaller images the result does not take.

    Returns:
        keras.Model with the weights of `model`: (B, H, W, C) -> (B, classes) probabilities, H and W at least `side`.

    Raises:
        ValueError: for a model that ends otherwise, or is no graph of layers with one input.
    """
    position, channels = _pooling(model), model.input_shape[-1]
    copy = clone(model, (None, None, channels))
    features = copy.layers[position].input
    window = keras.Model(copy.inputs, features).compute_output_shape((1, side, side, channels))[1:3]
    x = layers.AveragePooling2D(window, strides=1, dtype=features.dtype, name="window")(features)
    for layer in copy.layers[position + 1 :]:
        x = layer(x)
    if getattr(model.layers[-1], "activation", None) is keras.activations.linear:
        x = layers.Softmax(name="probabilities")(x)
    dense = keras.Model(copy.inputs, keras.ops.mean(x, axis=(1, 2)), name=model.name)
    if keras.backend.backend() == "tensorflow":
        dense.jit_compile = False  # XLA would compile it rebuild_layer for every size of image
    return dense


PER_PLACE = (layers.Dense, layers.Dropout, layers.Activation, layers.ReLU, layers.Softmax)
"""Layers that do to every place of a map what they do to a vector."""


def _pooling(model):
    """Number of the layer that pools the last feature map; what follows it can be done at every place."""
    found = [i for i, layer in enumerate(model.layers) if isinstance(layer, layers.GlobalAveragePooling2D)]
    pooling, *tail = model.layers[found[-1] :] if found else (None,)
    follow = all(after.input is before.output for before, after in pairwise([pooling, *tail]))
    nested = any(isinstance(layer, keras.Model) for layer in model.layers)
    if nested or not tail or not follow or not all(isinstance(layer, PER_PLACE) for layer in tail):
        raise ValueError(
            "`model` should be one graph of layers that ends in global average pooling and a classifier. "
            f"Received: {model.name}, which ends in {[layer.name for layer in model.layers[-3:]]}"
        )
    if pooling.data_format != "channels_last":
        raise ValueError(f"`model` should have its channels last. Received: {model.name} with {pooling.data_format}")
    return found[-1]


def with_new_head(model, classes):
    """The same layers with another, untrained classifier in place of the last one.

    Args:
        model: Functional classifier that ends in a Dense layer; its layers become part of the result.
        classes: number of classes.

    Returns:
        A ResNet, whose .keras file will know its class names.

    Raises:
        ValueError: for a model that ends otherwise.
    """
    last = model.layers[-1] if getattr(model, "layers", None) else None
    if not isinstance(last, keras.layers.Dense) or last.output is not model.outputs[0]:
        raise ValueError(f"`model` should end in a Dense classifier. Received: {model.name}, which ends in {last}")
    head = keras.layers.Dense(
        classes, "softmax", kernel_initializer=last.kernel_initializer, dtype=last.dtype_policy, name=last.name
    )
    return copy_metadata(ResNet(model.inputs[0], head(last.input), name=model.name), model)
