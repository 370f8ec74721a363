"""What the report says of two networks, recomputed by NumPy from what they answer."""

import json
from dataclasses import dataclass

import keras
import numpy as np
import pytest

from keras_resnet import create, export, preprocessing
from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.deployment.formats.table import PRECISIONS
from keras_resnet.deployment.images import samples
from keras_resnet.deployment.report import as_json, report
from keras_resnet.deployment.serving import Metadata
from keras_resnet.deployment.verification import LEAST, compare


@pytest.fixture(scope="module")
def network():
    return create("resnet20", weights="cifar10")


@dataclass
class Told:
    """Stands for an exported network: answers what it is told."""

    answers: dict
    classes: tuple | None = None
    raw: bool = False

    def __post_init__(self):
        self.metadata, self.seen = Metadata("net", "onnx", "float32", None, self.raw, class_names=self.classes), 0

    def __call__(self, inputs):
        self.seen += len(inputs)
        return {name: array[self.seen - len(inputs) : self.seen] for name, array in self.answers.items()}


def answers(model):
    return model.predict(preprocessing(model)(samples().images), verbose=0)


@pytest.mark.parametrize("batch_size", [5, 32])
def test_shares_and_differences_are_numpys(network, batch_size):
    expected = answers(network)
    logits = np.log(np.maximum(expected, LEAST)) + np.random.default_rng(0).normal(0, 2, expected.shape)
    found = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype("float32")
    exported = Told({"probabilities": found}, tuple(network.info["class_names"]))
    said = compare(network, exported, preprocessing(network), None, batch_size)

    before, after = (np.log(np.maximum(scores, 1e-7)) for scores in (expected, found))
    assert said.images == exported.seen == 16
    assert said.largest == pytest.approx(np.abs(after - before).max(), rel=1e-4)
    assert said.relative == pytest.approx(
        np.linalg.norm(after - before) / (before.std(axis=1) ** 2).sum() ** 0.5 / 10**0.5, rel=1e-4
    )
    assert said.top1 == np.mean(expected.argmax(axis=1) == found.argmax(axis=1)) < 1
    best = [[set(row.argsort()[-5:]) for row in scores] for scores in (expected, found)]
    assert said.top5 == np.mean([one == other for one, other in zip(*best, strict=True)]) < 1
    assert said.accuracy is None, "the images' classes are not known"


def test_a_network_agrees_with_itself(network):
    exported = Told({"probabilities": answers(network)}, tuple(network.info["class_names"]))
    said = compare(network, exported, preprocessing(network))
    assert said.top1 == said.top5 == 1 and said.relative < 1e-5


def test_right_answers_are_counted_by_the_names_of_the_classes(network):
    """The data set may have its classes in another order."""
    expected, names = answers(network), tuple(network.info["class_names"])
    labels = np.roll(expected.argmax(axis=1), 1)
    order = names[::-1]
    data = Dataset("mine", None, Split(samples().images, (9 - labels).astype("int32")), order, preprocessing(network))
    said = compare(network, Told({"probabilities": expected[:, ::-1]}, names), preprocessing(network), data)
    assert said.accuracy == {
        "keras": np.mean(expected.argmax(axis=1) == labels),
        "exported": np.mean(expected[:, ::-1].argmax(axis=1) == labels),
    }


@pytest.mark.parametrize("batch_size", [5, 32])
def test_of_features_all_numbers_are_compared(batch_size):
    model = create("resnet20", include_top=False, input_shape=(32, 32, 3))
    look = preprocessing(create("resnet20", weights="cifar10"))
    expected = model.predict(look(samples().images), verbose=0)
    said = compare(model, Told({"features": expected + 0.5}), look, None, batch_size)
    flat = expected.reshape(16, -1)
    assert said.largest == pytest.approx(0.5, rel=1e-5) and said.top1 is said.top5 is said.accuracy is None
    assert said.relative == pytest.approx(0.5 / (flat - flat.mean(axis=0)).std(), rel=1e-3)


def test_features_of_one_image_and_of_images_that_are_much_alike():
    model = create("resnet20", include_top=False, input_shape=(32, 32, 3))
    look, one = preprocessing(create("resnet20", weights="cifar10")), samples().images[:1]
    expected = model.predict(look(one), verbose=0)
    said = compare(model, Told({"features": expected + 0.5}), look, one)
    assert said.relative == pytest.approx(0.5 / expected.std(), rel=1e-3)
    twice = np.concatenate([expected, expected])
    with pytest.warns(UserWarning, match="proves little"):
        said = compare(model, Told({"features": twice + 0.5}), look, np.concatenate([one, one]))
    assert said.relative == pytest.approx(0.5 / (0.1 * np.sqrt((expected**2).mean())), rel=1e-3)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_report_is_json_whatever_the_numbers_are(wrong):
    text = as_json({"relative": wrong, "parts": {"encoded_files": {"relative": wrong}}, "unfolded": ["a"]})
    assert json.loads(text) == {"relative": None, "parts": {"encoded_files": {"relative": None}}, "unfolded": ["a"]}
    assert "NaN" not in text and "Infinity" not in text


def test_what_is_no_number_does_not_agree(network):
    broken = np.full((16, 10), np.nan, "float32")
    agreement = compare(
        network, Told({"probabilities": broken}, tuple(network.info["class_names"])), preprocessing(network)
    )
    values = report(Metadata("net", "onnx", "float32", None), agreement, {}, [], 1, [])
    assert not values["agrees"] and values["tolerance"] == PRECISIONS["float32"]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras exports through TensorFlow")
def test_the_report_is_of_what_onnx_runtime_answers(network, tmp_path):
    """From its session and Keras's `predict`, without our code in between."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    values = export(network, tmp_path / "net.onnx", precision="float16", timed=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    (found,) = session.run(None, {"images": preprocessing(network).pixels(samples().images)})
    before, after = (np.log(np.maximum(scores, 1e-7)) for scores in (answers(network), found))
    assert values["largest"] == pytest.approx(np.abs(after - before).max(), rel=1e-3) and values["largest"] > 0
    assert values["top1"] == np.mean(before.argmax(axis=1) == after.argmax(axis=1))
