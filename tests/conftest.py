"""What all tests share."""

import gc
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

gc.set_threshold(10_000)  # networks are many small objects, of which few are rubbish soon

REFERENCES = Path(__file__).parent / "references"


@pytest.fixture(scope="session")
def test_data():
    """The folder of real data; the test skips without it."""
    folder = os.environ.get("KERAS_RESNET_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("KERAS_RESNET_TEST_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Layer names start anew, and nothing is left of another test's random state or precision."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


@pytest.fixture(scope="module")
def few_batches():
    """Averaged weights get their batch-norm statistics from two batches: from fifty they are most of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras_resnet.training.train.BATCHES", 2)
        yield


def randomise(model, seed=0):
    """Random weights and batch-norm statistics, of a size that makes every layer matter; returns the model."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        for weight in layer.weights:
            if weight.name in ("gamma", "moving_variance"):
                value = generator.uniform(0.5, 1.5, weight.shape)
            else:
                fan_in = np.prod(weight.shape[:-1]) if len(weight.shape) > 1 else 200
                value = generator.normal(0, (2 / fan_in) ** 0.5, weight.shape)
            weight.assign(value.astype("float32"))
    return model


def images(*shape, seed=1):
    """Random network inputs."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


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
