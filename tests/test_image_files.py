"""Image files, compared with Pillow; damaged and unusual files."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_resnet.data.image_files import FORMATS, find_images, load_image
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.normalization import Normalization

ORIENTATION = 0x0112
TO_STORED = {  # EXIF orientation -> transform of an upright image to the stored one (CIPA DC-008, 4.6.4)
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


def save(image, path, **options):
    image.save(path, **options)
    return path


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
    path = save(stored, tmp_path / f"image.{suffix}", exif=exif, **options)
    found = load_image(path)
    np.testing.assert_allclose(np.asarray(found, int), upright, atol=8 if suffix == "jpg" else 0)
    prepare = Preprocessing(Normalization(divisor=1.0), size=32, resize=None)
    np.testing.assert_array_equal(prepare([path]), prepare([found]))  # not rotated twice


def unusual_images():
    """{name: (image, options, expected RGB value of the upper left pixel)}."""
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


@pytest.mark.parametrize("name", unusual_images())
def test_unusual_images_are_read(tmp_path, name):
    image, options, expected = unusual_images()[name]
    path = save(image, tmp_path / name, **options)
    found = load_image(path)
    assert (found.mode, found.size) == ("RGB", image.size)
    np.testing.assert_allclose(found.getpixel((0, 0)), expected, atol=1)

    luma = np.dot(expected, [0.299, 0.587, 0.114])  # ITU-R BT.601
    grey = load_image(path, channels=1)
    assert grey.mode == "L"
    assert abs(grey.getpixel((0, 0)) - luma) <= 1
    assert np.isfinite(Preprocessing("torch")(path)).all()


def damaged_files():
    """{name: contents that are not an image, or a part of one}."""
    pixels = np.load(Path(__file__).parent / "references" / "images.npz")["image"]
    image, files = Image.fromarray(np.repeat(pixels, 4, axis=0)), {}
    for name in FORMATS:
        file = io.BytesIO()
        image.save(file, name)
        files[f"half.{name.lower()}"] = file.getvalue()[: len(file.getvalue()) // 2]
    png = io.BytesIO()
    image.save(png, "PNG")
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR"
    return files | {
        "empty.jpg": b"",
        "text.jpg": b"This is not an image.",
        "page.png": b"<html><body>404 Not Found</body></html>",
        "only_a_header.png": header,
        "wrong_checksum.png": png.getvalue().replace(b"IDATx", b"IDATy"),
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        "zeros.bmp": b"BM" + bytes(100),
        "another_format.ppm": b"P6 1 1 255 abc",  # Pillow would read it
    }


@pytest.mark.parametrize("name", damaged_files())
def test_damaged_files_raise_with_their_path(tmp_path, name):
    content = damaged_files()[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"Expected an image \(BMP, .*Received: path='.*{name}' \(.+\)"):
        load_image(tmp_path / name)
    with open(tmp_path / name, "rb") as file:
        with pytest.raises(ValueError, match=name):
            load_image(file)
        assert not file.closed
    with pytest.raises(ValueError, match=rf"Received: {len(content)} bytes"):
        load_image(content)
    with pytest.raises(ValueError, match=name):
        Preprocessing(mode="tf")([tmp_path / name])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 14_000])
def test_decompression_bombs_raise(tmp_path, side):
    """Pillow warns of the first and raises for the second."""
    path = save(Image.new("1", (side, side)), tmp_path / "bomb.png")
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"bomb.png.*pixels"):
        load_image(path)


def test_pixels_of_unknown_range_raise(tmp_path):
    path = save(Image.new("F", (3, 2), 0.5), tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float.tif.*mode 'F'"):
        load_image(path)
    with pytest.raises(ValueError, match="mode 'I'"):
        Preprocessing(mode="tf")(Image.new("I", (3, 2), 1_000_000))


def test_arrays_of_other_shapes_and_dtypes_raise():
    prepare = Preprocessing(mode="tf")
    for pixels in (np.zeros((4, 4, 3)), np.zeros((4, 4, 7), "uint8"), np.zeros(4, "uint8"), np.zeros((0, 4), "uint8")):
        with pytest.raises(ValueError, match=r"uint8 array.*Received: an array of shape"):
            prepare(pixels)


def test_missing_files_and_urls_raise(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "missing.jpg")
    with pytest.raises(FileNotFoundError, match=r"Received: path='.*missing.jpg'"):
        find_images([tmp_path / "missing.jpg"])
    for url in ("http://example.org/a.jpg", Path("https://example.org/a.jpg"), "gs://bucket/a.jpg"):
        for function in (load_image, find_images):
            with pytest.raises(ValueError, match="URLs are not fetched"):
                function(url)
    with pytest.raises(ValueError, match="`channels` should be 3"):
        load_image(tmp_path / "missing.jpg", channels=4)


def test_folders_are_searched_and_files_returned_whatever_their_suffix(tmp_path):
    names = ["b/2.JPG", "b/1.jpeg", "a.png", "c/d/e.TiFf", "notes.txt", ".hidden.jpg", ".cache/x.jpg", "c/.y.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    expected = [tmp_path / name for name in ("a.png", "b/1.jpeg", "b/2.JPG", "c/d/e.TiFf")]
    assert find_images(tmp_path) == find_images([str(tmp_path)]) == expected
    assert find_images([tmp_path / "notes.txt", tmp_path / "b"]) == [tmp_path / "notes.txt", *expected[1:3]]
    assert find_images(tmp_path / ".cache") == [tmp_path / ".cache" / "x.jpg"]
    with pytest.raises(ValueError, match=r"Expected a folder with images \(\.bmp .*folder.jpg'"):
        find_images([tmp_path / "b", tmp_path / "folder.jpg"])


def test_imagenet_photographs_equal_pillow(test_data):
    paths = find_images(test_data / "imagenet_sample")
    assert len(paths) == 50
    for path in paths[:5]:
        np.testing.assert_array_equal(load_image(path), Image.open(path).convert("RGB"))


def test_the_gif_in_hymenoptera_is_read(test_data):
    paths = find_images(test_data / "hymenoptera")
    assert len(paths) == 398
    others = [path for path in paths if not path.read_bytes().startswith(b"\xff\xd8")]
    assert [path.name for path in others] == ["imageNotFound.gif"]
    np.testing.assert_array_equal(load_image(others[0]), Image.open(others[0]).convert("RGB"))
