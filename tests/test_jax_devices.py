"""Several devices of JAX, in a process of its own whose CPU is divided in two: equal to one device, and resumable."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import json, sys
from dataclasses import replace
import numpy as np
import keras_resnet
from keras_resnet.training import callbacks, train as training

spec = replace(keras_resnet.get_spec("resnet20"), depths=(1, 1, 1), widths=(4, 8, 8), stem_width=4)
data = keras_resnet.load_dataset("digits", validation_split=357)  # an odd number of test images
settings = {"batch_size": 256, "iterations": 7, "flip": True, "learning_rate": 0.01, "warmup": 0.0}

class Spy(callbacks.CheckpointCallback):
    stop_at = None

    def on_train_begin(self, logs=None):
        Spy.replicas = len(self.model.trainable_variables[0].value.devices())

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self.state.step == Spy.stop_at:
            raise KeyboardInterrupt

training.CheckpointCallback = Spy

def train(devices, **options):
    run = keras_resnet.train(spec, data, devices=devices, sync_batch_norm=True, **settings, **options)
    weights = np.concatenate([weight.numpy().ravel() for weight in run.model.weights])
    return {"weights": weights.tolist(), "history": run.history, "report": run.report, "replicas": Spy.replicas,
            "replicas_after": len(run.model.weights[0].value.devices())}

results = {"one": train(1), "two": train(2)}
options, Spy.stop_at = {"workdir": sys.argv[1], "checkpoint_every": 2}, 3
try:
    train(2, **options)
except KeyboardInterrupt:
    Spy.stop_at = None
results["resumed"] = train(2, resume=True, **options)
try:
    train(3)
except ValueError as error:
    results["error"] = str(error)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # most of the time is compilation
    }
    words = [sys.executable, "-c", SCRIPT, str(tmp_path_factory.mktemp("jax") / "run")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_two_devices_equal_one(results):
    """Losses, tests of an odd number of images, and weights, whose batch norm has the statistics of whole batches."""
    one, two = results["one"], results["two"]
    assert (one["replicas"], two["replicas"], two["replicas_after"]) == (1, 2, 1)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(two["history"][name], one["history"][name], rtol=1e-3, err_msg=name)
    np.testing.assert_allclose(two["weights"], one["weights"], atol=1e-3)
    assert two["report"]["top1_accuracy"] * 357 == pytest.approx(round(two["report"]["top1_accuracy"] * 357), abs=1e-3)


def test_interrupted_runs_on_two_devices_continue_with_the_same_numbers(results):
    np.testing.assert_array_equal(results["resumed"]["weights"], results["two"]["weights"])
    for name in ("loss", "val_loss", "step"):
        assert results["resumed"]["history"][name] == results["two"]["history"][name]


def test_more_devices_than_there_are(results):
    assert "at most the number of JAX's devices" in results["error"] and "device_count=3" in results["error"]
