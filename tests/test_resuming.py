"""Nothing lost: runs that are interrupted, killed or go wrong."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet import Recipe, get_spec, train
from keras_resnet.training.callbacks import CheckpointCallback
from keras_resnet.training.workdir import prepare_workdir

pytestmark = pytest.mark.usefixtures("few_batches")
TINY = replace(get_spec("resnet20"), depths=(1, 1, 1), widths=(4, 8, 8), stem_width=4)
RECIPE = Recipe(
    epochs=3, batch_size=128, crop="pad", padding=1, flip=True, mixup=0.2, drop_path=0.2, ema_decay=0.9, warmup=0.1
)  # 11 steps an epoch; random numbers and state of every kind


def weights(run):
    return [keras.ops.convert_to_numpy(variable) for variable in run.model.variables]


def interrupt(monkeypatch, step, number=signal.SIGINT):
    """A real signal when the run has done so many steps."""
    own = CheckpointCallback.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        if self.start.step + batch + 1 == step:
            os.kill(os.getpid(), number)
        own(self, batch, logs)

    monkeypatch.setattr(CheckpointCallback, "on_train_batch_end", on_train_batch_end)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, few_batches):
    return train(TINY, recipe=RECIPE, workdir=tmp_path_factory.mktemp("undisturbed"), deterministic=True)


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_epoch")
    train(TINY, workdir=folder, epochs=1)
    return folder


@pytest.fixture
def finished(one_epoch, tmp_path):
    """The folder of a run of one epoch, whose files a test may change."""
    return shutil.copytree(one_epoch, tmp_path / "run")


@pytest.mark.parametrize("step", [1, 11, 19])
def test_ctrl_c_loses_nothing(step, undisturbed, tmp_path, monkeypatch):
    interrupt(monkeypatch, step, signal.SIGTERM if step == 1 else signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=f"after step {step}.*--resume"):
        train(TINY, recipe=RECIPE, workdir=tmp_path, deterministic=True)
    monkeypatch.undo()
    run = train(TINY, recipe=RECIPE, workdir=tmp_path, deterministic=True, resume=True)
    for one, other in zip(weights(run), weights(undisturbed), strict=True):
        np.testing.assert_array_equal(one, other)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "step"):
        assert run.history[name] == undisturbed.history[name], name
    assert run.report["top1_accuracy"] == undisturbed.report["top1_accuracy"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_seed_decides(undisturbed, tmp_path):
    again = train(TINY, recipe=RECIPE, workdir=tmp_path, deterministic=True)
    other = train(TINY, recipe=RECIPE, seed=1)
    assert all(map(np.array_equal, weights(again), weights(undisturbed)))
    assert not all(map(np.array_equal, weights(other), weights(undisturbed)))


def test_what_was_not_yet_published_is_so_after_all(tmp_path):
    """A kill between the last checkpoint and history.csv."""
    train(TINY, recipe=RECIPE, workdir=tmp_path, epochs=1)
    whole = (tmp_path / "history.csv").read_text()
    for name in ("history.csv", "curves.png", "model.keras", "report.json"):
        (tmp_path / name).unlink()
    train(TINY, recipe=RECIPE, workdir=tmp_path, epochs=1, resume=True)
    assert (tmp_path / "history.csv").read_text() == whole and (tmp_path / "curves.png").exists()


def test_a_finished_run_can_be_resumed_and_stays(tmp_path):
    first = train(TINY, recipe=RECIPE, workdir=tmp_path, epochs=1, resume=True)
    again = train(TINY, recipe=RECIPE, workdir=tmp_path, epochs=1, resume=True)
    assert all(map(np.array_equal, weights(first), weights(again)))
    assert again.history == first.history and again.report == first.report


def test_plateaus_are_remembered(tmp_path, monkeypatch):
    """A rate so small that the loss cannot fall far: it becomes a tenth after each epoch of patience."""
    recipe = Recipe(epochs=4, schedule="plateau", patience=1, learning_rate=1e-12, momentum=0.0)
    whole = train(TINY, recipe=recipe, deterministic=True)
    assert whole.history["learning_rate"][-1] < 1e-13
    interrupt(monkeypatch, 28)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, recipe=recipe, workdir=tmp_path, deterministic=True)
    monkeypatch.undo()
    resumed = train(TINY, recipe=recipe, workdir=tmp_path, deterministic=True, resume=True)
    assert resumed.history["learning_rate"] == whole.history["learning_rate"]


def test_a_loss_that_is_not_finite_stops_the_run_and_the_good_checkpoint_stays(tmp_path):
    with pytest.raises(FloatingPointError, match=r"at step 2 \(epoch 1\).*checkpoint") as error:
        train(TINY, workdir=tmp_path, epochs=2, warmup=0.0, learning_rate=1e30, checkpoint_every=1)
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
        ({"model": replace(TINY, widths=(4, 8, 16))}, "parameters was|spec.widths was"),
    ],
)
def test_another_run_is_not_gone_on_with(changes, message, finished):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    with pytest.raises(ValueError, match=message):
        train(**{"model": TINY, "workdir": finished, "epochs": 1, "resume": True, **changes})
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "of other shapes"])
def test_a_damaged_checkpoint_is_refused(damage, finished):
    path = finished / "checkpoint.safetensors"
    whole = path.read_bytes()
    if damage == "of other shapes":
        from safetensors import safe_open
        from safetensors.numpy import load_file, save_file

        with safe_open(path, "numpy") as file:
            about = file.metadata()
        save_file(
            {name: array[..., :1] if array.ndim else array for name, array in load_file(path).items()}, path, about
        )
    else:
        path.write_bytes({"truncated": whole[:-100], "empty": b"", "foreign": b"PK" + whole[2:]}[damage])
    with pytest.raises(ValueError, match=r"Expected a checkpoint of this run.*Received: .*checkpoint.safetensors"):
        train(TINY, workdir=finished, epochs=1, resume=True)


def test_a_workdir_that_cannot_hold_a_run_is_found_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="`workdir` should be a folder that can be written"):
        train(TINY, workdir=tmp_path / "file" / "run", epochs=1)
    with pytest.raises(OSError, match="MiB free, the run needs"):
        prepare_workdir(tmp_path / "run", {}, size=shutil.disk_usage(tmp_path).total)
    assert not (tmp_path / "run" / "settings.json").exists()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    (tmp_path / ".0123abcd.checkpoint.safetensors").write_text("half")
    (tmp_path / ".bash_rc_.bak").write_text("somebody's own")
    prepare_workdir(tmp_path, {}, size=1, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bash_rc_.bak", "settings.json"]


def command(workdir, *options):
    """A run with state of every kind: averages, random layers, mixed images."""
    fields = ("epochs=4", "ema_decay=0.9", "drop_path=0.2", "mixup=0.2", "flip=true")
    line = ["train", *(word for field in fields for word in ("--set", field)), "--deterministic", "--seed", "3"]
    start = [sys.executable, "-c", "from keras_resnet_command import main; main()"]
    return [*start, *line, "--checkpoint-every", "7", "--workdir", str(workdir), *options]


def outcomes(path):
    """Rows of a history without what depends on the clock."""
    with open(path) as file:
        return [{n: v for n, v in row.items() if n not in ("seconds", "images_per_s")} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_twenty_kills_do_not_change_the_outcome(tmp_path):
    """SIGKILL at random moments, from the first import to the last file; the final weights are equal bit by bit."""
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    chance, kills = random.Random(0), 0
    while True:
        process = subprocess.Popen(
            command(tmp_path / "killed", "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            _, output = process.communicate(timeout=chance.uniform(1, 25) if kills < 20 else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, output.decode()
        if kills >= 20:
            break
        shutil.rmtree(tmp_path / "killed")  # it got through between two kills: once more, from the beginning
    runs = [keras_resnet.load_model(tmp_path / name / "model.keras") for name in ("whole", "killed")]
    for one, other in zip(*(run.weights for run in runs), strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other))
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "killed")]
    assert reports[0]["top1_accuracy"] == reports[1]["top1_accuracy"]
    one, other = (outcomes(tmp_path / name / "history.csv") for name in ("whole", "killed"))
    assert one == other and len(one) == 4
