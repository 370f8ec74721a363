"""Operations of RandAugment and TrivialAugment against Pillow, and the distributions of the policies."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from keras_resnet.data import pillow_operations, tensorflow_operations
from keras_resnet.data.auto_augment import POLICIES, RAND_AUGMENT, TRIVIAL_AUGMENT, Policy, rand_augment
from keras_resnet.data.random_numbers import NumPyRandom, TensorFlowRandom

LIBRARIES = {"tensorflow": tensorflow_operations, "pillow": pillow_operations}


@pytest.fixture(scope="module", params=["RGB", "L"])
def photograph(request):
    """A smooth image whose levels do not fill 0..255, with one dark corner."""
    noise = np.random.default_rng(0).integers(20, 230, (7, 9, 3), "uint8")
    image = Image.fromarray(noise).resize((90, 70), Image.Resampling.BICUBIC)
    image.paste((20, 25, 30), (0, 0, 12, 9))
    return image.convert(request.param)


def apply(library, name, image, strength, fill=128):
    """Result of an operation of TensorFlow or Pillow on a PIL image, as int (H, W, C)."""
    policy = SimpleNamespace(operations=[name], fill=fill)
    if library == "pillow":
        return levels(pillow_operations.apply_operation(image, policy, 0, strength))
    pixels = tf.constant(np.asarray(image).reshape(image.height, image.width, -1))
    result = tensorflow_operations.apply_operation(pixels, policy, tf.constant(0), tf.constant(strength, "float32"))
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


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", EXACT)
def test_operations_on_levels_equal_pillow(photograph, name, library):
    reference, strengths = EXACT[name]
    for strength in strengths:
        ours = apply(library, name, photograph, strength)
        assert abs(ours - levels(reference(photograph, strength))).max() == 0


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", AFFINE)
def test_affine_operations_equal_pillow(photograph, name, library):
    reference, strengths = AFFINE[name]
    for strength in strengths:
        differences = abs(apply(library, name, photograph, strength) - levels(reference(photograph, strength)))
        assert differences.mean() < 0.5
        assert (differences > 1).mean() < 0.02  # at the edges, which are blended with grey here


@pytest.mark.parametrize("name", ["shift_x", "shift_y"])
def test_shifts_by_whole_pixels(photograph, name):
    """Towards zero; black where TrivialAugment needs it."""
    axis, pixels = int(name == "shift_x"), levels(photograph)
    for library in LIBRARIES:
        np.testing.assert_array_equal(apply(library, name, photograph, -5.7, fill=0).take(range(5), axis), 0)
        shifted = apply(library, name, photograph, 5.7)
        length = pixels.shape[axis]
        np.testing.assert_array_equal(shifted.take(range(length - 5), axis), pixels.take(range(5, length), axis))


def test_images_of_one_level_are_unchanged():
    for level in (0, 77, 255):
        for name in ("auto_contrast", "equalize"):
            image = Image.new("RGB", (5, 4), (level,) * 3)
            assert (apply("tensorflow", name, image, 0) == level).all()


def strength(policy, name, magnitude, u):
    """The strength of an operation by its name."""
    index = list(POLICIES[policy].operations).index(name)
    return float(POLICIES[policy].strengths(*(np.array([value]) for value in (index, magnitude, u)))[0])


def test_strengths_equal_timm_and_torchvision():
    """timm's LEVEL_TO_ARG at magnitude 7, before rounding; the extremes of torchvision's _augmentation_space."""
    expected = {"rotate": 21, "posterize": 1.2, "solarize": 76.8, "solarize_add": 77, "shear_x": 0.21, "color": 1.63}
    for name, value in expected.items():
        assert strength("rand_augment", name, 0.7, 0.9) == pytest.approx(value)
    assert strength("rand_augment", "posterize", 0.7, 0.1) == pytest.approx(1.2)  # not symmetric
    assert strength("rand_augment", "color", 0.7, 0.1) == pytest.approx(0.37)
    assert strength("rand_augment", "translate_y", 0.7, 0.1) == pytest.approx(-0.315)
    for name, high in {"shear_y": 0.99, "shift_x": 32, "rotate": 135, "sharpness": 1.99, "solarize": 0}.items():
        assert strength("trivial_augment", name, 1.0, 0.9) == pytest.approx(high)
    # 8 - (torch.arange(31) / 5).round()
    bits = [int(np.ceil(strength("trivial_augment", "posterize", i / 30, 0))) for i in range(31)]
    assert bits == [8] * 3 + [7] * 5 + [6] * 5 + [5] * 5 + [4] * 5 + [3] * 5 + [2] * 3


def sample(policy, count, layers=1, magnitude=10.0, std=0.0):
    """(names of operations, strengths) of `count` images, both (count, layers); the name after the last is None."""
    recipe = SimpleNamespace(policy_layers=layers, policy_magnitude=magnitude, policy_std=std)
    indices, strengths = policy.sample(NumPyRandom(0, 0, (count, slice(None))), recipe)
    return np.array([*policy.operations, None])[np.asarray(indices)], np.asarray(strengths)


def test_rand_augment_chooses_operations_with_equal_probability():
    """Half of the images are unchanged; at the highest magnitude, the others have one of two strengths."""
    names, strengths = sample(POLICIES["rand_augment"], 15_000)
    results = Counter(names[:, 0])
    assert results.pop(None) == pytest.approx(7500, abs=250)
    assert list(results.values()) == pytest.approx([500] * 15, abs=100) and set(results) == set(RAND_AUGMENT)
    shears = strengths[names == "shear_x"]
    np.testing.assert_allclose(abs(shears), 0.3, rtol=1e-6)
    assert np.mean(shears > 0) == pytest.approx(0.5, abs=0.1)


def test_magnitudes_have_the_given_mean_and_deviation():
    """The factor of brightness is 1 +- 0.09 times a normal variable of mean 5 and standard deviation 1."""
    policy = Policy({"brightness": RAND_AUGMENT["brightness"]}, rand_augment)
    names, strengths = sample(policy, 3000, magnitude=5.0, std=1.0)
    brightness = strengths[names == "brightness"]
    for side in (brightness[brightness > 1] - 1, 1 - brightness[brightness < 1]):
        assert len(side) == pytest.approx(750, abs=100)
        assert side.mean() / 0.09 == pytest.approx(5, abs=0.15)
        assert side.std() / 0.09 == pytest.approx(1, abs=0.1)


def test_two_layers_leave_a_quarter_of_the_images_unchanged():
    names, _ = sample(POLICIES["rand_augment"], 4000, layers=2)
    assert names.shape == (4000, 2)
    assert np.mean([list(row) == [None, None] for row in names]) == pytest.approx(1 / 4, abs=0.03)


def test_trivial_augment_chooses_among_31_magnitudes():
    names, strengths = sample(POLICIES["trivial_augment"], 14_000)
    counts = Counter(names[:, 0])
    assert list(counts.values()) == pytest.approx([1000] * 14, abs=150) and set(counts) == set(TRIVIAL_AUGMENT)
    angles = np.unique(np.round(strengths[names == "rotate"], 3))
    np.testing.assert_allclose(angles, np.linspace(-135, 135, 61), atol=1e-3)


def test_single_images_are_sampled_like_batches():
    """Inside tf.data: the same shares of operations, and all of them computed."""
    policy, recipe = POLICIES["trivial_augment"], None
    image = tf.constant(np.random.default_rng(1).integers(0, 256, (12, 12, 3)).repeat(3, 0).repeat(3, 1), "uint8")

    def augment(position):
        indices, strengths = policy.sample(TensorFlowRandom.of_image(0, position), recipe)
        return tensorflow_operations.apply_operation(image, policy, indices[0], strengths[0])

    results = [
        result.tobytes() for result in tf.data.Dataset.range(1500).map(augment, tf.data.AUTOTUNE).as_numpy_iterator()
    ]
    # one in 14 by its operations, and some operations at low magnitudes
    assert 1 / 14 < Counter(results)[image.numpy().tobytes()] / 1500 < 3 / 14
    assert len(set(results)) > 300
