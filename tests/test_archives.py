"""Tar and Parquet files, written by the libraries that define them, against a folder of the same images."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from support import cifar_network

from keras_resnet import Recipe, evaluate, load_dataset
from keras_resnet.data.pipelines import evaluation_batches, training_batches
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.sources import image_source, load_test
from keras_resnet.transfer import extract, write_features

wds = pytest.importorskip("webdataset")
hugging_face = pytest.importorskip("datasets")

SPLITS = {"train": (4, 12), "val": (4, 5)}
"""Split -> (classes, images of each)."""
KINDS = ("folder", "tar", "parquet", "saved")
NAMES = {"tar": "val-0000.tar/00003", "parquet": "validation/3", "saved": "val/3"}
"""Names of the fourth test image."""
RECIPE = Recipe(epochs=1, batch_size=8, crop="random_resized", flip=True)
PREPROCESSING = Preprocessing("torch", size=32, resize=36)


def save_tar(folder, images):
    """`images` is {split: [(path, label)]}."""
    folder.mkdir()
    for split, rows in images.items():
        with wds.ShardWriter(f"{folder}/{split}-%04d.tar", maxcount=17, verbose=0) as writer:
            for number, (path, label) in enumerate(rows):
                label_field = {"cls": label} if number % 2 else {"json": {"label": label, "caption": "a fish"}}
                writer.write({"__key__": f"{number:05}", "jpg": path.read_bytes(), **label_field})
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in class_names(images)))


def class_names(images):
    return list(dict.fromkeys(path.parent.name for path, _ in images["train"]))


def as_hugging_face(images):
    """datasets.DatasetDict, with the columns of ImageNet-1k on the hub."""
    names = class_names(images)
    features = hugging_face.Features(
        {"image": hugging_face.Image(), "label": hugging_face.ClassLabel(names=names)},
    )
    tables = {
        split: {
            "image": [{"bytes": path.read_bytes(), "path": path.name} for path, _ in rows],
            "label": [label for _, label in rows],
        }
        for split, rows in images.items()
    }
    return hugging_face.DatasetDict(
        {split: hugging_face.Dataset.from_dict(table, features=features) for split, table in tables.items()}
    )


def save_parquet(folder, images):
    (folder / "data").mkdir(parents=True)
    for split, table in as_hugging_face(images).items():
        name = {"val": "validation"}.get(split, split)
        for shard in range(2):
            part = table.shard(2, shard, contiguous=True)
            part.to_parquet(folder / "data" / f"{name}-{shard:05}-of-00002.parquet", batch_size=7)


@pytest.fixture(scope="module")
def sources(test_data, tmp_path_factory):
    """{kind: folder with the same images in the same order}."""
    root = tmp_path_factory.mktemp("archives")
    source = test_data / "tiny_imagenet"
    names = sorted(path.name for path in (source / "train").iterdir())
    for split, (classes, count) in SPLITS.items():
        for name in names[:classes]:
            (root / "folder" / split / name).mkdir(parents=True)
            for path in sorted((source / split / name).rglob("*.JPEG"))[:count]:
                shutil.copy(path, root / "folder" / split / name / path.name)
    images = {
        split: [
            (path, label)
            for label, name in enumerate(names[:classes])
            for path in sorted((root / "folder" / split / name).iterdir())
        ]
        for split, (classes, _) in SPLITS.items()
    }
    save_tar(root / "tar", images)
    save_parquet(root / "parquet", images)
    as_hugging_face(images).save_to_disk(root / "saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hugging_face.config, "HF_DATASETS_CACHE", root / "cache")
        yield {kind: str(root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def loaded(sources):
    return {kind: replace(load_dataset(folder), preprocessing=PREPROCESSING) for kind, folder in sources.items()}


def batches_of(dataset, count=10, **arguments):
    return [tuple(map(np.asarray, batch)) for batch in training_batches(dataset, RECIPE, count, seed=4, **arguments)]


def assert_equal_batches(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        for values, other_values in zip(batch, other, strict=True):
            np.testing.assert_array_equal(values, other_values)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_images_are_those_of_the_folder(kind, loaded):
    dataset, folder = loaded[kind], loaded["folder"]
    assert dataset.class_names == folder.class_names and dataset.name == kind
    for split, expected in ((dataset.train, folder.train), (dataset.test, folder.test)):
        assert split.images.tolist() == expected.images.tolist()
        np.testing.assert_array_equal(split.labels, expected.labels)
    np.testing.assert_array_equal(dataset.class_counts(), [12] * 4)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_training_batches_are_those_of_the_folder_from_any_step_and_for_any_part(kind, loaded):
    """Ten batches of eight are more than an epoch of 48 images."""
    whole = batches_of(loaded["folder"])
    assert_equal_batches(batches_of(loaded[kind]), whole)
    assert_equal_batches(batches_of(loaded[kind], 4, first=6), whole[6:])
    halves = [batches_of(loaded[kind], 4, share=(part, 2)) for part in (0, 1)]
    assert_equal_batches(
        [tuple(map(np.concatenate, zip(*pair, strict=True))) for pair in zip(*halves, strict=True)], whole[:4]
    )


@pytest.mark.parametrize("kind", KINDS[1:])
def test_evaluation_batches_are_those_of_the_folder(kind, loaded):
    expected, batches = (list(evaluation_batches(loaded[it].test, loaded[it], 8)) for it in ("folder", kind))
    assert_equal_batches(batches, expected)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_evaluate_and_extract_take_them(kind, sources, tmp_path):
    model = cifar_network(classes=4)
    expected, result = (evaluate(model, load_test(sources[it])) for it in ("folder", kind))
    assert result.top1_error == expected.top1_error and result.num_images == 20
    np.testing.assert_array_equal(
        extract(model, sources[kind]).vectors, extract(model, load_test(sources["folder"])).vectors
    )
    assert write_features(model, sources[kind], tmp_path / "features.npz")["shape"] == [20, 16]
    images = image_source(sources[kind])
    assert images.class_names == load_test(sources["folder"]).class_names
    assert (len(set(images.names)), images.names[3]) == (20, NAMES[kind])
    assert len(load_test(sources[kind], split="train").test) == 48
    with pytest.raises(ValueError, match="`split` should be one of"):
        load_test(sources[kind], split="tests")


@pytest.mark.parametrize("kind", KINDS[1:])
def test_part_of_the_training_images_can_be_held_out(kind, sources):
    dataset = load_dataset(sources[kind], validation_split=0.25)
    assert (
        np.bincount(dataset.train.labels).tolist() == [9] * 4 and np.bincount(dataset.test.labels).tolist() == [3] * 4
    )
    assert len(load_dataset(sources[kind], fold="1/3").test) == 16
    assert not set(dataset.train.images.tolist()) & set(dataset.test.images.tolist())
    with pytest.raises(ValueError, match="`labels` should be left out"):
        load_dataset(sources[kind], labels="labels.csv")


def test_a_single_file_or_a_pattern_is_one_split(sources):
    assert len(load_test(f"{sources['parquet']}/data/train-00000-of-00002.parquet").test) == 24
    for pattern in ("train-{0000..0002}.tar", "train-*.tar"):
        shards = load_dataset(f"{sources['tar']}/{pattern}")
        assert (len(shards.train), len(shards.test), len(shards.class_names)) == (38, 10, 4)
    with pytest.raises(FileNotFoundError, match=r"Expected tar files.*train-0003.tar"):
        load_dataset(f"{sources['tar']}/train-{{0000..0009}}.tar")
    with pytest.raises(ValueError, match=r"Expected readable images of every class.*with none in \['n02481823'\]"):
        load_dataset(f"{sources['tar']}/train-{{0000..0001}}.tar")
