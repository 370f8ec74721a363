"""Training batches of segmenters: masks stay on their images, and batches depend on seed and step alone."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from support import png_bytes

from keras_resnet import Recipe
from keras_resnet.data import prefetch
from keras_resnet.data.class_balance import pixel_weights
from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.pipelines import StepRange
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.segmentation_batches import segmentation_batches
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.data.semantic_masks import mask_files, masks_in_memory
from keras_resnet.normalization import Normalization

PREPROCESSING = SegmentationPreprocessing(Normalization(divisor=1.0))
PLAIN = Recipe(epochs=1, batch_size=4, loss="segmentation")
RECIPE = replace(PLAIN, crop="random_scaled", scale=(0.5, 2.0), flip=True, train_size=32)
SIZES = [(32, 32), (32, 60), (60, 32), (40, 36)]


def dataset_of(split, classes=5):
    return Dataset("drawings", split, split, tuple("abcdefghijk"[:classes]), Preprocessing("torch", 32, None))


@pytest.fixture(scope="module")
def numbered():
    """30 PNG files of four sizes; the red level is the index, green 40 times the class, of five in bands."""
    images, masks, sizes = np.empty(30, object), [], []
    for number in range(30):
        height, width = SIZES[number % 4]
        mask = np.broadcast_to((np.arange(width) // 8 + number) % 5, (height, width)).astype("uint8")
        pixels = np.stack([np.full_like(mask, number), 40 * mask, np.zeros_like(mask)], axis=-1)
        images[number] = png_bytes(pixels)
        masks.append(png_bytes(mask))
        sizes.append((height, width))
    found = mask_files(masks, np.array(sizes), [f"mask {number}" for number in range(30)])
    return dataset_of(Split(images, found.label_matrix(5), masks=found))


def read(dataset, recipe=RECIPE, steps=7, preprocessing=PREPROCESSING, losses=("segmentation",), **part):
    """List of the batches as (x, y) of NumPy arrays."""
    batches = segmentation_batches(dataset, recipe, preprocessing, StepRange.of(recipe, steps, **part), losses)
    return [keras.tree.map_structure(np.asarray, batch) for batch in batches]


def numbers_of(batches):
    """Indices of the images of `numbered`, without colour jitter."""
    return [round(float(level)) for x, _ in batches for level in x["images"][:, 0, 0, 0]]


def assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    keras.tree.map_structure(np.testing.assert_array_equal, found, expected)


@pytest.mark.portable
def test_every_image_once_per_epoch_in_another_order(numbered):
    whole = numbers_of(read(numbered, PLAIN, steps=15))
    assert sorted(whole[:30]) == sorted(whole[30:60]) == list(range(30)) and whole[:30] != whole[30:60]
    assert numbers_of(read(numbered, PLAIN, seed=1)) != whole[:28]


@pytest.mark.portable
def test_a_batch_is_the_same_from_any_step_in_parts_and_by_any_threads(numbered, monkeypatch):
    expected = read(numbered, steps=9, seed=5)
    assert_equal(read(numbered, steps=4, first=5, seed=5), expected[5:])
    parts = [read(numbered, steps=9, seed=5, share=(part, 2)) for part in range(2)]
    joined = [keras.tree.map_structure(lambda *it: np.concatenate(it), *pair) for pair in zip(*parts, strict=True)]
    assert_equal(joined, expected)
    monkeypatch.setattr(prefetch, "THREADS", 1)
    assert_equal(read(numbered, steps=9, seed=5), expected)
    assert len({x["images"].tobytes() for x, _ in expected}) == 9


@pytest.mark.portable
def test_masks_stay_on_their_images(numbered):
    """Away from the borders of the bands, the green level is that of the class in the mask."""
    counted = 0
    for x, y in read(numbered, steps=8):
        assert x["images"].shape == (4, 32, 32, 3) and x["masks"].shape == (4, 32, 32)
        assert (x["images"].dtype, x["masks"].dtype) == (np.float32, np.uint8)
        np.testing.assert_array_equal(y["segmentation"], np.zeros(4, "float32"))
        for image, mask in zip(x["images"], x["masks"], strict=True):
            outside = mask == 255
            assert not image[outside].any()
            shifted = [np.roll(mask, shift, axis=1) for shift in range(-3, 4)]
            inner = ~outside & np.all([it == mask for it in shifted], axis=0)
            inner[:, [0, 1, 2, -3, -2, -1]] = False
            np.testing.assert_allclose(image[inner][:, 1], 40.0 * mask[inner], atol=1)
            counted += inner.sum()
    assert counted > 5000


def test_images_in_memory_and_paths(numbered, tmp_path):
    """Turned JPEG files are upright, as their masks."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 20, 30, 3), "uint8")
    masks = masks_in_memory(pixels[..., 0] // 64)
    in_memory = dataset_of(Split(pixels, masks.label_matrix(4), masks=masks), 4)
    paths = []
    for number, image in enumerate(pixels):
        exif = Image.Exif()
        exif[0x0112] = 6
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(np.rot90(image)).save(paths[-1], exif=exif)
    files = Split(np.array(paths), in_memory.train.labels, np.full(6, 6, "uint8"), None, masks)
    recipe = replace(RECIPE, batch_size=3, train_size=None)
    expected = read(in_memory, recipe, 2)
    assert expected[0][0]["images"].shape == (3, 20, 30, 3)
    assert_equal(read(dataset_of(files, 4), recipe, 2), expected)


def test_unreadable_and_changed_files_are_named(tmp_path):
    masks = masks_in_memory(np.zeros((4, 20, 30), "uint8"))
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for path in paths:
        Image.new("RGB", (30, 20)).save(path)
    dataset = dataset_of(Split(np.array(paths), masks.label_matrix(1), masks=masks), 1)
    Image.new("RGB", (20, 30)).save(paths[2])
    with pytest.raises(Exception, match=r"30 x 20 pixels, as its mask.*20 x 30 pixels of"):
        read(dataset, PLAIN, 1)
    (tmp_path / "2.png").write_bytes(b"no image")
    with pytest.raises(Exception, match=r"2\.png.*of the training data cannot be read"):
        read(dataset, PLAIN, 1)


def test_weights_of_classes_are_those_of_scikit_learn(numbered):
    masks = numbered.train.masks
    labels = np.concatenate([masks.read(index).ravel() for index in range(len(masks))])
    expected = compute_class_weight("balanced", classes=np.arange(5), y=labels)
    np.testing.assert_allclose(pixel_weights(numbered, "balanced"), expected, rtol=1e-6)
    np.testing.assert_array_equal(pixel_weights(numbered, {"b": 3, "4": 0.5}), [1, 3, 1, 1, 0.5])
    assert pixel_weights(numbered, None) is None
    absent = masks_in_memory(np.array([[[0, 0, 2, 255]]] * 4))
    dataset = dataset_of(Split(np.zeros((4, 1, 4, 3), "uint8"), absent.label_matrix(3), masks=absent), 3)
    np.testing.assert_allclose(pixel_weights(dataset, "balanced"), [0.75, 1, 1.5])
    with pytest.raises(ValueError, match="names or indices of classes"):
        pixel_weights(numbered, {"tree": 2})
