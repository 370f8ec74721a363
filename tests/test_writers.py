"""Written files, read by the libraries that the formats belong to."""

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from keras_resnet.weights.readers import open_weights
from keras_resnet.weights.writers import write_arrays

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
    """keras.applications' own ResNet, cut to the size of a test, with weights that are not the initial ones."""
    from keras.src.applications.resnet import ResNet, stack_residual_blocks_v1

    def stack(x):
        return stack_residual_blocks_v1(x, 2, 2, name="conv2")

    model = ResNet(stack, False, True, "resnet", weights=None, input_shape=(32, 32, 3), classes=5, weights_name=None)
    generator = np.random.default_rng(0)
    model.set_weights([generator.uniform(size=weight.shape) for weight in model.get_weights()])
    return model


def by_layer(model):
    return {f"{layer.name}/{v.name}": np.asarray(v) for layer in model.layers for v in layer.weights}


def test_safetensors_are_read_by_their_library(tmp_path):
    write_arrays(ARRAYS, tmp_path / "a.safetensors", {"format": "pt"})
    written = load_file(tmp_path / "a.safetensors")
    assert_same({name: written[name] for name in ARRAYS})
    assert {name: a.dtype for name, a in written.items()} == {n: a.dtype.newbyteorder("=") for n, a in ARRAYS.items()}
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th"])
def test_torch_files_are_read_by_our_reader(tmp_path, suffix):
    write_arrays(ARRAYS, tmp_path / f"a{suffix}")
    with open_weights(tmp_path / f"a{suffix}") as weights:
        assert weights.format == "torch"
        assert_same({name: entry.read() for name, entry in weights.entries.items()})


def test_torch_files_are_read_by_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    write_arrays(ARRAYS, tmp_path / "a.pth")
    written = torch.load(tmp_path / "a.pth", weights_only=True)
    assert type(written).__name__ == "OrderedDict"
    assert_same({name: tensor.numpy() for name, tensor in written.items()})


@pytest.mark.parametrize("by_name", [False, True])
def test_hdf5_files_are_read_by_keras(model, tmp_path, by_name):
    expected = model.get_weights()
    write_arrays(by_layer(model), tmp_path / "a.h5", {"licence": "MIT"})
    model.set_weights([np.zeros_like(weight) for weight in expected])
    model.load_weights(tmp_path / "a.h5", **({"by_name": True} if by_name else {}))
    for weight, written in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(weight, written)
    with open_weights(tmp_path / "a.h5") as weights:
        assert weights.format == "h5"
        assert_same({name: entry.read() for name, entry in weights.entries.items()}, by_layer(model))


def test_hdf5_files_hold_more_names_than_an_attribute_does(tmp_path):
    """ResNet-1202 has more; Keras reads the chunks back."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import load_attributes_from_hdf5_group

    arrays = {f"{'layer' * 20}_{i}/kernel": np.zeros(1, "float32") for i in range(700)}
    write_arrays(arrays, tmp_path / "a.h5")
    with open_weights(tmp_path / "a.h5") as weights:
        assert list(weights.entries) == list(arrays)
    with h5py.File(tmp_path / "a.h5") as file:
        names = load_attributes_from_hdf5_group(file, "layer_names")
    assert [f"{name}/kernel" for name in names] == list(arrays)


@pytest.mark.parametrize("name", ["a.npz", "a", "a.weights.h5", "a.keras"])
def test_other_suffixes_are_refused_with_the_known_ones(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.h5.*\.pt.*\.pth.*\.safetensors.*Received: path="):
        write_arrays(ARRAYS, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arrays, name",
    [
        ({"a": np.array(["text"])}, "a.pth"),
        ({"a": np.array(1j)}, "a.safetensors"),
        ({"a": np.zeros(1), "no layer": np.zeros(1)}, "a.h5"),
        ({"a/b/c": np.zeros(1)}, "a.h5"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_the_old_file_stays(tmp_path, arrays, name):
    (tmp_path / name).write_bytes(b"old")
    with pytest.raises(ValueError, match="should be.*Received: "):
        write_arrays(arrays, tmp_path / name)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
