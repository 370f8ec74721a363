"""Exports in every format: their outputs are those of Keras, also when read without this package."""

import json
import os
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image
from support import (
    EXPORT_NAMES,
    files_of_export,
    narrow,
    random_images,
    randomize_weights,
    require_format,
    stabilize,
    tiny_classifier,
    with_preprocessing,
)

import keras_resnet
from keras_resnet import build, create, export, feature_extractor, get_spec, list_models, load_dataset, load_exported
from keras_resnet.deployment.exported import is_exported
from keras_resnet.deployment.formats import onnx_format
from keras_resnet.deployment.formats.table import FORMATS
from keras_resnet.deployment.images import sample_images
from keras_resnet.models.preprocessing import preprocessing
from keras_resnet.precision import PRECISIONS, precision_scope

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras exports through TensorFlow"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]
SLOW = {("saved_model", "float16"), ("openvino", "bfloat16"), ("openvino", "float16"), ("litert", "float16")}
ALL = [
    pytest.param(format, precision, marks=pytest.mark.slow if (format, precision) in SLOW else ())
    for format, row in FORMATS.items()
    for precision in row.precisions
]
PROBABILITY_TOLERANCES = {"float32": 1e-5, "float16": 0.01, "bfloat16": 0.05, "int8": 0.4}


@pytest.fixture(scope="module")
def model():
    return create("resnet20", weights="cifar10")


@pytest.mark.parametrize(("format", "precision"), ALL)
def test_every_format_and_precision(format, precision, model, tmp_path):
    require_format(format)
    path, calibration = tmp_path / EXPORT_NAMES[format], sample_images() if precision == "int8" else None
    report = export(model, path, precision=precision, calibration=calibration, measure_speed=False)
    assert report["verified"] and report["nrmse"] <= PRECISIONS[precision].tolerance and report["num_images"] == 16
    assert report["top1_agreement"] >= (1 if precision == "float32" else 0.75)
    assert sorted(os.listdir(tmp_path)) == files_of_export(path) and is_exported(path)
    assert json.loads((tmp_path / f"{path.name}.report.json").read_text()) == report
    page = (tmp_path / f"{path.name}.report.md").read_text()
    assert page.startswith(f"# resnet20 with the weights cifar10 as {FORMATS[format].title}, {precision}")
    assert_read_by_its_own_library(format, precision, path, model)
    assert_same_predictions(path, precision, model, tmp_path / "images")


def assert_read_by_its_own_library(format, precision, path, model):
    """Without this package, the file has the documented input, metadata and probabilities."""
    pixels = preprocessing(model).pixels(sample_images().images)
    shape, text, probabilities = READERS[format](path, pixels)
    assert shape == ["batch", 32, 32, 3]
    expected = model.predict(preprocessing(model)(sample_images().images), verbose=0)
    np.testing.assert_allclose(probabilities, expected, atol=PROBABILITY_TOLERANCES[precision])
    metadata = json.loads(text)
    assert (metadata["name"], metadata["format"], metadata["precision"]) == ("resnet20", format, precision)
    assert metadata["weights"] == "cifar10" and not metadata["raw"]
    assert metadata["class_names"] == list(model.info["class_names"]) and metadata["class_names"][0] == "airplane"
    assert metadata["preprocessing"] == model.info["preprocessing"]


def assert_same_predictions(path, precision, model, folder):
    """`predict` finds the classes of the Keras model in image files."""
    folder.mkdir()
    for index in range(4):
        Image.fromarray(sample_images().images[index]).save(folder / f"{index}.png")
    both = keras_resnet.predict(load_exported(path), folder), keras_resnet.predict(model, folder)
    for ours, reference in zip(*both, strict=True):
        assert ours.path == reference.path and ours.error is None
        found, expected = ({row[1]: row[2] for row in answer.classes} for answer in (ours, reference))
        for name in found.keys() & expected.keys():
            assert found[name] == pytest.approx(expected[name], abs=PROBABILITY_TOLERANCES[precision])
        assert precision != "float32" or list(found) == list(expected)


