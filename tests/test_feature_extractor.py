"""feature_extractor: its endpoints against the tensors of the network and the outputs of the whole model."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from support import CIFAR_PREPROCESSING, cifar_network, random_images, random_pixels, randomize_weights

from keras_resnet import build, endpoints, get_spec, list_models, load_model, preprocessing
from keras_resnet.architecture.metadata import channel_axis
from keras_resnet.models.feature_extractor import feature_extractor
from keras_resnet.transfer.extraction import extract


def short_spec(name):
    """The spec of a network with few blocks; those that differ in depth alone are the same then."""
    spec = get_spec(name)
    return replace(spec, depths=(2, *[1] * (len(spec.depths) - 1)))


FAMILIES = {short_spec(name): name for name in list_models()}


@pytest.mark.parametrize("spec", FAMILIES, ids=FAMILIES.values())
def test_endpoints_are_the_tensors_the_network_is_built_from(spec):
    inputs = keras.Input((None, None, 3))
    maps = endpoints(replace(spec, kernel_initializer="zeros", data_format="channels_last"), inputs)
    body = keras.Model(inputs, list(maps.values())[-1])
    found = feature_extractor(body, endpoints=list(maps)).output
    assert len(found) == len(spec.stages) + 1 and all(found[name] is maps[name] for name in maps)
    aliases = {f"C{number + 1}": f"stage{number}" for number in range(1, len(spec.stages) + 1)}
    found = feature_extractor(body, endpoints=aliases).output
    assert all(found[alias] is maps[name] for alias, name in aliases.items())
    assert list(feature_extractor(body).output) == [f"stage{len(spec.stages)}"]


@pytest.mark.parametrize(("version", "end"), [("ResNet50", "conv5_block3_out"), ("ResNet50V2", "post_relu")])
def test_endpoints_of_keras_applications_models(version, end):
    model = getattr(keras.applications, version)(weights=None, input_shape=(64, 64, 3), classes=3)
    found = feature_extractor(model, endpoints=("C2", "C5", "pre_logits")).output
    expected = {"C2": "conv2_block3_out", "C5": end, "pre_logits": "avg_pool"}
    assert all(found[name] is model.get_layer(layer).output for name, layer in expected.items())
    assert found["C2"].shape == (None, 8 if version.endswith("V2") else 16, 8 if version.endswith("V2") else 16, 256)


def predict_endpoints(model, inputs):
    return {name: np.asarray(found) for name, found in model.predict(inputs, verbose=0).items()}


@pytest.mark.portable
@pytest.mark.parametrize("changes", [{}, {"dropout": 0.5}, {"preactivation": True}])
def test_the_classifier_applied_to_the_pre_logits_gives_the_logits(changes):
    model, inputs = cifar_network(classifier_activation=None, **changes), random_images(4, 32, 32, 3)
    kernel, bias = model.get_layer("predictions").get_weights()
    found = predict_endpoints(feature_extractor(model, endpoints="pre_logits"), inputs)["pre_logits"]
    np.testing.assert_allclose(found @ kernel + bias, model.predict(inputs, verbose=0), rtol=1e-4, atol=1e-4)


def test_pre_logits_do_not_depend_on_include_top(tmp_path):
    model, inputs = cifar_network(), random_images(2, 32, 32, 3)
    body = keras.Model(model.inputs, model.get_layer("avg_pool").input)
    whole, alone = (predict_endpoints(feature_extractor(m, endpoints="pre_logits"), inputs) for m in (model, body))
    np.testing.assert_array_equal(whole["pre_logits"], alone["pre_logits"])
    vectors = keras.Model(model.inputs, model.get_layer("avg_pool").output)
    assert feature_extractor(vectors, endpoints="pre_logits").output["pre_logits"] is vectors.output


def test_pooled_endpoints_survive_saving(tmp_path):
    model, inputs = cifar_network(), random_images(3, 32, 32, 3)
    maps = predict_endpoints(feature_extractor(model, endpoints=("stem", "stage3")), inputs)
    assert {name: found.shape for name, found in maps.items()} == {"stem": (3, 32, 32, 8), "stage3": (3, 8, 8, 16)}
    for pooling, over in (("avg", np.mean), ("max", np.max)):
        extractor = feature_extractor(model, endpoints=("stem", "stage3", "pre_logits"), pooling=pooling)
        extractor.save(tmp_path / "extractor.keras")
        again = load_model(tmp_path / "extractor.keras")
        found = predict_endpoints(again, inputs)
        for name in maps:
            np.testing.assert_allclose(found[name], over(maps[name], axis=(1, 2)), rtol=1e-5, atol=1e-6)
        assert preprocessing(again) == preprocessing(extractor) == CIFAR_PREPROCESSING and again.spec == model.spec


def test_input_shape_with_any_height_and_width():
    model = cifar_network()
    extractor = feature_extractor(model, endpoints="stage3", input_shape=(None, None, 3))
    inputs = random_images(1, 40, 56, 3)
    fixed = feature_extractor(model, endpoints="stage3", input_shape=(40, 56, 3))
    found = predict_endpoints(extractor, inputs)["stage3"]
    assert found.shape == (1, 10, 14, 16) and preprocessing(extractor) == CIFAR_PREPROCESSING
    np.testing.assert_allclose(found, predict_endpoints(fixed, inputs)["stage3"], rtol=1e-5, atol=1e-5)
    assert feature_extractor("resnet20").input_shape == (None, None, None, 3)
    for shape in ((40, 40, 1), (40, 40), 40):
        with pytest.raises(ValueError, match="`input_shape` should be like"):
            feature_extractor(model, input_shape=shape)


def test_channels_first_matches_channels_last():
    last, first = (
        feature_extractor(build(short_spec_, include_top=False), endpoints=("stage2", "pre_logits"), pooling="avg")
        for short_spec_ in (
            replace(short_spec("resnet18"), data_format=f"channels_{order}") for order in ("last", "first")
        )
    )
    assert first.input_shape == (None, 3, None, None)
    assert {name: found.shape[1] for name, found in first.output.items()} == {"stage2": 128, "pre_logits": 512}
    assert (channel_axis(last), channel_axis(first)) == (3, 1)
    body = build(replace(short_spec("resnet18"), data_format="channels_first"), include_top=False)
    assert feature_extractor(body, input_shape=(3, 64, 96)).input_shape == (None, 3, 64, 96)
    with pytest.raises(ValueError, match="`input_shape` should be like"):
        feature_extractor(body, input_shape=(64, 96, 3))
    if keras.backend.backend() != "tensorflow":  # whose convolutions do not take it on processors
        randomize_weights(last)
        first.set_weights(last.get_weights())
        first.info = last.info = {"preprocessing": CIFAR_PREPROCESSING.to_config()}
        found = [extract(model, random_pixels(3), "stage2", batch_size=2).vectors for model in (last, first)]
        np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"endpoints": "stage4"}, r"\['stem', 'stage1', 'stage2', 'stage3', 'pre_logits'\].*endpoints='stage4'"),
        ({"endpoints": ("stem", "C6")}, "endpoints='C6'"),
        ({"endpoints": ()}, "some of .*Received: endpoints="),
        ({"endpoints": 5}, "some of .*Received: endpoints=5"),
        ({"endpoints": [["stem"]]}, r"some of .*Received: endpoints=\[\['stem'\]\]"),
        ({"pooling": "mean"}, "`pooling` should be one of"),
        ({"weights": "imagenet"}, "`weights` should be None"),
    ],
)
def test_invalid_extractor_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        feature_extractor(cifar_network(), **arguments)


def test_an_extractor_has_only_its_own_endpoints():
    extractor = feature_extractor(cifar_network(), endpoints="stage2")
    with pytest.raises(ValueError, match=r"one of \['stage2'\]"):
        extract(extractor, random_pixels(1))
    assert extract(extractor, random_pixels(1), "stage2", batch_size=1).vectors.shape == (1, 8)
