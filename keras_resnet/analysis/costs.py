"""Parameters and multiply-adds: of any Keras model, layer by layer, and of the networks that the paper compares."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import keras
from keras import layers

from keras_resnet.analysis.alexnet import alexnet
from keras_resnet.architecture.complexity import Complexity, complexity
from keras_resnet.architecture.detector import HEAD_PREFIXES, Detector
from keras_resnet.architecture.metadata import layer_channel_axis
from keras_resnet.architecture.segmenter import Segmenter, without_auxiliary
from keras_resnet.errors import is_integer, value_error
from keras_resnet.files import figure_file
from keras_resnet.models.layers import check_graph
from keras_resnet.variants import get_spec


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
    """Shape of the output of the first call for one image, without the batch axis."""
    parameters: int
    """Number of weights except moving statistics, trainable or frozen."""
    statistics: int
    """Number of moving means and variances, and of scales and offsets of a detector's frozen batch norm."""
    multiply_adds: int
    """Multiply-adds of a convolution or Dense layer for one image, the "FLOPs" of He et al. 2015; 0 for others."""


_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


def layer_costs(model: keras.Model, input_shape: tuple[int, ...] | None = None) -> list[LayerCost]:
    """Count the parameters and multiply-adds of every layer of a model.

    >>> import keras_resnet
    >>> costs = keras_resnet.analysis.layer_costs(keras_resnet.create("resnet20"))
    >>> costs[0].name, costs[0].parameters, costs[0].multiply_adds
    ('conv1_conv', 432, 442368)

    Args:
        model: Functional or Sequential model. The multiply-adds of a layer are those of all its calls; those of a
            detector's heads are for all levels, or all proposals and detections; a segmenter's auxiliary head has none,
            as it is only computed in training.
        input_shape: shape of one image, without the batch axis, in the model's data format; None for the model's own,
            which should have no unknown sides then, and for 800x800 pixels of a detector, 520x520 of a segmenter. The
            input shapes of inner models should be known.

    Returns:
        A LayerCost for each layer, in order; the layers of inner models are counted one by one.

    Raises:
        ValueError: if the input shape is unknown or does not fit the model.
    """
    check_graph(model)
    if input_shape is None and isinstance(model, (Detector, Segmenter)):
        input_shape = (model.spec.default_size, model.spec.default_size, 3)
    counted = [layer for layer in model.layers if not isinstance(layer, layers.InputLayer)]
    computed = {layer.name for layer in (without_auxiliary(model) if isinstance(model, Segmenter) else model).layers}
    graph = getattr(model, "_functional", None) or model  # of a Sequential model
    own = {node for nodes in graph._nodes_by_depth.values() for node in nodes}
    tensors = {layer.name: _tensors(layer, own) for layer in counted if not isinstance(layer, keras.Model)}
    shapes = keras.Model(model.inputs, tensors).compute_output_spec(_one_image(model, input_shape))
    costs: list[LayerCost] = []
    for layer in counted:
        if layer.name in shapes:
            cost = _cost(layer, shapes[layer.name], _constants(layer, model))
            costs.append(cost if layer.name in computed else replace(cost, multiply_adds=0))
        else:
            costs += [replace(cost, name=f"{layer.name}/{cost.name}") for cost in layer_costs(layer)]
    return costs


def _tensors(layer, own):
    """For each call: the first output, and the tensor where the kernel is applied: of a transposed layer the input."""
    calls = [node for node in layer._inbound_nodes if node in own]
    transposed = isinstance(layer, _TRANSPOSED)
    return [(node.outputs[0], node.input_tensors[0] if transposed else node.outputs[0]) for node in calls]


def _constants(layer, model):
    """Endings of the names of the weights that are not parameters; a detector's frozen batch norm has no others."""
    frozen = isinstance(model, Detector) and model.spec.frozen_batch_norm and not layer.name.startswith(HEAD_PREFIXES)
    return ("moving_mean", "moving_variance", *(("gamma", "beta") if frozen else ()))


def _one_image(model, input_shape):
    """Symbolic inputs of the model for a batch of one image."""
    expected = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    shapes = expected if input_shape is None else [input_shape]
    if len(shapes) != len(expected) or not all(map(_fits, shapes, expected)):
        known = f"{model.name!r} has inputs of {', '.join(map(str, expected))}"
        raise value_error("input_shape", input_shape, f"the shape of one image without unknown sides; {known}")
    return [keras.KerasTensor((1, *shape), tensor.dtype) for shape, tensor in zip(shapes, model.inputs, strict=True)]


def _fits(shape, expected):
    if not isinstance(shape, (tuple, list)) or len(shape) != len(expected):
        return False
    known = all(is_integer(side, 1) for side in shape)
    return known and all(other in (None, side) for side, other in zip(shape, expected, strict=True))


