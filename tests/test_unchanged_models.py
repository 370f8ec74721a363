"""`load_weights` changes a model only if the whole file is valid; NaN weights are loaded with a warning."""

import json
import struct

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file
from support import TINY_SPEC, randomize_weights, read_arrays

from keras_resnet import build, create, load_model, load_weights, save_weights
from keras_resnet.weights.file_formats import write_arrays
from keras_resnet.weights.weights_file import METADATA_KEY


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Path of the weights of a small network, its arrays and its metadata."""
    model = randomize_weights(build(TINY_SPEC))
    path = tmp_path_factory.mktemp("saved") / "saved.safetensors"
    save_weights(model, path)
    return path, read_arrays(path), {"spec": TINY_SPEC.to_config(), "info": {}}


def state(model):
    return [keras.ops.convert_to_numpy(variable).copy() for variable in model.variables], dict(model.info), model.spec


def assert_refused_without_a_change(path, message=None):
    model = randomize_weights(build(TINY_SPEC), seed=3)
    model.info = {"class_names": list("abcdefghij")}
    before, info, spec = state(model)
    with pytest.raises(ValueError, match=message or path.name):
        load_weights(model, path)
    after = state(model)
    for old, new in zip(before, after[0], strict=True):
        np.testing.assert_array_equal(old, new)
    assert after[1:] == (info, spec)


PREPROCESSING = {"mode": "torch", "size": 32, "resize": None, "interpolation": "bilinear", "channels": 3}
INFO = {
    "list": {"preprocessing": []},
    "unknown mode": {"preprocessing": {**PREPROCESSING, "mode": "nonsense"}},
    "size of zero": {"preprocessing": {**PREPROCESSING, "size": 0}},
    "fractional size": {"preprocessing": {**PREPROCESSING, "size": 1.5}},
    "unknown interpolation": {"preprocessing": {**PREPROCESSING, "interpolation": 7}},
    "unknown field": {"preprocessing": {**PREPROCESSING, "side": 32}},
    "seven channels": {"preprocessing": {**PREPROCESSING, "channels": 7}},
}


@pytest.mark.parametrize("kind", INFO)
def test_a_file_with_invalid_preprocessing_changes_nothing(kind, saved, tmp_path):
    _, arrays, metadata = saved
    path = tmp_path / "invalid.safetensors"
    write_arrays(arrays, path, {METADATA_KEY: json.dumps({**metadata, "info": INFO[kind]})})
    assert_refused_without_a_change(path)


@pytest.mark.parametrize(
    "changes",
    [{"depths": [1, 1, 2]}, {"stride_on": "1x1", "block": "bottleneck"}, {"bn_epsilon": "x"}, {"shortcut": 5}],
    ids=["depths", "block", "epsilon", "shortcut"],
)
def test_a_file_of_another_spec_changes_nothing(changes, saved, tmp_path):
    _, arrays, metadata = saved
    path = tmp_path / "other.safetensors"
    spec = {**metadata["spec"], **changes}
    write_arrays(arrays, path, {METADATA_KEY: json.dumps({"spec": spec, "info": {}})})
    assert_refused_without_a_change(path, "Received")


def without(arrays, name):
    return {other: array for other, array in arrays.items() if other != name}


LAST = "predictions/bias"
ARRAYS = {
    "missing": lambda arrays: without(arrays, LAST),
    "left over": lambda arrays: {**arrays, "predictions/scale": np.ones(3, "float32")},
    "of another shape": lambda arrays: {**arrays, LAST: np.ones(3, "float32")},
    "too large for float32": lambda arrays: {**arrays, LAST: np.full(10, 1e300)},
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_file_with_other_arrays_changes_nothing(kind, saved, tmp_path):
    save_file(ARRAYS[kind](saved[1]), tmp_path / "other.safetensors")
    assert_refused_without_a_change(tmp_path / "other.safetensors")


def test_a_file_whose_last_array_is_damaged_changes_nothing(saved, tmp_path):
    """The checksum of a PyTorch file's last member does not match."""
    write_arrays(saved[1], tmp_path / "damaged.pth")
    content = (tmp_path / "damaged.pth").read_bytes()
    last = list(saved[1].values())[-1].tobytes()
    assert content.count(last) == 1
    (tmp_path / "damaged.pth").write_bytes(content.replace(last, last[:-4] + struct.pack("<f", 7)))
    assert_refused_without_a_change(tmp_path / "damaged.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".h5"])
def test_nan_and_infinite_weights_are_named(suffix, saved, tmp_path):
    arrays = {name: array.copy() for name, array in saved[1].items()}
    arrays["conv1_conv/kernel"].flat[:3] = np.nan, np.inf, -np.inf
    arrays[LAST][4] = np.nan
    path = tmp_path / f"diverged{suffix}"
    write_arrays(arrays, path)
    model = build(TINY_SPEC)
    names = r"conv1_conv/kernel \(3 of 432\), predictions/bias \(1 of 10\)"
    message = f"diverged.* 2 of {len(arrays)} arrays: {names}"
    with pytest.warns(UserWarning, match=message):
        load_weights(model, path)
    np.testing.assert_array_equal(model.get_layer("predictions").bias, arrays[LAST])
    with pytest.warns(UserWarning, match=message):
        create("resnet20", weights=path, depths=(1, 1, 1))
    model.save(tmp_path / "diverged.keras")
    with pytest.warns(UserWarning, match=message):
        load_model(tmp_path / "diverged.keras")
