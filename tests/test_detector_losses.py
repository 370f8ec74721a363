"""Losses of detectors in training, beside torchvision's; tests/references/make_detector_losses.py wrote the files."""

from dataclasses import replace
from functools import cache

import keras
import numpy as np
import pytest
from keras import ops
from support import NARROW_DETECTORS, REFERENCES, narrow, narrow_detector, padded_images

from keras_resnet import build, get_spec
from keras_resnet.architecture.boxes import decode_boxes, encode_boxes
from keras_resnet.architecture.detector import HEAD_PREFIXES
from keras_resnet.training.detection_losses import DETECTION_LOSSES
from keras_resnet.training.detector_training import training_model
from keras_resnet.training.matching import Sampling, match_boxes, random_uniform, sample, samples_of
from keras_resnet.weights.loading import build_from_file

FOLDER = REFERENCES / "detectors"
DATA = dict(np.load(FOLDER / "training.npz"))
OBJECTS = {"boxes": DATA["boxes"], "labels": DATA["labels"]}
PORTABLE = [
    pytest.param(name, marks=pytest.mark.portable if name in ("maskrcnn", "retinanet_v2") else ())
    for name in NARROW_DETECTORS
]
"""Two have all losses. On other backends the statistics of batch norm in the mask head include padding."""
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
    chosen = (
        np.maximum(indices, 0),
        (indices >= 0).sum(axis=1, dtype="int32"),
        found[f"{part}_positives"].astype("int32"),
    )
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


@pytest.mark.portable
@pytest.mark.parametrize("name", REGIONS)
def test_regions_match_the_true_boxes_of_torchvision(name):
    matches = match_boxes(region_candidates(name), DATA["boxes"], DATA["labels"] > 0, losses_of(name).regions)
    expected = reference(name)["region_matches"]
    np.testing.assert_array_equal(np.where(expected == -2, -2, matches), expected)


@cache
def model_of_samples(name):
    """(training model, a model of the same layers that receives the samples, its inputs).

    Calls in training change its statistics of batch norm, but no loss in training depends on them.
    """
    detector = narrow_detector.__wrapped__(name)[0]  # other tests share the detector itself
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


@pytest.mark.parametrize("name", PORTABLE)
def test_losses_from_the_same_samples_are_those_of_torchvision(name):
    _, model, values = model_of_samples(name)
    found = {key: float(ops.mean(loss)) for key, loss in model(values, training=True).items()}
    expected = expected_losses(name)
    assert found == pytest.approx(expected, rel=1e-5)


def losses_and_gradients(model, values, variables):
    """{name: losses (B,)}, and the gradients of the sum of their means."""
    tf = pytest.importorskip("tensorflow")
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(variables)
        found = model(values, training=True)
        loss = sum(ops.mean(loss) for loss in found.values())
    return {name: loss.numpy() for name, loss in found.items()}, tape.gradient(loss, variables)


# With batch norm in the heads, gradients of float32 differ by 5e-3 between two implementations in TensorFlow itself.
@pytest.mark.parametrize(("name", "tolerance"), [("maskrcnn", 1e-5), ("fasterrcnn_v2", 1e-2), ("retinanet", 1e-5)])
def test_gradients_from_the_same_samples_are_those_of_torchvision(name, tolerance):
    """Of the v1 detectors without their backbones: TensorFlow 2.21 overwrites memory in the gradient of a 1x1
    convolution with a stride of 2 and four channels, which no detector of full size has.
    """
    model, from_samples, values = model_of_samples(name)
    detector, path = model.detector, FOLDER / f"{name}_gradients.safetensors"
    expected = build_from_file(detector.spec, path, settings=detector.settings).trainable_variables
    pairs = list(zip(detector.trainable_variables, expected, strict=True))
    if name != "fasterrcnn_v2":
        pairs = [(variable, theirs) for variable, theirs in pairs if variable.path.startswith(HEAD_PREFIXES)]

    _, found = losses_and_gradients(from_samples, values, [variable.value for variable, _ in pairs])
    for (variable, theirs), ours in zip(pairs, found, strict=True):
        largest = float(ops.max(ops.abs(theirs)))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * largest, err_msg=variable.path)


def batch_for(model):
    """Inputs of a training model: the first two images of the reference."""
    data = {"images": padded_images(DATA), **DATA, "keys": np.int32([[7, 0], [7, 1]])}
    return {name: data[name][:2] for name in model.input}


