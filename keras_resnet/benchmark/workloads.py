"""Workloads besides a single network, on made-up images: training batches, whole runs, evaluation, extraction."""

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

NUM_IMAGES = 256
"""Number of different images."""
FILE_SIZE = (375, 500)
"""Height and width of the image files: a typical size in ImageNet."""


def input_pipeline(job, folder):
    """A function of a number of steps that returns an iterable of as many training batches, shuffled and augmented.

    CIFAR's images come from memory, padded, cropped and mirrored (He et al. 2015, sec. 4.2), ImageNet's from JPEG
    files, in crops of random size and aspect ratio (Szegedy et al. 2015, arXiv:1409.4842), mirrored.

    Args:
        job: Job.
        folder: Path for the image files.
    """
    return partial(training_batches, _dataset(job, folder, NUM_IMAGES), _recipe(job))


def whole_run(job, folder, steps):
    """Seconds of `steps` steps of `keras_resnet.train`, with its pipeline, metrics and callbacks.

    The second epoch is measured: in the first one the training step is compiled.
    """
    dataset = _dataset(job, folder, steps * job.batch_size)
    run = train(job.model, dataset, _recipe(job), folder / "run", overwrite=True, precision=job.precision, xla=job.xla)
    return run.history["seconds"][1]


def evaluation(model, job, folder):
    """A function of a number of steps that runs `keras_resnet.evaluate` on as many batches, one crop per image.

    CIFAR's images come from memory, ImageNet's from JPEG files.
    """
    return _on_test_images(evaluate, model, job, folder)


def extraction(model, job, folder):
    """The same for the classifier's input vectors, by `keras_resnet.transfer.extract`."""
    return _on_test_images(extract, vector_extractor(model), job, folder)


def _on_test_images(function, model, job, folder):
    dataset = _dataset(job, folder, NUM_IMAGES)
    model.info = {**model_info(model), "preprocessing": dataset.preprocessing.to_config()}

    def run(steps):
        test = dataset.train[np.arange(steps * job.batch_size) % NUM_IMAGES]
        function(model, replace(dataset, test=test), batch_size=job.batch_size)

    return run


def _recipe(job):
    crop = "pad" if _in_memory(job) else "random_resized"
    return Recipe(epochs=2, batch_size=job.batch_size, crop=crop, flip=True)


def _in_memory(job):
    return get_spec(job.model).stem == "cifar"


def _dataset(job, folder, count):
    """A Dataset with `count` training images, NUM_IMAGES of them different, and a batch of test images."""
    images = _pixels(job) if _in_memory(job) else _files(folder)
    names = tuple(str(index) for index in range(get_spec(job.model).default_classes))
    train, test = (
        Split(images[np.arange(size) % NUM_IMAGES], np.zeros(size, "int32")) for size in (count, job.batch_size)
    )
    resize = None if _in_memory(job) else job.image_size * 8 // 7
    return Dataset("made up", train, test, names, Preprocessing("torch", size=job.image_size, resize=resize))


def _pixels(job):
    """(NUM_IMAGES, H, W, 3) uint8 noise."""
    return np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, job.image_size, job.image_size, 3), "uint8")


def _files(folder):
    """(NUM_IMAGES,) paths of JPEG files as slow to decode as photographs: smooth shapes under a little noise."""
    from PIL import Image

    generator, paths = np.random.default_rng(0), []
    for index in range(NUM_IMAGES):
        shapes = Image.fromarray(generator.integers(0, 256, (12, 16, 3), "uint8"))
        smooth = np.asarray(shapes.resize(FILE_SIZE[::-1], Image.Resampling.BICUBIC), "float32")
        noisy = np.clip(smooth + generator.normal(0, 8, smooth.shape), 0, 255).astype("uint8")
        paths.append(str(folder / f"{index}.jpg"))
        Image.fromarray(noisy).save(paths[-1], quality=90)
    return np.array(paths)
