"""tune and ResNetHyperModel: searches that train candidates, and a folder in which they continue."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace

import keras_tuner
import numpy as np
import pytest
from PIL import Image
from support import DIGITS, digits_cost

from keras_resnet import from_arrays, load_dataset, load_model
from keras_resnet.architecture.spec import read_spec
from keras_resnet.data.datasets import Stream
from keras_resnet.search.hypermodel import ResNetHyperModel
from keras_resnet.search.results import SearchResult, to_markdown
from keras_resnet.search.space import SPACE, to_spec
from keras_resnet.search.tune import split_for_search, tune

SMALL_SPACE = {
    **SPACE,
    "width": ("Choice", {"values": [4, 16, 64]}),
    "depth": ("Int", {"min_value": 1, "max_value": 2}),
}
TINY = {"max_params": 10_000, "space": SMALL_SPACE, "epochs": 1, "batch_size": 256, "deterministic": True}


@pytest.fixture
def eager():
    """Runs without graphs: compiling them takes most of the time of a training with one or two steps."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind, arguments, trials",
    [
        (keras_tuner.RandomSearch, {"max_trials": 2}, 2),
        (keras_tuner.BayesianOptimization, {"max_trials": 3, "num_initial_points": 2}, 3),
        (keras_tuner.Hyperband, {"max_epochs": 2, "factor": 2}, 5),
    ],
)
def test_hypermodel_in_keras_tuners_own_tuners(kind, arguments, trials, tmp_path, built_specs, eager):
    """Most of the space exceeds the budget."""
    digits = load_dataset("digits", validation_split=0.2)
    few = replace(digits, train=digits.train[:32], test=digits.test[:32])
    space, fitted = ResNetHyperModel(*DIGITS, max_params=10_000, space=SMALL_SPACE, epochs=1, batch_size=32), []
    fit = space.fit
    space.fit = lambda hp, model, *data, **options: fitted.append(model) or fit(hp, model, *data, **options)
    tuner = kind(space, "val_accuracy", seed=1, directory=tmp_path, **arguments)
    assert built_specs == [to_spec(space.budgeted_space.smallest)], "KerasTuner builds the default at once"
    tuner.search(few, verbose=0)
    tried = [tuner.oracle.trials[trial] for trial in tuner.oracle.start_order]
    assert [trial.status for trial in tried] == ["COMPLETED"] * trials and len(fitted) == trials
    assert all(digits_cost(spec).parameters <= 10_000 for spec in built_specs)
    assert built_specs[1:] == [to_spec(trial.hyperparameters.values) for trial in tried]
    assert built_specs[1:] == [replace(model.spec, data_format=None) for model in fitted]
    assert all(0 <= trial.score <= 1 for trial in tried)


def interrupted(*arguments, **options):
    """Replaces `train`: Ctrl-C."""
    raise KeyboardInterrupt


def refused(*arguments, **options):
    """Replaces `train`: an error that would occur with every candidate."""
    raise ValueError("no such images")


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """(folder, result, messages to `progress`)."""
    folder, messages = tmp_path_factory.mktemp("search"), []
    return folder, tune(trials=2, workdir=folder, progress=messages.append, **TINY), messages


def test_files_of_a_finished_search(search):
    folder, result, messages = search
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(result.to_config()))
    assert SearchResult.from_config(result.to_config()) == result
    assert [line.split(":")[0] for line in messages] == ["trial_0", "trial_1", f"final_{result.winner.trial}"]
    for candidate in result.candidates:
        model = load_model(folder / f"trial_{candidate.trial}" / "model.keras")
        assert candidate.parameters == sum(np.prod(weight.shape) for weight in model.trainable_weights) <= 10_000
        assert replace(model.spec, data_format=None) == candidate.spec
        assert candidate.multiply_adds == digits_cost(candidate.spec).multiply_adds
        validation = split_for_search(load_dataset("digits"), 0.2).test
        right = model.predict(validation.images / 127.5 - 1, verbose=0).argmax(axis=1) == validation.labels
        assert candidate.top1_accuracy == pytest.approx(right.mean())
    assert read_spec(folder / "winner.json") == result.winner.spec
    assert (folder / "results.md").read_text() == to_markdown(result)
    with Image.open(folder / "results.png") as image:
        assert image.format == "PNG" and image.width > 800


