"""Class masks of images: PNG files as written here bit by bit, read as Pillow reads images; parts of a Split."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from limited_process import assert_refused, run_limited
from PIL import Image, ImageOps
from support import damaged_copies

from keras_resnet.data.datasets import Dataset, Fold, Split
from keras_resnet.data.image_files import turn_upright
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.semantic_masks import (
    UnreadableMaskError,
    class_values,
    describe_mask,
    mask_files,
    masks_in_memory,
    read_mask,
    read_palette,
)
from keras_resnet.data.sources import from_arrays

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
"""Colour types of PNG."""
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(values, bits=8, color=GREY, size=None):
    """A PNG file of values (H, W) or (H, W, C), in integers of `bits`; `size` is what its header claims instead."""
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", *(size or (width, height)), bits, color, 0, 0, 0)
    rows = values.reshape(height, -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        digits = np.unpackbits(rows.astype("uint8")[..., None], axis=2)[:, :, -bits:]
        lines = [np.packbits(line.ravel()).tobytes() for line in digits]
    colors = bytes((7 * index + channel) % 256 for index in range(2 ** min(bits, 8)) for channel in range(3))
    parts = [
        chunk(b"IHDR", header),
        *([chunk(b"PLTE", colors)] if color == PALETTE else []),
        chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines))),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def random_mask(bits=8, shape=(5, 9), seed=0):
    return np.random.default_rng(seed).integers(0, 2**bits, shape, "uint8")


@pytest.mark.parametrize("bits, color", [(8, GREY), (1, GREY), (8, PALETTE), (4, PALETTE), (2, PALETTE), (1, PALETTE)])
def test_values_of_grey_files_and_indices_of_palettes_are_classes(bits, color):
    mask = random_mask(bits)
    content = png(mask, bits, color)
    np.testing.assert_array_equal(read_mask(content), mask)
    values, counts = np.unique(mask, return_counts=True)
    colors = [[7 * v % 256, (7 * v + 1) % 256, (7 * v + 2) % 256] if color else None for v in values.tolist()]
    rows = zip(values.tolist(), counts.tolist(), colors, strict=True)
    assert describe_mask(content) == {"size": [5, 9], "values": list(map(list, rows))}
    assert read_palette(content)[:2] == ([[0, 1, 2], [7, 8, 9]] if color else [])


@pytest.mark.parametrize(
    "bits, color, message",
    [
        (16, GREY, "grey with 16 bits"),
        (8, RGB, "colours without a palette .RGB."),
        (16, RGB, "colours without a palette .RGB."),
        (8, RGBA, "colours without a palette .RGBA."),
        (8, GREY_ALPHA, "grey with transparency"),
        (2, GREY, "grey with 2 bits, which libraries scale"),
        (4, GREY, "grey with 4 bits, which libraries scale"),
    ],
)
def test_other_pixels_are_refused_with_one_message(tmp_path, bits, color, message):
    values = np.random.default_rng(0).integers(0, 2**bits, (5, 9, CHANNELS[color]))
    (tmp_path / "a.png").write_bytes(png(values, bits, color))
    with pytest.raises(ValueError, match=rf"Expected a mask: a PNG file .*Received: .*a\.png \(it is {message}"):
        read_mask(tmp_path / "a.png")


def test_other_formats_and_damaged_files_are_refused(tmp_path):
    for format in ("JPEG", "BMP", "GIF", "TIFF"):
        path = tmp_path / f"{format}.png"
        Image.fromarray(random_mask()).save(path, format)
        with pytest.raises(UnreadableMaskError, match=rf"{format}\.png \(a {format} file, not PNG"):
            read_mask(path)
    path, refused = tmp_path / "damaged.png", 0
    for copy in damaged_copies(png(random_mask(shape=(20, 20))), 200, random.Random(0)):
        path.write_bytes(copy)
        try:
            assert read_mask(path).dtype == np.uint8
        except UnreadableMaskError as error:
            assert "damaged.png" in str(error)
            refused += 1
    assert refused > 100
    with pytest.raises(FileNotFoundError):
        read_mask(tmp_path / "missing.png")


def test_a_file_that_claims_many_pixels_is_refused_before_they_are_read(tmp_path):
    (tmp_path / "large.png").write_bytes(png(random_mask(), size=(30_000, 30_000)))
    run = run_limited("from keras_resnet.data.semantic_masks import read_mask as r; r(args[0])", tmp_path / "large.png")
    assert_refused(run, "large.png")


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 4))
def test_pixels_are_turned_as_by_pillow(orientation, height, width):
    pixels = random_mask(shape=(height, width))
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    np.testing.assert_array_equal(turn_upright(pixels, orientation), expected)
    np.testing.assert_array_equal(read_mask(file.getvalue()), expected)  # a mask's own orientation


def test_values_of_classes():
    """The classes of values are those of torch's cross-entropy with ignore_index, or shifted to begin with 0."""
    assert class_values() is None
    np.testing.assert_array_equal(class_values(11), [255 if value == 11 else value for value in range(256)])
    np.testing.assert_array_equal(class_values(3, first=1), [255, 0, 1, 255, *range(3, 254), 255])
    for invalid in (-1, 256, 1.5, True):
        with pytest.raises(ValueError, match="`ignore_index` should be an integer from 0 to 255"):
            class_values(invalid)


