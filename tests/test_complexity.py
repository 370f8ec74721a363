"""Parameters and multiply-adds against published numbers and built models."""

import keras
import numpy as np
import pytest

from keras_resnet import build, complexity, get_spec, list_models

TORCH_PARAMETERS = {  # torchvision 0.29.2 and timm 1.0.31: numel of the parameters
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50_v1_5": 25_557_032,
    "resnet101_v1_5": 44_549_160,
    "resnet152_v1_5": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnet26": 15_995_176,
    "resnet18d": 11_708_744,
    "resnet34d": 21_816_904,
    "resnet50d": 25_576_264,
    "resnet101d": 44_568_392,
    "resnet152d": 60_212_040,
    "seresnet18": 11_779_624,
    "seresnet50": 28_088_024,
    "seresnet101": 49_326_872,
    "resnetv2_50": 25_549_352,
    "resnetrs50": 35_691_912,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
}
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


@pytest.mark.parametrize(("name", "parameters"), TORCH_PARAMETERS.items())
def test_parameters_equal_those_of_torchvision_and_timm(name, parameters):
    assert complexity(get_spec(name)).parameters == parameters


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
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
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
