"""Several devices and several machines, as processes of their own: TensorFlow sets up its devices once a process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_resnet.training.distribution import (
    Cluster,
    check_batch,
    cluster,
    distribute_test,
    is_chief,
    strategy,
    synchronize_batch_norm,
)

WORKER = Path(__file__).parent / "worker_process.py"


@pytest.fixture
def start(tmp_path):
    """start(task, cluster=(jobs, index), **arguments) -> function that waits for the arrays; no process is left."""
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


def _free_addresses(count):
    """Addresses on this machine; all ports are open at once, so that they differ."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
    for listener in listeners:
        listener.close()
    return addresses


@pytest.mark.slow
def test_two_machines_train_and_test_as_two_devices_of_one(start):
    jobs = {"worker": _free_addresses(2)}
    first, second = [finish() for finish in [start("train", cluster=(jobs, index)) for index in range(2)]]
    one = start("train", devices=2)()
    assert one["replicas"] == first["replicas"] == second["replicas"] == 2
    assert len(one["losses"]) == 24
    for machine in (first, second):
        for name, expected in one.items():
            np.testing.assert_allclose(machine[name], expected, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_whole_run_on_two_machines_is_that_on_two_devices(start, tmp_path):
    """With augmentation, clipping, averages and checkpoints; and with synchronised batch norm, on one device."""
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
    assert again["accuracy"] == devices["accuracy"], "what machines saved, devices go on with"


@pytest.mark.slow
def test_what_two_devices_measure_is_what_the_saved_network_has(start):
    trained = start("train", devices=2, batch_size=128, test_images=257)()
    loss, accuracy = trained["tested"]
    assert trained["tested_alone"] == pytest.approx([loss, accuracy], abs=1e-6)
    assert accuracy > 0.3


@pytest.mark.slow
def test_synchronised_batch_norm_makes_two_replicas_one(start):
    one, two, apart = (
        start("train", batch_size=30, **arguments)()["losses"]
        for arguments in ({}, {"devices": 2, "synchronized": True}, {"devices": 2})
    )
    assert len(one) > 50
    np.testing.assert_allclose(two, one, atol=1e-4)
    assert np.abs(apart - one).max() > 0.01, "each replica by its own statistics should be another training"


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_deterministic_training_is_the_same_twice(start, machines):
    def train():
        if machines == 1:
            return start("train", devices=2, deterministic=True)()
        jobs = {"worker": _free_addresses(2)}
        running = [start("train", cluster=(jobs, index), deterministic=True) for index in range(2)]
        return {name: array for finish in running for name, array in finish().items()}

    first, second = train(), train()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("machines, devices", [(1, 3), (2, None)])
def test_which_images_come_to_which_replica(start, machines, devices):
    """Of test images each once, and no replica idle; of training batches replica r has the r-th part."""
    replicas, counts = machines * (devices or 1), [3, 4, 9, 64, 65, 66]
    jobs = {"worker": _free_addresses(machines)}
    arguments = {"devices": devices, "counts": counts, "batch_size": 4 * replicas}
    running = [start("parts", cluster=(jobs, index), **arguments) for index in range(machines)]
    seen = [finish() for finish in running]
    for count in counts:
        tested = [part for parts in seen for name, part in parts.items() if name.startswith(f"test/{count}/")]
        assert sorted(np.concatenate(tested)) == list(range(count))
        assert len(tested) % replicas == 0, "as many steps on every machine"
        assert 1 <= min(map(len, tested)) <= max(map(len, tested)) <= 4 + 1
        for step in range(count // (4 * replicas)):
            trained = [
                seen[machine][f"training/{count}/{step}/{device}"]
                for machine in range(machines)
                for device in range(devices or 1)
            ]
            assert list(np.concatenate(trained)) == list(range(step * 4 * replicas, (step + 1) * 4 * replicas))
            assert set(map(len, trained)) == {4}


def test_one_device_needs_no_strategy(monkeypatch):
    import tensorflow as tf

    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert (cluster(), is_chief()) == (Cluster(), True)
    assert strategy(1) is tf.distribute.get_strategy()


@pytest.mark.parametrize("devices", [0, -1, 1.0, True, "2"])
def test_devices_are_counted(devices):
    with pytest.raises(ValueError, match=r"`devices` should be None or a positive integer. Received: devices="):
        strategy(devices)


def test_more_gpus_than_there_are(monkeypatch):
    import tensorflow as tf

    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{number}", "GPU") for number in range(2)]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    with pytest.raises(
        ValueError, match=r"\['/physical_device:GPU:0', '/physical_device:GPU:1'\]. Received: devices=3"
    ):
        strategy(3)


def test_devices_too_late(monkeypatch):
    import tensorflow as tf

    tf.constant(0)
    with pytest.raises(ValueError, match=r"started them with 1 CPU device\..*new process.*Received: devices=2"):
        strategy(2)
    monkeypatch.setenv("TF_CONFIG", _tf_config({"worker": _free_addresses(2)}, 0))
    with pytest.raises(ValueError, match="started them for one machine"):
        strategy()
    with pytest.raises(ValueError, match="each is one device. Received: devices=2"):
        strategy(2)


def test_a_port_in_use(start):
    address, other = _free_addresses(2)
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        message = start("refusal", cluster=({"worker": [address, other]}, 0))()["message"]
    assert f"port that can be opened (Address already in use). Received: {address}" in str(message)


@pytest.mark.parametrize("size, near", [(129, "128 or 132"), (130, "128 or 132"), (3, "4"), (127, "124 or 128")])
def test_a_batch_that_cannot_be_divided(size, near):
    check_batch(128, 4)
    with pytest.raises(ValueError, match=rf"replicas \(4\), such as {near}. Received: batch_size={size}$"):
        check_batch(size, 4)


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
    assert is_chief() == (index == 0)


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
def test_impossible_clusters(monkeypatch, text, expected):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=r"^`TF_CONFIG` should .*Received: TF_CONFIG=") as error:
        cluster()
    assert expected in str(error.value)


def test_fewer_test_images_than_replicas():
    class Three:
        num_replicas_in_sync = 3

    with pytest.raises(ValueError, match=r"number of replicas \(3\).*Received: images=2"):
        distribute_test(None, 2, 4, Three())


def test_synchronised_batch_norm_is_a_switch_of_every_layer():
    model = synchronize_batch_norm(keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3)))
    switches = [layer.synchronized for layer in model.layers if hasattr(layer, "synchronized")]
    assert switches == [True] * 53
