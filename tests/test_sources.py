"""Datasets by name, from arrays, and from tensorflow-datasets. Folders are tested in test_image_folders.py."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from keras_resnet.data import datasets
from keras_resnet.data.datasets import Split
from keras_resnet.data.source_kinds import digits
from keras_resnet.data.sources import from_arrays, load_dataset
from keras_resnet.data.tfds import list_tfds, load_tfds

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def prepared(test_data):
    """The folder of datasets prepared by tensorflow-datasets."""
    if not (test_data / "tfds" / "cifar10").is_dir():
        pytest.skip("KERAS_RESNET_TEST_DATA has no tfds/cifar10")
    return test_data / "tfds"


@pytest.fixture(scope="module")
def cifar10(prepared):
    return load_dataset("cifar10:3.0.2", prepared, download=False)


def test_cifar10_equals_tensorflow_datasets(cifar10, prepared):
    images, labels = tfds.load(
        "cifar10", split="test", data_dir=prepared, download=False, batch_size=-1, as_supervised=True
    )
    np.testing.assert_array_equal(cifar10.test.images, images)
    np.testing.assert_array_equal(cifar10.test.labels, labels)
    assert cifar10.class_names[0] == "airplane" and len(cifar10.class_names) == 10
    assert cifar10.input_shape == (32, 32, 3)
    assert cifar10.preprocessing.mode == "cifar" and cifar10.preprocessing.resize is None
    assert len(cifar10.train) == 50000
    mean = cifar10.train.images.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=1e-4)  # as published for the training set


def test_validation_split_of_cifar10_is_stratified_and_from_the_training_images(cifar10, prepared):
    data = load_dataset("cifar10", prepared, validation_split=5000)
    assert (len(data.train), len(data.test)) == (45000, 5000)
    np.testing.assert_array_equal(np.bincount(data.test.labels), [500] * 10)
    combined = np.concatenate([data.train.images, data.test.images])
    assert sorted(map(bytes, combined)) == sorted(map(bytes, cifar10.train.images))


def examples(stream, seed, count=-1):
    """[(file, label)] of a Stream."""
    batches = stream.examples(seed).take(count).batch(1000).as_numpy_iterator()
    return [example for batch in batches for example in zip(*batch, strict=True)]


def test_a_stream_has_every_image_once_in_the_order_of_its_seed(cifar10, prepared, monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(datasets, "MEMORY_FRACTION", 0)
    stream = load_dataset("cifar10", prepared).train
    assert len(stream) == 50000 and not stream.is_decoded
    whole, in_order = examples(stream, 7), examples(stream, None)
    assert [label for _, label in in_order] == cifar10.train.labels.tolist()
    for index in range(0, 50000, 997):
        np.testing.assert_array_equal(tf.io.decode_png(in_order[index][0]), cifar10.train.images[index])
    assert sorted(whole) == sorted(in_order) and whole != in_order
    assert examples(stream, 7, 2000) == whole[:2000]
    assert examples(stream, 8, 2000) != whole[:2000]
    assert np.bincount([label for _, label in whole[:5000]]).min() > 400


def test_validation_split_of_a_stream_is_its_end(prepared, monkeypatch):
    monkeypatch.setattr(datasets, "MEMORY_FRACTION", 0)
    data = load_dataset("cifar10", prepared, validation_split=0.98)
    assert (len(data.train), len(data.test)) == (1000, 49000)
    trains, tests = (set(examples(split, None)) for split in (data.train, data.test))
    assert not trains & tests and len(trains) == 1000


def encode_png(*shape, value=0):
    file = io.BytesIO()
    Image.fromarray(np.full(shape, value, "uint8")).save(file, "PNG")
    return file.getvalue()


def prepare_tfds(folder, name="odd", image=None, label=None, **splits):
    """Builder of a small dataset that tensorflow-datasets has written; `splits` are lists of (image file, label)."""
    features = tfds.features.FeaturesDict(
        {
            "image": image or tfds.features.Image(shape=(None, None, 3)),
            "label": label or tfds.features.ClassLabel(names=["cat", "dog"]),
        }
    )

    class Odd(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {key: self._generate_examples(rows) for key, rows in splits.items()}

        def _generate_examples(self, rows):
            for number, (image, label) in enumerate(rows):
                yield number, {"image": io.BytesIO(image) if isinstance(image, bytes) else image, "label": label}

    Odd.name = name
    builder = Odd(data_dir=folder)
    builder.download_and_prepare()
    return builder


def test_images_of_many_sizes_are_kept_as_files(tmp_path):
    rows = [(encode_png(4 + i, 5, 3, value=i), i % 2) for i in range(10)]
    prepare_tfds(tmp_path, train=rows, validation=rows[:3])
    data = load_dataset("odd", tmp_path, download=False)  # not registered
    assert data.train.images.dtype == object and not data.train.is_decoded and not data.train.has_paths
    assert sorted(data.train.images.tolist()) == sorted(file for file, _ in rows)
    assert len(data.test) == 3 and data.class_names == ("cat", "dog")
    assert (data.preprocessing.size, data.preprocessing.resize, data.preprocessing.mode) == (224, 256, "torch")
    held_out = load_dataset("odd", tmp_path, validation_split=4)
    assert np.bincount(held_out.test.labels).tolist() == [2, 2] and len(held_out.train) == 6


def test_grey_images_of_one_size_are_decoded(tmp_path):
    rows = [(encode_png(6, 6, value=i), i % 2) for i in range(10)]
    prepare_tfds(tmp_path, image=tfds.features.Image(shape=(6, 6, 1)), train=rows, test=rows)
    data = load_dataset("odd", tmp_path)
    assert data.train.images.shape == (10, 6, 6, 1) and data.input_shape == (6, 6, 1)
    assert data.preprocessing.mode == "tf" and data.preprocessing.resize is None
    assert sorted(data.train.images[:, 0, 0, 0]) == list(range(10))


def test_a_test_split_without_labels_is_not_used(tmp_path):
    """As in ImageNet: its labels are -1."""
    rows = [(encode_png(6, 6, 3, value=i), i % 2) for i in range(8)]
    withheld = [(file, -1) for file, _ in rows[:4]]
    builder = prepare_tfds(tmp_path, train=rows, test=withheld, validation=rows[:2])
    assert load_tfds(builder).test.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"should have the split train.*splits \['train', 'test'\]"):
        load_tfds(prepare_tfds(tmp_path / "other", train=rows, test=withheld))
    assert len(load_tfds(prepare_tfds(tmp_path / "other", train=rows), validation_split=2).test) == 2


def test_labels_without_a_class_raise(tmp_path, monkeypatch):
    import tensorflow as tf

    rows = [(encode_png(6, 6, 3), label) for label in (0, 1, -1)]
    builder = prepare_tfds(tmp_path, train=rows, test=rows[:2])
    with pytest.raises(ValueError, match="from 0 to 1, one for each class. Received: -1, and 1 invalid"):
        load_tfds(builder)
    monkeypatch.setattr(datasets, "MEMORY_FRACTION", 0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="labels should be from 0"):
        list(load_tfds(builder).train.examples(None))


def test_damaged_files_raise(tmp_path):
    rows = [(encode_png(6, 6, 3, value=i), i % 2) for i in range(8)]
    builder = prepare_tfds(tmp_path, train=rows, test=rows)
    (shard,) = builder.data_path.glob("*train.tfrecord*")
    os.truncate(shard, os.path.getsize(shard) - 20)
    with pytest.raises(OSError, match="Expected a complete dataset in .*odd"):
        load_tfds(builder)


@pytest.mark.parametrize("feature", [tfds.features.Text(), tfds.features.Image(shape=(None, None, 4))])
def test_a_dataset_without_images_raises(tmp_path, feature):
    image = "a text" if isinstance(feature, tfds.features.Text) else encode_png(4, 4, 4)
    with pytest.raises(ValueError, match=r"for image classification.*'odd', whose features are \['image', 'label'\]"):
        load_tfds(prepare_tfds(tmp_path, image=feature, train=[(image, 0)]))


@pytest.mark.parametrize("name", ["imdb_reviews", "kitti"])
def test_datasets_for_other_tasks_raise_before_a_download(name, tmp_path):
    with pytest.raises(ValueError, match=f"for image classification.*Received: dataset='{name}'"):
        load_dataset(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["coco", "voc/2007"])
def test_datasets_of_objects_are_known_by_name(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"the prepared dataset {name}.*Received: download=False"):
        load_dataset(name, tmp_path, download=False)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("cifr10", ValueError, "Nearest: .*'cifar10'.*Received: dataset='cifr10'"),
        ("digitz", ValueError, "Nearest: .'digits'"),
        ("emnis/letters", ValueError, "Nearest: .'emnist'"),
        ("cifar10:9.9.9", ValueError, "3.0.2"),
        ("emnist/leters", ValueError, "leters"),
        ("huggingface:mnist", ValueError, "tensorflow-datasets"),  # would access the network
        ("", ValueError, "tensorflow-datasets"),
        (3, ValueError, "Received: dataset=3"),
        (["cifar10"], ValueError, "Received: dataset="),
        ("./missing", FileNotFoundError, "Expected a folder"),
        ("some/missing/folder", FileNotFoundError, "Expected a folder"),
    ],
)
def test_unknown_names_raise_with_the_nearest(name, error, message, tmp_path):
    with pytest.raises(error, match=message):
        load_dataset(name, tmp_path)


def test_list_tfds():
    assert {"cifar10", "mnist", "imagenet2012", "oxford_flowers102"} <= set(list_tfds())


def test_download_false_raises_with_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"download=False, and nothing in {tmp_path}.mnist"):
        load_dataset("mnist", tmp_path, download=False)
    assert not list(tmp_path.iterdir())


def test_manual_downloads_raise_with_instructions(tmp_path):
    with pytest.raises(OSError, match="register on https://image-net.org"):
        load_dataset("imagenet2012", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_failed_downloads_leave_no_files(tmp_path, monkeypatch):
    """The proxy refuses every connection, with and without a network."""
    from tensorflow_datasets.core.download import downloader

    for variable in ("https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    (tmp_path / "downloads" / "mnist").mkdir(parents=True)
    (tmp_path / "downloads" / "mnist" / "earlier.tmp.1").touch()
    with pytest.raises(OSError, match=rf"Expected to download and prepare mnist/3.* in {tmp_path}"):
        load_dataset("mnist", tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["downloads", "mnist", "earlier.tmp.1"]
    with pytest.raises(OSError, match="cifar100"):
        load_dataset("cifar100", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert downloader.MAX_RETRIES == 10


def test_data_dir_that_is_a_file_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"`data_dir`.*Not a directory"):
        load_dataset("mnist", tmp_path / "file")


def test_digits_have_all_images_and_always_the_same_split():
    from sklearn.datasets import load_digits

    data, again = digits(), load_dataset("digits")
    assert (len(data.train), len(data.test)) == (1437, 360) and data.train.images.max() == 255
    np.testing.assert_array_equal(data.test.images, again.test.images)
    combined = np.concatenate([data.train.images, data.test.images])
    assert combined.sum() == np.round(load_digits().images * (255 / 16)).sum()
    assert np.abs(np.bincount(data.test.labels) / 360 - np.bincount(data.train.labels) / 1437).max() < 0.005
    validated = load_dataset("digits", validation_split=0.1)
    assert (len(validated.train), len(validated.test)) == (1293, 144)


@pytest.mark.parametrize("amount", [0, 1.0, -1, -0.1, 1437, True, "5000", float("nan"), 5000.0, 9, 1430])
def test_invalid_validation_splits_raise(amount):
    with pytest.raises(ValueError, match=f"`validation_split` should .*Received: validation_split={amount!r}"):
        load_dataset("digits", validation_split=amount)


def arrays(count=20, side=8, channels=3, classes=2):
    shape = (count, side, side, channels) if channels else (count, side, side)
    return np.random.default_rng(0).integers(0, 256, shape, "uint8"), np.arange(count) % classes


def test_arrays_are_kept():
    images, labels = arrays()
    data = from_arrays((images, labels), test=(images[:4].astype("float32"), labels[:4, None]))
    np.testing.assert_array_equal(data.train.images, images)
    np.testing.assert_array_equal(data.test.images, images[:4])
    assert data.test.images.dtype == "uint8" and data.train.labels.dtype == data.test.labels.dtype == "int32"
    assert (
        data.class_names == ("class 0", "class 1")
        and data.input_shape == (8, 8, 3)
        and data.preprocessing.mode == "torch"
    )
    grey = from_arrays(arrays(channels=None), class_names=["a", "b"], validation_split=6)
    assert (len(grey.train), len(grey.test)) == (14, 6) and grey.input_shape == (8, 8, 1)
    assert grey.class_names == ("a", "b") and grey.preprocessing.mode == "tf"
    assert len(from_arrays((images.tolist(), labels.tolist())).test) == 4


IMAGES, LABELS = arrays()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES / 255, LABELS, "whole numbers from 0 to 255.*float64 from 0.0 to 1.0"),
        (IMAGES.astype("int32") - 1, LABELS, "whole numbers from 0 to 255.*int32 from -1"),
        (np.full_like(IMAGES, np.nan, "float32"), LABELS, "whole numbers"),
        (IMAGES > 5, LABELS, "uint8, or whole numbers.*bool"),
        (IMAGES[:, :5], LABELS, r"square.*\(20, 5, 8, 3\)"),
        (IMAGES[..., :2], LABELS, "1 or 3 channels"),
        (IMAGES[0, 0], LABELS, "should be"),
        (IMAGES[:0], LABELS[:0], "should be"),
        (IMAGES, LABELS[:-1], r"20 integers, one for each image, .* Received: labels of shape \(19,\)"),
        (IMAGES, LABELS.astype(float), "integers.*float64"),
        (IMAGES, LABELS > 0, "integers.*bool"),
        (IMAGES, np.eye(2)[LABELS] / 2, r"integers, or \(N, K\) zeros and ones.*\(20, 2\)"),
        (IMAGES, np.eye(2)[LABELS], "for each of 2 classes, in training and testing"),
        (IMAGES, LABELS - 1, "from 0 to 1, one for each class. Received: -1, and 10 invalid"),
        (IMAGES, LABELS + 1, "Received: 2, and 10 invalid"),
    ],
)
def test_invalid_arrays_raise(images, labels, message):
    with pytest.raises(ValueError, match=message):
        from_arrays((images, labels), test=(IMAGES, LABELS), class_names=["a", "b"])


def test_inconsistent_arrays_raise():
    with pytest.raises(ValueError, match="`test` should have images of"):
        from_arrays(arrays(), test=arrays(side=9))
    with pytest.raises(ValueError, match="should be for 1 channels"):
        from_arrays(arrays(channels=1), preprocessing=datasets.default_preprocessing((8, 8, 3)))
    with pytest.raises(ValueError, match="Received: 2, and"):
        from_arrays(arrays(), test=arrays(classes=3))
    with pytest.raises(ValueError, match="smallest class"):
        from_arrays(arrays(classes=20))


def test_split():
    split = Split(IMAGES, LABELS)
    assert len(split[[3, 5]]) == 2 and split[[3, 5]].labels.tolist() == [1, 1]
    for images, labels in ((IMAGES.astype("float32"), LABELS), (IMAGES[0], LABELS), (IMAGES, LABELS[:, None])):
        with pytest.raises(ValueError, match="Received: "):
            Split(images, labels)
