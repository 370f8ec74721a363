"""`train`: learning, averaged weights, precisions, the files of a run, and refused arguments."""

import csv
import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import keras_resnet
from keras_resnet import Recipe, ResNetSpec, create, from_arrays, get_spec, load_dataset, load_model, preprocessing
from keras_resnet.training.callbacks import CheckpointCallback
from keras_resnet.training.curves import draw_curves
from keras_resnet.training.ema import recompute_batch_norm
from keras_resnet.training.options import RunOptions, split_options
from keras_resnet.training.train import _equal_epochs

train = keras_resnet.train
SPEC = ResNetSpec("basic", (1, 1, 1), (8, 16, 32), stem="cifar", stem_width=8)
MODEL = {"depths": SPEC.depths, "widths": SPEC.widths, "stem_width": 8, "input_shape": (8, 8, 1), "classes": 10}


def test_quickstart_learns_digits_and_writes_all_files(tmp_path):
    """With a small network and few epochs; test_cli.py trains the whole one."""
    folder = tmp_path / "run"
    run = train(create("resnet20", **MODEL), workdir=folder, epochs=6, log="tensorboard")
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


def test_one_step_equals_sgd_by_hand():
    """On one Dense layer: w -= rate * (gradient + decay * w)."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (8, 4, 4, 1), "uint8")
    labels = np.arange(8) % 2
    flat = keras.Sequential([keras.layers.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")])
    before = flat.layers[-1].kernel.numpy()
    data = from_arrays((images, labels), (images, labels))
    recipe = Recipe(iterations=1, batch_size=8, schedule="constant", learning_rate=0.1, weight_decay=0.01)
    train(flat, data, recipe)
    x = images.reshape(8, -1) / 127.5 - 1
    exponentials = np.exp(x @ before)
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    gradient = x.T @ (probabilities - np.eye(2)[labels]) / 8
    np.testing.assert_allclose(
        flat.layers[-1].kernel.numpy(), before - 0.1 * (gradient + 0.01 * before), rtol=1e-4, atol=1e-6
    )


def test_binary_cross_entropy_learns_and_saves_a_softmax(tmp_path):
    run = train(SPEC, workdir=tmp_path, epochs=3, loss="binary_cross_entropy", target_threshold=0.2, learning_rate=0.5)
    assert run.report["top1_accuracy"] > 0.6
    scores = load_model(tmp_path / "model.keras").predict(np.zeros((3, 8, 8, 1)), verbose=0)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


def test_averaged_weights_are_saved(tmp_path, monkeypatch, few_batches):
    """They equal the average of the weights after each step of a run without averaging."""
    decay, weights = 0.8, []
    recipe = Recipe(iterations=5, batch_size=64, ema_decay=0.0, learning_rate=0.01, schedule="constant")
    with monkeypatch.context() as patch:
        original = CheckpointCallback.on_train_batch_end

        def on_train_batch_end(self, batch, logs=None):
            weights.append(keras.ops.convert_to_numpy(self.model.get_layer("conv1_conv").kernel).copy())
            original(self, batch, logs)

        patch.setattr(CheckpointCallback, "on_train_batch_end", on_train_batch_end)
        train(SPEC, recipe=recipe)
    assert len(weights) == 5
    expected = weights[0]  # Keras starts with the weights after the first step
    for after in weights[1:]:
        expected = decay * expected + (1 - decay) * after
    averaged = train(SPEC, recipe=replace(recipe, ema_decay=decay), workdir=tmp_path)
    np.testing.assert_allclose(averaged.model.get_layer("conv1_conv").kernel, expected, atol=1e-5)
    saved = load_model(tmp_path / "model.keras").get_layer("conv1_conv").kernel
    np.testing.assert_allclose(saved, expected, atol=1e-5)


def test_recomputed_batch_norm_statistics_are_means_over_batches():
    """Against NumPy: the mean over batches of each batch's mean and variance."""
    model = create("resnet20", **MODEL)
    batches = np.random.default_rng(0).normal(2, 3, (5, 16, 8, 8, 1)).astype("float32")
    recompute_batch_norm(model, batches)
    first = keras.Model(model.input, model.get_layer("conv1_conv").output)
    outputs = np.stack([keras.ops.convert_to_numpy(first(batch)) for batch in batches])
    layer = model.get_layer("conv1_bn")
    np.testing.assert_allclose(layer.moving_mean, outputs.mean((1, 2, 3)).mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, outputs.var((1, 2, 3)).mean(0), rtol=1e-4)
    assert layer.momentum == model.spec.bn_momentum


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precisions_learn(precision):
    run = train(SPEC, epochs=2, precision=precision)
    assert run.report["precision"] == precision and run.report["top1_accuracy"] > 0.5
    assert keras.config.dtype_policy().name == "float32", "the global policy is unchanged"


