"""`predict`: image files -> classes, as a list or a stream."""

import numpy as np
import pytest
from support import cifar_network, png_bytes, random_pixels

import keras_resnet


@pytest.fixture(scope="module")
def model():
    return cifar_network()


def test_predict_returns_a_list_with_the_classes_of_keras(model, image_folder):
    predictions = keras_resnet.predict(model, image_folder, top=10, batch_size=4)
    assert isinstance(predictions, list) and len(predictions) == 12
    readable = [prediction for prediction in predictions if prediction.error is None]
    assert [prediction.path.name for prediction in predictions if prediction.error] == ["3x.png", "cut.png"]
    expected = model.predict(keras_resnet.preprocess_input(random_pixels(10), "torch"), verbose=0)
    for prediction, probabilities in zip(readable, expected, strict=True):
        assert [name for _, name, _ in prediction.classes] == [f"class {i}" for i in np.argsort(-probabilities)]
        np.testing.assert_allclose([p for _, _, p in prediction.classes], np.sort(probabilities)[::-1], rtol=1e-5)


def test_stream_reads_images_as_they_are_requested(model, image_folder):
    predictions = keras_resnet.predict(model, image_folder, batch_size=1, stream=True)
    first = next(predictions)
    assert first.error is None
    late = image_folder / "wasps" / "9.png"
    late.write_bytes(png_bytes(255 - random_pixels(1)[0])[:50])
    assert [prediction.path.name for prediction in predictions if prediction.error] == ["3x.png", "9.png", "cut.png"]


def test_missing_files_and_preprocessing_raise_at_the_call(model, image_folder):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        keras_resnet.predict(model, "nowhere.png", stream=True)
    with pytest.raises(ValueError, match="known preprocessing"):
        keras_resnet.predict(keras_resnet.create("resnet20", depths=(1, 1, 1)), image_folder, stream=True)


def test_something_else_than_a_model_is_refused():
    with pytest.raises(ValueError, match="`model` should be a built .* model. Received: model='resnet18'"):
        keras_resnet.prediction.classify("resnet18", np.zeros((32, 32, 3), "uint8"))
