"""Verification of exports: metrics recomputed by NumPy, and differences that must be noticed."""

import json
import os
import shutil
from dataclasses import dataclass

import keras
import numpy as np
import pytest
from keras import layers
from support import EXPORT_NAMES, files_of_export, require_format, tiny_classifier

from keras_resnet import create, export, load_exported, preprocessing
from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.sources import image_source
from keras_resnet.deployment import serving
from keras_resnet.deployment.exporting import VerificationError
from keras_resnet.deployment.formats import saved_model
from keras_resnet.deployment.formats.table import FORMATS
from keras_resnet.deployment.images import sample_images
from keras_resnet.deployment.output_comparison import MIN_PROBABILITY
from keras_resnet.deployment.serving import Metadata
from keras_resnet.deployment.verification import compare_outputs, make_report, to_json
from keras_resnet.precision import PRECISIONS

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Keras exports through TensorFlow"
)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
FLOAT32_TOLERANCE = PRECISIONS["float32"].tolerance


@pytest.fixture(scope="module")
def model():
    return create("resnet20", weights="cifar10")


@dataclass
class FixedOutputs:
    """Stands for an ExportedModel: returns the given outputs, batch by batch."""

    outputs: dict
    classes: tuple | None = None

    def __post_init__(self):
        self.metadata, self.num_images = Metadata("net", "onnx", "float32", None, class_names=self.classes), 0

    def __call__(self, inputs):
        self.num_images += len(inputs)
        return {name: array[self.num_images - len(inputs) : self.num_images] for name, array in self.outputs.items()}


def keras_outputs(model):
    return model.predict(preprocessing(model)(sample_images().images), verbose=0)


def compare(model, outputs, images=None, classes=None, prepare=None, batch_size=32):
    source = image_source(sample_images() if images is None else images)
    return compare_outputs(model, FixedOutputs(outputs, classes), prepare or preprocessing(model), source, batch_size)


@pytest.mark.parametrize("batch_size", [5, 32])
def test_metrics_of_classifiers_are_numpys(model, batch_size):
    expected = keras_outputs(model)
    noise = np.random.default_rng(0).normal(0, 2, expected.shape)
    logits = np.log(np.maximum(expected, MIN_PROBABILITY)) + noise
    found = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype("float32")
    result = compare(model, {"probabilities": found}, classes=tuple(model.info["class_names"]), batch_size=batch_size)

    before, after = (np.log(np.maximum(scores, 1e-7)) for scores in (expected, found))
    assert result.num_images == 16
    assert result.max_error == pytest.approx(np.abs(after - before).max(), rel=1e-4)
    assert result.nrmse == pytest.approx(
        np.linalg.norm(after - before) / (before.std(axis=1) ** 2).sum() ** 0.5 / 10**0.5, rel=1e-4
    )
    assert result.top1_agreement == np.mean(expected.argmax(axis=1) == found.argmax(axis=1)) < 1
    best = [[set(row.argsort()[-5:]) for row in scores] for scores in (expected, found)]
    assert result.top5_agreement == np.mean([one == other for one, other in zip(*best, strict=True)]) < 1
    assert result.top1_accuracy is None, "the images' classes are not known"


def test_a_model_agrees_with_itself(model):
    result = compare(model, {"probabilities": keras_outputs(model)}, classes=tuple(model.info["class_names"]))
    assert result.top1_agreement == result.top5_agreement == 1 and result.nrmse < 1e-5


def test_accuracy_matches_classes_by_their_names(model):
    """The data set may have its classes in another order."""
    expected, names = keras_outputs(model), tuple(model.info["class_names"])
    labels = np.roll(expected.argmax(axis=1), 1)
    test = Split(sample_images().images, (9 - labels).astype("int32"))
    data = Dataset("mine", None, test, names[::-1], preprocessing(model))
    result = compare(model, {"probabilities": expected[:, ::-1]}, data, names)
    assert result.top1_accuracy == {
        "keras": np.mean(expected.argmax(axis=1) == labels),
        "exported": np.mean(expected[:, ::-1].argmax(axis=1) == labels),
    }


