"""Files of exports: nothing is half-written or lost, and bad input and damaged files are one clear error each."""

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
from support import EXPORT_NAMES, TINY_SPEC, files_of_export, random_images, require_format, tiny_classifier

from keras_resnet import build, create, export, load_exported
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.sources import image_source
from keras_resnet.deployment import exporting
from keras_resnet.deployment.formats.table import FORMATS
from keras_resnet.deployment.images import calibration_pixels, pixel_batches, sample_images
from keras_resnet.deployment.serving import MAX_METADATA_BYTES, METADATA_KEY, Metadata
from keras_resnet.files import staging_folder
from keras_resnet.models.preprocessing import preprocessing

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras exports through TensorFlow"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]


def test_files_are_replaced_only_on_request(tmp_path):
    path, model = tmp_path / "net", tiny_classifier()
    export(model, path, measure_speed=False)
    before = (path / "saved_model.pb").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match=r"--overwrite.*Received: path="):
        export(model, path, measure_speed=False)
    assert (path / "saved_model.pb").stat().st_mtime_ns == before
    export(model, path, measure_speed=False, overwrite=True)
    assert (path / "saved_model.pb").stat().st_mtime_ns != before
    assert sorted(os.listdir(tmp_path)) == files_of_export(path)


def test_only_exports_are_replaced(tmp_path):
    """Neither a folder of other files nor files with the names of companions."""
    require_format("openvino")
    mine, weights = tmp_path / "mine", tmp_path / "net.bin"
    mine.mkdir()
    (mine / "precious.txt").write_text("x")
    weights.write_text("y")
    with pytest.raises(FileExistsError, match=r"net\.bin"):
        export(tiny_classifier(), tmp_path / "net.xml", measure_speed=False)
    for path in (mine, mine / ".."):
        with pytest.raises(FileExistsError, match="only replaced if it is a SavedModel"):
            export(tiny_classifier(), path, "saved_model", measure_speed=False, overwrite=True)
    assert (mine / "precious.txt").read_text() == "x" and weights.read_text() == "y"
    assert sorted(os.listdir(tmp_path)) == ["mine", "net.bin"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of images: "empty", "bad" (three unreadable files) and "half" (two images, two unreadable files)."""
    folder = tmp_path_factory.mktemp("images")
    for name, (good, bad) in {"empty": (0, 0), "bad": (0, 3), "half": (2, 2)}.items():
        (folder / name).mkdir()
        for index in range(good):
            Image.fromarray(sample_images().images[index]).save(folder / name / f"{index}.png")
        for index in range(bad):
            (folder / name / f"bad{index}.jpg").write_bytes(b"\xff\xd8\xff" + bytes(100))
    return folder


class Untranslatable(layers.Layer):
    """A custom layer that only TensorFlow's own format has an operation for."""

    def call(self, inputs):
        import tensorflow as tf

        outputs = tf.py_function(lambda x: x * 2, [inputs], tf.float32)
        outputs.set_shape(inputs.shape)
        return outputs

    def compute_output_shape(self, input_shape):
        return input_shape


class WithoutConfig(layers.Layer):
    """A custom layer that cannot be created from its configuration."""

    def __init__(self, factor):
        super().__init__()

    def call(self, inputs):
        return inputs


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def model_with(layer):
    inputs = keras.Input((16, 16, 3))
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(layer(inputs)), name="mine")


def custom(message):
    return {"model": lambda: model_with(Untranslatable()), "raw": True}, ValueError, message