SMALL = replace(narrow(get_spec("resnet50")), depths=(1, 1, 1, 1))
V1 = replace(get_spec("maskrcnn_resnet50_fpn"), backbone=SMALL, neck_width=16, box_width=16, mask_width=8)
SPECS = {
    "mask": V1,
    "context": replace(V1, global_context=True, neck="dc5", levels=(5,), extra_levels=None, anchor_sizes=((32, 64),)),
    "c4": replace(get_spec("fasterrcnn_resnet50_c4"), backbone=SMALL, rpn_width=16),
    "conv": replace(V1, box_head="conv", head_norm="batch", frozen_batch_norm=False),
    "dense": replace(get_spec("retinanet_resnet50_fpn"), backbone=SMALL, neck_width=16),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("context", "conv") else ()) for name in SPECS]
)
def test_losses_are_finite_and_train_every_weight_of_any_detector(name):
    """Also without objects in any image, without rows for them, and with boxes without an area."""
    model = training_model(build(replace(SPECS[name], classes=4)), losses_of(name))
    values = batch_for(model)
    variables = [variable.value for variable in model.trainable_variables]
    losses, gradients = losses_and_gradients(model, values, variables)
    assert all(loss.shape == (2,) and (loss > 0).all() for loss in losses.values())
    assert all(0 < np.abs(gradient).max() < np.inf for gradient in gradients)
    flat = values["boxes"].copy()
    flat[0, 2, 2] = flat[0, 2, 0]
    unlabelled = values["labels"].copy()
    unlabelled[0, 2] = 0
    with_flat, without = (model(values | change) for change in ({"boxes": flat}, {"labels": unlabelled}))
    for key, loss in with_flat.items():
        np.testing.assert_array_equal(loss, without[key])
    nothing = {key: values[key] * 0 for key in ("boxes", "labels")}
    no_rows = {key: values[key][:, :0] for key in ("boxes", "labels", "masks") if key in values}
    expected = model(values | nothing, training=True)
    for loss in ("rpn_box_reg", "box_reg", "mask", "bbox_regression"):
        assert not np.any(expected.get(loss, 0))
    found, gradients = losses_and_gradients(model, values | no_rows, variables)
    for key, loss in found.items():
        np.testing.assert_allclose(loss, expected[key], rtol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert sum(float(np.sum(loss)) for loss in found.values()) > 0


def test_a_training_model_has_the_variables_of_its_detector():
    detector = narrow_detector("maskrcnn")[0]
    model = training_model(detector)
    assert model.detector is detector
    assert sorted(map(id, model.variables)) == sorted(map(id, detector.variables))
    assert [v.path for v in model.trainable_variables] == [v.path for v in detector.trainable_variables]
    assert list(model.output) == ["objectness", "rpn_box_reg", "classifier", "box_reg", "mask"]


MANY = np.stack([np.full(2000, 3), np.arange(2000)], axis=1).astype("int32")
"""Keys of 2,000 images of a run."""


@pytest.mark.portable
def test_random_numbers_belong_to_an_image_and_not_to_its_batch():
    numbers = ops.convert_to_numpy(random_uniform(MANY[:8], 0, 50))
    np.testing.assert_array_equal(numbers[2:5], random_uniform(MANY[2:5], 0, 50))
    others = [
        random_uniform(MANY[:8], 1, 50),
        random_uniform(MANY[8:16], 0, 50),
        random_uniform(MANY[:8] + np.int32([1, 0]), 0, 50),
    ]
    together = np.concatenate([numbers, *others])
    assert len(np.unique(together)) > 0.999 * together.size
    assert 0 <= together.min() < 0.01 and 0.99 < together.max() < 1


@pytest.mark.portable
def test_samples_are_uniform_among_the_boxes_that_may_be_chosen():
    """Frequencies over 2,000 images are within five standard deviations of the binomial distribution."""
    matches = np.array([3] * 12 + [-1] * 20 + [-2] * 8, "int32")
    sampling = Sampling(0.5, 0.5, samples=16, positive_share=0.25)
    numbers = random_uniform(MANY, 0, len(matches))
    indices, count, positives = sample(np.tile(matches, (len(MANY), 1)), numbers, sampling)
    indices = ops.convert_to_numpy(indices)
    assert (np.asarray(count) == 16).all() and (np.asarray(positives) == 4).all()
    assert (matches[indices[:, :4]] == 3).all() and (matches[indices[:, 4:]] == -1).all()
    assert (np.diff(np.sort(indices, axis=1)) > 0).all()
    for part, share in ((slice(0, 12), 4 / 12), (slice(12, 32), 12 / 20)):
        found = np.bincount(indices.ravel(), minlength=len(matches))[part]
        deviation = np.sqrt(len(MANY) * share * (1 - share))
        assert np.abs(found - len(MANY) * share).max() < 5 * deviation


@pytest.mark.portable
@pytest.mark.parametrize(("positive", "negative"), [(0, 5), (5, 0), (3, 4), (0, 0), (9, 2), (2, 30)])
def test_samples_are_all_boxes_if_there_are_few(positive, negative):
    matches = np.array([-2] + [0] * positive + [-2] + [-1] * negative, "int32")[None]
    chosen = sample(
        matches, random_uniform(MANY[:1], 0, matches.size), Sampling(0.5, 0.5, samples=16, positive_share=0.5)
    )
    indices, count, positives = (np.asarray(values)[0] for values in chosen)
    assert positives == min(positive, 8) and count == min(positives + negative, 16)
    assert len(set(indices[:count])) == count and not indices[count:].any()
    assert (matches[0, indices[:count]] == [0] * positives + [-1] * (count - positives)).all()


@pytest.mark.portable
def test_offsets_of_a_box_give_the_box_again():
    generator = np.random.default_rng(0)
    boxes, targets = (
        np.concatenate([xy := generator.uniform(0, 50, (99, 2)), xy + generator.uniform(1, 50, (99, 2))], 1)
        for _ in range(2)
    )
    weights = (10.0, 10.0, 5.0, 5.0)
    boxes, targets = (values.astype("float32") for values in (boxes, targets))
    np.testing.assert_allclose(decode_boxes(encode_boxes(targets, boxes, weights), boxes, weights), targets, atol=1e-3)
