"""Training batches of detectors: images of similar aspect ratio with their boxes and masks, from any step of a run.

The images of a batch are a function of (seed, epoch), and what happens to each of them of (seed, its position in the
run): a run can be resumed at any step, and nothing depends on the number of machines that share a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, tee
from typing import Any

import numpy as np

from keras_resnet.data.datasets import Split
from keras_resnet.data.detection_augmentation import Augmentation, TrainingImage, sample_augmentation
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.objects import Objects
from keras_resnet.data.pipelines import StepRange, generated_batches
from keras_resnet.data.prefetch import images_at, map_in_threads

ASPECT_RATIOS = 2.0 ** np.linspace(-1, 1, 7)
"""Limits of the groups of width to height, equally spaced in the logarithm, as in torchvision's references with k=3."""


def detection_batches(dataset, recipe, preprocessing, steps, losses=(), has_masks=False):
    """Shuffled and augmented batches of images with objects for some steps of a run.

    Objects that are crowds, difficult or left without an area are left out; images without objects are background.

    Args:
        dataset: a Dataset whose training images have objects, all with masks if `has_masks`.
        recipe: Recipe, with a crop for detectors.
        preprocessing: DetectionPreprocessing of the detector; the recipe's `train_size` takes the place of its sizes.
        steps: StepRange of the batches; a part of a batch has the shape that it has in the whole batch.
        losses: names of the losses that the model outputs.
        has_masks: whether batches have masks.

    Returns:
        Pairs of a dict and {loss: (B,) zeros}, as of `generated_batches`. The dict has `images` (B, H, W, 3) float32,
        normalised, padded with NaN; `boxes` (B, G, 4) float32, (x1, y1, x2, y2) in pixels of these images; `labels`
        (B, G) int32, from 1, and 0 for padding; `keys` (B, 2) int32, the seed and the image's position in the run; with
        masks `masks` (B, G, H, W) uint8.

    Raises:
        ValueError: while batches are read, for an image that cannot be read, with its name.
    """
    split = dataset.train
    objects = split.objects.keep(~(split.objects.crowd | split.objects.difficult))
    sizes = preprocessing.for_size(recipe.train_size)
    batches = _Batches(split, objects, recipe, sizes, steps, tuple(losses), has_masks)
    inputs = {
        "images": ((None, None, 3), "float32"),
        "boxes": ((None, 4), "float32"),
        "labels": ((None,), "int32"),
        "keys": ((2,), "int32"),
    }
    if has_masks:
        inputs["masks"] = ((None, None, None), "uint8")
    return generated_batches(batches.iterate, inputs, losses, steps)


@dataclass(frozen=True, eq=False)
class _Batches:
    """The batches of a run, or a part of each."""

    split: Split
    objects: Objects
    """Those that are trained."""
    recipe: Any
    preprocessing: DetectionPreprocessing
    """With the sizes of training."""
    steps: StepRange
    losses: tuple[str, ...]
    has_masks: bool

    def iterate(self) -> Iterator[tuple[dict, dict]]:
        """Yields the batches; threads read one of them ahead."""
        plans, copies = tee(self._plans())
        part = self.steps.part
        rows = (row for _, plan in copies for row in plan[part])
        size = part.stop - part.start
        images = map_in_threads(self._read, rows, ahead=size)
        for step, plan in plans:
            yield self._batch(step, [augmentation for _, augmentation in plan], list(islice(images, size)))

    def _plans(self) -> Iterator[tuple[int, list[tuple[int, Augmentation]]]]:
        """Yields each step with the images of its whole batch, as their indices and what happens to them."""
        batch_size, sizes = self.steps.batch_size, self.objects.sizes
        epoch_order = lru_cache(1)(lambda epoch: shuffled_batches(sizes, batch_size, self.steps.seed, epoch))
        for step in self.steps.numbers:
            epoch, number = divmod(step, len(sizes) // batch_size)
            indices = epoch_order(epoch)[number].tolist()
            positions = range(step * batch_size, (step + 1) * batch_size)
            yield step, [(index, self._sample(index, at)) for index, at in zip(indices, positions, strict=True)]

    def _sample(self, index, position):
        random = np.random.default_rng((self.steps.seed, position, 2))
        return sample_augmentation(self.objects.select([index]), self.recipe, self.preprocessing, random)

    def _read(self, row) -> TrainingImage:
        index, augmentation = row
        (image,) = images_at(self.split, [index])
        return augmentation(image, self.preprocessing.mode, self.has_masks)

    def _batch(self, step, augmentations, images):
        """The images of the part as arrays, whose shapes are those of the whole batch."""
        size = self.preprocessing.padded_size([it.crop.size for it in augmentations])
        count = max(1, *(len(it.objects) for it in augmentations))
        positions = np.arange(step * self.steps.batch_size, (step + 1) * self.steps.batch_size)[self.steps.part]
        x = {
            "images": self.preprocessing.pad([image.pixels for image in images], size),
            "boxes": np.zeros((len(images), count, 4), "float32"),
            "labels": np.zeros((len(images), count), "int32"),
            "keys": np.stack([np.full_like(positions, self.steps.seed), positions], axis=1).astype("int32"),
        }
        if self.has_masks:
            x["masks"] = np.zeros((len(images), count, *size), "uint8")
        for row, image in enumerate(images):
            objects = len(image.boxes)
            x["boxes"][row, :objects], x["labels"][row, :objects] = image.boxes, image.labels + 1
            if self.has_masks:
                x["masks"][row, :objects, : image.pixels.shape[0], : image.pixels.shape[1]] = image.masks
        return x, {name: np.zeros(len(images), "float32") for name in self.losses}


def shuffled_batches(sizes: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The images of each batch of an epoch: of one group of aspect ratios, but for those that fill no batch.

    What is left of the groups makes batches of neighbouring groups.

    >>> import numpy as np
    >>> from keras_resnet.data.detection_batches import shuffled_batches
    >>> sizes = np.array([[10, 20], [20, 10]] * 5)
    >>> (shuffled_batches(sizes, batch_size=2, seed=0, epoch=0) % 2).tolist()
    [[1, 1], [0, 0], [0, 0], [1, 0], [1, 1]]

    Args:
        sizes: (N, 2), height and width of the images.
        batch_size: at most N. The images of an epoch are N, without a random remainder that fills no batch.
        seed: of the run.
        epoch: its number; each has another order.

    Returns:
        (N // batch_size, batch_size) integers, indices of images.
    """
    random = np.random.default_rng((seed, epoch, 0))
    used = random.permutation(len(sizes))[: len(sizes) // batch_size * batch_size]
    groups = np.digitize(sizes[used, 1] / sizes[used, 0], ASPECT_RATIOS)
    by_group = np.argsort(groups, kind="stable")
    counts = np.bincount(groups)
    rank = np.arange(len(used)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_left = rank >= np.repeat(counts // batch_size * batch_size, counts)
    order = np.concatenate([by_group[~is_left], by_group[is_left]])
    return random.permutation(used[order].reshape(-1, batch_size))