def _cost(layer, calls, constants):
    statistics = _num_weights(layer, constants)
    multiplies = isinstance(layer, layers.Dense) or hasattr(layer, "kernel_size")
    positions = sum(_positions(layer, tensor) for _, tensor in calls) if multiplies else 0
    return LayerCost(
        name=layer.name,
        class_name=type(layer).__name__,
        output_shape=tuple(calls[0][0].shape[1:]),
        parameters=_num_weights(layer, "") - statistics,
        statistics=statistics,
        multiply_adds=_num_weights(layer, "kernel") * positions,
    )


def _positions(layer, tensor):
    """Number of positions at which a kernel is applied, in all rows: an image's regions are rows."""
    sides = tensor.shape[2:] if layer_channel_axis(layer) == 1 else tensor.shape[1:-1]
    return math.prod((tensor.shape[0] or 1, *sides))


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


@dataclass(frozen=True)
class NetworkCost:
    """Cost of one network for one image of 224x224 (AlexNet: 227x227).

    >>> from keras_resnet import analysis
    >>> analysis.network_costs()[0].name
    'AlexNet'
    """

    name: str
    depth: int
    """Number of weighted layers on the longest path."""
    parameters: int
    multiply_adds: int
    fraction_of_vgg19: float
    """Multiply-adds divided by those of VGG-19."""


_VARIANTS = {  # in figure 3, the shortcuts have no parameters (option A)
    "plain-18": "plain18",
    "plain-34": "plain34",
    "ResNet-18": "resnet18_a",
    "ResNet-34": "resnet34_a",
    "ResNet-50": "resnet50",
    "ResNet-101": "resnet101",
    "ResNet-152": "resnet152",
}
"""Name in the paper -> name in VARIANTS."""


def network_costs() -> list[NetworkCost]:
    """Costs of the networks that He et al. 2015 compare (sec. 3.3, table 1, figure 3).

    >>> from keras_resnet import analysis
    >>> [round(cost.fraction_of_vgg19, 2) for cost in analysis.network_costs() if cost.name == "ResNet-34"]
    [0.19]

    Returns:
        A NetworkCost for each of AlexNet, VGG-16, VGG-19 and the plain and residual networks, including the
        classifiers. (The paper's 15.3 G for VGG-16 are its convolutions only, its 19.6 G for VGG-19 all layers.)
    """
    rows = []
    for name, build in _OTHER_NETWORKS.items():
        costs = layer_costs(build())
        rows.append((name, sum(cost.multiply_adds > 0 for cost in costs), total_cost(costs)))
    for name, variant in _VARIANTS.items():
        spec = get_spec(variant)
        rows.append((name, spec.depth, complexity(spec)))
    vgg19 = next(cost.multiply_adds for name, _, cost in rows if name == "VGG-19")
    return [
        NetworkCost(name, depth, cost.parameters, cost.multiply_adds, cost.multiply_adds / vgg19)
        for name, depth, cost in rows
    ]


def _vgg(application):
    """VGG of keras.applications with a classifier of zeros: Keras would draw 120 million random numbers for its own."""
    shape = (3, 224, 224) if keras.config.image_data_format() == "channels_first" else (224, 224, 3)
    features = application(weights=None, include_top=False, input_shape=shape)
    x = layers.Flatten()(features.output)
    for units in (4096, 4096, 1000):
        x = layers.Dense(units, kernel_initializer="zeros")(x)
    return keras.Model(features.input, x)


_OTHER_NETWORKS = {
    "AlexNet": lambda: alexnet(initialize=False),
    "VGG-16": lambda: _vgg(keras.applications.VGG16),
    "VGG-19": lambda: _vgg(keras.applications.VGG19),
}


def plot_network_costs(
    costs: Sequence[NetworkCost], path: str | os.PathLike, title: str = "multiply-adds for one image"
) -> None:
    """Plot the multiply-adds of networks as bars, each with its fraction of VGG-19's.

    >>> from keras_resnet import analysis
    >>> analysis.plot_network_costs([analysis.NetworkCost("VGG-19", 19, 143667240, 19632062464, 1.0)], "costs.png")

    Args:
        costs: list of NetworkCost.
        path: PNG file to write.
        title: title of the figure.
    """
    with figure_file(path, figsize=(7, 4)) as figure:
        axes = figure.add_subplot(title=title, xlabel="multiply-adds (G)")
        names = [f"{cost.name} ({cost.parameters / 1e6:.1f} M parameters)" for cost in costs]
        bars = axes.barh(names, [cost.multiply_adds / 1e9 for cost in costs], color="tab:blue")
        labels = [f"{cost.multiply_adds / 1e9:.1f}, {cost.fraction_of_vgg19:.0%}" for cost in costs]
        axes.bar_label(bars, labels, padding=3)
        axes.margins(x=0.2)
        axes.invert_yaxis()
