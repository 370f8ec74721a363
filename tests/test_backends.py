"""The model half of the package on the other Keras backends, each in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PORTABLE = (
    "test_parity.py",
    "test_layers.py",
    "test_network.py",
    "test_loading.py",
    "test_resuming.py",
    "test_evaluation.py",
    "test_features.py",
    "test_folding.py",
    "test_inference.py",
)
CHOSEN = " or ".join(
    (
        "narrow and 64 and (resnet50d or seresnet50 or resnetv2 or resnext) and not folded",
        "same_outputs and float32",
        "weights_files_of_keras",
        "channels_first and resnet20",
        "fresh_head",
        "failed_load",
        "ctrl_c and 19",
        "scikit_learns",
        "own_size",
        "classifier_on_top",
        "names_its",
        "folded and resnet34d",
        "are_torchs",
        "of_the_trained_network",
    )
)

FASTER = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""JAX compiles for longer than it computes here."""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_backend_alone(backend):
    """Without TensorFlow: layers, parity with torchvision and timm, files, folds, a stopped run, errors."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    tests = [str(Path(__file__).with_name(name)) for name in PORTABLE]
    script = "import sys, pytest; sys.modules['tensorflow'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", "-k", CHOSEN, *tests]
    environment = {**os.environ, "KERAS_BACKEND": backend, **FASTER}
    done = subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
