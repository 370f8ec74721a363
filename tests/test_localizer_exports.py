"""Exports of localizers: the classes and boxes of Keras, in every format, and what notices differences."""

import json

import keras
import numpy as np
import pytest
from support import EXPORT_NAMES, require_format, run_command, small_localizer

from keras_resnet import create, export, load_exported, localize, predict
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.deployment.images import sample_photos
from keras_resnet.deployment.localization_comparison import LocalizationComparison
from keras_resnet.deployment.serving import Metadata

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras exports through TensorFlow"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]
PHOTOS = sample_photos().images
CLASSES = list("abcde")


def trained(boxes):
    """A localizer with names of classes and a preprocessing that crops."""
    model = small_localizer(boxes, (24, 24, 3))
    model.info = {"class_names": CLASSES, "preprocessing": Preprocessing("torch", size=24, resize=28).to_config()}
    return model


@pytest.mark.parametrize(
    ("format", "boxes", "options"),
    [
        ("saved_model", "shared", {}),
        ("onnx", "dense", {}),
        ("litert", "per_class", {}),
        pytest.param("onnx", "shared", {"raw": True}, marks=pytest.mark.slow),
        pytest.param("openvino", "dense", {"batch_size": 2}, marks=pytest.mark.slow),
        pytest.param("litert", "dense", {}, marks=pytest.mark.slow),
        pytest.param("saved_model", "dense", {"precision": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param("openvino", "per_class", {"precision": "float16"}, marks=pytest.mark.slow),
    ],
)
def test_classes_and_boxes_are_those_of_keras(format, boxes, options, tmp_path):
    require_format(format)
    model, path = trained(boxes), tmp_path / EXPORT_NAMES[format]
    report = export(model, path, format, measure_speed=False, **options)
    precise = "precision" not in options
    assert report["verified"] and report["task"] == "localization"
    assert report["max_box_error"] < (1e-4 if precise else 0.1) and report["top1_agreement"] == 1
    exported = load_exported(path)
    for found, expected in zip(localize(list(PHOTOS), exported, top=3), localize(list(PHOTOS), model, 3), strict=True):
        assert found.size == expected.size and found.names[0] == expected.names[0]
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.05 if precise else 40)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4 if precise else 0.1)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "network"
    export(trained("per_class"), path, measure_speed=False)
    return path


def test_an_exported_localizer_predicts_classes(path, tmp_path):
    keras.utils.save_img(tmp_path / "photo.png", PHOTOS[0], scale=False)
    (found,), (expected,) = (
        predict(model, tmp_path / "photo.png") for model in (load_exported(path), trained("per_class"))
    )
    assert [name for _, name, _ in found.classes] == [name for _, name, _ in expected.classes]


def test_commands_take_exported_localizers(path, tmp_path):
    keras.utils.save_img(tmp_path / "photo.png", PHOTOS[0], scale=False)
    words = (
        "predict",
        tmp_path / "photo.png",
        "--model",
        path,
        "--localize",
        "--top",
        1,
        "--draw",
        tmp_path / "out",
        "--json",
    )
    (found,) = json.loads(run_command(*words).stdout)
    (expected,) = localize(tmp_path / "photo.png", trained("per_class"))
    np.testing.assert_allclose(found["bbox"][:2], expected.boxes[0, :2], atol=0.05)
    assert (tmp_path / "out" / "photo.png").exists()


def test_what_an_exported_localizer_cannot_do(path, tmp_path):
    with pytest.raises(ValueError, match="`scales` should be .*images of one size"):
        localize(PHOTOS[0], load_exported(path), protocol="localization_dense")
    classifier = create("resnet20", weights="cifar10", depths=(3, 3, 3))
    export(classifier, tmp_path / "classifier", measure_speed=False)
    with pytest.raises(ValueError, match="a localizer, or a Keras classifier"):
        localize(PHOTOS[0], load_exported(tmp_path / "classifier"))


def outputs(generator, count=16):
    return {"probabilities": generator.dirichlet([1] * 5, count), "boxes": generator.random((count, 5, 4))}


@pytest.mark.parametrize("wrong", ["none", "boxes", "probabilities"])
def test_a_difference_of_classes_or_boxes_is_noticed(wrong):
    metadata = Metadata("net", "onnx", "float32", None, class_names=tuple(CLASSES), task="localization")
    source = type("Source", (), {"class_names": None})()
    comparison = LocalizationComparison(trained("per_class"), metadata, source)
    expected, labels = outputs(np.random.default_rng(0)), np.full(16, -1)
    received = expected | ({} if wrong == "none" else {wrong: expected[wrong][:, ::-1]})
    comparison.update_state(expected, received, labels)
    result = comparison.result()
    if wrong == "none":
        assert (result.nrmse, result.max_box_error, result.top1_agreement) == (0, 0, 1)
    else:
        assert result.nrmse > 0.5 and (result.max_box_error > 0.1) == (wrong == "boxes")
    best = expected["probabilities"].argmax(axis=1)
    differences = [abs(received["boxes"][i, k] - expected["boxes"][i, k]).max() for i, k in enumerate(best)]
    assert result.max_box_error == pytest.approx(max(differences))
