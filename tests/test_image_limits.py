"""Image files that take much memory or time: small files that claim much, refused in processes with limits."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from limited_process import assert_refused, run_limited
from PIL import Image

import keras_resnet
from keras_resnet.data.image_checks import CHECKS
from keras_resnet.data.image_files import UnreadableImageError, load_image


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, *chunks):
    """A PNG file without pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")])


def jpeg(*segments, scans=1, **options):
    """A JPEG file with segments after its first marker, whose last scan is repeated."""
    content = encoded(Image.new("RGB", (2000, 1000)), "JPEG", **options)
    last = content.rindex(b"\xff\xda")
    return content[:2] + b"".join(segments) + content[2:last] + content[last:-2] * scans + content[-2:]


def shared_entries(count, size):
    """EXIF whose entries are all the same bytes."""
    entries = [struct.pack("<HHII", tag, 7, size, 8 + 2 + 12 * count) for tag in range(count)]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + b"".join(entries) + bytes(4 + size)


def exif_segments(exif):
    parts = [b"Exif\0\0" + exif[start : start + 65_000] for start in range(0, len(exif), 65_000)]
    return [b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts]


def strips(count):
    """A TIFF file of which every row is stored `count` times."""
    tags = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1)]
    rows = [(tag, 1, value) for tag, value in tags] + [(273, count, 8 + 6 + 12 * 9), (279, count, 8 + 6 + 12 * 9)]
    entries = [struct.pack("<HHII", tag, 4, number, value) for tag, number, value in sorted(rows)]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 9) + b"".join(entries) + bytes(4) + struct.pack("<I", 8) * count


def gif(*extensions, size=(8, 8), frames=1):
    content = encoded(Image.new("P", size), "GIF")
    frame = content.index(b",\0\0\0\0")
    return content[:frame] + b"".join(extensions) + content[frame:-1] * frames + b";"


