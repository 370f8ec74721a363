"""Metrics of pixels, against scikit-learn and Keras."""

import keras
import numpy as np
import pytest
from sklearn import metrics

from keras_resnet.segmentation_metrics import (
    class_accuracy,
    class_dice,
    class_iou,
    confusion_matrix,
    frequency_weighted_iou,
    pixel_accuracy,
    segmentation_metrics,
)


def random_masks(num_classes=6, shape=(40, 50), ignored=0.1, seed=0):
    """A true mask with pixels that do not count, and a predicted one that often agrees with it."""
    random = np.random.default_rng(seed)
    mask = random.choice(num_classes, shape, p=np.arange(1, num_classes + 1) / sum(range(num_classes + 1)))
    predicted = np.where(random.random(shape) < 0.6, mask, random.integers(0, num_classes, shape)).astype("uint8")
    return np.where(random.random(shape) < ignored, 255, mask).astype("uint8"), predicted


def counted(mask, predicted):
    """True and predicted classes of the pixels that count."""
    return mask[mask != 255], predicted[mask != 255]


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_scikit_learn(seed):
    mask, predicted = random_masks(seed=seed)
    confusion, (true, found) = confusion_matrix(mask, predicted, 6), counted(mask, predicted)
    np.testing.assert_array_equal(confusion[:, :6], metrics.confusion_matrix(true, found, labels=range(6)))
    assert not confusion[:, 6].any()
    np.testing.assert_allclose(class_iou(confusion), metrics.jaccard_score(true, found, average=None))
    np.testing.assert_allclose(class_dice(confusion), metrics.f1_score(true, found, average=None))
    np.testing.assert_allclose(class_accuracy(confusion), metrics.recall_score(true, found, average=None))
    assert pixel_accuracy(confusion) == metrics.accuracy_score(true, found)
    expected = metrics.jaccard_score(true, found, average="weighted")
    np.testing.assert_allclose(frequency_weighted_iou(confusion), expected)
    means = segmentation_metrics(confusion)
    np.testing.assert_allclose(means["mean_iou"], metrics.jaccard_score(true, found, average="macro"))
    np.testing.assert_allclose(means["mean_dice"], metrics.f1_score(true, found, average="macro"))
    np.testing.assert_allclose(means["mean_accuracy"], metrics.balanced_accuracy_score(true, found))


def test_the_mean_iou_is_that_of_keras_over_several_images():
    """Class 6 occurs nowhere; Keras leaves it out, too."""
    expected, confusion = keras.metrics.MeanIoU(num_classes=7, ignore_class=255), 0
    for seed in range(4):
        mask, predicted = random_masks(seed=seed)
        expected.update_state(mask, predicted)
        confusion = confusion + confusion_matrix(mask, predicted, 7)
    np.testing.assert_allclose(segmentation_metrics(confusion)["mean_iou"], float(expected.result()), rtol=1e-6)


def test_classes_that_do_not_occur_are_left_out_of_means():
    """Class 1 is only predicted, 2 only true, 3 neither."""
    mask, predicted = np.array([[0, 0, 0, 2, 255]], "uint8"), np.array([[0, 0, 1, 0, 3]], "uint8")
    confusion, (true, found) = confusion_matrix(mask, predicted, 4), counted(mask, predicted)
    assert class_iou(confusion) == [0.5, 0, 0, None] and class_accuracy(confusion) == [2 / 3, None, 0, None]
    assert class_dice(confusion) == [2 / 3, 0, 0, None]
    means = segmentation_metrics(confusion)
    assert means["mean_iou"] == metrics.jaccard_score(true, found, average="macro") == 1 / 6
    assert means["mean_accuracy"] == (2 / 3 + 0) / 2


def test_predictions_of_other_classes_are_wrong():
    """As another class in scikit-learn, of which only the data set's are averaged."""
    mask, predicted = random_masks(num_classes=5)
    predicted[predicted == 4] = 200
    mask[mask == 4] = 0
    confusion, (true, found) = confusion_matrix(mask, predicted, 4), counted(mask, predicted)
    assert confusion[:, 4].sum() == (found == 200).sum() > 0
    labels = range(4)
    np.testing.assert_allclose(class_iou(confusion), metrics.jaccard_score(true, found, labels=labels, average=None))
    np.testing.assert_allclose(class_dice(confusion), metrics.f1_score(true, found, labels=labels, average=None))
    assert pixel_accuracy(confusion) == metrics.accuracy_score(true, found)


def test_without_pixels_nothing_is_defined():
    confusion = confusion_matrix(np.full((2, 2), 255, "uint8"), np.zeros((2, 2), "uint8"), 3)
    assert set(segmentation_metrics(confusion).values()) == {None}


def test_as_many_classes_as_a_mask_has_values():
    mask = np.arange(255, dtype="uint8").reshape(15, 17)
    confusion = confusion_matrix(mask, mask[::-1].copy(), 255)
    np.testing.assert_array_equal(
        confusion[:, :255], metrics.confusion_matrix(mask.ravel(), mask[::-1].ravel(), labels=range(255))
    )


@pytest.mark.parametrize(
    ("mask", "predicted", "message"),
    [
        (np.zeros((2, 3), "uint8"), np.zeros((3, 2), "uint8"), r"`predicted` should be of the height .*\(2, 3\)"),
        (
            np.full((2, 2), 3, "uint8"),
            np.zeros((2, 2), "uint8"),
            "`mask` should be classes from 0 to 2, or 255.*mask=3",
        ),
    ],
)
def test_masks_that_do_not_fit(mask, predicted, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(mask, predicted, 3)
