"""Models made from models: of another size, without batch norms, cast, fully convolutional, with a new head."""

from dataclasses import replace
from itertools import pairwise

import keras
import numpy as np
from keras import layers

from keras_resnet.architecture.detection_layers import Parameterless
from keras_resnet.architecture.layers import Conv2D
from keras_resnet.architecture.metadata import (
    channel_axis,
    copy_metadata,
    info_without_head,
    input_size,
    layer_channel_axis,
    model_spec,
)
from keras_resnet.architecture.network import ResNet
from keras_resnet.architecture.segmenter import WithAuxiliary
from keras_resnet.errors import error_summary, is_integer, value_error
from keras_resnet.models.cloning import as_functional, clone, rebuild
from keras_resnet.precision import PRECISIONS, check_precision


def with_input_size(model: keras.Model, size: int | None) -> keras.Model:
    """A copy of the model for images of `size` x `size` pixels, whose `preprocessing` crops the same share of them.

    The model itself if it has this size already, and for None.

    Raises:
        ValueError: for a size below the smallest one of the network, for a model whose layers only fit its own size,
            and for an exported network.
    """
    if size is None:
        return model
    if not isinstance(model, keras.Model):
        raise value_error("size", size, "None for an exported network, which has its own")
    if size == input_size(model):
        return model
    model = as_functional(model)
    check_input_size(model, size)
    channels = model.inputs[0].shape[channel_axis(model)]
    try:
        return clone(model, (channels, size, size) if channel_axis(model) == 1 else (size, size, channels))
    except Exception as error:  # layers raise anything when shapes do not fit
        raise value_error("size", size, f"one that fits the layers of {model.name} ({error_summary(error)})") from error


def check_input_size(model: keras.Model, size: int) -> None:
    """Raises ValueError unless `size` is a number of pixels that is enough for the model's network."""
    spec = model_spec(model)
    minimum = spec.minimum_size if spec else 1
    if not is_integer(size, minimum):
        raise value_error("size", size, f"a number of pixels, at least {minimum} for {model.name}")


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """An equivalent model without the batch norms that directly follow a convolution or dense layer.

    >>> from keras_resnet import create, fold_batch_norm
    >>> model = create("resnet20", depths=(1, 1, 1))
    >>> folded = fold_batch_norm(model)
    >>> len(model.layers), len(folded.layers), folded.info["unfolded"]
    (33, 26, [])

    gamma * (K * x + b - mean) / sqrt(variance + epsilon) + beta = (s K) * x + (beta + s (b - mean)), with
    s = gamma / sqrt(variance + epsilon). In pre-activation networks the first batch norm of a block follows a sum and
    is kept. The result is for inference: trained further, it behaves differently.

    Args:
        model: Functional or Sequential model with one input. Models among its layers are replaced by their layers, and
            augmentation is dropped.

    Returns:
        A Functional model with the same inputs, outputs, layer names, dtype policies, spec and info.
        `info["unfolded"]` lists the batch norms that are kept: those that follow another kind of layer, or a layer
        whose output is also used elsewhere.

    Raises:
        ValueError: for a model that is not a graph of layers from one input, or has layers that cannot be rebuilt from
            their configuration.
    """
    model = as_functional(model)
    norms = _foldable_norms(model)
    folded = {norm.name for norm in norms.values()}

    def call(layer, *arguments, **keywords):
        return arguments[0] if layer.name in folded else layer(*arguments, **keywords)

    copy = rebuild(model, lambda layer: {"use_bias": True} if layer.name in norms else {}, call=call)
    for layer in copy.layers:
        original, norm = model.get_layer(layer.name), norms.get(layer.name)
        layer.set_weights(_folded_weights(original, norm) if norm else original.get_weights())
    copy.info["unfolded"] = [layer.name for layer in copy.layers if isinstance(layer, layers.BatchNormalization)]
    return copy


def _foldable_norms(model):
    """{name of a convolution or dense layer: the batch norm that can be folded into it}."""
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    pairs = ((norm.input._keras_history.operation, norm) for norm in norms if len(norm._inbound_nodes) == 1)
    return {before.name: norm for before, norm in pairs if _is_foldable(before, norm, model)}


