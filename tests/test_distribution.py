"""Several devices and several machines, as separate processes: TensorFlow sets up its devices once per process."""

import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_resnet.training.cluster import Cluster, cluster
from keras_resnet.training.distribution import Devices, get_strategy, synchronize_batch_norm
from keras_resnet.training.keras_workarounds import WORKAROUNDS, apply_workarounds

WORKER = Path(__file__).parent / "worker_process.py"


@pytest.fixture
def start(tmp_path):
    """start(task, cluster=(jobs, index), **arguments) -> function that waits for the arrays. Kills what still runs."""
    processes = []

    def start(task, cluster=None, **arguments):
        results = tmp_path / f"{len(processes)}.npz"
        environment = {**os.environ, **({"TF_CONFIG": _tf_config(*cluster)} if cluster else {})}
        command = [sys.executable, WORKER, task, json.dumps(arguments), results]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        processes.append(process)

        def finish():
            output, _ = process.communicate(timeout=180)
            assert process.returncode == 0, output
            with np.load(results) as arrays:
                return dict(arrays)

        return finish

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def _tf_config(jobs, index, job="worker"):
    return json.dumps({"cluster": jobs, "task": {"type": job, "index": index}})


def _replicas(count):
    """Devices that claim to have `count` replicas."""
    devices = Devices()
    devices.strategy = SimpleNamespace(num_replicas_in_sync=count)
    return devices


