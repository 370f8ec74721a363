"""The input pipeline that a network would be trained through, over pictures made up for it."""

from functools import partial

import numpy as np

from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.pipelines import training_batches
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.training.recipes import Recipe
from keras_resnet.variants import get_spec

PICTURES = 256
PHOTOGRAPH = (375, 500)
"""Height and width of ImageNet's typical file."""


def input_pipeline(job, folder):
    """Function of a number of steps: as many batches, shuffled and augmented as for training, as an iterable.

    CIFAR's pictures come from memory, padded, cropped and mirrored (He et al. 2015, sec. 4.2), ImageNet's from JPEG
    files, as windows of random size and proportions (Szegedy et al. 2015, arXiv:1409.4842), mirrored.

    Args:
        job: Job.
        folder: Path for the files.
    """
    in_memory = get_spec(job.model).stem == "cifar"
    pictures = _pixels(job) if in_memory else _files(folder)
    split = Split(pictures, np.zeros(PICTURES, "int32"))
    preprocessing = Preprocessing("torch", size=job.image_size, resize=None)
    dataset = Dataset("made up", split, split, ("nothing",), preprocessing)
    crop = "pad" if in_memory else "random_resized"
    recipe = Recipe(epochs=1, batch_size=job.batch_size, crop=crop, flip=True)
    return partial(training_batches, dataset, recipe)


def _pixels(job):
    """(PICTURES, H, W, 3) uint8 noise."""
    return np.random.default_rng(0).integers(0, 256, (PICTURES, job.image_size, job.image_size, 3), "uint8")


def _files(folder):
    """(PICTURES,) paths of JPEG files about as hard to decode as photographs: soft shapes under a little noise."""
    from PIL import Image

    generator, paths = np.random.default_rng(0), []
    for number in range(PICTURES):
        shapes = Image.fromarray(generator.integers(0, 256, (12, 16, 3), "uint8"))
        soft = np.asarray(shapes.resize(PHOTOGRAPH[::-1], Image.Resampling.BICUBIC), "float32")
        noisy = np.clip(soft + generator.normal(0, 8, soft.shape), 0, 255).astype("uint8")
        paths.append(str(folder / f"{number}.jpg"))
        Image.fromarray(noisy).save(paths[-1], quality=90)
    return np.array(paths)
