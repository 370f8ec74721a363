"""Training on one device, several devices, or several machines: replicas of one model, each on its part of the batch.

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
import json
import math
import os
import re
import socket
from dataclasses import dataclass

import keras


@dataclass(frozen=True)
class Cluster:
    """The machines that train one model together, as TF_CONFIG describes them to each."""

    addresses: tuple[str, ...] = ("localhost:0",)
    """host:port of each machine, the chief first."""
    index: int = 0
    """Index of this machine; number 0, the chief, writes the files."""

    def __len__(self):
        return len(self.addresses)


def cluster():
    """The Cluster of TF_CONFIG; without TF_CONFIG, this machine alone.

    TensorFlow's own TFConfigClusterResolver reads the same variable, but accepts indices such as "0" and 0.9, addresses
    without a port and duplicates, which end in processes that wait for each other forever.

    Raises:
        ValueError: for a TF_CONFIG that describes no cluster, or one with jobs other than `worker` and `chief`.
    """
    text = os.environ.get("TF_CONFIG")
    if text is None:
        return Cluster()
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    for expected, is_met in _TF_CONFIG_RULES.items():
        if not is_met(config):
            raise ValueError(f"`TF_CONFIG` should {expected}. Received: TF_CONFIG={text}")
    jobs, task = config["cluster"], config["task"]
    num_chiefs = len(jobs.get("chief", [])) if task["type"] == "worker" else 0
    return Cluster(tuple(_addresses(config)), num_chiefs + task["index"])


def _addresses(config):
    return config["cluster"].get("chief", []) + config["cluster"].get("worker", [])


def _is_address(address):
    match = isinstance(address, str) and re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/]+):([0-9]{1,5})", address)
    return bool(match) and 1 <= int(match[2]) <= 65535


_TF_CONFIG_RULES = {  # what TF_CONFIG should do -> whether it does, if it meets the rules above
    "be a JSON object that holds the objects `cluster` and `task`": lambda config: (
        isinstance(config, dict) and all(isinstance(config.get(key), dict) for key in ("cluster", "task"))
    ),
    "have no jobs in `cluster` but `worker` and `chief` (parameter servers and evaluators are not supported)": (
        lambda config: config["cluster"].keys() <= {"chief", "worker"}
    ),
    "have lists of addresses in `cluster`, with at least one address": lambda config: (
        all(isinstance(job, list) for job in config["cluster"].values()) and _addresses(config)
    ),
    "have one chief at most": lambda config: len(config["cluster"].get("chief", [])) <= 1,
    "have addresses of the form 'host:port', with a port from 1 to 65535": lambda config: all(
        map(_is_address, _addresses(config))
    ),
    "name every address once": lambda config: len(set(_addresses(config))) == len(_addresses(config)),
    "have the name of a job of `cluster` as the `type` of `task`": lambda config: (
        config["task"].get("type") in list(config["cluster"])
    ),
    "have an `index` of `task` that counts the addresses of its job from 0": lambda config: (
        type(config["task"].get("index")) is int
        and 0 <= config["task"]["index"] < len(config["cluster"][config["task"]["type"]])
    ),
}


def jit_compile(xla=None):
    """The `jit_compile` argument of Keras: `xla`; None: XLA except on TensorFlow's CPU, where it halves the speed."""
    if xla is not None:
        return xla
    if keras.backend.backend() != "tensorflow":
        return "auto"
    import tensorflow as tf

    return "auto" if tf.config.list_physical_devices("GPU") else False


