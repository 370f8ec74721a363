"""Detectors on batches of images of different sizes, on small and large images, and in reduced precision."""

import keras
import numpy as np
import pytest
from support import REFERENCES, assert_same_detections, detections, narrow_detector, padded_images

from keras_resnet import create, preprocessing
from keras_resnet.models.cloning import clone

RANDOM = np.random.default_rng(0)


@pytest.mark.portable
@pytest.mark.parametrize("name", ["maskrcnn", "retinanet"])
def test_a_batch_equals_its_images_one_at_a_time(name):
    """On the same padded size, to which multiples of 32 pixels bring both images."""
    model, reference = narrow_detector(name)
    images = padded_images(reference)
    together = detections(model, images)
    for number in range(2):
        alone = detections(model, images[number : number + 1])
        assert_same_detections(alone, {key: values[number : number + 1] for key, values in together.items()})


@pytest.mark.parametrize("name", ["maskrcnn", "retinanet"])
@pytest.mark.parametrize("width", [64, 96])
def test_more_padding_changes_detections_as_in_torchvision(name, width):
    """Zeros that follow the image become other values after a batch norm, and anchors have other strides."""
    model, reference = narrow_detector(name)
    with np.load(REFERENCES / "detection_edges.npz") as file:
        expected = {key: file[f"{name}_{width}/{key}"] for key in ("boxes", "scores", "labels")}
    image = np.full((1, 64, width, 3), np.nan, "float32")
    image[0, :51, :50] = reference["x"][1, :51, :50]
    found = {key: values[0] for key, values in detections(model, image).items()}
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-4)
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=0.02)


@pytest.mark.parametrize("name", ["maskrcnn", "retinanet"])
def test_one_traced_graph_for_batches_of_any_size(name):
    tf = pytest.importorskip("tensorflow")
    model, _ = narrow_detector(name)
    traced = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, 3))])
    for shape in [(1, 64, 96), (2, 96, 64), (3, 32, 32), (1, 1, 1), (1, 1, 400), (2, 37, 5)]:
        images = RANDOM.normal(size=(*shape, 3)).astype("float32")
        images[-1, :, shape[2] // 2 + 1 :] = np.nan
        found = keras.tree.map_structure(np.asarray, dict(traced(tf.constant(images))))
        assert_same_detections(found, detections(model, images), boxes=1e-2, scores=1e-4)
        limit = np.where(np.isnan(images[:, 0, :, 0]), 0, 1).sum(axis=1)
        assert (found["boxes"][..., 2] <= limit[:, None]).all() and (found["boxes"] >= 0).all()
    assert traced.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("name", ["maskrcnn", "retinanet"])
def test_an_image_with_sides_of_4000_pixels(name):
    """Boxes are within the image, and among the largest that anchors have."""
    model, _ = narrow_detector(name)
    for shape in [(4000, 8), (8, 4000)]:
        found = detections(model, RANDOM.normal(size=(1, *shape, 3)).astype("float32"))
        count = int(found["count"][0])
        assert count > 0 and (found["boxes"][0, :count] <= [*shape[::-1]] * 2).all()
        assert np.ptp(found["boxes"][0, :count, ::2] if shape[1] == 4000 else found["boxes"][0, :count, 1::2]) > 512


@pytest.mark.parametrize("name", ["maskrcnn", "retinanet"])
def test_batch_norm_without_variance_and_epsilon_leaves_no_detections(name):
    """Division by zero makes all features infinite or NaN; neither reaches the detections."""
    model, reference = narrow_detector(name)
    model = clone(model)
    norm = model.get_layer("conv1_bn")
    assert norm.epsilon == 0
    norm.moving_variance.assign(np.zeros(norm.moving_variance.shape))
    found = detections(model, padded_images(reference))
    assert all(np.isfinite(values).all() for values in found.values())


@pytest.mark.parametrize(
    "weights, image", [("bccd_fasterrcnn", "bccd/JPEGImages"), ("tiny_coco_maskrcnn", "tiny_coco")]
)
def test_bfloat16_finds_the_same_objects(test_data, weights, image):
    """With trained weights: boxes, scores and non-maximum suppression stay float32; the features are rounded."""
    name = f"{weights.rpartition('_')[2]}_resnet18_fpn"
    path = test_data / "detectors" / f"{weights}.safetensors"
    photo = sorted((test_data / image).rglob("*.jpg"))[0]
    results = []
    for policy in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        model = create(name, weights=path, min_size=256, max_size=448, score_threshold=0.5)
        results.append(detections(model, preprocessing(model)(photo).images))
        assert {model.get_layer(layer).compute_dtype for layer in ("proposals", "detections")} == {"float32"}
    full, half = results
    assert {values.dtype.name for values in half.values()} <= {"float32", "int32"}
    count = int(full["count"][0])
    assert count > 0 and abs(count - int(half["count"][0])) <= 1 + 0.2 * count
    distances = abs(full["boxes"][0, :count, None] - half["boxes"][0, None]).max(axis=-1).min(axis=1)
    assert np.median(distances) < 4
