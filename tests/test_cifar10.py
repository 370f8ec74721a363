"""The real thing: published CIFAR-10 weights on the real test set, to the digit."""

import hashlib

import pytest

from keras_resnet import create, preprocessing
from keras_resnet.weights.catalog import WEIGHTS
from keras_resnet.weights.fetching import ASSETS


@pytest.fixture(scope="module")
def cifar10(test_data):
    """The 10,000 test pictures (N, 32, 32, 3) uint8 and their labels (N,)."""
    tfds = pytest.importorskip("tensorflow_datasets")
    if not (test_data / "tfds" / "cifar10").is_dir():
        pytest.skip("KERAS_RESNET_TEST_DATA has no tfds/cifar10")
    return tfds.as_numpy(
        tfds.load(
            "cifar10", split="test", data_dir=test_data / "tfds", download=False, batch_size=-1, as_supervised=True
        )
    )


@pytest.mark.parametrize(("name", "errors"), [("resnet20-12fca82f", 827), ("resnet32-d509ac18", 737)])
def test_published_weights_give_their_published_error(name, errors, cifar10, test_data):
    """github.com/akamaster/pytorch_resnet_cifar10: 8.27 % and 7.37 %, that is 827 and 737 of 10,000."""
    images, labels = cifar10
    model = create(name.split("-")[0], weights=test_data / "cifar10_weights" / f"{name}.th")
    scores = model.predict(preprocessing(model)(images), batch_size=500, verbose=0)
    assert (scores.argmax(axis=1) != labels).sum() == errors


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
