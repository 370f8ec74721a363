"""Tests marked portable on the other Keras backends, each in a process of its own, without TensorFlow."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FASTER = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""JAX spends most of these tests compiling."""
QUICK = "not (interrupted or resnet34d or channels_first or own_size)"
"""Leaves out what takes longest to compile."""


@pytest.mark.parametrize("chosen", [QUICK, pytest.param("test", marks=pytest.mark.slow)], ids=["quick", "all"])
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_portable_tests_pass_on_another_backend(backend, chosen):
    """Layers, logits of torchvision and timm, files, folding, evaluation, features, an interrupted training run."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    modules = [str(path) for path in sorted(TESTS.glob("test_*.py")) if "mark.portable" in path.read_text("utf-8")]
    modules.remove(__file__)
    script = "import sys, pytest; sys.modules['tensorflow'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "portable and not slow", "-k", chosen]
    environment = {**os.environ, "KERAS_BACKEND": backend, **FASTER}
    words = [sys.executable, "-c", script, *arguments, *modules]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
