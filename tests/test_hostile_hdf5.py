"""HDF5 files that are small and expand, walk or nest without end: each is refused within limits on memory and time."""

import struct
import zlib

import h5py
import numpy as np
import pytest
from limited_process import assert_refused, run_limited
from support import read_arrays

READ = "from support import read_arrays; read_arrays(args[0])"
PATH = "layers/conv2d/vars/0"
VALUES = np.arange(40, dtype="float32").reshape(4, 10)


def write_chunk(file, raw, filters=(h5py.h5z.FILTER_DEFLATE,), shape=(4, 10)):
    """A dataset of one chunk with these stored bytes."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(shape)
    for code in filters:
        properties.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (4,))
    group = file.create_group("layers/conv2d/vars")
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(group.id, b"0", h5py.h5t.IEEE_F32LE, space, properties).write_direct_chunk((0, 0), raw)


def zlib_bomb():
    """A zlib stream of one MB that becomes one GB."""
    stream = zlib.compressobj()
    head = stream.compress(bytes(2**20)) + stream.flush(zlib.Z_FULL_FLUSH)
    return head + (stream.compress(bytes(2**20)) + stream.flush(zlib.Z_FULL_FLUSH)) * 1000


def deflate_bomb(file):
    write_chunk(file, zlib_bomb(), shape=(512, 512))


def deflate_applied_twice(file):
    write_chunk(file, zlib.compress(zlib_bomb()), (1, 1))


def truncated_chunk(file):
    write_chunk(file, zlib.compress(VALUES.tobytes()[:-1]))


def missing_chunk(file):
    file.create_dataset(PATH, (4, 10), "f4", chunks=(2, 5))
    file[PATH].id.write_direct_chunk((0, 0), bytes(40))


def many_tiny_chunks(file):
    file.create_dataset(PATH, (10**7,), "f4", chunks=(1,), compression="gzip")[:3] = 1


def enormous_chunk(file):
    file.create_dataset(PATH, (4,), "f4", chunks=(2**28,), maxshape=(None,), compression="gzip")


def other_filter(file):
    file.create_dataset(PATH, data=VALUES, compression="lzf")


def deep_groups(file):
    file["/".join("g" * 20_000)] = VALUES  # libhdf5's own visit calls itself for each


def cyclic_groups(file):
    file[PATH] = VALUES
    for i in range(5):
        file.create_group(f"layers/{i}/vars")
    for group in list(file["layers"].values()):
        for i in range(5):
            group[f"again{i}"] = file["layers"]
    file["x"] = np.array(["not a number"], "S")
    file["layers/conv2d/vars/1"] = file["x"]


def many_names_of_one_array(file):
    file[PATH] = VALUES
    for i in range(45_000):
        file["layers/conv2d/vars"][str(i + 1)] = file[PATH]


def name_of_an_array_as_a_number(file):
    file[PATH] = VALUES
    file["layers/conv2d/vars"].attrs["name"] = 3


def object_reference(file):
    file.create_dataset(PATH, data=[file.ref], dtype=h5py.ref_dtype)


def repeated_string(file):
    """4,000 names, which are one string of 4 MB after `write_file` has repeated the first reference to it."""
    names = file.create_group("a").attrs
    names.create("weight_names", ["x" * 2**22, *map(str, range(3999))], dtype=h5py.string_dtype())
    file.attrs["layer_names"] = [b"a"]


def write_file(write, path):
    with h5py.File(path, "w") as file:
        write(file)
    if write is repeated_string:
        content = path.read_bytes()
        start = content.index(struct.pack("<I", 2**22))
        path.write_bytes(content[:start] + content[start : start + 16] * 4000 + content[start + 64_000 :])


@pytest.mark.parametrize(
    "write, word",
    [
        (deflate_bomb, "chunk"),
        (deflate_applied_twice, "filters"),
        (truncated_chunk, "chunk"),
        (missing_chunk, "chunks"),
        (many_tiny_chunks, "steps"),
        (enormous_chunk, "expand"),
        (other_filter, "filters"),
        (deep_groups, "levels"),
        (cyclic_groups, "numbers"),
        (many_names_of_one_array, "steps"),
        (name_of_an_array_as_a_number, "strings"),
        (object_reference, "numbers"),
        (repeated_string, "expand"),
    ],
)
def test_hdf5_files_that_expand_or_have_no_end_are_refused(tmp_path, write, word):
    write_file(write, tmp_path / "hostile.h5")
    assert_refused(run_limited(READ, tmp_path / "hostile.h5", seconds=10), word, "hostile.h5")


@pytest.mark.parametrize("position", [0, 24])
def test_heaps_inside_heaps_are_refused_at_once(tmp_path, position):
    """Each would have to be walked to the end of the file; libhdf5 does not even open it."""
    heap = b"GCOL\1\0\0\0" + struct.pack("<QQQ", 2**62, 1, 16)
    (tmp_path / "heaps.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(position) + heap * 100_000)
    assert_refused(run_limited(READ, tmp_path / "heaps.h5", seconds=10), "heap", "heaps.h5")


def nodes(content, kind, level):
    """Positions of the tree nodes of names (kind 0) or chunks (kind 1)."""
    magic = b"TREE" + bytes([kind, level])
    return [i for i in range(len(content)) if content.startswith(magic, i)]


@pytest.fixture(scope="module")
def large_trees(tmp_path_factory):
    """A file with 600 names in a group and 600 chunks in an array, whose trees have two levels."""
    path = tmp_path_factory.mktemp("trees") / "trees.h5"
    with h5py.File(path, "w") as file:
        for i in range(600):
            file[f"layers/conv2d/vars/{i}"] = np.full(1, i, "float32")
        file.create_dataset(
            "layers/conv2d_1/vars/0", data=np.arange(2400, dtype="float32").reshape(600, 4), chunks=(1, 4)
        )
    return path


def test_trees_of_two_levels_are_read(large_trees):
    arrays = read_arrays(large_trees)
    np.testing.assert_array_equal(arrays.pop("conv2d_1/kernel"), np.arange(2400).reshape(600, 4))
    assert [array.item() for array in arrays.values()] == list(range(600))


@pytest.mark.parametrize("kind, first, step", [(0, 32, 16), (1, 56, 40)])
@pytest.mark.parametrize("damage", ["contains itself", "contains a node twice", "next node is itself"])
def test_trees_without_an_end_are_refused(large_trees, tmp_path, kind, first, step, damage):
    """libhdf5 ends the process with a segmentation fault, or never returns."""
    content = bytearray(large_trees.read_bytes())
    (root,), leaf = nodes(content, kind, 1), nodes(content, kind, 0)[-1]
    if damage == "contains itself":
        struct.pack_into("<Q", content, root + first, root)
    elif damage == "contains a node twice":
        content[root + first + step : root + first + step + 8] = content[root + first : root + first + 8]
    else:
        struct.pack_into("<Q", content, leaf + 16, leaf)
    (tmp_path / "trees.h5").write_bytes(content)
    assert_refused(run_limited(READ, tmp_path / "trees.h5", seconds=10), "tree", "trees.h5")


@pytest.mark.parametrize("chunks", [(4, 10), (3, 4), (1, 1)])
@pytest.mark.parametrize("dtype", ["float32", ">f8", "int8"])
@pytest.mark.parametrize(
    "filters",
    [{}, {"compression": "gzip"}, {"compression": "gzip", "shuffle": True, "fletcher32": True}, {"fletcher32": True}],
)
def test_compressed_arrays_are_read_as_h5py_reads_them(tmp_path, filters, dtype, chunks):
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        file.create_dataset(PATH, data=VALUES.astype(dtype), chunks=chunks, **filters)
        expected = file[PATH][()]
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.weights.h5")["conv2d/kernel"], expected)


def test_a_changed_byte_is_found_by_its_fletcher32_checksum(tmp_path):
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        file.create_dataset(PATH, data=VALUES, chunks=(4, 10), fletcher32=True)
        start = file[PATH].id.get_chunk_info(0).byte_offset
    content = bytearray((tmp_path / "a.weights.h5").read_bytes())
    content[start + 7] ^= 1
    (tmp_path / "a.weights.h5").write_bytes(content)
    with pytest.raises(ValueError, match="fletcher32"):
        read_arrays(tmp_path / "a.weights.h5")


def test_damaged_chunks_do_not_crash_libhdf5(tmp_path):
    """Of 3,000 such files, 26 ended h5py with a segmentation fault."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for i in range(3):
            options = {"chunks": (2, 3), "compression": "gzip", "shuffle": True, "fletcher32": True}
            file.create_dataset(f"layers/conv2d_{i}/vars/0", data=VALUES, **options)
    code = """
import random, struct
from support import read_arrays
content, path = args[0].read_bytes(), args[0]
for seed in range(150):
    generator, copy = random.Random(seed), bytearray(content)
    for _ in range(4):
        start = generator.randrange(len(copy) // 8) * 8
        copy[start : start + 8] = struct.pack("<Q", generator.choice([0, 1, 8, 2**31, 2**64 - 1, len(copy)]))
    path.write_bytes(copy)
    try:
        read_arrays(path)
    except ValueError as error:
        assert path.name in str(error) and "MemoryError" not in str(error)
"""
    run = run_limited(code, tmp_path / "a.h5")
    assert run.status == 0, run
