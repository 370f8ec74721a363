"""Runs that are interrupted, killed or fail, and their continuation."""

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import keras
import numpy as np
import pytest
from drawn_objects import (
    SIZE,
    TINY,
    TINY_LOCALIZER,
    TINY_SEGMENTER,
    write_drawings,
    write_drawn_masks,
    write_rectangles,
)
from support import signal_after

import keras_resnet
from keras_resnet import Preprocessing, Recipe, RunOptions, get_spec, train
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.training.workdir import begin_run, check_workdir

pytestmark = pytest.mark.usefixtures("few_batches")
SPEC = replace(get_spec("resnet20"), depths=(1, 1, 1), widths=(4, 8, 8), stem_width=4)
RECIPE = Recipe(
    epochs=2, batch_size=128, crop="pad", padding=1, flip=True, mixup=0.2, drop_path=0.2, ema_decay=0.9, warmup=0.1
)
"""Epochs of 11 steps, with random numbers and state of every kind."""


def variables(run):
    return [keras.ops.convert_to_numpy(variable) for variable in run.model.variables]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, few_batches):
    return train(SPEC, recipe=RECIPE, workdir=tmp_path_factory.mktemp("uninterrupted"), deterministic=True)


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_epoch")
    train(SPEC, workdir=folder, epochs=1)
    return folder


@pytest.fixture
def finished(one_epoch, tmp_path):
    """The folder of a run of one epoch, whose files a test may change."""
    return shutil.copytree(one_epoch, tmp_path / "run")


@pytest.mark.parametrize(
    "step", [1, 11, pytest.param(19, marks=pytest.mark.portable)]
)  # in the first epoch, at its end, within the second
def test_interrupted_runs_continue_with_the_same_numbers(step, uninterrupted, tmp_path, monkeypatch):
    signal_after(monkeypatch, step, signal.SIGTERM if step == 1 else signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=f"after step {step}.*--resume"):
        train(SPEC, recipe=RECIPE, workdir=tmp_path, deterministic=True)
    monkeypatch.undo()
    run = train(SPEC, recipe=RECIPE, workdir=tmp_path, deterministic=True, resume=True)
    for one, other in zip(variables(run), variables(uninterrupted), strict=True):
        np.testing.assert_array_equal(one, other)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "step"):
        assert run.history[name] == uninterrupted.history[name], name
    assert run.report["top1_accuracy"] == uninterrupted.report["top1_accuracy"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_same_seed_same_numbers(uninterrupted, tmp_path):
    again = train(SPEC, recipe=RECIPE, workdir=tmp_path, deterministic=True)
    other = train(SPEC, recipe=RECIPE, seed=1, iterations=2)
    assert all(map(np.array_equal, variables(again), variables(uninterrupted)))
    assert not all(map(np.array_equal, variables(other), variables(uninterrupted)))


def test_finished_runs_stay_and_missing_files_are_written_again(tmp_path):
    """As after a kill between the last checkpoint and history.csv."""
    first = train(SPEC, recipe=RECIPE, workdir=tmp_path, epochs=1, resume=True)
    whole = (tmp_path / "history.csv").read_text()
    for name in ("history.csv", "curves.png", "model.keras", "report.json"):
        (tmp_path / name).unlink()
    again = train(SPEC, recipe=RECIPE, workdir=tmp_path, epochs=1, resume=True)
    assert (tmp_path / "history.csv").read_text() == whole and (tmp_path / "curves.png").exists()
    assert all(map(np.array_equal, variables(first), variables(again)))
    assert again.history == first.history and again.report == first.report


def test_plateaus_continue_after_an_interruption(tmp_path, monkeypatch):
    """A rate so small that the loss hardly falls: it becomes a tenth after each epoch of patience."""
    recipe = Recipe(batch_size=256, epochs=4, schedule="plateau", plateau_patience=1, learning_rate=1e-12, momentum=0.0)
    whole = train(SPEC, recipe=recipe, deterministic=True)
    assert whole.history["learning_rate"][-1] < 1e-13
    signal_after(monkeypatch, 13)
    with pytest.raises(KeyboardInterrupt):
        train(SPEC, recipe=recipe, workdir=tmp_path, deterministic=True)
    monkeypatch.undo()
    resumed = train(SPEC, recipe=recipe, workdir=tmp_path, deterministic=True, resume=True)
    assert resumed.history["learning_rate"] == whole.history["learning_rate"]


def test_infinite_losses_stop_the_run_and_the_last_good_checkpoint_stays(tmp_path):
    with pytest.raises(FloatingPointError, match=r"at step 2 \(epoch 1\).*checkpoint") as error:
        train(SPEC, workdir=tmp_path, epochs=2, warmup=0.0, learning_rate=1e30, checkpoint_every=1)
    assert str(tmp_path) in str(error.value)
    from safetensors.numpy import load_file

    saved = load_file(tmp_path / "checkpoint.safetensors")
    assert saved["optimizer/0"] == 1  # its iterations
    assert all(np.isfinite(array).all() for array in saved.values() if array.dtype.kind == "f")
    assert not (tmp_path / "model.keras").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 9}, "recipe.epochs was 1"),
        ({"seed": 3}, "seed was 0"),
        ({"model": replace(SPEC, widths=(4, 8, 16))}, "parameters was|spec.widths was"),
    ],
)
def test_runs_with_other_settings_do_not_continue(changes, message, finished):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    with pytest.raises(ValueError, match=message):
        train(**{"model": SPEC, "workdir": finished, "epochs": 1, "resume": True, **changes})
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "of other shapes"])
def test_damaged_checkpoints_are_refused(damage, finished):
    path = finished / "checkpoint.safetensors"
    whole = path.read_bytes()
    if damage == "of other shapes":
        from safetensors import safe_open
        from safetensors.numpy import load_file, save_file

        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        save_file(
            {name: array[..., :1] if array.ndim else array for name, array in load_file(path).items()}, path, metadata
        )
    else:
        path.write_bytes({"truncated": whole[:-100], "empty": b"", "foreign": b"PK" + whole[2:]}[damage])
    with pytest.raises(ValueError, match=r"Expected a checkpoint of this run.*Received: .*checkpoint.safetensors"):
        train(SPEC, workdir=finished, epochs=1, resume=True)


