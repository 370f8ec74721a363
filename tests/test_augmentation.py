"""Augmentation of batches, against NumPy and closed forms."""

import keras
import numpy as np
import pytest

from keras_resnet import Recipe
from keras_resnet.data import augmentation
from keras_resnet.data.random_numbers import NumPyRandom


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.fixture(params=["uint8", "float32"])
def batch(request, generator):
    return generator.integers(0, 256, (64, 10, 12, 3)).astype(request.param)


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_pad_and_crop_equals_numpy(batch, generator, padding):
    u = generator.random((64, 2), "float32")
    u[0], u[1] = 0, np.nextafter(np.float32(1), np.float32(0))
    result = numpy(augmentation.pad_and_crop(batch, padding, u))
    assert result.dtype == batch.dtype
    padded = np.pad(batch, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = np.floor(u.astype("float64") * (2 * padding + 1)).astype(int)
    expected = [image[top : top + 10, left : left + 12] for image, (top, left) in zip(padded, corners, strict=True)]
    np.testing.assert_array_equal(result, expected)


def test_images_with_u_below_one_half_are_mirrored(batch, generator):
    u = generator.random(64, "float32")
    u[0] = 0.5
    result = numpy(augmentation.flip(batch, u))
    assert result.dtype == batch.dtype
    np.testing.assert_array_equal(result, np.where(u[:, None, None, None] < 0.5, batch[:, :, ::-1], batch))


def test_lighting_has_the_covariance_of_its_components(batch, generator):
    """The closed form p diag(std * component_std)^2 p^T; one colour per image."""
    normals = generator.standard_normal((20_000, 3), "float32")
    added = numpy(augmentation.lighting(np.zeros((20_000, 1, 1, 3), "uint8"), normals, 0.1))[:, 0, 0]
    components, stds = np.array(augmentation.COLOR_COMPONENTS), np.array(augmentation.COLOR_STDS)
    np.testing.assert_allclose(components.T @ components, np.eye(3), atol=2e-3)
    expected = components @ np.diag((255 * 0.1 * stds) ** 2) @ components.T
    np.testing.assert_allclose(np.cov(added.T), expected, rtol=0.05, atol=0.05)
    result = numpy(augmentation.lighting(batch, normals[:64]))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, batch + added[:64, None, None], atol=1e-4)


def labels_of(generator, count=64):
    return np.eye(5, dtype="float32")[generator.integers(0, 5, count)]


def test_mixup_blends_with_the_batch_reversed(batch, generator):
    images, labels = batch.astype("float32"), labels_of(generator)
    mixed, probabilities = map(numpy, augmentation.blend(images, labels, augmentation.mixup_weights(images, 0.3)))
    np.testing.assert_allclose(mixed, 0.3 * images + 0.7 * images[::-1], atol=1e-3)
    np.testing.assert_allclose(probabilities, 0.3 * labels + 0.7 * labels[::-1], atol=1e-6)


@pytest.mark.parametrize(
    ("weight", "u", "box"),
    [
        (
            0.75,
            (0.5, 0.5),
            (slice(3, 7), slice(3, 9)),
        ),  # half the sides: 5 x 6, int(5 / 2) on either side of the centre
        (0.75, (0.0, 0.99), (slice(0, 2), slice(8, 12))),
        (0.0, (0.5, 0.5), (slice(0, 10), slice(0, 12))),
        (1.0, (0.5, 0.5), (slice(0, 0), slice(0, 0))),
    ],
)
def test_cutmix_replaces_one_box(generator, weight, u, box):
    images, labels = generator.random((6, 10, 12, 3), "float32"), labels_of(generator, 6)
    weights = augmentation.cutmix_weights(images, weight, np.float32(u))
    mixed, probabilities = map(numpy, augmentation.blend(images, labels, weights))
    expected, area = images.copy(), np.zeros((10, 12))
    expected[:, *box], area[box] = images[::-1, *box], 1
    np.testing.assert_allclose(mixed, expected, atol=1e-6)
    np.testing.assert_allclose(probabilities, (1 - area.mean()) * labels + area.mean() * labels[::-1], atol=1e-6)


