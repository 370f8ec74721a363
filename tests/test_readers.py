"""Weights files of every format, whole and broken: arrays as their own libraries give them, or one ValueError."""

import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from keras_resnet.weights.readers import open_weights

REFERENCES = Path(__file__).parent / "references"
TORCH_FILES = sorted(REFERENCES.glob("torch_*.pth"))
GOOD_TORCH_FILES = [path for path in TORCH_FILES if "malicious" not in path.name]


def read_all(path):
    with open_weights(path) as weights:
        return {name: entry.read() for name, entry in weights.entries.items()}


def assert_equal(arrays, expected):
    assert sorted(arrays) == sorted(expected)
    for name, array in arrays.items():
        assert array.flags.c_contiguous and array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def by_layer(model):
    """What a Keras reader should find: "<layer>/<kind>" -> array."""
    return {f"{v.path.split('/')[-2]}/{v.name}": keras.ops.convert_to_numpy(v) for v in model.weights}


@pytest.fixture(scope="module")
def model():
    """Twelve convolutions, so that conv2d_10 exists; a nested model; a dropout, which keeps a seed; an optimizer."""
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
def test_every_keras_format_gives_the_models_weights_by_layer_name(model, keras_files, name, format):
    with open_weights(keras_files / name) as weights:
        assert weights.format == format
        assert bool(weights.config) == (format != "weights.h5")
        assert all(entry.shape == entry.read().shape for entry in weights.entries.values())
    assert_equal(read_all(keras_files / name), by_layer(model))


def test_a_compressed_keras_file_reads_the_same(model, keras_files, tmp_path):
    with zipfile.ZipFile(keras_files / "a.keras") as source:
        with zipfile.ZipFile(tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED) as target:
            for name in source.namelist():
                target.writestr(name, source.read(name))
    assert_equal(read_all(tmp_path / "a.keras"), by_layer(model))


def test_half_precision_variables_are_read_as_float32(tmp_path):
    for dtype in ("bfloat16", "float16", "float64"):
        layer = keras.layers.Dense(3, dtype=dtype, name="predictions")
        model = keras.Sequential([keras.Input((4,)), layer])
        model.save_weights(tmp_path / "a.weights.h5")
        expected = {f"predictions/{v.name}": keras.ops.convert_to_numpy(v).astype("float32") for v in layer.weights}
        assert_equal(read_all(tmp_path / "a.weights.h5"), expected)


def test_files_of_older_keras_versions_are_read(tmp_path):
    """Layouts of TF 2.x's .h5 (names with ":0", attributes in chunks) and of Keras 3.0's .weights.h5 (no names)."""
    kernel, gamma = np.ones((1, 1, 2, 3), "float32"), np.zeros(3, "float32")
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["layer_names0"], file.attrs["layer_names1"] = [b"conv1_conv"], [b"conv1_bn", b"conv1_relu"]
        for layer, name, array in (("conv1_conv", "kernel:0", kernel), ("conv1_bn", "conv1_bn/gamma:0", gamma)):
            file.create_group(layer).attrs["weight_names"] = [name.encode()]
            file[layer][name] = array
        file.create_group("conv1_relu").attrs["weight_names"] = np.array([])
    assert_equal(read_all(tmp_path / "old.h5"), {"conv1_conv/kernel": kernel, "conv1_bn/gamma": gamma})
    with h5py.File(tmp_path / "old.weights.h5", "w") as file:
        file["_layer_checkpoint_dependencies/conv2d_3/vars/0"] = kernel
        file["_layer_checkpoint_dependencies/group_normalization/vars/0"] = gamma
        file["optimizer/vars/0"] = file["vars/0"] = gamma
    assert_equal(read_all(tmp_path / "old.weights.h5"), {"conv2d_3/kernel": kernel, "group_normalization/var0": gamma})


def test_safetensors_give_their_arrays_and_metadata(tmp_path):
    arrays = {"conv1.weight": np.random.default_rng(0).normal(size=(2, 3, 1, 1)), "steps": np.arange(3)}
    arrays["half"] = np.array(1.5, "float16")
    prefixed = {f"module.model.{name}": array for name, array in arrays.items()}
    save_file({**prefixed, "module.model.bn1.num_batches_tracked": np.array(7)}, tmp_path / "a.bin", {"format": "pt"})
    with open_weights(tmp_path / "a.bin") as weights:
        assert (weights.format, weights.config) == ("safetensors", {"format": "pt"})
    expected = {name: a.astype("float32") if a.dtype.kind == "f" else a for name, a in arrays.items()}
    assert_equal(read_all(tmp_path / "a.bin"), expected)


def write_safetensors(path, dtype, shape, data):
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_safetensors_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    write_safetensors(tmp_path / "a", "BF16", [1, 3], b"\x80\x3f\x00\xc0\x20\x40")
    assert_equal(read_all(tmp_path / "a"), {"a": np.array([[1, -2, 2.5]], "float32")})


