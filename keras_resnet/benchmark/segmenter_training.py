"""The training of a segmenter as `train` runs it, on made-up images with masks."""

import io
from functools import cached_property
from pathlib import Path

import numpy as np

from keras_resnet.architecture.segmenter_spec import IGNORED
from keras_resnet.benchmark.workloads import image_files
from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.pipelines import StepRange
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.segmentation_batches import segmentation_batches
from keras_resnet.data.semantic_masks import mask_files
from keras_resnet.models.create import create
from keras_resnet.training.distribution import Devices
from keras_resnet.training.model_setup import Start
from keras_resnet.training.options import RunOptions
from keras_resnet.training.recipes import get_recipe
from keras_resnet.training.train import RunData
from keras_resnet.variants import get_spec

IMAGE_SIZE = (520, 520)
"""Height and width of the images by default: torchvision's shorter side in testing."""
RECIPE = "torchvision_segmentation"
LEARNING_RATE = 1e-5
"""So small that the last steps of a benchmark do the same work as the first ones."""
REGIONS = (12, 16)
"""Rows and columns of the regions of one class in a mask."""


class SegmenterTraining:
    """The run that trains a segmenter with random weights.

    Args:
        job: a Job for a segmenter.
        folder: Path for image files.
    """

    def __init__(self, job, folder):
        self.job, self.folder = job, Path(folder)

    @cached_property
    def run(self):
        """The RunData. Crops have the size of the images."""
        start, options = Start(create(self.job.model)), RunOptions(xla=self.job.xla)
        return RunData(start, self._dataset, self._recipe(RECIPE), options, Devices())

    def batches(self, steps):
        """The batches of `steps` steps, with the crops and the augmentation of the job's recipe."""
        recipe = self._recipe(self.job.recipe or RECIPE)
        losses, numbers = list(self.run.model.output), StepRange.of(recipe, steps)
        return segmentation_batches(self._dataset, recipe, self.run.preprocessing, numbers, losses)

    def _recipe(self, name):
        sizes = {"train_size": None, "test_size": None}
        return get_recipe(name, batch_size=self.job.batch_size, learning_rate=LEARNING_RATE, warmup=0.0, **sizes)

    @cached_property
    def _dataset(self):
        return made_up_dataset(self.folder, self.job.image_size, get_spec(self.job.model).classes)


def made_up_dataset(folder, size, num_classes):
    """A Dataset of JPEG files of a size, (height, width), with masks of rectangular regions of random classes."""
    paths, random = image_files(folder, list(size)), np.random.default_rng(0)
    values = np.array([*range(num_classes), IGNORED], "uint8")
    contents = [_png_mask(random.choice(values, REGIONS), size) for _ in paths]
    masks = mask_files(contents, np.tile(size, (len(paths), 1)), list(map(str, paths)))
    split = Split(paths, masks.label_matrix(num_classes), masks=masks)
    names = tuple(f"class {index}" for index in range(num_classes))
    return Dataset("made up", split, split, names, Preprocessing("torch"))


def _png_mask(regions, size):
    """The contents of a PNG file of a size, in which each pixel has the value of its region."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(regions).resize(size[::-1], Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()
