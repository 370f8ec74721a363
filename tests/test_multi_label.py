"""Multi-label images: training with mixed labels, metrics of scikit-learn, thresholds, prediction and export."""

import json
from xml.etree import ElementTree

import keras
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, classification_report, f1_score, roc_auc_score
from support import png_bytes, run_command, with_preprocessing

import keras_resnet
from keras_resnet import ResNetSpec, evaluate, finetune, from_arrays, predict, train, transfer
from keras_resnet.data.augmentation import augment_batch
from keras_resnet.evaluation_results import MultiLabelEvaluation
from keras_resnet.metrics import best_thresholds
from keras_resnet.models.layers import logits_of
from keras_resnet.training.recipes import get_recipe

SPEC = ResNetSpec("basic", (1, 1, 1), (4, 8, 16), stem="cifar", stem_width=4)
NAMES = ("red", "green", "blue")


def coloured_images(count, seed=0):
    """(N, 8, 8, 3) noise, brighter in the channels of their classes; (N, 3) labels of unequal frequency."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((count, 3)) < [0.5, 0.4, 0.2]).astype("uint8")
    images = generator.integers(0, 60, (count, 8, 8, 3)) + 100 * labels[:, None, None]
    return images.astype("uint8"), labels


DATASET = from_arrays(coloured_images(240), coloured_images(60, seed=1), class_names=NAMES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return train(SPEC, DATASET, workdir=folder / "run", epochs=6, batch_size=32, seed=1, keep="best"), folder / "run"


def test_trained_model_separates_the_classes(run):
    trained, folder = run
    inputs = keras_resnet.preprocessing(trained.model)(DATASET.test.images)
    probabilities = trained.model.predict(inputs, verbose=0)
    assert trained.model.layers[-1].activation is keras.activations.sigmoid
    expected = average_precision_score(DATASET.test.labels, probabilities, average="macro")
    assert trained.report["mean_average_precision"] == pytest.approx(expected) and expected > 0.9
    assert trained.report["recipe"]["loss"] == "binary_cross_entropy"
    best = np.argmax(trained.history["val_pr_auc"])
    assert trained.report["pr_auc"] == trained.history["val_pr_auc"][best]
    right = ((probabilities >= 0.5) == DATASET.test.labels).mean()
    assert trained.report["label_accuracy"] == pytest.approx(right, abs=1e-6)
    reloaded = keras_resnet.load_model(folder / "model.keras")
    assert reloaded.info["multi_label"] is True and len(reloaded.info["thresholds"]) == 3
    np.testing.assert_array_equal(reloaded.predict(inputs, verbose=0), probabilities)


def test_label_smoothing_is_that_of_keras():
    labels = np.array([[1, 0, 1], [0, 0, 0]], "uint8")
    recipe = get_recipe("quickstart", label_smoothing=0.2, crop="none", flip=False)
    _, targets = augment_batch(np.zeros((2, 4, 4, 3), "uint8"), labels, recipe, 3, "torch", {})
    predictions = np.random.default_rng(0).uniform(0.1, 0.9, (2, 3)).astype("float32")
    loss = keras.losses.BinaryCrossentropy(label_smoothing=0.2)(labels, predictions)
    np.testing.assert_allclose(keras.losses.BinaryCrossentropy()(np.array(targets), predictions), loss, rtol=1e-6)


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mixed_targets_are_the_shares_of_both_images(mixing):
    """Images of one colour, whose share of pixels is the target of that colour's class."""
    labels = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]], "uint8")
    images = np.broadcast_to(255 * labels[:, None, None], (4, 16, 16, 3)).astype("uint8")
    recipe = get_recipe("quickstart", crop="none", flip=False, **{mixing: 1.0})
    numbers = {
        "choice": 0.4,
        "mixup": np.float32(0.7),
        "cutmix": np.float32(0.7),
        "centre": np.array([0.5, 0.4], "float32"),
    }
    mixed, targets = augment_batch(images, labels, recipe, 3, "tf", numbers)
    shares = (np.array(mixed) + 1).mean(axis=(1, 2)) / 2
    np.testing.assert_allclose(targets, shares, atol=1e-5)
    assert 0.05 < np.array(targets)[0, 1] < 0.95


