"""Crop boxes: their distributions, and that crops of files are those of Pillow."""

import io
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resnet.data import crops, tensorflow_images
from keras_resnet.data.augmentation import TRAIN_CROPS
from keras_resnet.data.image_files import load_image
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.random_numbers import NumPyRandom, TensorFlowRandom
from keras_resnet.training.recipe import Recipe


@pytest.fixture(scope="module")
def photographs(test_data):
    return sorted((test_data / "imagenet_sample").glob("*.JPEG"))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (37, 50, 3), "uint8")


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return tf.constant(file.getvalue())


def sample_boxes(crop_box, height, width, count=20_000, step=0):
    """(count, 4) boxes of a function (height, width, random) -> crop box, for a batch."""
    random = NumPyRandom(0, step, (count, slice(None)))
    return np.asarray(crop_box(np.full(count, height), np.full(count, width), random))


def random_resized(scale=(0.08, 1.0)):
    return lambda height, width, random: crops.random_resized_box(height, width, 224, scale, random)


@pytest.mark.parametrize(("interpolation", "tolerance"), [("bilinear", 1), ("bicubic", 16), ("lanczos", 32)])
def test_center_crop_equals_pillow(photographs, interpolation, tolerance):
    """Within one level of Preprocessing (0.16 on average); with other kernels, Pillow clips between its two passes."""
    preprocessing = Preprocessing("tf", size=224, resize=256, interpolation=interpolation)
    for path in photographs if interpolation == "bilinear" else photographs[::10]:
        contents = tf.io.read_file(str(path))
        box = crops.test_crop_box(*tensorflow_images.image_size(contents), preprocessing)
        ours = tensorflow_images.read_crop(contents, box, 224, 3, interpolation=interpolation).numpy()
        differences = abs(ours - (preprocessing(path)[0] + 1) * 127.5)
        assert differences.mean() < 0.4 and differences.max() < tolerance + 0.01


@pytest.mark.parametrize(("size", "resize"), [(20, 24), (24, None), (40, 20), (37, 37)])
@pytest.mark.parametrize("shape", [(37, 50, 3), (51, 20, 3), (30, 30, 1)])
def test_crop_of_pixels_equals_any_preprocessing(size, resize, shape):
    """Also a crop larger than the image, which is surrounded by black."""
    small = np.random.default_rng(0).integers(0, 256, (8, 8, shape[2]), "uint8")
    pixels = np.asarray(Image.fromarray(small.squeeze()).resize(shape[1::-1], Image.Resampling.BICUBIC)).reshape(shape)
    preprocessing = Preprocessing("tf", size=size, resize=resize, channels=shape[2])
    box = crops.test_crop_box(*tensorflow_images.image_size(tf.constant(pixels)), preprocessing)
    ours = tensorflow_images.read_crop(tf.constant(pixels), box, size, shape[2]).numpy()
    assert abs(ours - (preprocessing(pixels)[0] + 1) * 127.5).max() < 1.01


def test_partly_decoded_jpeg_equals_the_crop_of_the_decoded_jpeg(photographs):
    for number, path in enumerate(photographs):
        contents = tf.io.read_file(str(path))
        pixels = tf.io.decode_jpeg(contents, 3, dct_method="INTEGER_ACCURATE")
        assert tensorflow_images.image_size(contents) == tensorflow_images.image_size(pixels)
        box = random_resized()(*tensorflow_images.image_size(contents), TensorFlowRandom.of_image(0, number))
        part, expected = (tensorflow_images.read_crop(image, box, 160, 3).numpy() for image in (contents, pixels))
        np.testing.assert_array_equal(part, expected)
        fast = tensorflow_images.read_crop(contents, box, 160, 3, fast=True).numpy().astype(int)
        assert abs(fast - part).mean() < 4


@pytest.mark.parametrize(
    ("format", "mode"),
    [("PNG", mode) for mode in ("RGB", "L", "RGBA", "LA", "P", "1")]
    + [("GIF", mode) for mode in ("RGB", "L", "P")]
    + [("BMP", mode) for mode in ("RGB", "L", "RGBA")],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_other_formats_equal_load_image(pixels, format, mode, channels):
    image = Image.fromarray(pixels).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(pixels[..., 0]))
    contents = encoded(image, format)
    assert [int(side) for side in tensorflow_images.image_size(contents)] == [37, 50]
    ours = tensorflow_images.read_crop(contents, crops.whole_image_box(37, 50), 37, channels)
    theirs = load_image(contents.numpy(), channels).resize((37, 37), Image.Resampling.BILINEAR)
    assert abs(ours.numpy().astype(int) - np.asarray(theirs).reshape(37, 37, channels)).max() <= 2


def test_box_of_the_output_size_is_not_resampled(pixels):
    cropped = tensorflow_images.read_crop(tf.constant(pixels), tf.constant([3.0, 5.0, 20.0, 20.0]), 20, 3)
    np.testing.assert_array_equal(cropped, pixels[3:23, 5:25])


