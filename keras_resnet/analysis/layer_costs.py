"""Parameters and multiply-adds of any Keras model, layer by layer."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import keras
from keras import layers

from keras_resnet.architecture.complexity import Complexity
from keras_resnet.architecture.metadata import layer_channel_axis
from keras_resnet.errors import is_integer
from keras_resnet.files import figure_file
from keras_resnet.models.layers import check_graph


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer.

    >>> from keras_resnet.analysis import LayerCost
    >>> LayerCost("conv1_conv", "Conv2D", (32, 32, 16), parameters=432, statistics=0, multiply_adds=442368).parameters
    432
    """

    name: str
    """Name of the layer; "inner/layer" inside an inner model."""
    class_name: str
    """Class of the layer, such as "Conv2D"."""
    output_shape: tuple[int, ...]
    """Shape of the output for one image, without the batch axis."""
    parameters: int
    """Number of weights except moving statistics, trainable or frozen."""
    statistics: int
    """Number of moving means and variances."""
    multiply_adds: int
    """Multiply-adds of a convolution or Dense layer for one image, the "FLOPs" of He et al. 2015; 0 for others."""


_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_WEIGHTED = (
    *_TRANSPOSED,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
    layers.Dense,
)


def layer_costs(model: keras.Model, input_shape: tuple[int, ...] | None = None) -> list[LayerCost]:
    """Count the parameters and multiply-adds of every layer of a model.

    >>> import keras_resnet
    >>> costs = keras_resnet.analysis.layer_costs(keras_resnet.create("resnet20"))
    >>> costs[0].name, costs[0].parameters, costs[0].multiply_adds
    ('conv1_conv', 432, 442368)

    Args:
        model: Functional or Sequential model. A layer that is called twice is counted once.
        input_shape: shape of one image, without the batch axis, in the model's data format; None for the model's own,
            which should have no unknown sides then. The input shapes of inner models should be known.

    Returns:
        A LayerCost for each layer, in order; the layers of inner models are counted one by one.

    Raises:
        ValueError: if the input shape is unknown or does not fit the model.
    """
    check_graph(model)
    counted = [layer for layer in model.layers if not isinstance(layer, layers.InputLayer)]
    tensors = {layer.name: _tensors(layer) for layer in counted if not isinstance(layer, keras.Model)}
    shapes = keras.Model(model.inputs, tensors).compute_output_spec(_one_image(model, input_shape))
    costs: list[LayerCost] = []
    for layer in counted:
        costs += [_cost(layer, *shapes[layer.name])] if layer.name in shapes else _inner_costs(layer)
    return costs


def _tensors(layer):
    """First output of a layer, and the tensor at whose positions the kernel is applied: a transposed layer's input."""
    output = keras.tree.flatten(layer.output)[0]
    return output, layer.input if isinstance(layer, _TRANSPOSED) else output


def _inner_costs(model):
    return [replace(cost, name=f"{model.name}/{cost.name}") for cost in layer_costs(model)]


def _one_image(model, input_shape):
    """Symbolic inputs of the model for a batch of one image."""
    expected = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    shapes = expected if input_shape is None else [input_shape]
    if len(shapes) != len(expected) or not all(map(_fits, shapes, expected)):
        raise ValueError(
            f"`input_shape` should be the shape of one image without unknown sides for {model.name!r}, whose inputs "
            f"have the shape {', '.join(map(str, expected))}. Received: input_shape={input_shape}"
        )
    return [keras.KerasTensor((1, *shape), tensor.dtype) for shape, tensor in zip(shapes, model.inputs, strict=True)]


def _fits(shape, expected):
    if not isinstance(shape, (tuple, list)) or len(shape) != len(expected):
        return False
    known = all(is_integer(side, 1) for side in shape)
    return known and all(other in (None, side) for side, other in zip(shape, expected, strict=True))


def _cost(layer, output, positions):
    sides = positions.shape[2:] if layer_channel_axis(layer) == 1 else positions.shape[1:-1]
    statistics = _num_weights(layer, ("moving_mean", "moving_variance"))
    return LayerCost(
        name=layer.name,
        class_name=type(layer).__name__,
        output_shape=tuple(output.shape[1:]),
        parameters=_num_weights(layer, "") - statistics,
        statistics=statistics,
        multiply_adds=_num_weights(layer, "kernel") * math.prod(sides) if isinstance(layer, _WEIGHTED) else 0,
    )


def _num_weights(layer, endings):
    """Total size of the weights whose names end in one of `endings`."""
    return sum(math.prod(weight.shape) for weight in layer.weights if weight.name.endswith(endings))


def total_cost(costs: Sequence[LayerCost]) -> Complexity:
    """Add up the costs of layers.

    >>> import keras_resnet
    >>> model = keras_resnet.create("resnet20")
    >>> costs = keras_resnet.analysis.layer_costs(model)
    >>> keras_resnet.analysis.total_cost(costs) == keras_resnet.complexity(model.spec)
    True

    Args:
        costs: list of LayerCost.

    Returns:
        A Complexity, as `keras_resnet.complexity` computes it from a spec.
    """
    fields = ("parameters", "statistics", "multiply_adds")
    return Complexity(*(sum(getattr(cost, field) for cost in costs) for field in fields))


def plot_layer_costs(costs: Sequence[LayerCost], path: str | os.PathLike, title: str = "") -> None:
    """Plot the multiply-adds and parameters of the layers as bars.

    >>> import keras_resnet
    >>> costs = keras_resnet.analysis.layer_costs(keras_resnet.create("resnet20"))
    >>> keras_resnet.analysis.plot_layer_costs(costs, "resnet20.png")

    Args:
        costs: list of LayerCost; layers without multiply-adds are omitted.
        path: PNG file to write.
        title: title of the figure.

    Raises:
        ValueError: if no layer has multiply-adds.
    """
    weighted = [cost for cost in costs if cost.multiply_adds]
    if not weighted:
        raise ValueError(f"`costs` should contain a LayerCost with multiply-adds. Received: {len(costs)} without")
    with figure_file(path, figsize=(max(7, 0.14 * len(weighted)), 5)) as figure:
        for axes, field in zip(figure.subplots(2, sharex=True), ("multiply_adds", "parameters"), strict=True):
            axes.bar(range(len(weighted)), [getattr(cost, field) / 1e6 for cost in weighted], color="tab:blue")
            axes.set(ylabel=f"{field.replace('_', '-')} (M)")
            axes.grid(axis="y", alpha=0.3)
        axes.set_xticks(range(len(weighted)), [cost.name for cost in weighted], rotation=90, fontsize=6)
        figure.suptitle(title)
