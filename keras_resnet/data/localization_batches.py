"""Training batches of localizers: images of one class with the box of an object, cropped and mirrored with them.

All random numbers are a function of (seed, step) and of an image's position in the batch, as in `pipelines.py`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_resnet.data.augmentation import TRAIN_CROPS, crop_corners, sample_numbers
from keras_resnet.data.datasets import Dataset
from keras_resnet.data.objects import Objects
from keras_resnet.data.pipelines import StepRange, compiled_augmentation, generated_batches
from keras_resnet.data.prefetch import images_at, map_in_threads
from keras_resnet.data.random_numbers import NumPyRandom
from keras_resnet.data.threaded_batches import read_crops, sample_crops, shuffled_indices


def localization_batches(dataset: Dataset, recipe: Any, steps: StepRange, losses: Sequence[str] = ()) -> Any:
    """Shuffled, augmented and normalised batches with boxes for some steps of a run.

    Args:
        dataset: a Dataset whose training images have one class and boxes.
        recipe: Recipe.
        steps: StepRange of the batches.
        losses: names of the losses that the model outputs.

    Returns:
        Pairs of {"images": (B, H, W, C), "labels": (B, K), "targets": (B, 6)} float32 and {loss: (B,) zeros}, as of
        `generated_batches`. A target has the box of `boxes_in_crops`, the class, and 1, or 0 without a box.
    """
    side = recipe.train_size or dataset.preprocessing.size
    inputs = {
        "images": ((side, side, dataset.preprocessing.channels), "float32"),
        "labels": ((len(dataset.class_names or ()),), "float32"),
        "targets": ((6,), "float32"),
    }
    return generated_batches(partial(_iterate, dataset, recipe, steps, losses), inputs, losses, steps)


def _iterate(dataset, recipe, steps, losses):
    """Yields the batches of a StepRange, read by threads."""
    split, preprocessing = dataset.train, dataset.preprocessing
    augment = compiled_augmentation(recipe, len(dataset.class_names), preprocessing.mode)

    def read(batch):
        step, indices = batch
        random, objects = NumPyRandom(steps.seed, step, (steps.batch_size, steps.part)), split.objects.select(indices)
        crops = sample_crops(objects.sizes, recipe, preprocessing, random)
        pixels = read_crops(images_at(split, indices), crops, recipe, preprocessing)
        numbers = sample_numbers(recipe, random)
        images, labels = map(keras.ops.convert_to_numpy, augment(pixels, split.labels[indices], numbers, None))
        boxes = boxes_in_crops(objects, crops[0], *_shifts_and_flips(numbers, recipe, pixels.shape[1]))
        targets = np.concatenate([boxes[:, :4], split.labels[indices][:, None], boxes[:, 4:]], axis=1)
        inputs = {"images": images, "labels": labels, "targets": targets.astype("float32")}
        return inputs, {name: np.zeros(len(images), "float32") for name in losses}

    yield from map_in_threads(read, shuffled_indices(split, steps))


def _shifts_and_flips(numbers, recipe, side):
    """What `augment_batch` does to each crop: where it begins (B, 2), and whether it is mirrored (B,)."""
    padding = recipe.padding if TRAIN_CROPS[recipe.crop].on_batches else 0
    shifts = (keras.ops.convert_to_numpy(crop_corners(numbers["crop"], padding)) - padding) / side
    flips = keras.ops.convert_to_numpy(numbers["flip"]) < 0.5
    return shifts, flips if recipe.flip else np.zeros_like(flips)


def boxes_in_crops(objects: Objects, crops: np.ndarray, shifts: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """The largest box in each crop: (B, 5) float64, x1, y1, x2, y2 as shares of its sides, and 1; zeros without a box.

    >>> import numpy as np
    >>> from keras_resnet.data.objects import Objects
    >>> no = np.zeros(1, bool)
    >>> objects = Objects(np.array([0]), np.array([[10, 0, 30, 20]], "float32"), np.array([0], "int32"), no, no,
    ...                   np.ones(1), None, np.array([[40, 40]]), np.array(["a"]))
    >>> boxes_in_crops(objects, np.array([[10, 20, 20, 20]]), np.array([[0.0, 0.0]]), np.array([True])).tolist()
    [[0.5, 0.0, 1.0, 0.5, 1.0]]

    Args:
        objects: the objects in B images.
        crops: (B, 4), top, left, height and width in pixels.
        shifts: (B, 2), row and column at which the image begins in its crop, which may be outside, as shares of the
            sides.
        flips: (B,) bool: whether the crop is mirrored.
    """
    top, left, height, width = crops[objects.image].astype("float64").T
    boxes = (objects.boxes - np.stack([left, top] * 2, axis=1)) / np.stack([width, height] * 2, axis=1)
    x1, y1, x2, y2 = (np.clip(boxes, 0, 1) - np.tile(shifts[objects.image][:, ::-1], 2)).T
    mirrored = flips[objects.image]
    x1, x2 = np.where(mirrored, 1 - x2, x1), np.where(mirrored, 1 - x1, x2)
    boxes = np.clip(np.stack([x1, y1, x2, y2], axis=1), 0, 1)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    by_area = np.argsort(areas, kind="stable")
    found = np.zeros((len(crops), 5))
    for index in by_area[areas[by_area] > 0]:  # the largest box of an image comes last
        found[objects.image[index]] = [*boxes[index], 1]
    return found