def test_validation_freq_decides_after_which_epochs_is_tested(tmp_path):
    run = train(SPEC, epochs=2, validation_freq=2, batch_size=256, workdir=tmp_path)
    assert run.history["val_accuracy"] == [None, pytest.approx(run.report["top1_accuracy"])]
    run = train(SPEC, epochs=3, validation_freq=2, batch_size=256)
    assert run.history["val_accuracy"][::2] == [None, None] and run.history["val_accuracy"][1] > 0
    assert run.report["top1_accuracy"] > 0, "the weights after the last epoch are tested in the end"


@pytest.fixture(scope="module")
def photographs(test_data):
    """Ants and bees, without the unreadable files."""
    return load_dataset(test_data / "hymenoptera", skip_bad=True)


@pytest.mark.parametrize(
    "recipe", ["he2015_imagenet", "torchvision_v2", "rsb_a1", pytest.param("rsb_a3", marks=pytest.mark.slow)]
)
def test_recipes_for_photographs_run_from_files(recipe, photographs, few_batches, tmp_path):
    """Real photographs, made small, for two steps; learning takes longer than a test may."""
    narrow = replace(get_spec("resnet18"), depths=(1, 1, 1, 1), widths=(8, 16, 16, 16), stem_width=8)
    scale = {"scale": (36, 60)} if recipe == "he2015_imagenet" else {}
    sizes = {"train_size": 32, "test_size": 40, "test_resize": 46}
    run = train(narrow, photographs, recipe, tmp_path, iterations=2, batch_size=12, **sizes, **scale)
    assert run.report["class_names"] == ["ants", "bees"] and np.isfinite(run.history["loss"]).all()
    model = load_model(tmp_path / "model.keras")
    assert model.info["preprocessing"]["size"] == 40 and model.info["class_names"] == ["ants", "bees"]


def test_workdir_with_another_run_needs_overwrite(tmp_path):
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
        ({"devices": 0}, "an integer from 1 to 64"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_written(arguments, message, tmp_path):
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
def test_parts_of_a_run_of_35_steps_in_epochs_of_10(step, expected):
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
def test_models_that_do_not_fit_are_refused_before_anything_is_written(model, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(create("resnet20", **{**MODEL, **model}), workdir=tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_curves_share_axes_and_colours(tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: figures.append(figure) or save(figure, *a, **k))
    long = [{"step": step, "accuracy": 0.6, "val_accuracy": 0.7} for step in (1, 2, 3)]
    short = [{"step": 1, "accuracy": 0.9}]
    draw_curves({"plain": {"56": long, "20": short}, "residual": {"20": long}, "none": {}}, tmp_path / "p.png", "all")
    plain, residual, none = figures[0].axes
    assert plain.get_ylim() == residual.get_ylim() == (0, 80) and plain.get_xlim() == residual.get_xlim()
    lines = {(line.get_linestyle(), line.get_color()): line.get_xydata().tolist() for line in plain.lines}
    assert lines["--", "C0"] == [[1, 40], [2, 40], [3, 40]] and np.allclose(
        lines["-", "C0"], [[1, 30], [2, 30], [3, 30]]
    )
    assert {line.get_color() for line in residual.lines} == {"C1"} and not none.lines
    assert [text.get_text() for text in residual.get_legend().get_texts()] == ["20"]


def test_options_are_keywords_or_one_object():
    options, changes = split_options(RunOptions(seed=3, resume=True), {"devices": 2, "seed": 4, "epochs": 5})
    assert options == RunOptions(seed=4, devices=2, resume=True) and changes == {"epochs": 5}
    report = train(SPEC, iterations=2, options=RunOptions(seed=7, precision="bfloat16")).report
    assert report["seed"] == 7 and report["precision"] == "bfloat16"
    for wrong in ({"precision": "int8"}, {"checkpoint_every": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` should be"):
            RunOptions(**wrong)
