"""Pictures: compared with keras.applications, torchvision, timm and Pillow; damaged and odd files are real ones."""

import io
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from keras.applications import imagenet_utils
from PIL import Image

from keras_resnet.data.preprocessing import (
    FORMATS,
    MODES,
    Normalization,
    Preprocessing,
    find_pictures,
    load_picture,
    preprocess_input,
)

REFERENCES = np.load(Path(__file__).parent / "references" / "pictures.npz")
PIXELS = [name for name in REFERENCES.files if name.startswith(("wide", "tall", "grey"))]
TIMM = [name for name in REFERENCES.files if name.startswith("timm") and not name.endswith("cfg")]
AS_THEY_ARE = Normalization(divisor=1.0)
ORIENTATION = 0x0112
TO_STORED = {  # EXIF orientation -> what turns an upright picture into the one stored with it (CIPA DC-008, 4.6.4)
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


def reference_picture(name="wide"):
    picture = REFERENCES["picture"]
    return {"wide": picture, "tall": picture.transpose(1, 0, 2), "grey": picture[..., 0]}[name]


def random_images(rank, data_format="channels_last", dtype="float32"):
    shape = (2, 5, 4, 3) if data_format == "channels_last" else (2, 3, 5, 4)
    images = np.random.default_rng(0).uniform(0, 255, shape[4 - rank :])
    return images.astype(dtype)


def saved(image, path, **options):
    image.save(path, **options)
    return path


# preprocess_input


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


def test_cifar_mode_gives_its_own_statistics_zero_mean_and_unit_deviation():
    mean, std = np.array(MODES["cifar"].mean), np.array(MODES["cifar"].std)
    images = np.stack([mean - std, mean + std])[:, None, None] * 255
    np.testing.assert_allclose(preprocess_input(images, "cifar")[:, 0, 0], [[-1] * 3, [1] * 3], atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float32", "float64"])
def test_argument_stays_as_it_is_and_floats_keep_their_dtype(mode, dtype):
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


def test_unknown_mode_names_the_nearest():
    with pytest.raises(ValueError, match=r"'caffe', 'torch', 'tf', 'cifar'.*Did you mean 'caffe'.*mode='Cafe'"):
        preprocess_input(random_images(4), "Cafe")
    for mode in (None, ["tf"]):
        with pytest.raises(ValueError, match="`mode` should be"):
            preprocess_input(random_images(4), mode)


def test_wrong_channels_rank_and_format_are_refused():
    grey = np.zeros((2, 5, 4, 1), "uint8")
    for mode in ("caffe", "torch", "cifar"):
        with pytest.raises(ValueError, match=r"3 channels.*Received: images of shape \(2, 5, 4, 1\)"):
            preprocess_input(grey, mode)
    np.testing.assert_array_equal(preprocess_input(grey, "tf"), np.full(grey.shape, -1))
    with pytest.raises(ValueError, match="3 channels on axis -1"):
        preprocess_input(random_images(4, "channels_first"), "torch")
    with pytest.raises(ValueError, match="H, W, C"):
        preprocess_input(grey[0, ..., 0], "tf")
    with pytest.raises(ValueError, match="Did you mean 'channels_last'"):
        preprocess_input(grey, "tf", data_format="channel_last")


def test_normalization_refuses_what_cannot_be_computed():
    for values in ({"mean": (0, 0), "std": (1, 1, 1)}, {"mean": ()}, {"std": (1, 0, 1)}, {"divisor": 0}):
        with pytest.raises(ValueError, match="Received"):
            Normalization(**values)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_need_no_tensorflow(backend):
    """In a process of its own, in which TensorFlow cannot be imported."""
    pytest.importorskip(backend)
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "import keras, numpy as np\n"
        "from keras_resnet.data.preprocessing import MODES, Preprocessing, preprocess_input\n"
        "images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), 'uint8')\n"
        "for mode in MODES:\n"
        "    found = preprocess_input(keras.ops.convert_to_tensor(images), mode)\n"
        "    assert keras.ops.is_tensor(found)\n"
        "    np.testing.assert_allclose(keras.ops.convert_to_numpy(found), preprocess_input(images, mode), atol=1e-5)\n"
        "assert Preprocessing('torch', size=3)(images).shape == (2, 3, 3, 3)\n"
    )
    environment = os.environ | {"KERAS_BACKEND": backend}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=300)


# Preprocessing


