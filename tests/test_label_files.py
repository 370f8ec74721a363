"""Test folders: ImageNet's flat validation folder with each of its known label files, and class folders."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from keras_resnet.data.labels import imagenet_classes
from keras_resnet.data.sources import load_test

IDS = [wnid for wnid, _ in imagenet_classes()]
NAMES = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 5)]
CLASSES = [65, 970, 230, 65]


@pytest.fixture
def folder(tmp_path):
    """Four images of different colours, named as ImageNet's validation images."""
    path = tmp_path / "val"
    path.mkdir()
    for number, name in enumerate(NAMES):
        Image.new("RGB", (20, 10), (60 * number, 0, 0)).save(path / name, quality=100)
    return path


def save_labels(folder, lines, name="labels.txt"):
    path = folder.parent / name
    path.write_text("\n".join(lines) + "\n")
    return path


def development_kit(folder):
    """ILSVRC2012's own class numbers, here in reverse order, and the meta.mat that defines them."""
    synsets = np.zeros(1000, [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for number, wnid in enumerate(IDS):
        synsets[number] = (1000 - number, wnid, "words")
    savemat(folder.parent / "meta.mat", {"synsets": synsets[:, None]})
    return save_labels(folder, [str(1000 - number) for number in CLASSES], "ILSVRC2012_validation_ground_truth.txt")


FORMS = {
    "caffe": lambda folder: save_labels(folder, [f"{n} {c}" for n, c in zip(NAMES, CLASSES, strict=True)][::-1]),
    "kaggle": lambda folder: save_labels(
        folder,
        ["ImageId,PredictionString"]
        + [f"{n[:-5]},{IDS[c]} 85 1 499 272 {IDS[c]} 1 2 3 4 " for n, c in zip(NAMES, CLASSES, strict=True)],
    ),
    "synsets": lambda folder: save_labels(folder, [IDS[number] for number in CLASSES]),
    "names": lambda folder: save_labels(
        folder, ["# a comment", *(f"{n}\t{IDS[c]}" for n, c in zip(NAMES, CLASSES, strict=True))]
    ),
    "development kit": development_kit,
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_give_the_same_labels(form, folder):
    dataset = load_test(folder, labels=FORMS[form](folder))
    assert dataset.test.labels.tolist() == CLASSES and dataset.train is None
    assert dataset.class_names == (None if form == "caffe" else tuple(IDS))
    shades = [Image.open(image).getpixel((5, 5))[0] for image in dataset.test.images]
    np.testing.assert_allclose(shades, [0, 60, 120, 180], atol=3)


def test_image_names_with_blanks_and_folders(tmp_path):
    for path in ("a/1.png", "b/1.png", "my cat.png"):
        (tmp_path / "p" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "p" / path)
    labels = save_labels(tmp_path / "p", ["a/1.png,French horn", "b/1.png,French loaf", '"my cat.png",tiger cat'])
    dataset = load_test(tmp_path / "p", labels=labels)
    assert dataset.class_names == ("French horn", "French loaf", "tiger cat")
    found = {path[len(str(tmp_path)) + 3 :]: label for path, label in zip(*_columns(dataset.test), strict=True)}
    assert found == {"a/1.png": 0, "b/1.png": 1, "my cat.png": 2}
    for lines in (["1.png,x", "my cat.png,y"], ["a/1.png,x", "1.png,x", "my cat.png,y"]):
        with pytest.raises(ValueError, match="include the folders of images with equal names"):
            load_test(tmp_path / "p", labels=save_labels(tmp_path / "p", lines))


def _columns(split):
    return split.images.tolist(), split.labels.tolist()


def test_class_names_with_blanks(folder):
    labels = save_labels(folder, ["tench", "tiger cat", "great white shark", "tiger cat"])
    dataset = load_test(folder, labels=labels)
    assert [dataset.class_names[label] for label in dataset.test.labels] == labels.read_text().splitlines()


def test_labels_of_missing_images_are_ignored(folder):
    (folder / NAMES[1]).unlink()
    assert load_test(folder, labels=FORMS["caffe"](folder)).test.labels.tolist() == [65, 230, 65]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda folder: folder.parent / "none.txt", "not found"),
        (lambda folder: save_labels(folder, [""]), "which is empty"),
        (lambda folder: save_labels(folder, [f"{NAMES[0]} 3"]), r"without 3 of 4, such as \['ILSVRC2012_val_00000002"),
        (lambda folder: save_labels(folder, [f"{NAMES[0]} 3", NAMES[1]]), "same number of columns.*'ILSVRC2012"),
        (lambda folder: save_labels(folder, [f"{NAMES[0]} 3"] * 2), "each line once.*with 2 for 'ILSVRC"),
        (lambda folder: save_labels(folder, IDS[:3]), "a class for each of 4 images.*with 3 lines"),
        (lambda folder: save_labels(folder, list("1234")), "meta.mat"),
        (lambda folder: folder / NAMES[0], "should be a text file"),
    ],
)
def test_invalid_label_files_raise(labels, message, folder):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_test(folder, labels=labels(folder))


def test_damaged_meta_mat_raises(folder):
    path = development_kit(folder)
    path.with_name("meta.mat").write_bytes(b"no matrix")
    with pytest.raises(ValueError, match="Expected the meta.mat"):
        load_test(folder, labels=path)


def test_flat_folder_without_labels_raises(folder):
    with pytest.raises(ValueError, match="--labels"):
        load_test(folder)


@pytest.fixture
def class_folders(tmp_path):
    for name, count in (("train/ant", 2), ("train/bee", 2), ("val/ant", 1), ("val/bee", 3), ("val/wasp", 0)):
        (tmp_path / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 9)).save(tmp_path / name / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("inside", "split", "count"), [("", None, 4), ("val", None, 4), ("", "train", 4), ("train", None, 4)]
)
def test_all_images_of_class_folders_are_test_images(inside, split, count, class_folders):
    dataset = load_test(class_folders / inside, split)
    assert len(dataset.test) == count and dataset.class_names[:2] == ("ant", "bee")


def test_unreadable_images_raise_or_are_listed(class_folders):
    (class_folders / "val" / "bee" / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="1 unreadable.*\n.*1.png"):
        load_test(class_folders)
    dataset = load_test(class_folders, skip_bad=True)
    assert len(dataset.test) == 3 and "1.png (" in dataset.skipped[0] and len(dataset.skipped) == 1


def test_split_of_tensorflow_datasets(test_data):
    part = load_test("cifar10", "train[:30]", data_dir=test_data / "tfds", download=False)
    assert len(part.test) == 30 and part.train is None
    with pytest.raises(ValueError, match="`split` should be one of"):
        load_test("cifar10", "validation", data_dir=test_data / "tfds", download=False)
