"""Training: what a run does with a recipe, and what it leaves behind."""

import csv
import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image

import keras_resnet
from keras_resnet import Recipe, create, from_arrays, get_spec, load_dataset, load_model, preprocessing
from keras_resnet.training.callbacks import CheckpointCallback
from keras_resnet.training.curves import draw_curves
from keras_resnet.training.ema import recompute_batch_norm
from keras_resnet.training.train import _equal_epochs

train = keras_resnet.train
TINY = {"depths": (1, 1, 1), "input_shape": (8, 8, 1), "classes": 10}
SPEC = replace(get_spec("resnet20"), depths=(1, 1, 1))


def test_the_quickstart_learns_the_digits_and_leaves_everything(tmp_path):
    """A tenth of the epochs, a tenth of the network; the whole of it is `keras-resnet train` in test_cli.py."""
    folder = tmp_path / "run"
    run = train(create("resnet20", **TINY), workdir=folder, epochs=6, tensorboard=True)
    report = json.loads((folder / "report.json").read_text())
    assert report == run.report and 0.9 < report["top1_accuracy"] <= report["top5_accuracy"] <= 1
    assert report["test_images"] == 360 and report["training_images"] == 1437 and report["seed"] == 0
    assert report["versions"]["keras"] == keras.__version__ and report["wall_time_s"] > 0
    with open(folder / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_accuracy"]) for row in rows] == pytest.approx(run.history["val_accuracy"])
    assert [int(row["step"]) for row in rows] == [22, 44, 66, 88, 110, 132]
    assert json.loads((folder / "settings.json").read_text()).items() <= report.items()
    with Image.open(folder / "curves.png") as image:
        assert image.format == "PNG" and image.width > 400
    names = "checkpoint.safetensors curves.png history.csv model.keras report.json settings.json tensorboard"
    assert sorted(path.name for path in folder.iterdir()) == names.split()
    assert any((folder / "tensorboard").rglob("events.*"))

    model, test = load_model(folder / "model.keras"), load_dataset("digits").test
    scores = model.predict(preprocessing(model)(test.images), verbose=0)
    assert (scores.argmax(axis=1) == test.labels).mean() == pytest.approx(report["top1_accuracy"])
    assert list(model.info["class_names"]) == list("0123456789")


def test_cross_entropy_falls_to_what_sgd_by_hand_reaches():
    """One step against the formula, on a network of one layer: w -= rate * (gradient + decay * w)."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (8, 4, 4, 1), "uint8")
    labels = np.arange(8) % 2
    flat = keras.Sequential([keras.layers.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")])
    before = flat.layers[-1].kernel.numpy()
    data = from_arrays((images, labels), (images, labels))
    recipe = Recipe(iterations=1, batch_size=8, schedule="constant", learning_rate=0.1, weight_decay=0.01)
    train(flat, data, recipe)
    x = images.reshape(8, -1) / 127.5 - 1
    scores = x @ before
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    gradient = x.T @ (shares - np.eye(2)[labels]) / 8
    np.testing.assert_allclose(
        flat.layers[-1].kernel.numpy(), before - 0.1 * (gradient + 0.01 * before), rtol=1e-4, atol=1e-6
    )


def test_binary_cross_entropy_trains_and_leaves_a_softmax(tmp_path):
    run = train(SPEC, workdir=tmp_path, epochs=6, loss="binary_cross_entropy", target_threshold=0.2, learning_rate=0.5)
    assert run.report["top1_accuracy"] > 0.6
    scores = load_model(tmp_path / "model.keras").predict(np.zeros((3, 8, 8, 1)), verbose=0)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


def test_averaged_weights_are_judged_and_kept(tmp_path, monkeypatch):
    """Against an average that this test computes from the weights after every step of a run without one."""
    decay, weights = 0.8, []
    recipe = Recipe(iterations=5, batch_size=64, ema_decay=0.0, learning_rate=0.01, schedule="constant")
    with monkeypatch.context() as patch:
        own = CheckpointCallback.on_train_batch_end

        def on_train_batch_end(self, batch, logs=None):
            weights.append(keras.ops.convert_to_numpy(self.model.get_layer("conv1_conv").kernel).copy())
            own(self, batch, logs)

        patch.setattr(CheckpointCallback, "on_train_batch_end", on_train_batch_end)
        train(SPEC, recipe=recipe)
    assert len(weights) == 5
    expected = weights[0]  # Keras begins with the weights after the first step
    for after in weights[1:]:
        expected = decay * expected + (1 - decay) * after
    averaged = train(SPEC, recipe=replace(recipe, ema_decay=decay), workdir=tmp_path)
    np.testing.assert_allclose(averaged.model.get_layer("conv1_conv").kernel, expected, atol=1e-5)
    saved = load_model(tmp_path / "model.keras").get_layer("conv1_conv").kernel
    np.testing.assert_allclose(saved, expected, atol=1e-5)


def test_batch_norm_statistics_are_those_of_the_images():
    """Precise BN against NumPy: the mean over batches of each batch's mean and variance."""
    model = create("resnet20", **TINY)
    batches = np.random.default_rng(0).normal(2, 3, (5, 16, 8, 8, 1)).astype("float32")
    recompute_batch_norm(model, batches)
    first = keras.Model(model.inputs, model.get_layer("conv1_conv").output)
    seen = np.stack([keras.ops.convert_to_numpy(first(batch)) for batch in batches])
    layer = model.get_layer("conv1_bn")
    np.testing.assert_allclose(layer.moving_mean, seen.mean((1, 2, 3)).mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, seen.var((1, 2, 3)).mean(0), rtol=1e-4)
    assert layer.momentum == model.spec.bn_momentum


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precisions_train(precision):
    run = train(SPEC, epochs=3, precision=precision)
    assert run.report["precision"] == precision and run.report["top1_accuracy"] > 0.5
    assert keras.config.dtype_policy().name == "float32", "only the network's"


def test_the_test_set_can_be_looked_at_once(tmp_path):
    run = train(SPEC, epochs=3, validation_freq=3, workdir=tmp_path)
    assert run.history["val_accuracy"][:2] == [None, None]
    assert train(SPEC, epochs=3, validation_freq=2).history["val_accuracy"][1] > 0
    assert run.history["val_accuracy"][2] == pytest.approx(run.report["top1_accuracy"])


@pytest.fixture(scope="module")
def photographs(test_data):
    """Ants and bees, every file looked at."""
    return load_dataset(test_data / "hymenoptera", skip_bad=True)


@pytest.mark.parametrize("recipe", ["he2015_imagenet", "torchvision_v2", "rsb_a1", "rsb_a3"])
def test_recipes_for_photographs_run_from_files(recipe, photographs, few_batches, tmp_path):
    """Real photographs, made small; that such a recipe learns takes longer than a test may."""
    narrow = replace(get_spec("resnet18"), depths=(1, 1, 1, 1), widths=(8, 16, 16, 16), stem_width=8)
    scale = {"scale": (36, 60)} if recipe == "he2015_imagenet" else {}
    sizes = {"train_size": 32, "test_size": 40, "test_resize": 46}
    run = train(narrow, photographs, recipe, tmp_path, iterations=2, batch_size=12, **sizes, **scale)
    assert run.report["classes"] == ["ants", "bees"] and np.isfinite(run.history["loss"]).all()
    model = load_model(tmp_path / "model.keras")
    assert model.info["preprocessing"]["size"] == 40 and model.info["class_names"] == ["ants", "bees"]


def test_a_folder_with_another_run_is_not_overwritten(tmp_path):
    (tmp_path / "report.json").write_text("precious")
    with pytest.raises(FileExistsError, match="overwrite"):
        train(SPEC, workdir=tmp_path, epochs=1)
    assert (tmp_path / "report.json").read_text() == "precious"
    run = train(SPEC, workdir=tmp_path, epochs=1, overwrite=True)
    assert json.loads((tmp_path / "report.json").read_text()) == run.report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "digitz"}, "digits"),
        ({"model": "resnet21"}, "resnet20"),
        ({"batch_size": 5000}, "batch_size"),
        ({"model": "resnet50"}, "at least 32x32"),
        ({"precision": "mixed_bfloat16"}, "bfloat16"),
        ({"epoch": 3}, "epochs"),
        ({"devices": 0}, "positive integer"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(workdir=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, [(0, 3, 10), (3, 4, 5)]),
        (4, [(0, 1, 6), (1, 3, 10), (3, 4, 5)]),
        (10, [(1, 3, 10), (3, 4, 5)]),
        (29, [(2, 3, 1), (3, 4, 5)]),
        (30, [(3, 4, 5)]),
        (33, [(3, 4, 2)]),
        (35, []),
    ],
)
def test_a_run_of_35_steps_in_epochs_of_ten(step, expected):
    assert list(_equal_epochs(step, 10, 35)) == expected


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ({"classes": 5}, {}, "softmax over 10 classes"),
        ({"input_shape": (16, 16, 1)}, {}, "should take images of"),
        ({}, {"train_size": 6}, "should take images of"),
        ({}, {"drop_path": 0.1}, "drop_path"),
        ({}, {"precision": "bfloat16"}, "left out"),
        ({}, {"validation_freq": 0}, "validation_freq"),
        ({}, {"checkpoint_every": -3}, "checkpoint_every"),
        ({}, {"schedule": "plateau", "warmup": 0.0, "validation_freq": 2}, "plateau"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(model, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(create("resnet20", **{**TINY, **model}), workdir=tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_curves_say_what_the_history_says(tmp_path):
    from matplotlib.figure import Figure

    drawn = {}
    show = Figure.savefig
    Figure.savefig = lambda figure, *_, **__: (
        drawn.update({line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines})
        or show(figure, *_, **__)
    )
    try:
        rows = ({"step": 10, "accuracy": 0.5}, {"step": 20, "accuracy": 0.75, "val_accuracy": 0.7})
        draw_curves(rows, tmp_path / "curves.png", "both")
    finally:
        Figure.savefig = show
    assert drawn["training error"] == [[10, 50], [20, 25]] and np.allclose(drawn["test error"], [[20, 30]])
