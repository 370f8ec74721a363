"""Training on one device, several devices, or several machines: replicas of one model, each on its part of the batch.

On TensorFlow by tf.distribute; on several devices of JAX by keras.distribution, see jax_devices.py; torch uses one. The
following is about TensorFlow.

The batch size of a recipe is the global one. Each of R replicas gets batch / R images, losses and gradients are
averaged over the global batch, and all replicas take the same step. The result is that of one device up to rounding,
except for batch norm, which uses the statistics of each replica's own images unless `synchronize_batch_norm` is called.

Several machines find each other through the environment variable TF_CONFIG, as everywhere in TensorFlow: the same
script runs on each machine, with the machine's own index in `task`.

    TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, "task": {"type": "worker", "index": 0}}'

They wait for each other without limit at the start. When one of them dies, the others fail within seconds with
TensorFlow's UnavailableError ("Collective ops is aborted by ..."), and all have to be started again.
"""

import contextlib
import functools
import math
import os
import socket

import keras

from keras_resnet.errors import check_integers, error_summary, value_error
from keras_resnet.models.cloning import clone
from keras_resnet.training.cluster import Cluster, cluster
from keras_resnet.training.ema import batch_norms
from keras_resnet.training.jax_devices import data_parallel

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


MAX_DEVICES = 64
"""Most devices of one machine; a hundred logical devices of a CPU take minutes to start."""


def jit_compile(xla=None):
    """The `jit_compile` argument of Keras: `xla`; None: XLA except on TensorFlow's CPU, where it halves the speed."""
    if xla is not None:
        return xla
    on_cpu = keras.backend.backend() == "tensorflow" and not tf.config.list_physical_devices("GPU")
    return False if on_cpu else "auto"