@given(st.lists(st.integers(0, 5), max_size=8), st.booleans())
def test_selected_masks_and_their_pixels(selection, counted):
    files = [png(random_mask(2, (2, 3), seed), 2, PALETTE) for seed in range(6)]
    stored = np.stack([read_mask(file) for file in files])
    counts = np.array([np.bincount(mask.ravel(), minlength=256) for mask in stored])
    sizes, names = np.full((6, 2), (2, 3)), list("abcdef")
    masks = mask_files(files, sizes, names, classes=class_values(2), counts=counts if counted else None)
    expected = np.where(stored == 2, 255, stored)
    part, chosen = masks.select(np.array(selection, int)), expected[np.array(selection, int)]
    assert len(part) == len(selection) and part.sizes.shape == (len(selection), 2)
    assert all(np.array_equal(part.read(index), mask) for index, mask in enumerate(chosen))
    assert part.class_counts(4).tolist() == [(chosen == number).sum() for number in range(4)]
    in_memory = masks_in_memory(stored, class_values(2)).select(selection or slice(0))
    np.testing.assert_array_equal(part.pixel_counts, in_memory.pixel_counts)
    assert part.pixel_counts[:, 255].sum() == (chosen == 255).sum()
    np.testing.assert_array_equal(masks.select([False, True] * 3).read(0), expected[1])


def test_a_mask_that_has_changed_since_it_was_checked(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path in paths:
        Image.fromarray(random_mask()).save(path)
    masks = mask_files(paths, np.full((2, 2), (5, 9)), paths)
    Image.fromarray(random_mask(shape=(6, 9))).save(paths[0])
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match=r"a\.png .it has 9 x 6 pixels, but its image 9 x 5"):
        masks.read(0)
    with pytest.raises(ValueError, match=r"b\.png .No such file"):
        masks.read(1)


def masked_split(count=10):
    """Ten images whose first pixel is their number, as is that of their mask."""
    pixels = np.zeros((count, 2, 3, 1), "uint8")
    pixels[:, 0, 0, 0] = np.arange(count)
    masks = masks_in_memory(pixels[..., 0])
    return Split(pixels, masks.label_matrix(count), masks=masks)


@pytest.mark.parametrize("amount", [0.3, 1, Fold(2, 5), None])
def test_parts_of_a_split_have_the_masks_of_their_images(amount):
    """Also if a class is in one image only."""
    split = masked_split()
    np.testing.assert_array_equal(split.labels, np.maximum(np.eye(10), [1, *[0] * 9]))  # all have pixels of class 0
    parts = split.stratified_split(amount)
    numbers = [part.images[:, 0, 0, 0].tolist() for part in parts]
    assert sorted(numbers[0] + numbers[1]) == list(range(10))
    assert numbers == [[int(part.masks.read(index)[0, 0]) for index in range(len(part))] for part in parts]
    assert [len(part.masks) for part in parts] == [len(part) for part in parts]


