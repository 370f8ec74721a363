"""Models optimized for inference: the same outputs, one graph for every batch size, no crash on wrong shapes."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers
from support import narrow, random_images, randomize_weights

from keras_resnet import build, create, feature_extractor, get_spec, optimize_for_inference
from keras_resnet.deployment import inference
from keras_resnet.models.transforms import TensorFlowConv2D, cast_model
from keras_resnet.precision import COMPUTED

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
needs_tensorflow = pytest.mark.skipif(not ON_TENSORFLOW, reason="about TensorFlow's graphs")
ROUNDING = {"float32": 1e-5, "bfloat16": 2**-8, "float16": 2**-11}
"""Error of rounding once, relative to the largest value."""


def predict(model, x):
    return keras.tree.map_structure(lambda array: np.asarray(array), model.predict(x, verbose=0))


def network(name, **changes):
    """A narrow network with random weights that ends in logits."""
    spec = narrow(get_spec(name))
    spec = replace(spec, **{"depths": (2, 1, 1, 1)[: len(spec.depths)]} | changes)
    shape = (3, 32, 40) if spec.data_format == "channels_first" else (32, 40, 3)
    return randomize_weights(build(spec, classes=5, input_shape=shape, classifier_activation=None))


def difference(model, other, x):
    """Largest difference of the outputs, relative to the largest output."""
    expected = predict(model, x)
    return np.abs(predict(other, x) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *(("resnet18", precision) for precision in COMPUTED),
        ("resnet50v2", "bfloat16"),
        ("resnext50_32x4d", "float32"),
        ("seresnet50", "bfloat16"),
    ],
)
def test_outputs_are_the_same_except_for_rounding(name, precision):
    model, x = network(name), random_images(3, 32, 40, 3)
    fast = optimize_for_inference(model, precision)
    found = difference(model, fast, x)
    assert found <= 10 * ROUNDING[precision]
    assert precision == "float32" or found > 1e-5, "it computed in float32"
    assert predict(fast, x).dtype == np.float32


@pytest.mark.portable
def test_the_trained_network_keeps_outputs_and_metadata():
    model = create("resnet20", weights="cifar10")
    fast = optimize_for_inference(model, "float32")
    assert difference(model, fast, random_images(4, 32, 32, 3)) <= 1e-5
    assert fast.spec == model.spec and fast.info == model.info | {"unfolded": []} and fast.name == model.name
    assert fast.input_shape == model.input_shape and fast.output_shape == model.output_shape


@needs_tensorflow
def test_one_trace_serves_every_batch_size(monkeypatch):
    """Traces are counted in the model's call; later changes of the weights have no effect."""
    import tensorflow as tf

    traces, call = [], keras.Model.__call__
    model = network("resnet18")

    def counted(self, inputs, *arguments, **keywords):
        if self.name == model.name and tf.is_symbolic_tensor(keras.tree.flatten(inputs)[0]):
            traces.append(inputs.shape)
        return call(self, inputs, *arguments, **keywords)

    monkeypatch.setattr(keras.Model, "__call__", counted)
    fast, x = optimize_for_inference(model, "float32"), random_images(7, 32, 40, 3)
    assert [shape.as_list() for shape in traces] == [[None, 32, 40, 3]]
    whole = predict(fast, x)
    for batch_size in (1, 2, 3, 7):
        np.testing.assert_allclose(
            fast.predict(x, batch_size=batch_size, verbose=0), whole, rtol=1e-4, atol=1e-4 * np.abs(whole).max()
        )
        assert fast.predict_on_batch(x[:batch_size]).shape == (batch_size, 5)
    assert len(traces) == 1
    for weight in fast.weights:
        weight.assign(weight * 0)
    np.testing.assert_array_equal(predict(fast, x), whole)


def test_the_original_models_weights_are_not_shared():
    model, x = network("resnet18"), random_images(2, 32, 40, 3)
    fast = optimize_for_inference(model, "float32")
    before = predict(fast, x)
    for weight in model.weights:
        weight.assign(weight * 0)
    np.testing.assert_array_equal(predict(fast, x), before)


@needs_tensorflow
@pytest.mark.parametrize("shape", [(2, 16, 40, 3), (2, 32, 40, 1), (32, 40, 3), (2, 32, 40)])
@pytest.mark.parametrize("method", ["predict", "predict_on_batch"])
def test_a_wrong_shape_is_an_error_and_not_the_end_of_the_process(shape, method):
    """oneDNN's convolutions do not check it."""
    fast = optimize_for_inference(network("plain18"), "float32")
    with pytest.raises(Exception, match="not compatible with expected shape"):
        getattr(fast, method)(random_images(*shape))
    assert fast.predict_on_batch(random_images(1, 32, 40, 3)).shape == (1, 5), "it goes on"


@pytest.mark.parametrize("dtype", ["uint8", "float64", "int32"])
def test_other_dtypes_are_cast(dtype):
    fast, x = optimize_for_inference(network("plain18"), "float32"), np.arange(2 * 32 * 40 * 3).reshape(2, 32, 40, 3)
    x = x.astype(dtype) % 100
    np.testing.assert_allclose(predict(fast, x), predict(fast, x.astype("float32")), rtol=1e-5)