def test_test_images_are_used_only_by_the_final_training(search):
    _, result, _ = search
    digits = load_dataset("digits")
    search_dataset = split_for_search(digits, 0.2)
    parts = [
        {image.tobytes() for image in part.images} for part in (search_dataset.train, search_dataset.test, digits.test)
    ]
    assert len(search_dataset.train) + len(search_dataset.test) == len(digits.train) and not parts[1] & parts[2]
    assert (result.final["training_images"], result.final["test_images"]) == (len(digits.train), len(digits.test))
    assert result.final["spec"] | {"data_format": None} == result.winner.spec.to_config()
    assert result.final["recipe"]["learning_rate"] == result.winner.recipe["learning_rate"]


def test_a_finished_search_continues_only_with_more_trials(search, tmp_path, built_specs, monkeypatch):
    folder, messages = shutil.copytree(search[0], tmp_path / "copy"), []
    options = {"workdir": folder, "progress": messages.append, **TINY}
    assert tune(trials=2, **options) == search[1] and not built_specs and not messages
    with monkeypatch.context() as patch:
        patch.setattr("keras_resnet.search.tune.train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(trials=3, final=False, **options)
    assert json.loads((folder / "results.json").read_text())["candidates"] == search[1].to_config()["candidates"]
    more = tune(trials=3, final=False, **options)
    assert more.candidates[:2] == search[1].candidates and [candidate.trial for candidate in more.candidates] == [
        *"012"
    ]
    assert messages[0] == messages[1] and len(messages) == 2 and built_specs == [more.candidates[2].spec]


def test_a_folder_with_another_search_is_refused(search, tmp_path, built_specs, monkeypatch):
    folder = shutil.copytree(search[0], tmp_path / "copy")
    for change, name in (
        ({"seed": 1}, "seed"),
        ({"max_params": 50_000}, "budget"),
        ({"tuner": "bayesian"}, "tuner"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*--overwrite"):
            tune(trials=2, workdir=folder, **{**TINY, **change})
    (folder / "search.json").unlink()
    with pytest.raises(ValueError, match="did not write.*--overwrite"):
        tune(trials=2, workdir=folder, **TINY)
    assert not built_specs
    foreign = {"notes.txt", "trial_7", "trial_of_mine", "final_report"}
    for name in foreign:
        (folder / name).mkdir() if "_of_" in name else (folder / name).write_text("mine")
    monkeypatch.setattr("keras_resnet.search.tune.train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(trials=2, workdir=folder, overwrite=True, **{**TINY, "seed": 1})
    assert {path.name for path in folder.iterdir()} == foreign | {"search.json", "oracle.json", "trial_0"}


def test_overwrite_keeps_files_that_are_not_of_a_search(tmp_path, monkeypatch):
    for name in ("trial_5", "final_0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    monkeypatch.setattr("keras_resnet.search.tune.train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(trials=2, workdir=tmp_path, overwrite=True, **TINY)
    assert len(list(tmp_path.glob("*/notes.txt"))) == 2


def test_an_error_of_every_candidate_ends_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_resnet.search.tune.train", refused)
    with pytest.raises(ValueError, match="^no such images$"):
        tune(trials=2, workdir=tmp_path, **TINY)
    assert [path.name for path in tmp_path.glob("trial_*")] == ["trial_0"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"max_params": 1_000}, "max_params.*smallest has .* parameters.*Received: max_params=1000"),
        ({"max_multiply_adds": 10}, "max_multiply_adds.*smallest has"),
        ({"max_params": -1}, "max_params.*positive"),
        ({"max_params": "100k"}, "max_params.*positive"),
        ({"tuner": "randon"}, "tuner.*Nearest: \\['random'"),
        ({"trials": 0}, "trials"),
        ({"recipe": "quick"}, "recipe.*Nearest: \\['quickstart'\\]"),
        ({"dataset": "digit"}, "dataset.*digits"),
        ({"validation_split": 2.0}, "validation_split"),
        ({"batch_size": 1_300}, "batch_size"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"precision": "float8"}, "precision"),
        ({"epoch": 1}, "changes.*epochs"),
        ({"space": {"depths": ("Int", {})} | {"dept": ("Int", {})}}, "space.*Nearest.*depth"),
        ({"space": {"depth": ("Integer", {})}}, "space.*Nearest: \\['Int'\\]"),
    ],
)
def test_invalid_arguments_are_refused_before_the_first_trial(arguments, message, tmp_path, built_specs):
    with pytest.raises(ValueError, match=message):
        tune(**{"trials": 1, "workdir": tmp_path / "search", **arguments})
    assert not built_specs and not (tmp_path / "search").exists()


def test_float16_on_several_devices_is_refused_before_the_first_trial(monkeypatch, built_specs):
    monkeypatch.setattr("keras_resnet.training.distribution.Devices.num_replicas", 2)
    with pytest.raises(ValueError, match="float16"):
        tune(precision="float16", **TINY)
    assert not built_specs


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="two classes"):
        tune(from_arrays((np.zeros((20, 8, 8, 1), "uint8"), np.zeros(20, int)), class_names=["nought"]), **TINY)


