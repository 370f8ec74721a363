"""Training: the quickstart end to end, recipes, schedules, and what a run leaves behind."""

import csv
import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image

import keras_resnet
from keras_resnet import Recipe, create, get_recipe, load_model, preprocessing
from keras_resnet.data.datasets import digits, evaluation_pipeline, training_pipeline
from keras_resnet.training.recipes import RECIPES
from keras_resnet.training.schedules import SCHEDULES

train = keras_resnet.train
TINY = {"depths": (1, 1, 1), "input_shape": (8, 8, 1), "classes": 10}


def test_the_quickstart_learns_the_digits_and_leaves_everything(tmp_path):
    """A tenth of the epochs, a tenth of the network; the whole of it is `keras-resnet train` in test_cli.py."""
    run = train(create("resnet20", **TINY), workdir=tmp_path / "run", epochs=6)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report == run.report and 0.9 < report["top1_accuracy"] <= 1
    assert report["top1_accuracy"] <= report["top5_accuracy"] <= 1
    assert report["test_images"] == 360 and report["training_images"] == 1437 and report["seed"] == 0
    with open(tmp_path / "run" / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and [float(row["val_accuracy"]) for row in rows] == pytest.approx(run.history["val_accuracy"])
    assert json.loads((tmp_path / "run" / "settings.json").read_text()).items() <= report.items()
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width > 400
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "curves.png",
        "history.csv",
        "model.keras",
        "report.json",
        "settings.json",
    ]

    model, (pictures, labels) = load_model(tmp_path / "run" / "model.keras"), digits().test
    scores = model.predict(preprocessing(model)(pictures), verbose=0)
    assert (scores.argmax(axis=1) == labels).mean() == pytest.approx(report["top1_accuracy"])
    assert list(model.info["class_names"]) == list("0123456789")


def test_the_same_seed_gives_the_same_pictures():
    data = digits()
    first, second, other = (next(iter(training_pipeline(data, 64, padding=1, seed=seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0], second[0])
    assert not np.array_equal(first[0], other[0])


def test_every_epoch_has_its_own_order_and_crops():
    pipeline = training_pipeline(digits(), 64, padding=1, seed=0)
    epochs = [np.concatenate([x for x, _ in pipeline.as_numpy_iterator()]) for _ in range(2)]
    assert not np.array_equal(*epochs)
    assert epochs[0].shape == (1437 // 64 * 64, 8, 8, 1)


def test_padding_moves_the_picture_and_no_more():
    data = digits()
    plain, moved = (
        np.sort(np.concatenate([x for x, _ in training_pipeline(data, 479, p).as_numpy_iterator()]).sum((1, 2, 3)))
        for p in (0, 1)
    )
    assert (moved <= plain + 1e-3).all() and not np.allclose(moved, plain)


def test_digits_are_whole_and_the_split_is_always_the_same():
    data = digits()
    (train_x, train_y), (test_x, test_y) = data.train, data.test
    assert len(train_y) + len(test_y) == 1797 and train_x.dtype == "uint8" and train_x.max() == 255
    np.testing.assert_array_equal(test_x, digits().test[0])
    assert np.abs(np.bincount(test_y) / 360 - np.bincount(train_y) / 1437).max() < 0.005
    x, y = next(iter(evaluation_pipeline(data, 360)))
    np.testing.assert_allclose(x, test_x / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(y, test_y)


def test_schedules_at_their_corners():
    recipe = Recipe(epochs=10, batch_size=8, learning_rate=0.4, warmup_epochs=2)
    cosine = SCHEDULES["cosine"](recipe, 100)
    step = SCHEDULES["step"](replace(recipe, warmup_epochs=0, schedule="step", milestones=(5, 8)), 100)
    values = [float(cosine(i)) for i in (0, 100, 200, 600, 1000)]
    assert values == pytest.approx([0, 0.2, 0.4, 0.2, 0], abs=1e-6)
    assert [float(step(i)) for i in (0, 500, 501, 800, 801)] == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004])
    assert SCHEDULES["constant"](recipe, 100) == 0.4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "epochs"),
        ({"epochs": 0}, "an integer, 1 or more"),
        ({"epochs": "many"}, "an integer, 1 or more"),
        ({"batch_size": 2.5}, "an integer, 1 or more"),
        ({"schedule": "cosin"}, "cosine"),
        ({"learning_rate": -1}, "0 or more"),
        ({"learning_rate": "fast"}, "0 or more"),
        ({"momentum": 1}, r"\[0, 1\)"),
        ({"padding": -1}, "0 or more"),
        ({"milestones": "often"}, "milestones"),
        ({"milestones": (8,)}, "step"),
        ({"schedule": "step", "warmup_epochs": 0, "milestones": (8, 5)}, "later"),
        ({"schedule": "step"}, "cosine"),
        ({"nesterov": "yes"}, "True or False"),
        ({"epochs": True}, "an integer, 1 or more"),
    ],
)
def test_a_recipe_refuses_what_makes_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        get_recipe("quickstart", **changes)


def test_recipes_are_rows():
    assert get_recipe("quickstart", epochs=2) == replace(get_recipe("quickstart"), epochs=2)
    assert RECIPES["quickstart"] == eval(repr(RECIPES["quickstart"]))
    with pytest.raises(ValueError, match="quickstart"):
        get_recipe("quickstrat")


def test_a_folder_with_another_run_is_not_overwritten(tmp_path):
    (tmp_path / "report.json").write_text("precious")
    with pytest.raises(FileExistsError, match="overwrite"):
        train(create("resnet20", **TINY), workdir=tmp_path, epochs=1)
    assert (tmp_path / "report.json").read_text() == "precious"
    run = train(create("resnet20", **TINY), workdir=tmp_path, epochs=1, overwrite=True)
    assert json.loads((tmp_path / "report.json").read_text()) == run.report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "digitz"}, "digits"),
        ({"model": "resnet21"}, "resnet20"),
        ({"batch_size": 5000}, "batch_size"),
        ({"model": "resnet50"}, "at least 32x32"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(workdir=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_decay_skips_biases_and_batch_norm_where_the_recipe_says_so():
    for decay_all, shrinks in ((True, True), (False, False)):
        model = create("resnet20", **TINY)
        gamma = model.get_layer("conv2_block1_1_bn").gamma
        recipe = get_recipe("quickstart", epochs=1, weight_decay=0.5, decay_all=decay_all, warmup_epochs=0)
        train(model, recipe=recipe)
        assert (float(keras.ops.mean(gamma)) < 0.7) == shrinks
