"""Detectors of torchvision, reproduced from their weights; tests/references/make_detectors.py wrote the files."""

import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from support import NARROW_DETECTORS, detections, narrow_detector, padded_images

from keras_resnet import create, detect, list_models
from keras_resnet.architecture.boxes import suppress_overlaps

pytestmark = pytest.mark.portable
RELATIVE = 3e-4 if keras.backend.backend() == "torch" else 1e-4
"""Tolerance of raw outputs. Keras computes variances of group norms (RetinaNet v2) as E[x²] - E[x]², which torch rounds
more than the others where a group has two values, in the smallest maps."""


def inputs_of(layer):
    """What a layer is called with in its model."""
    return layer._inbound_nodes[0].arguments.args[0]


def levels(expected, name):
    """The maps of all levels: `name`0, `name`1, ..."""
    return [expected[f"{name}{i}"] for i in range(sum(key.removeprefix(name).isdigit() for key in expected))]


def raw_outputs(model, expected):
    """What the heads predict under the names of the reference, from the proposals and the boxes of the reference."""
    inputs, given = inputs_of(model.get_layer("detections")), {"images": model.input}
    heads = {name: inputs[name] for name in ("scores", "deltas")}
    if "proposals" in expected:
        proposals = inputs_of(model.get_layer("proposals"))
        heads = {"class_logits": inputs["scores"], "box_deltas": inputs["deltas"]}
        heads |= {name: proposals[name] for name in ("objectness", "deltas")}
        given["proposals"] = inputs["proposals"]
    if "mask_logits" in expected:
        heads["mask_logits"] = model.get_layer("mask_logits").output
        given |= {name: model.output[name] for name in ("boxes", "count")}
    values = expected | {"images": padded_images(expected)}
    return detections(keras.Model(list(given.values()), heads), [values[name] for name in given])


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= RELATIVE * np.abs(theirs).max()


def valid(array, counts):
    """The rows of each image that are no padding, of (B, N, ...) or (B * N, ...)."""
    images = array.reshape(len(counts), -1, *array.shape[1 if len(array) != len(counts) else 2 :])
    return np.concatenate([image[: int(count)] for image, count in zip(images, counts, strict=True)])


@pytest.mark.parametrize("name", NARROW_DETECTORS)
def test_raw_outputs_equal_those_of_torchvision(name):
    check_raw_outputs(*narrow_detector(name))


def check_raw_outputs(model, expected):
    raw = raw_outputs(model, expected)
    for name in ("objectness", "deltas", "scores"):
        for ours, theirs in zip(raw.get(name, ()), levels(expected, name), strict=name in raw):
            assert_close(ours, theirs)
    for name in ("class_logits", "box_deltas"):
        if name in raw:
            counts = expected["proposal_count"]
            assert_close(valid(raw[name], counts), valid(expected[name], counts))
    if "mask_logits" in raw:
        counts = expected["count"]
        labels = valid(expected["labels"], counts).astype(int)
        ours = np.take_along_axis(raw["mask_logits"], labels[:, None, None, None], axis=-1)[..., 0]
        assert_close(ours, valid(expected["mask_logits"], counts))


@pytest.mark.parametrize("name", [name for name in NARROW_DETECTORS if "rcnn" in name])
def test_proposals_from_the_same_raw_outputs_are_equal(name):
    check_proposals(*narrow_detector(name))


def check_proposals(model, expected):
    boxes, count = model.get_layer("proposals")(
        {
            "images": padded_images(expected),
            "sizes": expected["sizes"].astype("float32"),
            "objectness": levels(expected, "objectness"),
            "deltas": levels(expected, "deltas"),
        }
    )
    boxes, count = map(keras.ops.convert_to_numpy, (boxes, count))
    np.testing.assert_array_equal(count, expected["proposal_count"])
    distances = [np.abs(boxes - np.roll(expected["proposals"], step, axis=1)).max(axis=-1) for step in (-1, 0, 1)]
    assert np.min(distances, axis=0).max() < 1e-3  # two boxes with the same score in float32 may be swapped


@pytest.mark.parametrize("name", NARROW_DETECTORS)
def test_detections_from_the_same_raw_outputs_are_equal(name):
    check_detections(*narrow_detector(name))


