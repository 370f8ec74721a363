"""Windows of images: their laws, and that what is read is what Pillow shows of them."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resnet.data import crops
from keras_resnet.data.image_files import load_image
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.training.recipes import Recipe


@pytest.fixture(scope="module")
def photographs(test_data):
    return sorted((test_data / "imagenet_sample").glob("*.JPEG"))


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (37, 50, 3), "uint8")


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return tf.constant(file.getvalue())


def sampled(law, height, width, count=20_000):
    """(count, 4) windows of a law, height and width and seed -> window."""
    rows = tf.data.Dataset.range(count).map(lambda i: law(height, width, tf.stack([i, 7 * i])), tf.data.AUTOTUNE)
    return next(rows.batch(count).as_numpy_iterator())


@pytest.mark.parametrize(("interpolation", "most"), [("bilinear", 1), ("bicubic", 16), ("lanczos", 32)])
def test_the_middle_is_what_pillow_resizes_and_crops(photographs, interpolation, most):
    """Within one level of Preprocessing everywhere (0.16 on average); other kernels clip between Pillow's passes."""
    preprocessing = Preprocessing("tf", size=224, resize=256, interpolation=interpolation)
    for path in photographs if interpolation == "bilinear" else photographs[::10]:
        contents = tf.io.read_file(str(path))
        window = crops.test_window(*crops.image_shape(contents), preprocessing)
        ours = crops.read_window(contents, window, 224, 3, interpolation=interpolation).numpy()
        differences = abs(ours - (preprocessing(path)[0] + 1) * 127.5)
        assert differences.mean() < 0.4 and differences.max() < most + 0.01


@pytest.mark.parametrize(("size", "resize"), [(20, 24), (24, None), (40, 20), (37, 37)])
@pytest.mark.parametrize("shape", [(37, 50, 3), (51, 20, 3), (30, 30, 1)])
def test_any_preprocessing_of_pixels(size, resize, shape):
    """Also what is larger than the image: black surrounds it."""
    small = np.random.default_rng(0).integers(0, 256, (8, 8, shape[2]), "uint8")
    pixels = np.asarray(Image.fromarray(small.squeeze()).resize(shape[1::-1], Image.Resampling.BICUBIC)).reshape(shape)
    preprocessing = Preprocessing("tf", size=size, resize=resize, channels=shape[2])
    window = crops.test_window(*crops.image_shape(tf.constant(pixels)), preprocessing)
    ours = crops.read_window(tf.constant(pixels), window, size, shape[2]).numpy()
    assert abs(ours - (preprocessing(pixels)[0] + 1) * 127.5).max() < 1.01


def test_reading_part_of_a_file_is_reading_all_of_it(photographs):
    for number, path in enumerate(photographs):
        contents = tf.io.read_file(str(path))
        pixels = tf.io.decode_jpeg(contents, 3, dct_method="INTEGER_ACCURATE")
        assert crops.image_shape(contents) == crops.image_shape(pixels)
        window = crops.random_resized(*crops.image_shape(contents), (number, 0))
        part, all_of_it = (crops.read_window(given, window, 160, 3).numpy() for given in (contents, pixels))
        np.testing.assert_array_equal(part, all_of_it)
        fast = crops.read_window(contents, window, 160, 3, fast=True).numpy().astype(int)
        assert abs(fast - part).mean() < 4


@pytest.mark.parametrize(
    ("format", "mode"),
    [("PNG", mode) for mode in ("RGB", "L", "RGBA", "LA", "P", "1")]
    + [("GIF", mode) for mode in ("RGB", "L", "P")]
    + [("BMP", mode) for mode in ("RGB", "L", "RGBA")],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_other_formats_are_read_as_elsewhere(image, format, mode, channels):
    image = Image.fromarray(image).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(image[..., 0]))
    contents = encoded(image, format)
    assert [int(side) for side in crops.image_shape(contents)] == [37, 50]
    ours = crops.read_window(contents, crops.whole(37, 50), 37, channels)
    theirs = load_image(contents.numpy(), channels).resize((37, 37), Image.Resampling.BILINEAR)
    assert abs(ours.numpy().astype(int) - np.asarray(theirs).reshape(37, 37, channels)).max() <= 2


