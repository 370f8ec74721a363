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
LONGEST = "interrupted or resnet34d or channels_first or own_size or raw_outputs or rcnn_v2"
"""What takes longest to compile."""
QUICK = ("portable and not slow", f"not ({LONGEST})")
"""Marks and names of tests."""
ALL = ("portable", "not full_size")


@pytest.mark.parametrize(("marks", "names"), [QUICK, pytest.param(*ALL, marks=pytest.mark.slow)], ids=["quick", "all"])
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_portable_tests_pass_on_another_backend(backend, marks, names):
    """Layers, outputs of torchvision and timm, files, folding, evaluation, features, an interrupted run, detectors."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    modules = [str(path) for path in sorted(TESTS.glob("test_*.py")) if "mark.portable" in path.read_text("utf-8")]
    modules.remove(__file__)
    script = "import sys, pytest; sys.modules['tensorflow'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", marks, "-k", names]
    environment = {**os.environ, "KERAS_BACKEND": backend, **FASTER}
    words = [sys.executable, "-c", script, *arguments, *modules]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
