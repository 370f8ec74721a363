"""`Preprocessing.layer()` and Preprocessing in graphs, compared with Pillow; warnings about wrong inputs."""

import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from support import CIFAR_PREPROCESSING, cifar_network, random_pixels

import keras_resnet
from keras_resnet import Preprocessing, preprocess_input

PHOTO = np.asarray(load_sample_image("china.jpg"))[:, :500]
ROWS = [
    Preprocessing("pixels", 96, 110),
    Preprocessing("pixels", 96, 110, "bicubic"),
    Preprocessing("pixels", 97, None, "lanczos"),
    Preprocessing("pixels", 111, 111, channels=1),
]


def array_of(tensor):
    return keras.ops.convert_to_numpy(tensor)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_layer_resizes_and_crops_like_pillow(row):
    """Up to rounding: Pillow rounds to whole levels, and clips bicubic overshoots between its two passes."""
    photo = PHOTO if row.channels == 3 else np.asarray(Image.fromarray(PHOTO).convert("L"))[..., None]
    for image in (photo, photo.transpose(1, 0, 2), np.ascontiguousarray(photo[:333, :201])):
        difference = np.abs(array_of(row.layer()(image)) - row(image)[0])
        assert difference.mean() < 0.35
        assert (difference <= 1).mean() > 0.99 and (row.interpolation != "bilinear" or difference.max() <= 1.01)


@pytest.mark.parametrize("mode", ["caffe", "torch", "tf", "cifar"])
def test_layer_normalises_batches_and_single_images_of_integers_and_floats(mode):
    row = Preprocessing(mode, 32, None)
    pixels = random_pixels(2)
    expected = preprocess_input(pixels, mode)
    for images in (pixels, pixels.astype("float32"), pixels.astype("int64"), keras.ops.cast(pixels, "bfloat16")):
        np.testing.assert_allclose(array_of(row.layer()(images)), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(array_of(row.layer()(pixels[0])), expected[0], rtol=1e-5, atol=1e-5)


def test_layer_in_a_model_survives_saving(tmp_path):
    row = Preprocessing("torch", 24, 28)
    inputs = keras.Input((None, None, 3), dtype="uint8")
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(row.layer(name="prepare")(inputs)))
    assert model.get_layer("prepare").output.shape == (None, 24, 24, 3)
    model.save(tmp_path / "model.keras")
    loaded = keras_resnet.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("prepare").preprocessing == row
    images = np.stack([PHOTO[:60, :50], PHOTO[100:160, :50]])
    expected = row(images).mean(axis=(1, 2))
    for of in (model, loaded):
        np.testing.assert_allclose(of.predict(images, verbose=0), expected, atol=0.01)


@pytest.mark.parametrize("kind", ["layer", "Preprocessing"])
@pytest.mark.parametrize("batched", [True, False])
def test_tf_data_maps_images_of_any_size(kind, batched):
    tf = pytest.importorskip("tensorflow")
    row = Preprocessing("torch", 40, 48)
    images = [PHOTO[:70, :50], PHOTO[:50, :91]]
    images = [image[None] for image in images] if batched else images
    signature = tf.TensorSpec((None,) * (3 + batched - 1) + (3,), "uint8")
    dataset = tf.data.Dataset.from_generator(lambda: iter(images), output_signature=signature)
    mapped = dataset.map(row.layer() if kind == "layer" else row)
    assert mapped.element_spec.shape.as_list() == [None] * batched + [40, 40, 3]
    for image, found in zip(images, mapped, strict=True):
        expected = row(image if batched else image[None])
        np.testing.assert_allclose(found.numpy().reshape(expected.shape), expected, atol=0.02)


def test_preprocessing_of_a_keras_tensor_is_a_layer():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, CIFAR_PREPROCESSING(inputs))
    pixels = random_pixels(2)
    np.testing.assert_allclose(model.predict(pixels, verbose=0), CIFAR_PREPROCESSING(pixels), atol=1e-5)


