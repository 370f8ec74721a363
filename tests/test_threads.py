"""Networks that several threads use at the same time: the results are those of one thread."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from support import cifar_network, random_pixels

from keras_resnet import load_exported, optimize_for_inference, predict
from keras_resnet.deployment.formats.table import FORMATS
from keras_resnet.prediction import classify

NUM_CALLS = 300


def assert_same_in_threads(function, values, tolerance):
    """`function` returns the same arrays for the values in six threads, a few hundred times, as in one."""
    with ThreadPoolExecutor(6) as threads:  # first: a model's first calls are made at the same time, too
        found = list(threads.map(lambda number: function(values[number % len(values)]), range(NUM_CALLS)))
    expected = [function(value) for value in values]
    for number, array in enumerate(found):
        np.testing.assert_allclose(array, expected[number % len(values)], rtol=0, atol=tolerance)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras exports through TensorFlow")
@pytest.mark.parametrize("format", FORMATS)
def test_exported_networks(format, tiny_export):
    exported, images = load_exported(tiny_export(format)[0]), np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3))
    batches = [images.astype("uint8")[start : start + 1 + start % 4] for start in range(20)]
    assert_same_in_threads(lambda batch: exported(batch)["probabilities"], batches, 1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras exports through TensorFlow")
def test_encoded_files_of_a_saved_model(tiny_export, image_folder):
    exported = load_exported(tiny_export("saved_model")[0])
    contents = [path.read_bytes() for path in sorted(image_folder.glob("*/?.png"))]
    assert_same_in_threads(lambda content: exported.run_encoded_files([content])["probabilities"], contents, 1e-5)


def scores(classes):
    """The probabilities of classified images by the order of the classes' names."""
    return [[probability for _, _, probability in sorted(image)] for image in classes]


@pytest.mark.portable
@pytest.mark.parametrize("optimized", [False, True])
def test_keras_models(optimized):
    model = cifar_network()
    model = optimize_for_inference(model, "float32") if optimized else model
    batches = [random_pixels(1 + seed % 3, seed) for seed in range(10)]
    assert_same_in_threads(lambda images: scores(classify(model, images, top=10)), batches, 1e-5)


@pytest.mark.portable
def test_predict(image_folder):
    model, paths = cifar_network(), sorted(image_folder.glob("*/?.png"))
    assert_same_in_threads(lambda path: scores([predict(model, path, top=10)[0].classes]), paths, 1e-5)