@pytest.mark.parametrize("suffix", ["", "_legacy"])
@pytest.mark.parametrize("name, group", [("zip", "state"), ("checkpoint", "state"), ("dtypes",) * 2, ("views",) * 2])
def test_torch_files_give_what_torch_put_in(name, group, suffix):
    """`torch_files.npz` is what torch itself says of the files (references/make_torch_files.py)."""
    with np.load(REFERENCES / "torch_files.npz") as archive:
        expected = {key.partition(":")[2]: archive[key] for key in archive if key.startswith(f"{group}:")}
    assert_equal(read_all(REFERENCES / f"torch_{name}{suffix}.pth"), expected)


def test_big_endian_torch_files_are_swapped(tmp_path):
    with zipfile.ZipFile(REFERENCES / "torch_zip.pth") as source, zipfile.ZipFile(tmp_path / "a", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if "/data/" in name:
                content = b"".join(content[i : i + 4][::-1] for i in range(0, len(content), 4))
            target.writestr(name, b"big" if name.endswith("byteorder") else content)
    assert_equal(read_all(tmp_path / "a"), read_all(REFERENCES / "torch_zip.pth"))


@pytest.mark.parametrize("depth, parameters", [(20, 269_722), (32, 464_154)])
def test_published_cifar_checkpoints_are_read(depth, parameters):
    """Parameter counts: torch's, of the networks these files were trained as (option A, 10 classes)."""
    if "KERAS_RESNET_TEST_DATA" not in os.environ:
        pytest.skip("KERAS_RESNET_TEST_DATA does not name the folder that holds cifar10_weights/")
    path = next(Path(os.environ["KERAS_RESNET_TEST_DATA"], "cifar10_weights").glob(f"resnet{depth}-*.th"))
    arrays = read_all(path)
    assert arrays["conv1.weight"].shape == (16, 3, 3, 3) and arrays["linear.weight"].shape == (10, 64)
    assert sum(array.size for name, array in arrays.items() if "running" not in name) == parameters
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert all((array > 0).all() for name, array in arrays.items() if name.endswith("running_var"))


@pytest.mark.parametrize("path", [path for path in TORCH_FILES if "malicious" in path.name], ids=lambda path: path.name)
def test_code_in_a_pickle_is_named_and_not_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"carries code.*`(posix|nt)\.system`.*{path.name}"):
        read_all(path)
    assert not list(tmp_path.iterdir())


def tensor_pickle(storage=(b"0", 4), offset=0, shape=(2, 2), strides=(2, 1)):
    """{"a": _rebuild_tensor_v2(storage, offset, shape, strides, False, {})}, as opcodes written by hand."""

    def push(value):
        if isinstance(value, tuple):
            return b"(" + b"".join(map(push, value)) + b"t"
        return b"J" + struct.pack("<i", value)

    key, count = storage
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + key + b"X\3\0\0\0cpu" + push(count) + b"tQ"
    arguments = storage + b"".join(map(push, (offset, shape, strides))) + b"\x89}"
    return b"\x80\2}X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tRs."


def write_torch(path, content, data=bytes(16)):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", data)


def test_a_tensor_pickle_written_by_hand_is_read(tmp_path):
    write_torch(tmp_path / "a", tensor_pickle(), np.arange(4, dtype="<f4").tobytes())
    assert_equal(read_all(tmp_path / "a"), {"a": np.array([[0, 1], [2, 3]], "float32")})


@pytest.mark.parametrize(
    "content",
    [
        tensor_pickle(offset=1),
        tensor_pickle(offset=-1),
        tensor_pickle(shape=(2, 3)),
        tensor_pickle(shape=(-2, 2)),
        tensor_pickle(strides=(2, -1)),
        tensor_pickle(strides=(2**30, 1)),
        tensor_pickle(shape=(2**30, 2**30), strides=(0, 0)),
        tensor_pickle(strides=(1,)),
        tensor_pickle(storage=(b"0", -4)),
        tensor_pickle(storage=(b"0", 5)),
        tensor_pickle(storage=(b"0", 2**30), shape=(2**30,), strides=(1,)),
        tensor_pickle(storage=(b"1", 4)),
        pickle.dumps({}, 2),
        pickle.dumps([1, 2], 2),
        pickle.dumps({"state_dict": {"a": 1}}, 2),
        b"\x80\2}" + b"(" * 60 + b"N" + b"t" * 60 + b"Ns.",
        b"\x80\2" + b"r\xff\xff\xff\x7f",
        b"\x80\5\x96" + struct.pack("<Q", 2**40) + b".",
        b"\x80\2c__builtin__\neval\n.",
        b"\x80\2ctorch._utils\n_rebuild_tensor_v2\n}X\1\0\0\0aNsbN\x85R.",
        b"",
    ],
)
def test_hostile_pickles_are_refused(tmp_path, content):
    write_torch(tmp_path / "hostile.pth", content)
    with pytest.raises(ValueError, match="hostile.pth"):
        read_all(tmp_path / "hostile.pth")


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
        read_all(tmp_path / "odd.h5")