def test_metrics_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    labels = (generator.random((80, 4)) < [0.6, 0.3, 0.1, 0]).astype("uint8")
    probabilities = (0.5 * labels + 0.6 * generator.random((80, 4))).clip(0, 1).astype("float32")
    classes = tuple((name, name) for name in "abcd")
    result = MultiLabelEvaluation(classes, labels, probabilities, (0.5, 0.6, 0.7, 0.8))
    predicted = probabilities >= [0.5, 0.6, 0.7, 0.8]
    report = classification_report(labels, predicted, output_dict=True, zero_division=0)
    assert [result.metrics[name] for name in ("precision", "recall", "f1")] == pytest.approx(
        [report["macro avg"][name] for name in ("precision", "recall", "f1-score")]
    )
    assert result.metrics["micro_f1"] == pytest.approx(f1_score(labels, predicted, average="micro"))
    occurring = (labels[:, :3], probabilities[:, :3])
    assert result.mean_average_precision == pytest.approx(average_precision_score(*occurring))
    assert result.metrics["roc_auc"] == pytest.approx(roc_auc_score(*occurring))
    for index, row in enumerate(result.by_class):
        its_report = report[str(index)]
        assert [row["precision"], row["recall"], row["f1"], row["num_images"]] == pytest.approx(
            [its_report["precision"], its_report["recall"], its_report["f1-score"], its_report["support"]]
        )
    assert result.by_class[3]["average_precision"] is None and result.by_class[3]["roc_auc"] is None
    json.dumps(result.to_json())


def test_best_thresholds_have_the_highest_f1_of_all():
    generator = np.random.default_rng(1)
    labels = (generator.random((50, 2)) < 0.3).astype("uint8")
    probabilities = (0.3 * labels + 0.7 * generator.random((50, 2))).astype("float32")
    for column, threshold in enumerate(best_thresholds(labels, probabilities)):
        scores = [f1_score(labels[:, column], probabilities[:, column] >= other) for other in probabilities[:, column]]
        assert f1_score(labels[:, column], probabilities[:, column] >= threshold) >= max(scores)
    assert best_thresholds(np.zeros((5, 1), int), np.ones((5, 1))) == [0.5]


def test_predict_returns_all_classes_above_their_thresholds(run, tmp_path):
    model = run[0].model
    for index in range(20):
        (tmp_path / f"{index:02}.png").write_bytes(png_bytes(DATASET.test.images[index]))
    probabilities = evaluate(model, DATASET).probabilities[:20]
    thresholds = np.array(model.info["thresholds"])
    counts = set()
    for limits, options in ((thresholds, {}), (np.full(3, 0.9), {"threshold": 0.9})):
        for found, expected in zip(predict(model, tmp_path, **options), probabilities, strict=True):
            names = [NAMES[i] for i in np.argsort(-expected) if expected[i] >= limits[i]]
            assert [name for _, name, _ in found.classes] == names
            counts.add(len(names))
    assert counts >= {0, 1, 2}
    with pytest.raises(ValueError, match="`threshold` should be a probability"):
        predict(model, tmp_path, threshold=2)


def test_images_of_one_class_are_a_special_case_and_the_reverse_is_refused(run):
    one = DATASET.test.labels.sum(axis=1) == 1
    images, labels = DATASET.test.images[one], DATASET.test.labels[one]
    single = from_arrays((images, labels), (images, labels), class_names=NAMES)
    assert not single.multi_label
    result = evaluate(run[0].model, single)
    np.testing.assert_array_equal(result.labels, labels)
    np.testing.assert_array_equal(result.probabilities, evaluate(run[0].model, DATASET).probabilities[one])
    softmax = with_preprocessing(keras_resnet.build(SPEC, classes=3, input_shape=(8, 8, 3)))
    with pytest.raises(ValueError, match="one class for each image, as the model predicts one"):
        evaluate(softmax, DATASET)
    with pytest.raises(ValueError, match="all be multi-label, or none"):
        evaluate([softmax, run[0].model], DATASET)


def test_classes_are_matched_by_name(run):
    """A data set with two of the model's classes, in another order."""
    images, labels = DATASET.test.images, DATASET.test.labels[:, [2, 0]]
    result = evaluate(run[0].model, from_arrays((images, labels), (images, labels), class_names=["blue", "red"]))
    np.testing.assert_array_equal(result.labels, DATASET.test.labels * np.array([1, 0, 1], "uint8"))


