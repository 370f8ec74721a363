"""The training of a detector as `train` runs it, on made-up images with objects."""

from functools import cached_property
from pathlib import Path

import numpy as np

from keras_resnet.benchmark.workloads import image_files
from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.detection_batches import detection_batches
from keras_resnet.data.objects import Objects
from keras_resnet.data.pipelines import StepRange
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.models.create import create
from keras_resnet.training.distribution import Devices
from keras_resnet.training.model_setup import Start
from keras_resnet.training.options import RunOptions
from keras_resnet.training.recipes import get_recipe
from keras_resnet.training.train import RunData

RECIPE = "torchvision_detection"
LEARNING_RATE = 1e-5
"""So small that the last steps of a benchmark do the same work as the first ones."""
FILE_SIDE = 480
"""Shorter side of the image files, as in most images of COCO."""
OBJECTS = 10
"""Objects in an image, whose sides are SIDES[0] to SIDES[1] of those of the image; so in torchvision_networks.py."""
SIDES = (1 / 16, 1 / 2)
POLYGON_POINTS = 24
"""Points of the polygon that is the mask of an object."""
FEATURE_SCALE = 1 / 64
"""Factor of the first convolution. Frozen batch norms with their initial statistics let the features grow from block to
block; with such features, proposals would be many times as large as with trained weights, and few."""


class DetectorTraining:
    """The run that trains a detector with random weights as one with published weights would be.

    Its batch norms are frozen, except those of detectors in which they are always trained, and its first stages.

    Args:
        job: a Job for a detector.
        folder: Path for image files.
    """

    def __init__(self, job, folder):
        self.job, self.folder = job, Path(folder)

    @cached_property
    def run(self):
        """The RunData."""
        sides, batch_size = self.job.image_size, self.job.batch_size
        model = create(self.job.model, min_size=min(sides), max_size=max(sides))
        first = next(layer for layer in model.layers if hasattr(layer, "kernel"))
        first.kernel.assign(first.kernel * FEATURE_SCALE)
        dataset = made_up_dataset(self.folder, sides, model.spec.classes - 1)
        recipe = get_recipe(RECIPE, batch_size=batch_size, learning_rate=LEARNING_RATE, warmup=0.0)
        return RunData(Start(model), dataset, recipe, RunOptions(xla=self.job.xla), Devices())

    def batches(self, steps):
        """The batches of `steps` steps, with the crops and the augmentation of the job's recipe."""
        recipe = get_recipe(self.job.recipe or RECIPE, batch_size=self.job.batch_size)
        losses, has_masks = list(self.run.model.output), self.run.network.spec.mask_head
        numbers = StepRange.of(recipe, steps)
        return detection_batches(self.run.dataset, recipe, self.run.preprocessing, numbers, losses, has_masks)


def made_up_dataset(folder, image_size, num_classes):
    """A Dataset of JPEG files, which have `image_size` after resizing, with objects in random places."""
    size = np.multiply(image_size, FILE_SIDE / min(image_size)).round().astype("int32")
    paths = image_files(folder, size.tolist())
    objects = made_up_objects(np.tile(size, (len(paths), 1)), num_classes)
    split = Split(paths, objects.label_matrix(num_classes), objects=objects)
    names = tuple(str(index) for index in range(num_classes))
    return Dataset("made up", split, split, names, Preprocessing("torch"))


def made_up_objects(sizes, num_classes):
    """Objects in images of some sizes (N, 2), height and width: boxes around ellipses, which are their masks."""
    random, image = np.random.default_rng(0), np.repeat(np.arange(len(sizes)), OBJECTS)
    sides = sizes[image, ::-1]
    axes = sides * random.uniform(*SIDES, sides.shape) / 2
    centres = axes + random.random(sides.shape) * (sides - 2 * axes)
    angles = np.linspace(0, 2 * np.pi, POLYGON_POINTS, endpoint=False)
    points = centres[:, None] + axes[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    masks = np.empty(len(image), object)
    masks[:] = [[polygon.ravel().tolist()] for polygon in points]
    return Objects(
        image=image,
        boxes=np.concatenate([centres - axes, centres + axes], axis=1).astype("float32"),
        labels=random.integers(0, num_classes, len(image)).astype("int32"),
        crowd=np.zeros(len(image), bool),
        difficult=np.zeros(len(image), bool),
        areas=np.pi * axes.prod(axis=1),
        masks=masks,
        sizes=sizes,
        image_ids=np.arange(len(sizes)).astype(object),
    )
