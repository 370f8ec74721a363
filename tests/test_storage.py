"""Runs whose folder is in object storage: a local S3 server, and fsspec's memory."""

import importlib.util
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet import ResNetSpec, train
from keras_resnet.architecture.spec import write_spec
from keras_resnet.files import (
    as_path,
    atomic_write,
    check_writable,
    local_copy,
    local_folder,
    make_folder,
    read_json,
    remove,
)
from keras_resnet.studies.degradation import degradation
from keras_resnet.training.callbacks import CheckpointCallback
from keras_resnet.training.workdir import read_history

pytest.importorskip("upath", reason="needs the extra s3")
pytest.importorskip("s3fs", reason="needs the extra s3")
moto_server = pytest.importorskip("moto.server", reason="needs moto")
SPEC = ResNetSpec("basic", (1, 1, 1), (4, 8, 8), stem="cifar", stem_width=4)
RUN = {"batch_size": 500, "epochs": 3, "keep": "best", "deterministic": True}
"""Epochs of two steps."""


@pytest.fixture(scope="module")
def s3():
    """Address of an S3 server that has the bucket "runs"; its credentials are in the environment."""
    server = moto_server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            patch.setenv(f"AWS_{name}", "test")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        as_path("s3://runs").mkdir()
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def storage(request, tmp_path):
    """URL of an empty folder in object storage."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    return f"{request.param}://runs/{tmp_path.name}"


@pytest.fixture(scope="module")
def local_run(tmp_path_factory):
    """The folder of an uninterrupted run on a local disk."""
    folder = tmp_path_factory.mktemp("local")
    train(SPEC, workdir=folder, **RUN)
    return folder


def files(folder):
    """Names of the files in a folder, relative to it."""
    return sorted(str(path).removeprefix(f"{folder}/") for path in as_path(folder).rglob("*") if path.is_file())


def assert_same_weights(one, other):
    one, other = (keras_resnet.load_model(path) for path in (one, other))
    for variable, expected in zip(one.variables, other.variables, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (variable, expected)))


def timeless_history(folder):
    timed = ("seconds", "images_per_s")
    return [
        {name: it for name, it in row.items() if name not in timed} for row in read_history(f"{folder}/history.csv")
    ]


def test_paths_and_urls(tmp_path, s3):
    assert as_path("runs/a") == Path("runs/a") and as_path(tmp_path) == tmp_path
    assert as_path(tmp_path.as_uri()) == as_path(f"file:{tmp_path}") == tmp_path
    assert str(as_path("s3://runs/a") / "b") == "s3://runs/a/b"
    assert as_path(Path("s3://runs/a")) == as_path(as_path("s3://runs/a")) == as_path("S3://runs/a")


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("ftp://host/run", ValueError, "`workdir` should be a local path, or a URL that starts with one of.* s3://"),
        ("gopher://host/run", ValueError, "`workdir` should be a local path"),
        ("gs://runs/a", ImportError, "pip install universal_pathlib gcsfs"),
        ("abfs://runs/a", ImportError, "pip install universal_pathlib adlfs"),
    ],
)
@pytest.mark.parametrize("function", ["train", "finetune", "tune", "degradation"])
def test_storages_that_cannot_be_used_are_refused_before_anything_is_read(function, url, error, message, tmp_path):
    if error is ImportError and importlib.util.find_spec(message.split()[-1]):
        pytest.skip("the library is installed")
    run = degradation if function == "degradation" else getattr(keras_resnet, function)
    dataset = tmp_path / "absent"  # would be another error
    with pytest.raises(error, match=message):
        run(workdir=url, dataset=dataset)


def test_a_search_and_single_files_need_a_local_disk():
    with pytest.raises(ValueError, match="`workdir` should be a path on a local or mounted disk.*memory://runs/a"):
        keras_resnet.tune("digits", workdir="memory://runs/a", trials=1)
    with pytest.raises(ValueError, match="local or mounted disk"):
        check_writable("memory://runs/a.json")


def test_files_are_uploaded_as_a_whole_or_not_at_all(storage, tmp_path):
    make_folder(as_path(storage))
    assert files(storage) == []
    path = f"{storage}/a.txt"
    for text in ("old", "new"):
        with atomic_write(path) as temporary:
            temporary.write_text(text)
            assert temporary.suffix == ".txt" and (text == "old") != as_path(path).exists()
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with local_copy(path) as local:
        assert local.read_text() == "new"
    with pytest.raises(OSError, match="absent"), local_copy(f"{storage}/absent.txt"):
        pass
    with local_folder(storage) as (local, upload):
        (local / "logs").mkdir()
        (local / "logs" / "1").write_text("first")
        upload()
        assert files(storage) == ["a.txt", "logs/1"]
        (local / "logs" / "2").write_text("second")
    assert files(storage) == ["a.txt", "logs/1", "logs/2"]
    remove(as_path(storage) / "logs")
    remove(as_path(path))
    assert files(storage) == []


def test_an_interrupted_run_continues_from_storage(s3, local_run, tmp_path, monkeypatch):
    storage, original = f"s3://runs/{tmp_path.name}", CheckpointCallback.on_train_batch_end

    def stop_at_third_step(self, batch, logs=None):
        self.signal = self.signal or (signal.SIGTERM if self.state.step == 2 else None)
        original(self, batch, logs)

    monkeypatch.setattr(CheckpointCallback, "on_train_batch_end", stop_at_third_step)
    with pytest.raises(KeyboardInterrupt, match="after step 3"):
        train(SPEC, workdir=storage, log="tensorboard", **RUN)
    monkeypatch.undo()
    train(SPEC, workdir=storage, log="tensorboard", resume=True, **RUN)
    assert_same_weights(f"{storage}/model.keras", local_run / "model.keras")
    assert timeless_history(storage) == timeless_history(local_run)
    logs = [name for name in files(storage) if name.startswith("tensorboard/")]
    assert [*files(local_run), *logs] == files(storage)
    assert {name.split("/")[1] for name in logs} == {"train", "validation"}
    with pytest.raises(FileExistsError, match=f"--overwrite.*{storage}"):
        train(SPEC, workdir=storage, **RUN)
    train(SPEC, workdir=storage, overwrite=True, **RUN | {"epochs": 1, "keep": "last"})
    assert files(storage) == [name for name in files(local_run) if not name.startswith("best")]


@pytest.mark.parametrize(
    ("bucket", "changes", "message"),
    [
        ("absent", {}, "bucket does not exist"),
        ("runs", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "redentials"),
        ("runs", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "connect"),
    ],
)
def test_storage_that_cannot_be_written_is_one_message_before_training(bucket, changes, message, s3, ended, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_CONFIG_FILE", str(tmp_path / "absent"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "absent"))
        for name, value in changes.items():
            patch.setenv(name, value) if value else patch.delenv(name)
        as_path("s3://runs").fs.clear_instance_cache()
        status, _, said = ended("train", "--workdir", f"s3://{bucket}/{tmp_path.name}", "--set", "epochs=1")
    as_path("s3://runs").fs.clear_instance_cache()
    assert status == 1 and said.startswith("error: `workdir` should be a folder that can be written (")
    assert message in said and f"s3://{bucket}" in said and said.count("\n") == 1


def test_denied_writing_is_one_message_before_training(s3, tmp_path):
    def require_permissions(count):
        request = urllib.request.Request(f"{s3}/moto-api/reset-auth", count, {"Content-Type": "text/plain"})
        urllib.request.urlopen(request).close()

    require_permissions(b"0")
    try:
        with pytest.raises(OSError, match="`workdir` should be a folder that can be written .*s3://runs"):
            train(SPEC, workdir=f"s3://runs/{tmp_path.name}", epochs=1)
    finally:
        require_permissions(b"inf")
    assert files(f"s3://runs/{tmp_path.name}") == []


def test_finetuning_in_storage(tmp_path):
    folder, options = f"memory://runs/{tmp_path.name}", {"batch_size": 500, "epochs": 1}
    model = keras_resnet.create("resnet20", depths=(1, 1, 1), input_shape=(8, 8, 1), classes=5)
    model.info["preprocessing"] = keras_resnet.Preprocessing("tf", size=8, resize=None, channels=1).to_config()
    own = {"grad_cam.png", "model.keras", "report.json", "settings.json"}
    for stages, changes, phases in ((1, {}, {"0_head", "1_stage3"}), (0, {"overwrite": True}, {"0_head"})):
        result = keras_resnet.finetune(model, "digits", folder, stages=stages, **options, **changes)
        assert {name.partition("/")[0] for name in files(folder)} == own | phases
        assert read_json(f"{folder}/report.json") == {"best": result.best, "phases": result.phases}


@pytest.mark.slow
def test_a_study_in_storage(tmp_path):
    folder, options = f"memory://runs/{tmp_path.name}", {"depths": (20, 32), "batch_size": 500, "iterations": 1}
    names = []
    result = degradation(folder, progress=names.append, **options)
    assert len(names) == 4 and not result.missing
    assert degradation(folder, progress=names.append, **options) == result and len(names) == 4
    assert {"degradation.json", "degradation.md", "degradation.png", "plain20/model.keras"} <= {*files(folder)}
    with pytest.raises(ValueError, match="seed was 0"):
        degradation(folder, seed=1, **options)


KILLED = [sys.executable, "-c", "from keras_resnet_command import main; main()", "train", "--deterministic"]
KILLED += ["--checkpoint-every", "3", "--set", "epochs=4", "--set", "ema_decay=0.9", "--set", "mixup=0.2"]


@pytest.mark.slow
def test_a_run_that_is_killed_continues_from_storage_with_the_same_weights(s3, tmp_path):
    """A real SIGKILL within an epoch; the resumed process has nothing but the storage."""
    write_spec(SPEC, tmp_path / "spec.json")
    command, url = [*KILLED, "--spec", tmp_path / "spec.json", "--workdir"], f"s3://runs/{tmp_path.name}"
    subprocess.run([*command, tmp_path / "whole"], check=True, capture_output=True)
    process = subprocess.Popen([*command, url], stderr=subprocess.DEVNULL)
    while not as_path(f"{url}/history.csv").exists():
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not as_path(f"{url}/model.keras").exists()
    subprocess.run([*command, url, "--resume"], check=True, capture_output=True)
    assert_same_weights(f"{url}/model.keras", tmp_path / "whole" / "model.keras")
    assert timeless_history(url) == timeless_history(tmp_path / "whole")
    assert files(url) == files(tmp_path / "whole")