def _is_foldable(before, norm, model):
    """Whether `norm` is the only user of the layer before it and scales the channels of that layer's kernel.

    A class derived from these layers may transform its kernel before using it; weights besides kernel and bias are
    LoRA's, or the scales of a quantized kernel.
    """
    if type(before) not in (Conv2D, layers.Conv2D, layers.Dense) or len(before.weights) != 1 + before.use_bias:
        return False
    if before.activation is not keras.activations.linear:
        return False
    users = [node for node in before._outbound_nodes if node.operation in model.operations]
    called_once = len(before._inbound_nodes) == len(users) == 1
    is_output = any(tensor is before.output for tensor in model.outputs)
    rank = len(norm.input.shape)
    return called_once and not is_output and norm.axis % rank == layer_channel_axis(before) % rank


def _folded_weights(layer, norm):
    """[kernel, bias] of a layer after its batch norm is folded into it, computed in float64."""
    kernel, *bias = (np.asarray(array, "float64") for array in layer.get_weights())
    values = [norm.gamma if norm.scale else 1.0, norm.beta if norm.center else 0.0, norm.moving_mean]
    gamma, beta, mean, variance = (
        np.asarray(keras.ops.convert_to_numpy(array), "float64") for array in (*values, norm.moving_variance)
    )
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return [kernel * scale, beta + scale * (sum(bias) - mean)]


def cast_model(model: keras.Model, precision: str) -> keras.Model:
    """A copy that computes in a precision of COMPUTED; inputs, outputs, boxes and batch norms' sums stay float32."""
    check_precision(precision)
    last = [_last_layer(tensor) for tensor in model.outputs]

    def changes(layer):
        if "dtype" not in layer.get_config() or isinstance(layer, Parameterless):  # an operation; pixels and boxes
            return {}
        if layer in last:
            return {"dtype": "float32"}
        return {"dtype": PRECISIONS[precision].policy if isinstance(layer, layers.BatchNormalization) else precision}

    def kind(layer):
        on_tensorflow = keras.backend.backend() == "tensorflow"
        return TensorFlowConv2D if on_tensorflow and _is_grouped_or_dilated(layer) else type(layer)

    copy = rebuild(model, changes, kind)
    copy.set_weights(model.get_weights())
    return copy


def _last_layer(output):
    """The layer that computes an output; of a segmenter with an auxiliary head, the one that does so before it."""
    layer = output._keras_history.operation
    return layer.input[0]._keras_history.operation if isinstance(layer, WithAuxiliary) else layer


def _is_grouped_or_dilated(layer):
    """Whether Keras computes a convolution by other operations than TensorFlow's own."""
    if type(layer) not in (Conv2D, layers.Conv2D) or layer.data_format != "channels_last":
        return False
    return layer.groups > 1 or max(layer.dilation_rate) > 1


@keras.saving.register_keras_serializable(package="keras_resnet")
class TensorFlowConv2D(layers.Conv2D):
    """A grouped or dilated convolution by TensorFlow's own kernel, for inference: on some CPUs it has no gradient.

    To have gradients, Keras compiles grouped convolutions with XLA, which is slower and cannot be exported, and dilated
    ones cut the image into a batch of smaller ones, which exported networks would do, too.
    """

    def convolution_op(self, inputs, kernel):
        import tensorflow as tf

        return tf.nn.conv2d(inputs, kernel, self.strides, self.padding.upper(), dilations=self.dilation_rate)


def channels_last(model: keras.Model) -> keras.Model:
    """The same model for (B, H, W, C) images, made from one for (B, C, H, W); a channels-last model is returned as is.

    It keeps the layer names, weights and info of `model`, and its spec with the other data format.

    Raises:
        ValueError: for layers that depend on the data format and do not have it in their configuration.
    """
    if channel_axis(model) == 3:
        return model
    channels, *sides = model.inputs[0].shape[1:]
    try:
        copy = rebuild(model, _channels_last_changes, input_shape=(*sides, channels))
    except Exception as error:  # layers raise anything when shapes do not fit
        raise ValueError(
            "`model` should be channels last, or have layers that can be rebuilt as channels last "
            f"({error_summary(error)}). Received: {model.name}, channels first"
        ) from error
    copy.set_weights(model.get_weights())
    if spec := model_spec(model):
        copy.spec = replace(spec, data_format="channels_last")
    return copy


