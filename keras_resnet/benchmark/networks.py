"""What is measured: networks behind the same verbs, ours and stock Keras's here.

A verb is a task: `inference(steps)`, `train(steps)`, `build(steps)`, `load(steps)`, `pipeline(steps)`,
`whole_run(steps)`, `evaluation(steps)`, `extraction(steps)`. It does its work `steps` times, and returns when the work
is done, not merely under way; one that returns seconds has timed itself.
"""

import copy
import itertools
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import keras
import numpy as np

from keras_resnet.deployment.inference import optimize_for_inference
from keras_resnet.machine import accelerator
from keras_resnet.models.create import create
from keras_resnet.models.transforms import fold_batch_norm
from keras_resnet.training.distribution import jit_compile
from keras_resnet.variants import canonical_name, get_spec

APPLICATIONS = {
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
    "resnet50v2": "ResNet50V2",
    "resnet101v2": "ResNet101V2",
    "resnet152v2": "ResNet152V2",
}


@dataclass(frozen=True)
class Job:
    """What one process is to measure."""

    contender: str
    """A name in CONTENDERS."""
    precision: str
    """A name in PRECISIONS."""
    model: str
    batch_size: int
    image_size: int
    xla: bool | None = None
    """Whether Keras compiles with XLA; None: where that is faster, which on the CPU under TensorFlow it is not."""

    @property
    def images(self):
        """The batch, float32 normal numbers; always the same."""
        return np.random.default_rng(0).standard_normal((self.batch_size, *self.input_shape), "float32")

    @property
    def labels(self):
        """(B,) int64 class numbers; always the same."""
        return np.random.default_rng(0).integers(0, get_spec(self.model).default_classes, self.batch_size)

    @property
    def input_shape(self):
        """Of one image, in Keras's configured data format."""
        sides = (self.image_size, self.image_size)
        return (*sides, 3) if keras.config.image_data_format() == "channels_last" else (3, *sides)


def ours(job, weights=None):
    """This package's network, with random weights or those of a file."""
    return create(job.model, weights=weights, input_shape=job.input_shape)


class Network:
    """A network, a batch for it that stays where it is, and a folder for its files that exists as long as they do."""

    memory_is_its_own = True
    """Whether what its process takes is what the network takes."""

    def __init__(self, job, folder):
        self.job, self.folder = job, Path(folder)

    def accelerator(self):
        """Name and peak memory of the device, as its framework knows them; (None, None) on the CPU."""
        return None, None


class KerasNetwork(Network):
    """This package's network, in Keras's own loops: `model.fit` and `model.predict`, a call for all steps.

    Such a call costs a few milliseconds more than its steps; in a round of seconds that is nothing.
    """

    def __init__(self, job, folder):
        super().__init__(job, folder)
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(job.precision)
        self.model = self.create()
        self.model.compile(
            keras.optimizers.SGD(0.01, momentum=0.9),
            loss=keras.losses.SparseCategoricalCrossentropy(),
            jit_compile=jit_compile(job.xla),
        )
        self.batches = _forever(keras.ops.convert_to_tensor(job.images), keras.ops.convert_to_tensor(job.labels))

    @property
    def name(self):
        return f"keras_resnet {self.job.model}"

    def create(self, weights=None):
        """The network, with random weights or those of a file."""
        return ours(self.job, weights)

    def inference(self, steps):
        self.model.predict(self.batches, steps=steps, verbose=0)

    def train(self, steps):
        self.model.fit(self.batches, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)

    def build(self, steps):
        for _ in range(steps):
            self.create()

    def load(self, steps):
        for _ in range(steps):
            self.create(self.weights_file)

    def pipeline(self, steps):
        """Its own seconds, from the first batch on: what it takes to start is no part of its rate.

        It starts anew and ends each time, so that nothing is read ahead while others are measured.
        """
        batches = iter(self.input_pipeline(steps + 1))
        next(batches)
        started = time.perf_counter()
        for _ in batches:
            pass
        return time.perf_counter() - started

    def whole_run(self, steps):
        """Its own seconds: building and compiling a network each time is no part of its rate."""
        from keras_resnet.benchmark.pipelines import whole_run

        return whole_run(self.job, self.folder, steps)

    def evaluation(self, steps):
        self.test_images(steps)

    def extraction(self, steps):
        self.images_to_vectors(steps)

    @cached_property
    def input_pipeline(self):
        from keras_resnet.benchmark.pipelines import input_pipeline

        return input_pipeline(self.job, self.folder)

    @cached_property
    def test_images(self):
        from keras_resnet.benchmark.pipelines import evaluation

        return evaluation(self.model, self.job, self.folder)

    @cached_property
    def images_to_vectors(self):
        from keras_resnet.benchmark.pipelines import extraction

        return extraction(self.model, self.job, self.folder)

    @cached_property
    def weights_file(self):
        path = self.folder / "network.weights.h5"
        self.model.save_weights(path)
        return str(path)

    def accelerator(self):
        return accelerator(keras.backend.backend())


class FoldedNetwork(KerasNetwork):
    """The same with its batch norms folded."""

    @property
    def name(self):
        return f"keras_resnet {self.job.model}, folded"

    def create(self, weights=None):
        return fold_batch_norm(super().create(weights))


class OptimizedNetwork(KerasNetwork):
    """The same as `optimize_for_inference` leaves it, one call a batch, as it is served."""

    @property
    def name(self):
        return f"keras_resnet {self.job.model}, optimized"

    @cached_property
    def optimized(self):
        precision = self.job.precision.removeprefix("mixed_")
        return optimize_for_inference(self.model, precision)

    @cached_property
    def images(self):
        return self.job.images

    def inference(self, steps):
        for _ in range(steps):
            self.optimized.predict_on_batch(self.images)


class StockNetwork(KerasNetwork):
    """Keras's own: of keras.applications, or where that lacks it the same graph made of nothing but Keras's layers."""

    @property
    def application(self):
        return APPLICATIONS.get(canonical_name(self.job.model))

    @property
    def name(self):
        return f"keras.applications {self.application}" if self.application else f"keras.layers {self.job.model}"

    def create(self, weights=None):
        if self.application:
            return getattr(keras.applications, self.application)(weights=weights, input_shape=self.job.input_shape)
        with keras.saving.CustomObjectScope({"keras_resnet>BatchNormalization": keras.layers.BatchNormalization}):
            model = keras.Model.from_config(copy.deepcopy(self._config))  # which takes its argument apart
        if weights:
            model.load_weights(weights)
        return model

    @cached_property
    def _config(self):
        return ours(self.job).get_config()


def _forever(images, labels):
    """The one batch again and again, as `fit` takes it without copying it.

    tf.data is told to leave it at that: its optimisations and its prefetching cost 50 ms and more for each call of
    `fit`. Under TensorFlow the batch comes from the host's memory, elsewhere it stays on the device.
    """
    if keras.backend.backend() != "tensorflow":
        return (batch for batch in itertools.repeat((images, labels)))  # Keras wants a generator
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_optimization.inject_prefetch = False
    return tf.data.Dataset.from_tensors((images, labels)).repeat().with_options(options)
