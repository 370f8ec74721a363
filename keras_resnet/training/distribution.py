"""One device, several, or several machines: replicas of one network, each on its part of every batch.

The batch of a recipe is the global one. Each of R replicas gets batch / R images, losses and gradients are averaged
over the whole batch, and all replicas take the same step, so the outcome is that of one device up to rounding, except
for batch norm, whose statistics are those of a replica's own images (`synchronize_batch_norm` changes that).

Several machines find each other through the environment variable TF_CONFIG, as everywhere in TensorFlow: the same
script runs on each, with its own number in `task`.

    TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, "task": {"type": "worker", "index": 0}}'

They start together, waiting for each other without end, and they end together: when one dies, the others fail within
seconds with TensorFlow's UnavailableError ("Collective ops is aborted by ..."), and all have to be started again.
"""

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
    """The machines that train one network together, as TF_CONFIG describes them to each."""

    addresses: tuple[str, ...] = ("localhost:0",)
    """host:port of each, the chief first."""
    index: int = 0
    """Which of them this one is; the one with 0, the chief, writes files."""

    def __len__(self):
        return len(self.addresses)


def cluster():
    """The machines that TF_CONFIG names; without it, this one.

    Raises:
        ValueError: for a TF_CONFIG that no cluster can have, or whose jobs are others than `worker` and `chief`.
    """
    text = os.environ.get("TF_CONFIG")
    if text is None:
        return Cluster()
    config = _parse(text)
    for expected, holds in _RULES:
        if not holds(config):
            raise ValueError(f"`TF_CONFIG` should {expected}. Received: TF_CONFIG={text}")
    jobs, task = config["cluster"], config["task"]
    before = len(jobs.get("chief", [])) if task["type"] == "worker" else 0
    return Cluster(tuple(_addresses(config)), before + task["index"])


def _parse(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def _addresses(config):
    return config["cluster"].get("chief", []) + config["cluster"].get("worker", [])


_RULES = (  # what TF_CONFIG should do, and whether it does, given that it obeys the rules above
    (
        "be a JSON object that holds the objects `cluster` and `task`",
        lambda config: (
            isinstance(config, dict) and all(isinstance(config.get(key), dict) for key in ("cluster", "task"))
        ),
    ),
    (
        "have no jobs in `cluster` but `worker` and `chief`: this training has no parameter servers and no evaluators",
        lambda config: config["cluster"].keys() <= {"chief", "worker"},
    ),
    (
        "have lists of addresses in `cluster`, with at least one address",
        lambda config: all(isinstance(job, list) for job in config["cluster"].values()) and _addresses(config),
    ),
    ("have one chief at most", lambda config: len(config["cluster"].get("chief", [])) <= 1),
    (
        "have addresses of the form 'host:port', with a port from 1 to 65535",
        lambda config: all(isinstance(address, str) and _is_address(address) for address in _addresses(config)),
    ),
    (
        "name every address once",
        lambda config: len(set(_addresses(config))) == len(_addresses(config)),
    ),
    (
        "have the name of a job of `cluster` as the `type` of `task`",
        lambda config: config["task"].get("type") in list(config["cluster"]),
    ),
    (
        "have an `index` of `task` that counts the addresses of its job from 0",
        lambda config: (
            type(config["task"].get("index")) is int
            and 0 <= config["task"]["index"] < len(config["cluster"][config["task"]["type"]])
        ),
    ),
)


def _is_address(address):
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/]+):([0-9]{1,5})", address)
    return bool(match) and 1 <= int(match[2]) <= 65535


def is_chief():
    """Whether this is the process that writes files: of several machines the first."""
    return cluster().index == 0


def strategy(devices=None):
    """What the network is to be built and compiled under: `with strategy(2).scope(): ...`.

    To be called before anything else makes TensorFlow start its devices (the first tensor or layer does): what they are
    cannot be changed afterwards. On several machines it returns when all of them have called it.

    Args:
        devices: how many GPUs of this machine to use; None for all. On a machine without GPUs, into how many logical
            devices to split its CPU; None for one.

    Returns:
        A `tf.distribute.Strategy`, the same at every call: TensorFlow's default for one device, `MirroredStrategy` for
        several, `MultiWorkerMirroredStrategy` for several machines.

    Raises:
        ValueError: for more devices than there are, an impossible TF_CONFIG, a port in use, or when it is too late.
    """
    import tensorflow as tf

    machines, gpus = cluster(), tf.config.list_physical_devices("GPU")
    if devices is not None:
        _check_devices(devices, gpus, len(machines))
    count = devices or len(gpus) or 1
    if len(machines) > 1:
        return _several_machines(count)
    if count == 1:
        return tf.distribute.get_strategy()
    if not gpus:
        _split_cpu(count)
    return _one_machine("GPU" if gpus else "CPU", count)


@functools.cache  # what one strategy has built another cannot touch: a run may go on with the model of an earlier one
def _one_machine(kind, count):
    import tensorflow as tf

    return _repaired(tf.distribute.MirroredStrategy([f"{kind}:{number}" for number in range(count)]))


