"""Class names, compared with keras.applications and with datasets; decode_predictions, compared with Keras."""

import hashlib
import json

import keras
import numpy as np
import pytest
from keras.src.applications import imagenet_utils

from keras_resnet.data.labels import CIFAR10_CLASSES, decode_predictions, imagenet_classes, match_class_indices


def class_index():
    """Our classes in the form of keras.applications' imagenet_class_index.json."""
    return {str(index): list(row) for index, row in enumerate(imagenet_classes())}


def test_imagenet_classes_are_byte_for_byte_those_of_keras_applications():
    """The hash is that of the download in keras/src/applications/imagenet_utils.py."""
    digest = hashlib.md5(json.dumps(class_index()).encode()).hexdigest()
    assert digest == "c2c37ea517e94d9795004a39431a14cb"


def test_imagenet_ids_are_unique_and_sorted_but_two_names_occur_twice():
    ids, names = zip(*imagenet_classes(), strict=True)
    assert len(ids) == 1000 and list(ids) == sorted(set(ids))
    assert {name for name in names if names.count(name) > 1} == {"crane", "maillot"}


@pytest.mark.parametrize("top", [1, 5, 1000])
def test_decoding_equals_that_of_keras_applications(monkeypatch, top):
    monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", class_index())
    predictions = np.random.default_rng(0).dirichlet(np.ones(1000), 3).astype("float32")
    expected = imagenet_utils.decode_predictions(predictions, top=top)
    assert decode_predictions(predictions, top=top) == expected
    found = decode_predictions(keras.ops.convert_to_tensor(predictions), top=top)
    assert found == expected and type(found[0][0][2]) is float  # which JSON can express


def test_decoding_with_given_classes():
    predictions = np.array([[0.1, 0.6, 0.3], [0.4, 0.2, 0.4]])
    expected = [
        [("dog", "dog", 0.6), ("ant", "ant", 0.3)],
        [("cat", "cat", 0.4), ("ant", "ant", 0.4)],  # of equal scores, the lowest index first
    ]
    assert decode_predictions(predictions, top=2, classes=["cat", "dog", "ant"]) == expected
    assert [len(row) for row in decode_predictions(predictions, top=9, classes=["cat", "dog", "ant"])] == [3, 3]
    assert decode_predictions(predictions[:0], classes=["cat", "dog", "ant"]) == []


def test_half_precision_negative_and_integer_scores():
    logits = keras.ops.cast(np.array([[-3.0, -1.0, -2.0]]), "bfloat16")
    assert [name for name, *_ in decode_predictions(logits, classes="abc")[0]] == ["b", "c", "a"]
    counts = np.array([[3, 0, 200]], "uint8")
    assert [name for name, *_ in decode_predictions(counts, classes="abc")[0]] == ["c", "a", "b"]


def test_invalid_predictions_raise():
    with pytest.raises(ValueError, match=r"\(samples, 1000\).*`classes`.*Received: predictions of shape \(2, 10\)"):
        decode_predictions(np.zeros((2, 10)))
    with pytest.raises(ValueError, match=r"\(samples, 3\).*Received: predictions of shape \(2, 10\)"):
        decode_predictions(np.zeros((2, 10)), classes=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"Received: predictions of shape \(1000,\)"):
        decode_predictions(np.zeros(1000))
    with pytest.raises(ValueError, match=r"Received: top=0"):
        decode_predictions(np.zeros((2, 1000)), top=0)


def test_class_names_equal_those_of_datasets(test_data):
    cifar = test_data / "tfds" / "cifar10" / "3.0.2" / "label.labels.txt"
    assert cifar.read_text().split() == list(CIFAR10_CLASSES)
    photographs = {path.stem for path in (test_data / "imagenet_sample").iterdir()}
    assert len(photographs) == 50
    assert photographs <= {f"{wnid}_{name}" for wnid, name in imagenet_classes()}


def test_class_names_that_are_huge_numbers_make_no_table():
    names = ["0", "999999999999"]
    with pytest.raises(ValueError, match="class_names"):
        match_class_indices(None, tuple(zip(names, names, strict=True)))