def test_other_contents_raise():
    with pytest.raises(tf.errors.InvalidArgumentError):
        tensorflow_images.read_crop(tf.constant(b"no image"), crops.whole_image_box(3, 3), 3, 3)


# PYTHONPATH=tools python of the reference environment, torchvision 0.29, 40,000 boxes of a tensor of zeros (3, H, W):
#   rows = [RandomResizedCrop.get_params(zeros, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(40_000)]
# (H, W) -> mean and deviation of area / (H W) and of log(width / height); mean of top / H and left / W
TORCHVISION = {
    (375, 500): (0.4342, 0.2172, 0.0317, 0.1640, 0.1394, 0.2174),
    (100, 400): (0.1919, 0.0759, 0.0697, 0.1724, 0.0874, 0.3868),
}


@pytest.mark.parametrize(("sides", "expected"), TORCHVISION.items())
def test_random_resized_box_has_the_distribution_of_torchvision(sides, expected):
    top, left, height, width = sample_boxes(random_resized(), *sides).T
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() <= sides[0] and (left + width).max() <= sides[1]
    area, aspect = height * width / np.prod(sides), np.log(width / height)
    ours = (area.mean(), area.std(), aspect.mean(), aspect.std(), (top / sides[0]).mean(), (left / sides[1]).mean())
    np.testing.assert_allclose(ours, expected, atol=0.01)


def test_random_resized_box_is_uniform_if_every_box_fits():
    """The closed form: boxes of up to half of a square's area always fit."""
    _, _, height, width = sample_boxes(random_resized((0.1, 0.5)), 1000, 1000).T
    areas = (height * width / 1e6 - 0.1) / 0.4
    logs = np.log(width / height) / np.log(4 / 3)
    np.testing.assert_allclose(np.quantile(areas, (0.1, 0.25, 0.5, 0.9)), (0.1, 0.25, 0.5, 0.9), atol=0.02)
    np.testing.assert_allclose(np.quantile(logs, (0.1, 0.25, 0.5, 0.9)), (-0.8, -0.5, 0, 0.8), atol=0.04)


@pytest.mark.parametrize(("sides", "box"), [((10, 100), (0, 43, 10, 13)), ((101, 9), (44, 0, 12, 9))])
def test_random_resized_box_falls_back_to_the_center(sides, box):
    """No box of the whole area has an allowed aspect ratio."""
    assert (sample_boxes(random_resized((1.0, 1.0)), *sides, count=5) == box).all()


def test_scale_jitter_box_is_uniform_in_size_and_position():
    """A crop of 224 after the shorter side of 300 x 400 is resized to 256..480 (He et al. 2015, sec. 3.4)."""
    jitter = partial(crops.scale_jitter_box, size=224, scale=(256, 480))
    top, left, height, width = sample_boxes(lambda h, w, random: jitter(h, w, random=random), 300, 400).T
    sides = 224 * 300 / height
    np.testing.assert_allclose(width, height, rtol=0.005)
    np.testing.assert_allclose(sides, np.round(sides), atol=1e-3)
    assert set(np.round(sides)) == set(range(256, 481))
    assert np.round(sides).mean() == pytest.approx(368, abs=3)
    for start, side, length in ((top, height, 300), (left, width, 400)):
        position = start / (length - side)
        assert position.min() == 0 and position.max() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(np.quantile(position, (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), atol=0.02)


@pytest.mark.parametrize("crop", [name for name, row in TRAIN_CROPS.items() if row.for_classifiers])
def test_train_crop_is_a_function_of_its_random_numbers(crop):
    scale = (30, 60) if crop == "scale_jitter" else (0.08, 1.0)
    recipe = Recipe(epochs=1, crop=crop, scale=scale, train_size=20)
    preprocessing = Preprocessing("torch", size=24, resize=30)
    crop_box = lambda h, w, random: TRAIN_CROPS[crop].crop_box(h, w, recipe, preprocessing, random)  # noqa: E731
    first, again = (sample_boxes(crop_box, 37, 50, count=20) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first, axis=0)) == (20 if crop in ("scale_jitter", "random_resized") else 1)


@pytest.mark.parametrize(
    "function", [random_resized((0.3, 1.0)), partial(crops.scale_jitter_box, size=24, scale=(30, 60))]
)
def test_boxes_of_single_images_have_the_distribution_of_boxes_of_batches(function):
    """Inside tf.data, one by one, and as a batch: means and deviations of 4,000 boxes."""

    def box_of_image(position):
        return function(37, 50, random=TensorFlowRandom.of_image(0, position))

    single = next(tf.data.Dataset.range(4000).map(box_of_image, tf.data.AUTOTUNE).batch(4000).as_numpy_iterator())
    batch = sample_boxes(lambda h, w, random: function(h, w, random=random), 37, 50, count=4000)
    np.testing.assert_allclose(single.mean(axis=0), batch.mean(axis=0), atol=0.06 * batch.std(axis=0).max())
    np.testing.assert_allclose(single.std(axis=0), batch.std(axis=0), rtol=0.06)