def _check_devices(devices, gpus, machines):
    if type(devices) is not int or devices < 1:
        raise ValueError(f"`devices` should be None or a positive integer. Received: devices={devices!r}")
    if gpus and devices > len(gpus):
        names = [gpu.name for gpu in gpus]
        raise ValueError(f"`devices` should be at most the number of GPUs, {names}. Received: devices={devices}")
    if not gpus and machines > 1 and devices > 1:
        raise ValueError(
            "`devices` should be None or 1 on several machines without GPUs: each is one device. "
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


@functools.cache  # TensorFlow can join a cluster once a process
def _several_machines(gpus):
    import tensorflow as tf

    machines = cluster()
    try:
        tf.config.set_visible_devices(tf.config.list_physical_devices("GPU")[:gpus], "GPU")
        _check_port(machines.addresses[machines.index])
        return _repaired(tf.distribute.MultiWorkerMirroredStrategy())
    except RuntimeError as error:
        raise _too_late("for one machine", f"TF_CONFIG={os.environ['TF_CONFIG']}") from error


def _repaired(strategy):
    from keras_resnet.training.keras_workarounds import (
        repair,
    )  # it needs Keras on TensorFlow, which this module does not

    repair(strategy)
    return strategy


def _check_port(address):
    """TensorFlow would abort the process, or wait for ever."""
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
        f"`strategy` should be called before TensorFlow starts its devices: it has started them {how}. Ask for them at "
        f"the beginning of a new process, before the first tensor, layer or dataset. Received: {received}"
    )


def check_batch(batch_size, replicas):
    """Raises ValueError unless every replica gets the same number of images; the message names sizes that fit."""
    if batch_size % replicas:
        below = batch_size // replicas * replicas
        nearest = " or ".join(str(size) for size in (below, below + replicas) if size)
        raise ValueError(
            f"`batch_size` should be divisible by the number of replicas ({replicas}), such as {nearest}. "
            f"Received: batch_size={batch_size}"
        )


def distribute(make_dataset, batch_size, strategy):
    """Images for `model.fit`: of each global batch, replica r gets the r-th part.

    Args:
        make_dataset: function of (index, count) -> tf.data.Dataset of the batches of machine `index` of `count`:
            (batch_size / count, ...), its part, in order, of every global batch. There are no smaller batches.
        batch_size: images in a global batch.
        strategy: what `strategy` returned.

    Returns:
        A tf.data.Dataset for one replica, else a tf.distribute.DistributedDataset.

    Raises:
        ValueError: if the batch cannot be divided by the number of replicas.
    """
    replicas, machines = strategy.num_replicas_in_sync, cluster()
    check_batch(batch_size, replicas)
    dataset = make_dataset(machines.index, len(machines))
    return _to_replicas(dataset, batch_size // replicas, dataset.cardinality().numpy(), strategy)


def distribute_test(make_dataset, images, batch_size, strategy):
    """Images for `model.evaluate`: each is tested once, and every replica has some to test in every step.

    Keras would give replicas batches of no images, and a machine that runs out of batches would leave the others
    waiting. So the images of a replica are cut into as many batches as those of the others, of nearly equal sizes.

    Args:
        make_dataset: function of (index, count) -> tf.data.Dataset of batches, of any size, of the images `index`,
            `index + count`, `index + 2 * count`, ... of all; the part of machine `index` of `count`.
        images: how many there are in all.
        batch_size: how many are tested in a step, about.
        strategy: what `strategy` returned.

    Returns:
        As `distribute`.

    Raises:
        ValueError: if there are fewer images than replicas.
    """
    replicas, machines = strategy.num_replicas_in_sync, cluster()
    if images < replicas:
        raise ValueError(
            f"`images` should be at least the number of replicas ({replicas}), so that each has one to test. "
            f"Received: images={images}"
        )
    devices = replicas // len(machines)
    steps = min(math.ceil(images / batch_size), images // len(machines) // devices)
    mine = len(range(machines.index, images, len(machines)))
    sizes = [(mine + part) // (devices * steps) for part in range(devices * steps)]
    return _to_replicas(make_dataset(machines.index, len(machines)), sizes, steps, strategy)


def _to_replicas(dataset, sizes, steps, strategy):
    """Cuts this machine's images into batches of one replica, which its replicas take in turn."""
    if strategy.num_replicas_in_sync == 1:
        return dataset
    distributed = strategy.distribute_datasets_from_function(lambda context: dataset.rebatch(sizes))
    distributed._cardinality = steps  # it would be the number of those batches: one replica's are what Keras counts
    return distributed


def synchronize_batch_norm(model):
    """Lets batch norm use the statistics of the whole global batch, for three sums over all replicas a layer and step.

    With it, training on R replicas is training on one, up to rounding. Without it, the default and what the papers did,
    each replica normalises by its own images.

    Args:
        model: a network, before its first step; changed in place.

    Returns:
        The model.
    """
    for layer in _batch_norms(model):
        layer.synchronized = True
    return model


class AverageBatchNorm(keras.callbacks.Callback):
    """Makes the moving averages of batch norm those of all replicas, before each test and at the end of each epoch.

    Keras 3 lets each replica keep its own: it tests each part of the test images with other statistics, and saves
    those of the first replica, as if the images of the others had never been seen. A moving average is linear, so
    averaging now and then is averaging at every step. To stand first in a list of callbacks, before those that save.
    """

    def set_model(self, model):
        super().set_model(model)
        self._average = _averaging(model)

    def on_test_begin(self, logs=None):
        self._average()

    def on_epoch_end(self, epoch, logs=None):
        self._average()


def _averaging(model):
    """A function that replaces the moving averages of batch norm by their means over all replicas."""
    import tensorflow as tf

    strategy = model.distribute_strategy
    layers = _batch_norms(model)
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
