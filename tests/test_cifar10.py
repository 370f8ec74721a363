"""The real thing: published CIFAR-10 weights on the real test set, to the digit."""

import pytest

from keras_resnet import create, preprocessing


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
