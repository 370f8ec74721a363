"""Recipes as values, and schedules and optimizers against the papers, Keras and timm."""

import json
from dataclasses import fields, replace

import keras
import numpy as np
import pytest

from keras_resnet import Recipe, create, get_recipe
from keras_resnet.training.optimizers import create_optimizer
from keras_resnet.training.recipes import RECIPES
from keras_resnet.training.schedules import learning_rate


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json_and_can_be_shortened(name):
    recipe = RECIPES[name]
    assert Recipe(**json.loads(json.dumps(recipe.to_config()))) == recipe == eval(repr(recipe))
    short = get_recipe(name, epochs=2)
    assert short.steps(10 * recipe.batch_size + 1) == (10, 20) and short.milestones == recipe.milestones
    assert get_recipe(name, iterations=7).steps(10 * recipe.batch_size) == (10, 7)


def test_values_of_the_paper():
    """He et al. 2015, sec. 4.2: 0.1, a tenth at 32k and 48k, stop at 64k, batch 128; sec. 3.4 for ImageNet."""
    recipe = get_recipe("he2015_cifar")
    assert recipe.steps(45_000) == (351, 64_000) and (recipe.batch_size, recipe.momentum) == (128, 0.9)
    assert (recipe.weight_decay, recipe.decay_all, recipe.nesterov, recipe.padding) == (1e-4, True, False, 4)
    rate = learning_rate(recipe, 64_000)
    given = {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
    assert {step: float(rate(step)) for step in given} == pytest.approx(given)
    deep = learning_rate(get_recipe("he2015_cifar_110"), 64_000)
    rates = [float(deep(step)) for step in (0, 399, 400, 31_999, 32_000)]
    assert rates == pytest.approx([0.01, 0.01, 0.1, 0.1, 0.01])
    imagenet = get_recipe("he2015_imagenet")
    assert imagenet.steps(1_281_167) == (5004, 600_000) and imagenet.scale == (256, 480) and imagenet.lighting == 0.1
    assert learning_rate(imagenet, 600_000) == 0.1, "the callback lowers it on plateaus"


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("cosine", [0, 0.2, 0.4, 0.2, 0]), ("linear", [0, 0.2, 0.4, 0.2, 0]), ("constant", [0, 0.2, 0.4, 0.4, 0.4])],
)
def test_schedules_at_their_corners(schedule, expected):
    rate = learning_rate(Recipe(epochs=10, learning_rate=0.4, warmup=0.2, schedule=schedule), 1000)
    assert [float(rate(step)) for step in (0, 100, 200, 600, 1000)] == pytest.approx(expected, abs=1e-6)


def test_cosine_equals_keras():
    ours = learning_rate(Recipe(epochs=1, learning_rate=0.4, warmup=0.1), 1000)
    keras_own = keras.optimizers.schedules.CosineDecay(0.0, 900, warmup_target=0.4, warmup_steps=100)
    steps = np.arange(0, 1000, 7)
    np.testing.assert_allclose([float(ours(s)) for s in steps], [float(keras_own(s)) for s in steps], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "epochs"),
        ({"epochs": 0}, "an integer, 1 or more"),
        ({"epochs": "many"}, "an integer, 1 or more"),
        ({"epochs": True}, "an integer, 1 or more"),
        ({"epochs": None}, "iterations"),
        ({"epochs": 2, "iterations": 2}, "not both"),
        ({"batch_size": 2.5}, "an integer, 1 or more"),
        ({"schedule": "cosin"}, "cosine"),
        ({"optimizer": "sdg"}, "sgd"),
        ({"crop": "centre"}, "random_resized"),
        ({"learning_rate": -1}, "0 or more"),
        ({"learning_rate": "fast"}, "0 or more"),
        ({"learning_rate": float("nan")}, "0 or more"),
        ({"momentum": 1}, r"\[0, 1\)"),
        ({"padding": -1}, "0 or more"),
        ({"milestones": "often"}, "milestones"),
        ({"milestones": (0.8,)}, "step"),
        ({"schedule": "step", "milestones": (0.8, 0.5)}, "increasing"),
        ({"schedule": "step", "milestones": (32_000,)}, "between 0 and 1"),
        ({"schedule": "plateau"}, "warmup"),
        ({"nesterov": "yes"}, "True or False"),
        ({"scale": (0.5,)}, "two numbers"),
        ({"crop": "random_resized", "scale": (256, 480)}, "fractions"),
        ({"crop": "scale_jitter"}, "pixels"),
        ({"target_threshold": 0.2}, "binary_cross_entropy"),
        ({"test_resize": 256}, "test_size"),
        ({"erasing": 2}, "from 0 to 1"),
    ],
)
def test_recipes_refuse_invalid_values(changes, message):
    with pytest.raises(ValueError, match=message):
        get_recipe("quickstart", **changes)


