"""Logs of a run in TensorBoard, Weights & Biases and MLflow, read by their own libraries, and profiles."""

import re

import keras
import pytest

from keras_resnet import ResNetSpec, train
from keras_resnet.training.trackers import TRACKERS

SPEC = ResNetSpec("basic", (1, 1), (4, 8), stem="cifar", stem_width=4)
RUN = {"recipe": "quickstart", "epochs": 2, "batch_size": 359}


def test_tensorboard_has_the_metrics_and_a_profile(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorflow import make_ndarray

    run = train(SPEC, workdir=tmp_path, log="tensorboard", profile=True, **{**RUN, "batch_size": 150})
    events = EventAccumulator(str(tmp_path / "tensorboard" / "validation"))
    events.Reload()
    logged = [float(make_ndarray(event.tensor_proto)) for event in events.Tensors("epoch_accuracy")]
    assert logged == pytest.approx(run.history["val_accuracy"])
    (trace,) = (tmp_path / "tensorboard").rglob("*.xplane.pb")
    assert trace.stat().st_size > 10_000, "events of five steps"


def test_wandb_has_the_metrics_without_a_network(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train(SPEC, workdir=tmp_path / "run", log="wandb", **RUN)
    wandb.teardown()  # its process writes the rest
    (path,) = (tmp_path / "run").rglob("*.wandb")
    # a log of protocol buffers, with each value in the history and in the summary: key, tag, length, value as JSON
    rows = [float(text) for text in re.findall(rb"epoch/val_accuracy.{1,3}?(0\.\d+)", path.read_bytes(), re.DOTALL)]
    assert rows[::2] == pytest.approx(run.history["val_accuracy"])


def test_mlflow_has_the_metrics_in_a_local_store(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    run = train(SPEC, workdir=tmp_path / "run", log="mlflow", **RUN)
    client = mlflow.MlflowClient()
    (logged,) = client.search_runs(["0"])
    history = client.get_metric_history(logged.info.run_id, "val_accuracy")
    assert logged.info.status == "FINISHED" and logged.info.run_name == "run"
    assert [point.value for point in sorted(history, key=lambda point: point.step)] == pytest.approx(
        run.history["val_accuracy"]
    )
    assert mlflow.artifacts.load_dict(f"{logged.info.artifact_uri}/settings.json")["recipe"]["batch_size"] == 359


@pytest.mark.parametrize("name", TRACKERS)
def test_missing_libraries_are_named_before_training(name, tmp_path, monkeypatch):
    module = TRACKERS[name].modules[0]
    monkeypatch.setattr("importlib.util.find_spec", lambda found: None if found == module else found)
    with pytest.raises(ImportError, match=rf"`log='{name}'` needs {module}.*pip install '{TRACKERS[name].package}'"):
        train(SPEC, workdir=tmp_path / "run", log=name)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log": "tensorbord"}, "Nearest: .'tensorboard'"),
        ({"log": "tensorboard"}, "`workdir` should be a folder with `log='tensorboard'`"),
        ({"profile": True}, "`workdir` should be a folder with `profile=True`"),
    ],
)
def test_impossible_logs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        train(SPEC, **RUN, **arguments)


def test_short_runs_cannot_be_profiled(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"`profile` should be False for a run of 8 steps"):
        train(SPEC, workdir=tmp_path, profile=True, **RUN)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ValueError, match="Keras cannot profile it"):
        train(SPEC, workdir=tmp_path, profile=True)


def test_a_tracker_that_cannot_start_ends_the_run_with_one_message(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://store")
    with pytest.raises(RuntimeError, match="mlflow could not start the run: .*nonsense"):
        train(SPEC, workdir=tmp_path, log="mlflow", **RUN)
