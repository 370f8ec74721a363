"""Models around a network, as in keras.io's guide to transfer learning: flattened, with what they inherit."""

from functools import partial

import keras
import numpy as np
import pytest
from keras import layers
from support import CIFAR_PREPROCESSING, cifar_network, random_images, random_pixels, randomize_weights

import keras_resnet
from keras_resnet import Preprocessing, analysis, from_arrays, preprocess_input, transfer
from keras_resnet.models.cloning import as_functional
from keras_resnet.models.preprocessing import set_preprocessing, thresholds
from keras_resnet.models.transforms import with_input_size

SHAPE = (32, 32, 3)


def augmentation():
    return keras.Sequential(
        [layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomZoom(0.2)], name="augmentation"
    )


def network():
    """A network without its top that knows its preprocessing."""
    top = cifar_network()
    names = {"class_names": [f"old {i}" for i in range(10)]}
    body = keras_resnet.ResNet(top.input, top.get_layer("conv4_block1_out").output, name="resnet20")
    body.spec, body.info = top.spec, top.info | names
    return body


def around(base, prepare=lambda x: x, classes=3, shape=SHAPE, dtype="float32"):
    """keras.io's model: augmentation, preparation, the base in inference mode, a new head."""
    inputs = keras.Input(shape, dtype=dtype)
    x = base(prepare(augmentation()(inputs)), training=False)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(classes, activation="softmax", name="flowers")(x), name="around")
    model.get_layer("flowers").set_weights(randomize_weights(keras.Model(x, model.output)).get_weights())
    return model


def outputs_of(model, x):
    return keras.ops.convert_to_numpy(model.predict_on_batch(x))


def deep(base):
    """A model around a model around a Sequential model around the base."""
    sequential = keras.Sequential([keras.Input(SHAPE), layers.RandomContrast(0.1), base], name="sequential")
    inputs = keras.Input(SHAPE)
    middle = keras.Model(inputs, layers.ReLU()(sequential(inputs)), name="middle")
    return around(middle)


MODELS = {
    "keras.io's": around,
    "deep": deep,
    "Sequential": lambda base: keras.Sequential(
        [keras.Input(SHAPE), augmentation(), base, layers.GlobalAveragePooling2D(), layers.Dense(3, "softmax")]
    ),
    "uint8": lambda base: around(base, dtype="uint8"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_flattened_model_has_equal_outputs_and_inherits_spec_and_preprocessing(kind):
    base = network()
    model = MODELS[kind](base)
    flat = as_functional(model)
    x = random_pixels(2) if kind == "uint8" else random_images(2, *SHAPE)
    np.testing.assert_allclose(outputs_of(flat, x), outputs_of(model, x), rtol=1e-5, atol=1e-6)
    kinds = {type(layer).__name__ for layer in flat.layers}
    assert not kinds & {"Sequential", "Functional", "ResNet", "RandomFlip", "RandomContrast"}
    assert flat.spec == base.spec and flat.info == {"preprocessing": base.info["preprocessing"]}
    assert keras_resnet.preprocessing(model) == keras_resnet.preprocessing(flat) == CIFAR_PREPROCESSING
    assert flat.get_layer("conv2_block1_1_conv").kernel_initializer is not None
    for weight in flat.weights:
        weight.assign(weight * 0)
    assert outputs_of(model, x).std() > 0  # the copy has its own weights


def test_saved_model_is_flattened_after_loading(tmp_path):
    model = around(network())
    model.save(tmp_path / "model.keras")
    loaded = keras_resnet.load_model(tmp_path / "model.keras")
    x = random_images(2, *SHAPE)
    np.testing.assert_allclose(outputs_of(as_functional(loaded), x), outputs_of(model, x), rtol=1e-5, atol=1e-6)
    assert keras_resnet.preprocessing(loaded) == CIFAR_PREPROCESSING
    as_functional(loaded).save(tmp_path / "flat.keras")
    assert keras_resnet.preprocessing(keras_resnet.load_model(tmp_path / "flat.keras")) == CIFAR_PREPROCESSING


def test_a_model_that_returns_the_outputs_of_its_network_has_its_classes():
    names = [f"class of ours {i}" for i in range(10)]
    base = cifar_network()
    base.info["class_names"] = names
    model = keras.Sequential([keras.Input(SHAPE), augmentation(), base])
    assert as_functional(model).info == base.info
    (classes,) = keras_resnet.prediction.classify(model, random_pixels(1), top=10)
    assert sorted(name for _, name, _ in classes) == sorted(names)
    base.info |= {"multi_label": True, "thresholds": [0.25] * 10}
    assert thresholds(model) == thresholds(as_functional(model)) == (0.25,) * 10


def test_another_mode_does_not_replace_the_inherited_preprocessing():
    model = around(network())
    with pytest.warns(UserWarning, match="mode='cifar' is ignored: the weights of around define 'torch'"):
        set_preprocessing(model, CIFAR_PREPROCESSING, "cifar")
    assert keras_resnet.preprocessing(model) == CIFAR_PREPROCESSING


def test_layers_of_the_same_name_get_the_names_of_their_models():
    inputs = keras.Input(SHAPE)
    first, second = cifar_network(seed=1), cifar_network(seed=2)
    second.name = "other"
    model = keras.Model(inputs, layers.Average()([first(inputs), second(inputs)]))
    flat = as_functional(model)
    assert {"resnet20_conv1_conv", "other_conv1_conv", "average"} <= {layer.name for layer in flat.layers}
    x = random_images(2, *SHAPE)
    np.testing.assert_allclose(outputs_of(flat, x), outputs_of(model, x), rtol=1e-5, atol=1e-6)
    assert keras_resnet.preprocessing(model) == CIFAR_PREPROCESSING
    second.info["preprocessing"] = Preprocessing("caffe", 32, None).to_config()
    with pytest.raises(ValueError, match="known preprocessing"):
        keras_resnet.preprocessing(model)


def test_layers_used_twice_stay_shared():
    base, inputs = network(), keras.Input(SHAPE)
    pooled = [layers.GlobalAveragePooling2D()(base(x)) for x in (inputs, layers.Rescaling(0.5)(inputs))]
    model = keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(pooled)))
    flat = as_functional(model)
    assert len(flat.weights) == len(model.weights)
    x = random_images(2, *SHAPE)
    np.testing.assert_allclose(outputs_of(flat, x), outputs_of(model, x), rtol=1e-5, atol=1e-6)


