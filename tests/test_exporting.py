"""Exports: they answer as Keras does, also without our code; and nothing is ever left half-written."""

import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image
from support import narrow, random_images, randomize_weights, stabilize

import keras_resnet
from keras_resnet import build, create, export, feature_extractor, get_spec, list_models, load_dataset, load_exported
from keras_resnet.architecture.metadata import channel_axis
from keras_resnet.data.datasets import default_preprocessing
from keras_resnet.deployment import places
from keras_resnet.deployment.exported import is_exported
from keras_resnet.deployment.exporting import Disagreement
from keras_resnet.deployment.formats import onnx_format
from keras_resnet.deployment.formats.table import FORMATS, PRECISIONS
from keras_resnet.deployment.images import samples
from keras_resnet.deployment.serving import KEY, LONGEST, Metadata
from keras_resnet.models.preprocessing import preprocessing, set_preprocessing
from keras_resnet.precision import precision_scope

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras exports through TensorFlow"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]
ALL = [(form, precision) for form, row in FORMATS.items() for precision in row.precisions]
FILES = {form: f"net{row.suffix}" for form, row in FORMATS.items()}
TINY = replace(get_spec("resnet20"), depths=(1, 1, 1))
ALLOWED = {"float32": 1e-5, "float16": 0.01, "bfloat16": 0.05, "int8": 0.4}
"""Of probabilities, in any runtime."""


def need(form):
    """Skips the test if what writes the format is not installed."""
    for module in FORMATS[form].writes:
        pytest.importorskip(module)


def told(model):
    """A randomised model that knows how its images are prepared."""
    *sides, channels = model.input_shape[1:]
    if channel_axis(model) == 1:
        channels, *sides = model.input_shape[1:]
    set_preprocessing(randomize_weights(model), default_preprocessing((*sides, channels)), "torch")
    return model


def tiny(size=16, **arguments):
    """Eight layers."""
    return told(build(TINY, classes=4, input_shape=(size, size, 3), **arguments))


@pytest.fixture(scope="module")
def network():
    return create("resnet20", weights="cifar10")


@pytest.fixture(scope="module")
def pixels(network):
    """Two photographs, in sixteen views, as the network gets them but for their normalisation."""
    return preprocessing(network).pixels(samples().images)


@pytest.fixture(scope="module")
def made(network, tmp_path_factory):
    """(format, precision) -> (path, report) of the trained network, each exported once."""
    found = {}

    def make(form, precision="float32"):
        need(form)
        if (form, precision) not in found:
            path = tmp_path_factory.mktemp(f"{form}_{precision}") / FILES[form]
            calibration = samples() if precision == "int8" else None
            values = export(network, path, precision=precision, calibration=calibration, timed=precision == "float32")
            found[form, precision] = path, values
        return found[form, precision]

    return make


@pytest.fixture(scope="module")
def photos(test_data):
    return sorted((test_data / "hymenoptera" / "val" / "ants").glob("*.jpg"))[:6]


def beside(path, *more):
    """Names of what an export leaves."""
    main = {path.name, path.with_suffix(".bin").name} if path.suffix == ".xml" else {path.name}
    return sorted(main | {f"{path.name}.report.md", f"{path.name}.report.json", *more})


@pytest.mark.parametrize(("form", "precision"), ALL)
def test_every_format_and_precision_agrees(form, precision, made):
    path, values = made(form, precision)
    assert values["agrees"] and values["relative"] <= PRECISIONS[precision] and values["images"] == 16
    assert values["top1"] >= (1 if precision == "float32" else 0.75)
    assert sorted(os.listdir(path.parent)) == beside(path)
    assert json.loads((path.parent / f"{path.name}.report.json").read_text()) == values
    page = (path.parent / f"{path.name}.report.md").read_text()
    assert page.startswith(f"# resnet20 with the weights cifar10 as {FORMATS[form].title}, {precision}")
    assert is_exported(path)


