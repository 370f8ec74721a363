"""Folders of class folders: real photographs, and invalid folders."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_resnet.data import datasets
from keras_resnet.data.image_folders import load_folder
from keras_resnet.data.sources import load_dataset, load_test


def save_images(folder, *names, size=(8, 6)):
    """Saves images with these names in a folder, each of another colour."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number, 100, 200)).save(path)
    return folder


def save_classes(folder, count=5, names=("a", "b")):
    return save_images(folder, *(f"{name}/{number}.png" for name in names for number in range(count)))


def test_hymenoptera(test_data):
    data = load_dataset(test_data / "hymenoptera")
    assert data.name == load_test(test_data / "hymenoptera").name == "hymenoptera"
    assert data.class_names == ("ants", "bees")
    assert np.bincount(data.train.labels).tolist() == [
        len(os.listdir(test_data / "hymenoptera/train" / name)) for name in data.class_names
    ]
    assert len(data.train) + len(data.test) == 398  # one of them is a GIF, which TensorFlow reads
    assert data.preprocessing.size == 224 and data.preprocessing.resize == 256
    expected = {path.read_bytes() for path in (test_data / "hymenoptera" / "val" / "bees").iterdir()}
    assert set(data.test.images[data.test.labels == 1]) == expected


def test_images_larger_than_memory_are_kept_as_paths(test_data, monkeypatch):
    held = load_folder(test_data / "hymenoptera").test
    monkeypatch.setattr(datasets, "MEMORY_FRACTION", 0)
    split = load_folder(test_data / "hymenoptera").test
    assert split.has_paths and not held.has_paths
    assert [Path(path).read_bytes() for path in split.images[:9]] == held.images[:9].tolist()
    np.testing.assert_array_equal(split.labels, held.labels)


def test_folder_without_a_test_folder_is_split_by_class(tmp_path):
    data = load_folder(save_classes(tmp_path, count=10))
    assert np.bincount(data.train.labels).tolist() == [8, 8] and np.bincount(data.test.labels).tolist() == [2, 2]
    assert not set(data.train.images) & set(data.test.images)
    again = load_folder(tmp_path, validation_split=6)
    assert len(again.test) == 6
    assert load_folder(tmp_path, validation_split=6).test.images.tolist() == again.test.images.tolist()


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_the_folder_beside_train_is_for_testing_without_validation_split(tmp_path, name):
    save_classes(tmp_path / "train"), save_classes(tmp_path / name, count=2)
    assert (len(load_folder(tmp_path).train), len(load_folder(tmp_path).test)) == (10, 4)
    held_out = load_folder(tmp_path, validation_split=0.2)
    assert (len(held_out.train), len(held_out.test)) == (8, 2)


def test_train_folder_alone_needs_a_validation_split(tmp_path):
    save_classes(tmp_path / "train")
    with pytest.raises(ValueError, match="Expected a folder val or valid .*`validation_split`"):
        load_folder(tmp_path)
    assert len(load_folder(tmp_path, validation_split=2).test) == 2


def test_subfolders_are_included_and_hidden_and_other_files_ignored(tmp_path):
    save_images(
        tmp_path, *(f"a/{number}.JPG" for number in range(4)), "a/deep/er/x.jpeg", "b/1.Bmp", "b/2.gif", "b/3.png"
    )
    save_images(tmp_path, "b/4.webp", "a/.hidden.png", "a/.cache/x.png", ".git/x.png")
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"not an image")
    (tmp_path / "b" / "notes.txt").touch()
    (tmp_path / "notes.txt").touch()
    data = load_folder(tmp_path, validation_split=2)
    assert data.class_names == ("a", "b") and len(data.train) + len(data.test) == 9


def test_cyclic_links_are_followed_once(tmp_path):
    save_classes(tmp_path / "data"), save_classes(tmp_path / "other", names=("c",))
    (tmp_path / "data/a/again").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "data/a/self").symlink_to(tmp_path / "data/a", target_is_directory=True)
    (tmp_path / "data/c").symlink_to(tmp_path / "other/c", target_is_directory=True)
    (tmp_path / "data/b/loop.png").symlink_to(tmp_path / "data/b/loop.png")
    os.mkfifo(tmp_path / "data/b/pipe.png")
    with pytest.raises(ValueError, match=r"2 unreadable in (?s:.*)loop.png \(.*links(?s:.*)pipe.png \(not a file\)"):
        load_folder(tmp_path / "data")
    with pytest.warns(UserWarning, match="Skipped 2"):
        data = load_folder(tmp_path / "data", skip_bad=True)
    assert data.class_names == ("a", "b", "c") and len(data.train) + len(data.test) == 15


