"""Fixtures shared by all tests, and the process-wide settings they run under."""

import gc
import os
import shutil
import signal
import subprocess
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest
from support import export_tiny_classifier, png_bytes, random_pixels

gc.set_threshold(10_000)  # models are many small objects that live long
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C


@pytest.fixture(scope="session")
def test_data():
    """The folder of real data; the test skips without it."""
    folder = os.environ.get("KERAS_RESNET_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("KERAS_RESNET_TEST_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Manifests of temporary folders are not written into the user's cache."""
    os.environ["KERAS_RESNET_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Resets layer names, the random state, the precision and the data format between tests."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


@pytest.fixture(scope="module")
def few_batches():
    """Averaged weights get their batch-norm statistics from two batches: from fifty they are most of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras_resnet.training.train.STATISTICS_BATCHES", 2)
        yield


@pytest.fixture
def ended(monkeypatch, capsys):
    """A command in this process, through `main` -> (exit status, what it answered, what it said)."""

    from keras_resnet.cli import main

    def ended(*words):
        monkeypatch.setattr("sys.argv", ["keras-resnet", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, *capsys.readouterr()

    return ended


@pytest.fixture
def image_folder(tmp_path):
    """A folder of ten random images in three classes, and two files that are not images."""
    root = tmp_path / "images"
    for index, image in enumerate(random_pixels(10)):
        path = root / ("ants", "bees", "wasps")[index // 4] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(image))
    (root / "ants" / "3x.png").write_bytes(b"no image")
    (root / "wasps" / "cut.png").write_bytes(png_bytes(random_pixels(1)[0])[:100])
    return root


@pytest.fixture
def built_specs(monkeypatch):
    """The specs of all networks that a search builds, in order."""
    from keras_resnet.search import budget, hypermodel
    from keras_resnet.training import model_setup

    specs = []
    for module in (model_setup, budget, hypermodel):
        build = module.build
        monkeypatch.setattr(module, "build", lambda spec, *a, _b=build, **k: specs.append(spec) or _b(spec, *a, **k))
    return specs


@pytest.fixture
def tiny_export():
    """format -> (path, report) of a tiny classifier; each format is exported once."""
    return export_tiny_classifier


@pytest.fixture
def small_disk(tmp_path):
    """A folder that is a disk of one MiB."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root mounts disks")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # the error may still hold an open file
