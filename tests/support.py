"""Helpers shared by test modules: random weights and images, small networks, command runs, damaged files."""

import io
import json
import os
import random
import signal
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image
from typer.testing import CliRunner

from keras_resnet import (
    DetectionSettings,
    LocalizerSpec,
    ResNetSpec,
    SegmenterSpec,
    build,
    complexity,
    create,
    export,
    get_spec,
    list_models,
)
from keras_resnet.architecture.metadata import image_shape
from keras_resnet.benchmark import worker
from keras_resnet.benchmark.contenders import CONTENDERS
from keras_resnet.data.datasets import default_preprocessing
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.deployment.formats.table import FORMATS, find_format
from keras_resnet.models.preprocessing import set_preprocessing
from keras_resnet.search.budget import Budget, BudgetedSpace
from keras_resnet.search.space import space_for_images
from keras_resnet.training.callbacks import CheckpointCallback
from keras_resnet.weights.file_formats import open_weights
from keras_resnet.weights.loading import build_from_file

REFERENCES = Path(__file__).parent / "references"
"""Files written by other libraries, or by the scripts beside them."""


def random_images(*shape, seed=1):
    """Normally distributed float32 network inputs."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomize_weights(model, seed=0):
    """Sets random weights and batch-norm statistics, of a size that makes every layer matter; returns the model."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        for weight in layer.weights:
            if weight.name in ("gamma", "moving_variance"):
                value = generator.uniform(0.5, 1.5, weight.shape)
            else:
                fan_in = np.prod(weight.shape[:-1]) if len(weight.shape) > 1 else 200
                value = generator.normal(0, (2 / fan_in) ** 0.5, weight.shape)
            weight.assign(value.astype("float32"))
    return model


def stabilize(model):
    """Halves the batch-norm scales of networks in which random weights amplify rounding errors; returns the model."""
    if model.spec.se_ratio or model.spec.depth > 200:
        for layer in model.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.gamma.assign(layer.gamma * 0.5)
    return model


def narrow(spec):
    """The spec with at most two blocks a stage and few channels, which builds fast."""
    expansion = 8 if spec.groups > 1 else 1
    return replace(
        spec,
        depths=tuple(min(2, depth) for depth in spec.depths),
        widths=tuple(8 * expansion * 2**i for i in range(len(spec.widths))),
        stem_width=8,
        groups=min(spec.groups, 4),
        group_width=spec.group_width if spec.groups == 1 else 16,
    )


def narrow_variants():
    """{narrow spec: name} of the variants that differ in more than depth."""
    return {narrow(get_spec(name)): name for name in list_models()}


def digits_network(seed=0, classes=10):
    """A small random network for scikit-learn's digits that knows its preprocessing."""
    model = randomize_weights(create("resnet20", depths=(1, 1, 1), input_shape=(8, 8, 1), classes=classes), seed)
    model.info = {"preprocessing": Preprocessing("tf", 8, None, channels=1).to_config()}
    return model


CIFAR_PREPROCESSING = Preprocessing("torch", size=32, resize=None)


def cifar_network(classes=10, seed=0, **changes):
    """A small random network for images of 32 x 32 pixels that knows its preprocessing."""
    changes = {"depths": (1, 1, 1), "widths": (8, 8, 16), "stem_width": 8} | changes
    model = randomize_weights(create("resnet20", input_shape=(32, 32, 3), classes=classes, **changes), seed)
    model.info = {"preprocessing": CIFAR_PREPROCESSING.to_config(), "weights": f"seed {seed}"}
    return model


def random_pixels(count, seed=0):
    """(count, 32, 32, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), "uint8")


def png_bytes(image):
    """uint8 array -> contents of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


NARROW_DETECTORS = json.loads((REFERENCES / "detectors" / "index.json").read_text("utf-8"))["detectors"]
"""name -> what a narrow detector of torchvision is in this package."""