def test_a_window_of_its_own_size_is_a_crop(image):
    shown = crops.read_window(tf.constant(image), tf.constant([3.0, 5.0, 20.0, 20.0]), 20, 3)
    np.testing.assert_array_equal(shown, image[3:23, 5:25])


def test_what_is_no_image_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError):
        crops.read_window(tf.constant(b"no image"), crops.whole(3, 3), 3, 3)


# PYTHONPATH=tools python of the reference environment, torchvision 0.29, 40,000 windows of a tensor of zeros (3, H, W):
#   rows = [RandomResizedCrop.get_params(zeros, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(40_000)]
# (H, W) -> mean and deviation of area / (H W) and of log(width / height); mean of top / H and left / W
TORCHVISION = {
    (375, 500): (0.4342, 0.2172, 0.0317, 0.1640, 0.1394, 0.2174),
    (100, 400): (0.1919, 0.0759, 0.0697, 0.1724, 0.0874, 0.3868),
}


@pytest.mark.parametrize(("sides", "expected"), TORCHVISION.items())
def test_random_resized_has_the_law_of_torchvision(sides, expected):
    top, left, height, width = sampled(crops.random_resized, *sides).T
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() <= sides[0] and (left + width).max() <= sides[1]
    area, aspect = height * width / np.prod(sides), np.log(width / height)
    ours = (area.mean(), area.std(), aspect.mean(), aspect.std(), (top / sides[0]).mean(), (left / sides[1]).mean())
    np.testing.assert_allclose(ours, expected, atol=0.01)


def test_random_resized_is_uniform_in_a_image_where_everything_fits():
    """The closed form: up to half of a square's area always fits."""
    law = lambda height, width, seed: crops.random_resized(height, width, seed, (0.1, 0.5))  # noqa: E731
    _, _, height, width = sampled(law, 1000, 1000).T
    shares = (height * width / 1e6 - 0.1) / 0.4
    logs = np.log(width / height) / np.log(4 / 3)
    np.testing.assert_allclose(np.quantile(shares, (0.1, 0.25, 0.5, 0.9)), (0.1, 0.25, 0.5, 0.9), atol=0.02)
    np.testing.assert_allclose(np.quantile(logs, (0.1, 0.25, 0.5, 0.9)), (-0.8, -0.5, 0, 0.8), atol=0.04)


@pytest.mark.parametrize(("sides", "window"), [((10, 100), (0, 43, 10, 13)), ((101, 9), (44, 0, 12, 9))])
def test_random_resized_falls_back_to_the_middle(sides, window):
    """All of the area fits no image of such proportions."""
    law = lambda height, width, seed: crops.random_resized(height, width, seed, (1.0, 1.0))  # noqa: E731
    assert (sampled(law, *sides, count=5) == window).all()


def test_scale_jitter_crops_anywhere_from_a_side_between_both_ends():
    """256 to 480 pixels on the short side of 300 x 400, and 224 of them seen (He et al. 2015, sec. 3.4)."""
    law = lambda height, width, seed: crops.scale_jitter(height, width, (256, 480), 224, seed)  # noqa: E731
    top, left, height, width = sampled(law, 300, 400).T
    sides = 224 * 300 / height
    np.testing.assert_allclose(width, height, rtol=0.005)
    np.testing.assert_allclose(sides, np.round(sides), atol=1e-3)
    assert set(np.round(sides)) == set(range(256, 481))
    assert np.round(sides).mean() == pytest.approx(368, abs=3)
    for start, side, length in ((top, height, 300), (left, width, 400)):
        place = start / (length - side)
        assert place.min() == 0 and place.max() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(np.quantile(place, (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), atol=0.02)


@pytest.mark.parametrize("crop", crops.CROPS)
def test_a_crop_of_a_recipe_is_a_function_of_its_seed(crop):
    scale = (30, 60) if crop == "scale_jitter" else (0.08, 1.0)
    recipe = Recipe(epochs=1, crop=crop, scale=scale, train_size=20)
    preprocessing = Preprocessing("torch", size=24, resize=30)
    law = lambda height, width, seed: crops.CROPS[crop](height, width, recipe, preprocessing, seed)  # noqa: E731
    first, again = (sampled(law, 37, 50, count=20) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first, axis=0)) == (20 if crop in ("scale_jitter", "random_resized") else 1)