def read_onnx(path, pixels):
    import onnx
    import onnxruntime

    model = onnx.load(path)
    onnx.checker.check_model(model)
    (given,), (returned,) = model.graph.input, model.graph.output
    assert given.name == "images" and given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert returned.name == "probabilities" and returned.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    shape = [size.dim_param or size.dim_value for size in given.type.tensor_type.shape.dim]
    (text,) = [entry.value for entry in model.metadata_props if entry.key == "keras_resnet"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return shape, text, session.run(["probabilities"], {"images": pixels})[0]


def read_openvino(path, pixels):
    import openvino

    model = openvino.Core().read_model(path)
    (given,), (returned,) = model.inputs, model.outputs
    assert given.get_names() == {"images"} and given.get_element_type() == openvino.Type.u8
    assert returned.get_names() == {"probabilities"} and returned.get_element_type() == openvino.Type.f32
    shape = [size.get_length() if size.is_static else "batch" for size in given.get_partial_shape()]
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return shape, model.get_rt_info(["keras_resnet"]).astype(str), compiled({"images": pixels})["probabilities"]


def read_litert(path, pixels):
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    contents = path.read_bytes()
    assert contents[4:8] == b"TFL3"
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(contents, 0))
    (entry,) = [entry for entry in model.metadata if entry.name == b"keras_resnet"]
    interpreter = Interpreter(str(path))
    (signature,) = interpreter.get_signature_list().values()
    assert signature == {"inputs": ["images"], "outputs": ["probabilities"]}
    runner = interpreter.get_signature_runner()
    details = runner.get_input_details()["images"]
    assert details["dtype"] == np.uint8 and runner.get_output_details()["probabilities"]["dtype"] == np.float32
    shape = ["batch" if size < 0 else int(size) for size in details["shape_signature"]]
    return shape, bytes(model.buffers[entry.buffer].data).decode(), runner(images=pixels)["probabilities"]


def read_saved_model(path, pixels):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]
    given = serve.structured_input_signature[1]["images"]
    assert given.dtype == tf.uint8 and serve.structured_outputs["probabilities"].dtype == tf.float32
    shape = [size or "batch" for size in given.shape]
    text = (path / "assets.extra" / "keras_resnet.json").read_text()
    return shape, text, serve(images=tf.constant(pixels))["probabilities"].numpy()


READERS = {"saved_model": read_saved_model, "onnx": read_onnx, "openvino": read_openvino, "litert": read_litert}
"""format -> function of path and pixels: (shape of the input, metadata, probabilities), without this package."""


@pytest.mark.parametrize("format", FORMATS)
def test_speed_and_size_in_the_report(format, tiny_export):
    path, report = tiny_export(format)
    assert [row["batch_size"] for row in report["speed"]] == [1, 8]
    for row in report["speed"]:
        for name in ("keras", "exported"):
            seconds = row["milliseconds"][name] / 1000
            assert row["images_per_second"][name] == pytest.approx(row["batch_size"] / seconds)
        assert row["ratio"] == pytest.approx(row["milliseconds"]["keras"] / row["milliseconds"]["exported"])
    paths = [path, *(path.with_suffix(suffix) for suffix in FORMATS[format].companions)]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    assert report["bytes"] == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("format", FORMATS)
def test_fixed_batch_size(format, tiny_export, tmp_path):
    any_size, path = load_exported(tiny_export(format)[0]), tmp_path / EXPORT_NAMES[format]
    report = export(tiny_classifier(), path, batch_size=3)
    assert [row["batch_size"] for row in report["speed"]] == [3]
    pixels = any_size.prepare(sample_images().images)
    expected = any_size(pixels)["probabilities"]
    shape, _, probabilities = READERS[format](path, pixels[:3])
    assert shape == [3, 16, 16, 3]
    np.testing.assert_allclose(probabilities, expected[:3], atol=1e-5)
    exported = load_exported(path)
    for count in (1, 3, 16):  # the last batch is padded
        np.testing.assert_allclose(exported(pixels[:count])["probabilities"], expected[:count], atol=1e-5)


KINDS = {
    "logits": ({"classifier_activation": None}, "probabilities"),
    "raw logits": ({"classifier_activation": None}, "logits"),
    "raw": ({}, "probabilities"),
    "features": ({"include_top": False}, "features"),
    "endpoints": ({}, None),
}
"""kind -> (arguments of `build`, name of the output)."""


