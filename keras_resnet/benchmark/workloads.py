"""Workloads besides a single network, on made-up images: training batches, whole runs, evaluation, extraction."""

from functools import cached_property

import numpy as np

from keras_resnet.architecture.metadata import model_info
from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.pipelines import training_batches
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation import evaluate
from keras_resnet.training.options import RunOptions
from keras_resnet.training.recipes import Recipe
from keras_resnet.training.train import train
from keras_resnet.transfer.extraction import extract, vector_extractor
from keras_resnet.variants import get_spec

NUM_IMAGES = 256
"""Number of different images."""
FILE_SIZE = (375, 500)
"""Height and width of the image files: a typical size in ImageNet."""


class Workloads:
    """Tasks of `keras_resnet` beyond single steps. CIFAR's images come from memory, ImageNet's from JPEG files.

    In training, CIFAR's are padded, cropped and mirrored (He et al. 2015, sec. 4.2); of ImageNet's, crops of random
    size and aspect ratio are mirrored (Szegedy et al. 2015, arXiv:1409.4842). In tests, each image is cropped once.

    Args:
        model: the network that is evaluated.
        job: Job.
        folder: Path for the image files.
    """

    def __init__(self, model, job, folder):
        self.model, self.job, self.folder = model, job, folder
        in_memory = get_spec(job.model).stem == "cifar"
        crop = "pad" if in_memory else "random_resized"
        self.images = _pixels(job) if in_memory else _files(folder)
        self.preprocessing = Preprocessing("torch", job.image_size, None if in_memory else job.image_size * 8 // 7)
        self.recipe = Recipe(epochs=2, batch_size=job.batch_size, crop=crop, flip=True)

    def _dataset(self, num_train, num_test):
        """A Dataset in which the NUM_IMAGES images are repeated."""
        sizes = (num_train, num_test)
        train, test = (Split(self.images[np.arange(size) % NUM_IMAGES], np.zeros(size, "int32")) for size in sizes)
        names = tuple(str(index) for index in range(get_spec(self.job.model).default_classes))
        return Dataset("made up", train, test, names, self.preprocessing)

    def training_batches(self, steps):
        """An iterable of shuffled and augmented batches."""
        return training_batches(self._dataset(NUM_IMAGES, self.job.batch_size), self.recipe, steps)

    def train(self, steps):
        """Seconds of `steps` steps of `keras_resnet.train`, with its pipeline, metrics and callbacks.

        The second epoch is measured: in the first one the training step is compiled.
        """
        dataset = self._dataset(steps * self.job.batch_size, self.job.batch_size)
        options = RunOptions(overwrite=True, precision=self.job.precision, xla=self.job.xla)
        run = train(self.job.model, dataset, self.recipe, self.folder / "run", options=options)
        return run.history["seconds"][1]

    def evaluate(self, steps):
        """Runs `keras_resnet.evaluate` on `steps` batches."""
        self._on_test_images(evaluate, self.model, steps)

    def extract(self, steps):
        """Runs `keras_resnet.transfer.extract`, of the classifier's inputs, on `steps` batches."""
        self._on_test_images(extract, self._extractor, steps)

    @cached_property
    def _extractor(self):
        return vector_extractor(self.model)

    def _on_test_images(self, function, model, steps):
        model.info = model_info(model) | {"preprocessing": self.preprocessing.to_config()}
        size = self.job.batch_size
        function(model, self._dataset(size, steps * size), batch_size=size)


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