def _free_addresses(count):
    """Different addresses on this machine with free ports."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
    for listener in listeners:
        listener.close()
    return addresses


def _check_workarounds(results):
    """All functions of Keras work; reports workarounds that are no longer needed, as a warning and not a failure."""
    names = {name for _, name, *_ in WORKAROUNDS}
    assert set(results["working"]) == names
    for name in sorted(names - set(results["replaced"])):
        warnings.warn(f"Keras {keras.__version__} no longer needs the workaround for `{name}`.", stacklevel=1)


@pytest.mark.slow
def test_two_machines_equal_two_devices(start):
    jobs = {"worker": _free_addresses(2)}
    first, second = [finish() for finish in [start("train", cluster=(jobs, index)) for index in range(2)]]
    one = start("train", devices=2)()
    assert one["replicas"] == first["replicas"] == second["replicas"] == 2
    assert len(one["losses"]) == 24
    for machine in (first, second):
        for name, expected in one.items():
            np.testing.assert_allclose(machine[name], expected, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_train_on_two_machines_equals_two_devices(start, tmp_path):
    """With augmentation, clipping, averages and checkpoints; with synchronized batch norm it equals one device."""
    jobs = {"worker": _free_addresses(2)}
    arguments = {"workdir": str(tmp_path / "machines"), "sync_batch_norm": True}
    first, second = [finish() for finish in [start("run", cluster=(jobs, index), **arguments) for index in range(2)]]
    devices = start("run", devices=2, workdir=str(tmp_path / "devices"), sync_batch_norm=True)()
    alone = start("run", sync_batch_norm=True)()
    for name, expected in devices.items():
        np.testing.assert_allclose(first[name], expected, rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(second[name], expected, rtol=0, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(alone["loss"], devices["loss"], rtol=1e-2)
    names = sorted(path.name for path in (tmp_path / "machines").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "devices").iterdir()) and "model.keras" in names
    again = start("run", devices=2, workdir=str(tmp_path / "machines"), sync_batch_norm=True, resume=True)()
    assert again["accuracy"] == devices["accuracy"], "devices continue the run of the machines"


@pytest.mark.slow
@pytest.mark.parametrize("network", ["localizer", "detector", "segmenter"])
def test_two_devices_and_two_machines_train_boxes_as_one_device(start, network, tmp_path):
    def run(name, **arguments):
        return start("run_on_boxes", network=network, folder=str(tmp_path / name), **arguments)

    one, two = run("one")(), run("two", devices=2)()
    jobs = {"worker": _free_addresses(2)}
    machines = [run(f"machine{index}", cluster=(jobs, index)) for index in range(2)]
    for trained in (two, *(finish() for finish in machines)):
        assert len(one) > 20 and one.keys() == trained.keys()
        for name, expected in one.items():
            np.testing.assert_allclose(trained[name], expected, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_two_devices_measure_the_accuracy_of_the_saved_model(start):
    trained = start("train", devices=2, batch_size=128, test_images=257)()
    loss, accuracy = trained["tested"]
    assert trained["tested_alone"] == pytest.approx([loss, accuracy], abs=1e-6)
    assert accuracy > 0.3


@pytest.mark.slow
def test_synchronized_batch_norm_makes_two_replicas_equal_one(start):
    one, two, apart = (
        start("train", batch_size=30, **arguments)()["losses"]
        for arguments in ({}, {"devices": 2, "synchronized": True}, {"devices": 2})
    )
    assert len(one) > 50
    np.testing.assert_allclose(two, one, atol=1e-4)
    assert np.abs(apart - one).max() > 0.01, "the statistics of each replica lead to other weights"


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_deterministic_training_repeats(start, machines):
    def train():
        if machines == 1:
            return start("train", devices=2, deterministic=True)()
        jobs = {"worker": _free_addresses(2)}
        running = [start("train", cluster=(jobs, index), deterministic=True) for index in range(2)]
        return {name: array for finish in running for name, array in finish().items()}

    first, second = train(), train()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("machines, devices", [(1, 3), (2, None)])
def test_replicas_share_the_images(start, machines, devices):
    """Each test image is used once, and no replica is idle; of training batches replica r has the r-th part.

    The same processes try the workarounds for Keras.
    """
    replicas, counts = machines * (devices or 1), [3, 4, 9, 64, 65, 66]
    jobs = {"worker": _free_addresses(machines)}
    arguments = {"devices": devices, "counts": counts, "batch_size": 4 * replicas}
    running = [start("parts", cluster=(jobs, index), **arguments) for index in range(machines)]
    indices = [finish() for finish in running]
    if machines > 1:  # on one, `reduce_per_replica` works
        _check_workarounds(indices[0])
    for count in counts:
        tested = [part for parts in indices for name, part in parts.items() if name.startswith(f"test/{count}/")]
        assert sorted(np.concatenate(tested)) == list(range(count))
        assert len(tested) % replicas == 0, "as many steps on every machine"
        assert 1 <= min(map(len, tested)) <= max(map(len, tested)) <= 4 + 1
        for step in range(count // (4 * replicas)):
            trained = [
                indices[machine][f"training/{count}/{step}/{device}"]
                for machine in range(machines)
                for device in range(devices or 1)
            ]
            assert list(np.concatenate(trained)) == list(range(step * 4 * replicas, (step + 1) * 4 * replicas))
            assert set(map(len, trained)) == {4}


@pytest.mark.parametrize("works", [True, False])
def test_workarounds_replace_only_functions_that_fail(works, monkeypatch):
    import tensorflow as tf

    def reduce_per_replica(values, strategy, reduction):
        return values if works else 1 / 0

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None and not works:
            raise ValueError("not averaged")

    functions = (reduce_per_replica, _maybe_symbolic_build)
    for (owner, name, *_), function in zip(WORKAROUNDS, functions, strict=True):
        monkeypatch.setattr(owner, name, function)
    status = apply_workarounds(tf.distribute.MirroredStrategy(["CPU:0"]))
    assert set(status.values()) == {"works" if works else "replaced"}
    assert [getattr(owner, name) in functions for owner, name, *_ in WORKAROUNDS] == [works, works]


def test_functions_with_other_arguments_are_not_replaced(monkeypatch):
    import tensorflow as tf

    for owner, name, *_ in WORKAROUNDS:
        monkeypatch.setattr(owner, name, lambda something_else: None)
    with pytest.warns(UserWarning, match="other arguments than keras_resnet knows"):
        status = apply_workarounds(tf.distribute.MirroredStrategy(["CPU:0"]))
    assert set(status.values()) == {"unknown"}


def test_one_device_has_the_default_strategy(monkeypatch):
    import tensorflow as tf

    monkeypatch.delenv("TF_CONFIG", raising=False)
    devices = Devices(1)
    assert devices.cluster == Cluster() and devices.is_chief and devices.num_replicas == devices.num_machines == 1
    assert devices.strategy is tf.distribute.get_strategy()


@pytest.mark.parametrize("devices", [0, -1, 1.0, True, "2", 100_000, 10**30])
def test_devices_should_be_a_positive_integer(devices):
    with pytest.raises(ValueError, match=r"`devices` should be an integer from 1 to 64. Received: devices="):
        Devices(devices)


def test_more_gpus_than_the_machine_has(monkeypatch):
    import tensorflow as tf

    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{number}", "GPU") for number in range(2)]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    with pytest.raises(
        ValueError, match=r"\['/physical_device:GPU:0', '/physical_device:GPU:1'\]. Received: devices=3"
    ):
        Devices(3)


def test_devices_cannot_change_after_tensorflow_has_started_them(monkeypatch):
    import tensorflow as tf

    tf.constant(0)
    with pytest.raises(ValueError, match=r"started them with 1 CPU device\..*new process.*Received: devices=2"):
        Devices(2)
    monkeypatch.setenv("TF_CONFIG", _tf_config({"worker": _free_addresses(2)}, 0))
    with pytest.raises(ValueError, match="started them for one machine"):
        Devices()
    with pytest.raises(ValueError, match="each machine is one device. Received: devices=2"):
        Devices(2)


def test_ports_in_use_are_refused(monkeypatch):
    """Before TensorFlow's collective strategy starts, which would end the process."""
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind: None)  # it is too late in this process
    address, other = _free_addresses(2)
    monkeypatch.setenv("TF_CONFIG", _tf_config({"worker": [address, other]}, 0))
    with socket.create_server(("", int(address.rpartition(":")[2]))), pytest.raises(ValueError) as error:
        get_strategy()
    assert f"port that can be opened (Address already in use). Received: {address}" in str(error.value)


