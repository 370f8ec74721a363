"""Operations of RandAugment and TrivialAugment against Pillow, and the distributions of the policies."""

from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from keras_resnet.data import auto_augment
from keras_resnet.data.auto_augment import RAND_AUGMENT, TRIVIAL_AUGMENT, Strength


@pytest.fixture(scope="module", params=["RGB", "L"])
def photograph(request):
    """A smooth image whose levels do not fill 0..255, with one dark corner."""
    noise = np.random.default_rng(0).integers(20, 230, (7, 9, 3), "uint8")
    image = Image.fromarray(noise).resize((90, 70), Image.Resampling.BICUBIC)
    image.paste((20, 25, 30), (0, 0, 12, 9))
    return image.convert(request.param)


def apply(operation, image, *arguments):
    """Result of an operation on a PIL image, as int (H, W, C)."""
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    result = operation(tf.constant(pixels), *arguments)
    assert result.dtype == tf.uint8 and result.shape == pixels.shape
    return result.numpy().astype(int)


def levels(image):
    return np.asarray(image).astype(int).reshape(image.height, image.width, -1)


def affine(image, *matrix):
    grey = (128,) * len(image.getbands())
    return image.transform(image.size, Image.AFFINE, matrix, Image.BILINEAR, fillcolor=grey)


def brighter_darks(image, added):
    return image.point([i + added if i < 128 else i for i in range(256)] * len(image.getbands()))


EXACT = {
    "auto_contrast": (lambda image, _: ImageOps.autocontrast(image), [0]),
    "equalize": (lambda image, _: ImageOps.equalize(image), [0]),
    "invert": (lambda image, _: ImageOps.invert(image), [0]),
    "posterize": (ImageOps.posterize, [1, 3, 4, 8]),
    "solarize": (ImageOps.solarize, [0, 77, 128, 255, 256]),
    "solarize_add": (brighter_darks, [0, 33, 110]),
    "color": (lambda image, factor: ImageEnhance.Color(image).enhance(factor), [0.1, 0.5, 1.0, 1.4, 1.9]),
    "contrast": (lambda image, factor: ImageEnhance.Contrast(image).enhance(factor), [0.1, 0.5, 1.0, 1.4, 1.9]),
    "brightness": (lambda image, factor: ImageEnhance.Brightness(image).enhance(factor), [0.1, 0.5, 1.0, 1.9]),
    "sharpness": (lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor), [0.1, 0.5, 1.0, 1.4, 1.9]),
}
AFFINE = {
    "rotate": (
        lambda p, degrees: p.rotate(degrees, Image.BILINEAR, fillcolor=(128,) * len(p.getbands())),
        [-30, 21, 90],
    ),
    "shear_x": (lambda image, factor: affine(image, 1, factor, 0, 0, 1, 0), [-0.3, 0.21]),
    "shear_y": (lambda image, factor: affine(image, 1, 0, 0, factor, 1, 0), [-0.3, 0.21]),
    "translate_x": (lambda image, share: affine(image, 1, 0, share * image.width, 0, 1, 0), [-0.45, 0.31]),
    "translate_y": (lambda image, share: affine(image, 1, 0, 0, 0, 1, share * image.height), [-0.45, 0.31]),
}


@pytest.mark.parametrize("name", EXACT)
def test_operations_on_levels_equal_pillow(photograph, name):
    reference, strengths = EXACT[name]
    for strength in strengths:
        ours = apply(RAND_AUGMENT[name][0], photograph, tf.constant(strength, "float32"))
        assert abs(ours - levels(reference(photograph, strength))).max() == 0


@pytest.mark.parametrize("name", AFFINE)
def test_affine_operations_equal_pillow(photograph, name):
    reference, strengths = AFFINE[name]
    for strength in strengths:
        ours = apply(RAND_AUGMENT[name][0], photograph, tf.constant(strength, "float32"))
        differences = abs(ours - levels(reference(photograph, strength)))
        assert differences.mean() < 0.5
        assert (differences > 1).mean() < 0.02  # at the edges, which are blended with grey here


def test_images_of_one_level_are_unchanged():
    for level in (0, 77, 255):
        for name in ("auto_contrast", "equalize"):
            image = Image.new("RGB", (5, 4), (level,) * 3)
            assert (apply(RAND_AUGMENT[name][0], image, 0) == level).all()


