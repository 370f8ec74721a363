"""What goes on inside a network: its costs, its signals, what it looks at. Arrays, and an image beside each."""

from keras_resnet.analysis.alexnet import alexnet
from keras_resnet.analysis.comparison import Contender, comparison, draw_comparison
from keras_resnet.analysis.costs import LayerCost, draw_costs, layer_costs, total_cost
from keras_resnet.analysis.features import draw_feature_maps, draw_filters, feature_maps, first_filters
from keras_resnet.analysis.grad_cam import draw_grad_cam, grad_cam
from keras_resnet.analysis.receptive_fields import ReceptiveField, draw_receptive_fields, receptive_fields
from keras_resnet.analysis.responses import draw_responses, layer_responses
from keras_resnet.analysis.signals import draw_signals, forward_variances, gradient_norms

__all__ = [
    "Contender",
    "LayerCost",
    "ReceptiveField",
    "alexnet",
    "comparison",
    "draw_comparison",
    "draw_costs",
    "draw_feature_maps",
    "draw_filters",
    "draw_grad_cam",
    "draw_receptive_fields",
    "draw_responses",
    "draw_signals",
    "feature_maps",
    "first_filters",
    "forward_variances",
    "grad_cam",
    "gradient_norms",
    "layer_costs",
    "layer_responses",
    "receptive_fields",
    "total_cost",
]