def test_finetuned_model_forgets_the_old_head(run, tmp_path):
    options = {"stages": 0, "epochs": 1, "batch_size": 32, "head_epochs": 1}
    again = finetune(run[0].model, DATASET, tmp_path / "again", **options)
    assert again.best == "head" and 0 < again.phases["head"]["mean_average_precision"] <= 1
    assert (tmp_path / "again" / "grad_cam.png").stat().st_size > 10_000
    images, labels = coloured_images(64)
    single = from_arrays((images, labels[:, 0].astype(int)), class_names=["other", "red"])
    model = finetune(again.model, single, **options).model
    assert model.layers[-1].activation is keras.activations.softmax and not model.info["multi_label"]
    assert evaluate(model, single).num_images == 13


@pytest.mark.parametrize("format", ["saved_model", "onnx"])
def test_exports_predict_the_same_classes(format, run, tmp_path):
    if format == "onnx":
        pytest.importorskip("tf2onnx")
    path = tmp_path / ("network" if format == "saved_model" else "network.onnx")
    report = keras_resnet.export(run[0].model, path, format, images=DATASET, measure_speed=False)
    assert report["top1_agreement"] == 1 and report["top1_accuracy"] is None
    (tmp_path / "image.png").write_bytes(png_bytes(DATASET.test.images[0]))
    exported = keras_resnet.load_exported(path)
    assert exported.thresholds == tuple(run[0].model.info["thresholds"])
    ours, theirs = (predict(model, tmp_path / "image.png")[0].classes for model in (run[0].model, exported))
    assert [name for _, name, _ in ours] == [name for _, name, _ in theirs]
    np.testing.assert_allclose([p for *_, p in ours], [p for *_, p in theirs], atol=1e-5)


def test_logits_are_those_before_the_sigmoid(run):
    model, images = run[0].model, keras_resnet.preprocessing(run[0].model)(DATASET.test.images[:4])
    logits = keras.Model(model.inputs, logits_of(model)).predict(images, verbose=0)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), model.predict(images, verbose=0), atol=1e-6)


def test_features_keep_the_labels_and_probes_refuse_them(run):
    features = transfer.extract(run[0].model, DATASET)
    np.testing.assert_array_equal(features.labels, DATASET.test.labels)
    with pytest.raises(ValueError, match="labels"):
        transfer.linear_probe(features.vectors, features.labels, features.vectors, features.labels)
    with pytest.raises(ValueError, match="one class for each image"):
        keras_resnet.tune(DATASET, trials=1)


@pytest.fixture(scope="module")
def blood_cells(test_data, tmp_path_factory):
    """(folder of 60 microscope images, CSV file of the cells in them: red, white, platelets), from VOC's XML files."""
    folder, lines = tmp_path_factory.mktemp("cells"), ["file,label"]
    for path in sorted((test_data / "bccd" / "JPEGImages").glob("*.jpg"))[:60]:
        (folder / path.name).symlink_to(path)
        cells = ElementTree.parse(test_data / "bccd" / "Annotations" / f"{path.stem}.xml").iter("object")
        lines += sorted({f"{path.name},{cell.findtext('name')}" for cell in cells})
    labels = tmp_path_factory.mktemp("labels") / "cells.csv"
    labels.write_text("\n".join(lines))
    return folder, labels


@pytest.mark.filterwarnings("ignore:.*several lines for an image")
def test_blood_cells_on_the_command_line(blood_cells, tmp_path):
    folder, labels = blood_cells
    rows = [line.split(",") for line in labels.read_text().splitlines()[1:]]
    data = ["--dataset", folder, "--labels", labels]
    sizes = [word for name in ("train_size", "test_size") for word in ("--set", f"{name}=32")]
    options = [*sizes, "--set", "iterations=2", "--set", "batch_size=16", "--workdir", tmp_path / "run"]
    trained = run_command("train", *data, "--model", "resnet20", *options)
    assert trained.exit_code == 0 and "mean average precision" in trained.output, trained.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["training_images"] + report["test_images"] == 60
    model = tmp_path / "run" / "model.keras"
    evaluated = run_command("evaluate", *data, "--model", model, "--json", "--predictions", tmp_path / "cells.csv")
    found = {row["name"]: row["num_images"] for row in json.loads(evaluated.stdout)["by_class"]}
    assert found == {name: sum(label == name for _, label in rows) for name in ("Platelets", "RBC", "WBC")}
    assert len((tmp_path / "cells.csv").read_text().splitlines()) == 61
    table = run_command("evaluate", *data, "--model", model, "--by-class").output
    assert "mean average precision" in table and "Platelets" in table
    predicted = run_command("predict", folder, "--model", model, "--threshold", "0")
    assert predicted.output.count("RBC") == 60
