"""Training of localizers: their losses, runs of `train`, and frozen classifiers."""


import numpy as np
import pytest
from support import random_images, randomize_weights

from keras_resnet import LocalizerSpec, ResNetSpec, build
from keras_resnet.architecture.localizer import relative_anchors
from keras_resnet.training.localizer_training import localizer_training_model

SMALL = ResNetSpec("basic", (1, 1), (8, 16), stem="cifar", stem_width=8)


def overlap(box, other):
    """Intersection over union of two boxes."""
    width, height = (max(0, min(box[i + 2], other[i + 2]) - max(box[i], other[i])) for i in (0, 1))
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, other)]
    return width * height / (sum(areas) - width * height)


def smooth_l1(errors, beta=1 / 9):
    errors = np.abs(errors)
    return np.where(errors < beta, errors**2 / (2 * beta), errors - beta / 2).sum()


def test_the_dense_loss_is_that_of_the_paper():
    """Anchor by anchor: binary cross-entropy of positive and negative ones in equal parts, offsets of positive ones."""
    spec = LocalizerSpec(SMALL, "dense", box_width=12, anchor_sizes=(8, 16), classes=3)
    model, losses = localizer_training_model(randomize_weights(build(spec, input_shape=(24, 32, 3))))
    outputs = model.predict(random_images(3, 24, 32, 3), verbose=0)
    targets = np.array([[0.11, 0.23, 0.62, 0.71, 2, 1], [0.512, 0.107, 0.893, 0.931, 0, 1], [0, 0, 0, 0, 1, 0]], "float32")
    anchors = np.array(relative_anchors((8, 16), 2, (12, 16), (24, 32))).astype(float)
    expected = []
    for values, (*box, label, _) in zip(outputs["anchors"][:2].astype(float), targets[:2].tolist(), strict=True):
        overlaps = np.array([overlap(box, anchor) for anchor in anchors])
        scores, offsets = {True: [], False: []}, []
        for anchor, value, found in zip(anchors, values, overlaps, strict=True):
            positive = found >= 0.7 or found == overlaps.max()
            if positive or found < 0.3:
                true = np.eye(3)[int(label)] * positive
                scores[positive].append(np.sum(np.log1p(np.exp(value[:, 0])) - true * value[:, 0]))
            if positive:
                sides, its_sides = np.subtract(box[2:], box[:2]), anchor[2:] - anchor[:2]
                shift = (np.add(box[:2], box[2:]) - anchor[:2] - anchor[2:]) / 2 / its_sides
                offset = np.concatenate([shift, np.log(sides / its_sides)])
                offsets.append(smooth_l1(value[int(label), 1:] - offset))
        expected.append((np.mean(scores[True]) + np.mean(scores[False])) / 2 + np.mean(offsets))
    found = np.array(losses["anchors"](targets, outputs["anchors"]))
    np.testing.assert_allclose(found, [*expected, 0], rtol=1e-4)


@pytest.mark.parametrize("boxes", ["shared", "per_class"])
def test_only_the_box_of_the_true_class_is_trained(boxes):
    spec = LocalizerSpec(SMALL, boxes, box_width=12, classes=3)
    model, losses = localizer_training_model(randomize_weights(build(spec, input_shape=(24, 24, 3))))
    found = model.predict(random_images(2, 24, 24, 3), verbose=0)["boxes"]
    targets = np.array([[0.1, 0.2, 0.6, 0.7, 2, 1], [0.5, 0.1, 0.9, 0.95, 0, 1]], "float32")
    rows = [0, 0] if boxes == "shared" else [2, 0]
    expected = [5 * smooth_l1(found[i, row] - targets[i, :4]) for i, row in enumerate(rows)]
    np.testing.assert_allclose(losses["boxes"](targets, found), expected, rtol=1e-5)
    unweighted = targets * [1, 1, 1, 1, 1, 0]
    np.testing.assert_array_equal(losses["boxes"](unweighted.astype("float32"), found), 0)
