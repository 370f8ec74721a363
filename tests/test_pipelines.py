"""Batches for training and validation: every image once per epoch, reproducible from a seed, from any step on."""

import io
from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image
from scipy.stats import hypergeom

from keras_resnet import Recipe, from_arrays
from keras_resnet.data import datasets
from keras_resnet.data.datasets import Dataset, Split, Stream
from keras_resnet.data.pipelines import StepRange, evaluation_batches, training_batches
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.random_numbers import NumPyRandom, TensorFlowRandom
from keras_resnet.data.threaded_batches import shuffled_batches
from keras_resnet.normalization import Normalization

PLAIN = Recipe(epochs=1, batch_size=10)
BARE = Recipe(epochs=1, batch_size=25)
EVERYTHING = Recipe(
    epochs=1, batch_size=10, crop="pad", flip=True, erasing=0.5, mixup=0.2, cutmix=1.0, label_smoothing=0.1
)
UNNORMALISED = Preprocessing(Normalization(divisor=1.0), size=8, resize=None, channels=1)


@pytest.fixture
def numbered():
    """103 images of four classes, each filled with its index."""
    images = np.broadcast_to(np.arange(103, dtype="uint8")[:, None, None, None], (103, 8, 8, 1))
    return from_arrays((images, np.arange(103) % 4), (images[:23], np.arange(23) % 4), preprocessing=UNNORMALISED)


def files(dataset):
    """The same images as PNG files in memory."""

    def encode(split):
        return Split(np.array([encode_png(image) for image in split.images], object), split.labels)

    return replace(dataset, train=encode(dataset.train), test=encode(dataset.test))


def encode_png(image):
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, "PNG")
    return buffer.getvalue()


def stream(dataset):
    """The same images as a Stream."""
    tf = pytest.importorskip("tensorflow")
    whole = files(dataset)

    def examples(seed):
        found = tf.data.Dataset.from_tensor_slices((whole.train.images.tolist(), whole.train.labels))
        return found if seed is None else found.shuffle(len(whole.train), seed=seed)

    return replace(dataset, train=Stream(examples, len(whole.train)))


KINDS = {"pixels": lambda dataset: dataset, "files": files, "stream": stream}


def batches_of(dataset, *arguments):
    """List of the batches of the test images."""
    batches = evaluation_batches(dataset.test, dataset, *arguments)
    return [batches[i] for i in range(len(batches))] if isinstance(batches, keras.utils.PyDataset) else list(batches)


def indices_of(batches):
    """Indices of the images in some batches."""
    return [int(index) for images, _ in batches for index in np.asarray(images)[:, 4, 4, 0]]


@pytest.mark.portable
@pytest.mark.parametrize("kind", KINDS)
def test_every_epoch_is_another_permutation_of_the_images(kind, numbered):
    dataset = KINDS[kind](numbered)
    seen = indices_of(training_batches(dataset, PLAIN, 31, seed=3))
    epochs = [seen[start : start + 103] for start in (0, 103, 206)]
    assert all(sorted(one) == list(range(103)) for one in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(103))
    assert abs(np.corrcoef(epochs[0], epochs[1])[0, 1]) < 0.35, (
        "the standard deviation of independent ones is 1/sqrt(103)"
    )
    for images, labels in training_batches(dataset, PLAIN, 2):
        np.testing.assert_array_equal(np.argmax(labels, -1), np.asarray(images)[:, 4, 4, 0] % 4)


