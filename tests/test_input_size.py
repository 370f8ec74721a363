"""Networks at another input size than that of their weights: preprocessing, prediction, evaluation, features."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image
from support import cifar_network, run_command

from keras_resnet import (
    build,
    create,
    evaluate,
    feature_extractor,
    from_arrays,
    load_model,
    predict,
    preprocessing,
    save_weights,
    transfer,
)
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.models.transforms import with_input_size

CROPPED = Preprocessing("tf", size=32, resize=40)
SMALL = {"depths": (1, 1, 1), "widths": (8, 8, 16), "stem_width": 8}


@pytest.fixture
def network():
    """A small network for 32 pixels, cropped from 40."""
    model = cifar_network()
    model.info["preprocessing"] = CROPPED.to_config()
    return model


@pytest.fixture
def weights(network, tmp_path):
    """A file of its weights."""
    save_weights(network, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), "uint8")).save(path)
    return path


def expected_probabilities(network, path, size, resize):
    """Of a network with the same weights, built for any size, on an image that Pillow resizes and crops."""
    any_size = build(network.spec, classes=10, input_shape=(None, None, 3))
    any_size.set_weights(network.get_weights())
    image = Image.open(path)
    width, height = (int(resize * side / min(image.size)) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    inputs = np.asarray(pixels, "float32")[None] / 127.5 - 1
    return keras.ops.convert_to_numpy(any_size(inputs))[0]


def predicted_probabilities(prediction):
    return [probability for *_, probability in sorted(prediction.classes)]


@pytest.mark.parametrize("size, resize", [(48, 60), (24, 30)])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_weights_at_another_input_shape(data_format, size, resize, network, weights, photograph, tmp_path):
    """`create`, the file of the model, and a network of any size with `size`, all crop the share of the weights."""
    first = data_format == "channels_first"
    shape, any_shape = ((3, size, size), (3, None, None)) if first else ((size, size, 3), (None, None, 3))
    changes = {**SMALL, "data_format": data_format}
    built = create("resnet20", weights=weights, input_shape=shape, **changes)
    assert preprocessing(built) == replace(CROPPED, size=size, resize=resize)
    assert built.info["preprocessing"] == preprocessing(built).to_config()
    built.save(tmp_path / "model.keras")
    features = create("resnet20", weights=weights, include_top=False, input_shape=any_shape, **changes)
    assert preprocessing(features) == CROPPED
    assert preprocessing(with_input_size(features, size)) == preprocessing(built)
    expected = expected_probabilities(network, photograph, size, resize)
    default = create("resnet20", weights=weights, **changes)
    for model, options in ((built, {}), (load_model(tmp_path / "model.keras"), {}), (default, {"size": size})):
        (prediction,) = predict(model, photograph, top=10, **options)
        np.testing.assert_allclose(predicted_probabilities(prediction), expected, rtol=1e-4, atol=1e-6)
    assert default.input_shape == (None, *((3, 32, 32) if first else (32, 32, 3))), "`size` leaves the model unchanged"


def test_ensembles_of_networks_of_different_sizes(network):
    """Each of its own size, or all of `size`; probabilities are those of one network if the weights are equal."""
    images = np.random.default_rng(1).integers(0, 256, (12, 60, 60, 3), "uint8")
    dataset = from_arrays((images, np.arange(12) % 10), (images, np.arange(12) % 10))
    larger = with_input_size(network, 48)
    mixed = evaluate([network, larger], dataset)
    alone = [evaluate(model, dataset) for model in (network, larger)]
    assert (alone[0].ranks != alone[1].ranks).any() and (mixed.ranks != alone[0].ranks).any()
    for models in (network, [network, larger]):
        np.testing.assert_array_equal(evaluate(models, dataset, size=48).ranks, alone[1].ranks)


def test_features_at_another_size(network, photograph, tmp_path):
    extractor = feature_extractor(network, endpoints="stage3", pooling="avg", input_shape=(48, 48, 3))
    assert preprocessing(extractor) == replace(CROPPED, size=48, resize=60)
    inputs = preprocessing(extractor)(photograph)
    expected = keras.ops.convert_to_numpy(extractor(inputs)["stage3"])
    found = transfer.extract(network, [photograph], "stage3", batch_size=1, size=48)
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-5, atol=1e-6)
    folder = tmp_path / "folder"
    folder.mkdir()
    photograph.rename(folder / photograph.name)
    written = transfer.write_features(network, folder, tmp_path / "f.npz", "stage3", batch_size=1, size=48)
    assert written["preprocessing"]["size"] == 48
    np.testing.assert_array_equal(transfer.read_features(tmp_path / "f.npz").vectors, found.vectors)


def test_sizes_that_a_model_cannot_have(network):
    with pytest.raises(ValueError, match="`size` should be a number of pixels, at least 8 .*Received: size=7"):
        predict(network, "image.png", size=7)
    with pytest.raises(ValueError, match="`size` should be a number of pixels"):
        evaluate(network, "digits", size=32.5)
    with pytest.raises(ValueError, match="`size` should be None for an exported network"):
        predict(object(), "image.png", size=32)
    flat = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="`size` should be one that fits the layers of sequential"):
        with_input_size(flat, 16)
    assert with_input_size(network, None) is with_input_size(network, 32) is network


def test_commands_take_a_size(network, photograph, tmp_path):
    network.save(tmp_path / "model.keras")
    done = run_command("predict", photograph, "--model", tmp_path / "model.keras", "--size", 48, "--json", "--top", 10)
    assert done.exit_code == 0, done.output
    expected = expected_probabilities(network, photograph, 48, 60)
    probabilities = [row["probability"] for row in json.loads(done.stdout)[0]["classes"]]
    np.testing.assert_allclose(probabilities, sorted(expected, reverse=True), rtol=1e-4, atol=1e-6)
    done = run_command("evaluate", "--dataset", "digits", "--model", tmp_path / "model.keras", "--size", 4)
    assert done.exit_code == 1 and "at least 8" in done.stderr


def test_a_published_network_at_160_pixels(test_data):
    """Still right for most photographs, although trained at 224 (0.80 there)."""
    model = create("resnet18", weights=test_data / "imagenet_weights" / "resnet18_pq.safetensors")
    predictions = predict(model, test_data / "imagenet_sample", top=1, size=160)
    right = [prediction.classes[0][0] == prediction.path.name.split("_")[0] for prediction in predictions]
    assert len(right) == 50 and np.mean(right) > 0.6
