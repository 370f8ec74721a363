"""extract: images from any source -> one vector an image; equal pixels give bit-identical vectors."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from support import CIFAR_PREPROCESSING, cifar_network, png_bytes, random_pixels

from keras_resnet import create, preprocessing
from keras_resnet.data.datasets import Dataset, Split, Stream
from keras_resnet.transfer.extraction import extract
from keras_resnet.transfer.probes import linear_probe, nearest_neighbours

CLASSES = ("ants", "bees", "wasps")
LABELS = np.arange(10) // 4


def test_equal_pixels_give_bit_identical_vectors(image_folder):
    """From an array, folder, list of files, Dataset or Stream, with unreadable files skipped, in partial batches."""
    model, pixels = cifar_network(), random_pixels(10)
    expected = extract(model, pixels, batch_size=4)
    files = [png_bytes(image) for image in pixels]

    def examples(seed):
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices(([*files[:3], b"no image", *files[3:]], [0, 0, 0, 7, *LABELS[3:]]))

    sources = {
        "folder": image_folder,
        "files": sorted(image_folder.rglob("*.png")),
        "split": Split(pixels, LABELS),
        "dataset": Dataset("x", None, Split(np.array(files, object), LABELS), CLASSES, CIFAR_PREPROCESSING),
        "stream": Stream(examples, 11),
    }
    for name, source in sources.items():
        found = extract(model, source, batch_size=4, skip_bad=True)
        np.testing.assert_array_equal(found.vectors, expected.vectors, err_msg=name)
        assert found.labels.tolist() == ([-1] * 10 if name == "files" else LABELS.tolist())
    for start in (0, 3):
        alone = extract(model, pixels[start : start + 2], batch_size=4).vectors
        np.testing.assert_array_equal(alone, expected.vectors[start : start + 2])
    assert expected.names == tuple(map(str, range(10)))
    kernel, bias = model.get_layer("predictions").get_weights()
    scores = np.exp(expected.vectors @ kernel + bias)
    probabilities = model.predict(CIFAR_PREPROCESSING(pixels), verbose=0)
    np.testing.assert_allclose(scores / scores.sum(axis=1, keepdims=True), probabilities, atol=1e-5)


def test_the_model_always_receives_full_batches_in_order(image_folder):
    """The model returns the position of each image in its batch, and the batch size."""
    inputs = keras.Input((32, 32, 3))
    ones = keras.ops.ones_like(keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(1, 1)(inputs)))
    size = keras.ops.sum(ones, axis=0, keepdims=True) * ones
    model = keras.Model(inputs, keras.ops.concatenate([keras.ops.cumsum(ones, axis=0), size], axis=1))
    model.info = {"preprocessing": CIFAR_PREPROCESSING.to_config()}
    for source, positions in (
        (random_pixels(10), [1, 2, 3, 4] * 2 + [1, 2]),
        (image_folder, [1, 2, 3, 4, 2, 3, 4, 1, 2, 3]),
    ):
        found = extract(model, source, batch_size=4, skip_bad=True).vectors
        np.testing.assert_array_equal(found, [[position, 4] for position in positions])


@pytest.mark.portable
def test_names_and_classes_of_images_in_a_folder(image_folder, tmp_path):
    model = cifar_network()
    with pytest.raises(ValueError, match=r"(?s)--skip-bad.*ants/3x.png: Expected an image"):
        extract(model, image_folder, batch_size=4)
    found = extract(model, image_folder, batch_size=4, skip_bad=True)
    assert found.names[:5] == ("ants/0.png", "ants/1.png", "ants/2.png", "ants/3.png", "bees/4.png")
    assert found.class_names == CLASSES and [text.split(":")[0] for text in found.skipped] == [
        "ants/3x.png",
        "wasps/cut.png",
    ]
    flat = extract(model, image_folder / "bees", batch_size=4)
    assert flat.labels.tolist() == [-1] * 4 and flat.class_names == ()
    (tmp_path / "parts").mkdir()
    image_folder.rename(tmp_path / "parts" / "train")
    parts = extract(model, tmp_path / "parts", batch_size=4, skip_bad=True)
    assert parts.class_names == CLASSES and parts.names[0] == "train/ants/0.png"


def test_invalid_sources(tmp_path):
    model = cifar_network()
    (tmp_path / "bad.png").write_bytes(b"")
    for source, message in ((tmp_path, "none of 1"), (random_pixels(0), "none of 0"), ([], "none of 0")):
        with pytest.raises(ValueError, match=message):
            extract(model, source, skip_bad=True)
    with pytest.raises(FileNotFoundError):
        extract(model, tmp_path / "nowhere")
    for source in (None, 5, [random_pixels(1)[0]], [None]):
        with pytest.raises(ValueError, match="`images` should be a folder.*Received: images="):
            extract(model, source)
    wrong = {"pooling": None, "endpoint": "stage9", "batch_size": 0}
    for name, given in [*wrong.items(), ("endpoint", ("stem", "stage1")), ("batch_size", 1.5), ("model", None)]:
        with pytest.raises(ValueError, match=rf"should be.*Received: {name}s?="):
            extract(**{"model": model, "images": random_pixels(1), name: given})


def test_features_that_are_not_finite_are_an_error():
    model = cifar_network()
    beta = model.get_layer("conv4_block1_2_bn").beta
    beta.assign(np.full(beta.shape, np.inf))
    with pytest.raises(FloatingPointError, match="NaN or Inf"):
        extract(model, random_pixels(1), batch_size=1)


@pytest.fixture(scope="module")
def cifar10(test_data):
    """(5,000 training images, 2,000 test images): Datasets of tensorflow-datasets."""
    if not (test_data / "tfds" / "cifar10").is_dir():
        pytest.skip("KERAS_RESNET_TEST_DATA has no tfds/cifar10")
    from keras_resnet.data.sources import load_test

    parts = ("train[:5000]", "test[:2000]")
    return [load_test("cifar10", part, test_data / "tfds", download=False) for part in parts]


@pytest.fixture
def resnet20(test_data):
    return create("resnet20", weights=test_data / "cifar10_weights" / "resnet20-12fca82f.th")


@pytest.mark.slow
def test_a_linear_probe_is_as_accurate_as_the_network(cifar10, resnet20):
    """Weights of github.com/akamaster/pytorch_resnet_cifar10, with 8.27% error on all 10,000 test images."""
    train, test = (extract(resnet20, part) for part in cifar10)
    scores = resnet20.predict(preprocessing(resnet20)(cifar10[1].test.images), batch_size=100, verbose=0)
    accuracy = (scores.argmax(axis=1) == test.labels).mean()
    arguments = train.vectors, train.labels, test.vectors, test.labels
    assert 0.90 < accuracy < 0.93
    assert linear_probe(*arguments).top1_accuracy == pytest.approx(accuracy, abs=0.01)
    assert nearest_neighbours(*arguments).top1_accuracy == pytest.approx(accuracy, abs=0.02)


def test_real_images_from_folder_tfds_and_array_give_the_same_vectors(cifar10, resnet20, tmp_path):
    some = replace(cifar10[1], test=cifar10[1].test[:60])
    order = np.argsort(some.test.labels, kind="stable")
    for index in order:
        path = tmp_path / some.class_names[some.test.labels[index]] / f"{index:05d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png_bytes(some.test.images[index]))
    by_tfds, by_folder, by_array = (extract(resnet20, x, batch_size=32) for x in (some, tmp_path, some.test.images))
    np.testing.assert_array_equal(by_tfds.vectors, by_array.vectors)
    np.testing.assert_array_equal(by_tfds.vectors[order], by_folder.vectors)
    np.testing.assert_array_equal(by_tfds.labels[order], by_folder.labels)
    assert by_folder.class_names == by_tfds.class_names
