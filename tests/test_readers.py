"""Weights files of every format: recognised by content, readable inside the block, refused by name."""

import random
import shutil
import struct

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file
from support import REFERENCES, assert_same_arrays, read_arrays

from keras_resnet.weights.readers import open_weights

FORMATS = ("a.keras", "a.h5", "a.weights.h5", "a.safetensors", "torch_zip.pth", "torch_zip_legacy.pth")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a file of every format."""
    folder = tmp_path_factory.mktemp("files")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="predictions")])
    model.save(folder / "a.keras")
    model.save(folder / "a.h5")
    model.save_weights(folder / "a.weights.h5")
    save_file({"fc.weight": np.ones((3, 4), "float32")}, folder / "a.safetensors")
    for name in ("torch_zip.pth", "torch_zip_legacy.pth"):
        shutil.copy(REFERENCES / name, folder)
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_a_misnamed_file_is_read_by_its_content(files, tmp_path, name):
    shutil.copy(files / name, tmp_path / "weights.txt")
    assert_same_arrays(read_arrays(tmp_path / "weights.txt"), read_arrays(files / name))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89HDF\r\n\x1a\n",
        b"PK\3\4",
        b"\x80\2K\1.",
        b"\x80",
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        random.Random(0).randbytes(4096),
        struct.pack("<Q", 2**62) + b"{" + bytes(64),
        struct.pack("<Q", 10) + b"{" + b"[" * 9,
        b'{"config": {}}',
    ],
)
def test_what_is_no_weights_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "odd.h5").write_bytes(content)
    with pytest.raises(ValueError, match=r"should.*Received: path='.*odd\.h5'"):
        read_arrays(tmp_path / "odd.h5")


def test_missing_files_and_folders_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="should be.*Received: path='.*absent.h5'"):
        read_arrays(tmp_path / "absent.h5")
    with pytest.raises(ValueError, match="not a folder"):
        read_arrays(tmp_path)


def test_errors_inside_the_block_stay_what_they_are(files):
    with pytest.raises(KeyError, match="mine"), open_weights(files / "a.h5"):
        raise KeyError("mine")


@pytest.mark.parametrize("name", FORMATS)
def test_entries_cannot_be_read_after_the_block(files, name):
    with open_weights(files / name) as weights:
        entry = next(iter(weights.entries.values()))
    with pytest.raises(ValueError, match=name):
        entry.read()
