"""Detectors as Keras models: saved, cloned, folded, taken apart and explained; bad input and arguments."""

import json
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from support import assert_same_detections, detections, narrow_detector, padded_images, random_images

import keras_resnet
from keras_resnet import DetectionSettings, analysis, create, feature_extractor, fold_batch_norm, get_spec
from keras_resnet.architecture.detection_layers import Parameterless

SMALL = {"neck_width": 32, "rpn_width": 32, "box_width": 32, "mask_width": 32, "classes": 3}


@pytest.mark.portable
@pytest.mark.parametrize("name", ["maskrcnn", "fasterrcnn_v2"])
def test_folded_detectors_find_the_same(name):
    """Frozen batch norms of epsilon 0, and those of necks and heads."""
    model, reference = narrow_detector(name)
    folded, images = fold_batch_norm(model), padded_images(reference)
    assert folded.info["unfolded"] == [] and (folded.spec, folded.settings) == (model.spec, model.settings)
    assert len(folded.layers) < len(model.layers) and folded.count_params() < model.count_params()
    call = "predict_on_batch" if keras.backend.backend() == "jax" else "__call__"
    found, expected = (
        keras.tree.map_structure(keras.ops.convert_to_numpy, getattr(network, call)(images))
        for network in (folded, model)
    )
    assert_same_detections(found, expected, scores=1e-4)


def test_a_process_without_custom_objects_loads_a_saved_detector(tmp_path):
    model, reference = narrow_detector("maskrcnn")
    model.save(tmp_path / "detector.keras")
    np.save(tmp_path / "images.npy", padded_images(reference))
    script = """
import json, sys, keras, numpy as np, keras_resnet
model = keras.saving.load_model(sys.argv[1])
found = {name: np.asarray(values).tolist() for name, values in model(np.load(sys.argv[2])).items()}
print(json.dumps([model.spec.to_config(), model.settings.to_config(), model.info, found]))
"""
    words = [sys.executable, "-c", script, tmp_path / "detector.keras", tmp_path / "images.npy"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    spec, settings, info, found = json.loads(done.stdout)
    assert spec == json.loads(json.dumps(model.spec.to_config())) and settings == model.settings.to_config()
    assert info == json.loads(json.dumps(model.info))
    expected = detections(model, padded_images(reference))
    assert_same_detections({name: np.array(values) for name, values in found.items()}, expected, boxes=0, scores=0)


@pytest.mark.parametrize("name", ["maskrcnn", "retinanet"])
def test_configurations_clones_and_layers(name):
    model, reference = narrow_detector(name)
    layers = [layer for layer in model.layers if isinstance(layer, Parameterless)]
    assert len(layers) == {"maskrcnn": 6, "retinanet": 2}[name]
    for layer in layers:
        copy = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
        assert json.dumps(copy.get_config()) == json.dumps(layer.get_config()) and copy.name == layer.name
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    images = padded_images(reference)
    expected = detections(model, images)
    assert_same_detections(detections(copy, images), expected, boxes=0, scores=0)
    lines = []
    model.summary(print_fn=lines.append)
    assert "conv5_block1_1_conv" in "".join(lines)


@pytest.mark.parametrize("name", ["maskrcnn_resnet18_fpn", "retinanet_resnet18_fpn"])
def test_features_are_those_of_the_network_alone(name):
    """Endpoints of a detector equal those of its residual network with the same weights."""
    model, images = create(name, **SMALL), random_images(1, 64, 96, 3)
    network = keras_resnet.build(model.spec.backbone, include_top=False)
    for layer in network.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights() if layer.weights else [])
    endpoints = ["stage1", "stage2", "stage3", "stage4"]
    expected = feature_extractor(network, endpoints=endpoints)(images)
    extractor = feature_extractor(model, endpoints=endpoints)
    for endpoint, maps in extractor(images).items():
        np.testing.assert_allclose(maps, expected[endpoint], rtol=1e-4, atol=1e-4)
    assert list(feature_extractor(model).output) == ["stage4"] and extractor.spec.stages == network.spec.stages
    np.testing.assert_allclose(analysis.feature_maps(model, images, "stage2"), expected["stage2"], atol=1e-4)
    fields = analysis.receptive_fields(model.spec)
    assert fields == analysis.receptive_fields(model.spec.backbone)


