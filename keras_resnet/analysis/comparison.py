"""The paper's comparison: residual and plain networks beside AlexNet and the VGG nets."""

from dataclasses import dataclass

import keras
from keras import layers

from keras_resnet.analysis.alexnet import alexnet
from keras_resnet.analysis.costs import layer_costs, total_cost
from keras_resnet.architecture.complexity import complexity
from keras_resnet.files import save_figure
from keras_resnet.variants import get_spec


@dataclass(frozen=True)
class Contender:
    """One row of the paper's comparison."""

    name: str
    layers: int
    """Weighted layers on the longest path."""
    parameters: int
    multiply_adds: int
    ratio: float
    """Multiply-adds as a share of VGG-19's."""


_RESIDUAL = {
    "plain-18": "plain18",
    "plain-34": "plain34",
    "ResNet-18": "resnet18_a",
    "ResNet-34": "resnet34_a",
    "ResNet-50": "resnet50",
    "ResNet-101": "resnet101",
    "ResNet-152": "resnet152",
}
"""The paper's name -> the variant that it is; in figure 3 the shortcuts have no parameters (option A)."""


def comparison():
    """The paper's networks beside AlexNet, VGG-16 and VGG-19 (He et al. 2015, sec. 3.3, table 1, figure 3).

    Returns:
        A list of Contender. Residual and plain nets are counted in closed form, the others from their Keras models.
        Classifiers count; the paper's 15.3 G for VGG-16 are its convolutions alone, its 19.6 G for VGG-19 are all.
    """
    rows = [_built(name, model()) for name, model in _ANCESTORS.items()]
    for name, variant in _RESIDUAL.items():
        spec = get_spec(variant)
        rows.append((name, spec.depth, complexity(spec)))
    most = next(cost.multiply_adds for name, _, cost in rows if name == "VGG-19")
    return [
        Contender(name, depth, cost.parameters, cost.multiply_adds, cost.multiply_adds / most)
        for name, depth, cost in rows
    ]


def _built(name, model):
    costs = layer_costs(model)
    return name, sum(cost.multiply_adds > 0 for cost in costs), total_cost(costs)


def _vgg(body):
    """keras.applications' VGG; its classifier is put on here, since Keras would draw 120 million random numbers."""
    features = body(weights=None, include_top=False, input_shape=_VGG_SHAPES[keras.config.image_data_format()])
    x = layers.Flatten()(features.output)
    for units in (4096, 4096, 1000):
        x = layers.Dense(units, kernel_initializer="zeros")(x)
    return keras.Model(features.input, x)


_VGG_SHAPES = {"channels_last": (224, 224, 3), "channels_first": (3, 224, 224)}
_ANCESTORS = {
    "AlexNet": lambda: alexnet(initialize=False),
    "VGG-16": lambda: _vgg(keras.applications.VGG16),
    "VGG-19": lambda: _vgg(keras.applications.VGG19),
}


def draw_comparison(contenders, path, title="multiply-adds for one image"):
    """Draws `comparison()` as bars, each with its share of VGG-19."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot(title=title, xlabel="multiply-adds (G)")
    bars = axes.barh(
        [f"{row.name} ({row.parameters / 1e6:.1f} M parameters)" for row in contenders],
        [row.multiply_adds / 1e9 for row in contenders],
        color="tab:blue",
    )
    axes.bar_label(bars, [f"{row.multiply_adds / 1e9:.1f}, {row.ratio:.0%}" for row in contenders], padding=3)
    axes.margins(x=0.2)
    axes.invert_yaxis()
    save_figure(figure, path)