@pytest.mark.parametrize("form", FORMATS)
def test_the_report_says_how_fast_and_how_large(form, made):
    path, values = made(form)
    assert [row["batch_size"] for row in values["speed"]] == [1, 8]
    for row in values["speed"]:
        for name in ("keras", "exported"):
            seconds = row["milliseconds"][name] / 1000
            assert row["images_per_second"][name] == pytest.approx(row["batch_size"] / seconds)
        assert row["ratio"] == pytest.approx(row["milliseconds"]["keras"] / row["milliseconds"]["exported"])
    main = [path, path.with_suffix(".bin")] if form == "openvino" else [path]
    files = [file for file in main for file in (file.rglob("*") if file.is_dir() else [file]) if file.is_file()]
    assert values["bytes"] == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize(("form", "precision"), ALL)
def test_photographs_get_the_classes_of_the_keras_network(form, precision, made, network, photos):
    exported = load_exported(made(form, precision)[0])
    for ours, theirs in zip(keras_resnet.predict(exported, photos), keras_resnet.predict(network, photos), strict=True):
        assert ours.path == theirs.path and ours.error is None
        found, expected = ({row[1]: row[2] for row in answer.classes} for answer in (ours, theirs))
        for name in found.keys() & expected.keys():
            assert found[name] == pytest.approx(expected[name], abs=ALLOWED[precision])
        assert precision != "float32" or list(found) == list(expected)


def run_onnx(path, pixels):
    import onnx
    import onnxruntime

    model = onnx.load(path)
    onnx.checker.check_model(model)
    (given,), (returned,) = model.graph.input, model.graph.output
    assert given.name == "images" and given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert returned.name == "probabilities" and returned.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    shape = [size.dim_param or size.dim_value for size in given.type.tensor_type.shape.dim]
    (entry,) = [entry.value for entry in model.metadata_props if entry.key == "keras_resnet"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return shape, entry, session.run(["probabilities"], {"images": pixels})[0]


def run_openvino(path, pixels):
    import openvino

    model = openvino.Core().read_model(path)
    (given,), (returned,) = model.inputs, model.outputs
    assert given.get_names() == {"images"} and given.get_element_type() == openvino.Type.u8
    assert returned.get_names() == {"probabilities"} and returned.get_element_type() == openvino.Type.f32
    shape = [size.get_length() if size.is_static else "batch" for size in given.get_partial_shape()]
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return shape, model.get_rt_info(["keras_resnet"]).astype(str), compiled({"images": pixels})["probabilities"]


def run_litert(path, pixels):
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


def run_saved_model(path, pixels):
    import tensorflow as tf

    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    given = serve.structured_input_signature[1]["images"]
    assert given.dtype == tf.uint8 and serve.structured_outputs["probabilities"].dtype == tf.float32
    shape = [size or "batch" for size in given.shape]
    entry = (path / "assets.extra" / "keras_resnet.json").read_text()
    return shape, entry, serve(images=tf.constant(pixels))["probabilities"].numpy()


RUNS = {"saved_model": run_saved_model, "onnx": run_onnx, "openvino": run_openvino, "litert": run_litert}
"""format -> a function of path and pixels: (shape of the input, metadata, probabilities), without our code."""


@pytest.mark.parametrize(("form", "precision"), ALL)
def test_the_formats_own_libraries_read_it(form, precision, made, network, pixels):
    shape, entry, found = RUNS[form](made(form, precision)[0], pixels)
    assert shape == ["batch", 32, 32, 3]
    expected = network.predict(preprocessing(network)(samples().images), verbose=0)
    np.testing.assert_allclose(found, expected, atol=ALLOWED[precision])
    said = json.loads(entry)
    assert said["name"] == "resnet20" and said["format"] == form and said["precision"] == precision
    assert said["weights"] == "cifar10" and not said["raw"]
    assert said["class_names"] == list(network.info["class_names"]) and said["class_names"][0] == "airplane"
    assert said["preprocessing"] == network.info["preprocessing"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_fixed_batch_size(form, made, network, pixels, tmp_path):
    need(form)
    path = tmp_path / FILES[form]
    values = export(network, path, batch_size=3)
    assert [row["batch_size"] for row in values["speed"]] == [3]
    shape, _, found = RUNS[form](path, pixels[:3])
    assert shape == [3, 32, 32, 3]
    exported = load_exported(path)
    expected = load_exported(made(form)[0])(pixels)["probabilities"]
    np.testing.assert_allclose(found, expected[:3], atol=1e-5)
    for count in (1, 3, 16):  # the last batch is filled up, and cut
        np.testing.assert_allclose(exported(pixels[:count])["probabilities"], expected[:count], atol=1e-5)


KINDS = ("logits", "raw logits", "raw", "features", "endpoints")


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        pytest.param(
            form, kind, marks=pytest.mark.slow if form in ("litert", "saved_model") and kind in KINDS[1:4] else ()
        )
        for form in FORMATS
        for kind in KINDS
    ],
)
def test_what_it_takes_and_returns(form, kind, tmp_path):
    """As the network does, but that logits become probabilities unless it is raw."""
    need(form)
    model = tiny(classifier_activation=None if "logits" in kind else "softmax", include_top=kind != "features")
    if kind == "endpoints":
        model = feature_extractor(model, endpoints=["stage1", "stage3", "pre_logits"])
    raw = kind.startswith("raw")
    values = export(model, tmp_path / FILES[form], raw=raw, timed=False)
    assert values["raw"] is raw and (values["top1"] is None) == (kind in ("features", "endpoints"))
    exported, look = load_exported(tmp_path / FILES[form]), preprocessing(model)
    found = exported(look(samples().images) if raw else look.pixels(samples().images))
    expected = model.predict(look(samples().images), verbose=0)
    if kind == "logits":
        expected = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    names = {"logits": "probabilities", "raw logits": "logits", "raw": "probabilities", "features": "features"}
    expected = expected if kind == "endpoints" else {names[kind]: expected}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32 and found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, atol=1e-4 * np.abs(array).max())
    if kind in ("features", "endpoints"):
        with pytest.raises(ValueError, match="should be a classifier"):
            exported.probabilities(exported.prepare(samples().images))