def sample_weights(mixup, cutmix, steps=400):
    """Weights of the first image in each pixel (steps, H, W), and its labels (steps, 2), for some steps."""
    images = np.stack([np.ones((20, 20, 1)), np.zeros((20, 20, 1))]).astype("float32")
    recipe = Recipe(epochs=1, mixup=mixup, cutmix=cutmix)
    numbers = (augmentation.sample_numbers(recipe, NumPyRandom(0, step, (2, slice(None)))) for step in range(steps))
    weights = (augmentation.mixing_weights(images, recipe, one) for one in numbers)
    results = [augmentation.blend(images, np.eye(2, dtype="float32"), one) for one in weights]
    return np.stack([numpy(p)[0, ..., 0] for p, _ in results]), np.stack([numpy(labels)[0] for _, labels in results])


@pytest.mark.parametrize(("mixup", "cutmix", "box_rate"), [(0.8, 0.0, 0), (0.0, 1.0, 1), (0.8, 1.0, 0.5)])
def test_mixup_and_cutmix_alternate_at_random(mixup, cutmix, box_rate):
    weights, labels = sample_weights(mixup, cutmix)
    np.testing.assert_allclose(weights.mean((1, 2)), labels[:, 0], atol=1e-5)
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
    boxes = np.isin(weights, (0, 1)).all((1, 2))  # or a blend with a weight that float32 rounds to 0 or 1
    assert boxes.mean() == pytest.approx(box_rate, abs=0.08)
    if not cutmix:
        variance = 1 / (4 * (2 * mixup + 1))  # of the beta distribution
        assert weights[:, 0, 0].var() == pytest.approx(variance, rel=0.2)


def test_erased_rectangles_have_the_published_areas_and_aspect_ratios(generator):
    images = np.ones((3000, 60, 80, 1), "float32")
    erased = numpy(augmentation.erase(images, generator.random((3000, 5), "float32"), 0.4))[..., 0] == 0
    chosen = erased[erased.any((1, 2))]
    assert len(chosen) / 3000 == pytest.approx(0.4, abs=0.05)
    rows, columns = chosen.any(2), chosen.any(1)
    np.testing.assert_array_equal(chosen, rows[:, :, None] & columns[:, None, :])
    heights, widths = rows.sum(1), columns.sum(1)
    for side in (rows, columns):
        assert (abs(np.diff(side.astype(int), axis=1)).sum(1) <= 2).all(), "one interval"
        assert side[:, 0].any() and side[:, -1].any(), "reaches the edges"
    areas, aspects = heights * widths / 4800, heights / widths
    assert areas.mean() == pytest.approx((0.02 + 0.33) / 2, abs=0.01)
    assert areas.min() > 0.015 and areas.max() < 0.335
    assert np.median(np.log(aspects)) == pytest.approx(np.log(0.3 * 3.3) / 2, abs=0.1)
    assert np.log(aspects).std() == pytest.approx(np.log(3.3 / 0.3) / 12**0.5, abs=0.05)


def test_erase_with_probability_zero_and_one(batch, generator):
    u = generator.random((64, 5), "float32")
    np.testing.assert_array_equal(numpy(augmentation.erase(batch, u, 0.0)), batch)
    erased = numpy(augmentation.erase(batch + 1, u, 1.0))
    assert erased.dtype == batch.dtype and (erased == 0).any((1, 2, 3)).all()


def test_smooth_labels_and_binarize():
    labels = augmentation.smooth_labels(np.eye(4, dtype="float32")[[2, 0]], 4, 0.1)
    expected = [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]
    np.testing.assert_allclose(numpy(labels), expected, rtol=1e-6)
    probabilities = np.array([[0.0, 0.2, 0.21, 0.59]], "float32")
    np.testing.assert_array_equal(numpy(augmentation.binarize(probabilities, 0.2)), [[0, 0, 1, 1]])


def test_augmentation_in_tf_data_equals_eager(batch, generator):
    tf = pytest.importorskip("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("keras.ops are those of another backend")
    u = generator.random((64, 5), "float32")

    def augment(images, u):
        cropped = augmentation.flip(augmentation.pad_and_crop(images, 2, u[:, :2]), u[:, 2])
        return augmentation.erase(augmentation.lighting(cropped, u[:, :3]), u, 0.5)

    mapped = next(iter(tf.data.Dataset.from_tensors((batch, u)).map(augment)))
    assert mapped.shape == batch.shape
    np.testing.assert_allclose(mapped, augment(batch, u), atol=1e-3)