@pytest.fixture
def body(model):
    """(model without classifier, its Preprocessing)."""
    return create("resnet20", include_top=False, input_shape=(32, 32, 3)), preprocessing(model)


@pytest.mark.parametrize("batch_size", [5, 32])
def test_metrics_of_features_are_numpys(body, batch_size):
    body, prepare = body
    expected = body.predict(prepare(sample_images().images), verbose=0)
    result = compare(body, {"features": expected + 0.5}, prepare=prepare, batch_size=batch_size)
    flat = expected.reshape(16, -1)
    assert result.max_error == pytest.approx(0.5, rel=1e-4)
    assert result.top1_agreement is result.top5_agreement is result.top1_accuracy is None
    assert result.nrmse == pytest.approx(0.5 / (flat - flat.mean(axis=0)).std(), rel=1e-3)


def test_features_of_one_image_and_of_equal_images(body):
    (body, prepare), image = body, sample_images().images[:1]
    expected = body.predict(prepare(image), verbose=0)
    result = compare(body, {"features": expected + 0.5}, image, prepare=prepare)
    assert result.nrmse == pytest.approx(0.5 / expected.std(), rel=1e-3)
    twice = np.concatenate([expected, expected])
    with pytest.warns(UserWarning, match="proves little"):
        result = compare(body, {"features": twice + 0.5}, np.concatenate([image, image]), prepare=prepare)
    assert result.nrmse == pytest.approx(0.5 / (0.1 * np.sqrt((expected**2).mean())), rel=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_report_is_valid_json_with_any_numbers(value):
    text = to_json({"nrmse": value, "checks": {"encoded_files": {"nrmse": value}}, "unfolded": ["a"]})
    assert json.loads(text) == {"nrmse": None, "checks": {"encoded_files": {"nrmse": None}}, "unfolded": ["a"]}
    assert "NaN" not in text and "Infinity" not in text


def test_nan_is_not_verified(model):
    outputs = {"probabilities": np.full((16, 10), np.nan, "float32")}
    result = compare(model, outputs, classes=tuple(model.info["class_names"]))
    report = make_report(Metadata("net", "onnx", "float32", None), result, {}, [], 1, [])
    assert not report["verified"] and report["tolerance"] == FLOAT32_TOLERANCE


@needs_tensorflow
def test_the_report_is_about_the_outputs_of_onnx_runtime(model, tmp_path):
    """Recomputed from its session and Keras's `predict`, without this package in between."""
    require_format("onnx")
    import onnxruntime

    report = export(model, tmp_path / "net.onnx", precision="float16", measure_speed=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    (found,) = session.run(None, {"images": preprocessing(model).pixels(sample_images().images)})
    before, after = (np.log(np.maximum(scores, 1e-7)) for scores in (keras_outputs(model), found))
    assert report["max_error"] == pytest.approx(np.abs(after - before).max(), rel=1e-3) and report["max_error"] > 0
    assert report["top1_agreement"] == np.mean(before.argmax(axis=1) == after.argmax(axis=1))


def change_normalisation(monkeypatch, change):
    """Exported networks normalise changed pixels from now on."""
    original = serving.normalize
    monkeypatch.setattr(serving, "normalize", lambda pixels, *rest: original(change(pixels), *rest))


@needs_tensorflow
@pytest.mark.parametrize("format", FORMATS)
def test_a_wrong_channel_order_is_noticed(format, tmp_path, monkeypatch):
    """The file gets another name; an older file keeps its name."""
    require_format(format)
    model, path = tiny_classifier(), tmp_path / EXPORT_NAMES[format]
    if format == "saved_model":
        path.mkdir()
    (path / "saved_model.pb" if format == "saved_model" else path).write_text("old")
    change_normalisation(monkeypatch, lambda pixels: pixels[..., ::-1])
    for _ in range(2 if format == "saved_model" else 1):  # the second time, files of the first are replaced
        with pytest.raises(VerificationError, match="what its Keras model returns.*net.unverified") as error:
            export(model, path, measure_speed=False, overwrite=True)
    unverified = tmp_path / EXPORT_NAMES[format].replace("net", "net.unverified", 1)
    assert sorted(os.listdir(tmp_path)) == files_of_export(unverified, path.name)
    assert path.is_dir() or path.read_text() == "old"
    report = json.loads((tmp_path / f"{unverified.name}.report.json").read_text())
    assert report == error.value.report and not report["verified"] and report["nrmse"] > FLOAT32_TOLERANCE
    assert "**Not verified**: the differences of its outputs" in (tmp_path / f"{unverified.name}.report.md").read_text()
    assert load_exported(unverified).name == model.name


@needs_tensorflow
def test_a_mistake_hidden_by_low_precision_is_noticed_in_float32(model, tmp_path, monkeypatch):
    change_normalisation(monkeypatch, lambda pixels: pixels * 0.95)  # slightly too dark
    with pytest.raises(VerificationError, match="the same export in float32") as error:
        export(model, tmp_path / "net", precision="bfloat16", measure_speed=False)
    assert error.value.report["nrmse"] < PRECISIONS["bfloat16"].tolerance, "the comparison alone passes"


@needs_tensorflow
def test_encoded_files_decoded_wrongly_are_noticed(tmp_path, monkeypatch):
    original = saved_model._decode
    monkeypatch.setattr(saved_model, "_decode", lambda *arguments: original(*arguments)[..., ::-1])
    with pytest.raises(VerificationError, match="encoded image files") as error:
        export(tiny_classifier(), tmp_path / "net", measure_speed=False)
    assert error.value.report["nrmse"] < FLOAT32_TOLERANCE, "the comparison alone passes"
    assert "saved_model.pb" in os.listdir(tmp_path / "net.unverified")
    page = (tmp_path / "net.unverified.report.md").read_text()
    assert "**Not verified**: the differences of encoded image files" in page


@needs_tensorflow
@pytest.mark.parametrize(
    ("arguments", "count"),
    [({}, 1), pytest.param({}, 2, marks=pytest.mark.slow), ({"include_top": False}, 2)],
)
def test_few_images_that_are_much_alike(arguments, count, tmp_path):
    """Their features hardly vary; a fixed batch size is padded."""
    require_format("onnx")
    image = sample_images().images[:1] // 2
    images = np.concatenate([image, image + 1])[:count]
    options = {"precision": "float16", "batch_size": 3, "images": images}
    report = export(tiny_classifier(**arguments), tmp_path / "net.onnx", **options)
    assert report["checks"]["float32"]["nrmse"] < 1e-4 and report["num_images"] == count


@needs_tensorflow
def test_checks_use_other_images_where_the_first_cannot_be_read(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(2):
        keras.utils.save_img(folder / f"z{index}.png", sample_images().images[index], scale=False)
    (folder / "a0.jpg").write_bytes(b"\xff\xd8\xff" + bytes(100))
    for index in range(1, 22):
        shutil.copy(folder / "a0.jpg", folder / f"a{index}.jpg")
    with pytest.warns(UserWarning, match="Left out 22 images"):
        report = export(tiny_classifier(), tmp_path / "net", images=folder, measure_speed=False)
    assert report["num_images"] == 2 and 0 < report["checks"]["encoded_files"]["nrmse"] < 0.1


@needs_tensorflow
def test_a_model_with_constant_outputs_is_reported(tmp_path):
    model = tiny_classifier()
    classifier = model.layers[-1]
    assert isinstance(classifier, layers.Dense)
    classifier.kernel.assign(np.zeros(classifier.kernel.shape))
    with pytest.warns(UserWarning, match="proves little"):
        export(model, tmp_path / "net", measure_speed=False)
