"""Metrics of an evaluation against scikit-learn, files of predictions, protocols in predict, numbers as classes."""

import csv
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, classification_report, roc_auc_score
from support import CIFAR_PREPROCESSING, cifar_network, digits_network, png_bytes, random_pixels, run_command

from keras_resnet import create, evaluate, export, load_exported, predict
from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.sources import load_test
from keras_resnet.evaluation import batch_probabilities
from keras_resnet.evaluation_results import Evaluation, write_predictions
from keras_resnet.prediction import classify


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of twelve images of different sizes in class folders."""
    root = tmp_path_factory.mktemp("photographs")
    for index, image in enumerate(random_pixels(12)):
        path = root / f"class {index % 3}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png_bytes(image[: 20 + index]))
    return root


def test_metrics_are_those_of_scikit_learn():
    result, dataset = evaluate(digits_network(), "digits"), load_test("digits")
    probabilities = np.concatenate([part for _, part in batch_probabilities([digits_network()], dataset)])
    labels, predicted = dataset.test.labels, probabilities.argmax(axis=1)
    assert 1 < len(set(predicted)) < 10, "a class that is never predicted"
    np.testing.assert_array_equal(result.probabilities, probabilities)
    report = classification_report(labels, predicted, output_dict=True, zero_division=0)
    macro = [report["macro avg"][name] for name in ("precision", "recall", "f1-score")]
    assert [result.metrics[name] for name in ("precision", "recall", "f1")] == pytest.approx(macro)
    assert result.metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert result.metrics["roc_auc"] == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"))
    for index, row in enumerate(result.by_class):
        its_report = report[str(index)]
        values = [row["precision"], row["recall"], row["f1"], row["num_images"]]
        assert values == pytest.approx([its_report[name] for name in ("precision", "recall", "f1-score", "support")])
        assert row["recall"] == pytest.approx(1 - row["top1_error"])
        assert row["roc_auc"] == pytest.approx(roc_auc_score(labels == index, probabilities[:, index]))


def test_undefined_metrics_are_none_without_warnings():
    """Test images of one class of ten, and an evaluation without probabilities."""
    digits = load_test("digits")
    ones = replace(digits, test=digits.test[digits.test.labels == 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate(digits_network(), ones)
        values = json.loads(json.dumps(result.to_json()))
    assert values["roc_auc"] is None and values["by_class"][0]["roc_auc"] is None
    assert values["balanced_accuracy"] == pytest.approx(1 - result.top1_error)
    assert replace(result, probabilities=None).to_json() == result.to_json()


def test_too_many_probabilities_are_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr("keras_resnet.evaluation.MAX_PROBABILITIES", 3599)
    digits_network().save(tmp_path / "model.keras")
    result = evaluate(digits_network(), "digits")
    assert result.probabilities is None and result.metrics["roc_auc"] is None and result.metrics["f1"] > 0
    with pytest.raises(ValueError, match="kept its probabilities"):
        write_predictions(result, tmp_path / "a.csv")
    refused = run_command(
        "evaluate", "--model", tmp_path / "model.keras", "--dataset", "digits", "--predictions", tmp_path / "a.csv"
    )
    assert refused.exit_code == 1 and "--predictions` should be left out" in refused.stderr
    assert not (tmp_path / "a.csv").exists()


def test_predictions_file_has_a_row_for_each_image(photographs, tmp_path):
    model = cifar_network(classes=7)
    model.save(tmp_path / "model.keras")
    path = tmp_path / "predictions.csv"
    done = run_command("evaluate", "--model", tmp_path / "model.keras", "--dataset", photographs, "--predictions", path)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(path.open(newline="")))
    found = predict(model, [row["image"] for row in rows], top=5)
    assert len(rows) == 12
    for row, prediction in zip(rows, found, strict=True):
        assert row["label"] == prediction.path.parent.name
        names = [row["predicted"], *(row[f"predicted_{rank}"] for rank in range(2, 6))]
        assert names == [name for _, name, _ in prediction.classes]
        assert float(row["probability"]) == pytest.approx(prediction.classes[0][2], abs=1e-6)
        assert sum(float(row[f"p(class {index})"]) for index in range(7)) == pytest.approx(1, abs=1e-5)
    failed = run_command(
        "evaluate",
        "--model",
        tmp_path / "model.keras",
        "--dataset",
        photographs,
        "--predictions",
        tmp_path / "no/a.csv",
    )
    assert failed.exit_code == 1 and "The folder of `path` should exist" in failed.stderr


def test_names_of_two_classes_are_told_apart_by_their_ids():
    classes = (("n1", "crane"), ("n2", "crane"), ("n3", "hen"))
    labels = np.array([0, 2])
    result = Evaluation(classes, labels, labels, labels * 0, (), np.eye(3, dtype="float32")[labels], ("a.png", "b.png"))
    assert [row["label"] for row in result.prediction_rows()] == ["crane (n1)", "hen"]


@pytest.mark.parametrize("protocol", ["flip", "ten_crop"])
def test_protocols_of_predict_are_those_of_evaluate(protocol, photographs, tmp_path):
    model = cifar_network(classes=7)
    preprocessing = replace(CIFAR_PREPROCESSING, resize=40)
    model.info["preprocessing"] = preprocessing.to_config()
    expected = evaluate(model, photographs, protocol)
    found = predict(model, photographs, top=7, protocol=protocol, batch_size=25)
    assert [str(prediction.path) for prediction in found] == list(expected.names)
    for prediction, probabilities in zip(found, expected.probabilities, strict=True):
        ours = {name: probability for _, name, probability in prediction.classes}
        np.testing.assert_allclose([ours[f"class {index}"] for index in range(7)], probabilities, atol=1e-6)
    center = classify(model, [prediction.path for prediction in found], top=1)
    assert any(one[0][2] != prediction.classes[0][2] for one, prediction in zip(center, found, strict=True))


def test_uncropped_images_and_exported_networks(photographs, tmp_path):
    """Whole images of several sizes through the convolutional form, which an exported network does not have."""
    from keras_resnet.data.protocols import Protocol

    whole, model = Protocol("whole", flip=True, scales=(32, 40)), cifar_network(classes=7)
    expected = evaluate(model, photographs, whole)
    found = predict(model, photographs, top=1, protocol=whole)
    assert [p.classes[0][1] for p in found] == [f"class {index}" for index in expected.predicted]
    export(model, tmp_path / "network", "saved_model", measure_speed=False)
    exported = load_exported(tmp_path / "network")
    for ours, theirs in zip(*(predict(one, photographs, protocol="flip") for one in (model, exported)), strict=True):
        assert [name for _, name, _ in ours.classes] == [name for _, name, _ in theirs.classes]
        assert ours.classes[0][2] == pytest.approx(theirs.classes[0][2], abs=1e-5)
    with pytest.raises(ValueError, match="`protocol` should crop"):
        predict(exported, photographs, protocol=whole)
    with pytest.raises(ValueError, match="`threshold` should be left out"):
        predict(model, photographs, threshold=0.3)


def test_predict_command_with_a_protocol(photographs, tmp_path):
    model = cifar_network(classes=7)
    model.save(tmp_path / "model.keras")
    said = json.loads(
        run_command("predict", photographs, "--model", tmp_path / "model.keras", "--protocol", "flip", "--json").stdout
    )
    for row, prediction in zip(said, predict(model, photographs, protocol="flip"), strict=True):
        assert [it["name"] for it in row["classes"]] == [name for _, name, _ in prediction.classes]
    unknown = run_command("predict", photographs, "--model", tmp_path / "model.keras", "--protocol", "flop")
    assert unknown.exit_code == 1 and "Nearest: ['flip'" in unknown.stderr


def test_numbers_are_not_taken_for_the_indices_of_named_classes():
    """A CIFAR-10 network on scikit-learn's digits, unless the numbers are said to be indices."""
    digits, cifar10 = load_test("digits"), create("resnet20", weights="cifar10")
    with pytest.raises(ValueError, match=r"not numbers.*--labels.*classes 0, 1, 2, ... for a model with airplane, aut"):
        evaluate(cifar10, digits)
    assert evaluate(cifar10, replace(digits, class_names=None)).top1_error > 0.8


def test_numbers_without_names_are_matched_to_classes_named_by_numbers():
    """A label file with the classes 3, 7 and 12, on which a network was trained: indices 0, 1 and 2."""
    model, test = cifar_network(classes=3), Split(random_pixels(3), np.array([12, 3, 7]))
    model.info["class_names"] = ["3", "7", "12"]
    assert evaluate(model, Dataset("x", None, test, None, CIFAR_PREPROCESSING)).labels.tolist() == [2, 0, 1]
    other = replace(test, labels=np.array([3, 4, 7]))
    with pytest.raises(ValueError, match="names of the model's classes. Received: 4"):
        evaluate(model, Dataset("x", None, other, None, CIFAR_PREPROCESSING))