@pytest.mark.parametrize(
    ("format", "kind"),
    [
        pytest.param(format, kind, marks=() if format == "onnx" or kind == "endpoints" else pytest.mark.slow)
        for format in FORMATS
        for kind in KINDS
    ],
)
def test_inputs_and_outputs(format, kind, tmp_path):
    """They are those of the Keras model, except that logits become probabilities unless the export is raw."""
    require_format(format)
    arguments, output = KINDS[kind]
    model, raw = tiny_classifier(**arguments), kind.startswith("raw")
    if kind == "endpoints":
        model = feature_extractor(model, endpoints=["stage1", "stage3", "pre_logits"])
    report = export(model, tmp_path / EXPORT_NAMES[format], raw=raw, measure_speed=False)
    assert report["raw"] is raw and (report["top1_agreement"] is None) == (kind in ("features", "endpoints"))
    exported, images = load_exported(tmp_path / EXPORT_NAMES[format]), sample_images().images
    found = exported(exported.prepare(images))
    expected = model.predict(preprocessing(model)(images), verbose=0)
    if kind == "logits":
        expected = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    expected = expected if kind == "endpoints" else {output: expected}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32 and found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, atol=1e-4 * np.abs(array).max())
    if kind in ("features", "endpoints"):
        with pytest.raises(ValueError, match="should be a classifier"):
            exported.probabilities(exported.prepare(images))


CHANNELS_FIRST = {
    "onnx": ("resnet20", {}),
    "litert": ("resnet50d", {}),
    "openvino": ("seresnet50", {"include_top": False}),
    "saved_model": ("resnet50v2", {}),
}


@pytest.mark.parametrize(
    ("format", "raw"),
    [
        pytest.param(format, raw, marks=() if format == "onnx" else pytest.mark.slow)
        for format in FORMATS
        for raw in (False, True)
    ],
)
def test_channels_first_models(format, raw, tmp_path):
    """A raw export takes (B, C, H, W) like its model, others take (B, H, W, C); feature maps are as in Keras."""
    require_format(format)
    name, arguments = CHANNELS_FIRST[format]
    spec = replace(narrow(get_spec(name)), data_format="channels_first")
    model = with_preprocessing(build(spec, input_shape=(3, 32, 32), **arguments))
    assert export(model, tmp_path / EXPORT_NAMES[format], raw=raw, measure_speed=False)["nrmse"] < 1e-4
    exported, images = load_exported(tmp_path / EXPORT_NAMES[format]), sample_images().images
    inputs = exported.prepare(images)
    assert inputs.shape == ((16, 3, 32, 32) if raw else (16, 32, 32, 3))
    (found,) = exported(inputs).values()
    expected = model.predict(np.moveaxis(preprocessing(model)(images), -1, 1), verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_preactivation_networks_agree_in_onnx(tmp_path):
    """No zeros are padded around a max pooling: ONNX Runtime up to 1.31 would make them minus infinity."""
    require_format("onnx")
    import onnx

    spec = narrow(get_spec("resnet50v2"))
    model = with_preprocessing(build(spec, classes=4, input_shape=(64, 64, 3), classifier_activation=None))
    images = preprocessing(model)(sample_images().images)
    maps = keras.Model(model.input, model.get_layer("conv1_conv").output).predict(images, verbose=0)
    assert maps.min() < 0, "the pooling's inputs are negative"
    path = tmp_path / "net.onnx"
    assert export(model, path, measure_speed=False)["nrmse"] < 1e-4
    graph = onnx.load(path).graph
    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    (pad,) = [node for node in graph.node if node.op_type == "Pad" and node.output[0] in pooled]
    (value,) = [onnx.numpy_helper.to_array(row) for row in graph.initializer if row.name == pad.input[2]]
    assert 0 < value < 1e-30


def test_whether_onnx_runtime_still_needs_nonzero_padding():
    """Skips with a message once the installed version needs `_avoid_pad_fusion` no longer."""
    require_format("onnx")
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    def pooled(value):
        constants = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "value": np.array(value, "float32")}
        graph = helper.make_graph(
            [
                helper.make_node("Pad", ["x", "pads", "value"], ["padded"]),
                helper.make_node("MaxPool", ["padded"], ["y"], kernel_shape=[3, 3], strides=[2, 2]),
            ],
            "pooling",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"x": np.full((1, 1, 4, 4), -1, "float32")})[0][0, 0]

    expected = [[0, 0], [0, -1]]
    np.testing.assert_allclose(pooled(np.finfo("float32").smallest_normal), expected, atol=1e-30)
    if np.array_equal(pooled(0), expected):
        pytest.skip(f"ONNX Runtime {onnxruntime.__version__} needs no nonzero padding")


