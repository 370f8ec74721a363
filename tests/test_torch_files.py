"""PyTorch's two formats: intact files give the arrays that torch wrote, others a ValueError; no code is run."""

import pickle
import struct
import zipfile

import numpy as np
import pytest
from support import REFERENCES, assert_damaged_files_are_refused, assert_same_arrays, read_arrays

from keras_resnet.weights.file_formats import open_weights

GOOD = sorted(path for path in REFERENCES.glob("torch_*.pth") if "malicious" not in path.name)
MALICIOUS = sorted(REFERENCES.glob("torch_malicious*.pth"))


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Replaces the shared fixture, which takes long for many tests; nothing here changes Keras's state."""


@pytest.mark.parametrize("suffix", ["", "_legacy"])
@pytest.mark.parametrize("name, group", [("zip", "state"), ("checkpoint", "state"), ("dtypes",) * 2, ("views",) * 2])
def test_torch_files_give_the_saved_tensors(name, group, suffix):
    """`torch_files.npz` contains the tensors as torch loads them (references/make_torch_files.py)."""
    with np.load(REFERENCES / "torch_files.npz") as archive:
        expected = {key.partition(":")[2]: archive[key] for key in archive if key.startswith(f"{group}:")}
    assert_same_arrays(read_arrays(REFERENCES / f"torch_{name}{suffix}.pth"), expected)


def test_big_endian_torch_files_are_swapped(tmp_path):
    with zipfile.ZipFile(REFERENCES / "torch_zip.pth") as source, zipfile.ZipFile(tmp_path / "a", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if "/data/" in name:
                content = b"".join(content[i : i + 4][::-1] for i in range(0, len(content), 4))
            target.writestr(name, b"big" if name.endswith("byteorder") else content)
    assert_same_arrays(read_arrays(tmp_path / "a"), read_arrays(REFERENCES / "torch_zip.pth"))


@pytest.mark.parametrize("depth, parameters", [(20, 269_722), (32, 464_154)])
def test_published_cifar_checkpoints_are_read(test_data, depth, parameters):
    """Parameter counts: torch's, of the networks these files were trained as (option A, 10 classes)."""
    arrays = read_arrays(next((test_data / "cifar10_weights").glob(f"resnet{depth}-*.th")))
    assert arrays["conv1.weight"].shape == (16, 3, 3, 3) and arrays["linear.weight"].shape == (10, 64)
    assert sum(array.size for name, array in arrays.items() if "running" not in name) == parameters
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert all((array > 0).all() for name, array in arrays.items() if name.endswith("running_var"))


@pytest.mark.parametrize("path", MALICIOUS, ids=lambda path: path.name)
def test_code_in_a_pickle_is_reported_and_not_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"contains code.*`(posix|nt)\.system`.*{path.name}"):
        read_arrays(path)
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
    assert_same_arrays(read_arrays(tmp_path / "a"), {"a": np.array([[0, 1], [2, 3]], "float32")})


def test_opening_a_file_reads_no_arrays(tmp_path):
    """A damaged array raises an error when it is read; its shape is known before."""
    write_torch(tmp_path / "a", tensor_pickle(), b"expected elements"[:16])
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content.replace(b"expected", b"DAMAGED!"))
    with open_weights(tmp_path / "a") as weights:
        assert weights.arrays["a"].shape == (2, 2)
        with pytest.raises(ValueError, match="CRC"):
            weights.arrays["a"].read()


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
        read_arrays(tmp_path / "hostile.pth")


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(storage=(b"0", 2**22)))
        archive.writestr("archive/data/0", bytes(2**24))
    with pytest.raises(ValueError, match="are stored.*bomb.pth"):
        read_arrays(tmp_path / "bomb.pth")


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
def test_damaged_torch_files_are_read_or_refused(path, tmp_path):
    assert_damaged_files_are_refused(path.read_bytes(), 90, tmp_path / path.name)


@pytest.mark.parametrize("opcode", [b"(ios\nsystem\n.", b"\x82\x01.", b"Pname\n."], ids=["INST", "EXT1", "PERSID"])
def test_unsupported_opcodes_are_named(opcode, tmp_path):
    with zipfile.ZipFile(tmp_path / "odd.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + opcode)
    with pytest.raises(ValueError, match=r"pickle opcode (INST|EXT1|PERSID)"), open_weights(tmp_path / "odd.pth"):
        pass
