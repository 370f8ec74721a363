"""Analysis of networks: costs, receptive fields, signals, feature maps and Grad-CAM, as arrays and plots."""

from keras_resnet.analysis.alexnet import alexnet
from keras_resnet.analysis.costs import (
    LayerCost,
    NetworkCost,
    layer_costs,
    network_costs,
    plot_layer_costs,
    plot_network_costs,
    total_cost,
)
from keras_resnet.analysis.features import feature_maps, first_filters, plot_feature_maps, plot_filters
from keras_resnet.analysis.grad_cam import grad_cam, plot_grad_cam
from keras_resnet.analysis.receptive_fields import ReceptiveField, plot_receptive_fields, receptive_fields
from keras_resnet.analysis.signals import (
    forward_variances,
    gradient_norms,
    layer_responses,
    plot_responses,
    plot_signals,
)

__all__ = [
    "LayerCost",
    "NetworkCost",
    "ReceptiveField",
    "alexnet",
    "feature_maps",
    "first_filters",
    "forward_variances",
    "grad_cam",
    "gradient_norms",
    "layer_costs",
    "layer_responses",
    "network_costs",
    "plot_feature_maps",
    "plot_filters",
    "plot_grad_cam",
    "plot_layer_costs",
    "plot_network_costs",
    "plot_receptive_fields",
    "plot_responses",
    "plot_signals",
    "receptive_fields",
    "total_cost",
]
