"""Export of a model on JAX, by a process with TensorFlow."""

import importlib.util
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from support import random_pixels

SCRIPT = """
import json, sys
import numpy as np
import keras, keras_resnet

folder = sys.argv[1]
model = keras_resnet.create("resnet20", weights="cifar10")
pixels = np.load(f"{folder}/pixels.npy")
probabilities = model.predict(keras_resnet.preprocessing(model)(pixels), verbose=0)
report = keras_resnet.export(model, f"{folder}/network", measure_speed=False, images=pixels)

def error(**arguments):
    try:
        keras_resnet.export(model, f"{folder}/other", **arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

errors = [error(images=f"{folder}/missing"), error(images=(image for image in pixels))]
sys.modules["tensorflow"] = None
errors.append(error())
print(json.dumps({"backend": keras.backend.backend(), "report": report, "errors": errors,
                  "probabilities": probabilities.tolist()}))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of the export, what the script printed)."""
    for library in ("jax", "tensorflow"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    folder = tmp_path_factory.mktemp("export")
    np.save(folder / "pixels.npy", random_pixels(16))
    words, environment = [sys.executable, "-c", SCRIPT, str(folder)], {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_exported_network_equals_the_model_on_jax(exported):
    folder, result = exported
    import tensorflow as tf

    assert result["backend"] == "jax" and result["report"]["verified"] and result["report"]["num_images"] == 16
    network = tf.saved_model.load(str(folder / "network")).signatures["serving_default"]
    outputs = network(images=tf.constant(random_pixels(16)))["probabilities"]
    np.testing.assert_allclose(outputs, result["probabilities"], atol=1e-5)


@pytest.mark.slow
def test_errors_of_the_process_are_raised(exported):
    folder, result = exported
    missing, generator, without_tensorflow = result["errors"]
    assert missing.startswith("FileNotFoundError: ") and "missing" in missing
    assert generator.startswith("ValueError: ") and "generator" in generator
    assert without_tensorflow.startswith("ImportError: ") and "keras-residual[tensorflow]" in without_tensorflow
    assert not list(folder.glob("other*"))


def test_a_process_without_a_result_is_reported():
    """With its last lines: here, a TypeError is no error of the user."""
    from keras_resnet.deployment.tensorflow_process import call_with_tensorflow

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(RuntimeError, match=r"(?s)exit status 1.*TypeError"):
        call_with_tensorflow(os._exit, model)
