"""Copies of models: with other layers or inputs, and flat copies of models that contain models."""

from collections import Counter
from collections.abc import Callable

import keras
from keras import layers

from keras_resnet.architecture.metadata import copy_metadata
from keras_resnet.architecture.network import ResNet
from keras_resnet.errors import error_summary
from keras_resnet.models.layers import check_network
from keras_resnet.models.nested import functional, inherited_info, inherited_spec, inner_models

AUGMENTATION = tuple(
    getattr(layers, name)
    for name in dir(layers)
    if (name.startswith("Rand") and name != "RandomCrop") or name in ("AugMix", "CutMix", "MixUp")
)
"""Keras's layers that only change images in training; `RandomCrop` resizes and crops test images as well."""


def clone(model: keras.Model, input_shape: tuple | None = None) -> keras.Model:
    """A copy with its own layers and weights that keeps the spec and the info, which Keras's `clone_model` drops.

    Its images have the shape `input_shape`, with None for sides of any length; by default that of the model's images.

    Raises:
        ValueError: for a layer that cannot be rebuilt from its configuration.
    """
    copy = rebuild(model, input_shape=input_shape)
    copy.set_weights(model.get_weights())
    return copy


def rebuild(
    model: keras.Model,
    changes: Callable = lambda layer: {},
    kind: Callable = type,
    call: Callable | None = None,
    input_shape: tuple | None = None,
) -> keras.Model:
    """Keras's `clone_model`, with the names of the layers and inputs, the spec and the info of `model`; weights unset.

    A new layer has the class `kind(layer)`, and the configuration of `layer` with `changes(layer)`;
    `call(new layer, *arguments)` returns its output.
    """
    copy = keras.models.clone_model(
        model, new_inputs(model, input_shape), lambda layer: _copy_layer(layer, changes(layer), kind(layer)), call
    )
    for layer in copy.layers:
        _copy_initializer(layer, model.get_layer(layer.name))
    return copy_metadata(copy, model)


def new_inputs(model: keras.Model, input_shape: tuple | None = None) -> keras.KerasTensor:
    """A new input, in the structure and with the name of the model's own, which Keras's clones rename."""
    (given,) = model.inputs
    shape = given.shape[1:] if input_shape is None else input_shape
    return keras.tree.map_structure(
        lambda _: keras.Input(shape, dtype=given.dtype, name=model.layers[0].name), model.input
    )


def _copy_layer(layer, changes, kind):
    """A layer with the configuration of another one and `changes`; its weights, if it has any, are not built."""
    try:
        config = layer.get_config() | changes
        if "kernel_initializer" in config:
            config["kernel_initializer"] = "zeros"  # fast; the values are about to be set
        copy = kind.from_config(config)
    except Exception as error:  # a layer's own code may raise anything
        raise ValueError(
            "`model` should have layers that can be rebuilt from what their `get_config` returns. "
            f"Received: {type(layer).__name__} {layer.name!r} ({error_summary(error)})"
        ) from error
    copy.name = layer.name  # lost by layers without `get_config`
    return copy


def _copy_initializer(layer, original):
    if hasattr(layer, "kernel_initializer"):
        layer.kernel_initializer = original.kernel_initializer


def as_functional(model: keras.Model) -> keras.Model:
    """The model as one graph of layers, as a model of keras.io's guide to transfer learning is not.

    A Sequential model is converted. Models among the layers are replaced by copies of their layers, at any depth, and
    augmentation is dropped; the copy inherits the spec and info of the network inside it (`inherited_info`). A flat
    Functional model without augmentation is returned as it is.

    Raises:
        ValueError: for a model that is not a graph of layers from one input, or has such models or layers that cannot
            be rebuilt from their configuration among its layers.
    """
    graph = functional(model)
    check_network(graph)
    if inner_models(graph) or any(isinstance(layer, AUGMENTATION) for layer in graph.layers):
        return _flatten(graph, inherited_spec(model), inherited_info(model))
    return graph if graph is model else copy_metadata(graph, model)


def _flatten(model, spec, info):
    """A ResNet of copies of all layers of `model` and of the models inside it, without augmentation."""
    counts = Counter(layer.name for _, layer in _leaves(model))
    names = {id(layer): layer.name if counts[layer.name] == 1 else path for path, layer in _leaves(model)}
    copies = {}

    def call(layer, *arguments, **keywords):
        if isinstance(layer, keras.Model):
            return functional(layer)._run_through_graph(arguments, call_fn=call)
        if isinstance(layer, AUGMENTATION):
            (images,) = arguments
            return images if images.dtype == layer.compute_dtype else keras.ops.cast(images, layer.compute_dtype)
        if id(layer) not in copies:
            copies[id(layer)] = layer, _copy_layer(layer, {}, type(layer))
            copies[id(layer)][1].name = names[id(layer)]
        return copies[id(layer)][1](*arguments, **keywords)

    inputs = new_inputs(model)
    flat = ResNet(inputs, model._run_through_graph(inputs, call_fn=call), name=model.name)
    for layer, copy in copies.values():
        if isinstance(layer, keras.Layer):
            copy.set_weights(layer.get_weights())
            _copy_initializer(copy, layer)
    flat.spec, flat.info = spec, info
    return flat


def _leaves(model, path=""):
    """Yields (path of names, layer) of all layers that are not models, at any depth."""
    graph = functional(model)
    if not hasattr(graph, "operations"):
        raise ValueError(f"`model` should contain no models but graphs of layers. Received: {model.name!r} inside it")
    for layer in graph.operations:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer, f"{path}{layer.name}_")
        elif not isinstance(layer, layers.InputLayer):
            yield f"{path}{layer.name}", layer