def _channels_last_changes(layer):
    """The changes of a layer's configuration that make it channels last."""
    config = layer.get_config()
    if config.get("data_format") == "channels_last" and isinstance(layer, layers.ZeroPadding2D):
        # shortcut A pads the channels by the opposite data format
        return {"data_format": "channels_first", "padding": config["padding"][::-1]}
    if config.get("target_shape", ())[1:] == (1, 1):  # one value per channel
        return {"target_shape": (1, 1, config["target_shape"][0])}
    changes = {"data_format": "channels_last"} if "data_format" in config else {}
    return changes | ({"axis": 3} if config.get("axis") == 1 and len(layer.output.shape) == 4 else {})


def fully_convolutional(model: keras.Model, side: int) -> keras.Model:
    """The same classifier applied to every window of `side` pixels, as densely as its feature maps allow.

    Global average pooling becomes average pooling over as many pixels of the last feature map as an image of side x
    side has there; the classifier is applied at each position like a 1x1 convolution (Sermanet et al. 2013,
    arXiv:1312.6229; Simonyan and Zisserman 2014, arXiv:1409.1556, sec. 3.2); and the probabilities are averaged over
    the positions. For an image of side x side, the result is that of `model`. Squeeze-excite layers average over the
    whole image.

    Returns:
        keras.Model with the weights of `model`: (B, H, W, C) -> (B, classes) probabilities, H and W at least `side`.

    Raises:
        ValueError: for a model that ends otherwise, or is not a graph of layers with one input.
    """
    model = as_functional(model)
    position = pooling_index(model)
    copy = channels_last(model)
    channels = copy.input_shape[-1]
    copy = clone(copy, (None, None, channels))
    features = copy.layers[position].input
    window = keras.Model(copy.inputs, features).compute_output_shape((1, side, side, channels))[1:3]
    x = layers.AveragePooling2D(window, 1, data_format="channels_last", dtype=features.dtype, name="window")(features)
    for layer in copy.layers[position + 1 :]:
        x = layer(x)
    if getattr(copy.layers[-1], "activation", None) is keras.activations.linear:
        x = layers.Softmax(name="probabilities")(x)
    dense = keras.Model(copy.inputs, keras.ops.mean(x, axis=(1, 2)), name=model.name)
    if keras.backend.backend() == "tensorflow":
        dense.jit_compile = False  # XLA would compile again for every image size
    return dense


_POINTWISE = (layers.Dense, layers.Dropout, layers.Activation, layers.ReLU, layers.Softmax)
"""Layers that treat each position of a feature map as they treat a vector."""


def pooling_index(model: keras.Model) -> int:
    """Index of the global average pooling layer, if only a chain of pointwise layers follows it."""
    found = [i for i, layer in enumerate(model.layers) if isinstance(layer, layers.GlobalAveragePooling2D)]
    pooling, *tail = model.layers[found[-1] :] if found else (None,)
    is_chain = all(after.input is before.output for before, after in pairwise([pooling, *tail]))
    if not (tail and is_chain and all(isinstance(layer, _POINTWISE) for layer in tail)):
        raise ValueError(
            "`model` should be one graph of layers that ends in global average pooling and a classifier. "
            f"Received: {model.name}, which ends in {[layer.name for layer in model.layers[-3:]]}"
        )
    return found[-1]


def with_new_head(model: keras.Model, classes: int) -> ResNet:
    """A ResNet of the same layers, with an untrained softmax classifier in place of the last one, a Dense layer.

    Raises:
        ValueError: for a model that ends otherwise.
    """
    last = model.layers[-1] if getattr(model, "layers", None) else None
    if not isinstance(last, layers.Dense) or last.output is not model.outputs[0]:
        raise ValueError(f"`model` should end in a Dense classifier. Received: {model.name}, which ends in {last}")
    head = layers.Dense(
        classes, "softmax", kernel_initializer=last.kernel_initializer, dtype=last.dtype_policy, name=last.name
    )
    network = copy_metadata(ResNet(model.inputs[0], head(last.input), name=model.name), model)
    network.info = info_without_head(network.info)
    return network