def adapted(*values):
    return layers.Normalization(mean=[values[0]] * 3, variance=[values[1] ** 2] * 3)


BEFORE = {
    "nothing": (lambda x: x, "torch"),
    "resizing": (layers.CenterCrop(32, 32), "torch"),
    "our layer": (CIFAR_PREPROCESSING.layer(), "pixels"),
    "our function": (partial(preprocess_input, mode="torch"), "pixels"),
    "keras.applications' function": (lambda x: keras.applications.resnet.preprocess_input(x), "pixels"),
    "Rescaling": (layers.Rescaling(1 / 127.5, offset=-1), "pixels"),
    "Normalization of pixels": (adapted(120.0, 60.0), "pixels"),
    "Normalization of pixels in 0..1": (adapted(0.45, 0.22), None),
    "Rescaling of pixels in 0..1": (layers.Rescaling(255), None),
}


@pytest.mark.parametrize("before", BEFORE)
def test_layers_before_the_network_are_not_applied_twice(before):
    prepare, mode = BEFORE[before]
    base = network()
    model = around(base, prepare, shape=(None, None, 3))
    if mode is None:
        with pytest.raises(ValueError, match="known preprocessing"):
            keras_resnet.preprocessing(model)
        model.info = {"preprocessing": Preprocessing("tf", 32, None).to_config()}  # what the user sets is kept
        assert keras_resnet.preprocessing(model).mode == "tf"
        return
    assert keras_resnet.preprocessing(model).mode == mode
    head = keras.Model(base.output, as_functional(model).layers[-1](layers.GlobalAveragePooling2D()(base.output)))
    pixels = random_pixels(4)
    expected = outputs_of(head, outputs_of(base, keras.ops.convert_to_numpy(prepare(pixels.astype("float32")))))
    if before in ("nothing", "resizing"):
        expected = outputs_of(head, outputs_of(base, preprocess_input(pixels, "torch")))
    found = keras_resnet.prediction.classify(model, pixels, top=3)
    for row, probabilities in zip(found, expected, strict=True):
        by_name = {name: probability for _, name, probability in row}
        np.testing.assert_allclose([by_name[f"class {i}"] for i in range(3)], probabilities, rtol=1e-4, atol=1e-5)


def test_input_tensor_after_augmentation_and_normalisation(test_data):
    weights = test_data / "imagenet_weights" / "resnet18_pq.safetensors"
    inputs = keras.Input((64, 64, 3))
    raw = keras_resnet.create("resnet18", weights=weights, input_tensor=augmentation()(inputs))
    known = keras_resnet.preprocessing(raw)
    assert known.mode == "torch" and known.size == 64
    x = keras_resnet.preprocessing(raw).layer()(augmentation()(inputs))
    model = keras_resnet.create("resnet18", weights=weights, input_tensor=x)
    assert keras_resnet.preprocessing(model) == Preprocessing("pixels", 64, 64)
    assert keras_resnet.preprocessing(as_functional(model)) == keras_resnet.preprocessing(model)


