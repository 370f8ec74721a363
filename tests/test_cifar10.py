"""Published CIFAR-10 weights have their published errors on the test set."""

import hashlib
import json

import pytest
from support import run_command

from keras_resnet import create, preprocessing
from keras_resnet.weights.catalog import WEIGHTS
from keras_resnet.weights.download import ASSETS


@pytest.fixture(scope="module")
def cifar10(test_data):
    """The 10,000 test images (N, 32, 32, 3) uint8 and their labels (N,)."""
    tfds = pytest.importorskip("tensorflow_datasets")
    if not (test_data / "tfds" / "cifar10").is_dir():
        pytest.skip("KERAS_RESNET_TEST_DATA has no tfds/cifar10")
    return tfds.as_numpy(
        tfds.load(
            "cifar10", split="test", data_dir=test_data / "tfds", download=False, batch_size=-1, as_supervised=True
        )
    )


def evaluate_command(test_data, *names):
    """JSON of `keras-resnet evaluate` for published weights on all test images."""
    words = ["evaluate", "--dataset", "cifar10", "--data-dir", test_data / "tfds", "--no-download", "--json"]
    for name in names:
        words += ["--model", name.split("-")[0], "--weights", test_data / "cifar10_weights" / f"{name}.th"]
    result = run_command(*words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


PUBLISHED = {"resnet20-12fca82f": 0.0827, "resnet32-d509ac18": 0.0737}
"""Top-1 errors in github.com/akamaster/pytorch_resnet_cifar10."""


@pytest.mark.parametrize("name", ["resnet20-12fca82f", pytest.param("resnet32-d509ac18", marks=pytest.mark.slow)])
def test_published_weights_have_their_published_error(name, cifar10, test_data):
    report = evaluate_command(test_data, name)
    assert report["num_images"] == 10_000 and report["top1_error"] == PUBLISHED[name]


@pytest.mark.slow
def test_an_ensemble_has_a_lower_error_than_its_members(cifar10, test_data):
    assert evaluate_command(test_data, *PUBLISHED)["top1_error"] < min(PUBLISHED.values())


def test_the_included_weights_have_the_accuracy_in_the_catalog(cifar10):
    """And at most the paper's error, 8.75% (He et al. 2015, table 6)."""
    images, labels = cifar10
    model = create("resnet20", weights="cifar10")
    scores = model.predict(preprocessing(model)(images), batch_size=500, verbose=0)
    error = (scores.argmax(axis=1) != labels).mean()
    assert error <= 0.0875
    assert error == pytest.approx(1 - WEIGHTS["resnet20_cifar", "cifar10"].top1_accuracy, abs=2e-4)
    assert model.info["class_names"][3] == "cat" and model.info["weights"] == "cifar10"


def test_the_included_files_are_intact_and_small():
    for row in (row for (_, tag), row in WEIGHTS.items() if tag == "cifar10"):
        content = (ASSETS / row.url).read_bytes()
        assert row.digest == f"sha256:{hashlib.sha256(content).hexdigest()}" and len(content) < 2e6
