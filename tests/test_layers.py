"""The fused batch norm and dilated convolutions against Keras's: outputs, gradients, files; squeeze-excite widths."""

import keras
import numpy as np
import pytest
from keras.ops import convert_to_numpy as array
from support import random_images, randomize_weights

from keras_resnet.architecture.layers import BatchNormalization, Conv2D, squeeze_excite_width


def pair(shape, policy="float32", **kwargs):
    """(ours, Keras's) with the same random weights."""
    layers = [make(dtype=policy, **kwargs) for make in (BatchNormalization, keras.layers.BatchNormalization)]
    for layer in layers:
        layer.build(shape)
    generator = np.random.default_rng(0)
    values = [generator.uniform(0.5, 1.5, weight.shape).astype("float32") for weight in layers[0].weights]
    for layer in layers:
        layer.set_weights(values)
    return layers


CASES = [
    ((8, 5, 7, 6), {"axis": 3}),
    ((8, 5, 7, 6), {}),
    ((8, 6, 5, 7), {"axis": 1}),
    ((1, 1, 1, 4), {}),
    ((8, 5, 7, 6), {"epsilon": 0.3, "momentum": 0.4}),
    ((16, 6), {}),
    ((8, 5, 7, 6), {"scale": False}),
    ((8, 5, 7, 6), {"center": False}),
]
TOLERANCE = {
    "float32": 2e-5,
    "mixed_bfloat16": 2e-2,
    "mixed_float16": 3e-3,
    "bfloat16": 4e-2,
    "float16": 6e-3,
    "float64": 1e-6,
}


@pytest.mark.parametrize("policy", [pytest.param("float32", marks=pytest.mark.portable), *list(TOLERANCE)[1:]])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "kwargs"), CASES)
def test_same_outputs_and_moving_averages_as_keras(shape, kwargs, training, policy):
    ours, theirs = pair(shape, policy, **kwargs)
    x = 3 * random_images(*shape) + 1
    outputs = [array(keras.ops.cast(layer(x, training=training), "float32")) for layer in (ours, theirs)]
    np.testing.assert_allclose(*outputs, rtol=TOLERANCE[policy], atol=TOLERANCE[policy])
    for mine, keras_own in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(
            array(mine), array(keras_own), rtol=1e-4 if policy in ("float32", "float64") else 1e-2, atol=1e-5
        )


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="gradients through TensorFlow's tape")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("axis", [1, 3])
def test_same_gradients_as_keras(training, axis):
    import tensorflow as tf

    x = tf.constant(random_images(4, 6, 5, 6))
    gradients = []
    for layer in pair(x.shape, axis=axis):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=training) ** 3)
        gradients.append(tape.gradient(loss, [x, layer.gamma.value, layer.beta.value]))
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-3)


