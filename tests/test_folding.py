"""fold_batch_norm: the same logits for every network; layers that cannot be folded are kept."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers
from support import narrow, narrow_variants, random_images, randomize_weights, stabilize

from keras_resnet import build, create, fold_batch_norm, get_spec, list_models
from keras_resnet.architecture.metadata import model_spec
from keras_resnet.data.datasets import default_preprocessing
from keras_resnet.models.preprocessing import set_preprocessing


def outputs_of(model, x):
    """All outputs of a model as one vector."""
    outputs = keras.tree.flatten(model(x, training=False))
    return np.concatenate([keras.ops.convert_to_numpy(output).ravel() for output in outputs])


def check_folded(model, x=None):
    """Randomizes and folds a model; asserts that the outputs are the same."""
    x = random_images(2, *model.input_shape[1:]) if x is None else x
    model = randomize_weights(model)
    expected, copy = outputs_of(stabilize(model) if model_spec(model) else model, x), fold_batch_norm(model)
    assert np.isfinite(expected).all()
    assert np.abs(outputs_of(copy, x) - expected).max() <= 1e-4 * np.abs(expected).max()
    return copy


def layer_names(model, kind=layers.BatchNormalization):
    return [layer.name for layer in model.layers if isinstance(layer, kind)]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.portable] * (name == "resnet34d")) for name in narrow_variants().values()],
)
def test_a_narrow_network_of_every_kind_is_folded_to_the_same_logits(name):
    spec = narrow(get_spec(name))
    copy = check_folded(build(spec, classes=5, input_shape=(32, 40, 3), classifier_activation=None))
    assert copy.info["unfolded"] == layer_names(copy) and bool(layer_names(copy)) == spec.preactivation


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_network_is_folded_to_the_same_logits(name):
    """At its width and depth, on small images."""
    check_folded(build(get_spec(name), input_shape=(32, 32, 3), classifier_activation=None))


@pytest.mark.portable
def test_kernel_and_bias_equal_those_of_torch():
    """torch 2.13, torch.nn.utils.fusion.fuse_conv_bn_eval of the same numbers; its kernels are (out, in, H, W)."""
    inputs = keras.Input((4, 4, 2))
    norm = layers.BatchNormalization(epsilon=1e-3)
    model = keras.Model(inputs, norm(layers.Conv2D(3, (1, 2), name="conv")(inputs)))
    kernel = (np.arange(12).reshape(3, 2, 1, 2) / 4 - 1).transpose(2, 3, 1, 0)
    statistics = [1.5, -0.5, 2], [0.25, 0, -1], [1, -2, 0.5], [0.25, 4, 1]
    model.set_weights([kernel, np.array([0.5, -1, 2]), *map(np.array, statistics)])
    found, bias = fold_batch_norm(model).get_layer("conv").get_weights()
    expected = [-2.99401808, -2.24551344, -1.49700904, -0.74850446, 0, -0.06249219, -0.12498438, -0.18747658]
    expected += [1.99900079, 2.49875093, 2.9985013, 3.49825144]
    np.testing.assert_allclose(found.transpose(3, 2, 0, 1).ravel(), expected, rtol=1e-6)
    np.testing.assert_allclose(bias, [-1.24700904, -0.24996877, 1.9985013], rtol=1e-6)


@pytest.mark.parametrize("name", ["ResNet50", "ResNet50V2"])
def test_networks_of_keras_applications_are_folded(name):
    """The batch norms that are kept are those that do not directly follow a convolution."""
    kind = getattr(keras.applications, name)
    model = kind(weights=None, input_shape=(32, 32, 3), classifier_activation=None, classes=7)
    copy = check_folded(model)
    after_sums = [name for name in layer_names(model) if name.endswith("preact_bn") or name == "post_bn"]
    assert copy.info["unfolded"] == after_sums and (name == "ResNet50V2") == bool(after_sums)


def test_batch_norms_of_preactivation_networks_after_sums_are_kept():
    """They are the first of each block and the last of the network; the very first follows a convolution."""
    model = build(get_spec("preact_resnet110"), input_shape=(8, 8, 3))
    kept = [name for name in layer_names(model) if name.endswith("preact_bn") or name == "post_bn"]
    kept.remove("conv2_block1_preact_bn")
    assert fold_batch_norm(model).info["unfolded"] == kept and len(kept) == 54


def test_folding_keeps_spec_info_and_names(tmp_path):
    model = create("resnet20", classifier_activation=None)
    set_preprocessing(model, default_preprocessing((32, 32, 3)), "torch")
    before = dict(model.info)
    copy = check_folded(model)
    assert copy.spec == model.spec and copy.info == before | {"unfolded": []}
    assert model.info == before, "the original is unchanged"
    assert copy.name == model.name and copy.layers[0].name == model.layers[0].name
    assert {*layer_names(copy, layers.Layer)} == {
        name for name in layer_names(model, layers.Layer) if not name.endswith("_bn")
    }
    copy.save(tmp_path / "folded.keras")
    x = random_images(2, 32, 32, 3)
    np.testing.assert_array_equal(
        outputs_of(keras.saving.load_model(tmp_path / "folded.keras"), x), outputs_of(copy, x)
    )


def test_weights_and_policies_are_copies():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = randomize_weights(build(narrow(get_spec("resnet18")), input_shape=(32, 32, 3), classes=4))
    copy = fold_batch_norm(model)
    assert copy.get_layer("conv2_block1_1_conv").dtype_policy.name == "mixed_bfloat16"
    assert copy.output.dtype == "float32"
    x = random_images(2, 32, 32, 3)
    expected = outputs_of(copy, x)
    for weight in model.weights:
        weight.assign(weight * 0)
    np.testing.assert_array_equal(outputs_of(copy, x), expected)


@pytest.mark.parametrize(
    "name", ["resnet18", pytest.param("resnet20", marks=pytest.mark.portable), "seresnet50", "resnet50v2"]
)
def test_channels_first_networks_are_folded(name):
    spec = replace(narrow(get_spec(name)), data_format="channels_first")
    copy = check_folded(build(spec, classes=4, input_shape=(3, 32, 40), classifier_activation=None))
    assert bool(copy.info["unfolded"]) == spec.preactivation


def two_convolutions(x):
    layer = layers.Conv2D(3, 3, padding="same")
    return layers.BatchNormalization()(layer(layer(x)))


def two_norms(x):
    layer = layers.BatchNormalization()
    return layer(layers.Conv2D(3, 1)(layer(layers.Conv2D(3, 1)(x))))


def used_twice(x):
    x = layers.Conv2D(4, 3)(x)
    return layers.Add()([layers.BatchNormalization()(x), x])


def returned(x):
    x = layers.Conv2D(4, 3)(x)
    return {"before": x, "after": layers.BatchNormalization()(x)}


class Standardized(layers.Conv2D):
    """Convolves with another kernel than it has (Qiao et al. 2019, arXiv:1903.10520)."""

    def convolution_op(self, inputs, kernel):
        kernel = keras.ops.convert_to_tensor(kernel)
        return super().convolution_op(inputs, kernel / keras.ops.std(kernel, axis=(0, 1, 2)))


def adapted(x):
    layer = layers.Dense(4)
    x = layers.BatchNormalization()(layer(x))
    layer.enable_lora(2)
    return x


KEPT = {
    "a convolution that is called twice": two_convolutions,
    "a norm that is called twice": two_norms,
    "a map with two users": used_twice,
    "a map that is returned": returned,
    "an activation in between": lambda x: layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(x)),
    "another axis": lambda x: layers.BatchNormalization(axis=1)(layers.Conv2D(8, 3, padding="same")(x)),
    "a kernel of other axes": lambda x: layers.BatchNormalization()(layers.Conv2DTranspose(4, 3)(x)),
    "a kernel for each channel": lambda x: layers.BatchNormalization()(layers.DepthwiseConv2D(3)(x)),
    "a kernel that is changed first": lambda x: layers.BatchNormalization()(Standardized(4, 3)(x)),
    "LoRA": adapted,
    "no layer before it": lambda x: layers.BatchNormalization()(x),
    "an operation before it": lambda x: layers.BatchNormalization()(layers.Conv2D(4, 3)(x) + 1),
}


@pytest.mark.parametrize("what", KEPT)
def test_batch_norms_that_cannot_be_folded_are_kept_and_listed(what):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, KEPT[what](inputs))
    assert check_folded(model).info["unfolded"] == layer_names(model)


def unbiased_conv_and_norm(**norm):
    return lambda x: layers.BatchNormalization(**norm)(layers.Conv2D(4, 3, use_bias=False)(x))


FOLDED = {
    "neither scale nor offset": unbiased_conv_and_norm(center=False, scale=False),
    "no scale": unbiased_conv_and_norm(scale=False),
    "no offset": unbiased_conv_and_norm(center=False),
    "groups": lambda x: layers.BatchNormalization()(layers.Conv2D(6, 3, groups=3, dilation_rate=2)(x)),
    "a dense layer": lambda x: layers.BatchNormalization()(layers.Dense(5)(layers.Flatten()(x))),
    "a dense layer at every place": lambda x: layers.BatchNormalization(axis=3)(layers.Dense(5)(x)),
    "one norm of two": lambda x: layers.Conv2D(2, 1)(layers.BatchNormalization()(layers.Conv2D(4, 3)(x))),
    "operations around it": lambda x: keras.ops.relu(unbiased_conv_and_norm()(x * 2) + 1),
}


@pytest.mark.parametrize("what", FOLDED)
def test_batch_norms_that_can_be_folded_are(what):
    inputs = keras.Input((8, 8, 3))
    assert check_folded(keras.Model(inputs, FOLDED[what](inputs))).info["unfolded"] == []


def test_the_second_of_two_consecutive_batch_norms_is_kept():
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="first")(layers.Conv2D(4, 3)(inputs))
    assert check_folded(keras.Model(inputs, layers.BatchNormalization(name="second")(x))).info["unfolded"] == ["second"]


def test_a_part_of_a_network_is_folded_like_the_whole():
    """Layers of the whole network that also use its output do not matter."""
    whole = build(narrow(get_spec("resnet18")), input_shape=(32, 32, 3))
    part = keras.Model(whole.input, whole.get_layer("conv3_block1_1_bn").output)
    assert check_folded(part).info["unfolded"] == []


class Scaled(layers.Layer):
    """A custom layer without `get_config`."""

    def __init__(self, factor, **keywords):
        super().__init__(**keywords)
        self.factor = factor

    def call(self, inputs):
        return inputs * 2


def test_a_layer_without_get_config_keeps_its_name():
    inputs = keras.Input((8, 8, 3))
    copy = check_folded(keras.Model(inputs, unbiased_conv_and_norm()(Scaled(2.0, name="scaled")(inputs))))
    assert copy.info["unfolded"] == [] and "scaled" in layer_names(copy, layers.Layer)


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def two_inputs():
    first, second = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    return keras.Model([first, second], first + second, name="pair")


def unclonable():
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, Scaled(object(), name="scaled")(inputs), name="mine")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Subclassed, "Functional or Sequential"),
        (keras.Sequential, "Functional or Sequential"),
        (lambda: "resnet20", "Functional or Sequential.*Received: model='resnet20'"),
        (two_inputs, "one input. Received: pair with 2"),
        (unclonable, "get_config.*Received: Scaled 'scaled'"),
    ],
)
def test_other_models_raise_value_errors(model, message):
    with pytest.raises(ValueError, match=message):
        fold_batch_norm(model())