class Devices:
    """The devices and machines that a run trains on.

    Create it before anything else starts TensorFlow's devices (the first tensor or layer does): they cannot be changed
    afterwards. On several machines the constructor returns when all of them have called it.

    Args:
        devices: see `RunOptions.devices`. Other backends than TensorFlow use the one device that Keras gives them.

    Raises:
        ValueError: for more devices than there are, an impossible TF_CONFIG, a port in use, devices that TensorFlow has
            started already, or several devices on another backend.
    """

    def __init__(self, devices=None):
        self.strategy, self.cluster = None, Cluster()
        if keras.backend.backend() == "tensorflow":
            self.strategy, self.cluster = get_strategy(devices), cluster()
        elif devices not in (None, 1):
            raise ValueError(
                "`devices` should be None or 1 on other backends than TensorFlow. "
                f"Received: devices={devices!r} on the {keras.backend.backend()} backend"
            )
        self.callbacks = [AverageBatchNorm()] if self.num_replicas > 1 else []
        """Callbacks that a `fit` on these devices needs, before its other callbacks."""

    @property
    def num_replicas(self):
        """Number of parts that a batch is divided into."""
        return self.strategy.num_replicas_in_sync if self.strategy else 1

    @property
    def num_machines(self):
        """Number of machines that share the run."""
        return len(self.cluster)

    @property
    def is_chief(self):
        """Whether this machine writes the files."""
        return self.cluster.index == 0

    @contextlib.contextmanager
    def explain_errors(self):
        """Within the block, TensorFlow's errors (no memory, a damaged image, a lost machine) become a RuntimeError."""
        if self.strategy is None:
            yield
            return
        import tensorflow as tf

        try:
            yield
        except tf.errors.OpError as error:
            summary = error.message.strip().splitlines()[0][:300]  # the graph follows
            raise RuntimeError(f"TensorFlow stopped the run: {type(error).__name__}: {summary}") from error

    def make_deterministic(self):
        """Makes every run give the same numbers, bit by bit; JAX and torch already do on the CPU."""
        if self.strategy:
            import tensorflow as tf

            tf.config.experimental.enable_op_determinism()

    def scope(self):
        """Context in which the model is built and compiled."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()

    def check_batch_size(self, batch_size):
        """Raises ValueError unless every replica gets the same number of images; the message names sizes that fit."""
        replicas = self.num_replicas
        if batch_size % replicas:
            below = batch_size // replicas * replicas
            nearest = " or ".join(str(size) for size in (below, below + replicas) if size)
            raise ValueError(
                f"`batch_size` should be divisible by the number of replicas ({replicas}), such as {nearest}. "
                f"Received: batch_size={batch_size}"
            )

    def distribute(self, make_dataset, batch_size):
        """Batches for `model.fit`: of each global batch, replica r gets the r-th part.

        Args:
            make_dataset: function of (index, count) -> tf.data.Dataset of the batches of machine `index` of `count`:
                (batch_size / count, ...), its part, in order, of every global batch. All batches have this size.
            batch_size: images in a global batch.

        Returns:
            A tf.data.Dataset for one replica, else a tf.distribute.DistributedDataset. On other backends than
            TensorFlow, what `make_dataset` returns.

        Raises:
            ValueError: if the batch cannot be divided by the number of replicas.
        """
        self.check_batch_size(batch_size)
        dataset = make_dataset(self.cluster.index, self.num_machines)
        if self.num_replicas == 1:
            return dataset
        return self._split(dataset, batch_size // self.num_replicas, dataset.cardinality().numpy())

    def distribute_test(self, make_dataset, num_images, batch_size):
        """Batches for `model.evaluate`: each image is tested once, and every replica has some to test in every step.

        Keras would give some replicas empty batches, and a machine that runs out of batches would leave the others
        waiting. So each replica's images are cut into as many batches as the others', of nearly equal sizes.

        Args:
            make_dataset: function of (index, count) -> tf.data.Dataset of batches, of any size, of the images `index`,
                `index + count`, `index + 2 * count`, ... of all; the part of machine `index` of `count`.
            num_images: number of test images on all machines.
            batch_size: images to test in a step, approximately.

        Returns:
            As `distribute`.

        Raises:
            ValueError: if there are fewer images than replicas.
        """
        replicas, machines = self.num_replicas, self.num_machines
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
        """Cuts this machine's images into batches of one replica, which its replicas take in turn."""
        distributed = self.strategy.distribute_datasets_from_function(lambda context: dataset.rebatch(sizes))
        distributed._cardinality = steps  # Keras needs the batches of one replica, it would be those of all
        return distributed


