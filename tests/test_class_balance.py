"""Classes with different numbers of images: weights and oversampling against scikit-learn, Keras and counting."""

import warnings
from collections import Counter
from dataclasses import replace

import keras
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from keras_resnet import Recipe, from_arrays, train
from keras_resnet.data.class_balance import class_weights, images_per_epoch, warn_if_unbalanced
from keras_resnet.data.datasets import Dataset, Stream
from keras_resnet.data.pipelines import training_batches
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.normalization import Normalization
from keras_resnet.training.run_summary import class_table

COUNTS = (40, 9, 3)
LABELS = np.repeat(np.arange(3), COUNTS)
NAMES = ("ants", "bees", "wasps")
RECIPE = Recipe(epochs=1, batch_size=8, schedule="constant", learning_rate=0.1)
BALANCED = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)


@pytest.fixture
def unbalanced():
    """40, 9 and 3 images of three classes, each filled with its index."""
    images = np.broadcast_to(np.arange(52, dtype="uint8")[:, None, None, None], (52, 4, 4, 1))
    preprocessing = Preprocessing(Normalization(divisor=1.0), size=4, resize=None, channels=1)
    return from_arrays((images, LABELS), (images[::13], LABELS[::13]), NAMES, preprocessing=preprocessing)


def dense():
    """A softmax of the pixels."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Input((4, 4, 1)), keras.layers.Rescaling(1 / 52), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(3, "softmax")])


def stream(dataset):
    """The dataset with a Stream instead of its training images."""
    return Dataset("stream", Stream(lambda seed: None, 52), dataset.test, NAMES, dataset.preprocessing)


@pytest.mark.parametrize(
    ("class_weight", "expected"),
    [
        ("balanced", BALANCED),
        ({"bees": 2.5}, [1, 2.5, 1]),
        ({0: 0.5, "2": 3}, [0.5, 1, 3]),
        (None, None),
    ],
)
def test_class_weights_are_those_of_scikit_learn_or_the_given_ones(class_weight, expected, unbalanced):
    found = class_weights(unbalanced, replace(RECIPE, class_weight=class_weight).class_weight)
    assert found is expected is None or found == pytest.approx(expected)
    assert unbalanced.class_counts().tolist() == list(COUNTS)


def test_training_with_class_weights_equals_fit_of_keras(unbalanced, tmp_path):
    """The same batches, in the same order, through Keras's own `class_weight`."""
    recipe = replace(RECIPE, class_weight="balanced", iterations=6, epochs=None, weight_decay=0.0, momentum=0.0)

    ours, theirs = train(dense(), unbalanced, recipe).model, dense()
    theirs.compile(keras.optimizers.SGD(0.1), "categorical_crossentropy")
    batches = training_batches(unbalanced, replace(recipe, class_weight=None), 6)
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    weights = dict(enumerate(BALANCED))
    theirs.fit(images, labels, batch_size=8, shuffle=False, class_weight=weights, verbose=0)
    np.testing.assert_allclose(ours.layers[-1].kernel, theirs.layers[-1].kernel, rtol=1e-4, atol=1e-6)


def test_the_weight_of_a_mixed_image_is_the_average_of_its_classes(unbalanced):
    recipe = replace(RECIPE, class_weight="balanced", mixup=1.0, label_smoothing=0.0)
    for _, labels, weights in training_batches(unbalanced, recipe, 5):
        np.testing.assert_allclose(weights, np.asarray(labels) @ BALANCED, rtol=1e-5)
    smoothed = replace(recipe, label_smoothing=0.2)
    for (*_, weights), (*_, expected) in zip(
        training_batches(unbalanced, smoothed, 5), training_batches(unbalanced, recipe, 5), strict=True
    ):
        np.testing.assert_allclose(weights, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [4, pytest.param(6, id="4, resized to 6")])  # both ways to read images
