"""Probes, nearest images and feature maps: against NumPy and closed forms, on clusters of known distribution."""

import numpy as np
import pytest
from PIL import Image

from keras_resnet.transfer.probes import (
    feature_map,
    linear_probe,
    nearest_images,
    nearest_neighbours,
    plot_feature_map,
)

CLASSES = ("ants", "bees", "wasps")


def clusters(count, seed=0, size=8, distance=6.0):
    """(count, size) vectors of three normally distributed clusters, and their labels."""
    generator = np.random.default_rng(seed)
    centres = distance * np.eye(3, size)
    labels = np.arange(count) % 3
    return (centres[labels] + generator.normal(size=(count, size))).astype("float32"), labels


def test_linear_probe_on_separable_and_on_overlapping_clusters():
    (train, labels), (test, expected) = clusters(90), clusters(60, seed=1)
    scales = np.logspace(-6, 6, 8, dtype="float32")  # standardised away
    probe = linear_probe(train * scales, labels, test * scales, expected)
    assert probe.top1_accuracy == (probe.predictions == expected).mean() >= 0.98
    shuffled = np.random.default_rng(0).permutation(labels)
    assert linear_probe(train, shuffled, test, expected).top1_accuracy < 0.7
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    near = clusters(300, distance=2.0), clusters(300, seed=1, distance=2.0)
    optimal = LinearDiscriminantAnalysis().fit(*near[0]).score(*near[1])  # for normal distributions
    assert linear_probe(*near[0], *near[1]).top1_accuracy == pytest.approx(optimal, abs=0.03)


def test_nearest_neighbours_and_images_match_numpy():
    (train, labels), (test, expected) = clusters(60, distance=2.0), clusters(30, seed=1, distance=2.0)
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (test, train)]
    cosines = unit[0] @ unit[1].T
    order = np.argsort(-cosines, axis=1)
    votes = [np.bincount(labels[row[:7]], minlength=3).argmax() for row in order]
    probe = nearest_neighbours(train, labels, test, expected, k=7)
    assert probe.predictions.tolist() == votes and probe.top1_accuracy == (np.array(votes) == expected).mean()
    names = [f"{index}.png" for index in range(60)]
    for query, row in enumerate(nearest_images(test, 5 * train, names, k=3)):
        assert [name for name, _ in row] == [names[n] for n in order[query, :3]]
        np.testing.assert_allclose([cosine for _, cosine in row], cosines[query, order[query, :3]], atol=1e-5)


def test_feature_map_keeps_clusters_together(tmp_path):
    from sklearn.metrics import silhouette_score

    vectors, labels = clusters(90, size=60)
    points = feature_map(vectors)
    assert points.shape == (90, 2) and silhouette_score(points, labels) > 0.6
    assert feature_map(vectors[:4]).shape == (4, 2)
    for classes in (labels, labels - 1):
        plot_feature_map(points, classes, CLASSES, tmp_path / "map.png", "a map")
        with Image.open(tmp_path / "map.png") as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 3
    with pytest.raises(ValueError, match="each label should have a class name"):
        plot_feature_map(points, labels + 9, CLASSES, tmp_path / "other.png")


def test_invalid_probe_arguments():
    vectors, labels = clusters(30)
    for arguments, message in (
        ((vectors, labels * 0, vectors, labels), "at least two classes"),
        ((vectors, labels, vectors, labels + 1), r"Received: \[3\], which are not"),
        ((vectors, labels - 1, vectors, labels), "integers from 0"),
        ((vectors, labels[1:], vectors, labels), "`train_labels` should be 30 integers"),
        ((vectors, labels, vectors[:, :4], labels), "same D"),
        ((vectors * np.nan, labels, vectors, labels), "finite"),
        ((vectors[:, 0], labels, vectors, labels), r"should be \(N, D\)"),
    ):
        for probe in (linear_probe, nearest_neighbours):
            with pytest.raises(ValueError, match=message):
                probe(*arguments)
    with pytest.raises(ValueError, match="each class at least twice"):
        linear_probe(vectors[:4], labels[:4], vectors, labels)
    for k in (0, 31, 1.5):
        with pytest.raises(ValueError, match="`k` should be an integer from 1 to 30"):
            nearest_neighbours(vectors, labels, vectors, labels, k)
    with pytest.raises(ValueError, match="`names` should be 30"):
        nearest_images(vectors, vectors, ["a"])
    for few in (vectors[:3], vectors[:, :1], vectors * 0):
        with pytest.raises(ValueError, match="at least four"):
            feature_map(few)