def test_features_by_the_name_of_a_detector():
    extractor = feature_extractor("fasterrcnn_resnet18_fpn", endpoints=("C3", "C5"), pooling="avg")
    assert {name: values.shape for name, values in extractor.output.items()} == {"C3": (None, 128), "C5": (None, 512)}
    with pytest.raises(ValueError, match="`endpoints` should be one of"):
        feature_extractor(narrow_detector("retinanet")[0], endpoints="pre_logits")


@pytest.mark.parametrize("name, layer", [("fasterrcnn_resnet18_fpn", "stage1"), ("retinanet_resnet18_fpn", "stage2")])
def test_grad_cam_of_a_detector_is_autodiffs(name, layer):
    """The level through which all features pass, beside the images' sizes."""
    tf = pytest.importorskip("tensorflow")
    model, images = create(name, detections=5, score_threshold=0, **SMALL), random_images(1, 64, 96, 3)
    found = analysis.grad_cam(model, images, layer=layer)
    padded, sizes = model.get_layer("padded_images").output
    maps = keras_resnet.models.layers.endpoint_layers(model)[layer].output
    features, *others = keras.Model(model.inputs, [maps, padded, sizes])(images)
    head = keras.Model([maps, padded, sizes], model.output["scores"])
    with tf.GradientTape() as tape:
        tape.watch(features)
        best = head([features, *others])[0, 0]
    weights = tf.reduce_mean(tape.gradient(best, features), axis=(1, 2), keepdims=True)
    expected = np.maximum(tf.reduce_sum(weights * features, axis=-1), 0)
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected / expected.max(), atol=1e-3)


def test_grad_cam_of_a_class_without_detections_is_zero():
    model, reference = narrow_detector("maskrcnn")
    images = padded_images(reference)
    assert not (reference["labels"][1] == 0).any()
    assert analysis.grad_cam(model, images, 0).max() == 0
    assert analysis.grad_cam(model, images, [3, 2]).max(axis=(1, 2)).tolist() == [1, 1]
    with pytest.raises(ValueError, match="`class_indices` should be an integer from 0 to 3"):
        analysis.grad_cam(model, images, 4)
    with pytest.raises(ValueError, match="`layer` should be a layer that is called once"):
        analysis.grad_cam(model, images, layer="rpn_conv0")


