"""The benchmark of detectors: parts compute what the whole does, and costs follow from the measured values."""

import runpy
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np
import pytest
from support import LocalWorker

from keras_resnet import complexity
from keras_resnet.architecture.detector_complexity import multiply_adds_of_parts
from keras_resnet.benchmark import comparison, contenders, detector_training, worker, workloads
from keras_resnet.benchmark.comparison import Workers, compare, notes, part_rows, table_rows
from keras_resnet.benchmark.contenders import CONTENDERS, reason_to_skip
from keras_resnet.benchmark.detectors import cost_rows, detection_images, detector_parts
from keras_resnet.benchmark.keras_networks import Job, KerasNetwork, create_network
from keras_resnet.variants import DETECTORS

SIZE = (64, 90)
NARROW = {"neck_width": 32, "rpn_width": 16, "box_width": 16, "classes": 6, "mask_width": 8, "mask_convs": 1}
JOB = Job("keras_resnet", "float32", "tiny", batch_size=1, image_size=SIZE)


@pytest.fixture
def tiny(monkeypatch):
    """Makes "tiny" the name of a narrow detector of the given kind on a short network."""

    def add(name):
        spec = DETECTORS[name]
        backbone = replace(spec.backbone, depths=(1, 1, 1, 1))
        monkeypatch.setitem(DETECTORS, "tiny", replace(spec, backbone=backbone, **NARROW, head_convs=1))

    return add


@pytest.fixture
def few_files(monkeypatch):
    """Has four image files made instead of hundreds, and trains with a learning rate that is seen in the weights."""
    monkeypatch.setattr(workloads, "NUM_IMAGES", 4)
    monkeypatch.setattr(detector_training, "LEARNING_RATE", 0.01)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("maskrcnn_resnet18_fpn", "body neck rpn proposals regions heads detections mask_regions masks"),
        ("retinanet_resnet18_fpn", "body neck heads detections"),
    ],
)
def test_the_parts_one_after_another_compute_what_the_detector_does(name, expected, tiny):
    tiny(name)
    model, images = create_network(JOB), detection_images(2, SIZE)
    tensors = {model.inputs[0].name: images}
    parts = detector_parts(model)
    assert list(parts) == expected.split()
    for part in parts.values():
        tensors |= part({tensor: tensors[tensor] for tensor in part.input})
    found = model(images)
    for output in model.output:
        np.testing.assert_allclose(tensors[model.output[output].name], found[output], atol=1e-4)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet18_fpn", "retinanet_resnet18_fpn"])
def test_random_weights_give_as_many_detections_as_there_may_be(name, tiny):
    tiny(name)
    model = create_network(JOB)
    found = model.predict(detection_images(1, (128, 160)), verbose=0)
    assert found["count"].tolist() == [model.settings.detections]


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_c4", "retinanet_resnet50_fpn_v2"])
def test_the_multiply_adds_of_the_parts_are_those_of_the_detector(name):
    parts = multiply_adds_of_parts(DETECTORS[name], (800, 800, 3))
    assert sum(parts.values()) == complexity(DETECTORS[name], input_shape=(800, 800, 3)).multiply_adds
    assert all(parts[part] > 0 for part in parts if (part, "c4") != ("neck", DETECTORS[name].neck))


def test_costs_at_the_rate_of_the_body():
    seconds = {"body": 2.0, "neck": 1.0, "heads": 3.0, "detections": 0.5}
    body, neck, _, detections, total = cost_rows(seconds, DETECTORS["retinanet_resnet50_fpn"], (800, 1344))
    assert body["at_body_rate"] == 2.0 and detections["at_body_rate"] == 0
    assert neck["at_body_rate"] == pytest.approx(2.0 * neck["multiply_adds"] / body["multiply_adds"])
    assert total["seconds"] == 6.5 and total["part"] == "all"


def test_the_report_of_a_detector(tiny, monkeypatch):
    tiny("retinanet_resnet18_fpn")
    monkeypatch.setattr(comparison, "Worker", LocalWorker)
    chosen = ("folded", "optimized", "torchvision")
    report = compare("tiny", tasks=("detection", "parts"), image_size=SIZE, contenders=chosen, rounds=1, steps=1)
    assert report["settings"]["batch_size"] == 1 and report["settings"]["image_size"] == SIZE
    assert report["baseline"] == {"contender": "torchvision", "precision": "float32"}
    rows = [(row["task"], row["contender"], row["ratio"]) for row in report["results"]]
    assert rows == [("detection", "folded", None), ("detection", "optimized", None), ("parts", "folded", None)]
    (missing,) = report["not_measured"]
    assert missing["contender"] == "torchvision"
    costs = report["results"][-1]["costs"]
    assert costs[-1]["seconds"] == pytest.approx(sum(cost["seconds"] for cost in costs[:-1]))
    computed = detection_images(1, SIZE).shape[1:]  # padded
    assert costs[-1]["multiply_adds"] == complexity(DETECTORS["tiny"], input_shape=computed).multiply_adds
    assert [row["part"] for row in part_rows(report)] == [cost["part"] for cost in costs]
    assert len(list(table_rows(report))) == 3 and "at 64x90 px" in notes(report)[0]


