"""Training batches of localizers: boxes stay around their objects, and batches depend on seed and step alone."""

import keras
import numpy as np
import pytest
from PIL import Image

from keras_resnet import Recipe
from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.localization_batches import localization_batches
from keras_resnet.data.objects import Objects
from keras_resnet.data.pipelines import StepRange
from keras_resnet.data.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory):
    """Black images of any size with a white rectangle, of 16 classes: its box is the true one."""
    folder, random = tmp_path_factory.mktemp("rectangles"), np.random.default_rng(0)
    paths, boxes, sizes = [], [], []
    for number in range(16):
        height, width = random.integers(40, 90, 2).tolist()
        (x1, x2), (y1, y2) = (
            np.sort(random.choice(np.arange(2, side - 2), 2, replace=False)) for side in (width, height)
        )
        box = [x1, y1, max(x2, x1 + 8), max(y2, y1 + 8)]
        pixels = np.zeros((height, width, 3), "uint8")
        pixels[box[1] : box[3], box[0] : box[2]] = 255
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(pixels).save(paths[-1])
        boxes.append([box[0], box[1], min(box[2], width), min(box[3], height)])
        sizes.append([height, width])
    labels, no = np.arange(16, dtype="int32"), np.zeros(16, bool)
    objects = Objects(
        np.arange(16), np.array(boxes, "float32"), labels, no, no, np.ones(16), None, np.array(sizes), np.array(paths)
    )
    split = Split(np.array(paths), labels, None, objects)
    names = tuple(f"class {label}" for label in labels)
    return Dataset("rectangles", split, split, names, Preprocessing("tf", size=64, resize=64))


def arrays(dataset, recipe, steps, **part):
    """The batches as NumPy arrays: images, labels, targets."""
    batches = localization_batches(dataset, recipe, StepRange.of(recipe, steps, **part))
    names = ("images", "labels", "targets")
    return [[keras.ops.convert_to_numpy(inputs[name]) for name in names] for inputs, _ in batches]


RECIPE = Recipe(epochs=1, batch_size=8, flip=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop": "none"},
        {"crop": "random_resized", "scale": (0.3, 1.0)},
        {"crop": "scale_jitter", "scale": (64, 100)},
        {"crop": "pad", "padding": 9},
    ],
)
def test_boxes_stay_around_their_objects(rectangles, changes):
    found = 0
    for images, labels, targets in arrays(rectangles, Recipe(epochs=1, batch_size=8, flip=True, **changes), 8):
        np.testing.assert_array_equal(labels.argmax(axis=1), targets[:, 4])
        for image, (x1, y1, x2, y2, _, weight) in zip(images, targets, strict=True):
            rows, columns = (np.flatnonzero((image[..., 0] > 0).any(axis=axis)) for axis in (1, 0))
            if len(rows) and weight:
                pixels = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                np.testing.assert_allclose([64 * side for side in (x1, y1, x2, y2)], pixels, atol=1.01)
                found += 1
            else:
                assert weight == 0 or min(x2 - x1, y2 - y1) < 2 / 64
    assert found > 32


def test_mirrored_and_unmirrored_images_occur(rectangles):
    boxes = np.concatenate([targets for *_, targets in arrays(rectangles, RECIPE, 12)])
    assert all(len(np.unique(boxes[boxes[:, 4] == label], axis=0)) == 2 for label in range(16))


def test_batches_depend_on_seed_and_step_alone(rectangles):
    whole = arrays(rectangles, RECIPE, 4, seed=3)
    for later, expected in zip(arrays(rectangles, RECIPE, 2, seed=3, first=2), whole[2:], strict=True):
        for values, others in zip(later, expected, strict=True):
            np.testing.assert_array_equal(values, others)
    parts = [arrays(rectangles, RECIPE, 4, seed=3, share=(part, 2)) for part in range(2)]
    for first, second, expected in zip(*parts, whole, strict=True):
        for values in zip(first, second, expected, strict=True):
            np.testing.assert_array_equal(np.concatenate(values[:2]), values[2])
    assert not np.array_equal(arrays(rectangles, RECIPE, 1, seed=4)[0][0], whole[0][0])
    seen = np.concatenate([labels.argmax(axis=1) for _, labels, _ in whole[:2]])
    np.testing.assert_array_equal(np.sort(seen), np.arange(16))
