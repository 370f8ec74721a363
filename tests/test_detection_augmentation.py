"""Crops and augmentation of detectors' training images, on drawn shapes and against what torchvision samples."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco
from scipy.stats import ks_2samp
from support import REFERENCES

from keras_resnet import Recipe
from keras_resnet.data import detection_crops
from keras_resnet.data.augmentation import COLOR_NOISE, TRAIN_CROPS
from keras_resnet.data.detection_augmentation import sample_augmentation
from keras_resnet.data.detection_crops import ResizedCrop
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.masks import mask_boxes
from keras_resnet.data.objects import Objects
from keras_resnet.normalization import Normalization

UNCHANGED = Normalization(divisor=1.0)
PREPROCESSING = DetectionPreprocessing(UNCHANGED, min_size=96, max_size=160)
SCALES = {
    "shorter_side_jitter": (0.5, 1.5),
    "large_scale_jitter": (0.3, 2.0),
    "overlap": (0.3, 1.0),
    "none": (0.08, 1.0),
}
CROPS = {name: Recipe(epochs=1, loss="detection", crop=name, scale=scale, flip=True) for name, scale in SCALES.items()}
SCENES = ("wide", "tall", "small")


def test_every_crop_for_detectors_is_tested():
    assert set(SCALES) == {name for name, row in TRAIN_CROPS.items() if row.for_detectors}


def scene_objects(masks):
    """Objects of one image with masks (N, H, W) bool, the boxes around them and the classes 0, 1, ..."""
    size, count = masks.shape[1:], len(masks)
    segmentations = np.empty(count, object)
    for index, mask in enumerate(masks):
        found = coco.encode(np.asfortranarray(mask.astype("uint8")))
        segmentations[index] = {"size": [*size], "counts": found["counts"].decode()}
    return Objects(
        image=np.zeros(count, "int64"),
        boxes=np.array([colored_box(mask) for mask in masks], "float32"),
        labels=np.arange(count, dtype="int32"),
        crowd=np.zeros(count, bool),
        difficult=np.zeros(count, bool),
        areas=masks.sum(axis=(1, 2)).astype("float64"),
        masks=segmentations,
        sizes=np.array([size], "int32"),
        image_ids=np.array(["drawing"], object),
    )


def colored_box(mask):
    """(x1, y1, x2, y2) around the pixels of a mask."""
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@cache
def drawing(seed):
    """(H, W, 3) uint8 with a shape in each channel, an ellipse, a rectangle and an octagon; and its Objects."""
    generator = np.random.default_rng(seed)
    size = [(100, 140), (150, 90), (120, 120)][seed % 3]
    channels = []
    for shape in range(3):
        channel = Image.new("L", size[::-1])
        draw, sides = ImageDraw.Draw(channel), generator.integers(24, 60, 2)
        x, y = (generator.random(2) * (np.array(size[::-1]) - sides)).astype(int)
        w, h = sides
        points = [(1, 0), (2, 0), (3, 1), (3, 2), (2, 3), (1, 3), (0, 2), (0, 1)]
        if shape == 0:
            draw.ellipse((x, y, x + w, y + h), fill=200)
        elif shape == 1:
            draw.rectangle((x, y, x + w, y + h), fill=200)
        else:
            draw.polygon([(x + w * px / 3, y + h * py / 3) for px, py in points], fill=200)
        channels.append(np.asarray(channel))
    pixels = np.stack(channels, axis=-1)
    return pixels, scene_objects(np.moveaxis(pixels, -1, 0) > 0)


def augmented(seed, recipe, has_masks=True, **changes):
    """The TrainingImage of a drawing, its Augmentation."""
    pixels, objects = drawing(seed % 20)
    augmentation = sample_augmentation(objects, recipe, PREPROCESSING, np.random.default_rng(seed))
    return augmentation(pixels, UNCHANGED, has_masks), augmentation


@pytest.mark.parametrize("crop", CROPS)
def test_boxes_masks_and_colours_agree_after_augmentation(crop):
    """Within one pixel; an object is missing if none of its pixels is left, or its centre is outside (overlap)."""
    cut = 0
    for seed in range(150):
        image, augmentation = augmented(seed, CROPS[crop])
        assert image.pixels.shape[:2] == augmentation.crop.size == image.masks.shape[1:]
        for label in range(3):
            colored = image.pixels[..., label] > 100
            found = np.flatnonzero(image.labels == label)
            if not len(found):
                assert augmentation.crop.only_centres or colored.sum() <= colored.shape[0] + colored.shape[1]
                continue
            box, mask = image.boxes[found[0]], image.masks[found[0]]
            np.testing.assert_allclose(mask_boxes(mask[None])[0], colored_box(mask), err_msg=f"{seed} {label}")
            np.testing.assert_allclose(box, colored_box(mask), atol=1, err_msg=f"{seed} {label}")
            np.testing.assert_allclose(box, colored_box(colored), atol=1, err_msg=f"{seed} {label}")
            assert (mask != colored).mean() < 0.02
            cut += augmentation.crop.cuts(drawing(seed % 20)[1].boxes[label : label + 1])[0]
    assert (cut > 20) == (crop in ("large_scale_jitter", "overlap"))


@pytest.mark.parametrize("crop", CROPS)
def test_boxes_without_masks_are_clipped(crop):
    """Of the rectangles, which fill their boxes also after a cut."""
    for seed in range(150):
        image, augmentation = augmented(seed, CROPS[crop], has_masks=False)
        assert image.masks is None
        boxes = image.boxes[image.labels == 1]
        colored = image.pixels[..., 1] > 100
        if len(boxes) and min(boxes[0, 2:] - boxes[0, :2]) > 2:
            np.testing.assert_allclose(boxes[0], colored_box(colored), atol=1)
        limits = [*augmentation.crop.size[::-1]] * 2
        assert (image.boxes >= 0).all() and (image.boxes <= limits).all()
        assert (image.boxes[:, 2:] > image.boxes[:, :2]).all()


def test_mirrored_images_are_those_of_numpy():
    """About half of them; everything else is equal."""
    recipe, mirrored = CROPS["none"], 0
    for seed in range(100):
        pixels, objects = drawing(seed % 20)
        augmentation = sample_augmentation(objects, recipe, PREPROCESSING, np.random.default_rng(seed))
        image, of_mirrored = (augmentation(it, UNCHANGED, True) for it in (pixels, pixels[:, ::-1]))
        plain = PREPROCESSING([pixels]).images[0, : image.pixels.shape[0], : image.pixels.shape[1]]
        mirrored += augmentation.crop.flip
        expected = plain[:, ::-1] if augmentation.crop.flip else plain
        np.testing.assert_allclose(image.pixels, expected, atol=1e-3)
        np.testing.assert_allclose(of_mirrored.pixels, image.pixels[:, ::-1], atol=1e-2)
        width = image.pixels.shape[1]
        boxes = objects.boxes * np.tile(np.array(image.pixels.shape[1::-1]) / objects.sizes[0, ::-1], 2)
        if augmentation.crop.flip:
            boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
        np.testing.assert_allclose(image.boxes, boxes, atol=1e-3)
    assert 35 <= mirrored <= 65  # 0.997 of the binomial distribution


@pytest.fixture(scope="module")
def sampled():
    """{scene/name: array} of make_detection_crops.py."""
    with np.load(REFERENCES / "detection_crops.npz") as file:
        return dict(file)


@pytest.mark.parametrize("scene", SCENES)
def test_boxes_are_resized_as_by_torchvision(scene, sampled):
    height, width = sampled[f"{scene}/size"].tolist()
    crop = ResizedCrop((0, 0, width, height), (61, 83))
    np.testing.assert_allclose(crop.resize_boxes(sampled[f"{scene}/boxes"]), sampled[f"{scene}/resized"], rtol=1e-6)


def sample_crops(scene, sampled, function, preprocessing, scale, count=1000):
    """ResizedCrops of an image, and its boxes."""
    boxes, size = sampled[f"{scene}/boxes"], sampled[f"{scene}/size"].tolist()
    random = np.random.default_rng(0)
    return [function(size, boxes, preprocessing, scale, random) for _ in range(count)], boxes


def assert_same_distribution(found, expected):
    """Two samples (N, K), by the test of Kolmogorov and Smirnov for each of K values."""
    for values, others in zip(np.transpose(found), np.transpose(expected), strict=True):
        assert ks_2samp(values, others).pvalue > 1e-3


@pytest.mark.parametrize("scene", SCENES)
def test_overlap_crops_are_distributed_as_those_of_torchvision(scene, sampled):
    crops, boxes = sample_crops(scene, sampled, detection_crops.overlap_crop, PREPROCESSING, (0.3, 1.0))
    expected = np.column_stack([sampled[f"{scene}/overlap"], sampled[f"{scene}/kept"]])
    found = np.array([[*crop.box, crop.keeps(boxes).sum()] for crop in crops])
    assert_same_distribution(found, expected)
    whole = [0, 0, *sampled[f"{scene}/size"][::-1]]
    shares = [(rows[:, :4] == whole).all(axis=1).mean() for rows in (found, expected)]
    assert abs(shares[0] - shares[1]) < 0.06  # three standard errors
    for crop in crops:
        width, height = np.subtract(crop.box[2:], crop.box[:2])
        assert crop.size == PREPROCESSING.resized(height, width)


def test_overlap_crops_of_an_image_without_objects_are_the_image():
    for seed in range(20):
        crop = detection_crops.overlap_crop(
            [30, 40], np.zeros((0, 4), "float32"), PREPROCESSING, (0.3, 1), np.random.default_rng(seed)
        )
        assert crop.box == (0, 0, 40, 30)


@pytest.mark.parametrize("scene", SCENES)
def test_scales_are_distributed_as_those_of_torchvision(scene, sampled):
    """Of ScaleJitter, whose images are then cropped to the square, and of RandomShortestSize."""
    crops, _ = sample_crops(scene, sampled, detection_crops.large_scale_jitter, PREPROCESSING, (0.1, 2.0))
    assert_same_distribution([it.size for it in crops], np.minimum(sampled[f"{scene}/scale_jitter"], 96))
    preprocessing = DetectionPreprocessing(min_size=96, max_size=120)
    crops, _ = sample_crops(scene, sampled, detection_crops.shorter_side_jitter, preprocessing, (64 / 96, 1))
    sizes = [it.size for it in crops]
    assert_same_distribution(sizes, sampled[f"{scene}/shortest"])
    assert set(sizes) == set(map(tuple, sampled[f"{scene}/shortest"].tolist()))


def test_large_scale_jitter_crops_at_random(sampled):
    """At a factor of 2 of a square image, the corner is uniform over all 97 places on each axis."""
    crops, _ = sample_crops("small", sampled | {"small/size": np.array([96, 96])}, large(2.0), PREPROCESSING, None)
    corners = 2 * np.array([crop.box[:2] for crop in crops])
    assert {crop.size for crop in crops} == {(96, 96)}
    assert corners.min() == 0 and corners.max() == 96 and (corners == corners.round()).all()
    np.testing.assert_allclose(corners.mean(axis=0), 48, atol=3.5 * 28 / 1000**0.5)
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.1


def large(factor):
    return lambda size, boxes, preprocessing, scale, random: detection_crops.large_scale_jitter(
        size, boxes, preprocessing, (factor, factor), random
    )


@pytest.mark.parametrize("antialias", [False, True])
def test_pixels_of_crops_are_those_of_the_resized_image(antialias):
    """TensorFlow resizes the whole image; the crop is then cut out of it."""
    tf = pytest.importorskip("tensorflow")
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3)).astype("float32")
    for height, width in [(74, 100), (60, 41), (12, 17)]:
        whole = tf.image.resize(image, (height, width), antialias=antialias).numpy()
        top, left, bottom, right = 3, 5, height - 2, width - 4
        box = (left * 50 / width, top * 37 / height, right * 50 / width, bottom * 37 / height)
        crop = ResizedCrop(box, (bottom - top, right - left), antialias)
        np.testing.assert_allclose(crop.resize_image(image), whole[top:bottom, left:right], atol=2e-2)
        mask = image[..., 0] > 128
        rows, columns = (np.floor((np.arange(n) + 0.5) * m / n).astype(int) for n, m in ((height, 37), (width, 50)))
        expected = mask[rows][:, columns][top:bottom, left:right]
        np.testing.assert_array_equal(crop.resize_mask(mask), expected)


def test_colour_noise_has_the_covariance_of_the_recipe():
    """One colour per image, whose principal components are those of `lighting`."""
    pixels, objects = drawing(0)
    recipe = Recipe(epochs=1, loss="detection", lighting=0.1)
    samples = [sample_augmentation(objects, recipe, PREPROCESSING, np.random.default_rng(seed)) for seed in range(4000)]
    np.testing.assert_allclose(
        np.cov(np.transpose([it.color for it in samples])), 0.01 * COLOR_NOISE.T @ COLOR_NOISE, rtol=0.1, atol=0.1
    )
    plain = sample_augmentation(objects, replace(recipe, lighting=0.0), PREPROCESSING, np.random.default_rng(0))
    difference = samples[0](pixels, UNCHANGED, False).pixels - plain(pixels, UNCHANGED, False).pixels
    np.testing.assert_allclose(difference, np.broadcast_to(samples[0].color, difference.shape), atol=1e-3)


def test_objects_without_an_area_are_left_out():
    """Without width in the annotation, outside the crop, or touching its edge from outside."""
    crop = ResizedCrop((10, 10, 30, 30), (20, 20))
    boxes = np.array([[15, 15, 15, 20], [0, 0, 5, 5], [5, 12, 10, 20], [5, 12, 10.5, 20], [0, 0, 40, 40]], "float32")
    np.testing.assert_array_equal(crop.keeps(boxes), [False, False, False, True, True])
    centred = ResizedCrop((10, 10, 30, 30), (20, 20), only_centres=True)
    np.testing.assert_array_equal(centred.keeps(boxes), [False, False, False, False, True])


@pytest.mark.parametrize(
    ("crop", "scale"),
    [("large_scale_jitter", (0.1, 11)), ("large_scale_jitter", (0, 1)), ("overlap", (0.5, 1.1)), ("overlap", (1, 0.5))],
)
def test_scales_of_crops_are_checked(crop, scale):
    with pytest.raises(ValueError, match="`scale` of a recipe should be two f.*smaller first.*Received: scale="):
        Recipe(epochs=1, loss="detection", crop=crop, scale=scale)


def test_an_image_that_cannot_be_read_is_named():
    _, objects = drawing(0)
    augmentation = sample_augmentation(objects, CROPS["none"], PREPROCESSING, np.random.default_rng(0))
    with pytest.raises(ValueError, match="'drawing' of the training data cannot be read.*Received: 8 bytes"):
        augmentation(b"no image", "torch", False)
    with pytest.raises(ValueError, match="'drawing' of the training data cannot be read.*missing.png"):
        augmentation("missing.png", "torch", False)
