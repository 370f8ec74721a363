"""`predict`: image files -> classes, as a list or a stream."""

import numpy as np
import pytest
from support import cifar_network, png_bytes, random_pixels

import keras_resnet
from keras_resnet.prediction import classify


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


@pytest.mark.parametrize("wrap", [str, np.str_, lambda path: [np.str_(path)]])
def test_paths_may_be_strings_of_numpy(wrap, model, image_folder):
    path = str(image_folder / "ants" / "0.png")
    expected = keras_resnet.predict(model, path)[0].classes
    assert classify(model, wrap(path)) == [expected]
    assert [prediction.classes for prediction in keras_resnet.predict(model, wrap(path))] == [expected]


@pytest.mark.parametrize("images", [[], (), np.zeros((0, 32, 32, 3), "uint8")])
def test_no_images_have_no_classes(images, model):
    assert classify(model, images) == keras_resnet.predict(model, images) == []


@pytest.mark.parametrize("images", [None, 1, 1.5, [None], [1.5], [[]], [np.zeros((4, 4))], b"", {None: 1}])
def test_other_values_than_images_are_refused(images, model):
    for function in (classify, keras_resnet.predict):
        with pytest.raises(ValueError, match="Received"):
            function(model, images)


@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "1", [], True, np.float32(1)])
@pytest.mark.parametrize("name", ["top", "batch_size"])
def test_counts_are_positive_integers(name, value, model, image_folder):
    with pytest.raises(ValueError, match=f"Received: {name}="):
        keras_resnet.predict(model, image_folder, **{name: value})
    assert len(keras_resnet.predict(model, image_folder, **{name: np.int64(2)})) == 12


@pytest.mark.parametrize("value", [None, 0, [], {}, b"resnet20", np.zeros(3)])
@pytest.mark.parametrize("name", ["get_spec", "get_recipe", "list_models", "load_model", "load_exported", "create"])
def test_names_and_paths_of_other_types_are_refused(name, value):
    with pytest.raises(ValueError, match="Received"):
        getattr(keras_resnet, name)(value)
