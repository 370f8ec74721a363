"""The real thing: published CIFAR-10 weights on the real test set, to the digit."""

import hashlib
import json

import pytest
from typer.testing import CliRunner

from keras_resnet import create, preprocessing
from keras_resnet.cli import app
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


def evaluated(test_data, *names):
    """What `keras-resnet evaluate --json` says of published weights on all test images."""
    words = ["evaluate", "--dataset", "cifar10", "--data-dir", test_data / "tfds", "--no-download", "--json"]
    for name in names:
        words += ["--model", name.split("-")[0], "--weights", test_data / "cifar10_weights" / f"{name}.th"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


PUBLISHED = {"resnet20-12fca82f": 8.27, "resnet32-d509ac18": 7.37}
"""github.com/akamaster/pytorch_resnet_cifar10: top-1 error in percent."""


@pytest.mark.parametrize("name", ["resnet20-12fca82f", pytest.param("resnet32-d509ac18", marks=pytest.mark.slow)])
def test_published_weights_give_their_published_error(name, cifar10, test_data):
    said = evaluated(test_data, name)
    assert said["images"] == 10_000 and said["top1_error"] == PUBLISHED[name]


@pytest.mark.slow
def test_their_ensemble_is_better_than_either(cifar10, test_data):
    assert evaluated(test_data, *PUBLISHED)["top1_error"] < min(PUBLISHED.values())


def test_the_weights_that_ship_have_the_error_that_is_stated(cifar10):
    """At most the paper's 8.75 % (He et al. 2015, table 6), and what the catalog says."""
    images, labels = cifar10
    model = create("resnet20", weights="cifar10")
    scores = model.predict(preprocessing(model)(images), batch_size=500, verbose=0)
    wrong = (scores.argmax(axis=1) != labels).mean()
    assert wrong <= 0.0875
    assert wrong == pytest.approx(1 - WEIGHTS["resnet20_cifar", "cifar10"].top1 / 100, abs=2e-4)
    assert model.info["class_names"][3] == "cat" and model.info["weights"] == "cifar10"


def test_what_ships_is_whole_and_small():
    for source in (source for (_, tag), source in WEIGHTS.items() if tag == "cifar10"):
        content = (ASSETS / source.url).read_bytes()
        assert source.digest == f"sha256:{hashlib.sha256(content).hexdigest()}" and len(content) < 2e6