def test_base_of_create_and_of_keras_applications():
    """Of the latter, the preprocessing is only known if it is set."""
    ours = keras_resnet.create("resnet20", weights="cifar10", include_top=False)
    assert keras_resnet.preprocessing(around(ours)).mode == "cifar"
    theirs = keras.applications.ResNet50(weights=None, include_top=False, input_shape=SHAPE)
    model = around(theirs)
    with pytest.raises(ValueError, match="known preprocessing"):
        keras_resnet.preprocessing(model)
    model.info = {"preprocessing": Preprocessing("caffe", 32, None).to_config()}
    flat = as_functional(model)
    assert keras_resnet.preprocessing(flat).mode == "caffe" and flat.get_layer("conv5_block3_out")


@pytest.fixture(scope="module")
def model():
    return around(network())


def test_folded_and_optimized_models_have_equal_outputs(model):
    x = random_images(2, *SHAPE)
    expected = outputs_of(model, x)
    folded = keras_resnet.fold_batch_norm(model)
    assert folded.info["unfolded"] == []
    np.testing.assert_allclose(outputs_of(folded, x), expected, rtol=1e-3, atol=1e-5)
    fast = keras_resnet.optimize_for_inference(model, "float32")
    np.testing.assert_allclose(outputs_of(fast, x), expected, rtol=1e-3, atol=1e-5)
    assert with_input_size(model, 48).input_shape == (None, 48, 48, 3)


def test_evaluate_agrees_with_predictions_of_keras(model):
    pixels, labels = random_pixels(20), np.arange(20) % 3
    dataset = from_arrays((pixels, labels), (pixels, labels))
    predicted = outputs_of(model, preprocess_input(pixels, "torch")).argmax(axis=1)
    assert keras_resnet.evaluate(model, dataset).top1_error == np.mean(predicted != labels)
    assert keras_resnet.evaluate(model, dataset, "multi_scale", scales=(32, 40)).num_images == 20


def test_features_and_heat_maps_are_those_of_the_inner_network(model):
    pixels = random_pixels(2)
    x = preprocess_input(pixels, "torch")
    extractor = keras_resnet.feature_extractor(model, endpoints=("stage1", "pre_logits"))
    inner = next(layer for layer in model.layers if layer.name == "resnet20")
    expected = outputs_of(keras.Model(inner.input, inner.get_layer("conv2_block1_out").output), x)
    np.testing.assert_allclose(extractor.predict_on_batch(x)["stage1"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(analysis.feature_maps(model, x, "stage1"), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        transfer.extract(model, pixels).vectors, outputs_of(inner, x).mean(axis=(1, 2)), rtol=1e-4, atol=1e-5
    )
    assert analysis.grad_cam(model, x).shape == (2, 8, 8) and analysis.grad_cam(model, x).max() == 1


def test_export_of_keras_ios_model_gives_its_outputs(tmp_path):
    base = network()
    model = around(base, layers.Rescaling(1 / 127.5, offset=-1))
    images = random_pixels(4)
    report = keras_resnet.export(model, tmp_path / "model", "saved_model", images=images, measure_speed=False)
    assert report["verified"]
    found = keras_resnet.load_exported(tmp_path / "model")(images)["probabilities"]
    np.testing.assert_allclose(found, outputs_of(model, images), rtol=1e-3, atol=1e-5)


def test_export_of_a_model_with_a_preprocessing_layer_gives_its_outputs(tmp_path):
    """The network is exported for images that the layer need not resize: LiteRT could not."""
    base, prepare = network(), Preprocessing("torch", 32, 40)
    base.info["preprocessing"] = prepare.to_config()
    model = around(base, prepare.layer(), shape=(None, None, 3))
    images = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), "uint8")
    report = keras_resnet.export(model, tmp_path / "model.tflite", images=images, measure_speed=False)
    assert report["verified"]
    found = keras_resnet.load_exported(tmp_path / "model.tflite")
    assert found.preprocessing == Preprocessing("pixels", 40, 40)
    np.testing.assert_allclose(found(images)["probabilities"], outputs_of(model, images), rtol=1e-3, atol=1e-5)


def test_models_inside_that_are_no_graphs_are_refused():
    class Custom(keras.Model):
        def call(self, x):
            return x

    inputs = keras.Input(SHAPE)
    with pytest.raises(ValueError, match="graphs of layers"):
        as_functional(keras.Model(inputs, Custom()(inputs)))
