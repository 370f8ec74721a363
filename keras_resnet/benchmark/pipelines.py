"""The input pipeline that a network would be trained through, a whole run, a test, features, over made-up images."""

from dataclasses import replace
from functools import partial

import numpy as np

from keras_resnet.architecture.metadata import model_info
from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.pipelines import training_batches
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation import evaluate
from keras_resnet.training.recipes import Recipe
from keras_resnet.training.train import train
from keras_resnet.transfer.extraction import extract, vector_extractor
from keras_resnet.variants import get_spec

IMAGES = 256
PHOTOGRAPH = (375, 500)
"""Height and width of ImageNet's typical file."""


def input_pipeline(job, folder):
    """Function of a number of steps: as many batches, shuffled and augmented as for training, as an iterable.

    CIFAR's images come from memory, padded, cropped and mirrored (He et al. 2015, sec. 4.2), ImageNet's from JPEG
    files, as windows of random size and proportions (Szegedy et al. 2015, arXiv:1409.4842), mirrored.

    Args:
        job: Job.
        folder: Path for the files.
    """
    return partial(training_batches, _dataset(job, folder, IMAGES), _recipe(job))


def whole_run(job, folder, steps):
    """Seconds for so many steps of `keras_resnet.train`, pipeline, metrics and callbacks included.

    They are those of a second epoch: in the first, the step is compiled.
    """
    dataset = _dataset(job, folder, steps * job.batch_size)
    run = train(job.model, dataset, _recipe(job), folder / "run", overwrite=True, precision=job.precision, xla=job.xla)
    return run.history["seconds"][1]


def evaluation(model, job, folder):
    """Function of a number of steps: `keras_resnet.evaluate` on as many batches, one crop of each image.

    CIFAR's come from memory, ImageNet's from JPEG files.
    """
    return _over_images(evaluate, model, job, folder)


def extraction(model, job, folder):
    """The same of what the classifier sees, by `keras_resnet.transfer.extract`."""
    return _over_images(extract, vector_extractor(model), job, folder)


def _over_images(look, model, job, folder):
    dataset = _dataset(job, folder, IMAGES)
    model.info = {**model_info(model), "preprocessing": dataset.preprocessing.to_config()}

    def run(steps):
        test = dataset.train[np.arange(steps * job.batch_size) % IMAGES]
        look(model, replace(dataset, test=test), batch_size=job.batch_size)

    return run


def _recipe(job):
    crop = "pad" if _in_memory(job) else "random_resized"
    return Recipe(epochs=2, batch_size=job.batch_size, crop=crop, flip=True)


def _in_memory(job):
    return get_spec(job.model).stem == "cifar"


def _dataset(job, folder, count):
    """So many images to train on, IMAGES of them different; a batch of them to test on."""
    images = _pixels(job) if _in_memory(job) else _files(folder)
    names = tuple(str(number) for number in range(get_spec(job.model).default_classes))
    train, test = (Split(images[np.arange(size) % IMAGES], np.zeros(size, "int32")) for size in (count, job.batch_size))
    resize = None if _in_memory(job) else job.image_size * 8 // 7
    return Dataset("made up", train, test, names, Preprocessing("torch", size=job.image_size, resize=resize))


def _pixels(job):
    """(IMAGES, H, W, 3) uint8 noise."""
    return np.random.default_rng(0).integers(0, 256, (IMAGES, job.image_size, job.image_size, 3), "uint8")


def _files(folder):
    """(IMAGES,) paths of JPEG files about as hard to decode as photographs: soft shapes under a little noise."""
    from PIL import Image

    generator, paths = np.random.default_rng(0), []
    for number in range(IMAGES):
        shapes = Image.fromarray(generator.integers(0, 256, (12, 16, 3), "uint8"))
        soft = np.asarray(shapes.resize(PHOTOGRAPH[::-1], Image.Resampling.BICUBIC), "float32")
        noisy = np.clip(soft + generator.normal(0, 8, soft.shape), 0, 255).astype("uint8")
        paths.append(str(folder / f"{number}.jpg"))
        Image.fromarray(noisy).save(paths[-1], quality=90)
    return np.array(paths)
