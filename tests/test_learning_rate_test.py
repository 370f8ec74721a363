"""The learning-rate range test against training by hand, and its files."""

import csv
import json

import keras
import numpy as np
import pytest
from PIL import Image
from support import run_command

from keras_resnet import Recipe, from_arrays, learning_rate_test
from keras_resnet.data.pipelines import training_batches


@pytest.fixture
def images():
    generator = np.random.default_rng(0)
    pixels, labels = generator.integers(0, 256, (64, 4, 4, 1), "uint8"), np.arange(64) % 2
    return from_arrays((pixels, labels), (pixels, labels))


def dense():
    return keras.Sequential([keras.layers.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")])


def test_losses_equal_those_of_sgd_by_hand(images, tmp_path):
    """A softmax of the pixels in NumPy, with a rate from 0.001 to 10, until the loss diverges."""
    model, recipe = dense(), Recipe(iterations=30, batch_size=16, momentum=0.0, weight_decay=0.0)
    kernel, losses = keras.ops.convert_to_numpy(model.layers[-1].kernel).copy(), []
    rates = 0.001 * 10_000 ** (np.arange(30) / 29)
    for rate, (pixels, labels) in zip(rates, training_batches(images, recipe, 30), strict=True):
        x, y = np.asarray(pixels).reshape(16, -1), np.asarray(labels)
        scores = np.exp(x @ kernel)
        probabilities = scores / scores.sum(1, keepdims=True)
        losses.append(-np.log((probabilities * y).sum(1)).mean())
        kernel -= rate * x.T @ (probabilities - y) / 16
    result = learning_rate_test(lambda: model, images, recipe, tmp_path, lowest=0.001, highest=10.0, steps=30)
    count = len(result.losses)
    assert 10 < count <= 30
    np.testing.assert_allclose(result.learning_rates, rates[:count], rtol=1e-5)
    np.testing.assert_allclose(result.losses[:15], losses[:15], rtol=1e-3)
    assert result.suggestion == pytest.approx(rates[np.argmin(result.smoothed)] / 10)
    with open(tmp_path / "learning_rate.csv") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == pytest.approx(result.losses)
    with Image.open(tmp_path / "learning_rate.png") as plot:
        assert plot.format == "PNG" and plot.width > 400


def test_the_command_suggests_a_rate(tmp_path):
    words = ("study", "learning-rate", "--steps", 20, "--workdir", tmp_path / "test", "--json")
    result = run_command(*words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert 1e-6 < found["suggestion"] < 1 and len(found["losses"]) == len(found["learning_rates"]) <= 20


@pytest.mark.parametrize("arguments", [{"lowest": 0}, {"lowest": 2, "highest": 1}, {"steps": 1}])
def test_invalid_ranges_are_refused(arguments, tmp_path):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` should be"):
        learning_rate_test(workdir=tmp_path / "test", **arguments)
    assert not (tmp_path / "test").exists()
