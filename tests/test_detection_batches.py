"""Training batches of detectors: every image once per epoch, the same from any step, in parts, and by any threads."""

from collections import Counter
from dataclasses import replace

import keras
import numpy as np
import pytest
from annotated_images import SPLITS, write_coco, write_text
from support import png_bytes

from keras_resnet import Recipe, load_dataset
from keras_resnet.data import prefetch
from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.detection_batches import detection_batches, shuffled_batches
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.objects import Objects
from keras_resnet.data.pipelines import StepRange
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.normalization import Normalization

PREPROCESSING = DetectionPreprocessing(Normalization(divisor=1.0), min_size=32, max_size=64, divisor=4)
PLAIN = Recipe(epochs=1, batch_size=4, loss="detection")
RECIPE = replace(PLAIN, crop="large_scale_jitter", scale=(0.3, 1.2), flip=True, lighting=0.1)
SIZES = [(32, 32), (32, 60), (60, 32), (40, 36)]


def boxes_in(objects):
    """Objects of images from (size, [(box, label, crowd, difficult), ...]), the boxes as masks."""
    rows = [(number, *row) for number, (_, found) in enumerate(objects) for row in found]
    masks = np.empty(len(rows), object)
    for index, (number, (x1, y1, x2, y2), *_) in enumerate(rows):
        mask = np.zeros(objects[number][0], "uint8")
        mask[round(y1) : round(y2), round(x1) : round(x2)] = 1
        runs = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0, append=0))
        counts = np.diff(runs, prepend=0, append=mask.size).tolist()
        masks[index] = {"size": [*mask.shape], "counts": counts}
    return Objects(
        image=np.array([row[0] for row in rows], "int64"),
        boxes=np.array([row[1] for row in rows], "float32").reshape(-1, 4),
        labels=np.array([row[2] for row in rows], "int32"),
        crowd=np.array([row[3] for row in rows], bool),
        difficult=np.array([row[4] for row in rows], bool),
        areas=np.ones(len(rows)),
        masks=masks,
        sizes=np.array([size for size, _ in objects], "int32"),
        image_ids=np.array([f"number {number}" for number in range(len(objects))], object),
    )


def dataset_of(objects, images):
    split = Split(images, objects.label_matrix(5), objects=objects)
    return Dataset("drawings", split, split, tuple("abcde"), Preprocessing("torch", 32, None))


@pytest.fixture(scope="module")
def numbered():
    """30 PNG files of four sizes, whose red level is their index; number n has n % 4 objects, of the class n % 5."""
    content = np.empty(30, object)
    objects = []
    for number in range(30):
        height, width = SIZES[number % 4]
        pixels = np.zeros((height, width, 3), "uint8")
        pixels[..., 0] = number
        content[number] = png_bytes(pixels)
        boxes = [(3 + 4 * k, 2 + 3 * k, 12 + 5 * k, 13 + 5 * k) for k in range(number % 4)]
        objects.append(((height, width), [(box, number % 5, False, False) for box in boxes]))
    return dataset_of(boxes_in(objects), content)


def read(dataset, recipe=RECIPE, steps=7, preprocessing=PREPROCESSING, losses=(), has_masks=False, **part):
    """List of the batches as (x, y) of NumPy arrays."""
    steps = StepRange.of(recipe, steps, **part)
    batches = detection_batches(dataset, recipe, preprocessing, steps, losses, has_masks)
    return [keras.tree.map_structure(np.asarray, batch) for batch in batches]


def numbers_of(batches):
    """Indices of the images of `numbered` in batches that keep the colours."""
    return [round(level) for x, _ in batches for level in x["images"][:, 0, 0, 0]]


def assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    keras.tree.map_structure(np.testing.assert_array_equal, found, expected)


@pytest.mark.portable
def test_every_image_once_per_epoch_in_another_order(numbered):
    epochs = [numbers_of(read(numbered, PLAIN, first=7 * epoch)) for epoch in range(3)]
    for numbers in epochs:
        assert len(numbers) == len(set(numbers)) == 28
    others = numbers_of(read(numbered, PLAIN, seed=1))
    assert len({tuple(numbers) for numbers in (*epochs, others)}) == 4
    assert {tuple(sorted(set(range(30)) - set(numbers))) for numbers in epochs} != {(28, 29)}
    assert numbers_of(read(numbered, PLAIN, steps=21)) == [number for numbers in epochs for number in numbers]


