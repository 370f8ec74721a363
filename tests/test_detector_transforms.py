"""Detectors with other thresholds, with a second pass over their boxes, and with the whole image as context."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from support import cifar_network, narrow_detector, padded_images

from keras_resnet import DetectionSettings, build, complexity, fold_batch_norm, get_spec, load_model
from keras_resnet.architecture.boxes import vote_boxes
from keras_resnet.architecture.detection_layers import RefinedDetections
from keras_resnet.models.cloning import clone
from keras_resnet.models.detector_transforms import VOTING_THRESHOLD, with_refinement, with_settings


def test_votes_by_hand():
    """Of three boxes, the second has an IoU of 0.6 and the third of 1/3 with the one that was kept."""
    kept = np.array([[[0, 0, 10, 10], [50, 50, 60, 60]]], "float32")
    others = np.array([[0, 0, 10, 10], [0, 0, 10, 6], [5, 0, 15, 10]], "float32")
    others = np.stack([others, others])[None]
    scores = np.array([[[0.6, 0.2, 0.9], [0.6, 0.2, 0.9]]], "float32")
    voted = keras.ops.convert_to_numpy(vote_boxes(kept, others, scores, 0.5))
    np.testing.assert_allclose(voted, [[[0, 0, 10, (0.6 * 10 + 0.2 * 6) / 0.8], [50, 50, 60, 60]]], rtol=1e-6)


def test_boxes_without_a_score_do_not_vote():
    """Not even if their offsets are NaN, as those of a region that the network cannot regress."""
    kept = np.array([[[0, 0, 10, 10]]], "float32")
    others = np.array([[[[0, 0, 10, 10], [np.nan] * 4]]], "float32")
    voted = keras.ops.convert_to_numpy(vote_boxes(kept, others, np.array([[[0.6, -1.0]]], "float32"), 0.5))
    np.testing.assert_array_equal(voted, kept)


def test_two_passes_by_hand():
    """One region of two classes; the second pass is a little to the right, with a lower score of the first class."""
    probabilities = np.array([[0.1, 0.6, 0.3], [0.2, 0.4, 0.4]])
    passes = [
        {
            "proposals": np.array([[box]], "float32"),
            "count": np.array([1], "int32"),
            "scores": np.log(row)[None].astype("float32"),
            "deltas": np.zeros((1, 12), "float32"),
            "sizes": np.array([[50, 50]], "float32"),
        }
        for box, row in zip(([10, 10, 20, 20], [12, 10, 22, 20]), probabilities, strict=True)
    ]
    layer = RefinedDetections(score_threshold=0.05, nms_threshold=0.3, detections=3, voting_threshold=0.5)
    boxes, scores, labels, count = map(keras.ops.convert_to_numpy, layer(passes))
    assert count.tolist() == [2] and labels.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(scores, [[0.6, 0.4, 0]], rtol=1e-6)
    first, second = (0.6 * 10 + 0.4 * 12), (0.3 * 10 + 0.4 * 12) / 0.7
    expected = [[first, 10, first + 10, 20], [second, 10, second + 10, 20], [0] * 4]
    np.testing.assert_allclose(boxes[0], expected, rtol=1e-6)


def outputs(model, images):
    return {name: keras.ops.convert_to_numpy(values) for name, values in model(images).items()}


def narrow_spec(name, **changes):
    """The spec of a detector with few channels and three classes."""
    spec = get_spec(name)
    backbone = replace(spec.backbone, depths=(1, 1, 1, 1), widths=(4, 8, 12, 16), stem_width=4)
    return replace(spec, backbone=backbone, neck_width=8, rpn_width=8, box_width=24, classes=3, **changes)


def random_images(count):
    return np.random.default_rng(0).normal(size=(count, 64, 96, 3)).astype("float32")


def votes(box, label, candidates):
    """The mean of the candidates of a class around a box, weighted by score, in NumPy."""
    boxes, scores, labels = candidates
    sides = np.maximum(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0)
    areas = [(it[..., 2:] - it[..., :2]).prod(axis=-1) for it in (boxes, box)]
    overlap = sides.prod(axis=1) / (areas[0] + areas[1] - sides.prod(axis=1))
    near = (labels == label) & (overlap >= VOTING_THRESHOLD)
    return (scores[near, None] * boxes[near]).sum(axis=0) / scores[near].sum()


@pytest.mark.parametrize("name", ["fasterrcnn", "maskrcnn"])
def test_a_second_pass_that_moves_nothing(name):
    """With offsets of zero both passes have the same boxes: what is left is that of one pass, after the votes."""
    model, expected = narrow_detector(name)
    model, images = clone(model), padded_images(expected)
    for weight in model.get_layer("box_deltas").weights:
        weight.assign(weight * 0)
    settings = replace(model.settings, nms_threshold=0.3)
    once = outputs(with_settings(model, settings), images)
    everything = with_settings(model, replace(settings, nms_threshold=1.0, detections=5000))
    found = outputs(with_refinement(with_settings(model, settings)), images)
    candidates = outputs(everything, images)
    assert found["count"].tolist() == once["count"].tolist() and found["count"].min() > 0
    for image, count in enumerate(found["count"]):
        of_image = [candidates[it][image][: candidates["count"][image]] for it in ("boxes", "scores", "labels")]
        for index in range(count):
            box = votes(once["boxes"][image, index], once["labels"][image, index], of_image)
            np.testing.assert_allclose(found["boxes"][image, index], box, rtol=0, atol=0.01)
        np.testing.assert_allclose(found["scores"][image], once["scores"][image], atol=1e-5)
        np.testing.assert_array_equal(found["labels"][image], once["labels"][image])


def test_refinement_leaves_the_detector_as_it_is():
    model, expected = narrow_detector("maskrcnn")
    images, names = padded_images(expected), [layer.name for layer in model.layers]
    before = outputs(model, images)
    refined = with_refinement(model)
    found = outputs(refined, images)
    assert [layer.name for layer in model.layers] == names
    assert all(len(layer._inbound_nodes) == len(model.get_layer(layer.name)._inbound_nodes) for layer in model.layers)
    after = outputs(model, images)
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])
    assert np.abs(found["boxes"] - before["boxes"]).max() > 0.1
    assert {name: values.shape for name, values in found.items()} == {name: it.shape for name, it in before.items()}
    assert (refined.spec, refined.info) == (model.spec, model.info)


@pytest.mark.parametrize("name", ["fasterrcnn_v2", "maskrcnn"])
def test_a_refined_detector_is_saved_and_changed_like_others(name, tmp_path):
    model, expected = narrow_detector(name)
    refined, images = with_refinement(model), padded_images(expected)
    refined.save(tmp_path / "refined.keras")
    found = outputs(refined, images)
    for copy in (load_model(tmp_path / "refined.keras"), fold_batch_norm(refined), clone(refined)):
        for output, values in outputs(copy, images).items():
            np.testing.assert_allclose(values, found[output], rtol=0, atol=1e-3)
    best = outputs(with_settings(refined, detections=2), images)
    np.testing.assert_allclose(best["boxes"], found["boxes"][:, :2], atol=1e-3)


REFUSED = {
    "a detector of regions": lambda: build(narrow_spec("retinanet_resnet18_fpn")),
    "not refined already": lambda: with_refinement(build(narrow_spec("fasterrcnn_resnet18_fpn"))),
    "a detector as `create` or `build` returns it": cifar_network,
}


@pytest.mark.parametrize("expected", REFUSED)
def test_models_that_are_not_refined(expected):
    with pytest.raises(ValueError, match=f"{expected}.*Received: model="):
        with_refinement(REFUSED[expected]())


@pytest.mark.parametrize("name", ["fasterrcnn_resnet18_fpn", "retinanet_resnet18_fpn"])
def test_other_settings_are_those_of_a_detector_built_with_them(name):
    settings = DetectionSettings(0.01, 0.3, 7, candidates=50, proposals=40, proposal_nms_threshold=0.4)
    model = build(narrow_spec(name))
    changed, built = with_settings(model, settings), build(model.spec, settings=settings)
    built.set_weights(model.get_weights())
    found, expected = (outputs(it, random_images(1)) for it in (changed, built))
    assert changed.settings == settings and model.settings != settings and with_settings(model, model.settings) is model
    for output, values in expected.items():
        np.testing.assert_allclose(found[output], values, atol=1e-5)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet18_fpn", "fasterrcnn_resnet50_c4"])
def test_context_without_weights_changes_nothing(name):
    """A detector with context, whose predictors have zeros for the whole image, is one without."""
    spec, settings = narrow_spec(name), DetectionSettings(proposals=30)
    model = build(spec, settings=settings)
    with_context = build(replace(spec, global_context=True), settings=settings)
    for layer in with_context.layers:
        weights = model.get_layer(layer.name).get_weights() if layer.weights else []
        if layer.name in ("box_scores", "box_deltas"):
            weights[0] = np.concatenate([weights[0], 0 * weights[0]])
        layer.set_weights(weights)
    for pair in ((model, with_context), (with_refinement(model), with_refinement(with_context))):
        expected, found = (outputs(it, random_images(2)) for it in pair)
        np.testing.assert_array_equal(expected["count"], found["count"])
        np.testing.assert_allclose(expected["boxes"], found["boxes"], atol=1e-3)


def test_context_is_the_features_of_the_whole_image():
    """With weights for the whole image alone, all regions have the same scores, and another image has others."""
    model = build(narrow_spec("fasterrcnn_resnet18_fpn", global_context=True))
    kernel, bias = model.get_layer("box_scores").get_weights()
    model.get_layer("box_scores").set_weights([np.where(np.arange(48)[:, None] < 24, 0, 10 * kernel), bias])
    scores = keras.Model(model.input, model.get_layer("box_scores").output)(random_images(2))
    scores = keras.ops.convert_to_numpy(scores).reshape(2, -1, 3)
    np.testing.assert_allclose(scores, np.broadcast_to(scores[:, :1], scores.shape), atol=1e-5)
    assert np.abs(scores[0] - scores[1]).max() > 1e-4


def test_costs_of_context():
    spec = narrow_spec("fasterrcnn_resnet18_fpn", global_context=True)
    without, with_context = complexity(replace(spec, global_context=False)), complexity(spec)
    predictors, head = 24 * 3 * 5, 8 * 49 * 24 + 24**2
    assert with_context.parameters - without.parameters == predictors
    assert with_context.multiply_adds - without.multiply_adds == head + 1000 * predictors
    assert build(spec).count_params() - build(replace(spec, global_context=False)).count_params() == predictors
    with pytest.raises(ValueError, match="`global_context` should be False for a dense head"):
        narrow_spec("retinanet_resnet18_fpn", global_context=True)
