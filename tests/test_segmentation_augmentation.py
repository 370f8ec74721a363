"""Images and masks augmented together: pixels against torchvision, and what is sampled."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kstest
from support import REFERENCES

from keras_resnet import Recipe
from keras_resnet.architecture.segmenter_spec import IGNORED
from keras_resnet.data.segmentation_augmentation import SegmentationAugmentation, sample_segmentation_augmentation
from keras_resnet.data.segmentation_crops import PaddedCrop, crop_size, random_crop, random_size
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.normalization import Normalization

TORCH = dict(np.load(REFERENCES / "segmenter_training.npz"))
"""See make_segmenter_training.py."""
IMAGE, MASK = Image.fromarray(TORCH["image"]), TORCH["mask"]
PIXELS, KEEP = Normalization(divisor=1.0), SegmentationPreprocessing()
RECIPE = Recipe(epochs=1, loss="segmentation", crop="random_scaled", scale=(0.5, 2.0), flip=True)


def crop_of(row):
    """The PaddedCrop that does what a row of `crops` says, whose column is that in the mirrored image."""
    shorter, height, width, top, left, mirrored = row.tolist()
    resized = SegmentationPreprocessing(shorter_side=shorter).resized(*MASK.shape)
    if mirrored:
        left = max(resized[1] - left - width, 0)
    return PaddedCrop(resized, (top, left), (height, width), bool(mirrored))


@pytest.mark.portable
@pytest.mark.parametrize("number", range(len(TORCH["crops"])))
def test_pixels_and_classes_are_those_of_torchvision(number):
    augment = SegmentationAugmentation(crop_of(TORCH["crops"][number]))
    pixels, mask = augment(IMAGE, MASK, PIXELS)
    np.testing.assert_array_equal(mask, TORCH[f"crop{number}/mask"])
    np.testing.assert_allclose(pixels, TORCH[f"crop{number}/image"], atol=1)
    assert np.mean(pixels != TORCH[f"crop{number}/image"]) < 0.02  # the corners of the crop are float32 in Pillow
    assert pixels.dtype == np.float32 and mask.dtype == np.uint8


@pytest.mark.parametrize("mode", ["torch", "caffe", "tf"])
def test_outside_the_image_are_the_mean_colour_and_ignored_pixels(mode):
    augment = SegmentationAugmentation(PaddedCrop((22, 29), (0, 0), (45, 60)), color=np.full(3, 9, "float32"))
    pixels, mask = augment(IMAGE, MASK, mode)
    assert (mask[22:] == IGNORED).all() and (mask[:, 29:] == IGNORED).all()
    assert not pixels[22:].any() and not pixels[:, 29:].any() and pixels[:22, :29].all(axis=-1).mean() > 0.9


@pytest.mark.portable
def test_colours_change_as_in_torchvision():
    whole = PaddedCrop(MASK.shape, (0, 0), MASK.shape)
    for index, name in enumerate(("brightness", "contrast", "saturation")):
        augment = SegmentationAugmentation(whole, ((index, float(TORCH["jitter/factors"][index])),))
        np.testing.assert_array_equal(augment(IMAGE, MASK, PIXELS)[0], TORCH[f"jitter/{name}"])
    added = SegmentationAugmentation(whole, color=np.array([1, 2, 3], "float32"))(IMAGE, MASK, PIXELS)[0]
    np.testing.assert_array_equal(added, TORCH["image"] + np.array([1, 2, 3]))


def sampled(recipe, count=400, size=(45, 60), crop=(45, 60), preprocessing=KEEP):
    rows = (np.random.default_rng((0, seed)) for seed in range(count))
    return [sample_segmentation_augmentation(size, crop, recipe, preprocessing, row) for row in rows]


def test_sizes_are_those_of_random_resize():
    """torchvision: a shorter side from int(0.5 * base) to int(2 * base), both included, each as probable."""
    for size, base, preprocessing in (
        ((45, 60), 45, SegmentationPreprocessing()),
        ((60, 45), 31, SegmentationPreprocessing(shorter_side=31)),
    ):
        random = np.random.default_rng(0)
        found = np.array([random_size(size, preprocessing, (0.5, 2.0), random) for _ in range(4000)])
        shorter, longer = np.sort(found, axis=1).T
        assert (shorter.min(), shorter.max()) == (int(0.5 * base), 2 * base)
        np.testing.assert_array_equal(longer, (shorter * 60 / 45).astype(int))
        assert ((found[:, 0] > found[:, 1]) == (size[0] > size[1])).all()
        assert kstest((shorter - int(0.5 * base) + 0.5) / (2 * base - int(0.5 * base) + 1), "uniform").pvalue > 1e-3


def test_places_are_uniform_and_one_in_two_is_mirrored():
    random = np.random.default_rng(0)
    crops = [random_crop((30, 50), (20, 40), True, random) for _ in range(4000)]
    corners = np.array([crop.corner for crop in crops])
    assert corners.min(axis=0).tolist() == [0, 0] and corners.max(axis=0).tolist() == [10, 10]
    for axis in range(2):
        assert kstest((corners[:, axis] + random.random(len(corners))) / 11, "uniform").pvalue > 1e-3
    assert 0.45 < np.mean([crop.flip for crop in crops]) < 0.55
    assert {random_crop((10, 60), (20, 40), False, random).corner[0] for _ in range(50)} == {0}
    assert not any(random_crop((30, 50), (20, 40), False, random).flip for _ in range(50))


def test_colour_jitter_has_the_range_and_the_orders_of_torchvision():
    found = [augmentation.jitter for augmentation in sampled(replace(RECIPE, color_jitter=0.4))]
    assert len({tuple(index for index, _ in jitter) for jitter in found}) == 6
    factors = np.array([[factor for _, factor in sorted(jitter)] for jitter in found])
    for column in factors.T:
        assert kstest((column - 0.6) / 0.8, "uniform").pvalue > 1e-3
    assert all(not augmentation.jitter and augmentation.color is None for augmentation in sampled(RECIPE, 5))
    colors = np.array([augmentation.color for augmentation in sampled(replace(RECIPE, lighting=0.1))])
    assert len(np.unique(colors[:, 0])) == 400 and colors.dtype == np.float32


def test_without_random_sizes_images_are_as_in_testing():
    recipe = replace(RECIPE, crop="none", scale=(0.08, 1.0), flip=False)
    (augment,) = sampled(recipe, 1, preprocessing=SegmentationPreprocessing(shorter_side=90), crop=(90, 120))
    pixels, mask = augment(IMAGE, MASK, PIXELS)
    expected = SegmentationPreprocessing(PIXELS, shorter_side=90)(TORCH["image"])[0]
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(mask, np.kron(MASK, np.ones((2, 2), "uint8")))


def test_crops_are_as_large_as_the_images_or_square():
    keep, resize = SegmentationPreprocessing(), SegmentationPreprocessing(shorter_side=90)
    same, others = np.array([[45, 60]] * 3), np.array([[40, 60], [45, 60], [60, 45], [45, 80], [50, 60]])
    assert crop_size(same, None, keep) == (45, 60) and crop_size(same, None, resize) == (90, 120)
    assert crop_size(same, 32, keep) == (32, 32) == crop_size(others, 32, resize)
    assert crop_size(others, None, keep) == (45, 60)
