"""create() and ResNet50(...) against keras.applications: layers, files, outputs, errors; saving, cloning, metadata."""

import inspect
import json
import re

import keras
import numpy as np
import pytest
from support import random_images, randomize_weights

import keras_resnet
from keras_resnet import create, list_models, list_weights, load_model, preprocessing
from keras_resnet.models.cloning import clone
from keras_resnet.weights.catalog import TIMM, TIMM_NETWORKS

PAIRS = ["ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2"]


def deep_slow(name):
    return name if name.startswith("ResNet50") else pytest.param(name, marks=pytest.mark.slow)


def constructors(name):
    return getattr(keras_resnet, name), getattr(keras.applications, name)


def both(name, **arguments):
    """(ours, theirs), with automatic layer names starting from the same number."""
    models = []
    for make in constructors(name):
        keras.backend.clear_session()
        models.append(make(weights=None, **arguments))
    return models


def predict(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False))


@pytest.mark.parametrize("name", PAIRS)
def test_same_signature(name):
    ours, theirs = map(inspect.signature, constructors(name))
    assert ours == theirs


@pytest.mark.parametrize("name", [deep_slow(name) for name in PAIRS])
def test_same_layers_in_the_same_order(name):
    ours, theirs = both(name)
    assert [layer.name for layer in ours.layers] == [layer.name for layer in theirs.layers]
    assert [type(layer).__name__ for layer in ours.layers] == [type(layer).__name__ for layer in theirs.layers]
    assert [(weight.path, weight.shape) for weight in ours.weights] == [(w.path, w.shape) for w in theirs.weights]
    assert [layer.output.shape for layer in ours.layers] == [layer.output.shape for layer in theirs.layers]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *(("ResNet50", suffix) for suffix in (".weights.h5", ".h5", ".keras")),
        ("ResNet50V2", ".weights.h5"),
        *(pytest.param("ResNet50V2", suffix, marks=pytest.mark.slow) for suffix in (".h5", ".keras")),
    ],
)
def test_a_file_that_keras_applications_saved_gives_its_outputs(name, suffix, tmp_path):
    make, theirs = constructors(name)
    theirs = randomize_weights(theirs(weights=None, input_shape=(64, 64, 3), classes=11))
    path = tmp_path / f"theirs{suffix}"
    (theirs.save_weights if suffix == ".weights.h5" else theirs.save)(path)
    x = random_images(2, 64, 64, 3)
    ours = make(weights=path, input_shape=(64, 64, 3), classes=11)
    np.testing.assert_allclose(predict(ours, x), predict(theirs, x), rtol=1e-4, atol=1e-6)
    features = make(weights=path, include_top=False, pooling="avg")
    head = keras.Model(theirs.input, theirs.get_layer("avg_pool").output)
    expected = predict(head, x)
    np.testing.assert_allclose(predict(features, x), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["ResNet101", *(deep_slow(name) for name in PAIRS[2:] if name != "ResNet50V2")])
def test_weights_of_the_deeper_networks_of_keras_applications_give_their_logits(name, tmp_path):
    make, theirs = constructors(name)
    theirs = randomize_weights(theirs(weights=None, input_shape=(32, 32, 3), classes=5))
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    ours = make(weights=tmp_path / "theirs.weights.h5", input_shape=(32, 32, 3), classes=5, classifier_activation=None)
    theirs.layers[-1].activation = keras.activations.linear
    x = random_images(2, 32, 32, 3)
    expected = predict(theirs, x)
    np.testing.assert_allclose(predict(ours, x), expected, atol=1e-4 * np.abs(expected).max())


def test_what_we_save_loads_in_keras_applications(tmp_path):
    ours = randomize_weights(keras_resnet.ResNet50(weights=None, input_shape=(64, 64, 3), classes=7))
    x = random_images(2, 64, 64, 3)
    for suffix in (".weights.h5", ".h5"):
        keras_resnet.save_weights(ours, tmp_path / f"ours{suffix}", layout="keras")
        theirs = keras.applications.ResNet50(weights=tmp_path / f"ours{suffix}", input_shape=(64, 64, 3), classes=7)
        np.testing.assert_allclose(predict(theirs, x), predict(ours, x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"weights": "imagenette"},
        {"weights": "imagenet", "classes": 10},
        {"weights": None, "input_shape": (None, None, 3)},
        {"weights": None, "input_shape": (31, 224, 3)},
        {"weights": None, "include_top": False, "input_shape": (224, 31, 3)},
        {"weights": None, "input_shape": (224, 224)},
        {"weights": __file__, "classifier_activation": "relu"},
    ],
)
def test_errors_where_keras_applications_has_them(arguments):
    for make in constructors("ResNet50"):
        with pytest.raises(ValueError):
            make(**arguments)