@pytest.mark.portable
@pytest.mark.parametrize("has_masks", [False, True])
def test_a_batch_is_the_same_from_any_step_in_parts_and_by_any_threads(numbered, has_masks, monkeypatch):
    options = {"seed": 5, "losses": ("a", "b"), "has_masks": has_masks}
    expected = read(numbered, steps=9, **options)
    assert_equal(read(numbered, steps=4, first=5, **options), expected[5:])
    assert len({x["images"].shape for x, _ in expected}) > 3
    assert len(np.unique([x["images"][:, 0, 0, 2] for x, _ in expected])) == 36  # a colour for each image, added to 0
    parts = [read(numbered, steps=9, share=(part, 2), **options) for part in range(2)]
    joined = [
        keras.tree.map_structure(lambda *rows: np.concatenate(rows), *batch) for batch in zip(*parts, strict=True)
    ]
    assert_equal(joined, expected)
    for threads in (1, 8):
        monkeypatch.setattr(prefetch, "THREADS", threads)
        assert_equal(read(numbered, steps=9, **options), expected)
    assert not np.array_equal(read(numbered, steps=1, **options | {"seed": 6})[0][0]["keys"], expected[0][0]["keys"])


@pytest.mark.portable
def test_contents_of_a_batch(numbered):
    """Without a crop: the test preprocessing of the images, torchvision's scaled boxes, labels from 1, and keys."""
    x, y = read(numbered, PLAIN, steps=1, first=8, seed=3, losses=("objectness", "mask"), has_masks=True)[0]
    numbers = numbers_of([(x, y)])
    images = PREPROCESSING([np.asarray(image) for image in map(decoded, numbered.train.images[numbers])])
    np.testing.assert_allclose(x["images"], images.images, atol=1e-4)
    assert x["images"].dtype == x["boxes"].dtype == np.float32 and x["masks"].dtype == np.uint8
    assert x["labels"].dtype == x["keys"].dtype == np.int32
    assert x["keys"].tolist() == [[3, position] for position in range(32, 36)]
    assert {name: values.tolist() for name, values in y.items()} == dict.fromkeys(("objectness", "mask"), [0.0] * 4)
    count = max(1, max(number % 4 for number in numbers))
    assert x["boxes"].shape == (4, count, 4) and x["masks"].shape == (4, count, *x["images"].shape[1:3])
    for row, number in enumerate(numbers):
        objects = numbered.train.objects.select([number])
        ratio = images.sizes[row] / images.original_sizes[row]
        expected = np.zeros((count, 4))
        expected[: number % 4] = objects.boxes * ratio[[1, 0, 1, 0]]
        np.testing.assert_allclose(x["boxes"][row], expected, rtol=1e-5)
        np.testing.assert_array_equal(x["labels"][row], [number % 5 + 1] * (number % 4) + [0] * (count - number % 4))
        areas = (expected[:, 2:] - expected[:, :2]).prod(axis=1)
        np.testing.assert_allclose(x["masks"][row].sum(axis=(1, 2)), areas, rtol=0.25)


def decoded(content):
    import io

    from PIL import Image

    return Image.open(io.BytesIO(content))