BOMBS = {
    # name -> (contents, a part of the message)
    "strip.png": (lambda: png(1, 80_000_000), "1 x 80000000 is more than"),
    "side.png": (lambda: png(70_000, 700), "65,535 a side"),
    "ratio.png": (lambda: png(3000, 1), "a ratio of 2,000"),
    "pixels.png": (lambda: png(8000, 7000), "8000 x 7000 is more than"),
    "chunks.png": (lambda: png(8, 8, chunk(b"teSt", b"") * 200_000), "too many parts"),
    "texts.png": (lambda: png(8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(7_000_000))) * 300), "300 texts"),
    "pixels.webp": (lambda: encoded(Image.new("RGB", (8000, 8000)), "WEBP", lossless=True, method=0), "is more than"),
    "lossy.webp": (lambda: encoded(Image.new("RGB", (8000, 8000)), "WEBP", method=0), "8000 x 8000 is more than"),
    "alpha.webp": (lambda: encoded(Image.new("RGBA", (8000, 8000)), "WEBP", method=0), "8000 x 8000 is more than"),
    "scans.jpg": (lambda: jpeg(scans=5000, progressive=True), "scans; the limit is 40"),
    "segments.jpg": (lambda: jpeg(b"\xff\xfe\0\2" * 3_000_000), "too many parts"),
    "fill_bytes.jpg": (lambda: jpeg(b"\xff" * 20_000_000), "too many parts"),
    "exif.jpg": (lambda: jpeg(*exif_segments(shared_entries(20_000, 400_000))), "bytes of EXIF"),
    "exif.tif": (lambda: shared_entries(20_000, 400_000), "too many parts"),
    "strips.tif": (lambda: strips(2_000_000), "bytes of offsets"),
    "comment.gif": (lambda: gif(b"!\xfe" + b"\x01a" * 10_000_000 + b"\0"), "too many parts"),
}
GIF_BOMBS = {
    # TensorFlow decodes all frames, Pillow the first
    "frames.gif": (lambda: gif(size=(3000, 3000), frames=2000), "pixels in its frames"),
    "frame_outside.gif": (lambda: gif(size=(3000, 3000), frames=50).replace(b"\xb8\x0b", b"\1\0", 2), "its frames"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_are_decoded(tmp_path, name):
    make, message = BOMBS[name]
    (tmp_path / name).write_bytes(make())
    code = "from keras_resnet.data.image_files import load_image; load_image(args[0])"
    assert_refused(run_limited(code, tmp_path / name, seconds=10), name, message)


@pytest.mark.parametrize("name", [*BOMBS, *GIF_BOMBS])
def test_bombs_are_refused_before_training(tmp_path, name):
    pytest.importorskip("tensorflow")
    make, message = (BOMBS | GIF_BOMBS)[name]
    (tmp_path / name).write_bytes(make())
    for source in (tmp_path / name, make()):
        with pytest.raises(UnreadableImageError, match=message):
            CHECKS["tensorflow"].function(source)


@pytest.mark.parametrize("name", ["strip.png", "ratio.png", "texts.png", "scans.jpg", *GIF_BOMBS, "pixels.webp"])
def test_bombs_in_streams_are_refused(name):
    tf = pytest.importorskip("tensorflow")
    from keras_resnet.data.tensorflow_limits import check_image, check_jpeg_or_png

    contents = (BOMBS | GIF_BOMBS)[name][0]()
    for check in (check_image, check_jpeg_or_png):
        with pytest.raises(tf.errors.OpError):
            next(iter(tf.data.Dataset.from_tensors(contents).map(check)))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP"])
def test_images_within_the_limits_pass(format):
    tf = pytest.importorskip("tensorflow")
    from keras_resnet.data.tensorflow_limits import check_image

    for size in ((1, 1), (2000, 1), (300, 200)):
        contents = encoded(Image.new("L", size), format)
        assert next(iter(tf.data.Dataset.from_tensors(contents).map(check_image))) == contents
        assert load_image(contents).size == size


LARGE = {
    "PNG": {},
    "BMP": {},
    "GIF": {},
    "JPEG": {},
    "TIFF": {"compression": "tiff_lzw"},
    "progressive": {"progressive": True, "subsampling": 0},
    "WEBP": {"lossless": True, "method": 0},
}


@pytest.mark.slow
@pytest.mark.parametrize("format", LARGE)
def test_the_largest_images_are_read_in_500_megabytes(tmp_path, format):
    from keras_resnet.data.image_limits import MAX_PIXELS

    progressive = format == "progressive"
    limit = MAX_PIXELS["JPEG, progressive" if progressive else format]
    mode = "RGBA" if format in ("PNG", "WEBP") else "CMYK" if format in ("TIFF", "progressive") else "RGB"
    image = Image.new(mode, (5000, limit // 5000))
    (tmp_path / "large").write_bytes(encoded(image, "JPEG" if progressive else format, **LARGE[format]))
    code = "from keras_resnet.data.image_files import load_image; load_image(args[0])"
    run = run_limited(code, tmp_path / "large")
    assert run.status == 0, run


@pytest.fixture(scope="module")
def network():
    return keras_resnet.create("resnet20", weights="cifar10")


def test_pipes_sockets_and_devices_are_refused(tmp_path, network):
    """Opening a pipe that nobody writes to would wait for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        for read in (
            load_image,
            keras_resnet.load_model,
            keras_resnet.load_exported,
            keras_resnet.transfer.read_features,
        ):
            with pytest.raises((OSError, ValueError)):
                read(path)
        with pytest.raises((OSError, ValueError)):
            keras_resnet.load_weights(network, path)
        (prediction,) = keras_resnet.predict(network, [path])
        assert "Expected a regular file" in prediction.error


def test_transparent_images_are_converted_in_parts(tmp_path):
    """Equal to the same in one part, for images higher than a part."""
    pixels = np.random.default_rng(0).integers(0, 256, (700, 9, 4), "uint8")
    image = Image.fromarray(pixels)
    white = Image.new("RGBA", image.size, "white")
    expected = Image.alpha_composite(white, image).convert("RGB")
    np.testing.assert_array_equal(load_image(encoded(image, "PNG")), expected)


def test_large_images_of_a_batch_are_not_in_memory_together(tmp_path):
    """Each takes 100 MB when it is decoded, its crop 150 kB."""
    Image.new("1", (5000, 5000)).save(tmp_path / "large.png")
    code = """
from keras_resnet import Preprocessing
from keras_resnet.data.protocols import Protocol, image_views
image_views(args * 20, Preprocessing("torch"), Protocol())
"""
    run = run_limited(code, tmp_path / "large.png", memory=1.2e9)
    assert run.status == 0, run
