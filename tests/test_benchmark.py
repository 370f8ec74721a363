"""The benchmark: contenders compute the same network, and the report follows from the measured values."""

import json
import statistics
import subprocess
import sys
from dataclasses import replace
from itertools import chain

import keras
import numpy as np
import pytest
from support import LocalWorker, random_images, randomize_weights

from keras_resnet import machine
from keras_resnet.benchmark import comparison, contenders, worker, workloads
from keras_resnet.benchmark.comparison import Workers, compare, notes, table_rows
from keras_resnet.benchmark.contenders import CONTENDERS, MEASURED_PRECISIONS, TASKS, reason_to_skip
from keras_resnet.benchmark.keras_networks import FoldedNetwork, Job, KerasNetwork, OptimizedNetwork, StockNetwork
from keras_resnet.variants import DETECTORS, VARIANTS

SMALL = Job("keras_resnet", "float32", "resnet20_cifar", batch_size=2, image_size=16)
TINY = replace(SMALL, model="resnet8_cifar")


@pytest.fixture
def resnet8(monkeypatch):
    """The variant of TINY, which exists only in this process."""
    monkeypatch.setitem(VARIANTS, TINY.model, replace(VARIANTS["resnet20_cifar"], depths=(1, 1, 1)))


def weights_of(network):
    return [np.asarray(weight) for weight in network.model.get_weights()]


@pytest.fixture(scope="module", params=[LocalWorker, pytest.param(worker.Worker, marks=pytest.mark.slow)])
def report(request):
    """The report on two contenders, in this process or in processes of their own, and one that is not installed."""
    missing = contenders.Contender(StockNetwork, needs=("no_such_module",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "Worker", request.param)
        patch.setitem(CONTENDERS, "missing", missing)
        return compare(
            "resnet20",
            batch_size=2,
            image_size=16,
            contenders=("keras_resnet", "keras", "missing"),
            tasks=("inference", "build"),
            rounds=3,
            steps=2,
        )


def test_stock_keras_has_only_kerass_layers_and_computes_the_same(resnet8, tmp_path):
    ours, stock = KerasNetwork(TINY, tmp_path), StockNetwork(TINY, tmp_path)
    assert all(type(layer).__module__.startswith("keras.") for layer in stock.model.layers)
    assert any(type(layer).__module__.startswith("keras_resnet.") for layer in ours.model.layers)
    stock.model.set_weights(randomize_weights(ours.model).get_weights())
    x = random_images(4, 16, 16, 3)
    np.testing.assert_allclose(ours.model.predict(x, verbose=0), stock.model.predict(x, verbose=0), atol=1e-5)
    for network in (ours, stock):
        network.train(3)
    for a, b in zip(weights_of(ours), weights_of(stock), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet50", "resnet50v2"])
def test_stock_keras_is_keras_applications_where_it_has_the_network(name, tmp_path):
    job = Job("keras", "float32", name, batch_size=1, image_size=32)
    application = {"resnet50": keras.applications.ResNet50, "resnet50v2": keras.applications.ResNet50V2}[name]
    stock = StockNetwork(job, tmp_path)
    assert stock.model.count_params() == application(weights=None, input_shape=(32, 32, 3)).count_params()
    assert stock.model.count_params() == KerasNetwork(job, tmp_path).model.count_params()
    assert stock.name == f"keras.applications {application.__name__}"


def test_a_task_runs_as_many_steps_as_requested(resnet8, tmp_path):
    network = KerasNetwork(TINY, tmp_path)
    before = weights_of(network)
    network.inference(3)
    assert all(map(np.array_equal, before, weights_of(network)))
    network.train(3)
    assert int(network.model.optimizer.iterations) == 3
    assert not np.array_equal(before[0], weights_of(network)[0])
    network.load()
    for a, b in zip(network.create(network.weights_file).get_weights(), weights_of(network), strict=True):
        np.testing.assert_array_equal(a, b)


def test_stock_keras_loads_the_weights_it_wrote(resnet8, tmp_path):
    network = StockNetwork(TINY, tmp_path)
    loaded, fresh = network.create(network.weights_file), network.create()
    np.testing.assert_array_equal(loaded.get_weights()[0], weights_of(network)[0])
    assert not np.array_equal(fresh.get_weights()[0], weights_of(network)[0])


@pytest.mark.parametrize("network", [KerasNetwork, StockNetwork])
def test_bfloat16_reaches_the_convolutions(network, resnet8, tmp_path):
    model = network(replace(TINY, precision="bfloat16"), tmp_path).model
    kinds = {type(layer).__name__: layer.compute_dtype for layer in model.layers}
    assert (kinds["Conv2D"], kinds["BatchNormalization"], kinds["Dense"]) == ("bfloat16", "bfloat16", "float32")


def test_batches_are_augmented_as_the_recipe_says(tmp_path):
    network = KerasNetwork(replace(SMALL, recipe="rsb_a3"), tmp_path)
    (images, labels), *_ = network.training_batches(1)
    assert images.shape == (2, 160, 160, 3)
    assert set(np.unique(labels)) == {0, 1}, "binary cross-entropy's targets"


def test_xla_is_left_off_on_the_cpu_and_switched_on_when_asked(resnet8, tmp_path):
    usual = KerasNetwork(TINY, tmp_path)
    if keras.backend.backend() != "tensorflow" or machine.accelerator("tensorflow")[0]:
        pytest.skip("about TensorFlow on the CPU")
    assert usual.model.jit_compile is False
    assert KerasNetwork(replace(TINY, xla=True), tmp_path).model.jit_compile is True


@pytest.mark.parametrize("model", ["resnet20_cifar", "resnet50"])
def test_the_input_pipeline_gives_batches_for_the_network(model, tmp_path, monkeypatch):
    monkeypatch.setattr(workloads, "NUM_IMAGES", 8)
    job = Job("keras_resnet", "float32", model, batch_size=4, image_size=48)
    network = workloads.Workloads()
    network.job, network.folder = job, tmp_path
    batches = [np.asarray(batch[0]) for batch in network.training_batches(3)]
    assert [batch.shape for batch in batches] == 3 * [(4, 48, 48, 3)]
    assert all(np.isfinite(batch).all() and batch.std() > 0.1 for batch in batches)
    assert not np.array_equal(batches[0], batches[2])  # the same images again, with another augmentation


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "litert"])
def test_an_exported_network_computes_what_ours_does(name, resnet8, tmp_path):
    for module in CONTENDERS[name].needs:
        pytest.importorskip(module)
    exported = CONTENDERS[name].network(TINY, tmp_path)
    (answers,) = exported.network(TINY.images).values()
    ours = KerasNetwork(TINY, tmp_path).model  # of the same seed
    np.testing.assert_allclose(answers, ours.predict(TINY.images, verbose=0), atol=1e-4)
    exported.inference(2)
    exported.load()