def get_strategy(devices=None):
    """The `tf.distribute.Strategy` for some devices, the same one at every call.

    TensorFlow's default strategy for one device, `MirroredStrategy` for several devices, `MultiWorkerMirroredStrategy`
    for several machines. Arguments and errors are those of `Devices`.
    """
    import tensorflow as tf

    machines, gpus = cluster(), tf.config.list_physical_devices("GPU")
    if devices is not None:
        _check_devices(devices, gpus, len(machines))
    count = devices or len(gpus) or 1
    if len(machines) > 1:
        return _multi_worker_strategy(count)
    if count == 1:
        return tf.distribute.get_strategy()
    if not gpus:
        _split_cpu(count)
    return _mirrored_strategy("GPU" if gpus else "CPU", count)


@functools.cache  # one strategy cannot use the variables of another: a run may continue the model of an earlier one
def _mirrored_strategy(kind, count):
    import tensorflow as tf

    return _with_workarounds(tf.distribute.MirroredStrategy([f"{kind}:{index}" for index in range(count)]))


def _check_devices(devices, gpus, num_machines):
    if type(devices) is not int or devices < 1:
        raise ValueError(f"`devices` should be None or a positive integer. Received: devices={devices!r}")
    if gpus and devices > len(gpus):
        names = [gpu.name for gpu in gpus]
        raise ValueError(f"`devices` should be at most the number of GPUs, {names}. Received: devices={devices}")
    if not gpus and num_machines > 1 and devices > 1:
        raise ValueError(
            "`devices` should be None or 1 on several machines without GPUs: each machine is one device. "
            f"Received: devices={devices}"
        )


def _split_cpu(count):
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError as error:
        started = len(tf.config.list_logical_devices("CPU"))
        if started < count:
            raise _too_late(f"with {started} CPU device{'s' * (started > 1)}", f"devices={count}") from error


@functools.cache  # TensorFlow can join a cluster once per process
def _multi_worker_strategy(num_gpus):
    import tensorflow as tf

    machines = cluster()
    try:
        tf.config.set_visible_devices(tf.config.list_physical_devices("GPU")[:num_gpus], "GPU")
        _check_port(machines.addresses[machines.index])
        return _with_workarounds(tf.distribute.MultiWorkerMirroredStrategy())
    except RuntimeError as error:
        raise _too_late("for one machine", f"TF_CONFIG={os.environ['TF_CONFIG']}") from error


def _with_workarounds(strategy):
    from keras_resnet.training.keras_workarounds import apply_workarounds  # which imports Keras's TensorFlow backend

    apply_workarounds(strategy)
    return strategy


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
    rounding. Without it, the default and what the papers did, each replica normalizes by its own images.
    """
    for layer in _batch_norms(model):
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
        self._average = _averaging(model)

    def on_test_begin(self, logs=None):
        self._average()

    def on_epoch_end(self, epoch, logs=None):
        self._average()


def _averaging(model):
    """A function that replaces batch norm's moving statistics by their means over all replicas."""
    import tensorflow as tf

    strategy, layers = model.distribute_strategy, _batch_norms(model)
    statistics = [variable.value for layer in layers for variable in (layer.moving_mean, layer.moving_variance)]
    if strategy.num_replicas_in_sync == 1 or not statistics:
        return lambda: None

    def average():
        replica = tf.distribute.get_replica_context()
        means = replica.all_reduce("MEAN", [tf.identity(variable) for variable in statistics])
        for variable, mean in zip(statistics, means, strict=True):
            variable.assign(mean)

    return tf.function(lambda: strategy.run(average), autograph=False)


def _batch_norms(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