def test_images_of_any_size():
    model = randomize_weights(build(narrow(get_spec("resnet20")), classes=4, input_shape=(None, None, 3)))
    fast = optimize_for_inference(model, "float32")
    for sides in ((32, 32), (45, 38)):
        assert difference(model, fast, random_images(2, *sides, 3)) <= 1e-5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_several_outputs_keep_their_names_and_stay_float32(precision):
    model = feature_extractor(network("resnet50"), endpoints=["stem", "stage2", "pre_logits"])
    x = random_images(2, 32, 40, 3)
    expected, found = predict(model, x), predict(optimize_for_inference(model, precision), x)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        assert np.abs(found[name] - array).max() <= 10 * ROUNDING[precision] * np.abs(array).max()


def two_outputs(x):
    return layers.Conv2D(2, 3)(x), layers.Conv2D(4, 3)(x)


@pytest.mark.parametrize("inputs", [lambda x: x, lambda x: [x], lambda x: {"x": x}])
@pytest.mark.parametrize(
    "outputs", [layers.Conv2D(2, 3), two_outputs, lambda x: {"b": x * 2, "a": layers.Conv2D(2, 3)(x)}]
)
def test_inputs_and_outputs_of_any_structure(inputs, outputs):
    given = keras.Input((8, 8, 3), name="x")
    model, x = keras.Model(inputs(given), outputs(given)), random_images(2, 8, 8, 3)
    fast = optimize_for_inference(model, "float32")
    expected = model.predict(inputs(x), verbose=0)
    keras.tree.map_structure(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5),
        fast.predict(inputs(x), verbose=0),
        expected,
    )


@needs_tensorflow
def test_data_sets_with_and_without_labels():
    import tensorflow as tf

    fast, x = optimize_for_inference(network("plain18"), "float32"), random_images(5, 32, 40, 3)
    for given in (x, (x, np.arange(5))):
        batches = tf.data.Dataset.from_tensor_slices(given).batch(2)
        np.testing.assert_allclose(predict(fast, batches), predict(fast, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("stride", "padding"), [(1, "same"), (1, "valid"), (2, "valid"), (2, "same")])
def test_grouped_convolutions_equal_kerass(dilation, stride, padding):
    if not ON_TENSORFLOW or (dilation > 1 and stride > 1):
        pytest.skip("there is no such convolution")
    arguments = {"strides": stride, "padding": padding, "dilation_rate": dilation, "groups": 4}
    ours, theirs = (kind(8, 3, **arguments) for kind in (TensorFlowConv2D, layers.Conv2D))
    x = random_images(2, 9, 12, 8)
    expected = keras.ops.convert_to_numpy(theirs(x))
    ours.build(x.shape)
    ours.set_weights(theirs.get_weights())
    np.testing.assert_allclose(keras.ops.convert_to_numpy(ours(x)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_only_channels_last_grouped_convolutions_are_replaced(data_format, tmp_path):
    model = network("resnext50_32x4d", data_format=data_format)
    copy = cast_model(model, "float32")
    replaced = [layer.name for layer in copy.layers if isinstance(layer, TensorFlowConv2D)]
    grouped = [layer.name for layer in model.layers if getattr(layer, "groups", 1) > 1]
    assert grouped and replaced == (grouped if ON_TENSORFLOW and data_format == "channels_last" else [])
    x = random_images(2, *model.input_shape[1:])
    assert difference(model, copy, x) <= 1e-5
    copy.save(tmp_path / "copy.keras")
    assert difference(copy, keras.saving.load_model(tmp_path / "copy.keras"), x) == 0


def test_remaining_batch_norms_and_the_last_layer_compute_in_float32():
    model = cast_model(network("resnet50v2"), "bfloat16")
    assert model.get_layer("conv3_block1_preact_bn").dtype_policy.name == "mixed_bfloat16"
    assert model.get_layer("conv3_block1_1_conv").variable_dtype == "bfloat16"
    assert model.get_layer("predictions").dtype_policy.name == "float32" and model.output.dtype == "float32"


def test_the_output_of_a_layer_that_is_called_twice_is_float32():
    inputs, layer = keras.Input((8, 8, 3)), layers.Conv2D(3, 3, padding="same")
    assert cast_model(keras.Model(inputs, layer(layer(inputs))), "bfloat16").output.dtype == "float32"


def test_operations_between_layers_are_kept():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Dense(4)(keras.ops.mean(layers.Conv2D(4, 3)(inputs * 2), axis=(1, 2))))
    assert difference(model, optimize_for_inference(model, "bfloat16"), random_images(2, 8, 8, 3)) <= 0.05


@pytest.mark.parametrize("has", [True, False])
def test_the_default_precision_is_bfloat16_where_the_processor_multiplies_it(has, monkeypatch):
    monkeypatch.setattr(inference, "has_bfloat16", lambda: has)
    fast = optimize_for_inference(network("plain18"))
    assert fast.get_layer("conv2_block1_1_conv").dtype_policy.name == ("bfloat16" if has else "float32")


def test_has_bfloat16_is_true_or_false():
    assert inference.has_bfloat16() in (True, False)


def test_unknown_precisions_and_models():
    with pytest.raises(ValueError, match=r"Nearest: \['float16'.*Received: precision='fp16'"):
        optimize_for_inference(network("plain18"), "fp16")
    with pytest.raises(ValueError, match="Functional or Sequential"):
        optimize_for_inference("resnet50")