def test_a_frozen_layer_keeps_its_statistics():
    ours, _ = pair((8, 5, 7, 6))
    before = ours.get_weights()
    ours.trainable = False
    frozen, inference = ours(random_images(8, 5, 7, 6), training=True), ours(random_images(8, 5, 7, 6), training=False)
    np.testing.assert_array_equal(array(frozen), array(inference))
    for weight, value in zip(ours.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.portable
def test_weights_files_are_interchangeable_with_keras(tmp_path):
    def model(make):
        return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), make(), make()])

    ours, theirs = randomize_weights(model(BatchNormalization)), model(keras.layers.BatchNormalization)
    ours.save_weights(tmp_path / "ours.weights.h5")
    theirs.load_weights(tmp_path / "ours.weights.h5")
    x = random_images(2, 8, 8, 3)
    np.testing.assert_allclose(array(ours(x)), array(theirs(x)), atol=1e-5)
    randomize_weights(theirs, seed=5).save_weights(tmp_path / "theirs.weights.h5")
    ours.load_weights(tmp_path / "theirs.weights.h5")
    np.testing.assert_allclose(array(ours(x)), array(theirs(x)), atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the fused kernel is TensorFlow's")
def test_the_fused_kernel_is_used():
    import tensorflow as tf

    ours, _ = pair((8, 5, 7, 6))
    graph = tf.function(lambda x: ours(x, training=True)).get_concrete_function(tf.TensorSpec((8, 5, 7, 6))).graph
    assert "FusedBatchNormV3" in {operation.type for operation in graph.get_operations()}


def convolutions(policy="float32", channels=4, kernel_size=3, **arguments):
    """(ours, Keras's) with the same random weights."""
    made = [kind(6, kernel_size, dtype=policy, **arguments) for kind in (Conv2D, keras.layers.Conv2D)]
    for layer in made:
        layer.build((None, None, None, channels))
    values = [np.random.default_rng(0).normal(size=weight.shape) for weight in made[0].weights]
    for layer in made:
        layer.set_weights(values)
    return made


@pytest.mark.parametrize(
    ("policy", "tolerance"),
    [pytest.param("float32", 1e-5, marks=pytest.mark.portable), ("mixed_bfloat16", 0.03), ("float64", 1e-12)],
)
@pytest.mark.parametrize("size", [(9, 13), (3, 40)])
@pytest.mark.parametrize(
    "arguments",
    [{"dilation_rate": 2}, {"dilation_rate": (1, 6)}, {"dilation_rate": 36}, {"dilation_rate": 2, "groups": 2}, {}],
)
def test_convolutions_equal_those_of_keras(arguments, size, policy, tolerance):
    ours, theirs = convolutions(policy, padding="same", **arguments)
    x = random_images(2, *size, 4)
    outputs = [array(keras.ops.cast(layer(x), "float64")) for layer in (ours, theirs)]
    np.testing.assert_allclose(*outputs, rtol=0, atol=tolerance * np.abs(outputs[1]).max())


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="gradients through TensorFlow's tape")
@pytest.mark.parametrize("channels", [4, 512])
@pytest.mark.parametrize(
    "arguments",
    [
        {"dilation_rate": 2},
        {"dilation_rate": (1, 6)},
        {"dilation_rate": 36},
        {"dilation_rate": 3, "padding": "valid"},
        {"dilation_rate": 2, "kernel_size": (2, 3), "use_bias": False},
        {"activation": "tanh"},
    ],
)
def test_gradients_of_convolutions_equal_those_of_keras(arguments, channels):
    import tensorflow as tf

    arguments = {"padding": "same", "kernel_size": 3, **arguments}
    x, found = tf.constant(random_images(2, 9, 13, channels)), []
    for layer in convolutions(channels=channels, **arguments):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.sin(layer(x, **({"training": True} if isinstance(layer, Conv2D) else {}))))
        found.append(tape.gradient(loss, [x, *(weight.value for weight in layer.trainable_weights)]))
    for mine, keras_own in zip(*found, strict=True):
        np.testing.assert_allclose(mine, keras_own, rtol=1e-3, atol=1e-4 * np.abs(keras_own).max())


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="gradients of TensorFlow")
@pytest.mark.parametrize(("channels", "training", "filters"), [(512, True, 0), (512, False, 1), (4, True, 1)])
def test_gradients_of_wide_kernels_are_matrix_products_in_training(channels, training, filters):
    import tensorflow as tf

    layer, _ = convolutions(channels=channels, padding="same", dilation_rate=2)

    def gradients(x):
        return tf.gradients(layer(x, training=training), layer.kernel.value)

    graph = tf.function(gradients).get_concrete_function(tf.TensorSpec((None, None, None, channels))).graph
    found = [operation.type for operation in graph.get_operations()]
    assert found.count("Conv2DBackpropFilter") == filters and (filters or "Einsum" in found)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras cuts images into batches for TensorFlow")
def test_a_dilated_convolution_is_one_operation():
    import tensorflow as tf

    def operations(layer):
        graph = tf.function(layer).get_concrete_function(tf.TensorSpec((None, None, None, 4))).graph
        return {operation.type for operation in graph.get_operations()}

    ours, theirs = map(operations, convolutions(padding="same", dilation_rate=2))
    assert "SpaceToBatchND" in theirs and "SpaceToBatchND" not in ours and "Conv2D" in ours


@pytest.mark.parametrize(("channels", "ratio", "width"), [(64, 1 / 16, 8), (192, 1 / 16, 16), (2048, 1 / 4, 512)])
def test_squeeze_excite_widths_equal_those_of_timm(channels, ratio, width):
    assert squeeze_excite_width(channels, ratio) == width  # timm.layers.make_divisible(channels * ratio, 8, 0.0)
