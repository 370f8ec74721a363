"""Masks of classes rendered from those of objects, compared with torchvision's rules, computed with pycocotools."""

import json

import numpy as np
import pytest
from annotated_images import CLASSES, HEIGHT, WIDTH, save_image, write_coco, write_text
from pycocotools import mask as pycoco
from pycocotools.coco import COCO

from keras_resnet.data.masks import encode_mask
from keras_resnet.data.sources import as_dataset, load_dataset, load_test


def rendered(annotations, numbers, size):
    """The mask of torchvision's ConvertCocoPolysToMask (references/segmentation/coco_utils.py), in NumPy.

    `numbers`: {id of a category: class}.
    """
    masks = [np.zeros(size, "uint8")]
    for row in annotations:
        forms = pycoco.frPyObjects(row["segmentation"], *size)
        mask = pycoco.decode(forms)
        masks.append(mask.reshape(*size, -1).any(axis=2).astype("uint8"))
    classes = np.array([0, *(numbers[row["category_id"]] for row in annotations)], "uint8")
    target = (np.stack(masks) * classes[:, None, None]).max(axis=0)
    target[np.sum(masks, axis=0) > 1] = 255
    return target


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_of_coco_are_torchvisions(test_data, split):
    coco = COCO(test_data / f"tiny_coco/annotations/instances_{split}2017.json")
    data = load_test(test_data / "tiny_coco", split, masks=True)
    categories = sorted(coco.cats)
    assert data.class_names == ("background", *(coco.cats[number]["name"] for number in categories))
    numbers = {number: index for index, number in enumerate(categories, 1)}
    counts = np.zeros(256, int)
    for index, (image_id, image) in enumerate(coco.imgs.items()):
        rows = coco.loadAnns(coco.getAnnIds(imgIds=image_id, iscrowd=None))
        expected = rendered(rows, numbers, (image["height"], image["width"]))
        found = data.test.masks.read(index)
        np.testing.assert_array_equal(found, expected)
        assert data.test.images[index].endswith(image["file_name"])
        assert {*np.flatnonzero(data.test.labels[index])} == {0, *(numbers[row["category_id"]] for row in rows)}
        counts += np.bincount(found.ravel(), minlength=256)
    assert data.test.masks.class_counts(81).tolist() == counts[:81].tolist()


def square(x1, y1, x2, y2):
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def run_lengths(x1, y1, x2, y2):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y1:y2, x1:x2] = True
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(changes, prepend=0, append=mask.size).tolist()}


OBJECTS = {
    "one": [(10, square(2, 2, 20, 20), 0), (30, square(10, 10, 30, 25), 0), (30, square(28, 2, 35, 12), 0)],
    "two": [(20, run_lengths(5, 5, 25, 15), 1), (20, square(20, 10, 38, 28), 0)],
    "three": [],
}
"""Image -> (id of the category, segmentation, whether it is a crowd) of its objects."""


def write_segmented(folder, objects=OBJECTS):
    """A data set in COCO's form whose objects have masks; all images are one split."""
    write_coco(folder, {"train": dict.fromkeys(objects, ())})
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    rows = [(number, row) for number, items in enumerate(objects.values(), 1) for row in items]
    content["annotations"] = [
        {"id": index, "image_id": image, "category_id": category, "iscrowd": crowd, "bbox": [1, 1, 30, 25]}
        | ({"segmentation": segmentation} if segmentation else {})
        for index, (image, (category, segmentation, crowd)) in enumerate(rows, 1)
    ]
    path.write_text(json.dumps(content))
    return folder


def test_overlaps_crowds_and_the_background(tmp_path):
    """Pixels in two objects do not count, also if both have the same class; a crowd is an object."""
    data = load_test(write_segmented(tmp_path), masks=True)
    assert data.class_names == ("background", *CLASSES) and data.colors is None and data.test.objects is None
    for index, items in enumerate(OBJECTS.values()):
        rows = [{"category_id": category, "segmentation": form} for category, form, _ in items]
        expected = rendered(rows, {10: 1, 20: 2, 30: 3}, (HEIGHT, WIDTH))
        np.testing.assert_array_equal(data.test.masks.read(index), expected)
    first, second, third = (data.test.masks.read(index) for index in range(3))
    assert (first[15, 15], first[5, 5], first[22, 25], first[28, 2]) == (255, 1, 3, 0)
    assert (second[12, 22], second[6, 6]) == (255, 2) and not third.any()
    assert data.test.labels.tolist() == [[1, 1, 0, 1], [1, 0, 1, 0], [1, 0, 0, 0]]
    assert data.test.masks.sizes.tolist() == [[HEIGHT, WIDTH]] * 3


@pytest.mark.parametrize("ignore_index, names", [(3, ("background", "ant", "bee")), (0, ("background", *CLASSES))])
def test_an_ignored_class(tmp_path, ignore_index, names):
    folder = write_segmented(tmp_path)
    data, everything = load_test(folder, masks=True, ignore_index=ignore_index), load_test(folder, masks=True)
    assert data.class_names == names
    for index in range(3):
        mask = everything.test.masks.read(index)
        np.testing.assert_array_equal(data.test.masks.read(index), np.where(mask == ignore_index, 255, mask))
    labels = everything.test.labels.copy()
    labels[:, ignore_index] = 0
    assert data.test.labels.tolist() == labels[:, : len(names)].tolist()


def test_a_training_and_a_test_part(tmp_path):
    data = as_dataset(write_segmented(tmp_path / "data"), masks=True)
    assert (len(data.train), len(data.test), data.name) == (2, 1, "data")
    assert load_dataset(tmp_path / "data").train.masks is None


def test_objects_without_a_mask_are_listed(tmp_path):
    folder = write_segmented(tmp_path, OBJECTS | {"four": [(10, None, 0), (20, square(1, 1, 9, 9), 0)]})
    with pytest.raises(ValueError, match=r"1 invalid in (?s:.*)object 6 \(it has a box, but no mask\)"):
        load_dataset(folder, masks=True)
    with pytest.warns(UserWarning, match="Left out 1 invalid"):
        data = load_test(folder, masks=True, skip_bad=True)
    assert set(np.unique(data.test.masks.read(3))) == {0, 2} and len(data.skipped) == 1


def test_polygons_of_yolo(tmp_path):
    shape = [0.25, 0.2, 0.75, 0.2, 0.75, 0.8, 0.25, 0.8]
    for name in ("a", "b"):
        save_image(tmp_path / f"images/train/{name}.png")
        write_text(tmp_path / f"labels/train/{name}.txt", f"1 {' '.join(map(str, shape))}")
    write_text(tmp_path / "data.yaml", "train: images/train\nnames: [ant, bee]\n")
    data = load_dataset(tmp_path, masks=True)
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[6:24, 10:30] = 2
    np.testing.assert_array_equal(data.train.masks.read(0), expected)
    assert encode_mask(expected > 0)["size"] == data.train.masks.sizes[0].tolist()