def test_missing_files_and_folders_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="should be.*Received: path='.*absent.h5'"):
        read_all(tmp_path / "absent.h5")
    with pytest.raises(ValueError, match="not a folder"):
        read_all(tmp_path)


def test_a_misnamed_file_is_read_by_its_content(model, keras_files, tmp_path):
    shutil.copy(keras_files / "a.keras", tmp_path / "weights.pth")
    assert_equal(read_all(tmp_path / "weights.pth"), by_layer(model))


def test_errors_inside_the_block_stay_what_they_are(keras_files):
    with pytest.raises(KeyError, match="mine"), open_weights(keras_files / "a.h5"):
        raise KeyError("mine")


def test_entries_cannot_be_read_after_the_block(keras_files):
    for path in (keras_files / "a.h5", keras_files / "a.keras", *GOOD_TORCH_FILES[:2]):
        with open_weights(path) as weights:
            entry = next(iter(weights.entries.values()))
        with pytest.raises(ValueError, match=path.name):
            entry.read()


def hostile_hdf5(kind, path):
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
    ["external link", "soft link", "external storage", "virtual", "chunks of nothing", "never written", "strings"]
    + ["cycle", "nothing"],
)
def test_hostile_hdf5_files_are_refused(tmp_path, kind):
    hostile_hdf5(kind, tmp_path / "hostile.h5")
    with pytest.raises(ValueError, match="hostile.h5"):
        read_all(tmp_path / "hostile.h5")


def test_an_hdf5_heap_without_end_is_refused(keras_files, tmp_path):
    """libhdf5 1.14 never returns from this one."""
    content = bytearray((keras_files / "a.weights.h5").read_bytes())
    heap = content.index(b"GCOL")
    content[heap + 16 : heap + 32] = bytes(16)
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(ValueError, match="heap"):
        read_all(tmp_path / "a.h5")


@pytest.mark.parametrize("shape", [[2**31, 2**31], [2**62, 4], [5], [-1]])
def test_safetensors_with_a_wrong_shape_are_refused(tmp_path, shape):
    write_safetensors(tmp_path / "hostile", "F32", shape, bytes(16))
    with pytest.raises(ValueError, match="hostile"):
        read_all(tmp_path / "hostile")


def test_zip_bombs_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(storage=(b"0", 2**22)))
        archive.writestr("archive/data/0", bytes(2**24))
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(2**24))
    for name in ("bomb.pth", "bomb.keras"):
        with pytest.raises(ValueError, match=f"are stored.*{name}"):
            read_all(tmp_path / name)


def test_encrypted_zip_members_are_refused(keras_files, tmp_path):
    content = bytearray((keras_files / "a.keras").read_bytes())
    central = [i for i in range(len(content)) if content.startswith(b"PK\1\2", i)]
    for header in central:
        content[header + 8] |= 1
    (tmp_path / "a.keras").write_bytes(content)
    with pytest.raises(ValueError, match="encrypted"):
        read_all(tmp_path / "a.keras")


def damaged(content, number, generator):
    """Copies of a file: cut short, or with a few bytes changed."""
    for i in range(number):
        copy = bytearray(content)
        if i % 3 == 0:
            del copy[generator.randrange(len(copy)) :]
        for _ in range(i % 3 * generator.choice([1, 1, 10])):
            copy[generator.randrange(len(copy))] = generator.randrange(256)
        yield bytes(copy)


@pytest.mark.parametrize("path", GOOD_TORCH_FILES, ids=lambda path: path.name)
def test_damaged_torch_files_are_read_or_refused(path, tmp_path):
    expect_arrays_or_refusal(path.read_bytes(), 90, tmp_path / path.name)


def test_damaged_safetensors_are_read_or_refused(tmp_path):
    save_file({"a": np.ones((3, 4), "float32"), "b": np.ones(5, "float16")}, tmp_path / "a")
    expect_arrays_or_refusal((tmp_path / "a").read_bytes(), 200, tmp_path / "b")


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5"])
def test_damaged_keras_files_are_read_or_refused(keras_files, name, tmp_path):
    expect_arrays_or_refusal((keras_files / name).read_bytes(), 30, tmp_path / name)


def expect_arrays_or_refusal(content, number, path):
    refused = 0
    for copy in damaged(content, number, random.Random(0)):
        path.write_bytes(copy)
        try:
            read_all(path)
        except ValueError as error:
            assert path.name in str(error)
            refused += 1
    assert refused >= number // 3


def test_opening_a_file_reads_none_of_its_arrays(tmp_path):
    """The array is damaged, which only reading it can tell; its shape is known before."""
    write_torch(tmp_path / "a", tensor_pickle(), b"expected elements"[:16])
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content.replace(b"expected", b"DAMAGED!"))
    with open_weights(tmp_path / "a") as weights:
        assert weights.entries["a"].shape == (2, 2)
        with pytest.raises(ValueError, match="CRC"):
            weights.entries["a"].read()