def test_other_analyses_of_detectors():
    model, reference = narrow_detector("fasterrcnn_v2")
    images = padded_images(reference)
    names = [layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert list(analysis.forward_variances(model, images)) == names
    responses = analysis.layer_responses(model, images)
    assert set(responses) < set(names) and all(np.isfinite(value) for value in responses.values())
    assert analysis.first_filters(model).shape == (4, 7, 7, 3)
    costs = {cost.name: cost for cost in analysis.layer_costs(model, (64, 96, 3))}
    assert costs["conv1_conv"].multiply_adds == 32 * 48 * 7 * 7 * 3 * 4
    with pytest.raises(ValueError, match="`model` should be a classifier"):
        analysis.gradient_norms(model, images, [0, 1])


IMAGES = {
    "one channel": (np.zeros((1, 32, 32, 1), "float32"), r"shape \(1, 32, 32, 1\), float32"),
    "an image alone": (np.zeros((32, 32, 3), "float32"), r"shape \(32, 32, 3\), float32"),
    "channels first": (np.zeros((1, 3, 32, 32), "float32"), "should be floats of the shape"),
    "bytes": (np.zeros((1, 32, 32, 3), "uint8"), "uint8"),
    "integers": (np.zeros((1, 32, 32, 3), "int64"), "int64"),
    "no pixels": (np.zeros((1, 0, 32, 3), "float32"), "not empty"),
    "no images": (np.zeros((0, 32, 32, 3), "float32"), "not empty"),
    "padding alone": (np.full((2, 32, 32, 3), np.nan, "float32"), "NaN in the first pixel of the images .0, 1."),
}


@pytest.mark.parametrize("case", IMAGES)
def test_what_is_no_batch_of_images_is_refused(case):
    images, message = IMAGES[case]
    model, _ = narrow_detector("retinanet")
    for call in (model, model.predict, model.predict_on_batch):
        with pytest.raises(ValueError, match=message):
            call(images)


@pytest.mark.parametrize("scale, is_warned", [(1, False), (100, True)])
def test_padded_images_that_are_not_normalised_are_warned_of(scale, is_warned):
    model, reference = narrow_detector("fasterrcnn")
    images = padded_images(reference) * scale
    assert np.isnan(images).any()
    model._has_warned = False
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        model.predict_on_batch(images)
    assert ["should be normalised" in str(row.message) for row in found] == [True] * is_warned


def test_tensors_and_data_sets_are_checked_by_shape_and_dtype():
    tf = pytest.importorskip("tensorflow")
    model, reference = narrow_detector("retinanet")
    with pytest.raises(ValueError, match="`images` should be floats"):
        model(tf.zeros((1, 32, 32, 3), "int32"))
    pixels = tf.data.Dataset.from_tensors(np.zeros((1, 32, 32, 3), "uint8"))
    with pytest.raises(ValueError, match="`images` should be floats"):
        model.predict(pixels, verbose=0)
    found = model.predict(tf.data.Dataset.from_tensors(padded_images(reference)), verbose=0)
    np.testing.assert_array_equal(found["labels"], reference["labels"])


ARGUMENTS = {
    "an unknown name": ({"variant": "fasterrcnn_resnet19_fpn"}, ValueError, "Nearest: .'fasterrcnn_resnet18_fpn'"),
    "an unknown field": ({"score_treshold": 0.5}, TypeError, "Nearest: .'score_threshold'"),
    "torchvision's word": ({"box_score_thresh": 0.5}, TypeError, "Use `score_threshold`"),
    "torchvision's classes": ({"num_classes": 3}, TypeError, "Use `classes`"),
    "background alone": ({"classes": 1}, ValueError, "`classes` should be from 2, with the background"),
    "classes by name": ({"classes": "3"}, ValueError, "`classes` should be an integer"),
    "a CIFAR network": ({"backbone": "resnet20"}, ValueError, "`backbone` should be an ImageNet network"),
    "an unknown network": ({"backbone": "resnet51"}, ValueError, "`backbone` .*Nearest: .*'resnet50'"),
    "a number for a network": ({"backbone": 50}, ValueError, "`backbone` should be"),
    "a detector as network": ({"backbone": "retinanet_resnet18_fpn"}, ValueError, "task='classification'"),
    "input_shape": ({"input_shape": (64, 64, 3)}, ValueError, "`input_shape` should be left out for a detector"),
    "pooling": ({"pooling": "avg"}, ValueError, "`pooling` should be left out for a detector"),
    "an activation": ({"classifier_activation": None}, ValueError, "`classifier_activation` should be left out"),
    "no top": ({"include_top": False}, ValueError, "`include_top` should be left out"),
    "an unknown neck": ({"neck": "fnp"}, ValueError, "`neck` should be one of .*Nearest: .'fpn'"),
    "a threshold above 1": (
        {"score_threshold": 2},
        ValueError,
        "`score_threshold` should be a finite number in .0, 1.",
    ),
    "no side": ({"min_size": 0}, ValueError, "`min_size` should be from 1 to"),
    "an unknown mode": ({"mode": "tourch"}, ValueError, "`mode` should be one of .*Nearest: .'torch'"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_bad_arguments_are_refused_before_a_layer_is_made(case, monkeypatch):
    def built(*arguments, **keywords):
        raise AssertionError("a detector was built")

    monkeypatch.setattr("keras_resnet.models.detectors.build_detector", built)
    arguments, error, message = ARGUMENTS[case]
    with pytest.raises(error, match=message):
        create(**{"variant": "fasterrcnn_resnet18_fpn"} | arguments)


def test_settings_are_values_apart_from_the_spec():
    """The same spec for every threshold."""
    model = create("retinanet_resnet18_fpn", score_threshold=0.5, detections=7, **SMALL)
    assert model.settings == DetectionSettings(score_threshold=0.5, detections=7)
    assert model.output["boxes"].shape == (None, 7, 4) and model.spec.classes == 3
    assert model.spec.backbone == get_spec("retinanet_resnet18_fpn").backbone