INT8 = {"precision": "int8"}
BAD = {
    "format": ("net.onnx", {"format": "onx"}, ValueError, r"Nearest: \['onnx'.*format='onx'"),
    "precision": ("net.onnx", {"precision": "float6"}, ValueError, "Nearest:.*'float16'.*precision='float6'"),
    "no bfloat16": (
        "net.tflite",
        {"precision": "bfloat16"},
        ValueError,
        "LiteRT .bfloat16 is supported by saved_model",
    ),
    "no int8": ("net", {**INT8, "calibration": "digits"}, ValueError, "int8 is supported by onnx, openvino"),
    "suffix": ("net.pb", {}, ValueError, "`path` should be a file in.*net.pb"),
    "another suffix": ("net.tflite", {"format": "onnx"}, ValueError, "ends in .onnx for ONNX.*net.tflite"),
    "only a suffix": (".onnx", {"format": "onnx"}, ValueError, "ends in .onnx"),
    "a suffix for a folder": ("net.onnx", {"format": "saved_model"}, ValueError, "ends in no suffix for SavedModel"),
    "a pattern": ("net[1]", {}, ValueError, "none of .*TensorFlow would.*Received: path="),
    "no folder": ("absent/net.onnx", {}, FileNotFoundError, "folder of `path` should exist"),
    "no calibration": ("net.onnx", INT8, ValueError, "`calibration` should be images for int8"),
    "needless calibration": ("net.onnx", {"calibration": "digits"}, ValueError, "None for other precisions"),
    "batch size": ("net.onnx", {"batch_size": 0}, ValueError, "batch_size=0"),
    "boolean batch size": ("net.onnx", {"batch_size": True}, ValueError, "batch_size=True"),
    "calibration size": (
        "net.xml",
        {**INT8, "calibration": "digits", "calibration_size": 2.5},
        ValueError,
        "calibration_size=2.5",
    ),
    "unknown set": ("net.xml", {**INT8, "calibration": "digit"}, ValueError, "Nearest: .'digits'"),
    "absent": ("net.xml", {**INT8, "calibration": "/absent/images"}, OSError, "/absent/images"),
    "empty": ("net.xml", {**INT8, "calibration": "{folders}/empty"}, ValueError, "empty"),
    "bad": ("net.xml", {**INT8, "calibration": "{folders}/bad"}, ValueError, "can be read.*3 unreadable"),
    "floats": ("net.xml", {**INT8, "calibration": random_images(2, 16, 16, 3)}, ValueError, "uint8"),
    "bad images": ("net", {"images": "{folders}/bad"}, ValueError, "can be read.*3 unreadable"),
    "half a batch": (
        "net.xml",
        {**INT8, "calibration": np.zeros((3, 16, 16, 3), "uint8"), "batch_size": 4},
        ValueError,
        "at least 4 images.*Received: 3",
    ),
    "no model": ("net.onnx", {"model": lambda: "resnet20"}, ValueError, "Functional.*Received: model='resnet20'"),
    "a subclassed model": ("net.onnx", {"model": Subclassed}, ValueError, "built Functional or Sequential"),
    "unknown preprocessing": (
        "net.onnx",
        {"model": lambda: build(TINY_SPEC)},
        ValueError,
        "`model` should have weights",
    ),
    "no config": (
        "net",
        {"model": lambda: model_with(WithoutConfig(object()))},
        ValueError,
        "get_config.*Received: WithoutConfig",
    ),
    "custom layer in ONNX": ("net.onnx", *custom("ONNX.*custom layers: Untranslatable")),
    "custom layer in OpenVINO": ("net.xml", *custom("OpenVINO.*: Untranslatable")),
    "custom layer in LiteRT": ("net.tflite", *custom("LiteRT.*: Untranslatable")),
}
"""case -> (path, arguments, type of the error, message)."""


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error_and_leaves_nothing(case, folders, tmp_path):
    name, arguments, kind, message = BAD[case]
    require_format("openvino")
    arguments = {
        key: value.format(folders=folders) if isinstance(value, str) else value for key, value in arguments.items()
    }
    model = arguments.pop("model", tiny_classifier)()
    with pytest.raises(kind, match=message) as error:
        export(model, tmp_path / name, measure_speed=False, **arguments)
    assert "\n" not in str(error.value) or "unreadable" in str(error.value)
    assert os.listdir(tmp_path) == []


def test_custom_layers_are_exported_where_the_format_can(tmp_path):
    assert export(model_with(Untranslatable()), tmp_path / "net", raw=True, measure_speed=False)["verified"]


def test_unreadable_images_are_skipped_with_a_warning(folders):
    prepare = Preprocessing("torch", size=16, resize=None)
    with pytest.warns(UserWarning, match="Left out 2 images"):
        assert calibration_pixels(folders / "half", prepare, 300).shape == (2, 16, 16, 3)
    with pytest.warns(UserWarning, match="Left out 2 images"):
        batches = list(pixel_batches(image_source(folders / "half"), prepare, 3))
    assert sum(len(pixels) for pixels, _ in batches) == 2