class Devices:
    """The devices and machines that a run trains on.

    Create it before anything else starts TensorFlow's devices (the first tensor or layer does): they cannot be changed
    afterwards. On several machines the constructor returns when all of them have called it.

    Args:
        devices: see `RunOptions.devices`.

    Raises:
        ValueError: for more devices than there are, an impossible TF_CONFIG, a port in use, devices that TensorFlow has
            started already, or several devices on torch.
    """

    def __init__(self, devices=None):
        self.strategy, self.data_parallel, self.cluster = None, None, Cluster()
        if devices is not None:
            check_integers(maximum=MAX_DEVICES, devices=devices)
        if keras.backend.backend() == "tensorflow":
            self.strategy, self.cluster = get_strategy(devices), cluster()
        elif keras.backend.backend() == "jax":
            self.data_parallel = data_parallel(devices)
        elif devices not in (None, 1):
            hint = f"The backend is {keras.backend.backend()}."
            raise value_error("devices", devices, "None or 1 on other backends than TensorFlow and JAX", hint)
        self.callbacks = [AverageBatchNorm()] if self.strategy and self.num_replicas > 1 else []
        """Callbacks that a `fit` on these devices needs, before its other callbacks."""

    @property
    def num_replicas(self):
        """Number of parts that a batch is divided into."""
        if self.data_parallel:
            return self.data_parallel.num_model_replicas
        return self.strategy.num_replicas_in_sync if self.strategy else 1

    @property
    def num_machines(self):
        """Number of machines that share the run."""
        return len(self.cluster)

    @property
    def is_chief(self):
        """Whether this machine writes the files."""
        return self.cluster.index == 0

    def check_one_machine(self, reason):
        """Raises ValueError on several machines; `reason` is a sentence about what needs one."""
        if self.num_machines > 1:
            raise ValueError(f"{reason} Received: {self.num_machines} machines in TF_CONFIG")

    def on_one(self, network: keras.Model) -> keras.Model:
        """The network; if it is on several devices, which would divide or repeat its batches, a copy on one."""
        return clone(network) if self.num_replicas > 1 else network

    @contextlib.contextmanager
    def running(self):
        """Context of the training, on JAX with the distribution over several devices.

        TensorFlow's errors (no memory, a damaged image, a lost machine) become a RuntimeError.
        """
        errors = (tf.errors.OpError,) if self.strategy else ()
        try:
            with self.data_parallel.scope() if self.data_parallel else contextlib.nullcontext():
                yield
        except errors as error:
            summary = error_summary(error)  # without the graph, which follows
            raise RuntimeError(f"TensorFlow stopped the run: {type(error).__name__}: {summary}") from error

    def make_deterministic(self):
        """Makes every run give the same numbers, bit by bit; JAX and torch already do on the CPU."""
        if self.strategy:
            tf.config.experimental.enable_op_determinism()

    def scope(self):
        """Context in which the model is built and compiled."""
        found = self.strategy or self.data_parallel
        return found.scope() if found else contextlib.nullcontext()

    def check_batch_size(self, batch_size):
        """Raises ValueError, with the nearest valid sizes, unless every replica gets the same number of images."""
        replicas = self.num_replicas
        if batch_size % replicas:
            below = batch_size // replicas * replicas
            nearest = " or ".join(str(size) for size in (below, below + replicas) if size)
            raise ValueError(
                f"`batch_size` should be divisible by the number of replicas ({replicas}), such as {nearest}. "
                f"Received: batch_size={batch_size}"
            )

    def test_batch_size(self, num_images, batch_size):
        """Number of test images in a batch, for batches that `distribute_test` takes."""
        # Keras on JAX divides every batch or none, as the first one: see jax_devices.py
        return batch_size - 1 if self.data_parallel and num_images % self.num_replicas else batch_size

    def distribute(self, make_dataset, batch_size):
        """Batches for `model.fit`: of each global batch, replica r gets the r-th part.

        Args:
            make_dataset: function of (index, count) -> tf.data.Dataset of the batches of machine `index` of `count`:
                (batch_size / count, ...), its part, in order, of every global batch. All batches have this size.
            batch_size: images in a global batch.

        Returns:
            What `make_dataset` returns; for several replicas of TensorFlow, a tf.distribute.DistributedDataset of it.

        Raises:
            ValueError: as `check_batch_size`.
        """
        self.check_batch_size(batch_size)
        dataset = make_dataset(self.cluster.index, self.num_machines)
        if self.num_replicas == 1 or self.data_parallel:
            return dataset
        return self._split(dataset, batch_size // self.num_replicas, dataset.cardinality().numpy())

    def distribute_test(self, make_dataset, num_images, batch_size):
        """Batches for `model.evaluate`: each image is tested once, and every replica has some to test in every step.

        Keras would give some replicas empty batches, and a machine that runs out of batches would leave the others
        waiting. So the images of every replica are divided into the same number of batches, of nearly equal sizes.

        Args:
            make_dataset: function of (index, count) -> tf.data.Dataset of batches, of any size, of the images `index`,
                `index + count`, `index + 2 * count`, ... of all; the part of machine `index` of `count`.
            num_images: number of test images on all machines.
            batch_size: images to test in a step, approximately.

        Raises:
            ValueError: if there are fewer images than replicas.
        """
        replicas, machines = self.num_replicas, self.num_machines
        if self.data_parallel:
            return make_dataset(self.cluster.index, machines)
        if num_images < replicas:
            raise ValueError(
                f"`num_images` should be at least the number of replicas ({replicas}), so that each has one to test. "
                f"Received: num_images={num_images}"
            )
        dataset = make_dataset(self.cluster.index, machines)
        if replicas == 1:
            return dataset
        replicas_here = replicas // machines
        steps = min(math.ceil(num_images / batch_size), num_images // machines // replicas_here)
        images_here = len(range(self.cluster.index, num_images, machines))
        sizes = [(images_here + part) // (replicas_here * steps) for part in range(replicas_here * steps)]
        return self._split(dataset, sizes, steps)

    def _split(self, dataset, sizes, steps):
        """Divides this machine's images into batches of one replica, which its replicas take in turn."""
        distributed = self.strategy.distribute_datasets_from_function(lambda context: dataset.rebatch(sizes))
        distributed._cardinality = steps  # Keras needs the batches of one replica, it would be those of all
        return distributed


def get_strategy(devices=None):
    """The `tf.distribute.Strategy` for some devices, the same one at every call.

    TensorFlow's default strategy for one device, `MirroredStrategy` for several devices, `MultiWorkerMirroredStrategy`
    for several machines. Arguments and errors are those of `Devices`.
    """
    machines, gpus = cluster(), tf.config.list_physical_devices("GPU")
    if devices is not None:
        _check_devices(devices, gpus, len(machines))
    count = devices or len(gpus) or 1
    if len(machines) == 1 and count == 1:
        return tf.distribute.get_strategy()
    if len(machines) == 1 and not gpus:
        _split_cpu(count)
    return _create_strategy("GPU" if gpus else "CPU", count, len(machines) > 1)


@functools.cache  # a run may continue an earlier one's model, and a process can join a cluster once only
def _create_strategy(kind, count, on_several_machines):
    from keras_resnet.training.keras_workarounds import apply_workarounds  # which imports Keras's TensorFlow backend

    if on_several_machines:
        strategy = _join_cluster(count)
    else:
        strategy = tf.distribute.MirroredStrategy([f"{kind}:{index}" for index in range(count)])
    apply_workarounds(strategy)
    return strategy


def _check_devices(devices, gpus, num_machines):
    if gpus and devices > len(gpus):
        names = [gpu.name for gpu in gpus]
        raise ValueError(f"`devices` should be at most the number of GPUs, {names}. Received: devices={devices}")
    if not gpus and num_machines > 1 and devices > 1:
        raise ValueError(
            "`devices` should be None or 1 on several machines without GPUs: each machine is one device. "
            f"Received: devices={devices}"
        )


def _split_cpu(count):
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError as error:
        started = len(tf.config.list_logical_devices("CPU"))
        if started < count:
            raise _too_late(f"with {started} CPU device{'s' * (started > 1)}", f"devices={count}") from error


def _join_cluster(num_gpus):
    machines = cluster()
    try:
        tf.config.set_visible_devices(tf.config.list_physical_devices("GPU")[:num_gpus], "GPU")
        _check_port(machines.addresses[machines.index])
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise _too_late("for one machine", f"TF_CONFIG={os.environ['TF_CONFIG']}") from error


def _check_port(address):
    """Raises ValueError if the port is in use: TensorFlow would abort the process, or wait forever."""
    port = int(address.rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise ValueError(
            f"`TF_CONFIG` should give this machine a port that can be opened ({os.strerror(error.errno)}). "
            f"Received: {address}"
        ) from error


def _too_late(how, received):
    return ValueError(
        "The devices should be chosen before TensorFlow starts them: it has already started them "
        f"{how}. Choose them at the start of a new process, before the first tensor, layer or dataset. "
        f"Received: {received}"
    )


def synchronize_batch_norm(model):
    """Makes batch norm use the statistics of the whole global batch, in place; returns the model.

    Costs three sums over all replicas per layer and step. With it, training on R replicas equals training on one up to
    rounding. Without it, the default and what the papers did, each replica normalizes by its own images. On JAX, batch
    norm always uses the statistics of the whole batch.
    """
    for layer in batch_norms(model) if keras.backend.backend() == "tensorflow" else ():
        layer.synchronized = True
    return model


class AverageBatchNorm(keras.callbacks.Callback):
    """Averages the moving statistics of batch norm over all replicas before each test and after each epoch.

    In Keras 3 each replica keeps its own: each part of the test images would be tested with other statistics, and only
    those of the first replica would be saved. Moving averages are linear, so averaging them now and then equals
    averaging them at every step. Should come before the callbacks that save.
    """

    def set_model(self, model):
        super().set_model(model)
        strategy, layers = model.distribute_strategy, batch_norms(model)
        statistics = [variable.value for layer in layers for variable in (layer.moving_mean, layer.moving_variance)]

        def average():
            values = [tf.identity(variable) for variable in statistics]
            means = tf.distribute.get_replica_context().all_reduce("MEAN", values)
            for variable, mean in zip(statistics, means, strict=True):
                variable.assign(mean)

        needed = statistics and strategy.num_replicas_in_sync > 1
        self._average = tf.function(lambda: strategy.run(average), autograph=False) if needed else lambda: None

    def on_test_begin(self, logs=None):
        self._average()

    def on_epoch_end(self, epoch, logs=None):
        self._average()
