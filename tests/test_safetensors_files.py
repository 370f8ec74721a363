"""Safetensors files: intact files give the arrays that their library wrote, damaged ones a ValueError."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import assert_damaged_files_are_refused, assert_same_arrays, read_arrays

from keras_resnet.weights.file_formats import open_weights


def test_safetensors_give_their_arrays_and_metadata(tmp_path):
    arrays = {"conv1.weight": np.random.default_rng(0).normal(size=(2, 3, 1, 1)), "steps": np.arange(3)}
    arrays["half"] = np.array(1.5, "float16")
    prefixed = {f"module.model.{name}": array for name, array in arrays.items()}
    save_file({**prefixed, "module.model.bn1.num_batches_tracked": np.array(7)}, tmp_path / "a.bin", {"format": "pt"})
    with open_weights(tmp_path / "a.bin") as weights:
        assert (weights.format, weights.config) == ("safetensors", {"format": "pt"})
    expected = {name: a.astype("float32") if a.dtype.kind == "f" else a for name, a in arrays.items()}
    assert_same_arrays(read_arrays(tmp_path / "a.bin"), expected)


def test_a_prefix_is_kept_unless_all_names_have_it(tmp_path):
    arrays = {"model.conv1.weight": np.ones(2, "float32"), "fc.weight": np.zeros(2, "float32")}
    save_file(arrays, tmp_path / "a.safetensors")
    assert_same_arrays(read_arrays(tmp_path / "a.safetensors"), arrays)


def write_safetensors(path, dtype, shape, data):
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_safetensors_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    write_safetensors(tmp_path / "a", "BF16", [1, 3], b"\x80\x3f\x00\xc0\x20\x40")
    assert_same_arrays(read_arrays(tmp_path / "a"), {"a": np.array([[1, -2, 2.5]], "float32")})


@pytest.mark.parametrize("shape", [[2**31, 2**31], [2**62, 4], [5], [-1]])
def test_safetensors_with_a_wrong_shape_are_refused(tmp_path, shape):
    write_safetensors(tmp_path / "hostile", "F32", shape, bytes(16))
    with pytest.raises(ValueError, match="hostile"):
        read_arrays(tmp_path / "hostile")


def test_damaged_safetensors_are_read_or_refused(tmp_path):
    save_file({"a": np.ones((3, 4), "float32"), "b": np.ones(5, "float16")}, tmp_path / "a")
    assert_damaged_files_are_refused((tmp_path / "a").read_bytes(), 200, tmp_path / "b")
