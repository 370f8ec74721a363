"""Boxes of classes: class activation maps, crops, ImageNet's errors, evaluation, and the commands."""

import json

import keras
import numpy as np
import pytest
from annotated_images import LOCALIZED, write_tables
from PIL import Image
from support import random_images, randomize_weights, run_command

from keras_resnet import ResNetSpec, analysis, build, create, evaluate, localize
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.protocols import LocalizationProtocol
from keras_resnet.data.sources import load_dataset
from keras_resnet.localization import ImageLocalizer, activation_box, class_activation_maps
from keras_resnet.localization_evaluation import mean_box
from keras_resnet.models.localizers import as_localizer

SMALL = ResNetSpec("basic", (1, 1), (8, 16), stem="cifar", stem_width=8)


def small_classifier(seed=0, size=24, resize=28):
    model = randomize_weights(build(SMALL, classes=2, input_shape=(size, size, 3)), seed)
    info = {"class_names": ["ant", "bee"], "preprocessing": Preprocessing("torch", size, resize).to_config()}
    model.info = info
    return model


def noisy_dataset(folder):
    """The data set of `write_tables` with random images, which have different predictions."""
    write_tables(folder)
    for seed, path in enumerate(sorted(folder.rglob("*.JPEG"))):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), "uint8")
        Image.fromarray(pixels).resize((40, 30)).save(path)
    return load_dataset(folder)


def pixel_overlap(box, other):
    """Intersection over union of boxes with whole corners, by counting pixels."""
    grids = []
    for x1, y1, x2, y2 in (box, other):
        grid = np.zeros((64, 64), bool)
        grid[y1:y2, x1:x2] = True
        grids.append(grid)
    return (grids[0] & grids[1]).sum() / (grids[0] | grids[1]).sum()


def devkit_error(label, classes, boxes, true_boxes, overlap):
    """The error of an image as ImageNet defines it: least over the pairs of max(class wrong, box wrong)."""
    return min(
        max(class_index != label, min(overlap(box, true) < 0.5 for true in true_boxes))
        for class_index, box in zip(classes, boxes, strict=True)
    )


def exact_overlap(box, other):
    width = max(0, min(box[2], other[2]) - max(box[0], other[0]))
    height = max(0, min(box[3], other[3]) - max(box[1], other[1]))
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, other)]
    return width * height / (sum(areas) - width * height)


def test_errors_are_those_of_imagenet(tmp_path):
    """Random classes and boxes with whole corners, overlaps counted in pixels."""
    from keras_resnet.data.objects import Objects
    from keras_resnet.localization_results import LocalizationEvaluation, largest_overlaps

    random, n = np.random.default_rng(0), 300
    corners = np.sort(random.integers(0, 64, (n, 8, 2, 2)), axis=2)
    corners[:, :, 1] += 1
    boxes = corners.reshape(n, 8, 4)
    labels = random.integers(0, 8, n)
    top = np.array([random.permutation(8)[:5] for _ in range(n)])
    images, no = np.repeat(np.arange(n), 2), np.zeros(2 * n, bool)
    true = boxes[:, :2].reshape(-1, 4).astype("float32")
    objects = Objects(
        images,
        true,
        np.repeat(labels, 2).astype("int32"),
        no,
        no,
        np.ones(2 * n),
        None,
        np.full((n, 2), 64),
        images[:n],
    )
    overlaps = largest_overlaps(boxes[:, 2:].astype("float32"), objects)
    result = LocalizationEvaluation(
        tuple((str(i), str(i)) for i in range(8)), labels, top, overlaps[:, :5], overlaps[:, 5]
    )
    for k in (1, 5):
        expected = [
            devkit_error(labels[i], top[i, :k], boxes[i, 2 : 2 + k], boxes[i, :2], pixel_overlap) for i in range(n)
        ]
        assert result.errors[f"top{k}_localization_error"] == np.mean(expected)
        assert result.errors[f"top{k}_error"] == np.mean(
            [label not in row[:k] for label, row in zip(labels, top, strict=True)]
        )
    alone = [min(pixel_overlap(boxes[i, 7], true) < 0.5 for true in boxes[i, :2]) for i in range(n)]
    assert 0 < result.errors["true_class_error"] == np.mean(alone) < 1
    low, high = result.intervals["true_class_error"]
    assert low < result.errors["true_class_error"] < high
    weighted = sum(row["num_images"] * row["top5_localization_error"] for row in result.by_class)
    np.testing.assert_allclose(weighted, n * result.errors["top5_localization_error"])