CHANNELS_FIRST = {
    "onnx": ("resnet20", {}),
    "litert": ("resnet50d", {}),
    "openvino": ("seresnet50", {"include_top": False}),
    "saved_model": ("resnet50v2", {}),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("raw", [False, True])
def test_channels_first(form, raw, tmp_path):
    """A raw one takes (B, C, H, W), and others take images as everybody has them; maps come as Keras has them."""
    need(form)
    name, arguments = CHANNELS_FIRST[form]
    spec = replace(narrow(get_spec(name)), data_format="channels_first")
    model = told(build(spec, input_shape=(3, 32, 32), **arguments))
    assert export(model, tmp_path / FILES[form], raw=raw, timed=False)["relative"] < 1e-4
    exported, look = load_exported(tmp_path / FILES[form]), preprocessing(model)
    inputs = exported.prepare(samples().images)
    assert inputs.shape == ((16, 3, 32, 32) if raw else (16, 32, 32, 3))
    (found,) = exported(inputs).values()
    expected = model.predict(np.moveaxis(look(samples().images), -1, 1), verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def preactivation():
    """Zeros around the pooling of negative numbers."""
    model = told(build(narrow(get_spec("resnet50v2")), classes=4, input_shape=(64, 64, 3), classifier_activation=None))
    x = preprocessing(model)(samples().images)
    assert keras.Model(model.input, model.get_layer("conv1_conv").output).predict(x, verbose=0).min() < 0
    return model


def test_preactivation_networks_agree_in_onnx(tmp_path):
    """No zeros are padded around a max pooling: ONNX Runtime up to 1.31 would make them minus infinity."""
    need("onnx")
    import onnx

    path = tmp_path / "net.onnx"
    assert export(preactivation(), path, timed=False)["relative"] < 1e-4
    graph = onnx.load(path).graph
    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    (pad,) = [node for node in graph.node if node.op_type == "Pad" and node.output[0] in pooled]
    (value,) = [onnx.numpy_helper.to_array(row) for row in graph.initializer if row.name == pad.input[2]]
    assert 0 < value < 1e-30


def test_whether_onnx_runtime_still_needs_nonzero_padding():
    """Skips with a message once the installed version needs `_avoid_pad_fusion` no longer."""
    need("onnx")
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    def values(kind, shape=None):
        return helper.make_tensor_value_info(kind, TensorProto.FLOAT, shape)

    def pooled(value):
        constants = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "value": np.array(value, "float32")}
        graph = helper.make_graph(
            [
                helper.make_node("Pad", ["x", "pads", "value"], ["padded"]),
                helper.make_node("MaxPool", ["padded"], ["y"], kernel_shape=[3, 3], strides=[2, 2]),
            ],
            "pooling",
            [values("x", [1, 1, 4, 4])],
            [values("y")],
            [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"x": np.full((1, 1, 4, 4), -1, "float32")})[0][0, 0]

    expected = [[0, 0], [0, -1]]
    np.testing.assert_allclose(pooled(np.finfo("float32").smallest_normal), expected, atol=1e-30)
    if np.array_equal(pooled(0), expected):
        pytest.skip(f"ONNX Runtime {onnxruntime.__version__} needs no nonzero padding")


def test_export_without_the_optimizer_passes_of_tf2onnx(tmp_path, monkeypatch):
    """Collecting garbage between them is left out where tf2onnx has none."""
    need("onnx")
    from tf2onnx.optimizer.optimizer_base import GraphOptimizerBase

    collected = onnx_format._collect_between_passes
    with collected():
        assert GraphOptimizerBase.optimize.__name__ == "collect_and_optimize"
    assert GraphOptimizerBase.optimize.__name__ == "optimize"
    monkeypatch.setitem(sys.modules, "tf2onnx.optimizer.optimizer_base", None)
    with collected():
        assert GraphOptimizerBase.optimize.__name__ == "optimize"


@pytest.mark.parametrize("form", FORMATS)
def test_a_wrong_order_of_channels_is_noticed(form, tmp_path, monkeypatch):
    """A file that answers otherwise gets another name; what had its name stays."""
    need(form)
    model, path = tiny(), tmp_path / FILES[form]
    if form == "saved_model":
        path.mkdir()
    (path / "saved_model.pb" if form == "saved_model" else path).write_text("old")
    real = keras_resnet.deployment.serving.preprocess_input
    monkeypatch.setattr(
        "keras_resnet.deployment.serving.preprocess_input", lambda x, *arguments: real(x[..., ::-1], *arguments)
    )
    for _ in range(2):  # a second time, where a first one has left its files
        with pytest.raises(Disagreement, match="what its Keras network says.*net.disagrees") as error:
            export(model, path, timed=False, overwrite=True)
    wrong = tmp_path / FILES[form].replace("net", "net.disagrees", 1)
    assert sorted(os.listdir(tmp_path)) == beside(wrong, path.name)
    assert path.is_dir() or path.read_text() == "old"
    written = json.loads((tmp_path / f"{wrong.name}.report.json").read_text())
    assert written == error.value.report and not written["agrees"] and written["relative"] > PRECISIONS["float32"]
    assert "**It does not say what its Keras network says**" in (tmp_path / f"{wrong.name}.report.md").read_text()
    assert load_exported(wrong).name == model.name


def test_what_fewer_bits_would_hide_is_noticed_in_float32(network, tmp_path, monkeypatch):
    """Images a little too dark."""
    real = keras_resnet.deployment.serving.preprocess_input
    monkeypatch.setattr(
        "keras_resnet.deployment.serving.preprocess_input", lambda x, *arguments: real(x * 0.95, *arguments)
    )
    with pytest.raises(Disagreement, match="the same export in float32") as error:
        export(network, tmp_path / "net", precision="bfloat16", timed=False)
    assert error.value.report["relative"] < PRECISIONS["bfloat16"], "alone it would have passed"


@pytest.mark.parametrize("form", ["onnx", "saved_model"])
@pytest.mark.parametrize("arguments", [{}, {"include_top": False}])
def test_few_images_that_are_much_alike(form, arguments, tmp_path):
    """Of features the spread over the images is next to nothing then; a fixed batch is filled up."""
    need(form)
    model, image = tiny(**arguments), samples().images[:1] // 2
    for shown in (image, np.concatenate([image, image + 1])):
        values = export(model, tmp_path / FILES[form], None, "float16", batch_size=3, images=shown, overwrite=True)
        assert values["parts"]["in_float32"]["relative"] < 1e-4 and values["images"] == len(shown)


def test_parts_are_compared_where_the_first_images_cannot_be_read(folders, tmp_path):
    for number in range(20):
        shutil.copy(folders / "half" / "bad0.jpg", folders / "half" / f"a{number}.jpg")
    with pytest.warns(UserWarning, match="22 images could not be read"):
        values = export(tiny(), tmp_path / "net", images=folders / "half", timed=False)
    assert values["images"] == 2 and 0 < values["parts"]["encoded_files"]["relative"] < 0.1


def test_encoded_files_that_are_seen_otherwise_are_noticed(network, tmp_path, monkeypatch):
    real = keras_resnet.deployment.formats.saved_model._pixels
    monkeypatch.setattr("keras_resnet.deployment.formats.saved_model._pixels", lambda *given: real(*given)[..., ::-1])
    with pytest.raises(Disagreement, match="encoded image files") as error:
        export(network, tmp_path / "net", timed=False)
    assert error.value.report["relative"] < PRECISIONS["float32"], "alone it would have passed"
    assert "saved_model.pb" in os.listdir(tmp_path / "net.disagrees")
    page = (tmp_path / "net.disagrees.report.md").read_text()
    assert "**It does not say what its Keras network says**: the differences of encoded image files" in page


def test_what_is_there_is_replaced_only_on_request(tmp_path):
    path, model = tmp_path / "net", tiny()
    export(model, path, timed=False)
    before = (path / "saved_model.pb").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match=r"--overwrite.*Received: path="):
        export(model, path, timed=False)
    assert (path / "saved_model.pb").stat().st_mtime_ns == before
    export(model, path, timed=False, overwrite=True)
    assert (path / "saved_model.pb").stat().st_mtime_ns != before and sorted(os.listdir(tmp_path)) == beside(path)


