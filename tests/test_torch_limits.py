"""PyTorch files that would take gigabytes or minutes are refused with one message, in little memory and time."""

import pickle
import struct
import zipfile

import numpy as np
import pytest
from limited_process import MEGABYTE, assert_refused, run_limited

READ = """
from keras_resnet.weights.file_formats import open_weights
with open_weights(args[0]) as weights:
    for array in weights.arrays.values():
        array.read()
"""
CREATE = "import keras_resnet; keras_resnet.create('resnet50_v1_5', weights=args[0], include_top=None)"


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Replaces the shared fixture, which takes long for many tests; nothing here changes Keras's state."""


def string(text):
    return b"X" + struct.pack("<I", len(text)) + text


def call(name, *arguments):
    """A global with its arguments, applied."""
    module, _, name = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n(" + b"".join(arguments) + b"tR"


def integer(value):
    return b"J" + struct.pack("<i", value)


def storage(key=b"0", count=4):
    return b"(" + string(b"storage") + b"ctorch\nFloatStorage\n" + string(key) + string(b"cpu") + integer(count) + b"tQ"


def tensor(shape, strides, stored=None, offset=0):
    """A tensor; `shape` and `strides`: pickles of tuples."""
    arguments = (stored or storage(), integer(offset), shape, strides, b"\x89", b"}")
    return call("torch._utils._rebuild_tensor_v2", *arguments)


def sizes(*values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def doubled(levels):
    """A tuple of two tuples, which are the same, of two tuples, and so on: 2 ** levels when printed or hashed."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(levels))


PAIRS = b"(" + b"".join(integer(i) + b"N\x86" for i in range(20_000)) + b"t"
PICKLES = {
    "size of a long string": string(b"A" * 10**6) + b"q\0ctorch\nSize\nq\1" + b"h\1h\0\x85R" * 20_000,
    "OrderedDict of one tuple": PAIRS + b"q\0ccollections\nOrderedDict\nq\1" + b"h\1h\0\x85R" * 5_000,
    "call with one tuple": PAIRS + b"q\0ctorch\ndevice\nq\1" + b"h\1h\0R" * 100_000,
    "nested tuples as a shape": b"}" + string(b"a") + tensor(doubled(60), doubled(60)) + b"s",
    "nested tuples as an offset": b"}"
    + string(b"a")
    + call("torch._utils._rebuild_tensor_v2", storage(), doubled(60), sizes(4), sizes(1))
    + b"s",
    "nested tuples as a storage": b"}"
    + string(b"a")
    + call("torch._utils._rebuild_tensor_v2", doubled(60), integer(0), sizes(4), sizes(1))
    + b"s",
    "nested tuples as a key": b"}" + doubled(60) + b"Ns",
    "nested tuples as a storage's key": b"(" + string(b"storage") + b"ctorch\nFloatStorage\n" + doubled(60) + b"NNtQ",
    "nested tuples as a checkpoint": doubled(60),
    "deep nesting": b"]" * 1_100_000,
    "dict of nested tuples": b"}q\0(" + b"".join(integer(i) + b"h\0" for i in range(50_000)) + doubled(60) + b"Nu",
    "long name of an array": b"}" + string(b"module." * 500_000) + tensor(sizes(4), sizes(1)) + b"s",
    "long name of a global": b"c" + b"a" * 10**7 + b"\nb\n",
    "long key of a storage": b"}" + string(b"a") + tensor(sizes(5), sizes(1), storage(b"0" * 10**7)) + b"s",
    "long integers": b"}"
    + string(b"a")
    + call(
        "torch._utils._rebuild_tensor_v2", storage(), integer(0), b"(" + (b"\x8a\xff" + b"\x7f" * 255) * 30 + b"t", b")"
    )
    + b"s",
    "a long of megabytes": b"\x8b" + struct.pack("<i", 10**7) + b"\x7f" * 10**7,
    "a frame of an exabyte": b"\x95" + struct.pack("<Q", 2**60) + b"N",
    "a string of two gigabytes": b"X" + struct.pack("<I", 2**31) + b"A",
    "wide characters": b"}" + string("😀".encode() + b"A" * (2**24 - 100)) + b"Ns",
}


def write_zip(path, content, compression=zipfile.ZIP_STORED, storages=(bytes(16),)):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        for key, elements in enumerate(storages):
            archive.writestr(f"archive/data/{key}", elements)


FOUR_ELEMENTS = struct.pack("<q", 4) + bytes(16)


def legacy(content, keys=None, storages=FOUR_ELEMENTS):
    """torch's older format: pickles in a row, then the number of elements and the elements of each storage."""
    header = (0x1950A86A20F9469CFC6C, 1001, {})
    return b"".join(pickle.dumps(value, 2) for value in header) + content + (keys or pickle.dumps(["0"], 2)) + storages


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_that_expand_are_refused(kind, tmp_path):
    content = b"\x80\2" + PICKLES[kind] + b"."
    write_zip(tmp_path / "zip.pth", content)
    (tmp_path / "legacy.pth").write_bytes(legacy(content))
    for path in sorted(tmp_path.iterdir()):
        assert_refused(run_limited(READ, path, memory=200 * MEGABYTE, seconds=15), path.name)


@pytest.mark.parametrize("opcode", [b"]", b"}", b"(", b"h\0"], ids=["lists", "dicts", "marks", "references"])
def test_compressed_opcodes_are_counted(opcode, tmp_path):
    """Random bytes keep the ratio of compression below the one that is refused."""
    noise = np.random.default_rng(0).bytes(150_000)
    content = b"\x80\2B" + struct.pack("<I", len(noise)) + noise + b"q\0" + opcode * (10**7 // len(opcode)) + b"."
    write_zip(tmp_path / "opcodes.pth", content, zipfile.ZIP_DEFLATED)
    run = run_limited(READ, tmp_path / "opcodes.pth", memory=100 * MEGABYTE, seconds=15)
    assert_refused(run, "more steps", "opcodes.pth")


VALID = b"\x80\2}" + string(b"a") + tensor(sizes(4), sizes(1)) + b"s."


@pytest.mark.parametrize(
    "keys, storages",
    [
        (None, struct.pack("<q", 2**62)),
        (None, struct.pack("<q", -1)),
        (b"\x80\2]" + doubled(60) + b"a.", b""),
        (b"\x80\2" + doubled(60) + b".", b""),
        (pickle.dumps(["1"], 2), FOUR_ELEMENTS),
        (pickle.dumps(["0"] * 100_000, 2), bytes(8)),
    ],
    ids=["overflow", "negative", "nested key", "nested keys", "unknown key", "repeated keys"],
)
def test_forged_storages_of_the_older_format_are_refused(keys, storages, tmp_path):
    (tmp_path / "forged.pth").write_bytes(legacy(VALID, keys, storages))
    assert_refused(run_limited(READ, tmp_path / "forged.pth", memory=50 * MEGABYTE, seconds=15), "forged.pth")


def with_two_members(path):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        for content in (VALID, VALID):
            archive.writestr("archive/data.pkl", content)


def with_many_members(path):
    """The directory lists one member 150,000 times."""
    write_zip(path, VALID, storages=())
    content = path.read_bytes()
    size, start = struct.unpack("<2I", content[-10:-2])
    directory, end = content[start : start + size] * 150_000, content[start + size : -10]
    path.write_bytes(content[:start] + directory + end + struct.pack("<2I2x", len(directory), start))


def with_lzma(path):
    """The dictionary of the decompressor has the size that the file says: four gigabytes."""
    write_zip(path, VALID, zipfile.ZIP_LZMA)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x5d\x00\x00\x80\x00", b"\x5d\xff\xff\xff\xff"))


def with_a_longer_member(path):
    """A pickle of 200 MB in 200 kB, whose headers say 1000 bytes."""
    write_zip(path, b"N" * 200_000_000, zipfile.ZIP_DEFLATED)
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 200_000_000), struct.pack("<I", 1000)))


