"""Evaluation of segmenters: masks of all test images against scikit-learn, and bad input."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics
from support import brightest_channel, cifar_network, png_bytes, small_segmenter

from keras_resnet import evaluate, from_arrays, load_dataset, segment
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.data.sources import load_test
from keras_resnet.evaluation_results import write_predictions
from keras_resnet.segmentation_evaluation import dataset_indices
from keras_resnet.segmentation_results import plot_pixel_confusion

COLORS = ("red", "green", "blue")


def masked_images(count=6, height=12, width=9, seed=0):
    """(images, masks of three classes): masks that agree with the brightest colour in most pixels, a few of 255."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, height, width, 3), "uint8")
    shape = (count, height, width)
    masks = np.where(random.random(shape) < 0.7, images.argmax(-1), random.integers(0, 3, shape))
    masks[random.random(masks.shape) < 0.1] = 255
    return images, masks


def arrays_dataset(class_names=COLORS, **arguments):
    return from_arrays(masked_images(seed=1), masked_images(), class_names=class_names, **arguments)


def folder_dataset(folder, sizes=((12, 9), (20, 30), (12, 9), (7, 40))):
    """A folder of images of several sizes and their masks, and the pixels of both."""
    found = []
    for number, (height, width) in enumerate(sizes):
        (image,), (mask,) = masked_images(1, height, width, seed=number)
        for kind, array in (("images", image), ("masks", mask.astype("uint8"))):
            path = folder / "test" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png_bytes(array))
        found.append((image, mask))
    (folder / "classes.txt").write_text("\n".join(COLORS))
    return found


def flat_pixels(pairs):
    """True and predicted classes of all pixels that count, of (image, mask) pairs."""
    true = np.concatenate([mask.ravel() for _, mask in pairs])
    predicted = np.concatenate([image.argmax(-1).ravel() for image, _ in pairs])
    return true[true != 255], predicted[true != 255]


def test_metrics_of_all_pixels_are_those_of_scikit_learn():
    result = evaluate(brightest_channel(), arrays_dataset())
    true, predicted = flat_pixels(list(zip(*masked_images(), strict=True)))
    np.testing.assert_array_equal(result.confusion, metrics.confusion_matrix(true, predicted))
    np.testing.assert_allclose(result.iou, metrics.jaccard_score(true, predicted, average=None))
    np.testing.assert_allclose(result.dice, metrics.f1_score(true, predicted, average=None))
    np.testing.assert_allclose(result.mean_iou, metrics.jaccard_score(true, predicted, average="macro"))
    np.testing.assert_allclose(result.mean_accuracy, metrics.balanced_accuracy_score(true, predicted))
    assert result.pixel_accuracy == metrics.accuracy_score(true, predicted)
    assert (result.num_images, result.num_pixels, result.classes) == (6, len(true), COLORS)
    assert len(repr(result)) < 120


@pytest.mark.parametrize("batch_size", [1, 3])
def test_images_and_masks_of_several_sizes(batch_size, tmp_path):
    """At the size of each image, whatever the size of the inputs; in the order of the data set."""
    pairs = folder_dataset(tmp_path)
    done = []
    result = evaluate(brightest_channel(), tmp_path, batch_size=batch_size, progress=done.append)
    true, predicted = flat_pixels(pairs)
    np.testing.assert_array_equal(result.confusion, metrics.confusion_matrix(true, predicted))
    assert done == [1, 2, 3, 4]
    assert [image.name for image in result.images] == [str(tmp_path / f"test/images/{i}.png") for i in range(4)]
    for image, pair in zip(result.images, pairs, strict=True):
        assert image.pixel_accuracy == metrics.accuracy_score(*flat_pixels([pair]))
        np.testing.assert_allclose(image.mean_iou, metrics.jaccard_score(*flat_pixels([pair]), average="macro"))


def test_a_keras_segmenter_is_evaluated_as_segment_predicts(tmp_path):
    model = small_segmenter(classes=3)
    prepared = SegmentationPreprocessing("torch", shorter_side=16)
    model.info = {"preprocessing": prepared.to_config(), "class_names": list(COLORS)}
    pairs = folder_dataset(tmp_path)
    for protocol, changes in (("whole", {}), ("flip", {}), ("sliding_window", {"window": 10})):
        result = evaluate(model, load_test(tmp_path, masks=True), protocol, **changes)
        found = segment([image for image, _ in pairs], model, protocol, **changes)
        true = np.concatenate([mask.ravel() for _, mask in pairs])
        predicted = np.concatenate([one.mask.ravel() for one in found])
        expected = metrics.confusion_matrix(true[true != 255], predicted[true != 255], labels=range(3))
        assert np.abs(result.confusion - expected).sum() <= 4  # equally probable classes


def test_classes_are_matched_by_name():
    """The data set's classes in another order, without one that the model has, and one more that no mask has."""
    images, masks = masked_images()
    masks = np.select([masks == 0, masks == 1], [1, 255], np.where(masks == 2, 0, 255))
    dataset = from_arrays((images, masks), (images, masks), class_names=["blue", "red"])
    result = evaluate(brightest_channel(), dataset)
    true, predicted = masks[masks != 255], images.argmax(-1)[masks != 255]
    predicted = np.array([1, 2, 0])[predicted]
    np.testing.assert_allclose(result.iou, metrics.jaccard_score(true, predicted, labels=[0, 1], average=None))
    assert result.pixel_accuracy == metrics.accuracy_score(true, predicted)
    assert result.counts[:, 2].sum() == (predicted == 2).sum() > 0
    with pytest.raises(ValueError, match="among the model's 3 classes; 1 of 3 are not.*labels='purple'"):
        evaluate(brightest_channel(), arrays_dataset(("red", "green", "purple")))