@cache
def narrow_detector(name):
    """(detector with the weights of a narrow one of torchvision, inputs and outputs of the latter)."""
    row, path = NARROW_DETECTORS[name], REFERENCES / "detectors" / f"{name}.safetensors"
    spec = get_spec(row["variant"])
    settings = DetectionSettings(**row["settings"])
    model = build_from_file(replace(spec, backbone=replace(spec.backbone, **row["backbone"])), path, settings=settings)
    return model, dict(np.load(path.with_suffix(".npz")))


SMALL = ResNetSpec("basic", (1, 1), (8, 16), stem="cifar", stem_width=8)
"""The residual network of `small_localizer`."""


def small_localizer(boxes="shared", shape=(24, 32, 3), **changes):
    """A localizer of five classes with random weights."""
    spec = LocalizerSpec(SMALL, boxes, **{"box_width": 12, "anchor_sizes": (8, 16), "classes": 5} | changes)
    return randomize_weights(build(spec, input_shape=shape))


def small_segmenter(head="fcn", **changes):
    """A segmenter of five classes with random weights."""
    fields = {"output_stride": 2, "head_width": 8, "rates": (1, 2), "decoder_width": 4, "classes": 5}
    return randomize_weights(build(SegmenterSpec(SMALL, head, **fields | changes)))


def brightest_channel(**changes):
    """An object with the methods of a KerasSegmenter: the class of a pixel is its brightest colour."""
    fields = {
        "name": "brightest",
        "class_names": ("red", "green", "blue"),
        "colors": None,
        "preprocessing": SegmentationPreprocessing("pixels"),
        "probabilities": lambda images: np.asarray(images, "float32") / 255,
    }
    return SimpleNamespace(**fields | changes)


def padded_images(expected):
    """The images of a reference, padded with NaN."""
    x = expected["x"].astype("float32")
    for image, (height, width) in zip(x, expected["sizes"], strict=True):
        image[height:], image[:, width:] = np.nan, np.nan
    return x


def detections(model, inputs):
    """{output: array}; JAX compiles the model, because that is faster than compiling each of its operations."""
    call = model.predict_on_batch if keras.backend.backend() == "jax" else model
    return keras.tree.map_structure(keras.ops.convert_to_numpy, call(inputs))


DIGITS = ((8, 8, 1), 10)
"""Input shape and number of classes of scikit-learn's digits."""


def assert_same_detections(found, expected, boxes=1e-3, scores=1e-5):
    """The same detections in the same order; tolerances in pixels and in probability, of scores and masks."""
    np.testing.assert_array_equal(found["count"], expected["count"])
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    for name, tolerance in {"boxes": boxes, "scores": scores, "masks": scores}.items():
        if name in expected:
            np.testing.assert_allclose(found[name], expected[name], atol=tolerance, err_msg=name)


class LocalWorker:
    """Stands for a benchmark's Worker: measures in this process."""

    def __init__(self, job):
        self.job, self.folder = job, TemporaryDirectory()
        self.measured = CONTENDERS[job.contender].network(job, self.folder.name)
        self.network = self.measured.name

    def measure(self, task, steps):
        return worker.measure(self.measured, task, steps)

    def close(self):
        self.folder.cleanup()


def digits_cost(spec):
    """Complexity of a network for the digits."""
    return complexity(spec, input_shape=DIGITS[0], classes=DIGITS[1])


def digits_space(space=None, side=8, **limits):
    """The candidates within a budget for images of 8 x 8 pixels, or of another size, in ten classes."""
    return BudgetedSpace(space or space_for_images(side), Budget(**limits), (side, side, 1), 10)


def sample_values(space, count, seed=0):
    """Candidates sampled by NumPy instead of KerasTuner."""
    generator = np.random.default_rng(seed)
    sample = {
        "Int": lambda row: int(generator.integers(row["min_value"], row["max_value"] + 1)),
        "Float": lambda row: float(generator.uniform(row["min_value"], row["max_value"])),
        "Choice": lambda row: row["values"][generator.integers(len(row["values"]))],
    }
    return [{name: sample[method](row) for name, (method, row) in space.items()} for _ in range(count)]