def check_detections(model, expected):
    given = {"sizes": expected["sizes"].astype("float32")}
    if "proposals" in expected:
        given |= {"proposals": expected["proposals"], "count": expected["proposal_count"].astype("int32")}
        heads = (expected["class_logits"], expected["box_deltas"])
        given |= dict(zip(("scores", "deltas"), (head.reshape(-1, head.shape[-1]) for head in heads), strict=True))
    else:
        given |= {"images": padded_images(expected), "scores": levels(expected, "scores")}
        given |= {"deltas": levels(expected, "deltas")}
    boxes, scores, labels, count = map(keras.ops.convert_to_numpy, model.get_layer("detections")(given))
    np.testing.assert_array_equal(count, expected["count"])
    np.testing.assert_array_equal(labels, expected["labels"])
    np.testing.assert_allclose(scores, expected["scores"], atol=1e-6)
    np.testing.assert_allclose(boxes, expected["boxes"], atol=1e-3)


@pytest.mark.parametrize("name", NARROW_DETECTORS)
def test_detectors_equal_those_of_torchvision(name):
    """From the images to the masks."""
    model, expected = narrow_detector(name)
    found = detections(model, padded_images(expected))
    np.testing.assert_array_equal(found["count"], expected["count"])
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-4)
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=0.02)
    if "masks" in found:
        masks = 1 / (1 + np.exp(-valid(expected["mask_logits"], expected["count"])))
        np.testing.assert_allclose(valid(found["masks"], expected["count"]), masks, atol=1e-4)


def kept_in_float64(boxes, scores, groups, threshold):
    """Indices that non-maximum suppression leaves in each group, computed by its definition in float64."""
    boxes, kept = boxes.astype("float64"), []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for index in np.argsort(-scores):
        rivals = [other for other in kept if groups[other] == groups[index]]
        low, high = (choose(boxes[rivals], boxes[index]) for choose in (np.maximum, np.minimum))
        overlap = np.maximum(high[:, 2:] - low[:, :2], 0).prod(axis=1)
        if not (overlap / (areas[rivals] + areas[index] - overlap) > threshold).any():
            kept.append(index)
    return kept


def test_classes_do_not_round_overlaps():
    """Of 91 classes in an image of 1333 pixels; shifted apart along one axis, other boxes would be left."""
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 1300, (10, 2)).repeat(300, axis=0)
    sides = generator.uniform(20, 30, (3000, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1).astype("float32")
    scores, groups = generator.permutation(3000).astype("float32") / 3000, generator.integers(80, 91, 3000)
    tensors = [keras.ops.convert_to_tensor(array[None]) for array in (boxes, scores, groups.astype("int32"))]
    found, valid = map(keras.ops.convert_to_numpy, suppress_overlaps(*tensors[:2], 0.7, 3000, tensors[2]))
    assert found[valid].tolist() == kept_in_float64(boxes, scores, groups, 0.7)


FULL = [
    path
    for path in sorted(Path(os.environ.get("KERAS_RESNET_FULL_REFERENCES", "-")).glob("*.safetensors"))
    if path.stem in list_models(task="detection")
]


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="KERAS_RESNET_FULL_REFERENCES names no folder of `make_detectors.py --full`")
@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_full_size_detectors_equal_those_of_torchvision(path):
    model, expected = create(path.stem, weights=path), dict(np.load(path.with_suffix(".npz")))
    check_raw_outputs(model, expected)
    if "proposals" in expected:
        check_proposals(model, expected)
    check_detections(model, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "name", "folder"),
    [
        ("bccd_fasterrcnn", "fasterrcnn_resnet18_fpn", "bccd"),
        ("tiny_coco_maskrcnn", "maskrcnn_resnet18_fpn", "tiny_coco"),
    ],
)
def test_trained_detectors_find_what_torchvision_finds_in_all_images(file, name, folder, test_data):
    """Boxes within 0.05 pixels, scores within 1e-4, 99.9 % of the pixels of each mask."""
    stored = test_data / "detectors" / file
    facts = json.loads(stored.with_suffix(".json").read_text())
    model = create(name, weights=f"{stored}.safetensors", **{side: facts[side] for side in ("min_size", "max_size")})
    paths = [next((test_data / folder).rglob(image["file"])) for image in facts["images"]]
    for image, found in zip(facts["images"], detect(paths, model, score_threshold=0.05), strict=True):
        assert found.labels.tolist() == image["labels"]
        np.testing.assert_allclose(found.boxes, image["boxes"], atol=0.05)
        np.testing.assert_allclose(found.scores, image["scores"], atol=1e-4)
        if model.spec.mask_head:
            masks = np.load(f"{stored}_masks.npz")[image["file"]]
            assert (found.masks == masks).mean(axis=(1, 2)).min() >= 0.999