def test_masks_of_another_number_or_size_are_refused():
    split = masked_split()
    with pytest.raises(ValueError, match="`masks` should be of 10 images"):
        Split(split.images, split.labels, masks=split.masks.select(slice(9)))
    with pytest.raises(ValueError, match="`masks` should be of the size of the images"):
        Split(split.images[:, :, :2], split.labels, masks=split.masks)
    with pytest.raises(ValueError, match="`masks` should be of 10 images, whose labels are multi-label"):
        Split(split.images, np.zeros(10, int), masks=split.masks)
    names = tuple(map(str, range(10)))
    with pytest.raises(ValueError, match="`colors` should be a colour for each of 10 classes"):
        Dataset("a", split, split, names, Preprocessing("tf"), colors=((0, 0, 0),))


@pytest.mark.parametrize("channels, dtype", [(3, "uint8"), (1, "int64"), (None, "uint16")])
def test_arrays_of_images_and_masks(channels, dtype):
    """Images need not be square."""
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 6, *([channels] if channels else [])), "uint8")
    masks = np.random.default_rng(1).integers(0, 3, (10, 4, 6)).astype(dtype)
    masks[:, 0, 0], masks[:, 0, 1:4] = 255, range(3)
    data = from_arrays((images, masks), (images[:4], masks[:4, ..., None]))
    assert data.class_names == ("class 0", "class 1", "class 2")
    np.testing.assert_array_equal([data.test.masks.read(index) for index in range(4)], masks[:4])
    np.testing.assert_array_equal(data.train.labels, np.ones((10, 3)))
    assert data.train.masks.class_counts(3).tolist() == [(masks == label).sum() for label in range(3)]
    data = from_arrays((images, masks), class_names=["sky", "road", "void"], ignore_index=2)
    assert (len(data.train), len(data.test), data.class_names) == (8, 2, ("sky", "road"))
    first = int(
        np.flatnonzero((images == data.test.images[0].reshape(images.shape[1:])).reshape(10, -1).all(axis=1))[0]
    )
    np.testing.assert_array_equal(data.test.masks.read(0), np.where(masks[first] == 2, 255, masks[first]))
    assert from_arrays((images[:, :, :4], masks[:, :, :4] > 1)).class_names == ("class 0", "class 1")


IMAGES, MASKS = np.zeros((10, 4, 6, 3), "uint8"), np.arange(240).reshape(10, 4, 6) % 3


@pytest.mark.parametrize(
    "test, options, message",
    [
        (
            (IMAGES, MASKS[:, :3]),
            {},
            r"Masks of `test` should be .*\(10, 4, 6\), like the images. Received: .*10, 3, 6",
        ),
        ((IMAGES, MASKS - 1), {}, "Masks of `test` should be integers from 0 to 255"),
        ((IMAGES, MASKS + 254), {}, "Masks of `test` should be integers from 0 to 255"),
        ((IMAGES, MASKS / 2), {}, "Masks of `test` should be .*Received: shape .10, 4, 6., float64"),
        ((IMAGES, MASKS[:, 0, 0]), {}, "Masks of `test` should be"),
        ((IMAGES, MASKS + 2), {}, "`masks` should be indices of 3 classes, or 255. Received: masks='index 3'"),
        ((IMAGES[:, :, :4], MASKS[:, :, :4]), {}, "`test` should have images of .4, 6, 3., like `train`"),
        (
            None,
            {"class_names": ["a", "b"]},
            "`masks` should be indices of 2 classes, or 255. Received: masks='index 2'",
        ),
        (None, {"class_names": ["a"]}, "2 to 255 classes, not 1"),
        (None, {"ignore_index": 300}, "`ignore_index` should be an integer from 0 to 255"),
    ],
)
def test_invalid_arrays_of_masks(test, options, message):
    with pytest.raises(ValueError, match=message):
        from_arrays((IMAGES, MASKS), test, **options)


def test_other_labels_have_no_ignored_index():
    with pytest.raises(ValueError, match="`ignore_index` should be left out for labels that are no masks"):
        from_arrays((IMAGES[:, :, :4], np.arange(10) % 2), ignore_index=1)
