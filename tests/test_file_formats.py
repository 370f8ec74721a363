"""Weights files of every format: opened by their content, and written so that their own libraries read them."""

import random
import shutil
import struct

import keras
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support import REFERENCES, assert_same_arrays, read_arrays

from keras_resnet.weights.file_formats import open_weights, write_arrays

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
def test_other_files_raise_an_error_with_the_path(tmp_path, content):
    (tmp_path / "odd.h5").write_bytes(content)
    with pytest.raises(ValueError, match=r"should.*Received: path='.*odd\.h5'"):
        read_arrays(tmp_path / "odd.h5")


def test_missing_files_and_folders_raise_an_error_with_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="should be.*Received: path='.*absent.h5'"):
        read_arrays(tmp_path / "absent.h5")
    with pytest.raises(ValueError, match="not a folder"):
        read_arrays(tmp_path)


def test_errors_inside_the_block_are_passed_on(files):
    with pytest.raises(KeyError, match="mine"), open_weights(files / "a.h5"):
        raise KeyError("mine")


@pytest.mark.parametrize("name", FORMATS)
def test_arrays_cannot_be_read_after_the_block(files, name):
    with open_weights(files / name) as weights:
        array = next(iter(weights.arrays.values()))
    with pytest.raises(ValueError, match=name):
        array.read()


ARRAYS = {
    "conv1.weight": np.random.default_rng(0).normal(size=(4, 3, 1, 2)).astype("float32"),
    "transposed": np.arange(6, dtype="float32").reshape(2, 3).T,
    "scalar": np.array(3, "int64"),
    "empty": np.zeros((0, 3), "float32"),
    "half": np.array([1.5, -2], "float16"),
    "swapped": np.array([1.5, -2], ">f4"),
    "mask": np.array([True, False]),
    "näme": np.arange(300, dtype="uint8"),
}


def assert_same(arrays, expected=ARRAYS):
    assert list(arrays) == list(expected)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.fixture(scope="module")
def model():
    """A small ResNet of keras.applications with random weights."""
    from keras.src.applications.resnet import ResNet, stack_residual_blocks_v1

    def stack(x):
        return stack_residual_blocks_v1(x, 2, 2, name="conv2")

    model = ResNet(stack, False, True, "resnet", weights=None, input_shape=(32, 32, 3), classes=5, weights_name=None)
    generator = np.random.default_rng(0)
    model.set_weights([generator.uniform(size=weight.shape) for weight in model.get_weights()])
    return model


def by_layer(model):
    return {f"{layer.name}/{v.name}": np.asarray(v) for layer in model.layers for v in layer.weights}


def test_safetensors_reads_written_safetensors(tmp_path):
    write_arrays(ARRAYS, tmp_path / "a.safetensors", {"format": "pt"})
    written = load_file(tmp_path / "a.safetensors")
    assert_same({name: written[name] for name in ARRAYS})
    assert {name: a.dtype for name, a in written.items()} == {n: a.dtype.newbyteorder("=") for n, a in ARRAYS.items()}
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th"])
def test_written_torch_files_are_read_back(tmp_path, suffix):
    write_arrays(ARRAYS, tmp_path / f"a{suffix}")
    with open_weights(tmp_path / f"a{suffix}") as weights:
        assert weights.format == "torch"
        assert_same({name: array.read() for name, array in weights.arrays.items()})


def test_torch_reads_written_torch_files(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    write_arrays(ARRAYS, tmp_path / "a.pth")
    written = torch.load(tmp_path / "a.pth", weights_only=True)
    assert type(written).__name__ == "OrderedDict"
    assert_same({name: tensor.numpy() for name, tensor in written.items()})


@pytest.mark.parametrize("by_name", [False, True])
def test_keras_reads_written_hdf5_files(model, tmp_path, by_name):
    expected = model.get_weights()
    write_arrays(by_layer(model), tmp_path / "a.h5", {"licence": "MIT"})
    model.set_weights([np.zeros_like(weight) for weight in expected])
    model.load_weights(tmp_path / "a.h5", **({"by_name": True} if by_name else {}))
    for weight, written in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(weight, written)
    with open_weights(tmp_path / "a.h5") as weights:
        assert weights.format == "h5"
        assert_same({name: array.read() for name, array in weights.arrays.items()}, by_layer(model))


def test_layer_names_that_exceed_an_hdf5_attribute_are_split(tmp_path):
    """As for ResNet-1202; Keras reads the chunks."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import load_attributes_from_hdf5_group

    arrays = {f"{'layer' * 20}_{i}/kernel": np.zeros(1, "float32") for i in range(700)}
    write_arrays(arrays, tmp_path / "a.h5")
    with open_weights(tmp_path / "a.h5") as weights:
        assert list(weights.arrays) == list(arrays)
    with h5py.File(tmp_path / "a.h5") as file:
        names = load_attributes_from_hdf5_group(file, "layer_names")
    assert [f"{name}/kernel" for name in names] == list(arrays)


@pytest.mark.parametrize("name", ["a.npz", "a", "a.weights.h5", "a.keras"])
def test_unknown_suffixes_raise_an_error_with_the_known_ones(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.h5.*\.pt.*\.pth.*\.safetensors.*Received: path="):
        write_arrays(ARRAYS, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arrays, name",
    [
        ({"a": np.array(["text"])}, "a.pth"),
        ({"a": np.array(1j)}, "a.safetensors"),
        ({"a": np.zeros(1), "no_layer": np.zeros(1)}, "a.h5"),
        ({"a/b/c": np.zeros(1)}, "a.h5"),
    ],
)
def test_unsupported_dtypes_and_names_leave_the_existing_file(tmp_path, arrays, name):
    (tmp_path / name).write_bytes(b"old")
    with pytest.raises(ValueError, match="should be.*Received: "):
        write_arrays(arrays, tmp_path / name)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