def test_class_activation_maps_are_those_of_grad_cam():
    """With global average pooling, both differ only in their scale (Selvaraju et al. 2017, sec. 3.1)."""
    model, images = small_classifier(), random_images(3, 24, 24, 3)
    features = keras.Model(model.inputs, model.get_layer("avg_pool").input).predict(images, verbose=0)
    kernel = model.get_layer("predictions").kernel.numpy()
    maps = class_activation_maps(features, kernel, np.array([[1], [0], [1]]), (12, 12))[:, 0]
    heat = np.maximum(maps, 0) / maps.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(heat, analysis.grad_cam(model, images, np.array([1, 0, 1])), atol=1e-5)


def flood_fill(mask):
    """Lists of the pixels of each connected region."""
    left, regions = set(map(tuple, np.argwhere(mask))), []
    while left:
        stack, region = [left.pop()], []
        while stack:
            row, column = stack.pop()
            region.append((row, column))
            for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if near in left:
                    left.remove(near)
                    stack.append(near)
        regions.append(region)
    return regions


def test_the_box_of_the_largest_region():
    random = np.random.default_rng(0)
    for _ in range(30):
        heat = random.normal(size=(8, 16))
        regions = flood_fill(heat >= 0.2 * heat.max())
        size = max(map(len, regions))
        boxes = [
            (min(x) / 16, min(y) / 8, (max(x) + 1) / 16, (max(y) + 1) / 8)
            for y, x in (zip(*region, strict=True) for region in regions if len(region) == size)
        ]
        assert activation_box(heat, 0.2) in boxes
    assert activation_box(np.full((4, 4), -1.0), 0.2) == (0, 0, 1, 1)


def test_boxes_of_crops_are_in_pixels_of_the_image():
    """The shorter side of 100 is resized to 50; the crop of 40 begins at 5 and 30, in the image at 10 and 60."""
    localizer = ImageLocalizer(small_classifier(size=40, resize=50), LocalizationProtocol())
    boxes = np.array([[[0.25, 0.5, 0.75, 1], [0, 0, 1, 1]]])
    found = localizer.to_pixels(boxes, np.array([[100, 200]]))
    np.testing.assert_allclose(found, [[[80, 50, 120, 90], [60, 10, 140, 90]]])
    whole = ImageLocalizer(small_classifier(), LocalizationProtocol(scales=30))
    np.testing.assert_allclose(whole.to_pixels(boxes, np.array([[100, 200]]))[0, 0], [50, 50, 150, 100])


@pytest.mark.parametrize("boxes", [None, "shared", "per_class", "dense"])
def test_evaluation_is_that_of_each_image(tmp_path, boxes):
    data, model = noisy_dataset(tmp_path), small_classifier()
    if boxes:
        model = randomize_weights(as_localizer(model, boxes=boxes, box_width=12, anchor_sizes=(16,)))
    result = evaluate(model, data, protocol="localization", batch_size=2)
    found = localize([tmp_path / "val" / "ant", tmp_path / "val" / "bee"], model, top=2)
    by_name = {detection.path.stem: detection for detection in found}
    for k, error in ((1, "top1_localization_error"), (2, "top5_localization_error")):
        expected = []
        for name, label in zip(data.test.objects.image_ids, data.test.labels, strict=True):
            detection = by_name[name]
            true = LOCALIZED["val"][data.class_names[label]][name]
            classes = detection.labels[:k] - 1
            expected.append(devkit_error(label, classes, detection.boxes[:k].tolist(), true, exact_overlap))
        assert result.errors[error] == np.mean(expected)
    assert result.errors["true_class_error"] == result.errors["top5_localization_error"]  # of two classes
    assert result.errors["top5_error"] == 0


def test_baselines(tmp_path):
    data = noisy_dataset(tmp_path)
    boxes = [box for images in LOCALIZED["train"].values() for found in images.values() for box in found]
    mean = np.mean(boxes, axis=0)
    np.testing.assert_allclose(mean_box(data.train.objects), mean / [40, 30, 40, 30], rtol=1e-6)
    result = evaluate(small_classifier(), data, protocol="localization")
    for name, box in (("whole_image", (0, 0, 40, 30)), ("mean_box", mean)):
        true = [found for images in LOCALIZED["val"].values() for found in images.values()]
        expected = np.mean([min(exact_overlap(box, one) < 0.5 for one in found) for found in true])
        assert result.to_json()["baselines"][name]["true_class_error"] == expected


