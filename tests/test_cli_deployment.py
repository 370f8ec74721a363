"""`keras-resnet export`, and `predict` with an exported network."""

import json

import numpy as np
import pytest
from PIL import Image
from support import tiny_classifier

import keras_resnet

pytest.importorskip("openvino", reason="OpenVINO is not installed")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of photographs of several sizes: scikit-learn's two, and parts of them."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("images")
    for number, photograph in enumerate(load_sample_images().images):
        Image.fromarray(photograph).save(folder / f"{number}.jpg")
        Image.fromarray(photograph[50:150, 100:400]).save(folder / f"{number}_part.png")
    return folder


def test_export_writes_a_report_and_predict_gives_the_same_classes(ended, images, tmp_path):
    path = tmp_path / "resnet20.xml"
    words = ("export", "resnet20", path, "--weights", "cifar10", "--no-measure-speed", "--json", "--images", images)
    status, answer, _ = ended(*words)
    report = json.loads(answer)
    assert (status, report["format"], report["precision"], report["num_images"]) == (0, "openvino", "float32", 4)
    assert report["verified"] and report["top1_agreement"] == 1 and report["speed"] == []
    assert json.loads((tmp_path / "resnet20.xml.report.json").read_text()) == report
    assert "resnet20 with the weights cifar10 as OpenVINO" in (tmp_path / "resnet20.xml.report.md").read_text()
    tables = [
        json.loads(ended("predict", images, "--json", *words)[1])
        for words in (("--model", path), ("--model", "resnet20", "--weights", "cifar10"))
    ]
    for ours, keras in zip(*tables, strict=True):
        assert ours["path"] == keras["path"]
        assert [row["name"] for row in ours["classes"]] == [row["name"] for row in keras["classes"]]
        np.testing.assert_allclose(*([row["probability"] for row in t["classes"]] for t in (ours, keras)), atol=1e-5)


def test_int8_is_calibrated_on_a_folder(ended, images, tmp_path):
    tiny_classifier(name="tiny").save(tmp_path / "tiny.keras")
    words = ("export", tmp_path / "tiny.keras", tmp_path / "tiny.xml", "--precision", "int8", "--no-measure-speed")
    status, answer, said = ended(*words, "--json", "--calibration", images, "--images", images, "--mode", "cifar")
    assert status == 0 and "mode='cifar' is ignored: the weights of tiny define 'torch'" in said, said
    assert json.loads(answer)["precision"] == "int8"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("resnet20", "net.onyx"), ".onnx"),
        (("resnet20", "net.onnx", "--format", "onyx"), "onnx"),
        (("resnet20", "net.onnx", "--precision", "bfloat16"), "saved_model, openvino"),
        (("resnet20", "net.onnx", "--precision", "int8"), "`calibration`"),
        (("resnet20", "net.xml", "--precision", "int8", "--calibration", "empty"), "images"),
        (("resnet20", "taken.onnx"), "overwrite"),
        (("resnet20", "nowhere/net.onnx"), "folder"),
        (("missing.keras", "net.onnx"), "missing.keras"),
    ],
)
def test_invalid_input_is_one_message_and_nothing_is_written(ended, words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.onnx").write_text("mine")
    (tmp_path / "empty").mkdir()
    weights = ("--weights", "cifar10") if words[0] == "resnet20" else ()
    status, _, said = ended("export", *words, *weights)
    assert status == 1 and said.startswith("error:") and expected in said and "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "taken.onnx"]
    assert (tmp_path / "taken.onnx").read_text() == "mine"


def test_a_network_without_preprocessing_needs_mode_or_raw(ended, tmp_path):
    network = keras_resnet.create("resnet20", depths=(1, 1, 1), classes=3)
    network.save(tmp_path / "net.keras")
    status, _, said = ended("export", tmp_path / "net.keras", tmp_path / "net.xml")
    assert status == 1 and "preprocess" in said
    words = ("export", tmp_path / "net.keras", tmp_path / "net.xml", "--no-measure-speed", "--json")
    assert json.loads(ended(*words, "--mode", "torch")[1])["verified"]
    assert json.loads(ended(*words, "--raw", "--overwrite")[1])["raw"]


@pytest.mark.parametrize("words", [("--weights", "cifar10"), ()])
def test_predict_rejects_a_damaged_export_and_weights_for_it(ended, words, images, tmp_path):
    path = tmp_path / "net.xml"
    path.write_text("<net/>")
    status, _, said = ended("predict", images, "--model", path, *words)
    assert status == 1 and said.startswith("error:") and (("--weights" in said) if words else ("intact" in said))


def test_predict_with_an_empty_name_of_weights_is_refused(ended, images):
    status, _, said = ended("predict", images, "--model", "resnet20", "--weights", "")
    assert status == 1 and "Received: weights=''" in said


def test_train_with_an_empty_name_of_a_network_is_refused(ended):
    status, _, said = ended("train", "--model", "")
    assert status == 1 and said.startswith("error:") and "''" in said
