"""Responses, variances, gradients, feature maps and Grad-CAM against NumPy, autodiff and CAM."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from support import random_images, randomize_weights

from keras_resnet import ResNetSpec, analysis, build, create, endpoints, get_spec, preprocessing
from keras_resnet.analysis.signals import BATCH_SIZE
from keras_resnet.models.layers import endpoint_layers

TINY = ResNetSpec("basic", depths=(1, 2), widths=(8, 12), stem="cifar", stem_width=8, shortcut="A")
NECK = replace(TINY, block="bottleneck", shortcut="B")
NETWORKS = {
    "basic": TINY,
    "plain": replace(TINY, shortcut=None),
    "bottleneck": NECK,
    "pre-activation": replace(TINY, preactivation=True, shortcut="B"),
    "gates and dropout": replace(NECK, se_ratio=0.25, drop_path=0.2, dropout=0.3),
    "grouped, deep stem": replace(NECK, groups=2, group_width=16, stem="deep", shortcut="pooled"),
}


def network(name, **arguments):
    """A network with five classes and random weights, by default for images of 32x32 pixels."""
    return randomize_weights(build(NETWORKS[name], classes=5, **{"input_shape": (32, 32, 3), **arguments}))


@pytest.fixture(scope="module")
def cifar10(test_data):
    """100 test images, preprocessed for the included weights, and their labels."""
    tfds = pytest.importorskip("tensorflow_datasets")
    if not (test_data / "tfds" / "cifar10").is_dir():
        pytest.skip("KERAS_RESNET_TEST_DATA has no tfds/cifar10")
    images, labels = tfds.as_numpy(
        tfds.load(
            "cifar10",
            split="test[:100]",
            data_dir=test_data / "tfds",
            download=False,
            batch_size=-1,
            as_supervised=True,
        )
    )
    return preprocessing(create("resnet20", weights="cifar10"))(images), labels


def outputs(model, layer, inputs):
    """Output of a layer, or outputs of a list of layers."""
    tensors = keras.tree.map_structure(lambda name: model.get_layer(name).output, layer)
    return keras.Model(model.inputs, tensors).predict(inputs, batch_size=128, verbose=0)


def test_layer_responses_are_standard_deviations_on_real_images(cifar10):
    model, (inputs, labels) = create("resnet20", weights="cifar10"), cifar10
    names = [layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    norms = [name.replace("_conv", "_bn") for name in names]
    expected = [maps.std(dtype="float64") for maps in outputs(model, norms, inputs)]
    whole = analysis.layer_responses(model, inputs)
    assert list(whole) == names and len(names) == 19
    np.testing.assert_allclose(list(whole.values()), expected, rtol=1e-5)
    uneven = [(inputs[start:stop], labels[start:stop]) for start, stop in ((0, 7), (7, 60), (60, 100))]
    for batches in (uneven, (pair[0] for pair in uneven)):
        np.testing.assert_allclose(list(analysis.layer_responses(model, batches).values()), expected, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_layer_responses_of_every_kind_of_network(name):
    model, inputs = network(name), random_images(BATCH_SIZE + 3, 32, 32, 3)
    found = analysis.layer_responses(model, inputs)
    kernels = {layer.name: layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}
    assert list(found) == [key for key, layer in kernels.items() if layer.kernel_size == (3, 3)]
    expected = [
        maps.std(dtype="float64") for maps in outputs(model, [measured_at(model, key) for key in found], inputs)
    ]
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-4)


def measured_at(model, name):
    """The layer whose output is the response of a convolution."""
    norm = {"conv1_conv": "conv2_block1_preact_bn"}.get(name) if model.spec.preactivation else None
    norm = norm or name.replace("_conv", "_bn")
    return norm if norm in {layer.name for layer in model.layers} else name


def test_small_responses_around_a_large_mean_are_accurate():
    model, inputs = network("basic"), random_images(8, 32, 32, 3)
    norm = model.get_layer("conv1_bn")
    norm.beta.assign(np.full(norm.beta.shape, 1000.0))
    expected = outputs(model, "conv1_bn", inputs).std(dtype="float64")
    halves = [inputs[:4] + 1, inputs[4:] - 1]
    assert analysis.layer_responses(model, inputs)["conv1_conv"] == pytest.approx(expected, rel=1e-4)
    both = outputs(model, "conv1_bn", np.concatenate(halves)).std(dtype="float64")
    assert analysis.layer_responses(model, halves)["conv1_conv"] == pytest.approx(both, rel=1e-4)


def state(model):
    return [keras.ops.convert_to_numpy(variable).copy() for variable in model.variables]


@pytest.mark.parametrize("name", ["basic", "pre-activation", "bottleneck"])
def test_gradient_norms_are_those_of_a_training_step(name):
    tf = pytest.importorskip("tensorflow")
    model, inputs, labels = network(name), random_images(6, 32, 32, 3), np.arange(6) % 5
    before = state(model)
    found = analysis.gradient_norms(model, inputs, labels)
    for old, new in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(old, new)
    with tf.GradientTape() as tape:
        loss = keras.losses.SparseCategoricalCrossentropy()(labels, model(inputs, training=True))
    kernels = {layer.name: layer.kernel.value for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}
    slopes = tape.gradient(loss, kernels)
    assert list(found) == list(kernels)
    np.testing.assert_allclose(list(found.values()), [np.linalg.norm(slopes[key]) for key in found], rtol=1e-3)


def test_gradient_norms_do_not_depend_on_where_the_softmax_is():
    inputs, labels = random_images(6, 32, 32, 3), np.arange(6) % 5
    norms = [
        analysis.gradient_norms(network("basic", classifier_activation=activation), inputs, labels)
        for activation in ("softmax", None)
    ]
    np.testing.assert_allclose(list(norms[0].values()), list(norms[1].values()), rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_variances_use_batch_statistics(name):
    model, inputs = network(name), random_images(6, 32, 32, 3)
    before = state(model)
    keras.utils.set_random_seed(3)
    found = analysis.forward_variances(model, inputs)
    for old, new in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(old, new)
    if "dropout" in name:  # random
        return
    tensors = [model.get_layer(measured_at(model, key)).output for key in found]
    expected = [np.var(maps, dtype="float64") for maps in keras.Model(model.inputs[0], tensors)(inputs, training=True)]
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-4)


def test_forward_variances_of_an_untrained_network_are_one():
    """Batch norm with its initial scale normalizes, in plain networks too (He et al. 2015, sec. 4.1)."""
    model = build(NETWORKS["plain"], classes=5, input_shape=(32, 32, 3))
    found = analysis.forward_variances(model, random_images(16, 32, 32, 3))
    np.testing.assert_allclose(list(found.values()), 1, rtol=1e-3)


@pytest.mark.parametrize(
    "name",
    ["resnet18_a", "resnet50", "resnet50v2", "resnetv2_50", "resnet50d", "resnetrs50", "plain34", "wrn28_10_cifar"],
)
def test_endpoints_of_a_model_are_those_of_its_spec(name):
    spec = get_spec(name)
    for drop_path in (0.0, 0.1):
        small = replace(spec, depths=(2,) * len(spec.depths), kernel_initializer="zeros", drop_path=drop_path)
        inputs = keras.layers.Input((64, 64, 3))
        expected = endpoints(small, inputs)
        found = endpoint_layers(keras.Model(inputs, list(expected.values())[-1]))
        assert list(found) == list(expected)
        assert all(found[key].output is expected[key] for key in expected)


def test_feature_maps_by_layer_and_by_endpoint():
    model, inputs = network("basic"), random_images(3, 32, 32, 3)
    maps = analysis.feature_maps(model, inputs, "stage2")
    assert maps.shape == (3, 16, 16, 12) and maps.dtype == np.float32
    np.testing.assert_allclose(maps, outputs(model, "conv3_block2_out", inputs), rtol=1e-5)
    np.testing.assert_array_equal(maps, analysis.feature_maps(model, inputs, "conv3_block2_out"))
    for name in ("stage3", "conv3_block2_outt", "predictions", "avg_pool", None):
        with pytest.raises(ValueError, match=r"`layer` should be a layer with a feature map.* Received: layer="):
            analysis.feature_maps(model, inputs, name)


def test_first_filters_keep_their_signs_and_shapes():
    model = network("basic")
    filters, kernel = analysis.first_filters(model), keras.ops.convert_to_numpy(model.get_layer("conv1_conv").kernel)
    assert filters.shape == (8, 3, 3, 3) and filters.dtype == np.float32
    assert filters.min() >= 0 and filters.max() <= 1
    for i, image in enumerate(filters):
        np.testing.assert_allclose(2 * image - 1, kernel[..., i] / abs(kernel[..., i]).max(), atol=1e-6)
    model.get_layer("conv1_conv").kernel.assign(np.zeros(kernel.shape))
    assert (analysis.first_filters(model) == 0.5).all()


def cam(model, inputs, classes):
    """Class activation maps (Zhou et al. 2016, arXiv:1512.04150, eq. 2), rectified, each divided by its maximum."""
    last = [layer for layer in model.layers if layer.name.endswith("_out")][-1]
    kernel = keras.ops.convert_to_numpy(model.layers[-1].kernel)
    maps = np.einsum("bhwc,cb->bhw", outputs(model, last.name, inputs), kernel[:, classes])
    return np.maximum(maps, 0) / np.maximum(maps, 0).max(axis=(1, 2), keepdims=True)


def test_grad_cam_of_the_last_map_is_cam_on_real_images(cifar10):
    model, inputs = create("resnet20", weights="cifar10"), cifar10[0][:20]
    predicted = model.predict(inputs, verbose=0).argmax(axis=1)
    found = analysis.grad_cam(model, inputs)
    assert found.shape == (20, 8, 8) and found.dtype == np.float32
    np.testing.assert_allclose(found, cam(model, inputs, predicted), atol=1e-4)
    np.testing.assert_allclose(analysis.grad_cam(model, inputs, predicted, "stage3"), found, atol=1e-6)


@pytest.mark.parametrize("layer, bypass", [("conv3_block1_out", []), ("conv3_block1_1_relu", ["conv2_block1_out"])])
def test_grad_cam_of_an_earlier_layer_is_autodiffs(layer, bypass):
    """Also of a layer within a block, which the shortcut passes by."""
    tf = pytest.importorskip("tensorflow")
    inputs = random_images(4, 32, 32, 3)
    models = [network("basic", classifier_activation=activation) for activation in (None, "softmax")]
    maps, *others = (tf.constant(outputs(models[0], name, inputs)) for name in (layer, *bypass))
    head = keras.Model([models[0].get_layer(name).output for name in (layer, *bypass)], models[0].output)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        score = tf.reduce_sum(head([maps, *others])[:, 2])
    weights = tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2), keepdims=True)
    expected = np.maximum(tf.reduce_sum(weights * maps, axis=-1), 0)
    expected /= np.maximum(expected.max(axis=(1, 2), keepdims=True), 1e-30)
    assert 0 < expected.mean() < 1
    for model in models:
        np.testing.assert_allclose(analysis.grad_cam(model, inputs, 2, layer), expected, atol=1e-4)


def test_grad_cam_without_positive_values_is_zero():
    model, inputs = network("basic"), random_images(2, 32, 32, 3)
    kernel = model.layers[-1].kernel
    kernel.assign(-abs(keras.ops.convert_to_numpy(kernel)))
    np.testing.assert_array_equal(analysis.grad_cam(model, inputs, [0, 4]), np.zeros((2, 16, 16)))


def test_other_keras_models_are_supported():
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Conv2D(6, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4),
            layers.Softmax(),
        ]
    )
    inputs = random_images(3, 16, 16, 3)
    kernel = keras.ops.convert_to_numpy(model.layers[2].kernel)
    maps = np.maximum(np.einsum("bhwc,c->bhw", outputs(model, model.layers[0].name, inputs), kernel[:, 1]), 0)
    expected = maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-30)
    np.testing.assert_allclose(analysis.grad_cam(model, inputs, 1), expected, atol=1e-5)
    assert len(analysis.layer_responses(model, inputs)) == len(analysis.gradient_norms(model, inputs, [0, 1, 2])) == 1


def test_reduced_precision_gives_similar_values(cifar10):
    inputs, labels = cifar10[0][:20], cifar10[1][:20]
    full = create("resnet20", weights="cifar10")
    keras.config.set_dtype_policy("mixed_bfloat16")
    half = create("resnet20", weights="cifar10")
    for measure in (
        lambda model: analysis.layer_responses(model, inputs),
        lambda model: analysis.forward_variances(model, inputs),
        lambda model: analysis.gradient_norms(model, inputs, labels),
    ):
        np.testing.assert_allclose(list(measure(half).values()), list(measure(full).values()), rtol=0.2)
    maps = [analysis.grad_cam(model, inputs, 3) for model in (half, full)]
    assert maps[0].dtype == np.float32 and abs(maps[0] - maps[1]).mean() < 0.05


def all_results(data_format):
    """Results of all functions for one network, as JSON values."""
    spec = replace(NECK, depths=(1, 1), data_format=data_format)
    model = randomize_weights(
        build(spec, classes=5, input_shape=(3, 16, 16) if spec.channel_axis == 1 else (16, 16, 3))
    )
    inputs = random_images(4, 16, 16, 3)
    inputs = np.moveaxis(inputs, -1, 1) if spec.channel_axis == 1 else inputs
    return [
        list(analysis.layer_responses(model, inputs).values()),
        list(analysis.forward_variances(model, inputs).values()),
        list(analysis.gradient_norms(model, inputs, [0, 1, 2, 3]).values()),
        analysis.grad_cam(model, inputs, [3, 2, 1, 0], "stage1").tolist(),
        analysis.feature_maps(model, inputs, "stage2").tolist(),
        list(vars(analysis.total_cost(analysis.layer_costs(model))).values()),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_backends_and_data_formats_agree(backend):
    """JAX and torch with channels first, which TensorFlow supports on GPUs only."""
    pytest.importorskip(backend)
    script = "import json, test_signals; print(json.dumps(test_signals.all_results('channels_first')))"
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for found, expected in zip(json.loads(done.stdout), all_results("channels_last"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


INVALID = {
    "an image alone": (lambda m, x: analysis.feature_maps(m, x[0], "stage1"), "`inputs` should be a batch"),
    "no image": (lambda m, x: analysis.grad_cam(m, x[:0]), "`inputs` should be a batch"),
    "another size": (lambda m, x: analysis.forward_variances(m, x[:, :16]), "`inputs` should be a batch"),
    "another batch": (lambda m, x: analysis.layer_responses(m, [x, x[..., :1]]), "`inputs` should be a batch"),
    "no batch": (lambda m, x: analysis.layer_responses(m, []), "`batches` should contain images"),
    "an empty array": (lambda m, x: analysis.layer_responses(m, x[:0]), "`batches` should contain images"),
    "a class too far": (lambda m, x: analysis.grad_cam(m, x, 5), "`class_indices` should be an integer from 0 to 4"),
    "too many classes": (lambda m, x: analysis.grad_cam(m, x, [0, 1, 2]), "`class_indices` should be"),
    "a class by name": (lambda m, x: analysis.grad_cam(m, x, "cat"), "`class_indices` should be"),
    "a wrong name": (lambda m, x: analysis.grad_cam(m, x, layer="stage9"), "Nearest: .'stage"),
    "a label too far": (
        lambda m, x: analysis.gradient_norms(m, x, [0, 5]),
        "`labels` should be 2 integers from 0 to 4",
    ),
    "a label missing": (lambda m, x: analysis.gradient_norms(m, x, [0]), "`labels` should be 2 integers"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_arguments_are_refused(name):
    call, message = INVALID[name]
    with pytest.raises(ValueError, match=message):
        call(network("basic"), random_images(2, 32, 32, 3))


def test_unsuitable_models_are_refused():
    dense = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
    headless = build(TINY, include_top=False, input_shape=(32, 32, 3))
    two = [keras.layers.Input((8, 8, 3)), keras.layers.Input((8, 8, 3))]
    siamese = keras.Model(two, keras.layers.Add()([keras.layers.Conv2D(2, 3)(x) for x in two]))
    inputs = random_images(2, 32, 32, 3)
    for call, message in (
        (lambda: analysis.first_filters(dense), "should have convolutions"),
        (lambda: analysis.layer_responses(siamese, inputs), "should have one input"),
        (lambda: analysis.layer_responses(dense, np.zeros((2, 4))), "should have convolutions"),
        (lambda: analysis.grad_cam(dense, np.zeros((2, 4))), "should have feature maps"),
        (lambda: analysis.grad_cam(headless, inputs), "should be a classifier"),
        (lambda: analysis.gradient_norms(headless, inputs, [0, 1]), "should be a classifier"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