def test_folded_and_optimized_networks_compute_what_ours_does(resnet8, tmp_path):
    expected = KerasNetwork(TINY, tmp_path).model.predict(TINY.images, verbose=0)  # of the same seed
    folded, optimized = FoldedNetwork(TINY, tmp_path), OptimizedNetwork(TINY, tmp_path)
    for model in (folded.model, optimized.optimized):
        assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers)
        np.testing.assert_allclose(model.predict_on_batch(TINY.images), expected, atol=1e-4)
    optimized.inference(2)


def test_torchs_network_is_torchvisions_and_is_trained(tmp_path):
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    assert set(contenders.TORCHVISION) < set(torchvision.models.list_models())
    network = contenders.TorchNetwork(Job("torch", "bfloat16", "resnet18", 2, 32), tmp_path)
    before = network.model.conv1.weight.detach().clone()
    network.inference(2)
    network.train(2)
    network.build()
    network.load()
    assert not torch.equal(before, network.model.conv1.weight)


def test_rows_are_consistent():
    for contender in CONTENDERS.values():
        assert set(contender.tasks) <= set(TASKS) and set(contender.precisions) <= set(MEASURED_PRECISIONS)
        assert (contender.network is None) == (contender.script is not None)
        network = getattr(contender.network, "func", contender.network)
        assert contender.script or all(hasattr(network, task) for task in contender.tasks)
    ours = {name.removesuffix("_v1_5") for name in VARIANTS}
    assert set(contenders.TORCHVISION) <= ours
    assert set(TASKS) == set(CONTENDERS["keras_resnet"].tasks)
    assert contenders.TORCHVISION_DETECTORS.issubset(DETECTORS)


def test_reasons_to_skip(monkeypatch):
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda module: None if module == "torch" else module)
    assert reason_to_skip(Job("torch", "float32", "resnet50", 1, 64)) == "not installed: torch"
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda module: module)
    assert reason_to_skip(Job("torch", "float32", "resnet20_cifar", 1, 32)) == "has no resnet20_cifar"
    assert reason_to_skip(Job("onnxruntime", "bfloat16", "resnet50", 1, 64)) == "runs in float32, int8 only"
    assert reason_to_skip(Job("torch", "float32", "resnet50_v1_5", 1, 64)) is None


def test_the_report_has_a_row_for_each_task_and_contender(report):
    report = json.loads(json.dumps(report))
    assert [(row["task"], row["contender"]) for row in report["results"]] == [
        ("inference", "keras_resnet"),
        ("inference", "keras"),
        ("build", "keras_resnet"),
        ("build", "keras"),
    ]
    reason = "not installed: no_such_module"
    assert report["not_measured"] == [{"contender": "missing", "precision": "float32", "task": None, "reason": reason}]
    assert {row["unit"] for row in report["results"]} == {"images/s", "s"}
    assert all(len(row["values"]) == 3 and min(row["values"]) > 0 for row in report["results"])
    assert report["machine"]["cores"] >= 1 and report["versions"]["keras"] == keras.__version__
    assert report["baseline"] == {"contender": "keras", "precision": "float32"}
    peaks = {row["task"]: row["peak_memory"] for row in report["results"]}
    assert peaks["inference"] > 50e6 and peaks["build"] is None