def test_strengths_equal_timm_and_torchvision():
    """timm's LEVEL_TO_ARG at magnitude 7, before rounding; the extremes of torchvision's _augmentation_space."""
    expected = {"rotate": 21, "posterize": 1.2, "solarize": 76.8, "solarize_add": 77, "shear_x": 0.21, "color": 1.63}
    for name, strength in expected.items():
        assert float(RAND_AUGMENT[name][1](tf.constant(0.7), 0.9)) == pytest.approx(strength)
    assert float(RAND_AUGMENT["color"][1](tf.constant(0.7), 0.1)) == pytest.approx(0.37)
    assert float(RAND_AUGMENT["translate_y"][1](tf.constant(0.7), 0.1)) == pytest.approx(-0.315)
    for name, high in {"shear_y": 0.99, "shift_x": 32, "rotate": 135, "sharpness": 1.99, "solarize": 0}.items():
        assert float(TRIVIAL_AUGMENT[name][1](tf.constant(1.0), 0.9)) == pytest.approx(high)
    # 8 - (torch.arange(31) / 5).round()
    bits = [int(np.ceil(TRIVIAL_AUGMENT["posterize"][1](tf.constant(i / 30), 0))) for i in range(31)]
    assert bits == [8] * 3 + [7] * 5 + [6] * 5 + [5] * 5 + [4] * 5 + [3] * 5 + [2] * 3


def apply_policy(policy, image, count):
    """Results of a policy for an image with `count` seeds, in tf.data, as bytes."""
    seeds = tf.data.Dataset.range(count).map(lambda i: policy(image, tf.stack([i, i * i])), tf.data.AUTOTUNE)
    return [result.tobytes() for result in seeds.as_numpy_iterator()]


@pytest.fixture
def pixels():
    return tf.constant(np.random.default_rng(1).integers(0, 256, (12, 12, 3)).repeat(3, 0).repeat(3, 1), "uint8")


def test_rand_augment_applies_operations_with_equal_probability(pixels):
    """At the highest magnitude: half of the images are unchanged; the others have one operation in one direction."""
    results = Counter(apply_policy(lambda image, seed: auto_augment.rand_augment(image, 1, 10, 0, seed), pixels, 1500))
    assert results.pop(pixels.numpy().tobytes()) == pytest.approx(750, abs=80)
    rows = [
        operation(pixels, strength(tf.constant(1.0), u)).numpy().tobytes()
        for operation, strength in RAND_AUGMENT.values()
        for u in (0.1, 0.9)
    ]
    assert set(results) == set(rows)
    expected = Counter(rows)  # in 30ths: operations without a direction occur twice
    for result, count in results.items():
        assert count == pytest.approx(25 * expected[result], abs=30 * expected[result] ** 0.5)


def test_magnitudes_have_the_given_mean_and_deviation(pixels, monkeypatch):
    """The factor of brightness is 1 +- 0.09 times a normal variable of mean 5 and standard deviation 1."""
    monkeypatch.setattr(auto_augment, "RAND_AUGMENT", {"brightness": RAND_AUGMENT["brightness"]})
    grey = tf.fill(pixels.shape, tf.constant(100, "uint8"))
    results = apply_policy(lambda image, seed: auto_augment.rand_augment(image, 1, 5, 1.0, seed), grey, 1500)
    brightness = np.array([result[0] for result in results]) + 0.5
    for side in (brightness[brightness > 101], 200 - brightness[brightness < 100]):
        strengths = (side - 100) / 9
        assert len(side) == pytest.approx(375, abs=70)
        assert strengths.mean() == pytest.approx(5, abs=0.25)
        assert strengths.std() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("name", ["rand_augment", "trivial_augment"])
def test_equal_seeds_give_equal_images(pixels, name):
    policies = {
        "rand_augment": lambda image, seed: auto_augment.rand_augment(image, 2, 7.0, 0.5, seed),
        "trivial_augment": auto_augment.trivial_augment,
    }
    results = apply_policy(policies[name], pixels, 60)
    assert results == apply_policy(policies[name], pixels, 60)
    assert len(set(results)) > 30


def test_two_layers_leave_a_quarter_of_the_images_unchanged(pixels):
    results = Counter(apply_policy(lambda image, seed: auto_augment.rand_augment(image, 2, 10, 0, seed), pixels, 800))
    # and an image that is inverted twice, by either of two operations of 15
    expected = 800 * (1 / 4 + 1 / 4 * (2 / 15) ** 2)
    assert results[pixels.numpy().tobytes()] == pytest.approx(expected, abs=60)


def test_trivial_augment_leaves_some_images_unchanged(pixels):
    """One in 14 by its operations, and some operations at low magnitudes."""
    results = Counter(apply_policy(auto_augment.trivial_augment, pixels, 1500))
    assert 1 / 14 < results[pixels.numpy().tobytes()] / 1500 < 3 / 14


def test_strength_is_not_symmetric_by_default():
    assert float(Strength(4, 0)(tf.constant(0.5), 0.1)) == float(Strength(4, 0)(tf.constant(0.5), 0.9)) == 2