def test_dense_testing_takes_whole_images(tmp_path):
    data = noisy_dataset(tmp_path)
    model = randomize_weights(as_localizer(small_classifier(), boxes="dense", box_width=12, anchor_sizes=(16,)))
    single = evaluate(model, data, protocol="localization_dense", scales=30)
    both = evaluate(model, data, protocol="localization_dense", scales=(30, 45))
    assert single.num_images == both.num_images == 3
    localizer = ImageLocalizer(model, LocalizationProtocol(scales=(30, 45)))
    inputs = localizer.inputs(Image.new("RGB", (40, 30)))
    assert [scale.shape for scale in inputs] == [(1, 30, 40, 3), (1, 45, 60, 3)]
    found = localizer(inputs)
    best, scores = found.boxes(np.array([[0, 1]]))
    singles = [localizer([scale]) for scale in inputs]
    for scale in singles:
        its_boxes, its_scores = scale.boxes(np.array([[0, 1]]))
        assert (its_scores <= scores).all()
        np.testing.assert_array_equal(best[its_scores == scores], its_boxes[its_scores == scores])
    np.testing.assert_allclose(found.probabilities, np.mean([it.probabilities for it in singles], axis=0), rtol=1e-5)
    shared = as_localizer(small_classifier(), box_width=12)
    with pytest.raises(ValueError, match="`scales` should be"):
        evaluate(shared, data, protocol="localization_dense")


def test_images_without_boxes_are_left_out(tmp_path):
    data = noisy_dataset(tmp_path)
    file = tmp_path / "val_boxes.tsv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[1:], lines[0].replace("\t20\t10", "\t30\t10").replace("\t29\t", "\t3\t")]))
    with pytest.warns(UserWarning, match="is empty"):
        data = load_dataset(tmp_path, skip_bad=True)
    result = evaluate(small_classifier(), data, protocol="localization")
    assert result.num_images == 2 and "val_0: no box" in result.skipped


def test_what_cannot_be_localized(tmp_path):
    data = noisy_dataset(tmp_path)
    with pytest.raises(ValueError, match="one class and boxes"):
        evaluate(small_classifier(), "digits", protocol="localization")
    with pytest.raises(ValueError, match="one localizer"):
        evaluate([small_classifier(), small_classifier()], data, protocol="localization")
    with pytest.raises(ValueError, match="`keras_resnet.detect` takes detectors"):
        localize(tmp_path, create("fasterrcnn_resnet18_fpn", classes=3))
    with pytest.raises(ValueError, match="`protocol`"):
        localize(tmp_path, small_classifier(), protocol="ten_crop")
    model = small_classifier()
    model.get_layer("predictions").bias.assign([np.nan, 0])
    with pytest.raises(FloatingPointError, match="NaN"):
        evaluate(model, data, protocol="localization")


def test_the_commands(tmp_path):
    noisy_dataset(tmp_path / "data")
    model = tmp_path / "model.keras"
    small_classifier().save(model)
    arguments = ["evaluate", "--model", model, "--dataset", tmp_path / "data", "--protocol", "localization"]
    printed = json.loads(run_command(*arguments, "--json").stdout)
    expected = evaluate(small_classifier(), str(tmp_path / "data"), protocol="localization").to_json()
    assert printed == printed | json.loads(json.dumps(expected)) and printed["baselines"].keys() == {
        "whole_image",
        "mean_box",
    }
    text = run_command(*arguments, "--by-class").stdout
    assert "top-5 localization error" in text and "mean box" in text
    draw = tmp_path / "drawn"
    images = tmp_path / "data" / "val"
    text = run_command("predict", images, "--model", model, "--localize", "--top", "1", "--draw", draw).stdout
    assert "left" in text and len(list(draw.rglob("*.JPEG"))) == 3
    rows = json.loads(run_command("predict", images, "--model", model, "--localize", "--json").stdout)
    assert len(rows) == 6 and rows[0].keys() == {"image_id", "category_id", "bbox", "score"}