def test_padding_and_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"`resize` should be 40 or more.*Received: resize=30"):
        Preprocessing("torch", 40, 30).layer()
    with pytest.raises(ValueError, match=r"\(B, H, W, 3\).*Received: images of shape \(2, 32, 32, 1\)"):
        CIFAR_PREPROCESSING.layer()(np.zeros((2, 32, 32, 1)))


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_layer_on_other_backends_and_in_tf_data_there(backend, tmp_path):
    pytest.importorskip(backend)
    np.save(tmp_path / "photo.npy", PHOTO[:80, :60])
    code = (
        "import sys, keras, numpy as np, tensorflow as tf\n"
        "from keras_resnet import Preprocessing\n"
        "photo, row = np.load(sys.argv[1]), Preprocessing('torch', 40, 48)\n"
        "found = [keras.ops.convert_to_numpy(row.layer()(photo))]\n"
        "for function in (row.layer(), row):\n"
        "    found.append(next(iter(tf.data.Dataset.from_tensors(photo).map(function))).numpy())\n"
        "for images in found:\n"
        "    np.testing.assert_allclose(images, row(photo)[0], atol=0.02)\n"
    )
    environment = os.environ | {"KERAS_BACKEND": backend}
    subprocess.run([sys.executable, "-c", code, tmp_path / "photo.npy"], check=True, env=environment, timeout=300)


def test_preprocess_input_takes_a_model_or_a_preprocessing():
    model, pixels = cifar_network(), random_pixels(2)
    expected = preprocess_input(pixels, "torch")
    for mode in (model, CIFAR_PREPROCESSING, keras.Sequential([keras.Input((32, 32, 3)), model])):
        np.testing.assert_array_equal(preprocess_input(pixels, mode), expected)
    with pytest.raises(ValueError, match="known preprocessing"):
        preprocess_input(pixels, keras_resnet.create("resnet20", depths=(1, 1, 1)))


WRONG = {
    ("torch", "pixels"): True,
    ("torch", "caffe"): True,
    ("tf", "pixels"): True,
    ("tf", "caffe"): True,
    ("caffe", "tf"): True,
    ("caffe", "torch"): True,
    ("pixels", "tf"): True,
    ("torch", "tf"): False,  # possible
    ("cifar", "torch"): False,
}


@pytest.mark.parametrize("own", ["torch", "tf", "caffe", "pixels", "cifar"])
@pytest.mark.parametrize("given", ["torch", "tf", "caffe", "pixels", "cifar"])
@pytest.mark.parametrize("method", ["predict", "predict_on_batch"])
def test_inputs_that_cannot_be_right_warn_once(own, given, method):
    model = cifar_network()
    model.info["preprocessing"] = Preprocessing(own, 32, None).to_config()
    inputs = preprocess_input(np.ascontiguousarray(PHOTO[None, :32, :32]), given)
    call = getattr(model, method)
    if own != given and (expected := WRONG.get((own, given))) is not None:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call(inputs), call(inputs)
        messages = [str(row.message) for row in found if "should be normalised" in str(row.message)]
        assert len(messages) == expected, messages
        return
    if own == given:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call(inputs)
            call(preprocess_input(np.zeros((1, 32, 32, 3), "uint8"), own))
            call(preprocess_input(np.full((1, 32, 32, 3), 255, "uint8"), own))
            call(np.zeros((1, 32, 32, 3), "float32"))


def test_training_does_not_warn():
    model = cifar_network()
    model.compile("sgd", "sparse_categorical_crossentropy")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*should be normalised")
        model.fit(random_pixels(4).astype("float32"), np.zeros(4), epochs=1, verbose=0)


def test_weights_of_torch_with_the_preprocessing_of_keras_applications(test_data):
    """As measured on 50 photographs in docs/tutorials/replace_keras_applications.md: none is right."""
    model = keras_resnet.create("resnet18", weights=test_data / "imagenet_weights" / "resnet18_pq.safetensors")
    paths = sorted((test_data / "imagenet_sample").glob("*.JPEG"))[:12]
    pixels = keras_resnet.preprocessing(model).pixels(paths).astype("float32")

    def right(inputs):
        predictions = keras_resnet.decode_predictions(model.predict(inputs, verbose=0), top=1)
        return sum(path.name.startswith(best[0][0]) for path, best in zip(paths, predictions, strict=True))

    assert right(preprocess_input(pixels, model)) >= 6
    with pytest.warns(UserWarning, match=r"values from -2.12 to 2.64: use .*preprocessing\(model\)"):
        assert right(keras.applications.resnet.preprocess_input(pixels.copy())) == 0
