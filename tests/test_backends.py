"""The model half of the package on the other Keras backends, each in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PORTABLE = (
    # test module, test, which of its parameters (an expression of pytest's -k)
    (
        "test_parity",
        "test_narrow_networks_reproduce_the_logits",
        "64 and (resnet50d or seresnet50 or resnetv2 or resnext)",
    ),
    ("test_layers", "test_same_outputs_and_moving_averages_as_keras", "float32"),
    ("test_layers", "test_weights_files_are_interchangeable_with_keras", ""),
    ("test_network", "test_channels_first_computes_the_same", "resnet20"),
    ("test_loading", "test_another_number_of_classes_keeps_the_body_and_initializes_the_head", ""),
    ("test_loading", "test_a_damaged_file_leaves_the_model_unchanged", ""),
    ("test_resuming", "test_interrupted_runs_continue_with_the_same_numbers", "19"),
    ("test_evaluation", "test_errors_equal_those_of_scikit_learn", ""),
    ("test_evaluation", "test_fully_convolutional_equals_the_model_on_images_of_its_own_size", ""),
    ("test_feature_extractor", "test_the_classifier_applied_to_the_pre_logits_gives_the_logits", ""),
    ("test_features", "test_names_and_classes_of_images_in_a_folder", ""),
    ("test_folding", "test_a_narrow_network_of_every_kind_is_folded_to_the_same_logits", "resnet34d"),
    ("test_folding", "test_channels_first_networks_are_folded", "resnet20"),
    ("test_folding", "test_kernel_and_bias_equal_those_of_torch", ""),
    ("test_inference", "test_the_trained_network_keeps_outputs_and_metadata", ""),
)
"""Tests that run on every backend."""

FASTER = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""JAX compiles for longer than it computes here."""


def test_the_portable_tests_exist():
    for module, name, _ in PORTABLE:
        assert f"def {name}(" in (TESTS / f"{module}.py").read_text("utf-8"), f"{name} in {module}.py"


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_backend_alone(backend):
    """Without TensorFlow: layers, parity with torchvision and timm, files, folds, a stopped run, errors."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    tests = dict.fromkeys(str(TESTS / f"{module}.py") for module, *_ in PORTABLE)
    chosen = " or ".join(" and ".join(filter(None, (name, which))) for _, name, which in PORTABLE)
    script = "import sys, pytest; sys.modules['tensorflow'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", "-k", chosen, *tests]
    environment = {**os.environ, "KERAS_BACKEND": backend, **FASTER}
    done = subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
