"""Layers of detectors at the edges, on every backend, against torchvision (references/detection_edges.npz)."""

import keras
import numpy as np
import pytest
from keras import ops
from support import REFERENCES

from keras_resnet.architecture.anchors import cell_anchors, grid_anchors
from keras_resnet.architecture.boxes import clip_boxes, decode_boxes, suppress_overlaps
from keras_resnet.architecture.detection_layers import DenseDetections, Detections, Proposals
from keras_resnet.architecture.regions import align_regions
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing

pytestmark = pytest.mark.portable
SIZES = np.float32([[64, 96], [48, 70]])
"""Heights and widths of the two images of a batch of 64 x 96 pixels."""
RATIOS = (0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def reference():
    """case -> {array: values}; numbered arrays, such as the maps of levels, are lists."""
    with np.load(REFERENCES / "detection_edges.npz") as file:
        arrays = dict(file)

    def arrays_of(case):
        found = {}
        for name, values in arrays.items():
            if name.startswith(f"{case}/"):
                key = name.removeprefix(f"{case}/")
                stem = key.rstrip("0123456789")
                found[key] = values
                if key != stem:
                    found.setdefault(stem, []).append(values)
        return found

    return arrays_of


def as_numpy(*tensors):
    return [ops.convert_to_numpy(tensor) for tensor in tensors]


def compiled(function):
    """The function; on JAX compiled once as a whole, which is faster than each of its operations."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function)


def assert_same_detections(boxes, scores, labels, count, expected, atol=1e-4):
    """Each image has the expected detections in the same order, and zeros after them."""
    boxes, scores, labels, count = as_numpy(boxes, scores, labels, count)
    for image, number in enumerate(count):
        assert number == len(expected["boxes"][image])
        np.testing.assert_allclose(boxes[image, :number], expected["boxes"][image], rtol=1e-6, atol=atol)
        np.testing.assert_allclose(scores[image, :number], expected["scores"][image], atol=1e-6)
        np.testing.assert_array_equal(labels[image, :number], expected["labels"][image])
        assert not boxes[image, number:].any() and not scores[image, number:].any() and not labels[image, number:].any()


@pytest.mark.parametrize("threshold, batch", [(0.3, 1), (0.5, 2), (0.6, 2), (0.7, 1)])
def test_equal_scores_and_overlaps_equal_to_the_threshold(reference, threshold, batch):
    """The same boxes in the same order as torchvision, also 0.6, which float32 rounds up, and boxes without area."""
    case = reference(f"nms_{threshold}")
    suppress = compiled(lambda boxes, scores, groups: suppress_overlaps(boxes, scores, threshold, 200, groups))
    repeated = [np.repeat(case[name][None], batch, axis=0) for name in ("boxes", "scores", "groups")]
    boxes, scores, groups = map(ops.convert_to_tensor, repeated)
    indices, valid = as_numpy(*suppress(boxes, scores, ops.cast(groups, "int32")))
    for kept, is_kept in zip(indices, valid, strict=True):
        np.testing.assert_array_equal(kept[is_kept], case["kept"])
        assert is_kept[: len(case["kept"])].all()


def test_overlaps_of_images_without_boxes():
    """An image without a box keeps none; another one in the same batch keeps its own; NaN is no overlap."""
    boxes = np.float32([[[0, 0, 4, 4], [np.nan] * 4], [[0, 0, 4, 4], [0, 0, 4, 4]]])
    scores = np.float32([[-1, -1], [0, 0.5]])
    indices, valid = as_numpy(*suppress_overlaps(*map(ops.convert_to_tensor, (boxes, scores)), 0.5, 3))
    assert valid.tolist() == [[False] * 3, [True, False, False]] and indices[1, 0] == 1


@pytest.mark.parametrize("weights", [(1.0,) * 4, (10.0, 10.0, 5.0, 5.0)])
def test_offsets_that_are_huge_infinite_or_nan(reference, weights):
    case = reference(f"decode_{weights[0]}")
    decoded = decode_boxes(*map(ops.convert_to_tensor, (case["deltas"], case["boxes"])), weights)
    np.testing.assert_allclose(*as_numpy(decoded), case["decoded"], rtol=1e-5, atol=1e-3)
    clipped = clip_boxes(decoded[None], ops.convert_to_tensor(SIZES[:1]))
    finite = np.isfinite(case["decoded"]).all(axis=1)
    assert np.isfinite(as_numpy(clipped)[0][0][finite]).all()


def test_regions_without_sides_and_beyond_the_border(reference):
    case = reference("align")
    images, count = case["boxes"].shape[:2]
    arrays = case["map"], case["boxes"].reshape(-1, 4), np.repeat(np.arange(images, dtype="int32"), count)
    maps, boxes, image = keras.tree.map_structure(ops.convert_to_tensor, (list(arrays[0]), *arrays[1:]))
    align = compiled(lambda maps, boxes, image: align_regions(maps, boxes, image, first_level=2, size=7))
    (regions,) = as_numpy(align(maps, boxes, image))
    np.testing.assert_allclose(regions.reshape(case["regions"].shape), case["regions"], atol=1e-5)


def test_more_candidates_and_proposals_than_anchors(reference):
    """Infinite and NaN logits and offsets; all 378 anchors are candidates, and the best 100 are torchvision's."""
    case = reference("proposals")
    anchors = {"anchor_sizes": ((8,), (16,), (32,)), "anchor_ratios": RATIOS}
    layer = Proposals(candidates=1000, proposals=1000, nms_threshold=0.7, **anchors)
    boxes, count = as_numpy(
        *compiled(layer)(
            {
                "images": np.zeros((2, 64, 96, 3), "float32"),
                "sizes": SIZES,
                "objectness": case["objectness"],
                "deltas": case["deltas"],
            }
        )
    )
    for found, number, expected in zip(boxes, count, case["boxes"], strict=True):
        assert len(expected) == 100 < number < 378
        np.testing.assert_allclose(found[:100], expected, rtol=1e-6, atol=1e-4)
        assert not found[number:].any()


@pytest.mark.parametrize("detections", [40, 300])
def test_classes_and_images_without_detections(reference, detections):
    case = reference("detections")
    layer = Detections(score_threshold=0.05, nms_threshold=0.5, detections=detections)
    logits, deltas = (case[name].reshape(-1, case[name].shape[-1]) for name in ("logits", "deltas"))
    regions = {"proposals": case["proposals"], "count": np.int32([60, 60]), "sizes": SIZES}
    found = compiled(layer)(regions | {"scores": logits, "deltas": deltas})
    assert as_numpy(found[3])[0][1] == 0 and 4 not in as_numpy(found[2])[0]
    if detections == 40:
        assert_same_detections(*found, case)
    else:  # more than there are: the same ones first
        for values, name in zip(found, ("boxes", "scores", "labels"), strict=False):
            np.testing.assert_allclose(as_numpy(values)[0][0, :40], case[name][0], rtol=1e-6, atol=1e-4)


def test_dense_detections_of_degenerate_boxes(reference):
    """RetinaNet keeps boxes without sides, as torchvision does."""
    case = reference("dense")
    anchors = {"anchor_sizes": ((8,), (16,)), "anchor_ratios": RATIOS}
    layer = DenseDetections(
        classes=4, candidates=1000, score_threshold=0.05, nms_threshold=0.5, detections=30, **anchors
    )
    images = np.zeros((2, 64, 96, 3), "float32")
    found = compiled(layer)({"images": images, "sizes": SIZES, "scores": case["logits"], "deltas": case["deltas"]})
    assert_same_detections(*found, case)


def test_sides_are_rounded_as_by_torchvision(reference):
    sides = reference("resized")["sides"].tolist()
    resized = DetectionPreprocessing(min_size=800, max_size=1333).resized
    assert [list(resized(height, width)) for height, width, *_ in sides] == [row[2:] for row in sides]
    assert resized(3, 4000) == (1, 1333)  # torchvision fails: 0.9997 pixels


def test_anchors_and_regions_of_an_image_of_4000_pixels():
    """The last anchor is at the last position, and the mean of a linear map in a box is its value at the centre."""
    cell = cell_anchors((512,), RATIOS)
    (anchors,) = as_numpy(compiled(lambda cell: grid_anchors(cell, (63, 63), (4000, 4000)))(cell))
    assert anchors.shape == (63 * 63 * 3, 4) and anchors[-2].tolist() == [
        62 * 63 + side for side in (-256, -256, 256, 256)
    ]
    x = np.broadcast_to(np.arange(125, dtype="float32")[None, :, None], (125, 125, 1))
    box = np.float32([[3200, 3200, 3900, 3960]])
    align = compiled(lambda maps, boxes: align_regions([maps], boxes, ops.zeros(1, "int32"), 5, 7))
    (regions,) = as_numpy(align(*map(ops.convert_to_tensor, (x[None], box))))
    assert np.isclose(regions.mean(), (3200 + 3900) / 2 / 32, atol=1e-3)
