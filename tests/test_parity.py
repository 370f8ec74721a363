"""Logits of torchvision and timm, reproduced from their weights; tests/references/make_networks.py wrote the files."""

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from support import REFERENCES, assert_same_arrays, read_arrays

from keras_resnet import get_spec, list_models, load_weights, save_weights
from keras_resnet.weights.file_formats import open_weights
from keras_resnet.weights.loading import build_from_file

NARROW = REFERENCES / "networks"
INDEX = json.loads((NARROW / "index.json").read_text())["networks"]


def logits(model, x):
    return keras.ops.convert_to_numpy(model(x.astype("float32"), training=False))


def assert_close(ours, theirs, relative=1e-5):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= relative * np.abs(theirs).max()


def reference(name):
    """(spec, path of the weights, images and logits)."""
    row = INDEX[name]
    return replace(get_spec(row["variant"]), **row["spec"]), NARROW / f"{row['weights']}.safetensors", row


PORTABLE = ("resnet50d", "seresnet50", "resnetv2", "resnext")


def is_portable(name, size):
    return size == 64 and any(part in name for part in PORTABLE)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=[pytest.mark.portable] * is_portable(name, size))
        for name in INDEX
        for size in (64, 97)
    ],
)
def test_narrow_networks_reproduce_the_logits(name, size):
    spec, path, row = reference(name)
    expected = np.load(NARROW / f"{name}.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of adapted input channels
        model = build_from_file(spec, path, input_shape=(None, None, row["input_channels"]), classifier_activation=None)
    assert_close(logits(model, expected[f"x{size}"]), expected[f"logits{size}"])


@pytest.mark.parametrize("name", [name for name, row in INDEX.items() if "output_stride" in row["spec"]])
def test_dilated_feature_maps_equal_those_of_timm(name):
    spec, path, _ = reference(name)
    expected = np.load(NARROW / f"{name}.npz")
    model = build_from_file(spec, path, include_top=False)
    assert_close(logits(model, expected["x64"]), expected["features64"])


@pytest.mark.parametrize("name", [name for name, row in INDEX.items() if row["weights"] == name])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_saved_files_equal_the_loaded_files(name, suffix, tmp_path):
    """After loading and saving: the same names and values."""
    spec, path, row = reference(name)
    model = build_from_file(spec, path)
    save_weights(model, tmp_path / f"out{suffix}", layout=row["layout"])
    with open_weights(path) as theirs, open_weights(tmp_path / f"out{suffix}") as ours:
        assert set(ours.arrays) == set(theirs.arrays)
        for key, array in theirs.arrays.items():
            np.testing.assert_array_equal(ours.arrays[key].read(), array.read())


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_50"])
def test_the_layout_of_timm_is_that_of_the_kind_of_network(name, tmp_path):
    """Both kinds are written and read under the name "timm", though their arrays are named differently."""
    spec, path, row = reference(name)
    model = build_from_file(spec, path)
    save_weights(model, tmp_path / "timm.pth", layout="timm")
    save_weights(model, tmp_path / "named.pth", layout=row["layout"])
    assert_same_arrays(read_arrays(tmp_path / "timm.pth"), read_arrays(tmp_path / "named.pth"))
    load_weights(model, path, layout="timm")


FULL = [
    path
    for path in sorted(Path(os.environ.get("KERAS_RESNET_FULL_REFERENCES", "-")).glob("*.safetensors"))
    if path.stem in list_models()
]


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="KERAS_RESNET_FULL_REFERENCES names no folder of `make_networks.py --full`")
@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_full_size_networks_reproduce_the_logits(path):
    expected = np.load(path.with_suffix(".npz"))
    model = build_from_file(get_spec(path.stem), path, input_shape=(None, None, 3), classifier_activation=None)
    for size in (64, 97):
        assert_close(logits(model, expected[f"x{size}"]), expected[f"logits{size}"], relative=1e-4)