@pytest.mark.parametrize("size, near", [(129, "128 or 132"), (130, "128 or 132"), (3, "4"), (127, "124 or 128")])
def test_batches_that_cannot_be_divided_are_refused(size, near):
    devices = _replicas(4)
    devices.check_batch_size(128)
    with pytest.raises(ValueError, match=rf"replicas \(4\), such as {near}. Received: batch_size={size}$"):
        devices.check_batch_size(size)


TWO = {"worker": ["a:1", "b:2"]}


@pytest.mark.parametrize(
    "text, addresses, index",
    [
        (_tf_config({"worker": ["a:1"]}, 0), 1, 0),
        (_tf_config({"chief": ["a:1"]}, 0, "chief"), 1, 0),
        (_tf_config(TWO, 1), 2, 1),
        (_tf_config({"chief": ["c:65535"], **TWO}, 1), 3, 2),
        (_tf_config({**TWO, "chief": ["10.0.0.1:3"]}, 0, "chief"), 3, 0),
        (_tf_config({"worker": ["[::1]:1", "[fe80::2]:1"], "chief": []}, 0), 2, 0),
    ],
)
def test_clusters(monkeypatch, text, addresses, index):
    monkeypatch.setenv("TF_CONFIG", text)
    assert (len(cluster()), cluster().index) == (addresses, index)


def test_the_chief_is_the_first_machine(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", _tf_config({**TWO, "chief": ["c:3"]}, 0))
    assert cluster() == Cluster(("c:3", "a:1", "b:2"), 1)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "JSON object"),
        ("{", "JSON object"),
        ("[]", "JSON object"),
        ("{}", "objects `cluster` and `task`"),
        ('{"cluster": {"worker": ["a:1"]}}', "objects `cluster` and `task`"),
        (_tf_config([], 0), "objects `cluster` and `task`"),
        (_tf_config({"ps": ["a:1"], **TWO}, 0), "no jobs in `cluster` but"),
        (_tf_config({"evaluator": ["a:3"], **TWO}, 0, "evaluator"), "no jobs in `cluster` but"),
        (_tf_config({}, 0), "at least one address"),
        (_tf_config({"worker": []}, 0), "at least one address"),
        (_tf_config({"worker": "a:1"}, 0), "lists of addresses"),
        (_tf_config({"chief": ["a:1", "b:1"]}, 0, "chief"), "one chief at most"),
        *(
            (_tf_config({"worker": [address, "b:2"]}, 0), "form 'host:port'")
            for address in ("a", "a:", ":1", "a:0", "a:65536", "a:x", "http://a:1", "a b:1", "::1:1", 1, None)
        ),
        (_tf_config({"worker": ["a:1", "a:1"]}, 0), "every address once"),
        (_tf_config({"chief": ["b:2"], **TWO}, 0), "every address once"),
        (_tf_config(TWO, 0, "evaluator"), "name of a job of `cluster` as the `type`"),
        (_tf_config(TWO, 0, "chief"), "name of a job of `cluster` as the `type`"),
        (_tf_config(TWO, 0, ["worker"]), "name of a job of `cluster` as the `type`"),
        *((_tf_config(TWO, index), "counts the addresses") for index in (2, -1, "0", 0.0, True, None)),
    ],
)
def test_invalid_clusters_are_refused(monkeypatch, text, expected):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=r"^`TF_CONFIG` should .*Received: TF_CONFIG=") as error:
        cluster()
    assert expected in str(error.value)


def test_fewer_test_images_than_replicas_are_refused():
    with pytest.raises(ValueError, match=r"number of replicas \(3\).*Received: num_images=2"):
        _replicas(3).distribute_test(None, 2, 4)


def test_synchronize_batch_norm_sets_every_layer():
    model = synchronize_batch_norm(keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3)))
    synchronized = [layer.synchronized for layer in model.layers if hasattr(layer, "synchronized")]
    assert synchronized == [True] * 53