@pytest.fixture
def folders(tmp_path_factory):
    """Folders of images: "empty", "bad" (none is one) and "half" (two of four are)."""
    folder = tmp_path_factory.mktemp("images")
    for name, count in {"empty": (0, 0), "bad": (0, 3), "half": (2, 2)}.items():
        (folder / name).mkdir()
        for number in range(count[0]):
            Image.fromarray(samples().images[number]).save(folder / name / f"{number}.png")
        for number in range(count[1]):
            (folder / name / f"bad{number}.jpg").write_bytes(b"\xff\xd8\xff" + bytes(100))
    return folder


class Own(layers.Layer):
    """Somebody's layer, which no format but TensorFlow's own has an operation for."""

    def call(self, inputs):
        import tensorflow as tf

        outputs = tf.py_function(lambda x: x * 2, [inputs], tf.float32)
        outputs.set_shape(inputs.shape)
        return outputs

    def compute_output_shape(self, input_shape):
        return input_shape


class Given(layers.Layer):
    """Somebody's layer that cannot be made anew from its configuration."""

    def __init__(self, factor):
        super().__init__()

    def call(self, inputs):
        return inputs


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def with_layer(layer):
    inputs = keras.Input((16, 16, 3))
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(layer(inputs)), name="mine")


def nested():
    return keras.Sequential([keras.Input((16, 16, 3)), tiny()])


