"""Recipes as values, and schedules against the papers and Keras."""

import json
from dataclasses import fields

import keras
import numpy as np
import pytest

from keras_resnet import Recipe, get_recipe
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
        ({"epochs": 0}, "an integer from 1 to"),
        ({"epochs": "many"}, "an integer from 1 to"),
        ({"epochs": True}, "an integer from 1 to"),
        ({"epochs": None}, "iterations"),
        ({"epochs": 2, "iterations": 2}, "not both"),
        ({"batch_size": 2.5}, "an integer from 1 to"),
        ({"schedule": "cosin"}, "cosine"),
        ({"optimizer": "sdg"}, "sgd"),
        ({"crop": "centre"}, "random_resized"),
        ({"learning_rate": -1}, "from 0 to"),
        ({"learning_rate": "fast"}, "from 0 to"),
        ({"learning_rate": float("nan")}, "from 0 to"),
        ({"momentum": 1}, r"\[0, 1\)"),
        ({"padding": -1}, "from 0 to"),
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