@pytest.mark.parametrize(
    "write, message",
    [
        (with_two_members, "unique names"),
        (with_many_members, "more steps"),
        (with_lzma, "stored or deflated"),
        (with_a_longer_member, "CRC"),
    ],
)
def test_hostile_zip_files_are_refused(write, message, tmp_path):
    write(tmp_path / "hostile.pth")
    run = run_limited(READ, tmp_path / "hostile.pth", memory=150 * MEGABYTE, seconds=15)
    assert_refused(run, message, "hostile.pth")


def named_tensors(tensors):
    return b"\x80\2}" + b"".join(string(name.encode()) + pickled + b"s" for name, pickled in tensors.items()) + b"."


def test_compressed_storages_are_not_decompressed_for_every_array(tmp_path):
    """Arrays lie in turns in two storages, at the end of 6 MB each."""
    elements = (np.random.default_rng(0).bytes(2000) + bytes(118_000)) * 50
    last = len(elements) // 4 - 4
    stored = [storage(key, last + 4) for key in (b"0", b"1")]
    tensors = {f"bn{i}.bias": tensor(sizes(4), sizes(1), stored[i % 2], last) for i in range(100)}
    write_zip(tmp_path / "shared.pth", named_tensors(tensors), zipfile.ZIP_DEFLATED, [elements] * 2)
    run = run_limited(READ, tmp_path / "shared.pth", memory=100 * MEGABYTE, seconds=15)
    assert_refused(run, "expand", "shared.pth")


@pytest.mark.parametrize(
    "tensors",
    [
        {"fc.bias": (10**6,), "fc.weight": (10**6, 1)},
        {"fc.bias": (10**6,)},
        {"conv1.weight": (1, 10**5, 7, 7)},
        {"conv1.weight": (64, 2**30, 0, 7)},
    ],
    ids=["classes", "classes without a kernel", "channels", "channels of an empty kernel"],
)
def test_a_small_file_does_not_determine_a_large_network(tensors, tmp_path):
    """A million classes would be a classifier of eight gigabytes."""
    shapes = {"layer1.0.conv1.weight": (64, 64, 1, 1), **tensors}
    stored = storage(b"0", 5_000_000)
    tensors = {name: tensor(sizes(*shape), sizes(*[0] * len(shape)), stored) for name, shape in shapes.items()}
    content = named_tensors(tensors)
    write_zip(tmp_path / "large.pth", content, storages=[bytes(20_000_000)])
    assert_refused(run_limited(CREATE, tmp_path / "large.pth", memory=900 * MEGABYTE), "large.pth")
