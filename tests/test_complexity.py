"""Parameters and multiply-adds against published numbers and built models."""

import json

import keras
import numpy as np
import pytest
from support import REFERENCES

from keras_resnet import build, complexity, get_spec, list_models
from keras_resnet.weights.catalog import TIMM_NETWORKS

CIFAR_PARAMETERS = {  # github.com/akamaster/pytorch_resnet_cifar10: numel of the parameters
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
}
TIMM_COSTS = json.loads((REFERENCES / "networks" / "index.json").read_text())["timm"]
"""timm's name of a network -> [parameters, multiply-adds]."""
KERAS_PARAMETERS = {  # keras.applications: count_params() with and without the top
    "resnet50": (25_636_712, 23_587_712),
    "resnet101": (44_707_176, 42_658_176),
    "resnet152": (60_419_944, 58_370_944),
    "resnet50v2": (25_613_800, 23_564_800),
    "resnet101v2": (44_675_560, 42_626_560),
    "resnet152v2": (60_380_648, 58_331_648),
}
PAPER_MULTIPLY_ADDS = {  # He et al. 2015, table 1, in units of 1e9
    "resnet18_a": 1.8,
    "resnet34_a": 3.6,
    "resnet50": 3.8,
    "resnet101": 7.6,
    "resnet152": 11.3,
    "plain18": 1.8,
    "plain34": 3.6,
}


@pytest.mark.parametrize(("name", "parameters"), CIFAR_PARAMETERS.items())
def test_parameters_equal_those_of_the_torch_networks(name, parameters):
    assert complexity(get_spec(name)).parameters == parameters


@pytest.mark.parametrize(("theirs", "name"), TIMM_NETWORKS.items())
def test_parameters_and_multiply_adds_equal_those_of_timm(theirs, name):
    cost = complexity(get_spec(name))
    assert [cost.parameters, cost.multiply_adds] == TIMM_COSTS[theirs]


@pytest.mark.parametrize(("name", "counts"), KERAS_PARAMETERS.items())
def test_parameters_equal_those_of_keras_applications(name, counts):
    found = [complexity(get_spec(name), include_top=top) for top in (True, False)]
    assert tuple(cost.parameters + cost.statistics for cost in found) == counts


@pytest.mark.parametrize(("name", "giga"), PAPER_MULTIPLY_ADDS.items())
def test_multiply_adds_equal_those_of_the_paper(name, giga):
    assert complexity(get_spec(name)).multiply_adds / 1e9 == pytest.approx(giga, abs=0.06)


def count_multiply_adds(model):
    """Multiply-adds of a built model, from the kernels and output shapes of its layers."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Dense)):
            total += int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:-1]))
    return total


def deep_slow(name):
    return pytest.param(name, marks=pytest.mark.slow) if get_spec(name).depth > 60 else name


@pytest.mark.parametrize("name", [deep_slow(name) for name in list_models() if get_spec(name).depth < 160])
def test_the_closed_form_agrees_with_the_model(name):
    spec = get_spec(name)
    shape = (39, 50, 3)
    model = build(spec, classes=7, input_shape=shape, initialize=False)
    cost = complexity(spec, classes=7, input_shape=shape)
    assert cost.parameters + cost.statistics == model.count_params()
    assert cost.parameters == sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert cost.multiply_adds == count_multiply_adds(model)


DEEPEST = ["preact_resnet164", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet1202", "preact_resnet1001"))]


@pytest.mark.parametrize("name", DEEPEST)
def test_the_closed_form_agrees_with_the_deepest_models(name):
    cost = complexity(get_spec(name))
    model = build(get_spec(name), classes=10, initialize=False)
    assert cost.parameters + cost.statistics == model.count_params()
    assert cost.multiply_adds == count_multiply_adds(model)