BAD = {
    "format": ("net.onnx", {"format": "onx"}, ValueError, r"Nearest: \['onnx'.*format='onx'"),
    "precision": ("net.onnx", {"precision": "float6"}, ValueError, "Nearest:.*'float16'.*precision='float6'"),
    "no bfloat16": ("net.tflite", {"precision": "bfloat16"}, ValueError, "for LiteRT .bfloat16 goes with saved_model"),
    "no int8": ("net", {"precision": "int8", "calibration": "digits"}, ValueError, "int8 goes with onnx, openvino"),
    "suffix": ("net.pb", {}, ValueError, "`path` should be a file in.*net.pb"),
    "another suffix": ("net.tflite", {"format": "onnx"}, ValueError, "end in .onnx for ONNX.*net.tflite"),
    "only a suffix": (".onnx", {"format": "onnx"}, ValueError, "end in .onnx"),
    "a suffix for a folder": ("net.onnx", {"format": "saved_model"}, ValueError, "end in no suffix for SavedModel"),
    "a pattern": ("net[1]", {}, ValueError, "none of .*Received: path="),
    "no folder": ("absent/net.onnx", {}, FileNotFoundError, "folder of `path` should exist"),
    "no calibration": ("net.onnx", {"precision": "int8"}, ValueError, "`calibration` should be images for int8"),
    "needless calibration": ("net.onnx", {"calibration": "digits"}, ValueError, "for no other precision"),
    "batch size": ("net.onnx", {"batch_size": 0}, ValueError, "batch_size=0"),
    "true batch size": ("net.onnx", {"batch_size": True}, ValueError, "batch_size=True"),
    "samples": ("net.xml", {"precision": "int8", "calibration": "digits", "samples": 2.5}, ValueError, "samples=2.5"),
    "unknown set": ("net.xml", {"precision": "int8", "calibration": "digit"}, ValueError, "Nearest: .'digits'"),
    "absent": ("net.xml", {"precision": "int8", "calibration": "/absent/images"}, OSError, "/absent/images"),
    "empty": ("net.xml", {"precision": "int8", "calibration": "{folders}/empty"}, ValueError, "empty"),
    "bad": ("net.xml", {"precision": "int8", "calibration": "{folders}/bad"}, ValueError, "can be read.*3 unreadable"),
    "floats": ("net.xml", {"precision": "int8", "calibration": random_images(2, 16, 16, 3)}, ValueError, "uint8"),
    "bad images": ("net", {"images": "{folders}/bad"}, ValueError, "can be read.*3 unreadable"),
    "half a batch": (
        "net.xml",
        {"precision": "int8", "calibration": np.zeros((3, 16, 16, 3), "uint8"), "batch_size": 4},
        ValueError,
        "4 images or more.*Received: 3",
    ),
    "no model": ("net.onnx", {"model": lambda: "resnet20"}, ValueError, "one graph of layers. Received: resnet20"),
    "a class of its own": ("net.onnx", {"model": Subclassed}, ValueError, "one graph of layers"),
    "a model in a model": ("net.onnx", {"model": nested}, ValueError, "one graph of layers"),
    "unknown preprocessing": (
        "net.onnx",
        {"model": lambda: build(TINY)},
        ValueError,
        "how images are to be prepared",
    ),
    "unclonable": ("net", {"model": lambda: with_layer(Given(object()))}, ValueError, "get_config.*mine with Given"),
    "own for ONNX": ("net.onnx", {"model": lambda: with_layer(Own()), "raw": True}, ValueError, "ONNX.*its own: Own"),
    "own for OpenVINO": ("net.xml", {"model": lambda: with_layer(Own()), "raw": True}, ValueError, "OpenVINO.*: Own"),
    "own for LiteRT": ("net.tflite", {"model": lambda: with_layer(Own()), "raw": True}, ValueError, "LiteRT.*: Own"),
}
"""what is wrong -> (path, arguments, kind of error, what it says)."""


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_error_and_leaves_nothing(what, folders, tmp_path):
    name, arguments, kind, message = BAD[what]
    need("openvino")
    arguments = {
        key: value.format(folders=folders) if isinstance(value, str) else value for key, value in arguments.items()
    }
    model = arguments.pop("model", tiny)()
    with pytest.raises(kind, match=message) as error:
        export(model, tmp_path / name, timed=False, **arguments)
    assert "\n" not in str(error.value) or "unreadable" in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_layer_of_ones_own_is_exported_where_the_format_can(tmp_path):
    assert export(with_layer(Own()), tmp_path / "net", raw=True, timed=False)["agrees"]


