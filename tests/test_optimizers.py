"""Optimizers against torch, timm and Keras, and their state in checkpoints."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from support import REFERENCES

from keras_resnet import Recipe, create, get_recipe
from keras_resnet.training.checkpoints import TrainingState, load_checkpoint, save_checkpoint
from keras_resnet.training.model_setup import compile_model
from keras_resnet.training.optimizers import OPTIMIZERS, create_optimizer

TORCH = dict(np.load(REFERENCES / "torch_optimizers.npz"))
"""See make_torch_optimizers.py."""
PARAMETERS = ("kernel", "bias", "upper")


def steps_of(optimizer, gradients, start):
    """Values of variables after each of some steps; `start` is {name: value}, `gradients` {name: one for each step}."""
    variables = [keras.Variable(value, name=name) for name, value in start.items()]
    values = {name: [] for name in start}
    for step in zip(*gradients.values(), strict=True):
        optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in step], variables)
        for variable, name in zip(variables, start, strict=True):
            values[name].append(keras.ops.convert_to_numpy(variable))
    return values


def of_torch(group):
    return {name: TORCH[f"{group}/{name}"] for name in PARAMETERS}


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "adamw", "rmsprop"])
def test_updates_equal_those_of_torch(name):
    """With weight decay of the kernels only, a rate for each layer, and clipped gradients.

    Keras's Adam adds epsilon before the bias correction, torch's after it.
    """
    fields = {"optimizer": "sgd", "nesterov": True} if name == "nesterov" else {"optimizer": name}
    recipe = Recipe(epochs=1, weight_decay=0.05, decay_all=False, clip_norm=2.0, **fields)
    optimizer = create_optimizer(recipe, 0.1)
    optimizer.layer_rates = [0.5, 0.5, 1.0]
    found = steps_of(optimizer, of_torch("gradients"), of_torch("start"))
    for parameter in PARAMETERS:
        np.testing.assert_allclose(
            found[parameter], TORCH[f"{name}/{parameter}"], rtol=2e-5, atol=2e-5 if "adam" in name else 2e-6
        )


@pytest.mark.parametrize("name", ["Nadam", "Adamax", "Adagrad", "Adadelta", "Adafactor", "Lion", "Ftrl", "Muon"])
def test_optimizers_of_keras_are_unchanged(name):
    recipe = Recipe(epochs=1, optimizer=name, weight_decay=0.05, clip_norm=2.0)
    theirs = getattr(keras.optimizers, name)(0.1, weight_decay=0.05, global_clipnorm=2.0)
    if name == "Muon":
        theirs.adam_weight_decay = 0.05  # Keras has a second decay for the parameters that are not matrices
    one, other = (
        steps_of(it, of_torch("gradients"), of_torch("start")) for it in (create_optimizer(recipe, 0.1), theirs)
    )
    for parameter in PARAMETERS:
        np.testing.assert_allclose(one[parameter], other[parameter], rtol=1e-5, atol=1e-6)


def test_lamb_equals_timm():
    """timm 1.0.31, in the reference environment:

    p = torch.nn.Parameter(START); o = timm.optim.Lamb([p], lr=0.1, weight_decay=0.02, max_grad_norm=None)
    for g in GRADIENTS: p.grad = g; o.step(); print(p)
    """
    recipe = Recipe(epochs=1, optimizer="lamb", weight_decay=0.02)
    found = steps_of(create_optimizer(recipe, 0.1), {"kernel": GRADIENTS}, {"kernel": START})
    np.testing.assert_allclose(found["kernel"], TIMM_LAMB, atol=2e-6)


START = np.array([[1.0, -2.0], [0.5, 3.0]], "float32")
GRADIENTS = np.random.default_rng(0).normal(size=(4, 2, 2)).astype("float32")
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


def network(name):
    """A tiny network, compiled with averages, clipping, decay and a rate for each layer."""
    keras.utils.set_random_seed(0)
    model = create("resnet20", depths=(1, 1), widths=(2, 4), stem_width=2, input_shape=(8, 8, 1), classes=3)
    recipe = Recipe(
        epochs=1, optimizer=name, learning_rate=0.01, weight_decay=0.1, layer_decay=0.5, clip_norm=1.0, ema_decay=0.9
    )
    compile_model(model, recipe, 9, jit_compile=False)
    return model


def take_steps(model, seed):
    """Two steps with random gradients."""
    generator = np.random.default_rng(seed)
    for _ in range(2):
        gradients = [generator.normal(size=variable.shape).astype("float32") for variable in model.trainable_variables]
        model.optimizer.apply([*map(keras.ops.convert_to_tensor, gradients)], model.trainable_variables)
    return [keras.ops.convert_to_numpy(variable) for variable in (*model.variables, *model.optimizer.variables)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_optimizer_is_in_the_checkpoint(name, tmp_path):
    """A run that continues from a checkpoint takes the same steps as an uninterrupted one, bit by bit."""
    model, path = network(name), tmp_path / "checkpoint.safetensors"
    before = take_steps(model, 1)
    save_checkpoint(path, model, TrainingState(), {})
    whole = take_steps(model, 2)
    assert not all(map(np.array_equal, before, whole)), "they take steps"
    resumed = network(name)
    load_checkpoint(path, resumed, {}, restore=lambda state: None)
    for one, other in zip(take_steps(resumed, 2), whole, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_models_are_saved_with_their_optimizers(name, tmp_path):
    model = network(name)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is OPTIMIZERS[name]
    assert json.dumps(loaded.optimizer.get_config()) == json.dumps(model.optimizer.get_config())
