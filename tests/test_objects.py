"""Objects of images as arrays, and their masks, compared with pycocotools."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as pycoco

from keras_resnet.data.datasets import Split
from keras_resnet.data.masks import check_segmentation, decode_mask, encode_mask
from keras_resnet.data.objects import Objects

SIZE = (30, 40)
TRIANGLE = [5.5, 3, 30.25, 8, 12, 25]


def objects_of(image, images, masks=None):
    """Objects whose boxes and areas are their row number."""
    count = len(image)
    return Objects(
        np.array(image, int),
        np.repeat(np.arange(count, dtype="float32")[:, None], 4, axis=1),
        (np.arange(count) % 3).astype("int32"),
        np.zeros(count, bool),
        np.zeros(count, bool),
        np.arange(count, dtype=float),
        masks,
        np.full((images, 2), SIZE, "int32"),
        np.array([f"image {index}" for index in range(images)], object),
    )


@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 5), max_size=8))
def test_selected_images_have_their_objects_in_the_order_of_the_selection(image, selection):
    objects = objects_of(sorted(image), 6)
    selected = objects.select(np.array(selection, int))
    expected = [(new, row) for new, old in enumerate(selection) for row in np.flatnonzero(objects.image == old)]
    assert list(zip(selected.image, selected.areas, strict=True)) == expected
    assert selected.image_ids.tolist() == [f"image {index}" for index in selection]


def test_a_part_of_a_split_has_the_objects_of_its_images():
    objects = objects_of([0, 0, 2], 3)
    split = Split(np.array(["a", "b", "c"]), objects.label_matrix(3), objects=objects)
    assert split.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    part = split[[False, True, True]]
    assert part.images.tolist() == ["b", "c"] and part.labels.tolist() == [[0, 0, 0], [0, 0, 1]]
    assert part.objects.image.tolist() == [1] and part.objects.areas.tolist() == [2]
    train, test = split.stratified_split(1)  # although each class is in one image
    assert sorted([*train.objects.areas, *test.objects.areas]) == [0, 1, 2]


@pytest.mark.parametrize(
    "fields, message",
    [({"image": [1, 0]}, "`image` should be ascending"), ({"image": [0, 7]}, "`image` should be ascending")],
)
def test_invalid_objects(fields, message):
    with pytest.raises(ValueError, match=message):
        objects_of(fields["image"], 2)


def test_objects_of_a_split_are_of_its_images():
    with pytest.raises(ValueError, match="`objects` should be of 2 images"):
        Split(np.array(["a", "b"]), np.zeros((2, 3), "uint8"), objects=objects_of([0], 3))


@pytest.mark.parametrize(
    "segmentation",
    [
        [TRIANGLE],
        [TRIANGLE, [1, 1, 6, 1, 6, 9, 1, 9]],
        {"size": list(SIZE), "counts": [100, 50, 1000, 50]},
        pycoco.encode(np.asfortranarray(np.eye(*SIZE, dtype="uint8"))) | {"size": list(SIZE)},
    ],
    ids=["polygon", "polygons", "runs", "compressed"],
)
def test_masks_are_those_of_pycocotools(segmentation):
    is_raw = isinstance(segmentation, list) or isinstance(segmentation["counts"], list)
    rle = pycoco.frPyObjects(segmentation, *SIZE) if is_raw else segmentation
    expected = pycoco.decode(pycoco.merge(rle) if isinstance(rle, list) else rle).astype(bool)
    if not is_raw:
        segmentation = segmentation | {"counts": segmentation["counts"].decode()}
    masks = np.empty(1, object)
    masks[0] = segmentation
    found = objects_of([0], 1, masks).mask(0)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == bool and found.any() and not found.all()
    encoded = encode_mask(found)
    np.testing.assert_array_equal(pycoco.decode(encoded).astype(bool), expected)


@given(st.lists(st.integers(1, 200), max_size=12), st.booleans())
def test_compressed_runs_are_accepted_if_they_are_all_pixels(runs, starts_with_object):
    """Strings of pycocotools for masks of any runs; with more or fewer runs they are refused."""
    pixels = np.repeat((np.arange(len(runs) + 1) + starts_with_object) % 2, [*runs, 7]).astype("uint8")
    size = (1, len(pixels))
    encoded = pycoco.encode(np.asfortranarray(pixels[None]))["counts"].decode()
    assert encode_mask(pixels.astype(bool)[None]) == {"size": [*size], "counts": encoded}
    check_segmentation({"size": [*size], "counts": encoded}, size)
    for text in (encoded + "1", encoded[:-1]):
        with pytest.raises(ValueError, match="segmentation.counts"):
            check_segmentation({"size": [*size], "counts": text}, size)


BAD_RUNS = ("", "o" * 1000, "P" * 10**6 + "0", "T`", "\ud800", "1~", "0000N1", "`U1Q")
"""Nothing, unfinished numbers, one of millions of bits, other characters, negative lengths, too few pixels."""


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ({"size": [10**9, 10**9], "counts": [10**18]}, r"segmentation.size` should be the height and width"),
        ({"size": [10**9, 10**9], "counts": "abc"}, r"segmentation.size"),
        (
            {"size": list(SIZE), "counts": [10, -10, 1200]},
            r"segmentation.counts` should be lengths of runs of 1200 pixels",
        ),
        ({"size": list(SIZE), "counts": [10, 5]}, "1200 pixels in all"),
        ({"size": list(SIZE), "counts": 7}, "segmentation.counts"),
        *(({"size": list(SIZE), "counts": text}, "1200 pixels in all, or COCO's compressed") for text in BAD_RUNS),
        ({}, "segmentation.size"),
        ([], "a list of polygons"),
        ("abc", "a list of polygons"),
        ([[1, 1, 5, 5]], "three points or more"),
        ([[1, 1, 5, 5, 9]], "three points or more"),
        ([[1, 1, 5, 5, 9, "9"]], "three points or more"),
        ([[1, 1, 5, 5, 9, float("nan")]], "inside the image of 40 x 30"),
        ([[1, 1, 5, 5, 1e9, 9]], "inside the image of 40 x 30"),
        ([1, 1, 5, 5, 9, 9], "three points or more"),
    ],
)
def test_hostile_masks_are_refused_before_memory_is_taken(segmentation, message):
    with pytest.raises(ValueError, match=message):
        decode_mask(segmentation, SIZE)


def test_boxes_and_polygons_may_exceed_the_image_by_rounding():
    check_segmentation([[-0.4, 0, 40.5, 0, 40.5, 30]], SIZE)
