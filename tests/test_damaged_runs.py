"""Damaged checkpoints, settings and search results: one message, nothing trained, nothing overwritten."""

import json
import shutil
import struct
from functools import partial

import keras
import numpy as np
import pytest

from keras_resnet import Recipe, ResNetSpec, train, tune
from keras_resnet.search.results import SearchResult
from keras_resnet.training.callbacks import EarlyStopping
from keras_resnet.training.checkpoints import TrainingState, load_checkpoint, save_checkpoint
from keras_resnet.training.model_setup import compile_model
from keras_resnet.training.workdir import read_history, read_report

SPEC = ResNetSpec("basic", (1,), (4,), stem="cifar", stem_width=4)
RUN = {"epochs": 3, "batch_size": 500}
"""Epochs of two steps."""
METRICS = ("loss", "accuracy")
ROW = {"loss": 1.0, "accuracy": 0.5, "learning_rate": 0.1, "images_per_s": 10.0, "seconds": 1.0}
STATE = {"step": 3, "seconds": 1.5, "history": [{"epoch": 1, "step": 2} | ROW], "callbacks": {}, "stopped": False}
"""In the second of three epochs of two steps."""
DEEP = "[" * 100_000 + "]" * 100_000


def read_safetensors(path):
    """(header, bytes of the arrays): 8 bytes with the length of the header, JSON, arrays."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_safetensors(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def set_metadata(path, **changes):
    """Replaces texts in the metadata of a safetensors file."""
    header, data = read_safetensors(path)
    header["__metadata__"] |= changes
    write_safetensors(path, header, data)


@pytest.fixture(scope="module")
def compiled():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    compile_model(model, Recipe(**RUN), 6, False)
    model.compute_metrics(None, keras.ops.zeros((1, 3)), keras.ops.zeros((1, 3)))
    return model


@pytest.fixture
def checkpoint(compiled, tmp_path):
    """The path of a checkpoint, and a function that restores it."""
    path = tmp_path / "checkpoint.safetensors"
    state = TrainingState(**STATE | {"history": tuple(STATE["history"])})
    save_checkpoint(path, compiled, state, {"seed": 0})
    return path, partial(
        load_checkpoint, path, compiled, {"seed": 0}, lambda found: found.check(2, 6, METRICS, METRICS)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"step": "x"},
        {"step": 1.5},
        {"step": None},
        {"step": True},
        {"step": -5},
        {"step": 10**30},
        {"step": 7},
        {"step": 1},
        {"step": 4},
        {"seconds": "x"},
        {"seconds": -1.0},
        {"seconds": float("nan")},
        {"history": [1]},
        {"history": "abc"},
        {"history": [{}]},
        {"history": [{**STATE["history"][0], "epoch": 2}]},
        {"history": [{**STATE["history"][0], "accuracy": "high"}]},
        {"history": [{**STATE["history"][0], "val_loss": 1.0}]},
        {"callbacks": []},
        {"callbacks": {"EarlyStopping": 1}},
        {"stopped": "no"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused(change, checkpoint, compiled):
    path, restore = checkpoint
    assert len(restore()) == len(compiled.metrics_variables)
    set_metadata(path, state=json.dumps(STATE | change))
    (name,) = change
    with pytest.raises(ValueError, match=rf"^Expected a checkpoint of this run .*{name}.*Received: {path}$"):
        restore()


@pytest.mark.parametrize("name", ["state", "settings"])
@pytest.mark.parametrize("text", ["", "{", "[]", "5", DEEP, '{"a": ' * 10_000])
def test_metadata_that_are_not_an_object_are_refused(name, text, checkpoint):
    path, restore = checkpoint
    set_metadata(path, **{name: text})
    with pytest.raises(ValueError, match=rf"^Expected a checkpoint of this run .*Received: {path}$") as refusal:
        restore()
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize("damage", ["nan", "infinite", "labelled as integers", "another name", "of no metric"])
def test_damaged_arrays_are_refused_before_one_is_assigned(damage, checkpoint, compiled):
    path, restore = checkpoint
    header, data = read_safetensors(path)
    first, last = (header["model/1"]["data_offsets"][0], header["optimizer/2"])
    match damage:
        case "nan" | "infinite":
            value = np.float32(float(damage[:3])).tobytes()
            data = data[:first] + value + data[first + 4 :]
        case "labelled as integers":
            last["dtype"] = "I32"
        case "another name":
            header["model/x"] = header.pop("model/1")
        case "of no metric":
            header["metrics/x"] = header.pop("metrics/1")
    write_safetensors(path, header, data)
    compiled.variables[0].assign(np.full((4, 3), 7))
    with pytest.raises(ValueError, match=r"^Expected a checkpoint of this run \((model|metrics|optimizer|variables)"):
        restore()
    np.testing.assert_array_equal(compiled.get_weights()[0], 7)


def test_states_of_complete_and_stopped_runs_are_accepted():
    row = STATE["history"][0]
    for steps, state in (
        (4, {"step": 0, "history": []}),
        (4, {"step": 4, "history": [row, {**row, "epoch": 2, "step": 4}]}),
        (3, {"step": 3, "history": [row, {**row, "epoch": 2, "step": 3}]}),
        (9, {"step": 3, "history": [row, {**row, "epoch": 2, "step": 3}], "stopped": True}),
        (9, {"step": 2, "history": [{**row, "val_loss": float("nan"), "val_accuracy": 0.0}]}),
    ):
        TrainingState(**{**STATE, **state, "history": tuple(state["history"])}).check(2, steps, METRICS, METRICS)


def test_states_of_callbacks_are_checked():
    callback = EarlyStopping("accuracy", patience=1)
    callback.set_state({"best": 0.5, "wait": 1, "best_epoch": 2, "stopped_epoch": 0, "on_epoch_end": 5})
    assert callback.best == 0.5 and callable(callback.on_epoch_end)
    for state in ({"wait": "x"}, {"wait": 1, "best": []}, {}):
        with pytest.raises(ValueError, match="`EarlyStopping\\."):
            callback.set_state(state)


def contents(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(SPEC, workdir=folder, keep="best", **RUN)
    return folder


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("settings.json", lambda path: path.write_text(DEEP), "levels"),
        ("settings.json", lambda path: path.write_text("[1]"), "an object"),
        ("settings.json", lambda path: path.write_text('{"recipe": ' + "9" * 5000 + "}"), "settings"),
        ("checkpoint.safetensors", lambda path: set_metadata(path, state=json.dumps(STATE | {"step": -5})), "step=-5"),
        ("best_*.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-4]), "best epoch"),
    ],
)
def test_a_damaged_run_is_not_continued(name, damage, message, one_run, tmp_path):
    folder = shutil.copytree(one_run, tmp_path / "run")
    (path,) = folder.glob(name)
    damage(path)
    before = contents(folder)
    with pytest.raises(ValueError, match=message) as refusal:
        train(SPEC, workdir=folder, resume=True, keep="best", **RUN)
    assert contents(folder) == before and str(path) in str(refusal.value)


@pytest.mark.parametrize("text", ["", "step\n1\n", "step,accuracy\n1,x\n", "step,accuracy\n1,1,1\n", 'a"\0'])
def test_damaged_histories_and_reports_are_refused(text, tmp_path):
    history, report = tmp_path / "history.csv", tmp_path / "report.json"
    for path in (history, report):
        path.write_text(text)
    with pytest.raises(ValueError, match=rf"Expected the history of a run.*Received: {history}$"):
        read_history(history)
    with pytest.raises(ValueError, match=rf"Expected .*Received: {report}$"):
        read_report(tmp_path)


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    return folder, tune(workdir=folder, trials=1, max_params=25_000, iterations=2)


def change_json(path, change):
    """Writes the values of a JSON file with a change."""
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("search.json", lambda path: path.write_text(DEEP)),
        ("oracle.json", lambda path: path.write_text(DEEP)),
        ("oracle.json", lambda path: path.write_text("{}")),
        ("oracle.json", lambda path: change_json(path, {"start_order": []})),
        ("oracle.json", lambda path: change_json(path, {"hyperparameters": 5})),
        ("trial_0/trial.json", lambda path: path.write_text("[")),
        ("trial_0/trial.json", lambda path: change_json(path, {"trial_id": "../.."})),
        ("trial_0/trial.json", lambda path: change_json(path, {"score": "high"})),
        ("trial_0/trial.json", lambda path: change_json(path, {"hyperparameters": {"values": {}, "space": []}})),
        ("final_0/report.json", lambda path: change_json(path, {"top1_accuracy": "high"})),
    ],
)
def test_a_damaged_search_is_not_continued(name, damage, search, tmp_path):
    folder = shutil.copytree(search[0], tmp_path / "search")
    damage(folder / name)
    before = contents(folder)
    with pytest.raises(ValueError, match=f"Expected .*Received: {folder}"):
        tune(workdir=folder, trials=2, max_params=25_000, iterations=2)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        {"candidates": 5},
        {"candidates": [{}]},
        {"settings": None},
        {"final": "x"},
        {"candidates": [{"spec": {"depths": "x"}}]},
    ],
)
def test_damaged_results_are_refused(change, search):
    config = search[1].to_config()
    assert SearchResult.from_config(config) == search[1]
    with pytest.raises(ValueError, match="`results"):
        SearchResult.from_config(config | change)