@pytest.mark.parametrize("name", ["maskrcnn_resnet18_fpn", "retinanet_resnet18_fpn"])
def test_a_training_step_trains_the_last_stages_and_the_heads(name, tiny, few_files, tmp_path):
    tiny(name)
    network = KerasNetwork(JOB, tmp_path)
    model = network.run.model
    before = {variable.path: np.array(variable) for variable in model.variables}
    network.train(2)
    losses, after = model.get_metrics_result(), {variable.path: np.array(variable) for variable in model.variables}
    assert len(losses) == len(model.output) + 1 and np.isfinite(list(losses.values())).all()
    changed = {path for path, value in before.items() if not np.array_equal(value, after[path])}
    frozen = {path for path in before if path.startswith(("conv1_", "conv2_")) or "_bn/" in path}
    assert frozen and changed == set(before) - frozen


def test_torchvisions_detectors_run_in_an_environment_of_their_own(monkeypatch):
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda module: None)
    job = replace(JOB, contender="torchvision", model="retinanet_resnet50_fpn")
    assert reason_to_skip(job) == "not installed: torch, torchvision"
    assert reason_to_skip(replace(job, torch_python=sys.executable)) is None
    other = replace(job, model="fasterrcnn_resnet18_fpn", torch_python=sys.executable)
    assert reason_to_skip(other) == "has no fasterrcnn_resnet18_fpn"


def test_torchvisions_detector_is_measured():
    pytest.importorskip("torchvision")
    measured = worker.Worker(
        replace(JOB, contender="torchvision_channels_last", precision="bfloat16", model="retinanet_resnet50_fpn")
    )
    answer = measured.measure("detection", 1)
    measured.close()
    assert answer["seconds"] > 0 and measured.network == "torchvision retinanet_resnet50_fpn, channels last"


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn_v2"])
def test_torchvisions_training_step_trains_as_many_numbers(name, few_files, tmp_path):
    pytest.importorskip("torchvision")
    job = replace(JOB, contender="torchvision", model=name)
    theirs = runpy.run_path(str(CONTENDERS["torchvision"].script))["Detector"](asdict(job))
    model, *_ = theirs._training
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    theirs.train(2)
    assert all(parameter.isfinite().all() for parameter in trained)
    assert any((old != new).any() for old, new in zip(before, trained, strict=True))
    ours = KerasNetwork(job, tmp_path).run.model.trainable_variables
    assert sorted(np.prod(variable.shape) for variable in ours) == sorted(parameter.numel() for parameter in trained)


def test_made_up_objects_are_ellipses_in_the_images(tiny, few_files, tmp_path):
    tiny("maskrcnn_resnet18_fpn")
    network = KerasNetwork(replace(JOB, batch_size=2, image_size=(200, 300)), tmp_path)
    assert network.pipeline(1) > 0
    ((x, _),) = network.training_batches(1)
    x = {name: np.asarray(value) for name, value in x.items()}
    assert x["images"].shape == (2, 224, 320, 3) and np.isfinite(x["images"][:, :200, :300]).all()
    assert np.isnan(x["images"][:, 200:]).all() and (x["labels"] > 0).sum() == 20
    sides = x["boxes"][..., 2:] - x["boxes"][..., :2]
    assert x["boxes"].min() >= 0 and (x["boxes"][..., 2:].max((0, 1)) <= [300, 200]).all()
    np.testing.assert_allclose(x["masks"].sum((2, 3)) / sides.prod(axis=-1), np.pi / 4, rtol=0.1)


def test_the_protocol_needs_only_the_standard_library():
    path = Path(worker.__file__).with_name("protocol.py")
    script = "import runpy, sys; serve = runpy.run_path(sys.argv[1])['serve']; "
    script += "serve(lambda job: type('Network', (), job), lambda network, task: {'did': task})"
    words = [sys.executable, "-I", "-S", "-c", script, path]
    done = subprocess.run(words, input='{"name": "a"}\n{"task": "b"}\n', capture_output=True, text=True, check=True)
    assert done.stdout == '{"network": "a"}\n{"did": "b"}\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"tasks": ("inference",)},
            r"`tasks` should be of \['detection', 'train', 'parts', 'build', 'pipeline'\], for fasterrcnn_resnet50_fpn",
        ),
        (
            {"model": "resnet50", "tasks": ("detection",)},
            "`tasks` should be of .*'inference'.*, for resnet50. Received",
        ),
        ({"contenders": ("keras",), "tasks": ("detection",)}, "`contenders` should be of .*'torchvision'.*detection"),
        ({"image_size": (800, 16)}, "`image_size` should be an integer from 32 to 8,192. Received: image_size=16"),
        ({"image_size": (800, 800, 3)}, "`image_size` should be a number of pixels, or height and width"),
        ({"model": "resnet50", "image_size": (224, 224)}, "`image_size` should be an integer"),
        ({"torch_python": "/no/python"}, "`torch_python` should be the path of a Python interpreter"),
    ],
)
def test_bad_requests_are_refused_before_anything_starts(arguments, message, monkeypatch):
    monkeypatch.setattr(Workers, "start", lambda *_: pytest.fail("started"))
    with pytest.raises(ValueError, match=message):
        compare(**{"model": "fasterrcnn_resnet50_fpn"} | arguments)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports are written by TensorFlow")
def test_an_exported_detector_finds_what_keras_does(tiny, tmp_path):
    pytest.importorskip("openvino")
    tiny("fasterrcnn_resnet18_fpn")
    exported = CONTENDERS["openvino"].network(replace(JOB, contender="openvino"), tmp_path)
    exported.detection(1)
    found = exported.network(JOB.images)
    expected = create_network(JOB).predict(JOB.images, verbose=0)
    assert found["count"] == expected["count"]