def test_oversampled_epochs_have_each_class_equally_often(size, unbalanced):
    recipe = replace(RECIPE, oversample=True, train_size=size)
    assert images_per_epoch(unbalanced, recipe) == 3 * 40
    pairs = [
        (int(image[0, 0, 0]), int(np.argmax(label)))
        for images, labels in training_batches(unbalanced, recipe, 9 * 15, seed=1)
        for image, label in zip(np.asarray(images), np.asarray(labels), strict=True)
    ]
    assert all(LABELS[index] == label for index, label in pairs)
    epochs = [pairs[start : start + 120] for start in range(0, len(pairs), 120)]
    for epoch in epochs:
        assert Counter(label for _, label in epoch) == {0: 40, 1: 40, 2: 40}
        assert max(Counter(epoch).values()) == 14, "40 places for 3 images"
    assert epochs[0] != epochs[1]
    assert set(Counter(index for index, label in pairs if label == 1).values()) == {9 * 40 // 9}, "equal over 9 epochs"


def test_oversampled_runs_resume_and_divide_batches(unbalanced):
    recipe = replace(RECIPE, oversample=True)

    def images(**arguments):
        return [np.asarray(batch[0]) for batch in training_batches(unbalanced, recipe, seed=2, **arguments)]

    whole = images(steps=32)
    np.testing.assert_array_equal(images(steps=13, first=19), whole[19:])
    halves = [images(steps=32, share=(part, 2)) for part in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_weight": {"beess": 2}}, "Nearest: .'bees'"),
        ({"class_weight": {3: 2}}, "names or indices of classes"),
        ({"class_weight": {"bees": -1}}, "from 0 to 1e38"),
        ({"class_weight": "balance"}, "balanced"),
        ({"oversample": 2}, "True or False"),
    ],
)
def test_invalid_class_weights_are_refused_before_training(changes, message, unbalanced, tmp_path):
    with pytest.raises(ValueError, match=message):
        train("resnet20", unbalanced, RECIPE, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_streams_cannot_be_counted_but_weighted_by_given_values(unbalanced):
    dataset = stream(unbalanced)
    assert dataset.class_counts() is None
    for changes in ({"class_weight": "balanced"}, {"oversample": True}):
        with pytest.raises(ValueError, match="left out for a dataset that is read as a stream"):
            train("resnet20", dataset, RECIPE, **changes)
    assert class_weights(dataset, {"bees": 2.0}).tolist() == [1, 2, 1]


def test_several_labels_an_image_have_no_class_weights(unbalanced):
    splits = {
        name: replace(split, labels=np.eye(3, dtype="uint8")[split.labels] | np.array([1, 0, 0], "uint8"))
        for name, split in (("train", unbalanced.train), ("test", unbalanced.test))
    }
    dataset = replace(unbalanced, **splits)
    assert dataset.class_counts().tolist() == [52, 9, 3]
    for changes in ({"class_weight": "balanced"}, {"class_weight": {"bees": 2}}, {"oversample": True}):
        with pytest.raises(ValueError, match="several labels each"):
            train("resnet20", dataset, RECIPE, **changes)


def test_classes_are_listed_and_large_differences_warned_of(unbalanced, capsys):
    colours = ("red", "green", "blue")
    with pytest.warns(UserWarning, match="'red' has 40 training images, 'blue' has 3"):
        train(dense(), replace(unbalanced, class_names=colours), replace(RECIPE, epochs=None, iterations=1))
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert [line for line in lines if {*line} & {*colours}] == [["red", "40"], ["green", "9"], ["blue", "3"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warn_if_unbalanced(unbalanced, replace(RECIPE, oversample=True))
        warn_if_unbalanced(unbalanced, replace(RECIPE, class_weight="balanced"))


def test_of_many_classes_the_largest_and_smallest_are_listed():
    rows = class_table([f"class {index}" for index in range(30)], {"images": range(0, 3000, 100), "objects": range(30)})
    assert [row["images"] for row in rows] == [
        *("2,900", "2,800", "2,700", "2,600", "2,500"),
        "",
        *("400", "300", "200", "100", "0"),
    ]
    assert rows[5] == {"class": "(20 more)", "images": "", "objects": ""}
    assert rows[0] == {"class": "class 29", "images": "2,900", "objects": "29"}
