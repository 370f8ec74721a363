"""Preprocessing, compared with keras.applications, torchvision, timm and Pillow."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from keras.applications import imagenet_utils
from PIL import Image

from keras_resnet import preprocess_input
from keras_resnet.data.image_files import find_images
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.normalization import MODES, Normalization

REFERENCES = np.load(Path(__file__).parent / "references" / "images.npz")
PIXELS = [name for name in REFERENCES.files if name.startswith(("wide", "tall", "grey"))]
TIMM = [name for name in REFERENCES.files if name.startswith("timm") and not name.endswith("cfg")]
UNNORMALISED = Normalization(divisor=1.0)


def reference_image(name="wide"):
    image = REFERENCES["image"]
    return {"wide": image, "tall": image.transpose(1, 0, 2), "grey": image[..., 0]}[name]


def random_images(rank, data_format="channels_last", dtype="float32"):
    shape = (2, 5, 4, 3) if data_format == "channels_last" else (2, 3, 5, 4)
    images = np.random.default_rng(0).uniform(0, 255, shape[4 - rank :])
    return images.astype(dtype)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("mode", ["caffe", "torch", "tf"])
def test_modes_equal_those_of_keras_applications(mode, rank, data_format):
    images = random_images(rank, data_format)
    expected = imagenet_utils.preprocess_input(images.copy(), data_format=data_format, mode=mode)
    found = preprocess_input(images, mode, data_format)
    assert isinstance(found, np.ndarray) and found.dtype == "float32"
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)

    tensor = keras.ops.convert_to_tensor(images.copy())
    found = preprocess_input(tensor, mode, data_format)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(tensor), images)
    expected = imagenet_utils.preprocess_input(tensor, data_format=data_format, mode=mode)  # in place on torch
    assert keras.ops.is_tensor(found)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(found), keras.ops.convert_to_numpy(expected), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("mode", MODES)
def test_mode_inside_a_model_equals_that_on_arrays(mode):
    images = random_images(4, dtype="uint8")
    inputs = keras.Input((None, None, 3), dtype="uint8")
    model = keras.Model(inputs, preprocess_input(inputs, mode))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model(images)), preprocess_input(images, mode), rtol=1e-6, atol=1e-6
    )


def test_cifar_mode_normalises_its_statistics():
    mean, std = np.array(MODES["cifar"].mean), np.array(MODES["cifar"].std)
    images = np.stack([mean - std, mean + std])[:, None, None] * 255
    np.testing.assert_allclose(preprocess_input(images, "cifar")[:, 0, 0], [[-1] * 3, [1] * 3], atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float32", "float64"])
def test_argument_is_not_modified_and_floats_keep_their_dtype(mode, dtype):
    images = random_images(4, dtype=dtype)
    before = images.copy()
    found = preprocess_input(images, mode)
    np.testing.assert_array_equal(images, before)
    assert not np.shares_memory(images, found)
    assert found.dtype == (dtype if dtype.startswith("float") else "float32")
    exact = preprocess_input(before.astype("float64"), mode)
    np.testing.assert_allclose(found, exact, rtol=1e-3 if dtype == "float16" else 1e-5, atol=1e-5)


def test_bfloat16_tensors_are_computed_in_float32():
    images = keras.ops.cast(random_images(4), "bfloat16")
    found = preprocess_input(images, "caffe")
    exact = preprocess_input(keras.ops.convert_to_numpy(keras.ops.cast(images, "float32")), "caffe")
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    np.testing.assert_allclose(keras.ops.convert_to_numpy(keras.ops.cast(found, "float32")), exact, rtol=2**-8)


def test_unknown_mode_raises_with_the_nearest():
    with pytest.raises(ValueError, match=r"'caffe', 'torch', 'tf', 'cifar'.*Nearest: \['caffe'.*mode='Cafe'"):
        preprocess_input(random_images(4), "Cafe")
    for mode in (None, ["tf"]):
        with pytest.raises(ValueError, match="`mode` should be"):
            preprocess_input(random_images(4), mode)


def test_wrong_channels_rank_and_format_raise():
    grey = np.zeros((2, 5, 4, 1), "uint8")
    for mode in ("caffe", "torch", "cifar"):
        with pytest.raises(ValueError, match=r"3 channels.*Received: images of shape \(2, 5, 4, 1\)"):
            preprocess_input(grey, mode)
    np.testing.assert_array_equal(preprocess_input(grey, "tf"), np.full(grey.shape, -1))
    with pytest.raises(ValueError, match="3 channels on axis -1"):
        preprocess_input(random_images(4, "channels_first"), "torch")
    with pytest.raises(ValueError, match="H, W, C"):
        preprocess_input(grey[0, ..., 0], "tf")
    with pytest.raises(ValueError, match=r"Nearest: \['channels_last'"):
        preprocess_input(grey, "tf", data_format="channel_last")


def test_invalid_normalization_raises():
    for values in ({"mean": (0, 0), "std": (1, 1, 1)}, {"mean": ()}, {"std": (1, 0, 1)}, {"divisor": 0}):
        with pytest.raises(ValueError, match="Received"):
            Normalization(**values)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_need_no_tensorflow(backend):
    """In a separate process, in which TensorFlow cannot be imported."""
    pytest.importorskip(backend)
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "import keras, numpy as np\n"
        "from keras_resnet import Preprocessing, preprocess_input\n"
        "from keras_resnet.normalization import MODES\n"
        "images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), 'uint8')\n"
        "for mode in MODES:\n"
        "    found = preprocess_input(keras.ops.convert_to_tensor(images), mode)\n"
        "    assert keras.ops.is_tensor(found)\n"
        "    np.testing.assert_allclose(keras.ops.convert_to_numpy(found), preprocess_input(images, mode), atol=1e-5)\n"
        "assert Preprocessing('torch', size=3)(images).shape == (2, 3, 3, 3)\n"
    )
    environment = os.environ | {"KERAS_BACKEND": backend}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=300)


@pytest.mark.parametrize("key", PIXELS)
def test_resize_and_crop_equal_torchvision(key):
    name, interpolation, resize, size = key.split("_")
    expected = np.atleast_3d(REFERENCES[key])
    prepare = Preprocessing(
        mode=UNNORMALISED,
        size=int(size),
        resize=None if resize == "none" else int(resize),
        interpolation=interpolation,
        channels=expected.shape[-1],
    )
    np.testing.assert_array_equal(prepare(reference_image(name))[0], expected)


def test_model_input_equals_torchvision():
    found = Preprocessing(mode="torch", resize=40, size=32)(reference_image())
    np.testing.assert_allclose(found[0], REFERENCES["torchvision_40_32"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("key", TIMM)
def test_model_input_equals_timm(key):
    prepare = Preprocessing.from_timm(json.loads(str(REFERENCES[f"{key}_cfg"])))
    np.testing.assert_allclose(prepare(reference_image())[0], REFERENCES[key], rtol=1e-6, atol=1e-6)


def test_unsupported_timm_configs_raise():
    config = json.loads(str(REFERENCES["timm_0_cfg"]))
    for change in ({"crop_mode": "border"}, {"crop_mode": "squash"}, {"input_size": (3, 32, 48)}, {"mean": None}):
        with pytest.raises(ValueError, match="`pretrained_cfg` should"):
            Preprocessing.from_timm(config | change)
    with pytest.raises(ValueError, match=r"Nearest: \['bicubic'"):
        Preprocessing.from_timm(config | {"interpolation": "cubic"})
    assert Preprocessing.from_timm(config).mode == "torch"


@pytest.mark.parametrize(
    "row",
    [
        Preprocessing(mode="caffe"),
        Preprocessing(mode="tf", size=8, resize=None, channels=1),
        Preprocessing(mode=Normalization(mean=(0.1, 0.2, 0.3), std=(0.5,)), interpolation="bicubic"),
    ],
)
def test_config_round_trips_through_json(row):
    config = row.to_config()
    assert json.loads(json.dumps(config)) == config
    assert Preprocessing.from_config(json.loads(json.dumps(config))) == row
    assert row.to_config() == config  # from_config does not modify its argument
    assert hash(row) == hash(replace(row)) and eval(repr(row)) == row
    assert replace(row, size=row.size + 1) != row


def test_invalid_values_raise():
    rows = (
        {"mode": "torhc"},
        {"size": 0},
        {"size": 224.0},
        {"resize": -1},
        {"channels": 2},
        {"channels": 1},
        {"interpolation": "cubic"},
    )
    for values in rows:
        name = next(iter(values))
        with pytest.raises(ValueError, match=f"`{name}` should be .*Received: {name}="):
            Preprocessing(**{"mode": "torch"} | values)


def test_images_of_all_types_give_the_same_input(tmp_path):
    pixels = reference_image()
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    prepare = Preprocessing(mode="caffe", size=20, resize=30)
    images = [path, str(path), Image.open(path), Image.fromarray(pixels), pixels, path.read_bytes()]
    batch = prepare(images)
    assert batch.shape == (len(images), 20, 20, 3) and batch.dtype == "float32"
    for image, row in zip(images, batch, strict=True):
        np.testing.assert_array_equal(row, batch[0])
        np.testing.assert_array_equal(prepare(image)[0], batch[0])
    np.testing.assert_array_equal(prepare(np.stack([pixels, pixels])), batch[:2])
    assert prepare([]).shape == (0, 20, 20, 3)


def test_grey_arrays_of_rank_two_and_three():
    grey = reference_image("grey")
    prepare = Preprocessing(mode=UNNORMALISED, size=20, resize=None, channels=1)
    assert prepare(grey).shape == (1, 20, 20, 1)
    np.testing.assert_array_equal(prepare(grey), prepare(grey[..., None]))
    as_rgb = replace(prepare, channels=3)(grey)
    np.testing.assert_array_equal(as_rgb, np.repeat(prepare(grey), 3, axis=-1))


@pytest.mark.parametrize("size", [(1, 20_000_000), (20_000_000, 1)])
def test_center_of_extremely_long_images(size):
    """Resized whole, this would have 256 x 5,120,000,000 pixels, more than Pillow supports."""
    pixels = np.zeros(size, "uint8")
    pixels.ravel()[9_999_999:10_000_001] = 255
    found = Preprocessing(mode=UNNORMALISED, channels=1, interpolation="nearest")(pixels)
    assert found.min() == 255


@pytest.mark.parametrize("size", [(5, 190), (191, 5), (3, 200)])
@pytest.mark.parametrize("resize", [9, 5])
@pytest.mark.parametrize("interpolation", ["bilinear", "lanczos"])
def test_crop_of_long_images_equals_resizing_the_whole_image(size, resize, interpolation):
    """With little contrast, so that Pillow does not clip between its two passes."""
    image = Image.fromarray(np.random.default_rng(0).integers(100, 156, (*size, 3), "uint8"))
    found = Preprocessing(mode=UNNORMALISED, size=8, resize=resize, interpolation=interpolation)(image)[0]
    sides = [int(resize * side / min(size)) for side in image.size]
    whole = image.resize(sides, Image.Resampling[interpolation.upper()])
    left, top = (round((side - 8) / 2) if side > 8 else -((8 - side) // 2) for side in whole.size)
    assert max(whole.size) > 16 * max(8, resize)
    np.testing.assert_allclose(found, np.asarray(whole.crop((left, top, left + 8, top + 8)), "float32"), atol=1)


@pytest.mark.parametrize(
    ("mode", "divisor", "mean", "std"),
    [
        ("caffe", 1, (103.939 + 116.779 + 123.68) / 3, 1),
        ("torch", 255, (0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3),
        ("tf", 127.5, 1, 1),
        ("cifar", 255, (0.4914 + 0.4822 + 0.4465) / 3, (0.2470 + 0.2435 + 0.2616) / 3),
    ],
)
def test_grey_images_are_normalised_by_the_mean_of_the_channels(mode, divisor, mean, std):
    colour = Preprocessing(mode, size=16, resize=None)
    grey = colour.for_channels(1)
    pixels = np.arange(256, dtype="uint8").reshape(16, 16)
    np.testing.assert_allclose(grey(pixels)[0, ..., 0], (pixels / divisor - mean) / std, rtol=1e-5, atol=1e-5)
    assert replace(grey, mode=mode, channels=3) == colour
    assert colour.for_channels(3) is colour and grey.for_channels(1) is grey
    assert colour.for_channels(4) is None and grey.for_channels(3) is None


@pytest.mark.parametrize("size, resize", [(96, 109), (112, 128), (224, 256), (32, 36)])
def test_another_size_keeps_the_crop_share_as_timm_does(size, resize):
    published = Preprocessing("torch", size=224, resize=256)
    assert published.for_size(size) == Preprocessing("torch", size=size, resize=resize)
    assert published.for_size(size).resize == math.floor(size / (224 / 256))  # timm: floor(size / crop_pct)
    whole = Preprocessing("tf", size=32, resize=None)
    assert whole.for_size(size) == Preprocessing("tf", size=size, resize=None)
    with pytest.raises(ValueError, match="from 1 to 8192 pixels.*Received: size=0"):
        published.for_size(0)


def test_imagenet_photographs_have_zero_mean_and_unit_deviation(test_data):
    batch = Preprocessing(mode="torch")(find_images(test_data / "imagenet_sample"))
    assert batch.shape == (50, 224, 224, 3) and batch.dtype == "float32"
    # approximately, as ImageNet's statistics were computed from such crops
    assert np.abs(batch.mean((0, 1, 2))).max() < 0.3 and np.abs(batch.std((0, 1, 2)) - 1).max() < 0.3