def test_batches_have_one_group_of_aspect_ratios_where_images_suffice():
    """Groups as torchvision's create_aspect_ratio_groups(k=3) makes them; the shares of images left over are small."""
    generator = np.random.default_rng(0)
    sizes = np.exp(generator.normal(6, 0.5, (1003, 2))).astype(int)
    limits = [2 ** (-1 + k / 3) for k in range(7)]
    groups = np.array([sum(width / height >= limit for limit in limits) for height, width in sizes])
    for epoch in range(3):
        batches = shuffled_batches(sizes, 8, 0, epoch)
        assert batches.shape == (125, 8) and len(set(batches.ravel())) == 1000
        mixed = [batch for batch in batches if len(set(groups[batch])) > 1]
        assert len(mixed) <= len(set(groups)) - 1
        kept = Counter(groups[batches].ravel())
        assert len(batches) - len(mixed) >= sum(count // 8 for count in kept.values())
        assert len(set(groups[batches[:20, 0]])) > 3  # the groups are not in order


def test_every_image_is_used_over_the_epochs():
    """Left out images are random: each of 10 is left out of 1,000 epochs of 3 batches about 100 times."""
    sizes = np.array([[10, 10]] * 5 + [[10, 30]] * 5)
    used = Counter(np.concatenate([shuffled_batches(sizes, 3, 0, epoch).ravel() for epoch in range(1000)]).tolist())
    left = 1000 - np.array([used[number] for number in range(10)])
    assert left.sum() == 1000 and abs(left - 100).max() < 3.5 * 9.5


@pytest.mark.portable
def test_crowds_difficult_and_empty_objects_are_not_trained():
    content = np.array([png_bytes(np.zeros((40, 40, 3), "uint8"))] * 2, object)
    first = [
        ((1, 1, 9, 9), 0, True, False),
        ((2, 2, 9, 9), 1, False, True),
        ((3, 3, 3, 9), 2, False, False),
        ((4, 4, 9, 9), 3, False, False),
    ]
    dataset = dataset_of(boxes_in([((40, 40), first), ((40, 40), first[:3])]), content)
    recipe = replace(PLAIN, batch_size=2)
    for has_masks in (False, True):
        x, _ = read(dataset, recipe, 1, replace(PREPROCESSING, min_size=40), has_masks=has_masks)[0]
        assert sorted(x["labels"].tolist()) == [[0], [4]]
        assert sorted(x["boxes"].tolist()) == [[[0, 0, 0, 0]], [[4, 4, 9, 9]]]


@pytest.mark.portable
def test_train_size_is_the_shorter_side(numbered):
    x, _ = read(numbered, replace(PLAIN, train_size=64), 1)[0]
    sides = (
        (~np.isnan(x["images"][..., 0])).any(axis=2).sum(axis=1),
        (~np.isnan(x["images"][..., 0])).any(axis=1).sum(1),
    )
    assert set(np.minimum(*sides)) <= {64, 68} and np.max(sides) <= 128


@pytest.mark.portable
def test_unreadable_images_are_named(numbered):
    images = numbered.train.images.copy()
    images[7] = b"damaged"
    damaged = replace(numbered, train=replace(numbered.train, images=images))
    with pytest.raises(Exception, match="Image 'number 7' of the training data cannot be read.*not an image"):
        read(damaged)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute divides batches of tf.data")
def test_batches_are_divided_among_replicas(numbered):
    """As `Devices.distribute` divides them, by `rebatch`; the number of steps is known."""
    whole = read(numbered, steps=5, losses=("a",), has_masks=True)
    batches = detection_batches(numbered, RECIPE, PREPROCESSING, StepRange.of(RECIPE, 5), ("a",), has_masks=True)
    assert int(batches.cardinality()) == 5
    halves = [keras.tree.map_structure(np.asarray, batch) for batch in batches.rebatch(2)]
    joined = [
        keras.tree.map_structure(lambda *rows: np.concatenate(rows), *pair)
        for pair in zip(halves[::2], halves[1::2], strict=True)
    ]
    assert_equal(joined, whole)


@pytest.mark.portable
@pytest.mark.parametrize(("name", "has_masks"), [("bccd", False), ("tiny_coco", True)])
def test_real_data(name, has_masks, test_data):
    """An epoch of large-scale jitter: no NaN but padding, boxes in their images, masks in their boxes."""
    dataset = load_dataset(test_data / name, skip_bad=True)
    preprocessing, recipe = DetectionPreprocessing(min_size=96, max_size=160), replace(RECIPE, scale=(0.3, 1.5))
    steps = min(12, len(dataset.train) // 4)
    found = 0
    for x, _ in read(dataset, recipe, steps, preprocessing, has_masks=has_masks):
        for row, image in enumerate(x["images"]):
            size = (~np.isnan(image)).any(axis=(1, 2)).sum(), (~np.isnan(image)).any(axis=(0, 2)).sum()
            assert not np.isnan(image[: size[0], : size[1]]).any() and np.isnan(image[size[0] :]).all()
            used = x["labels"][row] > 0
            boxes = x["boxes"][row, used]
            assert (boxes >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()
            assert (boxes[:, 2:] <= size[::-1]).all() and not x["boxes"][row, ~used].any()
            assert x["labels"][row].max(initial=0) <= len(dataset.class_names)
            found += used.sum()
            for box, mask in zip(boxes, x["masks"][row, used] if has_masks else (), strict=has_masks):
                rows, columns = np.nonzero(mask)
                outside = (columns + 2 < box[0]) | (columns - 1 > box[2]) | (rows + 2 < box[1]) | (rows - 1 > box[3])
                assert outside.mean() < 0.05
    assert found > 2 * steps


@pytest.mark.portable
def test_files_of_annotated_images(tmp_path):
    """They are read by their paths; a file that was damaged meanwhile is named."""
    folder = write_coco(tmp_path / "insects") / "train2017"
    dataset = load_dataset(folder.parent)
    paths = np.array([str(folder / f"{name}.png") for name in SPLITS["train"]])
    dataset = replace(dataset, train=replace(dataset.train, images=paths))
    recipe = replace(PLAIN, batch_size=1)
    batches = read(dataset, recipe, 3)
    assert sorted((x["labels"] > 0).sum() for x, _ in batches) == [0, 2, 3]
    write_text(folder / "two.png", "")
    with pytest.raises(Exception, match="two.png.*the file is empty"):
        read(dataset, recipe, 3)