@pytest.mark.parametrize("key", PIXELS)
def test_resize_and_crop_equal_those_of_torchvision(key):
    name, interpolation, resize, size = key.split("_")
    expected = np.atleast_3d(REFERENCES[key])
    prepare = Preprocessing(
        mode=AS_THEY_ARE,
        size=int(size),
        resize=None if resize == "none" else int(resize),
        interpolation=interpolation,
        channels=expected.shape[-1],
    )
    np.testing.assert_array_equal(prepare(reference_picture(name))[0], expected)


def test_network_input_equals_that_of_torchvision():
    found = Preprocessing(mode="torch", resize=40, size=32)(reference_picture())
    np.testing.assert_allclose(found[0], REFERENCES["torchvision_40_32"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("key", TIMM)
def test_network_input_equals_that_of_timm(key):
    prepare = Preprocessing.from_timm(json.loads(str(REFERENCES[f"{key}_cfg"])))
    np.testing.assert_allclose(prepare(reference_picture())[0], REFERENCES[key], rtol=1e-6, atol=1e-6)


def test_timm_rows_that_cannot_be_followed_are_refused():
    config = json.loads(str(REFERENCES["timm_0_cfg"]))
    for change in ({"crop_mode": "border"}, {"crop_mode": "squash"}, {"input_size": (3, 32, 48)}, {"mean": None}):
        with pytest.raises(ValueError, match="`pretrained_cfg` should"):
            Preprocessing.from_timm(config | change)
    with pytest.raises(ValueError, match="Did you mean 'bicubic'"):
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
    assert row.to_config() == config  # from_config leaves its argument alone
    assert hash(row) == hash(replace(row)) and eval(repr(row)) == row
    assert replace(row, size=row.size + 1) != row


def test_impossible_rows_are_refused():
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


def test_pictures_of_every_kind_make_the_same_input(tmp_path):
    pixels = reference_picture()
    path = saved(Image.fromarray(pixels), tmp_path / "picture.png")
    prepare = Preprocessing(mode="caffe", size=20, resize=30)
    kinds = [path, str(path), Image.open(path), Image.fromarray(pixels), pixels, path.read_bytes()]
    batch = prepare(kinds)
    assert batch.shape == (len(kinds), 20, 20, 3) and batch.dtype == "float32"
    for kind, row in zip(kinds, batch, strict=True):
        np.testing.assert_array_equal(row, batch[0])
        np.testing.assert_array_equal(prepare(kind)[0], batch[0])
    np.testing.assert_array_equal(prepare(np.stack([pixels, pixels])), batch[:2])
    assert prepare([]).shape == (0, 20, 20, 3)


def test_grey_arrays_in_both_shapes_and_both_ways():
    grey = reference_picture("grey")
    prepare = Preprocessing(mode=AS_THEY_ARE, size=20, resize=None, channels=1)
    assert prepare(grey).shape == (1, 20, 20, 1)
    np.testing.assert_array_equal(prepare(grey), prepare(grey[..., None]))
    as_rgb = replace(prepare, channels=3)(grey)
    np.testing.assert_array_equal(as_rgb, np.repeat(prepare(grey), 3, axis=-1))


def test_arrays_that_are_no_pictures_are_refused():
    prepare = Preprocessing(mode="tf")
    for pixels in (np.zeros((4, 4, 3)), np.zeros((4, 4, 7), "uint8"), np.zeros(4, "uint8"), np.zeros((0, 4), "uint8")):
        with pytest.raises(ValueError, match=r"uint8 array.*Received: an array of shape"):
            prepare(pixels)


@pytest.mark.parametrize("size", [(1, 20_000_000), (20_000_000, 1)])
def test_longest_thinnest_pictures_show_their_middle(size):
    """Resized whole, this would have 256 x 5,120,000,000 pixels: more than Pillow can count."""
    pixels = np.zeros(size, "uint8")
    pixels.ravel()[9_999_999:10_000_001] = 255
    found = Preprocessing(mode=AS_THEY_ARE, channels=1, interpolation="nearest")(pixels)
    assert found.min() == 255


@pytest.mark.parametrize("size", [(5, 190), (191, 5), (3, 200)])
@pytest.mark.parametrize("resize", [9, 5])
@pytest.mark.parametrize("interpolation", ["bilinear", "lanczos"])
def test_long_thin_pictures_are_cropped_as_if_resized_whole(size, resize, interpolation):
    """Which for these sizes is cheap. Of little contrast, so that nothing is clipped between Pillow's two passes."""
    image = Image.fromarray(np.random.default_rng(0).integers(100, 156, (*size, 3), "uint8"))
    found = Preprocessing(mode=AS_THEY_ARE, size=8, resize=resize, interpolation=interpolation)(image)[0]
    sides = [int(resize * side / min(size)) for side in image.size]
    whole = image.resize(sides, Image.Resampling[interpolation.upper()])
    left, top = (round((side - 8) / 2) if side > 8 else -((8 - side) // 2) for side in whole.size)
    assert max(whole.size) > 16 * max(8, resize)
    np.testing.assert_allclose(found, np.asarray(whole.crop((left, top, left + 8, top + 8)), "float32"), atol=1)


# load_picture


@pytest.mark.parametrize("orientation", TO_STORED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    upright = np.zeros((48, 32, 3), "uint8")
    upright[:16, :16] = 255, 0, 0
    upright[:16, 16:] = 0, 255, 0
    upright[32:, :16] = 0, 0, 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    stored = Image.fromarray(np.ascontiguousarray(TO_STORED[orientation](upright)))
    path = saved(stored, tmp_path / f"picture.{suffix}", exif=exif, **options)
    found = load_picture(path)
    np.testing.assert_allclose(np.asarray(found, int), upright, atol=8 if suffix == "jpg" else 0)
    np.testing.assert_array_equal(
        Preprocessing(AS_THEY_ARE, size=32, resize=None)([path]),
        Preprocessing(AS_THEY_ARE, size=32, resize=None)([found]),  # not turned twice
    )


def odd_pictures():
    """name -> (image, options, RGB expected at the upper left pixel)."""
    palette = Image.new("P", (3, 2))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    deep = Image.fromarray(np.full((2, 3), 40_000, "uint16"))
    return {
        "grey.png": (Image.new("L", (3, 2), 77), {}, (77, 77, 77)),
        "black_and_white.png": (Image.new("1", (3, 2), 1), {}, (255, 255, 255)),
        "palette.png": (palette, {}, (10, 20, 30)),
        "palette_transparent.png": (palette, {"transparency": 0}, (255, 255, 255)),
        "palette_half_transparent.png": (palette, {"transparency": bytes([128, 255])}, (132, 137, 142)),
        "rgb_transparent.png": (Image.new("RGB", (3, 2), (9, 8, 7)), {"transparency": (9, 8, 7)}, (255, 255, 255)),
        "alpha.png": (Image.new("RGBA", (3, 2), (255, 0, 0, 51)), {}, (255, 204, 204)),
        "grey_alpha.png": (Image.new("LA", (3, 2), (0, 51)), {}, (204, 204, 204)),
        "alpha.webp": (Image.new("RGBA", (3, 2), (255, 0, 0, 0)), {"lossless": True}, (255, 255, 255)),
        "sixteen_bits.png": (deep, {}, (156, 156, 156)),  # 40000 / 65535 * 255 = 155.6
        "sixteen_bits.tif": (deep, {}, (156, 156, 156)),
        "cmyk.tif": (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), {}, (255, 0, 0)),
        "cmyk.jpg": (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), {}, (255, 0, 0)),
        "one_pixel.png": (Image.new("RGB", (1, 1), (1, 2, 3)), {}, (1, 2, 3)),
        "one_pixel.bmp": (Image.new("RGB", (1, 1), (1, 2, 3)), {}, (1, 2, 3)),
        "animated.gif": (
            Image.new("RGB", (3, 2), (255, 0, 0)),
            {"save_all": True, "append_images": [Image.new("RGB", (3, 2), (0, 0, 255))]},
            (255, 0, 0),
        ),
    }


@pytest.mark.parametrize("name", odd_pictures())
def test_odd_pictures_are_read(tmp_path, name):
    image, options, expected = odd_pictures()[name]
    path = saved(image, tmp_path / name, **options)
    found = load_picture(path)
    assert (found.mode, found.size) == ("RGB", image.size)
    np.testing.assert_allclose(found.getpixel((0, 0)), expected, atol=1)

    luma = np.dot(expected, [0.299, 0.587, 0.114])  # ITU-R BT.601
    grey = load_picture(path, channels=1)
    assert grey.mode == "L"
    assert abs(grey.getpixel((0, 0)) - luma) <= 1
    assert np.isfinite(Preprocessing("torch")(path)).all()


def damaged_files():
    """name -> bytes that are no picture, or half of one."""
    picture, files = Image.fromarray(np.repeat(reference_picture(), 4, axis=0)), {}
    for name in FORMATS:
        file = io.BytesIO()
        picture.save(file, name)
        files[f"half.{name.lower()}"] = file.getvalue()[: len(file.getvalue()) // 2]
    png = io.BytesIO()
    picture.save(png, "PNG")
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR"
    return files | {
        "empty.jpg": b"",
        "text.jpg": b"This is no picture, whatever its name says.",
        "page.png": b"<html><body>404 Not Found</body></html>",
        "only_a_header.png": header,
        "wrong_checksum.png": png.getvalue().replace(b"IDATx", b"IDATy"),
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        "zeros.bmp": b"BM" + bytes(100),
        "another_format.ppm": b"P6 1 1 255 abc",  # Pillow would read it
    }


@pytest.mark.parametrize("name", damaged_files())
def test_damaged_files_are_reported_by_their_path(tmp_path, name):
    content = damaged_files()[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"Expected a picture \(BMP, .*Received: path='.*{name}' \(.+\)"):
        load_picture(tmp_path / name)
    with open(tmp_path / name, "rb") as file:
        with pytest.raises(ValueError, match=name):
            load_picture(file)
        assert not file.closed
    with pytest.raises(ValueError, match=rf"Received: {len(content)} bytes"):
        load_picture(content)
    with pytest.raises(ValueError, match=name):
        Preprocessing(mode="tf")([tmp_path / name])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 14_000])
def test_decompression_bombs_are_refused(tmp_path, side):
    """Pillow warns of the first and refuses the second."""
    path = saved(Image.new("1", (side, side)), tmp_path / "bomb.png")
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"bomb.png.*pixels"):
        load_picture(path)


def test_pixels_of_no_known_range_are_refused(tmp_path):
    path = saved(Image.new("F", (3, 2), 0.5), tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float.tif.*mode 'F'"):
        load_picture(path)
    with pytest.raises(ValueError, match="mode 'I'"):
        Preprocessing(mode="tf")(Image.new("I", (3, 2), 1_000_000))


def test_missing_files_and_urls_say_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_picture(tmp_path / "missing.jpg")
    with pytest.raises(FileNotFoundError, match=r"Received: path='.*missing.jpg'"):
        find_pictures([tmp_path / "missing.jpg"])
    for url in ("http://example.org/a.jpg", Path("https://example.org/a.jpg"), "gs://bucket/a.jpg"):
        for function in (load_picture, find_pictures):
            with pytest.raises(ValueError, match="URLs are not fetched"):
                function(url)
    with pytest.raises(ValueError, match="`channels` should be 3"):
        load_picture(tmp_path / "missing.jpg", channels=4)


# find_pictures


def test_folders_are_searched_and_files_taken_as_they_are(tmp_path):
    names = ["b/2.JPG", "b/1.jpeg", "a.png", "c/d/e.TiFf", "notes.txt", ".hidden.jpg", ".cache/x.jpg", "c/.y.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    expected = [tmp_path / name for name in ("a.png", "b/1.jpeg", "b/2.JPG", "c/d/e.TiFf")]
    assert find_pictures(tmp_path) == find_pictures([str(tmp_path)]) == expected
    assert find_pictures([tmp_path / "notes.txt", tmp_path / "b"]) == [tmp_path / "notes.txt", *expected[1:3]]
    assert find_pictures(tmp_path / ".cache") == [tmp_path / ".cache" / "x.jpg"]
    with pytest.raises(ValueError, match=r"Expected a folder with pictures \(\.bmp .*folder.jpg'"):
        find_pictures([tmp_path / "b", tmp_path / "folder.jpg"])


# photographs


def test_imagenet_photographs_are_those_that_pillow_reads(test_data):
    paths = find_pictures(test_data / "imagenet_sample")
    assert len(paths) == 50
    batch = Preprocessing(mode="torch")(paths)
    assert batch.shape == (50, 224, 224, 3) and batch.dtype == "float32"
    # as ImageNet's statistics were taken from such crops, theirs are near 0 and 1
    assert np.abs(batch.mean((0, 1, 2))).max() < 0.3 and np.abs(batch.std((0, 1, 2)) - 1).max() < 0.3
    for path in paths[:5]:
        np.testing.assert_array_equal(load_picture(path), Image.open(path).convert("RGB"))


def test_the_file_among_the_ants_that_is_no_jpeg_is_read_as_what_it_is(test_data):
    paths = find_pictures(test_data / "hymenoptera")
    assert len(paths) == 398
    others = [path for path in paths if not path.read_bytes().startswith(b"\xff\xd8")]
    assert [path.name for path in others] == ["imageNotFound.gif"]
    np.testing.assert_array_equal(load_picture(others[0]), Image.open(others[0]).convert("RGB"))
