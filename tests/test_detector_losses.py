"""Losses of detectors in training, beside torchvision's; tests/references/make_detector_losses.py wrote the files."""

from dataclasses import replace
from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from support import NARROW_DETECTORS, REFERENCES, narrow_detector, padded_images

from keras_resnet.architecture.boxes import encode_boxes
from keras_resnet.training.detection_losses import DETECTION_LOSSES
from keras_resnet.training.detector_training import training_model
from keras_resnet.training.matching import match_boxes, samples_of
from keras_resnet.weights.loading import build_from_file

FOLDER = REFERENCES / "detectors"
DATA = dict(np.load(FOLDER / "training.npz"))
OBJECTS = {"boxes": DATA["boxes"], "labels": DATA["labels"]}
REGIONS = [name for name in NARROW_DETECTORS if "rcnn" in name]


def losses_of(name):
    """The values with which the reference was computed."""
    losses = DETECTION_LOSSES["detection_giou" if name == "retinanet_v2" else "detection"]
    anchors, regions = replace(losses.anchors, samples=64), replace(losses.regions, samples=100)
    return replace(losses, anchors=anchors, regions=regions, proposals=100)


@cache
def reference(name):
    """What torchvision computed."""
    return dict(np.load(FOLDER / f"{name}_losses.npz"))


def expected_losses(name):
    found = reference(name)
    return {key.removeprefix("loss_"): float(found[key]) for key in found if key.startswith("loss_")}


def reference_samples(name, part, candidates):
    """The samples of torchvision as our layers return them."""
    found = reference(name)
    indices = found[f"{part}_samples"].astype("int32")
    chosen = np.maximum(indices, 0), (indices >= 0).sum(axis=1, dtype="int32"), found[f"{part}_positives"].astype("int32")
    return samples_of(ops.convert_to_tensor(candidates), found[f"{part}_matches"].astype("int32"), OBJECTS, chosen)


def region_candidates(name):
    return np.concatenate([reference(name)["proposals"], DATA["boxes"]], axis=1)


def anchors_of(model, images):
    """The anchors of all levels, (A, 4)."""
    layer = model.get_layer("proposals" if "proposals" in [layer.name for layer in model.layers] else "detections")
    maps = layer._inbound_nodes[0].arguments.args[0]["deltas"]
    shapes = keras.Model(model.input, maps)(images)
    return ops.concatenate(layer.level_anchors(images, shapes))


@pytest.mark.parametrize("name", NARROW_DETECTORS)
def test_anchors_match_the_true_boxes_of_torchvision(name):
    model, losses = narrow_detector(name)[0], losses_of(name)
    anchors = anchors_of(model, padded_images(DATA))
    sampling = losses.dense if "retinanet" in name else losses.anchors
    matches = match_boxes(anchors[None], DATA["boxes"], DATA["labels"] > 0, sampling)
    np.testing.assert_array_equal(matches, reference(name)["anchor_matches"])


@pytest.mark.parametrize("name", REGIONS)
def test_regions_match_the_true_boxes_of_torchvision(name):
    matches = match_boxes(region_candidates(name), DATA["boxes"], DATA["labels"] > 0, losses_of(name).regions)
    expected = reference(name)["region_matches"]
    np.testing.assert_array_equal(np.where(expected == -2, -2, matches), expected)


def model_of_samples(name):
    """(training model, a model of the same layers that receives the samples, its inputs)."""
    detector = narrow_detector(name)[0]
    model, images = training_model(detector, losses_of(name)), padded_images(DATA)
    values = {"true_objects": {key: DATA[key] for key in ("boxes", "labels", "masks") if key in model.input}}
    if name in REGIONS:
        anchors = ops.repeat(anchors_of(detector, images)[None], len(images), axis=0)
        values["sampled_anchors"] = reference_samples(name, "anchor", anchors)
        values["sampled_regions"] = reference_samples(name, "region", region_candidates(name))
    tensors = [model.get_layer(layer).output for layer in values]
    inputs = [model.input["images"], *keras.tree.flatten(tensors)]
    given = [ops.convert_to_tensor(value) for value in (images, *keras.tree.flatten(list(values.values())))]
    return model, keras.Model(inputs, model.output), given


@pytest.mark.parametrize("name", NARROW_DETECTORS)
def test_losses_from_the_same_samples_are_those_of_torchvision(name):
    _, model, values = model_of_samples(name)
    found = {key: float(ops.mean(loss)) for key, loss in model(values, training=True).items()}
    expected = expected_losses(name)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["maskrcnn", "fasterrcnn_v2", "retinanet"])
def test_gradients_are_those_of_torchvision(name):
    """With frozen batch norm of epsilon 0, with batch norm in all parts, and of RetinaNet."""
    model, from_samples, values = model_of_samples(name)
    detector = model.detector
    path = FOLDER / f"{name}_gradients.safetensors"
    expected = build_from_file(detector.spec, path, settings=detector.settings).trainable_variables

    with tf.GradientTape() as tape:
        loss = sum(ops.mean(loss) for loss in from_samples(values, training=True).values())
    found = tape.gradient(loss, [variable.value for variable in detector.trainable_variables])
    for variable, ours, theirs in zip(detector.trainable_variables, found, expected, strict=True):
        error = float(ops.max(ops.abs(ours - theirs)) / ops.max(ops.abs(theirs)))
        print(variable.path, error)
        assert error < 1e-4, variable.path
