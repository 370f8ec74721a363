"""Images that EXIF says are stored turned or mirrored: upright in training and testing, compared with Pillow."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

from keras_resnet import Recipe, load_dataset
from keras_resnet.data import datasets
from keras_resnet.data.datasets import Dataset, Split, Stream
from keras_resnet.data.image_files import exif_orientation
from keras_resnet.data.pipelines import evaluation_batches, training_batches
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.tensorflow_images import image_size, read_crop
from keras_resnet.data.tensorflow_orientations import exif_orientation as exif_orientation_in_graph
from keras_resnet.normalization import Normalization

UNNORMALISED = Normalization(divisor=1.0)
CROPPED = Preprocessing(UNNORMALISED, size=20, resize=24)
ORIENTATIONS = range(1, 9)


def encode(orientation, format="JPEG", size=(30, 46), **options):
    """A smooth random image, as a file that EXIF says is stored in an orientation; another one for each."""
    pixels = np.random.default_rng(orientation).integers(0, 256, (4, 6, 3), "uint8")
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)
    image.save(file, format, exif=exif, **options)
    return file.getvalue()


def upright(contents):
    """(H, W, C) uint8, by Pillow."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(contents))).convert("RGB"))


@pytest.fixture(scope="module")
def files():
    return [encode(orientation, quality=95) for orientation in ORIENTATIONS]


def as_split(files):
    return Split(np.array(files, object), np.arange(len(files)), np.array(ORIENTATIONS, "uint8"))


def as_stream(files):
    import tensorflow as tf

    return Stream(lambda seed: tf.data.Dataset.from_tensor_slices((files, np.arange(len(files)))), len(files))


def as_dataset(split, preprocessing=CROPPED):
    return Dataset("turned", split, split, tuple("abcdefgh"), preprocessing)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_every_crop_equals_the_crop_of_the_upright_image(orientation, format):
    """Also of boxes that lie between pixels and reach beyond the image."""
    contents = encode(orientation, format)
    assert exif_orientation(contents) == orientation == exif_orientation_in_graph(contents)
    expected_pixels = upright(contents)
    import tensorflow as tf

    size = image_size(tf.constant(contents), orientation)
    assert tuple(map(int, size)) == expected_pixels.shape[:2]
    for box in ([0, 0, *expected_pixels.shape[:2]], [3, 5, 20, 20], [2.5, 4.25, 17, 22.5], [-3, 10, 30, 20]):
        ours = read_crop(tf.constant(contents), tf.constant(box, "float32"), 20, 3, orientation=orientation)
        expected = read_crop(tf.constant(expected_pixels), tf.constant(box, "float32"), 20, 3)
        assert np.abs(ours.numpy().astype(int) - expected.numpy()).max() <= 1, box


@pytest.mark.parametrize("kind", [as_split, as_stream])
def test_test_images_are_upright_as_in_pillow(kind, files):
    dataset = as_dataset(kind(files))
    ((images, _),) = evaluation_batches(dataset.test, dataset, 8)
    assert np.abs(np.asarray(images) - CROPPED(files)).mean() < 0.5


@pytest.mark.parametrize("kind", [as_split, as_stream])
@pytest.mark.parametrize("crop", ["none", "random_resized"])
def test_training_images_are_those_of_upright_pixels(kind, files, crop):
    """The same crops of the same images as from files without EXIF that Pillow has turned."""
    recipe = Recipe(epochs=1, batch_size=8, crop=crop)
    lossless = []
    for contents in files:
        file = io.BytesIO()
        Image.fromarray(upright(contents)).save(file, "PNG")
        lossless.append(file.getvalue())
    turned = kind(files)
    plain = Split(np.array(lossless, object), np.arange(8)) if kind is as_split else kind(lossless)
    for (x, y), (other_x, other_y) in zip(
        *(training_batches(as_dataset(split), recipe, 3, seed=1) for split in (turned, plain)), strict=True
    ):
        np.testing.assert_array_equal(y, other_y)
        assert np.abs(np.asarray(x) - other_x).mean() < 3  # a fast inverse DCT


@pytest.mark.parametrize("memory", [0, 0.25])
def test_images_of_a_folder_are_upright_whether_they_fit_in_memory_or_not(memory, files, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MEMORY_FRACTION", memory)
    for name in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / name / label).mkdir(parents=True)
            for orientation, contents in zip(ORIENTATIONS, files, strict=True):
                (tmp_path / name / label / f"{orientation}.jpg").write_bytes(contents)
    dataset = replace(load_dataset(tmp_path), preprocessing=CROPPED)
    assert dataset.train.has_paths == (memory == 0)
    assert dataset.test.orientations.tolist() == [*ORIENTATIONS] * 2
    ((images, _),) = evaluation_batches(dataset.test, dataset, 16)
    assert np.abs(np.asarray(images) - CROPPED(files * 2)).mean() < 0.5


@pytest.mark.parametrize("orientations", [np.ones(3, "uint8"), np.ones(8, int), np.arange(8).astype("uint8")])
def test_invalid_orientations_raise(orientations, files):
    with pytest.raises(ValueError, match="`orientations` should be 8 numbers from 1 to 8"):
        Split(np.array(files, object), np.zeros(8, int), orientations)


def test_orientations_follow_their_images(files):
    split = as_split(files)
    assert split[3:5].orientations.tolist() == [4, 5] and split[[7]].orientations.tolist() == [8]


@pytest.mark.parametrize("value", [0, 9, 3000])
def test_other_values_are_ignored_as_in_pillow(value):
    contents = encode(value)
    assert exif_orientation(contents) == 1
    np.testing.assert_array_equal(upright(contents), np.asarray(Image.open(io.BytesIO(contents))))


def test_orientation_of_contents_that_are_no_image():
    assert [exif_orientation(contents) for contents in (b"", b"no image", encode(6)[:40])] == [1, 1, 1]
