"""Checksums of exported networks: damage never reaches a runtime, names do not matter, older files still load."""

import hashlib
import os
import re
import shutil

import keras
import numpy as np
import pytest
from limited_process import assert_refused, run_limited
from support import EXPORT_NAMES, require_format

from keras_resnet import load_exported
from keras_resnet.deployment import trial
from keras_resnet.deployment.formats.table import FORMATS

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras exports through TensorFlow"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), "uint8")
LOAD = "import keras_resnet; keras_resnet.load_exported(args[0])"


@pytest.fixture
def copy_export(tiny_export, tmp_path):
    """format -> (path, files) of a copy of an export; the first file contains the checksum."""

    def copy_export(format, name="copy"):
        path, row = tiny_export(format)[0], FORMATS[format]
        target = tmp_path / f"{name}{row.suffix}"
        if path.is_dir():
            shutil.copytree(path, target)
        for suffix in (row.suffix, *row.companions) if row.suffix else ():
            shutil.copy(path.with_suffix(suffix), target.with_suffix(suffix))
        return target, row.files(target)

    return copy_export


def probabilities(path):
    return load_exported(path)(IMAGES)["probabilities"]


def remove_checksum(file):
    """Makes of an export one of a version that wrote no checksum."""
    content, count = re.subn(
        rb', (&quot;|")checksum\1: \1sha256:\w{64}\1', lambda found: b" " * len(found[0]), file.read_bytes()
    )
    assert count == 1
    file.write_bytes(content)


@pytest.mark.parametrize("format", FORMATS)
def test_the_checksum_is_the_sha256_of_the_files_without_its_digits(format, copy_export):
    _, (first, *others) = copy_export(format)
    before, digits, after = re.split(rb"(?<=sha256:)([0-9a-f]{64})", first.read_bytes())
    hashes = [hashlib.sha256(file.read_bytes()).digest() for file in others]
    assert digits.decode() == hashlib.sha256(b"".join([before, after, *hashes])).hexdigest()


@pytest.mark.parametrize("format", FORMATS)
def test_names_and_files_beside_do_not_matter(format, copy_export, tiny_export):
    path, _ = copy_export(format, name="another name")
    if path.is_dir():  # where TensorFlow Serving looks for requests to begin with
        (path / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"x")
    path.with_suffix(".txt").write_text("mine")
    np.testing.assert_array_equal(probabilities(path), probabilities(tiny_export(format)[0]))


FLIP = """
import random
import keras_resnet
generator, (path, files) = random.Random(0), args
for number in range(9):
    file = files[number % len(files)]
    content = file.read_bytes()
    position = generator.randrange(len(content))
    damaged = bytearray(content)
    damaged[position] ^= 1 << number % 8
    file.write_bytes(damaged if number % 3 else damaged[:position])
    try:
        keras_resnet.load_exported(path)
        raise AssertionError(f"{file} was accepted with other bits at {position}")
    except ValueError as error:
        assert "Received: path=" in str(error) and "\\n" not in str(error), error
    file.write_bytes(content)
keras_resnet.load_exported(path)
"""


@pytest.mark.parametrize("format", FORMATS)
def test_any_flipped_bit_is_noticed(format, copy_export):
    """In a process of its own: of a runtime that receives such files, a few in a hundred end the process."""
    run = run_limited(FLIP, *copy_export(format), memory=2e9, seconds=100)
    assert run.status == 0, run


def test_graph_and_weights_of_different_exports_do_not_match(copy_export):
    path, files = copy_export("openvino")
    weights = np.frombuffer(files[1].read_bytes(), "float32")
    files[1].write_bytes((weights * 2).tobytes())
    with pytest.raises(ValueError, match="changed after the export, as its checksum shows.*Received: path="):
        load_exported(path)
    files[1].unlink()
    with pytest.raises(ValueError, match=r"copy\.bin is missing.*Received: path="):
        load_exported(path)


@pytest.mark.parametrize("format", FORMATS)
def test_files_without_a_checksum_are_loaded_with_a_warning(format, copy_export, tiny_export):
    path, files = copy_export(format)
    remove_checksum(files[0])
    with pytest.warns(UserWarning, match=f"{path} has no checksum") as warned:
        found = probabilities(path)
    assert [warning.filename for warning in warned] == [__file__]
    np.testing.assert_array_equal(found, probabilities(tiny_export(format)[0]))


def test_a_file_that_crashes_its_runtime_is_one_clear_error(copy_export):
    """LiteRT reads a model without graphs through a null pointer."""
    require_format("litert")
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    path, _ = copy_export("litert")
    remove_checksum(path)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))
    model.subgraphs = None
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    assert_refused(run_limited(LOAD, path), "intact LiteRT file", "SIGSEGV", "Received: path=")


def endless_loop(helper, types):
    """Nodes and constants of a loop that counts to 2^63."""
    kinds = {"i": types.INT64, "go": types.BOOL, "x": types.FLOAT, "go_on": types.BOOL, "same": types.FLOAT}
    values = [
        helper.make_tensor_value_info(name, kind, [1] if kind == types.FLOAT else []) for name, kind in kinds.items()
    ]
    copies = [helper.make_node("Identity", [old], [new]) for old, new in (("go", "go_on"), ("x", "same"))]
    body = helper.make_graph(copies, "body", values[:3], values[3:])
    count = helper.make_tensor("count", types.INT64, [], [2**63 - 1])
    return [helper.make_node("Loop", ["count", "", "images"], ["y"], body=body)], [count]


def array_of_64_gigabytes(helper, types):
    """Nodes and constants with 2^34 zeros, which are added to the input."""
    shape = helper.make_tensor("shape", types.INT64, [1], [2**34])
    zeros = helper.make_node("ConstantOfShape", ["shape"], ["zeros"])
    return [zeros, helper.make_node("Add", ["images", "zeros"], ["y"])], [shape]


@pytest.mark.parametrize(
    ("graph", "message"), [(endless_loop, "more than 3 seconds"), (array_of_64_gigabytes, "alloc")]
)
def test_trials_have_limits(graph, message, tmp_path, monkeypatch):
    require_format("onnx")
    import onnx

    types, path = onnx.TensorProto, tmp_path / "net.onnx"
    nodes, constants = graph(onnx.helper, types)
    values = [
        onnx.helper.make_tensor_value_info(name, types.FLOAT, [size]) for name, size in (("images", 1), ("y", None))
    ]
    network = onnx.helper.make_graph(nodes, "graph", values[:1], values[1:], constants)
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(network, opset_imports=[opset], ir_version=8), path)
    monkeypatch.setattr(trial, "TRIAL_SECONDS", 3)
    with pytest.raises(ValueError, match=f"intact ONNX file .*{message}.*Received: path="):
        load_exported(path)


@pytest.mark.parametrize("format", ["onnx", "openvino", "litert"])
def test_only_files_of_possible_size_are_opened(format, tmp_path):
    """Neither a pipe, which would be waited for, nor what is larger than the format allows."""
    require_format(format)
    path = tmp_path / EXPORT_NAMES[format]
    for file in FORMATS[format].files(path):
        os.mkfifo(file)
    with pytest.raises(OSError, match=r"Expected a regular file, not a pipe.*Received: path="):
        load_exported(path)
    for file in FORMATS[format].files(path):
        file.unlink()
        file.touch()
    os.truncate(path, 2**31 + 1)
    with pytest.raises(ValueError, match=r"at most 2,147,483,648 bytes.*Received: path="):
        load_exported(path)
