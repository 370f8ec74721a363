"""Networks with a method for each task of a benchmark: this package's and stock Keras's.

`inference(steps)`, `train(steps)`, `pipeline(steps)`, `whole_run(steps)`, `evaluation(steps)`, `extraction(steps)`,
`detection(steps)` and `parts(steps)` process `steps` batches and return when the device has finished; `build()` and
`load()` work once. Methods that measure their own time return seconds, those of parts as a dict.
"""

import copy
import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import keras
import numpy as np

from keras_resnet.benchmark.detector_training import DetectorTraining
from keras_resnet.benchmark.detectors import DetectorTasks, detection_images, raise_scores
from keras_resnet.benchmark.segmenter_training import SegmenterTraining
from keras_resnet.benchmark.workloads import Workloads
from keras_resnet.deployment.inference import optimize_for_inference
from keras_resnet.models.create import create
from keras_resnet.models.transforms import fold_batch_norm
from keras_resnet.precision import PRECISIONS
from keras_resnet.training.distribution import jit_compile
from keras_resnet.variants import canonical_name, get_spec, network_task


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    contender: str
    """A name in CONTENDERS."""
    precision: str
    """A name in MEASURED_PRECISIONS."""
    model: str
    batch_size: int
    image_size: int | tuple[int, int]
    """Side of square images, or height and width."""
    xla: bool | None = None
    """Whether Keras compiles with XLA; None: except on the CPU under TensorFlow, where it is slower."""
    recipe: str | None = None
    """A name in RECIPES, whose crops and augmentation the pipeline and whole runs use; None: those of `Workloads`."""
    torch_python: str | None = None
    """Python interpreter of an environment that has torchvision; None: this one."""

    @property
    def kind(self):
        """The task of the network: "classification", "detection" or "segmentation"."""
        return network_task(self.model)

    @property
    def images(self):
        """A batch of normally distributed float32 numbers, always the same."""
        if self.kind == "detection":
            return detection_images(self.batch_size, self.image_size)
        return np.random.default_rng(0).standard_normal((self.batch_size, *self.input_shape), "float32")

    @property
    def labels(self):
        """(B,) int64 class indices, always the same."""
        return np.random.default_rng(0).integers(0, get_spec(self.model).default_classes, self.batch_size)

    @property
    def input_shape(self):
        """Shape of one image in Keras's configured data format."""
        if self.kind == "segmentation":
            return (*self.image_size, 3)
        sides = (self.image_size, self.image_size)
        return (*sides, 3) if keras.config.image_data_format() == "channels_last" else (3, *sides)


def create_network(job, weights=None):
    """This package's network for a job, with random weights or those of a file."""
    if job.kind == "classification":
        return create(job.model, weights=weights, input_shape=job.input_shape)
    model = create(job.model, weights=weights)
    if job.kind == "detection":
        raise_scores(model)
    return model


_TRAININGS = {"detection": DetectorTraining, "segmentation": SegmenterTraining}
"""Kind of networks -> class of their training, for those that are not trained by their own `fit`."""


class Network:
    """A network with a batch of inputs, and a folder for its files that exists as long as its process."""

    reports_memory = True
    """Whether the memory of its process is that of the network alone."""
    framework: str | None = None
    """"tensorflow", "jax" or "torch", if it may use a GPU."""

    def __init__(self, job, folder):
        self.job, self.folder = job, Path(folder)


class KerasNetwork(Network, Workloads, DetectorTasks):
    """This package's network in Keras's own loops: one call of `model.fit` or `model.predict` for all steps.

    A call takes a few milliseconds more than its steps, which does not matter in a round of seconds.
    """

    form, framework = "", keras.backend.backend()

    def __init__(self, job, folder):
        super().__init__(job, folder)
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(PRECISIONS[job.precision].policy)
        self.model = self.create()
        self.model.compile(
            keras.optimizers.SGD(0.01, momentum=0.9),
            loss=keras.losses.SparseCategoricalCrossentropy(),
            jit_compile=jit_compile(job.xla),
        )
        self.batches = _repeat((job.images, job.labels))

    @property
    def name(self):
        return f"keras_resnet {self.job.model}{self.form}"

    def create(self, weights=None):
        """The network, with random weights or those of a file."""
        return create_network(self.job, weights)

    def inference(self, steps):
        self.model.predict(self.batches, steps=steps, verbose=0)

    def train(self, steps):
        model, batches = self._training
        model.fit(batches, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)

    def build(self):
        self.create()

    def load(self):
        self.create(self.weights_file)

    def training_batches(self, steps):
        """An iterable of shuffled and augmented batches."""
        return self._task_training.batches(steps) if self._task_training else super().training_batches(steps)

    @property
    def run(self):
        """The RunData of the training of a detector or segmenter."""
        return self._task_training.run

    @cached_property
    def _task_training(self):
        """The training of a detector or segmenter; None for a classifier."""
        return _TRAININGS[self.job.kind](self.job, self.folder) if self.job.kind in _TRAININGS else None

    @cached_property
    def _training(self):
        """(the compiled model that is trained, its batches)."""
        if not self._task_training:
            return self.model, self.batches
        return self.run.model, _repeat(next(iter(self.run.training_batches(0, 1))))

    @cached_property
    def weights_file(self):
        path = self.folder / "network.weights.h5"
        self.model.save_weights(path)
        return str(path)


class FoldedNetwork(KerasNetwork):
    """This package's network with its batch norms folded."""

    form = ", folded"

    def create(self, weights=None):
        return fold_batch_norm(super().create(weights))


class OptimizedNetwork(KerasNetwork):
    """This package's network from `optimize_for_inference`, called once for each batch, as a server does."""

    form = ", optimized"

    @cached_property
    def optimized(self):
        return optimize_for_inference(self.model, self.job.precision)

    @cached_property
    def images(self):
        return self.job.images

    def inference(self, steps):
        for _ in range(steps):
            self.optimized.predict_on_batch(self.images)


class StockNetwork(KerasNetwork):
    """The network of keras.applications or, if it has none, the same graph built only from Keras's own layers."""

    @property
    def application(self):
        """The name of the network in keras.applications; None if it has none."""
        name = canonical_name(self.job.model).replace("resnet", "ResNet").replace("v2", "V2")
        return name if hasattr(keras.applications, name) else None

    @property
    def name(self):
        return f"keras.applications {self.application}" if self.application else f"keras.layers {self.job.model}"

    def create(self, weights=None):
        if self.application:
            return getattr(keras.applications, self.application)(weights=weights, input_shape=self.job.input_shape)
        own = {f"keras_resnet>{kind}": getattr(keras.layers, kind) for kind in ("BatchNormalization", "Conv2D")}
        with keras.saving.CustomObjectScope(own):
            model = keras.Model.from_config(copy.deepcopy(self._config))  # it changes its argument
        if weights:
            model.load_weights(weights)
        return model

    @cached_property
    def _config(self):
        return create_network(self.job).get_config()


def _repeat(batch):
    """An endless iterable of one batch, inputs and targets, as `fit` takes it without copying.

    The optimisations and prefetching of tf.data are switched off: they take 50 ms and more in each call of `fit`. Under
    TensorFlow the batch is in host memory, on other backends it stays on the device.
    """
    batch = keras.tree.map_structure(keras.ops.convert_to_tensor, batch)
    if keras.backend.backend() != "tensorflow":
        return (same for same in itertools.repeat(batch))  # Keras takes generators
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_optimization.inject_prefetch = False
    return tf.data.Dataset.from_tensors(batch).repeat().with_options(options)