def test_unknown_recipes_name_the_nearest():
    with pytest.raises(ValueError, match="quickstart"):
        get_recipe("quickstrat")
    assert len({field.name for field in fields(Recipe)}) == len(fields(Recipe))


def steps_of(optimizer, gradients, start):
    """Values of a variable after each of some gradients."""
    weight = keras.Variable(start, name="kernel")
    values = []
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [weight])
        values.append(keras.ops.convert_to_numpy(weight))
    return values


START = np.array([[1.0, -2.0], [0.5, 3.0]], "float32")
GRADIENTS = np.random.default_rng(0).normal(size=(4, 2, 2)).astype("float32")


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_the_formula(nesterov):
    """An L2 penalty inside the momentum: v = 0.9 v - rate * (g + decay * w), as in torch.optim.SGD up to the sign."""
    recipe = Recipe(epochs=1, learning_rate=0.1, weight_decay=0.01, schedule="constant", nesterov=nesterov)
    weight, velocity, expected = START.copy(), np.zeros_like(START), []
    for gradient in GRADIENTS:
        step = gradient + 0.01 * weight
        velocity = 0.9 * velocity - 0.1 * step
        weight = weight + (0.9 * velocity - 0.1 * step if nesterov else velocity)
        expected.append(weight)
    np.testing.assert_allclose(steps_of(create_optimizer(recipe, 0.1), GRADIENTS, START), expected, rtol=1e-5)


def test_lamb_equals_timm():
    """timm 1.0.31, in the reference environment:

    p = torch.nn.Parameter(START); o = timm.optim.Lamb([p], lr=0.1, weight_decay=0.02, max_grad_norm=None)
    for g in GRADIENTS: p.grad = g; o.step(); print(p)
    """
    recipe = Recipe(epochs=1, optimizer="lamb", weight_decay=0.02)
    np.testing.assert_allclose(steps_of(create_optimizer(recipe, 0.1), GRADIENTS, START), TIMM_LAMB, atol=2e-6)


TIMM_LAMB = [
    [[0.813572, -1.809916], [0.315398, 2.806261]],
    [[0.942998, -1.910854], [0.089359, 2.603557]],
    [[1.146998, -1.764179], [-0.027683, 2.412657]],
    [[1.403483, -1.57922], [0.000645, 2.371439]],
]


def test_decay_all_decides_whether_biases_and_batch_norm_decay():
    for decay_all in (True, False):
        model = create("resnet20", depths=(1, 1, 1), input_shape=(8, 8, 1), classes=10)
        recipe = replace(get_recipe("quickstart"), weight_decay=0.5, decay_all=decay_all)
        optimizer = create_optimizer(recipe, 0.1)
        before = {v.path: keras.ops.convert_to_numpy(v) for v in model.trainable_variables}
        optimizer.apply([keras.ops.zeros_like(v) for v in model.trainable_variables], model.trainable_variables)
        for variable in model.trainable_variables:
            decays = decay_all or variable.name == "kernel"
            expected = before[variable.path] * (1 - 0.1 * 0.5 * 1.9 * decays)  # Nesterov: 1 + momentum
            np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), expected, rtol=1e-5)
