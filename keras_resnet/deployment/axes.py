"""Networks with their channels first, made anew with their channels last: the only order that all formats take."""

from dataclasses import replace

import keras
from keras import layers

from keras_resnet.deployment.folding import cloned
from keras_resnet.errors import reason
from keras_resnet.models import anew


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
        copy = cloned(model, lambda layer: anew(layer, **_changes(layer)), inputs=inputs)
    except Exception as error:  # whatever a layer raises when shapes do not fit
        raise ValueError(
            f"`model` should have its channels last, or layers that can have them last ({reason(error)}). "
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
