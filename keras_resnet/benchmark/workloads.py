"""Workloads besides a single network, on made-up images: training batches, whole runs, evaluation, extraction."""

import time
from functools import cached_property

import numpy as np

from keras_resnet.architecture.metadata import model_info
from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.pipelines import training_batches
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation import evaluate
from keras_resnet.training.options import RunOptions
from keras_resnet.training.recipe import Recipe
from keras_resnet.training.recipes import get_recipe
from keras_resnet.training.train import train
from keras_resnet.transfer.extraction import extract, vector_extractor
from keras_resnet.variants import get_spec

NUM_IMAGES = 256
"""Number of different images."""
FILE_SIZE = (375, 500)
"""Height and width of a classifier's image files: a typical size in ImageNet."""


class Workloads:
    """Tasks of `keras_resnet` beyond single steps. CIFAR's images come from memory, ImageNet's from JPEG files.

    In training, CIFAR's are padded, cropped and mirrored (He et al. 2015, sec. 4.2); of ImageNet's, crops of random
    size and aspect ratio are mirrored (Szegedy et al. 2015, arXiv:1409.4842); or both as the job's recipe says. In
    tests, each image is cropped once.
    The base of a network with the attributes `model`, `job`, a Job, and `folder`, a Path for the image files.
    """

    def pipeline(self, steps):
        """Returns the seconds of `steps` batches from the first one on, without the time to start the pipeline.

        The pipeline is started and finished each time, so that it does not prefetch while others are measured.
        """
        batches = iter(self.training_batches(steps + 1))
        next(batches)
        started = time.perf_counter()
        for _ in batches:
            pass
        return time.perf_counter() - started

    def whole_run(self, steps):
        """Returns the seconds of `steps` steps of `keras_resnet.train`, with its pipeline, metrics and callbacks.

        The second epoch is measured: in the first one the network is built and compiled.
        """
        dataset = self._dataset(steps * self.job.batch_size, self.job.batch_size)
        options = RunOptions(overwrite=True, precision=self.job.precision, xla=self.job.xla)
        run = train(self.job.model, dataset, self._recipe, self.folder / "run", options=options)
        return run.history["seconds"][1]

    def evaluation(self, steps):
        """Runs `keras_resnet.evaluate` on `steps` batches."""
        self._on_test_images(evaluate, self.model, steps)

    def extraction(self, steps):
        """Runs `keras_resnet.transfer.extract`, of the classifier's inputs, on `steps` batches."""
        self._on_test_images(extract, self._extractor, steps)

    def training_batches(self, steps):
        """An iterable of shuffled and augmented batches."""
        return training_batches(self._dataset(NUM_IMAGES, self.job.batch_size), self._recipe, steps)

    def _on_test_images(self, function, model, steps):
        size = self.job.batch_size
        dataset = self._dataset(size, steps * size)
        model.info = model_info(model) | {"preprocessing": dataset.preprocessing.to_config()}
        function(model, dataset, batch_size=size)

    def _dataset(self, num_train, num_test):
        """A Dataset in which the NUM_IMAGES images are repeated."""
        sizes, side = (num_train, num_test), self.job.image_size
        train, test = (Split(self._images[np.arange(size) % NUM_IMAGES], np.zeros(size, "int32")) for size in sizes)
        names = tuple(str(index) for index in range(get_spec(self.job.model).default_classes))
        preprocessing = Preprocessing("torch", side, None if self._in_memory else side * 8 // 7)
        return Dataset("made up", train, test, names, preprocessing)

    @property
    def _recipe(self):
        if self.job.recipe:
            return get_recipe(self.job.recipe, epochs=2, batch_size=self.job.batch_size)
        crop = "pad" if self._in_memory else "random_resized"
        return Recipe(epochs=2, batch_size=self.job.batch_size, crop=crop, flip=True)

    @property
    def _in_memory(self):
        return get_spec(self.job.model).stem == "cifar"

    @cached_property
    def _images(self):
        shape = (NUM_IMAGES, self.job.image_size, self.job.image_size, 3)
        return (
            np.random.default_rng(0).integers(0, 256, shape, "uint8")
            if self._in_memory
            else image_files(self.folder, FILE_SIZE)
        )

    @cached_property
    def _extractor(self):
        return vector_extractor(self.model)


def image_files(folder, size):
    """(NUM_IMAGES,) paths of JPEG files of a size, (height, width).

    They are as slow to decode as photographs: smooth shapes under a little noise.
    """
    from PIL import Image

    generator, paths = np.random.default_rng(0), []
    for index in range(NUM_IMAGES):
        shapes = Image.fromarray(generator.integers(0, 256, (12, 16, 3), "uint8"))
        smooth = np.asarray(shapes.resize(size[::-1], Image.Resampling.BICUBIC), "float32")
        noisy = np.clip(smooth + generator.normal(0, 8, smooth.shape), 0, 255).astype("uint8")
        paths.append(str(folder / f"{index}.jpg"))
        Image.fromarray(noisy).save(paths[-1], quality=90)
    return np.array(paths)
