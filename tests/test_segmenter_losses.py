"""The loss of segmenters against torch: its value and its gradients, what counts, and the rates of the layers."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support import REFERENCES, small_segmenter

from keras_resnet import Recipe, get_recipe
from keras_resnet.architecture.segmenter import ResizeLike
from keras_resnet.training.model_setup import _layer_rates
from keras_resnet.training.schedules import learning_rate
from keras_resnet.training.segmenter_training import AUXILIARY_WEIGHT, PixelLoss, segmenter_training_model

TORCH = dict(np.load(REFERENCES / "segmenter_training.npz"))
"""See make_segmenter_training.py."""
MASKS, WEIGHTS = TORCH["masks"], TORCH["weights"]


@pytest.mark.portable
def test_the_polynomial_schedule_equals_torch():
    rate = learning_rate(Recipe(epochs=1, learning_rate=0.02, schedule="polynomial"), 50)
    np.testing.assert_allclose([float(rate(step)) for step in range(50)], TORCH["polynomial"], rtol=1e-5)
    assert float(rate(50)) == 0 and float(rate(60)) == 0
    warm = learning_rate(Recipe(epochs=1, learning_rate=0.02, schedule="polynomial", warmup=0.5), 100)
    np.testing.assert_allclose([float(warm(step)) for step in range(50, 100)], TORCH["polynomial"], rtol=1e-5)


class Maps(layers.Layer):
    """Maps of logits as weights: their gradients are what an SGD step subtracts, divided by its rate."""

    def __init__(self, values):
        super().__init__(dtype="float32")
        self.maps = self.add_weight(shape=values.shape, initializer=lambda shape, dtype=None: values, name="maps")

    def call(self, masks):
        return self.maps + 0.0


def loss_and_gradients(weights):
    """The sum of the mean losses, and the gradients with respect to both maps."""
    masks = layers.Input(MASKS.shape[1:], dtype="uint8", name="masks")
    sources = {name: Maps(TORCH[name]) for name in ("logits", "auxiliary")}
    losses = {}
    for name, source in sources.items():
        enlarged = ResizeLike(dtype="float32")(source(masks), ops.cast(masks[..., None], "float32"))
        losses[name] = PixelLoss(weights, AUXILIARY_WEIGHT if name == "auxiliary" else 1.0)(enlarged, masks)
    model = keras.Model(masks, losses)
    rate = 1e4  # rounds less than a small step would
    model.compile(keras.optimizers.SGD(rate), dict.fromkeys(losses, lambda _, found: found))
    loss = model.train_on_batch(MASKS, {name: np.zeros(3) for name in losses}, return_dict=True)["loss"]
    steps = {name: TORCH[name].astype("float64") - ops.convert_to_numpy(it.maps) for name, it in sources.items()}
    return float(loss), {name: step / rate for name, step in steps.items()}


@pytest.mark.portable
@pytest.mark.parametrize(("name", "weights"), [("plain", None), ("weighted", WEIGHTS)])
def test_loss_and_gradients_equal_torch(name, weights):
    loss, gradients = loss_and_gradients(weights)
    assert loss == pytest.approx(float(TORCH[f"{name}/loss"]), rel=1e-5)
    for key, gradient in gradients.items():
        expected = TORCH[f"{name}/{key}"]
        np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())


def losses_of(model, images, masks):
    return model.predict({"images": images, "masks": masks}, verbose=0)


@pytest.mark.portable
def test_pixels_that_do_not_count_have_no_effect():
    segmenter = small_segmenter()
    model = segmenter_training_model(segmenter)
    images = np.random.default_rng(0).standard_normal((2, 24, 30, 3)).astype("float32")
    masks = np.random.default_rng(1).integers(0, 5, (2, 24, 30)).astype("uint8")
    masks[:, 5:9] = 255
    masks[1] = 255
    logits = segmenter.predict(images, verbose=0)[0].astype("float64")
    entropy = np.log(np.exp(logits).sum(axis=-1)) - np.take_along_axis(
        logits, np.minimum(masks[0], 4)[..., None].astype(int), axis=-1
    ).squeeze(-1)
    found = losses_of(model, images, masks)
    np.testing.assert_allclose(found["segmentation"], [2 * entropy[masks[0] != 255].mean(), 0], rtol=1e-5)
    nothing = losses_of(model, images, np.full_like(masks, 255))
    assert all(np.array_equal(values, [0, 0]) for values in nothing.values())
    only = losses_of(segmenter_training_model(segmenter, [0, 0, 0, 0, 0]), images, masks)
    assert all(np.array_equal(values, [0, 0]) for values in only.values())


@pytest.mark.portable
def test_a_batch_without_counted_pixels_changes_nothing():
    segmenter = small_segmenter()
    model = segmenter_training_model(segmenter)
    model.compile(keras.optimizers.SGD(0.1), dict.fromkeys(model.output, lambda _, found: found))
    before = segmenter.get_weights()
    x = {"images": np.ones((2, 24, 24, 3), "float32"), "masks": np.full((2, 24, 24), 255, "uint8")}
    logs = model.train_on_batch(x, {name: np.zeros(2) for name in model.output}, return_dict=True)
    assert logs["loss"] == 0
    trainable = {id(weight) for weight in segmenter.trainable_weights}
    for weight, value in zip(segmenter.weights, before, strict=True):
        if id(weight) in trainable:
            np.testing.assert_array_equal(ops.convert_to_numpy(weight), value)


@pytest.mark.parametrize("head", ["fcn", "deeplabv3", "deeplabv3plus"])
@pytest.mark.parametrize("auxiliary", [True, False])
def test_losses_of_all_heads(head, auxiliary):
    segmenter = small_segmenter(head, auxiliary=auxiliary)
    model = segmenter_training_model(segmenter)
    assert list(model.output) == ["segmentation", "auxiliary"][: 1 + auxiliary]
    assert {id(weight) for weight in model.weights} == {id(weight) for weight in segmenter.weights}
    images = np.zeros((2, 26, 31, 3), "float32")
    found = losses_of(model, images, np.zeros((2, 26, 31), "uint8"))
    assert all(values.shape == (2,) and values.dtype == np.float32 and (values > 0).all() for values in found.values())


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "bfloat16"])
def test_losses_are_float32_in_other_precisions(precision):
    policy = keras.config.dtype_policy()
    expected = small_segmenter()
    keras.config.set_dtype_policy(precision)
    try:
        segmenter = small_segmenter()
    finally:
        keras.config.set_dtype_policy(policy)
    segmenter.set_weights(expected.get_weights())
    images = np.random.default_rng(0).standard_normal((2, 24, 30, 3)).astype("float32")
    masks = np.random.default_rng(1).integers(0, 5, (2, 24, 30)).astype("uint8")
    found = losses_of(segmenter_training_model(segmenter), images, masks)
    exact = losses_of(segmenter_training_model(expected), images, masks)
    for name, values in found.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, exact[name], rtol=0.05)


@pytest.mark.parametrize(("rate", "decay"), [(10.0, 1.0), (10.0, 0.5), (1.0, 0.5), (1.0, 1.0)])
def test_rates_of_the_auxiliary_head_and_of_the_stages(rate, decay):
    segmenter = small_segmenter("deeplabv3")
    model = segmenter_training_model(segmenter)
    recipe = Recipe(epochs=1, loss="segmentation", auxiliary_rate=rate, layer_decay=decay)
    rates = _layer_rates(model, recipe)
    if rate == decay == 1:
        assert rates == ()
        return
    of_weight = {id(weight): it for weight, it in zip(model.trainable_variables, rates, strict=True)}
    for layer in segmenter.layers:
        stage = {"conv1": 0, "conv2": 1, "conv3": 2}.get(layer.name.partition("_")[0], 3)
        expected = decay ** (3 - stage) * (rate if layer.name.startswith("aux_") else 1)
        assert all(of_weight[id(weight)] == expected for weight in layer.trainable_weights)


def test_the_recipe_of_torchvision():
    """https://github.com/pytorch/vision/tree/main/references/segmentation: README.md, train.py, presets.py."""
    recipe = get_recipe("torchvision_segmentation")
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.weight_decay) == (30, 32, 0.02, 1e-4)
    assert (recipe.optimizer, recipe.momentum, recipe.schedule, recipe.auxiliary_rate) == ("sgd", 0.9, "polynomial", 10)
    assert (recipe.test_size, recipe.train_size, recipe.scale, recipe.flip) == (520, 480, (0.5, 2.0), True)
    assert recipe.task == "segmentation"
