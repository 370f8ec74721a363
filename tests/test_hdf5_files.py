"""Keras's three formats: intact files give the model's weights, damaged and hostile ones a ValueError."""

import zipfile

import h5py
import keras
import numpy as np
import pytest
from support import assert_damaged_files_are_refused, assert_same_arrays, read_arrays

from keras_resnet.weights.file_formats import open_weights


def by_layer(model):
    """{"<layer>/<weight>": array} of a model."""
    return {f"{v.path.split('/')[-2]}/{v.name}": keras.ops.convert_to_numpy(v) for v in model.weights}


@pytest.fixture(scope="module")
def model():
    """A model with twelve convolutions (conv2d_10), a nested model, a dropout with its seed, and an optimizer."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    for i in range(11):
        x = keras.layers.Conv2D(2, 1, name=f"conv{i}_conv")(x)
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = keras.layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    x = keras.layers.Dropout(0.5)(x)
    nested = keras.Sequential([keras.Input((6, 6, 2)), keras.layers.Conv2D(4, 1, name="inner_conv")], name="nested")
    x = keras.layers.GlobalAveragePooling2D()(nested(x))
    model = keras.Model(inputs, keras.layers.Dense(3, name="predictions")(x))
    model.compile(keras.optimizers.SGD(momentum=0.9), "mse")
    model.fit(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), np.ones((4, 3)), verbose=0)
    return model


@pytest.fixture(scope="module")
def keras_files(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras")
    model.save(folder / "a.keras")
    model.save(folder / "a.h5")
    model.save_weights(folder / "a.weights.h5")
    return folder


@pytest.mark.parametrize("name, format", [("a.keras", "keras"), ("a.h5", "h5"), ("a.weights.h5", "weights.h5")])
def test_keras_formats_give_the_weights_by_layer_name(model, keras_files, name, format):
    with open_weights(keras_files / name) as weights:
        assert weights.format == format
        assert bool(weights.config) == (format != "weights.h5")
        assert all(array.shape == array.read().shape for array in weights.arrays.values())
    assert_same_arrays(read_arrays(keras_files / name), by_layer(model))


def test_compressed_keras_files_are_read(model, keras_files, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED) as target:
        for name in ("config.json", "model.weights.h5"):
            target.writestr(name, zipfile.Path(keras_files / "a.keras", name).read_bytes())
    assert_same_arrays(read_arrays(tmp_path / "a.keras"), by_layer(model))


def test_floating_point_weights_are_read_as_float32(tmp_path):
    for dtype in ("bfloat16", "float16", "float64"):
        layer = keras.layers.Dense(3, dtype=dtype, name="predictions")
        model = keras.Sequential([keras.Input((4,)), layer])
        model.save_weights(tmp_path / "a.weights.h5")
        expected = {f"predictions/{v.name}": keras.ops.convert_to_numpy(v).astype("float32") for v in layer.weights}
        assert_same_arrays(read_arrays(tmp_path / "a.weights.h5"), expected)


def test_files_of_older_keras_versions_are_read(tmp_path):
    """Layouts of TF 2.x's .h5 (names with ":0", attributes in chunks) and of Keras 3.0's .weights.h5 (no names)."""
    kernel, gamma = np.ones((1, 1, 2, 3), "float32"), np.zeros(3, "float32")
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["layer_names0"], file.attrs["layer_names1"] = [b"conv1_conv"], [b"conv1_bn", b"conv1_relu"]
        for layer, name, array in (("conv1_conv", "kernel:0", kernel), ("conv1_bn", "conv1_bn/gamma:0", gamma)):
            file.create_group(layer).attrs["weight_names"] = [name.encode()]
            file[layer][name] = array
        file.create_group("conv1_relu").attrs["weight_names"] = np.array([])
    assert_same_arrays(read_arrays(tmp_path / "old.h5"), {"conv1_conv/kernel": kernel, "conv1_bn/gamma": gamma})
    with h5py.File(tmp_path / "old.weights.h5", "w") as file:
        file["_layer_checkpoint_dependencies/conv2d_3/vars/0"] = kernel
        file["_layer_checkpoint_dependencies/group_normalization/vars/0"] = gamma
        file["optimizer/vars/0"] = file["vars/0"] = gamma
    assert_same_arrays(
        read_arrays(tmp_path / "old.weights.h5"), {"conv2d_3/kernel": kernel, "group_normalization/var0": gamma}
    )


def write_hostile_hdf5(kind, path):
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/conv2d/vars")
        if kind == "external link":
            group["0"] = h5py.ExternalLink("other.h5", "/x")
        elif kind == "soft link":
            group["0"] = h5py.SoftLink("/elsewhere")
        elif kind == "external storage":
            group.create_dataset("0", (4,), "f4", external=[(str(path.with_suffix(".raw")), 0, 16)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4,), "f4")
            layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
            group.create_virtual_dataset("0", layout)
        elif kind == "chunks of nothing":
            group.create_dataset("0", (2**20, 2**20), "f4", chunks=(2**10, 2**10), compression="gzip")
        elif kind == "never written":
            group.create_dataset("0", (2**20, 2**20), "f4")
        elif kind == "strings":
            group["0"] = ["a", "b"]
        elif kind == "cycle":
            group["again"] = file["layers"]


@pytest.mark.parametrize(
    "kind",
    [
        "external link",
        "soft link",
        "external storage",
        "virtual",
        "chunks of nothing",
        "never written",
        "strings",
        "cycle",
        "nothing",
    ],
)
def test_hostile_hdf5_files_are_refused(tmp_path, kind):
    write_hostile_hdf5(kind, tmp_path / "hostile.h5")
    with pytest.raises(ValueError, match="hostile.h5"):
        read_arrays(tmp_path / "hostile.h5")


def test_an_hdf5_heap_with_an_object_of_size_zero_is_refused(keras_files, tmp_path):
    """libhdf5 1.14 would loop forever."""
    content = bytearray((keras_files / "a.weights.h5").read_bytes())
    heap = content.index(b"GCOL")
    content[heap + 16 : heap + 32] = bytes(16)
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(ValueError, match="heap"):
        read_arrays(tmp_path / "a.h5")


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(2**24))
    with pytest.raises(ValueError, match="are stored.*bomb.keras"):
        read_arrays(tmp_path / "bomb.keras")


def test_encrypted_zip_members_are_refused(keras_files, tmp_path):
    content = bytearray((keras_files / "a.keras").read_bytes())
    central = [i for i in range(len(content)) if content.startswith(b"PK\1\2", i)]
    for header in central:
        content[header + 8] |= 1
    (tmp_path / "a.keras").write_bytes(content)
    with pytest.raises(ValueError, match="encrypted"):
        read_arrays(tmp_path / "a.keras")


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5"])
def test_damaged_keras_files_are_read_or_refused(keras_files, name, tmp_path):
    assert_damaged_files_are_refused((keras_files / name).read_bytes(), 30, tmp_path / name)