def test_workdirs_that_cannot_be_written_are_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="`workdir` should be a folder that can be written"):
        train(SPEC, workdir=tmp_path / "file" / "run", epochs=1)
    with pytest.raises(OSError, match="MiB free, the run needs"):
        check_workdir(tmp_path, {}, shutil.disk_usage(tmp_path).total, RunOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    (tmp_path / ".0123abcd.checkpoint.safetensors").write_text("half")
    (tmp_path / ".bash_rc_.bak").write_text("another program's")
    begin_run(tmp_path, {}, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bash_rc_.bak", "settings.json"]


def command(workdir, *options):
    """The command of a run that writes a checkpoint every 7 steps."""
    start = [sys.executable, "-c", "from keras_resnet_command import main; main()", "train"]
    return [*start, "--deterministic", "--seed", "3", "--checkpoint-every", "7", "--workdir", str(workdir), *options]


def classifier_options(folder):
    """Of a run with state of every kind: averages, random layers, mixed images."""
    fields = ("epochs=4", "ema_decay=0.9", "drop_path=0.2", "mixup=0.2", "flip=true")
    return [word for field in fields for word in ("--set", field)]


def detector_options(folder):
    """Of a run on drawn rectangles with random crops and samples, whose best epoch is kept."""
    network = keras_resnet.build(replace(TINY, classes=3))
    network.info = {"preprocessing": DetectionPreprocessing(min_size=SIZE, max_size=2 * SIZE).to_config()}
    network.save(folder / "start.keras")
    write_drawings(folder / "data")
    fields = ("epochs=4", "batch_size=2", "crop=overlap", "scale=[0.5,1.0]")
    words = ["--recipe", "detection_finetune", "--model", folder / "start.keras", "--dataset", folder / "data"]
    words += ["--size", SIZE, "--keep", "best", *(word for field in fields for word in ("--set", field))]
    return [*map(str, words)]


def localizer_options(folder):
    """Of a run on drawn rectangles with random crops and averages."""
    localizer = keras_resnet.build(replace(TINY_LOCALIZER, classes=2), input_shape=(32, 32, 3))
    localizer.info = {"preprocessing": Preprocessing("torch", size=32, resize=32).to_config()}
    localizer.save(folder / "start.keras")
    write_rectangles(folder / "data")
    fields = ("epochs=4", "batch_size=8", "crop=random_resized", "scale=[0.5,1.0]", "flip=true", "ema_decay=0.9")
    words = ["--recipe", "localization_finetune", "--model", folder / "start.keras", "--dataset", folder / "data"]
    words += ["--size", 32, *(word for field in fields for word in ("--set", field))]
    return [*map(str, words)]


def segmenter_options(folder):
    """Of a run on drawn rectangles with random sizes, crops, colours and dropout, and averages."""
    segmenter = keras_resnet.build(TINY_SEGMENTER)
    segmenter.info = {"preprocessing": SegmentationPreprocessing().to_config()}
    segmenter.save(folder / "start.keras")
    write_drawn_masks(folder / "data")
    fields = ("epochs=4", "batch_size=2", "ema_decay=0.9", "class_weight=balanced")
    words = ["--recipe", "segmentation_finetune", "--model", folder / "start.keras", "--dataset", folder / "data"]
    return [*map(str, words), *(word for field in fields for word in ("--set", field))]


def timeless_history(path):
    """Rows of a history without the columns that depend on time."""
    with open(path) as file:
        return [{n: v for n, v in row.items() if n not in ("seconds", "images_per_s")} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("make_options", [classifier_options, detector_options, localizer_options, segmenter_options])
def test_twenty_kills_do_not_change_the_outcome(make_options, tmp_path):
    """SIGKILL at random moments, from the first import to the last file; the final weights are equal bit by bit."""
    options = make_options(tmp_path)
    start = time.monotonic()
    subprocess.run(command(tmp_path / "whole", *options), check=True, capture_output=True)
    length, generator, kills = time.monotonic() - start, random.Random(0), 0
    while True:
        process = subprocess.Popen(
            command(tmp_path / "killed", "--resume", *options), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            _, output = process.communicate(timeout=generator.uniform(1, length) if kills < 20 else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, output.decode()
        if kills >= 20:
            break
        shutil.rmtree(tmp_path / "killed")  # it finished between two kills: start again
    runs = [keras_resnet.load_model(tmp_path / name / "model.keras") for name in ("whole", "killed")]
    for one, other in zip(*(run.weights for run in runs), strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other))
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "killed")]
    timed = ("wall_time_s", "training_images_per_s")
    assert all(reports[0][name] == reports[1][name] for name in reports[0] if name not in timed)
    one, other = (timeless_history(tmp_path / name / "history.csv") for name in ("whole", "killed"))
    assert one == other and len(one) == 4


def test_interrupted_multi_label_runs_continue_with_the_same_metrics(tmp_path, monkeypatch):
    digits = keras_resnet.load_dataset("digits").train
    labels = np.stack([digits.labels % 2, digits.labels > 4, digits.labels == 3], axis=1)
    dataset = keras_resnet.from_arrays((digits.images, labels))
    arguments = {"recipe": replace(RECIPE, ema_decay=0), "epochs": 1, "deterministic": True}
    whole = train(SPEC, dataset, **arguments)
    signal_after(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        train(SPEC, dataset, workdir=tmp_path, **arguments)
    monkeypatch.undo()
    resumed = train(SPEC, dataset, workdir=tmp_path, resume=True, **arguments)
    for name in ("loss", "accuracy", "pr_auc", "val_pr_auc"):
        assert resumed.history[name] == whole.history[name], name
