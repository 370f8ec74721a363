"""The benchmark of segmenters: logits and training steps of this package's networks, exports and torchvision's."""

import runpy
import sys
from dataclasses import asdict, replace

import keras
import numpy as np
import pytest
from support import LocalWorker

from keras_resnet import build
from keras_resnet.benchmark import comparison, contenders, segmenter_training, worker, workloads
from keras_resnet.benchmark.comparison import Workers, compare, notes
from keras_resnet.benchmark.contenders import CONTENDERS, reason_to_skip
from keras_resnet.benchmark.keras_networks import FoldedNetwork, Job, KerasNetwork, OptimizedNetwork
from keras_resnet.variants import SEGMENTERS

SIZE = (48, 70)
JOB = Job("keras_resnet", "float32", "tiny", batch_size=2, image_size=SIZE)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Makes "tiny" the name of a narrow segmenter on a short network, with four image files."""
    spec = SEGMENTERS["deeplabv3_resnet18"]
    backbone = replace(spec.backbone, depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), stem_width=8)
    changes = {"head_width": 8, "rates": (1, 2, 3), "classes": 6}
    monkeypatch.setitem(SEGMENTERS, "tiny", replace(spec, backbone=backbone, **changes))
    monkeypatch.setattr(workloads, "NUM_IMAGES", 4)
    monkeypatch.setattr(segmenter_training, "LEARNING_RATE", 0.01)


@pytest.mark.parametrize("kind", [FoldedNetwork, OptimizedNetwork])
def test_forms_of_the_network_compute_the_same(kind, tmp_path):
    network, ours = kind(JOB, tmp_path), KerasNetwork(JOB, tmp_path)
    model = getattr(network, "optimized", network.model)
    assert JOB.images.shape == (2, *SIZE, 3)
    expected = ours.model.predict(JOB.images, verbose=0)
    np.testing.assert_allclose(model.predict(JOB.images, verbose=0), expected, rtol=1e-3, atol=1e-4)
    network.inference(2)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports are written by TensorFlow")
@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "litert"])
def test_an_exported_network_computes_what_ours_does(name, tmp_path):
    for module in CONTENDERS[name].needs:
        pytest.importorskip(module)
    exported = CONTENDERS[name].network(replace(JOB, contender=name), tmp_path)
    expected = KerasNetwork(JOB, tmp_path).model.predict(JOB.images, verbose=0)
    np.testing.assert_allclose(exported.network(JOB.images)["logits"], expected, rtol=1e-3, atol=1e-3)
    exported.inference(1)
    exported.load()


def test_a_training_step_trains_both_heads(tmp_path):
    network = KerasNetwork(JOB, tmp_path)
    model = network.run.model
    before = {variable.path: np.array(variable) for variable in model.trainable_variables}
    network.train(2)
    losses = model.get_metrics_result()
    assert len(losses) == 3 and np.isfinite(list(losses.values())).all() and losses["auxiliary_loss"] > 0
    after = {variable.path: np.array(variable) for variable in model.trainable_variables}
    unchanged = [path for path, value in before.items() if np.array_equal(value, after[path])]
    assert not unchanged and any("aux_" in path for path in before)


def test_batches_are_crops_of_the_size_of_the_images(tmp_path):
    network = KerasNetwork(JOB, tmp_path)
    first, second = ({name: np.asarray(it) for name, it in x.items()} for x, _ in network.training_batches(2))
    assert first["images"].shape == (2, *SIZE, 3) and first["images"].dtype == np.float32
    assert first["masks"].shape == (2, *SIZE) and not np.array_equal(first["masks"], second["masks"])
    assert set(np.unique(first["masks"])) <= {*range(6), 255} and len(np.unique(first["masks"])) > 2
    assert network.pipeline(1) > 0


def test_masks_have_regions_of_one_class(tmp_path):
    data = segmenter_training.made_up_dataset(tmp_path, (120, 160), 6)
    mask = data.train.masks.read(0)
    assert mask.shape == (120, 160)
    np.testing.assert_array_equal(mask, np.kron(mask[5::10, 5::10], np.ones((10, 10), int)))


def test_the_report_of_a_segmenter(monkeypatch):
    monkeypatch.setattr(comparison, "Worker", LocalWorker)
    monkeypatch.setitem(CONTENDERS, "torchvision", replace(CONTENDERS["torchvision"], needs=("no_such_module",)))
    chosen = ("keras_resnet", "folded", "torchvision")
    report = compare("tiny", tasks=("inference", "build"), image_size=SIZE, contenders=chosen, rounds=1, steps=1)
    assert report["settings"]["batch_size"] == 2 and report["settings"]["image_size"] == SIZE
    assert report["baseline"] == {"contender": "torchvision", "precision": "float32"}
    rows = [(row["task"], row["contender"], row["unit"]) for row in report["results"]]
    inference = [("inference", name, "images/s") for name in chosen[:2]]
    assert rows == [*inference, ("build", "keras_resnet", "s")]
    (missing,) = report["not_measured"]
    assert missing["contender"] == "torchvision" and "at 48x70 px" in notes(report)[0]


def test_torchvisions_segmenters_run_in_an_environment_of_their_own(monkeypatch):
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda module: None)
    job = replace(JOB, contender="torchvision", model="fcn_resnet50", torch_python=sys.executable)
    assert reason_to_skip(job) is None
    assert reason_to_skip(replace(job, model="deeplabv3plus_resnet50")) == "has no deeplabv3plus_resnet50"


@pytest.mark.parametrize("name", sorted(contenders.TORCHVISION_SEGMENTERS))
def test_torchvision_has_the_segmenters(name):
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, aux_loss=True)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    ours = build(SEGMENTERS[name], initialize=False)
    assert parameters == sum(np.prod(variable.shape) for variable in ours.trainable_variables)


@pytest.mark.parametrize("task", ["inference", "train"])
def test_torchvisions_segmenter_is_measured(task):
    pytest.importorskip("torchvision")
    job = replace(JOB, contender="torchvision_channels_last", precision="bfloat16", model="fcn_resnet50")
    measured = worker.Worker(job)
    answer = measured.measure(task, 1)
    measured.close()
    assert answer["seconds"] > 0 and measured.network == "torchvision fcn_resnet50, channels last"


def test_torchvisions_training_step_trains_as_many_numbers(tmp_path):
    pytest.importorskip("torchvision")
    job = replace(JOB, contender="torchvision", model="fcn_resnet50")
    theirs = runpy.run_path(str(CONTENDERS["torchvision"].script))["create"](asdict(job))
    model, *_ = theirs._training
    before = [parameter.detach().clone() for parameter in model.parameters()]
    theirs.train(2)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert any((old != new).any() for old, new in zip(before, model.parameters(), strict=True))
    ours = KerasNetwork(job, tmp_path).run.model.trainable_variables
    assert sorted(np.prod(it.shape) for it in ours) == sorted(it.numel() for it in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ("detection",)}, r"`tasks` should be of \['inference', 'train', 'build', 'load', 'pipeline'\]"),
        ({"contenders": ("torch",)}, "`contenders` should be of .*'torchvision'"),
        ({"image_size": (520, 16)}, "`image_size` should be an integer from 32"),
        ({"image_size": (520, 520, 3)}, "`image_size` should be a number of pixels, or height and width"),
        ({"model": "localizer_resnet18"}, "`model` should be a classifier, a detector or a segmenter"),
    ],
)
def test_bad_requests_are_refused_before_anything_starts(arguments, message, monkeypatch):
    monkeypatch.setattr(Workers, "start", lambda *_: pytest.fail("started"))
    with pytest.raises(ValueError, match=message):
        compare(**{"model": "fcn_resnet50"} | arguments)