def signal_after(monkeypatch, step, number=signal.SIGINT):
    """Sends this process a signal after a step of the run."""
    original = CheckpointCallback.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        if self.start.step + batch + 1 == step:
            os.kill(os.getpid(), number)
        original(self, batch, logs)

    monkeypatch.setattr(CheckpointCallback, "on_train_batch_end", on_train_batch_end)


def run_command(*words):
    """Runs `keras-resnet WORDS` in this process; returns click's Result."""
    from keras_resnet.cli import app

    return CliRunner().invoke(app, [str(word) for word in words])


def read_arrays(path):
    """{name: array} of all arrays in a weights file."""
    with open_weights(path) as weights:
        return {name: array.read() for name, array in weights.arrays.items()}


def assert_same_arrays(arrays, expected):
    """Same names, dtypes and values; every array C-contiguous."""
    assert sorted(arrays) == sorted(expected)
    for name, array in arrays.items():
        assert array.flags.c_contiguous and array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def assert_damaged_files_are_refused(content, count, path):
    """Writes `count` damaged copies to `path`: each reads as arrays or raises a ValueError naming it, a third do."""
    refused = 0
    for copy in damaged_copies(content, count, random.Random(0)):
        path.write_bytes(copy)
        try:
            read_arrays(path)
        except ValueError as error:
            assert path.name in str(error)
            refused += 1
    assert refused >= count // 3


def write_archive(path, members, compression=zipfile.ZIP_STORED):
    """Writes a zip file of {name: bytes}; returns its path."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def with_config(members, change):
    """The members of a .keras file with a changed config; change: config, {name of a layer: its config} -> None."""
    config = json.loads(members["config.json"])
    change(config, {layer["config"]["name"]: layer for layer in config["config"]["layers"]})
    return members | {"config.json": json.dumps(config).encode()}


def damaged_copies(content, count, generator):
    """Copies of a file's bytes: cut short, or with a few bytes changed."""
    for i in range(count):
        copy = bytearray(content)
        if i % 3 == 0:
            del copy[generator.randrange(len(copy)) :]
        for _ in range(i % 3 * generator.choice([1, 1, 10])):
            copy[generator.randrange(len(copy))] = generator.randrange(256)
        yield bytes(copy)


TINY_SPEC = replace(get_spec("resnet20"), depths=(1, 1, 1))
EXPORT_NAMES = {format: f"net{row.suffix}" for format, row in FORMATS.items()}
"""{format: name of an exported network}."""


def require_format(format):
    """Skips the test if a library that writes the format is not installed."""
    for module in FORMATS[format].libraries:
        pytest.importorskip(module)


def with_preprocessing(model):
    """The model with random weights, which knows how its images are prepared."""
    set_preprocessing(randomize_weights(model), default_preprocessing(image_shape(model)), "torch")
    return model


def tiny_classifier(size=16, **arguments):
    """A residual network of eight layers, four classes, with random weights and known preprocessing."""
    return with_preprocessing(build(TINY_SPEC, classes=4, input_shape=(size, size, 3), **arguments))


@cache
def export_tiny_classifier(format):
    """(path, report) of a tiny classifier in one of FORMATS; each format is exported once in a process."""
    require_format(format)
    path = Path(_exports_folder().name, format, EXPORT_NAMES[format])
    path.parent.mkdir()
    return path, export(tiny_classifier(), path)


@cache
def _exports_folder():
    return TemporaryDirectory()


def files_of_export(path, *others):
    """Sorted names of the files that an export to `path` writes, and of other files."""
    companions = [path.with_suffix(suffix).name for suffix in FORMATS[find_format(None, path)].companions]
    return sorted([path.name, *companions, f"{path.name}.report.md", f"{path.name}.report.json", *others])