def test_images_that_cannot_be_read_are_left_out_with_a_warning(folders, tmp_path):
    need("openvino")
    with pytest.warns(UserWarning, match="2 images could not be read"):
        export(tiny(), tmp_path / "net.xml", precision="int8", calibration=folders / "half", timed=False)
    with pytest.warns(UserWarning, match="2 images could not be read"):
        assert export(tiny(), tmp_path / "net", images=folders / "half", timed=False)["images"] == 2


@pytest.mark.parametrize("form", ["onnx", "openvino", "litert"])
def test_what_is_not_installed_is_named_with_what_installs_it(form, made, monkeypatch, tmp_path):
    path, _ = made(form)
    lacking, real = FORMATS[form].reads[0], importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == lacking else real(name, *more))
    line = rf"{lacking}.*pip install 'keras-residual\[{FORMATS[form].extra}\]'"
    with pytest.raises(ImportError, match=line):
        export(tiny(), tmp_path / FILES[form])
    with pytest.raises(ImportError, match=line):
        load_exported(path)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own of one MiB."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root mounts disks")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # an error may still hold a file there


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_is_one_clear_error(form, small_disk, network):
    need(form)
    (small_disk / "mine").write_bytes(bytes(400_000))
    with pytest.raises(OSError, match="No space left") as error:
        export(network, small_disk / FILES[form], timed=False)
    assert error.value.errno == errno.ENOSPC
    assert os.listdir(small_disk) == ["mine"]


