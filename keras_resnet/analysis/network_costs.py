"""Costs of the networks that the paper compares: residual and plain networks, AlexNet and VGG."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import keras
from keras import layers

from keras_resnet.analysis.alexnet import alexnet
from keras_resnet.analysis.layer_costs import layer_costs, total_cost
from keras_resnet.architecture.complexity import complexity
from keras_resnet.files import figure_file
from keras_resnet.variants import get_spec


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
    rows = [_model_cost(name, build()) for name, build in _OTHER_NETWORKS.items()]
    for name, variant in _VARIANTS.items():
        spec = get_spec(variant)
        rows.append((name, spec.depth, complexity(spec)))
    vgg19 = next(cost.multiply_adds for name, _, cost in rows if name == "VGG-19")
    return [
        NetworkCost(name, depth, cost.parameters, cost.multiply_adds, cost.multiply_adds / vgg19)
        for name, depth, cost in rows
    ]


def _model_cost(name, model):
    costs = layer_costs(model)
    return name, sum(cost.multiply_adds > 0 for cost in costs), total_cost(costs)


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
