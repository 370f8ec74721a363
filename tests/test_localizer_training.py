"""Training of localizers: their losses, runs of `train`, and frozen classifiers."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from drawn_objects import TINY_LOCALIZER, write_rectangles
from support import SMALL, random_images, randomize_weights, run_command

from keras_resnet import (
    LocalizerSpec,
    Preprocessing,
    build,
    create,
    evaluate,
    get_recipe,
    load_dataset,
    load_model,
    save_weights,
    train,
)
from keras_resnet.architecture.localizer import relative_anchors
from keras_resnet.training.localizer_setup import localizer_for_images
from keras_resnet.training.localizer_training import localizer_training_model
from keras_resnet.training.model_setup import Start


def overlap(box, other):
    """Intersection over union of two boxes."""
    width, height = (max(0, min(box[i + 2], other[i + 2]) - max(box[i], other[i])) for i in (0, 1))
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, other)]
    return width * height / (sum(areas) - width * height)


def smooth_l1(errors, beta=1 / 9):
    errors = np.abs(errors)
    return np.where(errors < beta, errors**2 / (2 * beta), errors - beta / 2).sum()


def losses_of(localizer, images, targets):
    """Losses of images whose classes are in the fifth column of the targets."""
    labels = np.eye(localizer.spec.classes, dtype="float32")[targets[:, 4].astype(int)]
    inputs = {"images": images, "labels": labels, "targets": targets.astype("float32")}
    return localizer_training_model(localizer).predict(inputs, verbose=0)


def test_the_dense_loss_is_that_of_the_paper():
    """Anchor by anchor: binary cross-entropy of positive and negative ones in equal parts, offsets of positive ones."""
    spec = LocalizerSpec(SMALL, "dense", box_width=12, anchor_sizes=(8, 16), classes=3)
    localizer, images = randomize_weights(build(spec, input_shape=(24, 32, 3))), random_images(3, 24, 32, 3)
    outputs = [localizer.get_layer(name).output for name in ("box_scores", "box_deltas")]
    scores, deltas = keras.Model(localizer.inputs, outputs).predict(images, verbose=0)
    predictions = np.concatenate([scores.reshape(3, -1, 3, 1), deltas.reshape(3, -1, 3, 4)], axis=-1).astype(float)
    targets = np.array(
        [[0.11, 0.23, 0.62, 0.71, 2, 1], [0.512, 0.107, 0.893, 0.931, 0, 1], [0, 0, 0, 0, 1, 0]], "float32"
    )
    anchors = np.array(relative_anchors((8, 16), 2, (12, 16), (24, 32))).astype(float)
    expected = []
    for values, (*box, label, _) in zip(predictions[:2], targets[:2].tolist(), strict=True):
        overlaps = np.array([overlap(box, anchor) for anchor in anchors])
        scores, offsets = {True: [], False: []}, []
        for anchor, value, found in zip(anchors, values, overlaps, strict=True):
            positive = found >= 0.7 or found > overlaps.max() - 1e-5  # two anchors may be around the whole box
            if positive or found < 0.3:
                true = np.eye(3)[int(label)] * positive
                scores[positive].append(np.sum(np.log1p(np.exp(value[:, 0])) - true * value[:, 0]))
            if positive:
                sides, its_sides = np.subtract(box[2:], box[:2]), anchor[2:] - anchor[:2]
                shift = (np.add(box[:2], box[2:]) - anchor[:2] - anchor[2:]) / 2 / its_sides
                offset = np.concatenate([shift, np.log(sides / its_sides)])
                offsets.append(smooth_l1(value[int(label), 1:] - offset))
        expected.append((np.mean(scores[True]) + np.mean(scores[False])) / 2 + np.mean(offsets))
    found = losses_of(localizer, images, targets)["boxes"]
    np.testing.assert_allclose(found, [*expected, 0], rtol=1e-4)


@pytest.mark.parametrize("boxes", ["shared", "per_class"])
def test_only_the_box_of_the_true_class_is_trained(boxes):
    spec = LocalizerSpec(SMALL, boxes, box_width=12, classes=3)
    localizer, images = randomize_weights(build(spec, input_shape=(24, 24, 3))), random_images(2, 24, 24, 3)
    outputs = localizer.predict(images, verbose=0)
    found = outputs["boxes"]
    targets = np.array([[0.1, 0.2, 0.6, 0.7, 2, 1], [0.5, 0.1, 0.9, 0.95, 0, 1]], "float32")
    rows = [0, 0] if boxes == "shared" else [2, 0]
    expected = [5 * smooth_l1(found[i, row] - targets[i, :4]) for i, row in enumerate(rows)]
    losses = losses_of(localizer, images, targets)
    np.testing.assert_allclose(losses["boxes"], expected, rtol=1e-5)
    entropy = -np.log(outputs["probabilities"][[0, 1], [2, 0]])
    np.testing.assert_allclose(losses["classification"], entropy, rtol=1e-5)
    assert not losses_of(localizer, images, targets * [1, 1, 1, 1, 1, 0])["boxes"].any()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_dataset(write_rectangles(tmp_path_factory.mktemp("data")))


def localizer_spec(boxes):
    return LocalizerSpec(SMALL, boxes, box_width=32, anchor_sizes=(12, 20))


SETTINGS = {"recipe": "localization_finetune", "size": 32, "test_size": 32, "test_resize": 32, "batch_size": 16}
LONG = {"iterations": 90, "learning_rate": 0.03, "crop": "none", "clip_norm": 5.0, "validation_freq": 30}


@pytest.mark.parametrize(
    "boxes", ["shared", *(pytest.param(it, marks=pytest.mark.slow) for it in ("per_class", "dense"))]
)
def test_localizers_learn_boxes(tmp_path, data, boxes):
    run = train(localizer_spec(boxes), data, workdir=tmp_path / "run", **SETTINGS | LONG)
    result = evaluate(run.model, data)
    assert run.report["top1_localization_accuracy"] == pytest.approx(1 - result.errors["top1_localization_error"])
    assert result.errors["top1_localization_error"] < 0.7
    assert result.to_json()["baselines"]["mean_box"]["true_class_error"] > 0.8
    loaded = load_model(tmp_path / "run" / "model.keras")
    assert loaded.info["class_names"] == ["high", "wide"] and loaded.spec.boxes == boxes
    assert evaluate(loaded, data).errors == result.errors
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"history.csv", "curves.png", "report.json", "detections.jpg"} <= names


def test_a_frozen_classifier_stays_as_it_is(tmp_path, data):
    classifier = randomize_weights(build(SMALL, classes=2, input_shape=(32, 32, 3)))
    classifier.info = {"class_names": ["high", "wide"], "preprocessing": Preprocessing("torch", 32, None).to_config()}
    classifier.save(tmp_path / "classifier.keras")
    run = train(
        localizer_spec("shared"),
        data,
        backbone_weights=tmp_path / "classifier.keras",
        trainable_stages=0,
        **SETTINGS | {"iterations": 4},
    )
    for layer in (layer for layer in classifier.layers if layer.weights):
        for before, after in zip(layer.get_weights(), run.model.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(before, after)
    expected = evaluate(classifier, data).top1_error
    assert evaluate(run.model, data).errors["top1_error"] == expected


@pytest.mark.slow
def test_a_resumed_run_is_the_same(tmp_path, data):
    settings = SETTINGS | {"iterations": 5, "flip": True, "workdir": tmp_path / "run"}
    whole = train(localizer_spec("per_class"), data, **settings | {"workdir": None}, deterministic=True)

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(localizer_spec("per_class"), data, **settings, deterministic=True, checkpoint_every=1, callbacks=[Stop()])
    resumed = train(localizer_spec("per_class"), data, **settings, deterministic=True, resume=True)
    for first, second in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_command_trains_localizers_further(tmp_path):
    write_rectangles(tmp_path / "data", 16)
    localizer = build(replace(TINY_LOCALIZER, classes=2), input_shape=(32, 32, 3))
    localizer.save(tmp_path / "start.keras")
    words = ["--recipe", "localization_finetune", "--model", tmp_path / "start.keras", "--dataset", tmp_path / "data"]
    words += ["--size", 32, "--set", "iterations=1", "--set", "batch_size=8", "--workdir", tmp_path / "run"]
    result = run_command("train", *words)
    assert "top-1 localization accuracy" in result.output, result.output


def test_a_localizer_by_its_name_starts_from_its_weights(tmp_path, data):
    """A classifier of other names comes along as `backbone_weights` alone."""
    recipe, path = get_recipe("localization_finetune", test_size=32, test_resize=32), tmp_path / "model.safetensors"
    model = create("localizer_resnet18", classes=2, input_shape=(32, 32, 3), box_width=8)
    model.info = {"class_names": ["high", "wide"], "preprocessing": Preprocessing("torch", 32, None).to_config()}
    save_weights(model, path)
    found, _ = localizer_for_images(Start("localizer_resnet18", path), data, recipe)
    for ours, theirs in zip(found.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    model.info |= {"class_names": ["wide", "high"]}
    with pytest.raises(ValueError, match="a localizer of the data set's 2 classes, not of 2 or of others"):
        localizer_for_images(Start(model), data, recipe)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"recipe": "quickstart", "size": None, "test_size": None, "test_resize": None}, "localization_finetune"),
        ({"weights": "imagenet"}, "`weights` should be left out, unless the model is the name"),
        ({"model": "localizer_resnet18", "weights": "imagenet"}, "no published weights"),
        ({"train_size": 40}, "`train_size`"),
        ({"mixup": 0.2}, "`mixup`"),
        ({"dataset": "digits"}, "one class and boxes"),
    ],
)
def test_what_cannot_be_trained(data, arguments, message):
    given = {"model": localizer_spec("shared"), "dataset": data} | SETTINGS | arguments
    with pytest.raises(ValueError, match=message):
        train(**{name: value for name, value in given.items() if value is not None}, iterations=2)