@pytest.mark.parametrize("count", [250, 2500])
def test_batches_of_sorted_classes_are_mixed_as_at_random(count):
    """Class folders are read one after another; the images of a class in a batch follow the hypergeometric law."""
    labels = np.arange(count) // (count // 2)
    sorted_ = from_arrays((np.zeros((count, 1, 1, 1), "uint8"), labels), (np.zeros((2, 1, 1, 1), "uint8"), [0, 1]))
    batches = (
        np.argmax(y, -1).sum() for seed in range(3) for _, y in training_batches(sorted_, BARE, 10 * count // 25, seed)
    )
    assert np.std(list(batches)) == pytest.approx(hypergeom(count, count // 2, 25).std(), rel=0.15)


@pytest.mark.portable
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_has_the_same_batches(kind, numbered):
    dataset = KINDS[kind](numbered)
    whole = list(training_batches(dataset, EVERYTHING, 25, seed=5))
    for first in (1, 10, 11, 24):
        rest = list(training_batches(dataset, EVERYTHING, 25 - first, seed=5, first=first))
        for (x, y), (other_x, other_y) in zip(whole[first:], rest, strict=True):
            np.testing.assert_array_equal(x, other_x)
            np.testing.assert_array_equal(y, other_y)
    other = list(training_batches(dataset, EVERYTHING, 1, seed=6))
    assert not np.array_equal(whole[0][0], other[0][0])


@pytest.mark.portable
@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_equal_the_whole_batch(kind, numbered):
    recipe = replace(PLAIN, crop="pad", flip=True, erasing=0.3, repeats=2)  # read in pairs, but not for halves of 5
    dataset = KINDS[kind](numbered)
    whole = training_batches(dataset, recipe, 12, seed=1)
    halves = zip(*(training_batches(dataset, recipe, 12, seed=1, share=(part, 2)) for part in (0, 1)), strict=True)
    for (x, y), ((x0, y0), (x1, y1)) in zip(whole, halves, strict=True):
        np.testing.assert_array_equal(x, np.concatenate([x0, x1]))
        np.testing.assert_array_equal(y, np.concatenate([y0, y1]))


@pytest.mark.portable
@pytest.mark.parametrize("kind", KINDS)
def test_repeats_are_consecutive(kind, numbered):
    seen = indices_of(training_batches(KINDS[kind](numbered), replace(PLAIN, repeats=3), 7, first=1))
    before = indices_of(training_batches(KINDS[kind](numbered), replace(PLAIN, repeats=3), 1))
    runs = np.array((before + seen)[:78]).reshape(-1, 3)
    assert (runs == runs[:, :1]).all() and len(set(runs[:, 0])) == 26


def test_numpy_batches_are_permutations_and_resume(numbered):
    def read(first, count):
        steps = StepRange(first, count, batch_size=10, part=slice(0, 10), seed=3, repeats=1)
        return [(x[:, 0, 0, 0].tolist(), y.tolist()) for _, x, y in shuffled_batches(numbered.train, steps)]

    whole = read(0, 31)
    seen = [number for x, _ in whole for number in x]
    assert all(sorted(seen[start : start + 103]) == list(range(103)) for start in (0, 103, 206))
    assert read(11, 20) == whole[11:] and all(y == [number % 4 for number in x] for x, y in whole)


@pytest.mark.portable
def test_pad_shifts_images_by_at_most_the_padding():
    image = np.zeros((8, 8, 1), "uint8")
    image[4, 4] = 200
    dataset = from_arrays((np.stack([image] * 64), np.zeros(64, int)), preprocessing=UNNORMALISED)
    recipe = Recipe(epochs=1, batch_size=32, crop="pad", padding=2)
    positions = {
        tuple(np.argwhere(x)[0, :2]) for xs, _ in training_batches(dataset, recipe, 12) for x in np.asarray(xs)[..., :]
    }
    assert positions == {(row, column) for row in range(2, 7) for column in range(2, 7)}


@pytest.mark.portable
def test_evaluation_batches_are_in_order(numbered):
    for dataset in (numbered, files(numbered)):
        batches = batches_of(dataset, 10)
        assert [len(x) for x, _ in batches] == [10, 10, 3]
        assert indices_of(batches) == list(range(23))
        halves = [indices_of(batches_of(dataset, 10, (part, 2))) for part in (0, 1)]
        assert halves == [list(range(0, 23, 2)), list(range(1, 23, 2))]


@pytest.mark.portable
def test_evaluation_batches_equal_preprocessing(test_data):
    """The pipeline against Pillow on real photographs: the same model input up to rounding."""
    paths = sorted((test_data / "imagenet_sample").glob("*.JPEG"))[:8]
    preprocessing = Preprocessing("torch", size=224, resize=256)
    split = Split(np.array([path.read_bytes() for path in paths], object), np.zeros(8, "int32"))
    dataset = Dataset("photographs", split, split, ("all",), preprocessing)
    ((images, _),) = batches_of(dataset, 8)
    assert np.abs(np.asarray(images) - preprocessing(paths)).mean() < 0.01


def test_mixed_labels_sum_to_one(numbered):
    for _, labels in training_batches(numbered, EVERYTHING, 5):
        np.testing.assert_allclose(np.sum(labels, -1), 1, rtol=1e-5)
    ((_, labels),) = training_batches(numbered, replace(EVERYTHING, mixup=0.0, cutmix=0.0), 1)
    assert np.unique(np.round(labels, 5)).tolist() == pytest.approx([0.025, 0.925])


@pytest.mark.parametrize("random_class", [NumPyRandom, TensorFlowRandom])
def test_random_numbers_have_their_distributions_and_depend_on_seed_and_step(random_class):
    random = random_class(1, 2, (4000, slice(1000, 3000)))
    uniform, normal = np.asarray(random.uniform(2)), np.asarray(random.normal(2))
    assert uniform.shape == normal.shape == (2000, 2) and uniform.min() >= 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.02 and abs(normal.std() - 1) < 0.05
    np.testing.assert_array_equal(uniform, np.asarray(random_class(1, 2, (4000, slice(None))).uniform(2))[1000:3000])
    assert not np.array_equal(uniform, np.asarray(random_class(1, 3, (4000, slice(1000, 3000))).uniform(2)))
    samples = [float(random_class(0, step, (1, slice(None))).batch_beta(0.2)) for step in range(300)]
    # beta(a, a) has mean 1/2 and variance 1 / (8 a + 4)
    assert abs(np.mean(samples) - 0.5) < 0.08 and abs(np.var(samples) - 1 / 5.6) < 0.03


@pytest.mark.portable
def test_images_larger_than_memory_are_read_from_their_paths(numbered, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MEMORY_FRACTION", 0)
    for number, image in enumerate(numbered.train.images):
        path = tmp_path / str(number % 4) / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_png(image))
    from keras_resnet import load_dataset

    found = replace(load_dataset(tmp_path), preprocessing=UNNORMALISED)
    assert found.train.has_paths
    seen = indices_of(training_batches(found, PLAIN, 8))
    assert len(set(seen)) == 80


@pytest.mark.portable
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_converted_to_the_channels_of_the_preprocessing(channels):
    """Grey to RGB and RGB to grey, as in Pillow."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6, 8, 8, 4 - channels), "uint8")
    mode, given = ("RGB", "L") if channels == 3 else ("L", "RGB")
    expected = [np.asarray(Image.fromarray(image.squeeze(), given).convert(mode)) for image in images]
    dataset = from_arrays((images, [0, 1] * 3), (images, [0, 1] * 3))
    dataset = replace(dataset, preprocessing=replace(UNNORMALISED, channels=channels))
    (shown, _), *_ = batches_of(dataset, 6)
    np.testing.assert_allclose(np.squeeze(shown), expected, atol=1)
    (seen, _), *_ = training_batches(dataset, replace(PLAIN, batch_size=6), 1)
    sums = [sorted(np.reshape(some, (6, -1)).astype("float64").sum(axis=1)) for some in (seen, expected)]
    np.testing.assert_allclose(*sums, rtol=0.01)