def test_ratios_are_those_of_each_round(report):
    for ours, stock in (report["results"][:2], report["results"][2:]):
        speed = {"images/s": lambda value: value, "s": lambda value: 1 / value}[ours["unit"]]
        ratios = [speed(a) / speed(b) for a, b in zip(ours["values"], stock["values"], strict=True)]
        assert ours["ratio"] == pytest.approx({"median": sorted(ratios)[1], "min": min(ratios), "max": max(ratios)})
        assert ours["ratio"] == ours["ratio_same_precision"]
        assert stock["ratio"] == {"median": 1, "min": 1, "max": 1}
        assert ours["median"] == statistics.median(ours["values"])


def test_the_table_has_the_values_of_the_report(report):
    text = "\n".join([*(" | ".join(map(str, chain(*row.items()))) for row in table_rows(report)), *notes(report)])
    ratio = report["results"][0]["ratio"]["median"]
    assert "keras_resnet resnet20_cifar" in text and "keras.layers resnet20_cifar" in text
    assert "vs keras float32" in text and f"{ratio:.2f} (" in text and "1.00 (1.00 to 1.00)" in text
    assert "not measured: missing (float32): not installed: no_such_module" in text


@pytest.mark.slow
def test_a_worker_that_dies_is_reported_and_the_others_go_on():
    with Workers(lambda text: None) as workers:
        for job in (SMALL, SMALL, replace(SMALL, model="resnet21")):
            workers.start(job)
        workers.workers[0].process.kill()
        rows = workers.measure("inference", rounds=2, steps=1)
        processes = [worker.process for worker in workers.workers]
    assert len(rows) == 1 and len(rows[0]["values"]) == 2
    start, middle = workers.not_measured
    assert rows[0]["steps"] == 1
    assert start["task"] is None and "Received: name='resnet21'" in start["reason"]
    assert middle["task"] == "inference" and "exit status -9" in middle["reason"]
    assert all(process.poll() is not None for process in processes)


class StubWorker:
    """Stands for a Worker; that of stock Keras dies in its third measurement, that of "optimized" at the start."""

    def __init__(self, job):
        self.job, self.network, self.count = job, job.contender, 0
        if job.contender == "optimized":
            raise comparison.WorkerDied("ended at the start")

    def measure(self, task, steps):
        self.count += 1
        if self.job.contender == "keras" and self.count == 3:
            raise comparison.WorkerDied("ended")
        return {"seconds": 1.0, "cpu_seconds": 1.0, "device": None, "peak_memory": 1, "peak_device_memory": None}

    def close(self):
        pass


def test_other_workers_go_on_when_one_dies(monkeypatch):
    monkeypatch.setattr(comparison, "Worker", StubWorker)
    with Workers(lambda text: None) as workers:
        for contender in ("keras_resnet", "keras", "optimized"):
            workers.start(replace(SMALL, contender=contender))
        (row,) = workers.measure("inference", rounds=4, steps=3)
    assert row["values"] == [6.0] * 4 and row["contender"] == "keras_resnet" and row["steps"] == 3
    reasons = [(row["contender"], row["task"], row["reason"]) for row in workers.not_measured]
    assert reasons == [("optimized", None, "ended at the start"), ("keras", "inference", "ended")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("resnet8_cifar", 16), ("resnet18", 32)])
def test_workloads_run(name, size, resnet8, tmp_path):
    network = KerasNetwork(Job("keras_resnet", "float32", name, 2, size), tmp_path)
    assert network.pipeline(2) > 0 and network.whole_run(2) > 0
    network.evaluation(2)
    network.extraction(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet51"}, "Nearest.*resnet50.*Received: name='resnet51'"),
        ({"contenders": ("kears",)}, "Nearest.*keras.*Received: contenders='kears'"),
        ({"contenders": ()}, "should be some of"),
        ({"precisions": ("float16",)}, "Received: precisions='float16'"),
        ({"tasks": ("training",)}, "Nearest.*train.*Received: tasks='training'"),
        ({"batch_size": 0}, "`batch_size` should be an integer from 1 to 1,048,576. Received: batch_size=0"),
        ({"image_size": 8}, "`image_size` should be an integer from 32 to 8,192. Received: image_size=8"),
        ({"rounds": 0}, "`rounds`"),
        ({"steps": 0}, "`steps`"),
    ],
)
def test_bad_requests_are_refused_before_anything_starts(arguments, message, monkeypatch):
    monkeypatch.setattr(Workers, "start", lambda *_: pytest.fail("started"))
    with pytest.raises(ValueError, match=message):
        compare(**arguments)


def test_peak_memory_includes_freed_memory():
    script = "import runpy, sys; peak = runpy.run_path(sys.argv[1])['peak_memory']; print(peak())\n"
    script += "held = bytearray(b'x') * 200_000_000; del held; print(peak())"
    done = subprocess.run([sys.executable, "-c", script, machine.__file__], capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert 5e6 < before < 100e6 and 200e6 < after - before + 20e6 < 250e6
