"""The model half of the package on the other Keras backends, each in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PORTABLE = ("test_parity.py", "test_layers.py", "test_network.py", "test_spec.py")
NOT_HERE = "full_size or random_specifications or every_variant or gradients or kernel_is or float64"


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_backend_alone(backend):
    """Without TensorFlow's being imported: layers, parity with torchvision and timm, files, channels-first."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    tests = [str(Path(__file__).with_name(name)) for name in PORTABLE]
    script = (
        "import sys, pytest; status = pytest.main(sys.argv[1:]);"
        "sys.exit(status or ('tensorflow' in sys.modules and 'TensorFlow was imported'))"
    )
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", "-k", f"not ({NOT_HERE})", *tests]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