@pytest.mark.parametrize("format", ["onnx", "openvino", "litert"])
def test_a_missing_library_is_named_with_the_command_that_installs_it(format, tiny_export, monkeypatch, tmp_path):
    path, _ = tiny_export(format)
    missing, original = FORMATS[format].libraries[0], importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == missing else original(name, *more)
    )
    message = rf"{missing}.*pip install 'keras-residual\[{format}\]'"
    with pytest.raises(ImportError, match=message):
        export(tiny_classifier(), tmp_path / EXPORT_NAMES[format])
    with pytest.raises(ImportError, match=message):
        load_exported(path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_one_clear_error(format, small_disk):
    require_format(format)
    (small_disk / "mine").write_bytes(bytes(400_000))
    with pytest.raises(OSError, match="No space left") as error:
        export(create("resnet20", weights="cifar10"), small_disk / EXPORT_NAMES[format], measure_speed=False)
    assert error.value.errno == errno.ENOSPC
    assert os.listdir(small_disk) == ["mine"]


SCRIPT = """
import sys, time
import keras_resnet
from keras_resnet.deployment import exporting
exporting.verify = lambda *_: (print("written", flush=True), time.sleep(600))
keras_resnet.export(keras_resnet.create("resnet20", weights="cifar10"), sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_export_leaves_a_staging_folder_that_the_next_export_deletes(tmp_path):
    path = tmp_path / "net"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], stdout=subprocess.PIPE, text=True)
    assert "written" in process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.exists() and os.listdir(tmp_path)
    export(tiny_classifier(), path, measure_speed=False)
    assert sorted(os.listdir(tmp_path)) == files_of_export(path)


def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        assert os.listdir(tmp_path), "it is written"
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "verify", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(tiny_classifier(), tmp_path / "net")
    assert os.listdir(tmp_path) == []


def test_staging_folders_of_running_processes_are_kept(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = {f".staging.{os.getpid()}.a": True, f".staging.{ended.pid}.b": False, ".staging.of.mine": True}
    for name in names:
        (tmp_path / name).mkdir()
    with staging_folder(tmp_path / "net"):
        assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_link_is_followed(tmp_path):
    require_format("onnx")
    (tmp_path / "real").mkdir()
    (tmp_path / "link.onnx").symlink_to(tmp_path / "real" / "net.onnx")
    export(tiny_classifier(), tmp_path / "link.onnx", measure_speed=False)
    assert (tmp_path / "link.onnx").is_symlink()
    assert sorted(os.listdir(tmp_path / "real")) == files_of_export(tmp_path / "net.onnx")


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_are_one_clear_error(format, tiny_export, tmp_path):
    path, broken = tiny_export(format)[0], tmp_path / EXPORT_NAMES[format]
    with pytest.raises(FileNotFoundError, match="missing path="):
        load_exported(broken)
    for damage in (lambda contents: contents[: len(contents) // 2], lambda contents: b"", lambda contents: b"PK" * 999):
        if format == "saved_model":
            shutil.copytree(path, broken, dirs_exist_ok=True)
            (broken / "saved_model.pb").write_bytes(damage((path / "saved_model.pb").read_bytes()))
        else:
            broken.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ValueError, match=rf"an intact {FORMATS[format].title} file.*Received: path=") as error:
            load_exported(broken)
        assert "\n" not in str(error.value)


def copy_with_metadata(path, text, target):
    """A copy of an ONNX file with other metadata, or with none."""
    import onnx

    model = onnx.load(path)
    del model.metadata_props[:]
    if text is not None:
        onnx.helper.set_model_props(model, {METADATA_KEY: text})
    onnx.save(model, target)
    return target


VALID = {"name": "x", "format": "onnx", "precision": "float32", "preprocessing": None}
HOSTILE = {
    "none": None,
    "no JSON": "resnet20",
    "a list": "[1]",
    "a number": "3",
    "deep": "[" * 100_000,
    "huge": json.dumps({"name": "x" * MAX_METADATA_BYTES}),
    "another key": json.dumps({**VALID, "run": 1}),
    "a missing key": json.dumps({"name": "x"}),
    "other preprocessing": json.dumps({**VALID, "preprocessing": {"mode": "shell", "size": "rm"}}),
    "class names that are numbers": json.dumps({**VALID, "class_names": [1, 2]}),
    "class names that are a number": json.dumps({**VALID, "class_names": 7}),
    "class names that are a string": json.dumps({**VALID, "class_names": "ants"}),
    "a name that is a list": json.dumps({**VALID, "name": []}),
    "an unknown precision": json.dumps({**VALID, "precision": "float6"}),
    "a checksum that is not one": json.dumps({**VALID, "checksum": "sha256:?"}),
    "thresholds without classes": json.dumps({**VALID, "thresholds": [0.5]}),
    "thresholds that are not numbers": json.dumps({**VALID, "class_names": ["ant"], "thresholds": ["x"]}),
    "a precision that is a dict": json.dumps({**VALID, "precision": {}, "raw": "yes"}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_metadata_of_a_file_is_not_trusted(case, tiny_export, tmp_path):
    path, _ = tiny_export("onnx")
    with pytest.raises(ValueError, match=r"`keras_resnet.export` wrote.*Received: path=") as error:
        load_exported(copy_with_metadata(path, HOSTILE[case], tmp_path / "net.onnx"))
    assert len(str(error.value)) < 1000


def test_metadata_survives_json():
    known = preprocessing(tiny_classifier())
    metadata = Metadata("net", "onnx", "int8", known, raw=True, class_names=("ant", "bee"), weights="cifar10")
    assert Metadata.from_json(metadata.to_json()) == metadata
    unknown = replace(metadata, preprocessing=None, class_names=None)
    assert Metadata.from_json(unknown.to_json()) == unknown


INTERRUPTED_AFTER_EXPORT = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from support import tiny_classifier
from keras_resnet import export
export(tiny_classifier(), sys.argv[1], precision="bfloat16", measure_speed=False)
os.kill(os.getpid(), signal.SIGINT)
"""


def test_a_process_can_be_interrupted_after_an_export(tmp_path):
    require_format("openvino")
    words = [tmp_path / "net.xml", os.path.dirname(__file__)]
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_AFTER_EXPORT, *words], capture_output=True, text=True)
    assert "KeyboardInterrupt" in done.stderr, (done.returncode, done.stderr)