def test_export_without_the_optimizer_passes_of_tf2onnx(monkeypatch):
    """Garbage is collected between them; a tf2onnx without them is left as it is."""
    require_format("onnx")
    tf2onnx_passes = pytest.importorskip("tf2onnx.optimizer.optimizer_base")

    def optimize():
        return tf2onnx_passes.GraphOptimizerBase.optimize

    original = optimize()
    with onnx_format._collect_between_passes():
        assert optimize() is not original
    assert optimize() is original
    monkeypatch.setitem(sys.modules, "tf2onnx.optimizer.optimizer_base", None)
    with onnx_format._collect_between_passes():
        assert optimize() is original


@pytest.fixture(scope="module")
def cifar10(test_data):
    if not (test_data / "tfds" / "cifar10").is_dir():
        pytest.skip("KERAS_RESNET_TEST_DATA has no tfds/cifar10")
    return load_dataset("cifar10", data_dir=test_data / "tfds", download=False)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino", "litert"])
def test_int8_loses_at_most_half_a_percent_of_accuracy(format, model, cifar10, tmp_path):
    """Top-1 accuracy on all 10,000 test images, calibrated with 300 training images."""
    require_format(format)
    images = {"calibration": cifar10.train, "images": cifar10}
    report = export(model, tmp_path / EXPORT_NAMES[format], precision="int8", measure_speed=False, **images)
    accuracy = report["top1_accuracy"]
    assert report["num_images"] == 10_000 and accuracy["exported"] >= accuracy["keras"] - 0.005


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", list_models())
def test_every_network_in_every_format(name, format, tmp_path):
    """At full width and depth, on small images; logits, since random ones make probabilities of almost 0 or 1."""
    require_format(format)
    size = 32 if name.endswith("cifar") else 64
    model = create(name, input_shape=(size, size, 3), classifier_activation=None)
    model = stabilize(with_preprocessing(model))
    assert export(model, tmp_path / EXPORT_NAMES[format], raw=True, measure_speed=False)["nrmse"] < 1e-4


def test_a_model_trained_in_bfloat16_is_exported_in_float32(tmp_path):
    """It is compared with itself in float32: its own rounding would look like a difference."""
    weights = create("resnet20", weights="cifar10").get_weights()
    with precision_scope("bfloat16"):
        model = create("resnet20", weights="cifar10")
    model.set_weights(weights)
    assert export(model, tmp_path / "net", measure_speed=False)["nrmse"] < 1e-4


@pytest.mark.parametrize(
    ("last", "name"),
    [
        ([layers.Dense(3, "softmax")], "probabilities"),
        ([layers.Dense(3), layers.Softmax()], "probabilities"),
        ([layers.Dense(3)], "logits"),
        ([layers.Dense(1)], "features"),
        ([layers.Dense(1, "sigmoid")], "features"),
    ],
)
def test_sequential_models_and_their_last_layers(last, name, tmp_path):
    first = [keras.Input((16, 16, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.GlobalMaxPooling2D()]
    model = randomize_weights(keras.Sequential([*first, *last]))
    assert export(model, tmp_path / "net", raw=True, measure_speed=False)["verified"]
    exported, inputs = load_exported(tmp_path / "net"), random_images(5, 16, 16, 3)
    np.testing.assert_allclose(exported(inputs)[name], model.predict(inputs, verbose=0), rtol=1e-4, atol=1e-5)


def test_several_outputs_need_names(tmp_path):
    inputs = keras.Input((16, 16, 3))
    outputs = [layers.GlobalMaxPooling2D()(inputs), layers.GlobalAveragePooling2D()(inputs)]
    with pytest.raises(ValueError, match="a dict of them"):
        export(keras.Model(inputs, outputs), tmp_path / "net", raw=True)