@pytest.mark.parametrize(
    ("include_top", "pooling"),
    [
        (True, None),
        *((False, pooling) for pooling in (None, "avg", "max")),
        *(pytest.param(True, pooling, marks=pytest.mark.slow) for pooling in ("avg", "max")),
    ],
)
def test_shapes_with_and_without_top_and_pooling_equal_those_of_keras_applications(include_top, pooling):
    ours, theirs = both("ResNet50", include_top=include_top, pooling=pooling)
    assert ours.output_shape == theirs.output_shape
    assert ours.input_shape == theirs.input_shape
    assert ours.layers[-1].name == theirs.layers[-1].name


def test_input_tensor_with_what_comes_before_it():
    inputs = keras.Input((None, None, 3))
    model = keras_resnet.ResNet18(weights=None, input_tensor=keras.layers.Rescaling(1 / 255)(inputs), include_top=False)
    assert model.layers[1].name == "rescaling" and model.inputs[0] is inputs
    assert predict(model, np.zeros((1, 64, 64, 3), "float32")).shape == (1, 2, 2, 512)


def test_a_model_saves_loads_clones_and_exports(tmp_path):
    model = randomize_weights(create("resnet20", depths=(1, 1, 1)))
    model.info["class_names"] = [f"name {i}" for i in range(10)]
    x = random_images(3, 32, 32, 3)
    expected = predict(model, x)
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(loaded, x), expected)
    assert loaded.spec == model.spec and dict(loaded.info) == dict(model.info)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(predict(clone, x), expected)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        model.export(tmp_path / "exported", verbose=False)
        served = tf.saved_model.load(str(tmp_path / "exported"))
        np.testing.assert_allclose(served.serve(x), expected, rtol=1e-5, atol=1e-6)


def test_models_are_flat_and_functional():
    model = keras_resnet.ResNet50(weights=None)
    assert isinstance(model, keras.src.models.Functional)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    middle = keras.Model(model.input, model.get_layer("conv4_block6_out").output)
    assert middle.output_shape == (None, 14, 14, 1024)


def test_every_constructor_creates_its_variant():
    constructors = [name for name in keras_resnet.__all__ if re.fullmatch(r"[A-Z]\w*\d\w*", name)]
    assert len(constructors) == 27
    for name in constructors:
        make = getattr(keras_resnet, name)
        default = inspect.signature(make).parameters["name"].default
        assert make.__name__ == name and keras_resnet.get_spec(default) and name in make.__doc__


def test_weights_and_models_are_listed():
    assert list_weights("resnet50")[:3] == ["imagenet", "torchvision:IMAGENET1K_V1", "torchvision:IMAGENET1K_V2"]
    assert "hf://timm/resnet50.a1_in1k" in list_weights("resnet50")
    assert list_weights("resnet50", "torchvision:*") == list_weights("resnet50")[1:3]
    assert list_weights("plain18") == []
    assert {"resnet50", "resnet50d", "resnet20_cifar"} < set(list_models())
    pretrained = set(list_models(pretrained=True))
    assert TIMM.keys() <= TIMM_NETWORKS.keys() and {TIMM_NETWORKS[name] for name in TIMM} <= pretrained
    assert {"resnet50v2", "resnet20_cifar"} < pretrained and "plain18" not in pretrained


def test_preprocessing_belongs_to_the_weights():
    assert preprocessing("torchvision:IMAGENET1K_V2").resize == 232
    assert preprocessing("imagenet", "resnet50").mode == "caffe"
    assert preprocessing("imagenet", "resnet50v2").mode == "tf"
    with pytest.raises(ValueError, match="variant"):
        preprocessing("imagenet")
    with pytest.raises(ValueError, match="torchvision:IMAGENET1K_V1"):
        preprocessing("torchvision:IMAGENET1K_V9")
    with pytest.raises(ValueError, match="mode"):
        preprocessing(keras_resnet.ResNet18(weights=None))


def test_unknown_arguments_raise_type_errors():
    with pytest.raises(TypeError, match="wieghts"):
        create("resnet20", wieghts="imagenet")


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04 cut off"])
def test_damaged_and_missing_keras_files_raise_errors_with_their_path(content, tmp_path):
    (tmp_path / "model.keras").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.keras"):
        load_model(tmp_path / "model.keras")
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "other.keras")


def test_info_is_json():
    model = create("resnet20", depths=(1, 1, 1))
    assert json.loads(json.dumps(model.get_config()["resnet"]))["spec"]["depths"] == [1, 1, 1]


def test_a_clone_has_the_same_config_and_its_own_weights():
    model = randomize_weights(create("seresnet50", depths=(1, 1, 1, 1), input_shape=(64, 64, 3), classes=3), 0)
    model.info = {"class_names": ["a", "b", "c"]}
    copy, image = clone(model), np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")
    np.testing.assert_array_equal(copy(image), model(image))
    assert copy.get_config() == model.get_config()
    copy.set_weights([0 * array for array in copy.get_weights()])
    assert np.any(model.get_weights()[0]) and clone(model, (None, None, 3)).input_shape == (None, None, None, 3)