SCRIPT = """
import os, signal, sys, time
import keras_resnet
from keras_resnet.deployment import exporting
exporting.compare = lambda *_: (print("written", flush=True), time.sleep(600))
keras_resnet.export(keras_resnet.create("resnet20", weights="cifar10"), sys.argv[1])
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_an_export_that_is_stopped_leaves_nothing_that_stays(stop, tmp_path):
    """Neither under its name, nor, after the next export, under another."""
    path = tmp_path / "net"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], stdout=subprocess.PIPE, text=True)
    assert "written" in process.stdout.readline()
    process.send_signal(stop)
    process.wait()
    assert not path.exists() and bool(os.listdir(tmp_path)) == (stop == signal.SIGKILL)
    export(tiny(), path, timed=False)
    assert sorted(os.listdir(tmp_path)) == beside(path)


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files_are_one_clear_error(form, made, tmp_path):
    path, broken = made(form)[0], tmp_path / FILES[form]
    with pytest.raises(FileNotFoundError, match="there is none"):
        load_exported(broken)
    for damage in (lambda contents: contents[: len(contents) // 2], lambda contents: b"", lambda contents: b"PK" * 999):
        if form == "saved_model":
            shutil.copytree(path, broken, dirs_exist_ok=True)
            (broken / "saved_model.pb").write_bytes(damage((path / "saved_model.pb").read_bytes()))
        else:
            broken.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ValueError, match=rf"an intact {FORMATS[form].title} file.*Received: path=") as error:
            load_exported(broken)
        assert "\n" not in str(error.value)


def with_metadata(path, text, target):
    """A copy of an ONNX file that says something else of itself; None: nothing."""
    import onnx

    model = onnx.load(path)
    del model.metadata_props[:]
    if text is not None:
        onnx.helper.set_model_props(model, {KEY: text})
    onnx.save(model, target)
    return target


HOSTILE = {
    "none": None,
    "no JSON": "resnet20",
    "a list": "[1]",
    "a number": "3",
    "deep": "[" * 100_000,
    "huge": json.dumps({"name": "x" * LONGEST}),
    "another key": json.dumps({"name": "x", "format": "onnx", "precision": "float32", "preprocessing": None, "run": 1}),
    "a missing key": json.dumps({"name": "x"}),
    "other preprocessing": json.dumps(
        {"name": "x", "format": "onnx", "precision": "float32", "preprocessing": {"mode": "shell", "size": "rm"}}
    ),
    "class names that are numbers": json.dumps(
        {"name": "x", "format": "onnx", "precision": "float32", "preprocessing": None, "class_names": [1, 2]}
    ),
    "class names that are a number": json.dumps(
        {"name": "x", "format": "onnx", "precision": "float32", "preprocessing": None, "class_names": 7}
    ),
    "class names that are one word": json.dumps(
        {"name": "x", "format": "onnx", "precision": "float32", "preprocessing": None, "class_names": "ants"}
    ),
    "a name that is none": json.dumps({"name": [], "format": "onnx", "precision": "float32", "preprocessing": None}),
    "a precision that is none": json.dumps(
        {"name": "x", "format": "onnx", "precision": {}, "preprocessing": None, "raw": "yes"}
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_file_says_of_itself_is_not_trusted(what, made, tmp_path):
    path, _ = made("onnx")
    with pytest.raises(ValueError, match=r"`keras_resnet.export` wrote.*Received: path=") as error:
        load_exported(with_metadata(path, HOSTILE[what], tmp_path / "net.onnx"))
    assert len(str(error.value)) < 1000


def test_metadata_comes_back():
    said = Metadata("net", "onnx", "int8", None, raw=True, class_names=("ant", "bee"), weights="cifar10")
    assert replace(Metadata.from_json(said.to_json()), class_names=("ant", "bee")) == said


@pytest.fixture(scope="module")
def cifar10(test_data):
    if not (test_data / "tfds" / "cifar10").is_dir():
        pytest.skip("KERAS_RESNET_TEST_DATA has no tfds/cifar10")
    return load_dataset("cifar10", data_dir=test_data / "tfds", download=False)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino", "litert"])
def test_eight_bits_lose_at_most_half_a_point(form, network, cifar10, tmp_path):
    """Top-1 of all 10,000 test images; 300 of those that train show what numbers occur."""
    need(form)
    values = export(
        network, tmp_path / FILES[form], precision="int8", calibration=cifar10.train, images=cifar10, timed=False
    )
    shares = values["accuracy"]
    assert values["images"] == 10_000 and shares["exported"] >= shares["keras"] - 0.005


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", list_models())
def test_every_network_is_exported_to_every_format(name, form, tmp_path):
    """At its width and depth, on small images; its logits, since random ones make classes all too certain."""
    need(form)
    size = 32 if name.endswith("cifar") else 64
    model = stabilize(told(create(name, input_shape=(size, size, 3), classifier_activation=None)))
    assert export(model, tmp_path / FILES[form], raw=True, timed=False)["relative"] < 1e-4


def test_only_what_an_export_left_is_replaced(tmp_path):
    """Not a folder of something else, nor the files that would stand beside."""
    need("openvino")
    mine, weights = tmp_path / "mine", tmp_path / "net.bin"
    mine.mkdir()
    (mine / "precious.txt").write_text("x")
    weights.write_text("y")
    with pytest.raises(FileExistsError, match=r"net\.bin"):
        export(tiny(), tmp_path / "net.xml", timed=False)
    for path in (mine, mine / ".."):
        with pytest.raises(FileExistsError, match="only a SavedModel is replaced"):
            export(tiny(), path, "saved_model", timed=False, overwrite=True)
    assert (mine / "precious.txt").read_text() == "x" and weights.read_text() == "y"
    assert sorted(os.listdir(tmp_path)) == ["mine", "net.bin"]


def test_the_folder_of_a_process_that_runs_is_left_alone(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = {f".exporting.{os.getpid()}.a": True, f".exporting.{ended.pid}.b": False, ".exporting.of.mine": True}
    for name in names:
        (tmp_path / name).mkdir()
    with places.beside(tmp_path / "net"):
        assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_link_is_followed(tmp_path):
    need("onnx")
    (tmp_path / "real").mkdir()
    (tmp_path / "link.onnx").symlink_to(tmp_path / "real" / "net.onnx")
    export(tiny(), tmp_path / "link.onnx", timed=False)
    assert (tmp_path / "link.onnx").is_symlink() and sorted(os.listdir(tmp_path / "real")) == beside(
        tmp_path / "net.onnx"
    )


def test_a_network_trained_in_bfloat16_is_exported_in_float32(tmp_path):
    """The measure is its float32 self: what rounds would seem to disagree."""
    weights = create("resnet20", weights="cifar10").get_weights()
    with precision_scope("bfloat16"):
        model = create("resnet20", weights="cifar10")
    model.set_weights(weights)
    assert export(model, tmp_path / "net", timed=False)["relative"] < 1e-4


def classifier(*last):
    """Keras's own layers on top of nothing much, one of them in the end."""
    body = [keras.Input((16, 16, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.GlobalMaxPooling2D()]
    return randomize_weights(keras.Sequential([*body, *last]))


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
    model = classifier(*last)
    assert export(model, tmp_path / "net", raw=True, timed=False)["agrees"]
    exported, inputs = load_exported(tmp_path / "net"), random_images(5, 16, 16, 3)
    np.testing.assert_allclose(exported(inputs)[name], model.predict(inputs, verbose=0), rtol=1e-4, atol=1e-5)


def test_several_outputs_want_names(tmp_path):
    inputs = keras.Input((16, 16, 3))
    outputs = [layers.GlobalMaxPooling2D()(inputs), layers.GlobalAveragePooling2D()(inputs)]
    with pytest.raises(ValueError, match="a dict of them"):
        export(keras.Model(inputs, outputs), tmp_path / "net", raw=True)


def test_a_network_that_says_the_same_of_everything_is_noted(tmp_path):
    model = told(build(TINY, classes=4, input_shape=(16, 16, 3)))
    model.layers[-1].kernel.assign(np.zeros(model.layers[-1].kernel.shape))
    with pytest.warns(UserWarning, match="proves little"):
        export(model, tmp_path / "net", timed=False)
