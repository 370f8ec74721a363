"""What a model costs, layer by layer."""

import math
from dataclasses import dataclass, replace

import keras
from keras import layers

from keras_resnet.architecture.complexity import Complexity
from keras_resnet.architecture.metadata import layer_channel_axis
from keras_resnet.errors import is_integer
from keras_resnet.files import save_figure
from keras_resnet.models.layers import check_graph


@dataclass(frozen=True)
class LayerCost:
    """One layer's share in a network's costs."""

    name: str
    """Name of the layer; inside a model within the model, "inner/layer"."""
    kind: str
    """Its class, such as "Conv2D"."""
    output_shape: tuple[int, ...]
    """Of one image, without the batch."""
    parameters: int
    """What training learns, or could."""
    statistics: int
    """Moving means and variances."""
    multiply_adds: int
    """Of convolutions and fully connected layers, for one image: the paper's "FLOPs"; 0 for all others."""


_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_MULTIPLYING = (
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


def layer_costs(model, input_shape=None):
    """Parameters and multiply-adds of any Functional or Sequential model, layer by layer.

    Args:
        model: keras.Model. Models within it are counted layer by layer too. A layer that is called twice counts once.
        input_shape: of one image, all sides known, in the model's order of axes; default the model's own. The sizes
            of models within the model must be known.

    Returns:
        A list of LayerCost, first layer first. `total_cost` adds it up.

    Raises:
        ValueError: if the sizes of the inputs are not known, or are not those that the model takes.
    """
    check_graph(model)
    found = [layer for layer in model.layers if not isinstance(layer, layers.InputLayer)]
    tensors = {layer.name: _tensors(layer) for layer in found if not isinstance(layer, keras.Model)}
    shapes = keras.Model(model.inputs, tensors).compute_output_spec(_one_image(model, input_shape))
    costs = []
    for layer in found:
        costs += [_cost(layer, *shapes[layer.name])] if layer.name in shapes else _inner_costs(layer)
    return costs


def _tensors(layer):
    """What leaves a layer, the first if it is several; and the places at which its kernel is applied.

    That is once for each pixel of the output; if transposed, of the input.
    """
    output = keras.tree.flatten(layer.output)[0]
    return output, layer.input if isinstance(layer, _TRANSPOSED) else output


def _inner_costs(model):
    return [replace(cost, name=f"{model.name}/{cost.name}") for cost in layer_costs(model)]


def _one_image(model, input_shape):
    """What the model takes for a single image, as Keras tensors without numbers."""
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    wanted = shapes if input_shape is None else [input_shape]
    if len(wanted) != len(shapes) or not all(map(_fits, wanted, shapes)):
        raise ValueError(
            f"`input_shape` should be the shape of one image, all sides known, for {model.name!r}, which takes "
            f"{', '.join(map(str, shapes))}. Received: input_shape={input_shape}"
        )
    return [keras.KerasTensor((1, *shape), tensor.dtype) for shape, tensor in zip(wanted, model.inputs, strict=True)]


def _fits(shape, pattern):
    if not isinstance(shape, (tuple, list)) or len(shape) != len(pattern):
        return False
    known = all(is_integer(side, 1) for side in shape)
    return known and all(want in (None, side) for side, want in zip(shape, pattern, strict=True))


def _cost(layer, output, places):
    first = layer_channel_axis(layer) == 1
    sides = places.shape[2:] if first else places.shape[1:-1]
    statistics = _size(layer, ("moving_mean", "moving_variance"))
    return LayerCost(
        name=layer.name,
        kind=type(layer).__name__,
        output_shape=tuple(output.shape[1:]),
        parameters=_size(layer, "") - statistics,
        statistics=statistics,
        multiply_adds=_size(layer, "kernel") * math.prod(sides) if isinstance(layer, _MULTIPLYING) else 0,
    )


def _size(layer, endings):
    """How many numbers the weights hold whose names end so."""
    return sum(math.prod(weight.shape) for weight in layer.weights if weight.name.endswith(endings))


def total_cost(costs):
    """The sums of a list of LayerCost, as `keras_resnet.complexity` has them for a spec: a Complexity."""
    fields = ("parameters", "statistics", "multiply_adds")
    return Complexity(*(sum(getattr(cost, field) for cost in costs) for field in fields))


def draw_costs(costs, path, title=""):
    """Draws multiply-adds and parameters, layer by layer: where the work is, and where the memory.

    Args:
        costs: list of LayerCost; only layers with multiply-adds are drawn.
        path: the PNG to write.
        title: above the image.
    """
    from matplotlib.figure import Figure

    weighted = [cost for cost in costs if cost.multiply_adds]
    if not weighted:
        raise ValueError(f"`costs` should hold a LayerCost with multiply-adds. Received: {len(costs)} without")
    figure = Figure(figsize=(max(7, 0.14 * len(weighted)), 5))
    for axes, field in zip(figure.subplots(2, sharex=True), ("multiply_adds", "parameters"), strict=True):
        axes.bar(range(len(weighted)), [getattr(cost, field) / 1e6 for cost in weighted], color="tab:blue")
        axes.set(ylabel=f"{field.replace('_', '-')} (M)")
        axes.grid(axis="y", alpha=0.3)
    axes.set_xticks(range(len(weighted)), [cost.name for cost in weighted], rotation=90, fontsize=6)
    figure.suptitle(title)
    save_figure(figure, path)
