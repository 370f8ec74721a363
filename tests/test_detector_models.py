"""Detectors as Keras models: saved, cloned, folded and taken apart."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from support import narrow_detector, padded_images, random_images

import keras_resnet
from keras_resnet import analysis, create, feature_extractor, fold_batch_norm
from keras_resnet.architecture.detection_layers import Parameterless

SMALL = {"neck_width": 32, "rpn_width": 32, "box_width": 32, "mask_width": 32, "classes": 3}


def detections(model, images):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(images))


def assert_same_detections(found, expected, boxes=1e-3, scores=1e-4):
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    for name, tolerance in {"boxes": boxes, "scores": scores, "masks": scores}.items():
        if name in expected:
            np.testing.assert_allclose(found[name], expected[name], atol=tolerance, err_msg=name)


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
    assert_same_detections(found, expected)


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