def test_indices_of_classes():
    np.testing.assert_array_equal(dataset_indices(["a", "b", "c"], ["c", "a"]), [1, 2, 0])
    np.testing.assert_array_equal(dataset_indices(["background", "b"], ["__background__", "b"]), [0, 1])
    np.testing.assert_array_equal(dataset_indices(["class 0", "class 1"], ["class 0", "class 1"]), [0, 1])
    with pytest.warns(UserWarning, match="names of the model's classes are not known.*0: cat, 1: dog"):
        np.testing.assert_array_equal(dataset_indices(["class 0", "class 1"], ["cat", "dog"]), [0, 1])
    names = [f"name {index}" for index in range(255)]
    np.testing.assert_array_equal(dataset_indices(names[::-1], names), np.arange(255)[::-1])


def test_an_index_that_does_not_count(tmp_path):
    """Class 2 as pixels that do not count, given with the name of a data set."""
    pairs = folder_dataset(tmp_path)
    (tmp_path / "classes.txt").write_text("red\ngreen")
    result = evaluate(brightest_channel(), tmp_path, ignore_index=2)
    true, predicted = flat_pixels(pairs)
    true, predicted = true[true != 2], predicted[true != 2]
    np.testing.assert_array_equal(result.confusion, metrics.confusion_matrix(true, predicted)[:2, :2])
    with pytest.raises(ValueError, match="`ignore_index` should be given to `load_dataset`"):
        evaluate(brightest_channel(), load_test(tmp_path, masks=True, ignore_index=2), ignore_index=2)
    with pytest.raises(ValueError, match="`ignore_index` should be left out for networks that are no segmenters"):
        evaluate(cifar_network(), "digits", ignore_index=2)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_files_that_become_unreadable(kind, tmp_path):
    folder_dataset(tmp_path)
    dataset = load_test(tmp_path, masks=True)
    path = tmp_path / "test" / kind / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"Received: 1 unreadable:\n .*images/1.png"):
        evaluate(brightest_channel(), dataset)
    result = evaluate(brightest_channel(), dataset, skip_bad=True)
    assert result.num_images == 3 and len(result.skipped) == 1 and "1.png" in result.skipped[0]
    Image.new("L", (5, 5)).save(tmp_path / "test" / "masks" / "2.png")
    with pytest.raises(ValueError, match="mask"):
        evaluate(brightest_channel(), replace(dataset, test=dataset.test[[2]]))


def test_results_as_files(tmp_path):
    folder_dataset(tmp_path)
    (tmp_path / "classes.txt").write_text("\n".join(COLORS))
    result = evaluate(brightest_channel(), tmp_path)
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert values["mean_iou"] == result.mean_iou and values["num_images"] == 4
    assert [row["iou"] for row in values["by_class"]] == result.iou
    assert sum(row["num_pixels"] for row in values["by_class"]) == values["num_pixels"] == result.num_pixels
    write_predictions(result, tmp_path / "images.csv")
    with open(tmp_path / "images.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean_iou"]) for row in rows] == [image.mean_iou for image in result.images]
    assert list(rows[0]) == ["image", "num_pixels", "pixel_accuracy", "mean_iou", *(f"iou({name})" for name in COLORS)]
    plot_pixel_confusion(result, tmp_path / "confusion.png")
    assert Image.open(tmp_path / "confusion.png").format == "PNG"


def test_without_pixels_that_count():
    images, masks = masked_images()
    nothing = from_arrays((images, masks), (images, np.full_like(masks, 255)), class_names=COLORS)
    result = evaluate(brightest_channel(), nothing)
    assert result.mean_iou is None and result.num_pixels == 0 and "mean_iou=None" in repr(result)
    assert json.loads(json.dumps(result.to_json()))["by_class"][0]["iou"] is None


def test_data_sets_and_ensembles_that_do_not_fit():
    labelled = from_arrays((np.zeros((10, 8, 8, 3), "uint8"), np.arange(10) % 2))
    with pytest.raises(ValueError, match="`dataset` should be one with masks of classes, loaded with `masks=True`"):
        evaluate(brightest_channel(), labelled)
    with pytest.raises(ValueError, match="`models` should be one segmenter, or classifiers"):
        evaluate([brightest_channel()] * 2, arrays_dataset())
    with pytest.raises(ValueError, match="`protocol` should be one of .*'whole'"):
        evaluate(brightest_channel(), arrays_dataset(), "center")


def test_masks_of_real_scenes(test_data):
    """The true masks of CamVid as predictions, and as those of a model that takes cars for roads."""
    dataset = load_dataset(test_data / "camvid", masks=True, ignore_index=11)
    test = dataset.test[:3]
    masks = iter([test.masks.read(index) for index in np.lexsort(test.masks.sizes.T)] * 2)
    names, wrong = dataset.class_names, np.arange(256)

    def probabilities(images):
        return np.eye(len(names), dtype="float32")[np.minimum(wrong[next(masks)], len(names) - 1)][None]

    model = brightest_channel(class_names=names, probabilities=probabilities)
    perfect = evaluate(model, replace(dataset, test=test))
    assert perfect.mean_iou == perfect.pixel_accuracy == 1 and set(perfect.iou) <= {1.0, None}
    counts = [row["num_pixels"] for row in perfect.by_class]
    first, second = np.argsort(counts)[-2:].tolist()
    wrong[first] = second
    result = evaluate(model, replace(dataset, test=test))
    assert result.iou[first] == 0 and result.iou[second] == counts[second] / (counts[first] + counts[second])
    np.testing.assert_allclose(result.pixel_accuracy, 1 - counts[first] / sum(counts))
