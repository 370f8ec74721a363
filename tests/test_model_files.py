"""`load_model`: `.keras` files that are damaged or hostile end with one ValueError before Keras reads them."""

import io
import random
import zipfile

import h5py
import keras
import numpy as np
import pytest
from limited_process import assert_refused, run_limited
from support import damaged_copies, with_config, write_archive

from keras_resnet import load_model
from keras_resnet.weights.file_formats import open_weights

LOAD = "import keras_resnet; keras_resnet.load_model(args[0])"


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """{name: bytes} of the members of a model with an addition and a nested model."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    x = inputs = keras.Input((8,))
    x = keras.layers.Add(name="sum")([x, keras.layers.Dense(8, name="dense")(x)])
    nested = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, name="inner")], name="nested")
    keras.Model(inputs, nested(x)).save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_intact_files_are_loaded_stored_or_compressed(members, tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 8)).astype("float32")
    models = [
        keras.saving.load_model(write_archive(tmp_path / "a.keras", members)),
        load_model(tmp_path / "a.keras"),
        load_model(write_archive(tmp_path / "b.keras", members, zipfile.ZIP_DEFLATED)),
    ]
    expected, *outputs = [keras.ops.convert_to_numpy(model(x)) for model in models]
    for output in outputs:
        np.testing.assert_array_equal(output, expected)


def test_models_without_weights_are_loaded(tmp_path):
    keras.Sequential([keras.Input((4,)), keras.layers.ReLU()]).save(tmp_path / "model.keras")
    assert load_model(tmp_path / "model.keras").output_shape == (None, 4)


CHANGES = {
    "no layer": lambda config, layers: config["config"].pop("layers"),
    "unknown class": lambda config, layers: layers["dense"].update(class_name="Dence"),
    "code": lambda config, layers: layers["dense"].update(
        class_name="Lambda", config={"name": "dense", "function": {"class_name": "__lambda__", "config": {"code": ""}}}
    ),
    "class of another module": lambda config, layers: layers["dense"].update(module="os", class_name="system"),
    "missing layer in the graph": lambda config, layers: layers["sum"]["inbound_nodes"][0]["args"][0][0][
        "config"
    ].update(keras_history=["absent", 0, 0]),
    "shapes that are text": lambda config, layers: layers["sum"].update(build_config="../../etc/passwd"),
    "shapes under another key": lambda config, layers: layers["sum"].update(build_config={"x": 1}),
    "a layer of a nested model": lambda config, layers: layers["nested"]["config"]["layers"][1].update(build_config=7),
    "more units than stored": lambda config, layers: layers["dense"]["config"].update(units=9),
    "a billion units": lambda config, layers: layers["dense"]["config"].update(units=10**9),
    "units beyond integers": lambda config, layers: layers["dense"]["config"].update(units=10**40),
    "a name that is a number": lambda config, layers: layers["dense"]["config"].update(name=5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_models_that_keras_could_not_run_are_refused(members, tmp_path, name):
    path = write_archive(tmp_path / "model.keras", with_config(members, CHANGES[name]))
    assert_refused(run_limited(LOAD, path, seconds=20), "model.keras")


def hdf5(write):
    """Bytes of an HDF5 file that `write` fills."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        write(file)
    return content.getvalue()


MEMBERS = {
    "zip bomb": {"model.weights.h5": bytes(2**30)},
    "json bomb": {"config.json": b'{"a":[' + b"[],[]," * 2**22 + b"0]}"},
    "deep json": {"config.json": b"[" * 10**6},
    "bomb beside the model": {"assets/x": bytes(2**29)},
    "no HDF5": {"model.weights.h5": b"PK"},
    "compressed arrays": {"model.weights.h5": hdf5(lambda file: file.create_dataset("x", data=[1.0], chunks=(1,)))},
    "links": {"model.weights.h5": hdf5(lambda file: file.update(x=h5py.ExternalLink("/etc/passwd", "x")))},
}


@pytest.mark.parametrize("name", MEMBERS)
def test_members_that_expand_or_are_something_else_are_refused(members, tmp_path, name):
    path = write_archive(tmp_path / "model.keras", members | MEMBERS[name], zipfile.ZIP_DEFLATED)
    assert_refused(run_limited(LOAD, path, seconds=20), "model.keras")


def test_a_member_that_is_longer_than_its_header_says_is_refused(members, tmp_path):
    """Keras reads members whole, and zipfile then decompresses everything: here 512 MB after a valid config."""
    config = members["config.json"]
    path = write_archive(
        tmp_path / "model.keras", members | {"config.json": config + bytes(2**29)}, zipfile.ZIP_DEFLATED
    )
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("config.json")
    for signature, crc in ((b"PK\3\4", 14), (b"PK\1\2", 16)):
        starts = [i for i in range(len(content) - 4) if content.startswith(signature, i)]
        header = next(i for i in starts if content[i + crc : i + crc + 4] == info.CRC.to_bytes(4, "little"))
        content[header + crc : header + crc + 4] = zipfile.crc32(config).to_bytes(4, "little")
        content[header + crc + 8 : header + crc + 12] = len(config).to_bytes(4, "little")
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("config.json").file_size == len(config)
    assert_refused(run_limited(LOAD, path, seconds=20), "model.keras")


@pytest.mark.parametrize("member", ["config.json", "model.weights.h5", "metadata.json"])
def test_a_changed_byte_of_a_stored_member_is_found_by_its_checksum(members, tmp_path, member):
    path = write_archive(tmp_path / "model.keras", members)
    content = bytearray(path.read_bytes())
    content[content.index(members[member]) + len(members[member]) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.keras"):
        load_model(path)
    if member != "metadata.json":  # which has no weights
        with pytest.raises(ValueError, match=r"CRC.*model\.keras"), open_weights(path):
            pass


def test_damaged_files_are_refused_or_give_a_model_that_runs(members, tmp_path):
    content = write_archive(tmp_path / "model.keras", members).read_bytes()
    refused = 0
    for copy in damaged_copies(content, 60, random.Random(0)):
        (tmp_path / "model.keras").write_bytes(copy)
        try:
            load_model(tmp_path / "model.keras")(np.zeros((1, 8), "float32"))
        except ValueError as error:
            assert "model.keras" in str(error)
            refused += 1
    assert refused >= 20


def test_the_command_line_refuses_a_damaged_model_with_one_line(members, tmp_path):
    path = write_archive(tmp_path / "model.keras", with_config(members, CHANGES["shapes that are text"]))
    code = """
import sys
from keras_resnet.cli import main
sys.argv = ["keras-resnet", "summary", str(args[0])]
main()
"""
    assert_refused(run_limited(code, path), "model.keras")