def test_streams_and_unwritable_workdirs_are_refused(tmp_path):
    digits = load_dataset("digits")
    with pytest.raises(ValueError, match="fit in memory"):
        tune(replace(digits, train=Stream(lambda seed: None, 10)))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="workdir"):
        tune(trials=1, workdir=tmp_path / "file")


SCRIPT = """
import json, sys
from keras_resnet.search.tune import tune
tune(**json.loads(sys.argv[1]), progress=lambda text: print(text, flush=True))
"""


def start(folder, tuner_id=None, port=None, **arguments):
    """A process with a search; its output goes to a file named after it."""
    shared = {"KERASTUNER_TUNER_ID": tuner_id, "KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(port)}
    text = json.dumps({"workdir": str(folder), **TINY, **arguments})
    with open(folder.parent / f"{tuner_id}.txt", "a") as output:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, text], stdout=output, env=os.environ | (shared if tuner_id else {})
        )


def wait_for(found, process, seconds=300):
    end = time.monotonic() + seconds
    while not found():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_killed_search_continues(tmp_path):
    folder = tmp_path / "search"
    process = start(folder, trials=3, final=False)
    wait_for((folder / "trial_1" / "settings.json").exists, process)
    process.kill()
    process.wait()
    finished = (folder / "trial_0" / "model.keras").stat().st_mtime_ns
    assert start(folder, trials=3, final=False).wait() == 0
    rows = json.loads((folder / "results.json").read_text())["candidates"]
    assert [row["status"] for row in rows] == ["COMPLETED"] * 3
    assert (folder / "trial_0" / "model.keras").stat().st_mtime_ns == finished
    lines = (tmp_path / "None.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == ["trial_0", "trial_1", "trial_1", "trial_2"]


@pytest.mark.slow
def test_two_workers_share_a_search_and_one_dies(tmp_path):
    folder = tmp_path / "search"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def trials(worker):
        return [line.split(":")[0] for line in (tmp_path / f"{worker}.txt").read_text().splitlines()]

    def at_work():
        return trials("alive") and trials("dying") and not (folder / trials("dying")[-1] / "report.json").exists()

    names = ("chief", "dying", "alive")
    chief, dying, alive = processes = [start(folder, name, port, trials=3, final=False, epochs=10) for name in names]
    try:
        wait_for(at_work, dying)
        dying.kill()
        assert alive.wait(500) == 0 and chief.wait(100) == 0
    finally:
        for process in processes:
            process.kill()
    assert trials("dying")[-1] in trials("alive")
    rows = json.loads((folder / "results.json").read_text())["candidates"]
    assert [row["status"] for row in rows] == ["COMPLETED"] * 3


@pytest.mark.slow
def test_the_digits_search_finds_a_good_network_within_the_budget(tmp_path, built_specs):
    result = tune("digits", "random", 20, max_params=100_000, workdir=tmp_path)
    assert len(built_specs) == 21 and all(digits_cost(spec).parameters <= 100_000 for spec in built_specs)
    assert result.final["parameters"] <= 100_000 and result.final["top1_accuracy"] >= 0.985