def add_unreadable_files(folder):
    """Adds files to class b that cannot be used for training; {file name: expected reason}."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), "uint8"))
    for name in ("half.jpg", "half.png", "half.gif", "half.bmp", "end.jpg", "end.png"):
        image.save(folder / "b" / name)
        size = os.path.getsize(folder / "b" / name)
        os.truncate(folder / "b" / name, size // 2 if name.startswith("half") else size - 8)
    (folder / "b/empty.jpg").touch()
    (folder / "b/text.png").write_text("This is no image.")
    image.save(folder / "b/scan.tif")
    image.save(folder / "b/renamed.jpg", "TIFF")
    image.quantize(200).save(folder / "b/palette.bmp")
    Image.new("1", (10_000, 10_000)).save(folder / "b/bomb.png")
    (folder / "b/broken_link.png").symlink_to(folder / "nowhere.png")
    damaged = "damaged or truncated"
    return {
        **dict.fromkeys(["half.jpg", "half.png", "half.gif", "half.bmp", "end.jpg", "end.png"], damaged),
        "empty.jpg": "the file is empty",
        "text.png": "not an image",
        "scan.tif": "TensorFlow does not read TIFF",
        "renamed.jpg": "TensorFlow does not read TIFF",
        "palette.bmp": "TensorFlow does not read BMP with a palette",
        "bomb.png": "10000 x 10000 is more than",
        "broken_link.png": "No such file",
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unreadable_files_raise_or_are_skipped(tmp_path):
    reasons = add_unreadable_files(save_classes(tmp_path))
    with pytest.raises(ValueError, match=r"--skip-bad.*Received: 13 unreadable") as caught:
        load_folder(tmp_path)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 13
    for name, reason in reasons.items():
        assert any(f"{tmp_path}/b/{name} ({reason}" in line for line in lines), name
    with pytest.warns(UserWarning, match="Skipped 13 unreadable(?s:.*)bomb.png"):
        data = load_dataset(tmp_path, skip_bad=True)
    assert len(data.train) + len(data.test) == 10


def test_of_many_unreadable_files_twenty_are_listed(tmp_path):
    save_classes(tmp_path)
    for number in range(30):
        (tmp_path / f"b/bad{number:02}.jpg").touch()
    with pytest.raises(ValueError, match="30 unreadable") as caught:
        load_folder(tmp_path)
    assert len(str(caught.value).splitlines()) == 22 and str(caught.value).endswith("  and 10 more")


def test_class_with_only_unreadable_files_raises(tmp_path):
    save_classes(tmp_path, names=("a", "c"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/bad.jpg").touch()
    with pytest.warns(UserWarning, match="Skipped 1"), pytest.raises(ValueError, match=r"none in \['b'\]"):
        load_folder(tmp_path, skip_bad=True)


def test_unusual_files_that_tensorflow_decodes_are_accepted(tmp_path):
    """Without a check of what TensorFlow decodes."""
    save_classes(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), "uint8"))
    image.convert("CMYK").save(tmp_path / "b/cmyk.jpg")
    image.save(tmp_path / "b/phone.jpg", "MPO", save_all=True, append_images=[image.rotate(180)])
    image.save(tmp_path / "b/progressive.jpg", progressive=True)
    image.quantize(9).save(tmp_path / "b/palette.png")
    image.convert("L").save(tmp_path / "b/grey.bmp")
    image.save(tmp_path / "b/animated.gif", save_all=True, append_images=[image.rotate(180)])
    Image.fromarray(np.arange(1200, dtype="uint16").reshape(40, 30)).save(tmp_path / "b/sixteen.png")
    data = load_folder(tmp_path)
    assert len(data.train) + len(data.test) == 17


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"two at least. Received: .* with 0 \(no folders\)"),
        (["1.png"], r"with 0 \(no folders\)"),
        (["a/1.png", "a/2.png"], r"with 1 \(a\)"),
        (["train/a/1.png", "val/a/1.png"], r"train with 1 \(a\)"),
        (["a/1.png", "b/x/", "c/1.png"], r"Expected images in every class folder .*none in \['b'\]"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/"], r"val with none in \['b'\]"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"], r"\['b', 'c'\] in only one"),
        (["a/1.png", "a/2.png", "b/1.png"], "1 in the smallest class"),
    ],
)
def test_invalid_folders_raise(tmp_path, names, message):
    for name in names:
        if name.endswith("/"):
            (tmp_path / name).mkdir(parents=True)
        else:
            save_images(tmp_path, name)
    with pytest.raises(ValueError, match=message):
        load_folder(tmp_path)


def test_file_instead_of_folder_raises(tmp_path):
    with pytest.raises(NotADirectoryError, match="Expected a folder with a folder for each class"):
        load_dataset(save_images(tmp_path, "a.png") / "a.png")
