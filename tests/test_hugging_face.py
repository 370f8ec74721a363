"""Data sets of the library `datasets`: columns, splits, and files that are no images."""

import numpy as np
import pytest
from support import png_bytes, random_pixels

from keras_resnet import load_dataset
from keras_resnet.data.sources import load_test

hugging_face = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

IMAGES = [png_bytes(image) for image in random_pixels(10)]
LABELS = [0, 1] * 5


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(hugging_face.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, **columns):
    """A Parquet file that pyarrow writes, without the metadata of `datasets`."""
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def as_struct(images):
    return [{"bytes": image, "path": None} for image in images]


@pytest.mark.parametrize("images", [IMAGES, as_struct(IMAGES)], ids=["binary", "struct"])
@pytest.mark.parametrize(
    ("labels", "names"), [(LABELS, ("0", "1")), ([("tench", "ant")[label] for label in LABELS], ("ant", "tench"))]
)
def test_parquet_files_of_other_libraries(images, labels, names, tmp_path):
    write(tmp_path / "a/train.parquet", image=images, label=labels)
    data = load_dataset(tmp_path / "a")
    assert data.class_names == names and (len(data.train), len(data.test)) == (8, 2)
    expected = dict(zip(IMAGES, labels, strict=True))
    for split in (data.train, data.test):
        assert [expected[image] for image in split.images.tolist()] == [
            label if isinstance(labels[0], int) else names[label] for label in split.labels
        ]


def test_withheld_labels_of_the_test_split_are_not_used(tmp_path):
    """As in ImageNet-1k on the hub."""
    write(tmp_path / "a/train.parquet", image=as_struct(IMAGES), label=LABELS)
    write(tmp_path / "a/validation.parquet", image=as_struct(IMAGES[:4]), label=LABELS[:4])
    write(tmp_path / "a/test.parquet", image=as_struct(IMAGES[:3]), label=[-1] * 3)
    assert load_dataset(tmp_path / "a").test.labels.tolist() == LABELS[:4]
    assert len(load_test(tmp_path / "a").test) == 4 and len(load_test(tmp_path / "a", split="test").test) == 3


def test_unreadable_rows_raise_or_are_skipped(tmp_path):
    """A path is not followed: it may lead anywhere."""
    (tmp_path / "secret.png").write_bytes(IMAGES[0])
    bad = [None, {"bytes": None, "path": str(tmp_path / "secret.png")}, {"bytes": b"no image", "path": "a.png"}]
    write(tmp_path / "a/train.parquet", image=[*bad, *as_struct(IMAGES)], label=[0, 0, 0, *LABELS[:-1], None])
    with pytest.raises(ValueError, match=r"4 unreadable in (?s:.*)train/1 \(no contents, only a path\)"):
        load_dataset(tmp_path / "a")
    with pytest.warns(UserWarning, match=r"Skipped 4 unreadable(?s:.*)train/12 \(no class\)"):
        data = load_dataset(tmp_path / "a", skip_bad=True)
    assert sorted(data.train.images.tolist() + data.test.images.tolist()) == sorted(IMAGES[:9])


@pytest.mark.parametrize(
    ("columns", "received"),
    [
        ({"text": ["a"] * 10, "label": LABELS}, "'text', 'label'"),
        ({"image": IMAGES}, "'image'"),
        ({"left": IMAGES, "right": IMAGES, "label": LABELS}, "'left', 'right', 'label'"),
        ({"image": IMAGES, "fine": LABELS, "coarse": LABELS}, "'image', 'fine', 'coarse'"),
    ],
)
def test_data_sets_for_other_tasks_raise(columns, received, tmp_path):
    write(tmp_path / "a/train.parquet", **columns)
    with pytest.raises(ValueError, match=rf"for image classification.*Its columns are \[{received}\]"):
        load_dataset(tmp_path / "a")


def test_damaged_files_raise(tmp_path):
    path = write(tmp_path / "a/train.parquet", image=IMAGES, label=LABELS)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(OSError, match="Expected a data set that `datasets` can read"):
        load_dataset(tmp_path / "a")


def test_a_data_set_that_cannot_be_downloaded_raises(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hugging_face.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"Expected a data set that `datasets` can read. Received: 'hf://nobody/nothing'"):
        load_dataset("hf://nobody/nothing", data_dir=tmp_path)


def test_the_second_start_reads_the_labels_and_no_image(tmp_path, monkeypatch):
    from keras_resnet.data import hugging_face as module

    write(tmp_path / "a/train.parquet", image=IMAGES, label=LABELS)
    first, checked = load_dataset(tmp_path / "a"), []
    monkeypatch.setattr(module, "check_contents", lambda *arguments: checked.append(arguments))
    np.testing.assert_array_equal(load_dataset(tmp_path / "a").train.labels, first.train.labels)
    assert not checked
