"""Folders of annotated images: real data, every format, what is left out, and EXIF orientations."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from annotated_images import (
    CLASSES,
    HEIGHT,
    SPLITS,
    WIDTH,
    WRITERS,
    save_image,
    write_coco,
    write_text,
    write_yolo,
)
from PIL import Image
from pycocotools import mask as pycoco
from pycocotools.coco import COCO

from keras_resnet.data.image_files import load_image
from keras_resnet.data.masks import encode_mask
from keras_resnet.data.sources import image_source, load_dataset, load_test


@pytest.mark.filterwarnings("ignore:Left out 2 invalid")
def test_bccd(test_data):
    with pytest.raises(
        ValueError, match="2 invalid in .*(?s:.*)Annotations/BloodImage_00338.xml, object 13 .* is empty"
    ):
        load_dataset(test_data / "bccd")
    data = load_dataset(test_data / "bccd", skip_bad=True)
    assert data.class_names == ("Platelets", "RBC", "WBC") and len(data.skipped) == 2
    assert (len(data.train), len(data.test), len(load_test(test_data / "bccd", "test").test)) == (205, 87, 72)
    text = "".join(
        (test_data / "bccd/Annotations" / f"{name}.xml").read_text() for name in data.train.objects.image_ids
    )
    names = Counter(re.findall("<name>(.*)</name>", text))
    counts = data.train.objects.class_counts(3)
    assert dict(zip(data.class_names, counts, strict=True)) == {**names, "RBC": names["RBC"] - 1}
    corners = [re.findall(f"<{corner}>(.*)</{corner}>", text) for corner in ("xmin", "ymin", "xmax", "ymax")]
    boxes = {tuple(box) for box in np.array(corners, float).T - [1, 1, 0, 0]}
    assert {tuple(box) for box in data.train.objects.boxes.tolist()} == boxes - {(180, 328, 181, 329)}  # the empty one
    np.testing.assert_array_equal(data.train.labels[7], np.isin([0, 1, 2], data.train[[7]].objects.labels))


@pytest.mark.parametrize("split", ["train", "val"])
def test_tiny_coco_is_what_pycocotools_reads(test_data, split, capsys):
    coco = COCO(str(test_data / f"tiny_coco/annotations/instances_{split}2017.json"))
    data = load_test(test_data / "tiny_coco", split)
    objects = data.test.objects
    categories = coco.loadCats(sorted(coco.getCatIds()))
    assert list(data.class_names) == [category["name"] for category in categories]
    assert sorted(objects.image_ids) == sorted(coco.getImgIds()) and len(objects) == len(coco.anns)
    for index, image_id in enumerate(objects.image_ids[:20]):
        image, found = coco.imgs[image_id], objects.select([index])
        expected = coco.loadAnns(coco.getAnnIds(image_id))
        assert data.test.images[index].endswith(image["file_name"])
        assert found.sizes.tolist() == [[image["height"], image["width"]]]
        boxes = np.array([item["bbox"] for item in expected], float).reshape(-1, 4)
        np.testing.assert_allclose(found.boxes, np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]), atol=1e-4)
        np.testing.assert_allclose(found.areas, [item["area"] for item in expected])
        assert found.crowd.tolist() == [bool(item["iscrowd"]) for item in expected]
        assert [categories[label]["id"] for label in found.labels] == [item["category_id"] for item in expected]
        for number, item in enumerate(expected):
            np.testing.assert_array_equal(found.mask(number), coco.annToMask(item))


def described(split, class_names):
    """{name of the image: sorted (class, box)} of a Split."""
    rows = []
    for index in range(len(split)):
        found = split.objects.select([index])
        names = [class_names[label] for label in found.labels]
        rows.append(sorted(zip(names, map(tuple, found.boxes.round(3).tolist()), strict=True)))
    return dict(zip(map(str, split.objects.image_ids), rows, strict=True))


def expected(images, numbered=False):
    """What `described` returns of the images of a split; COCO's ids are numbers."""
    return {str(number if numbered else name): sorted(objects) for number, (name, objects) in enumerate(images, 1)}


@pytest.mark.parametrize("kind", WRITERS)
def test_each_format_is_found_and_read(tmp_path, kind):
    folder = WRITERS[kind](tmp_path / "insects")
    data = load_dataset(folder)
    assert (data.name, data.class_names, data.multi_label) == ("insects", CLASSES, True)
    for split, images in ((data.train, SPLITS["train"]), (data.test, SPLITS["val"])):
        assert described(split, CLASSES) == expected(images.items(), kind == "coco")
        assert split.objects.sizes.tolist() == [[HEIGHT, WIDTH]] * len(images)
        np.testing.assert_array_equal(split.labels, split.objects.label_matrix(3))
    tests = load_test(folder)
    assert described(tests.test, CLASSES) == described(data.test, CLASSES) and tests.test.has_paths
    assert len(load_test(folder, "train").test) == 3
    with pytest.raises(ValueError, match="Nearest: .'train'"):
        load_test(folder, "trian")


@pytest.mark.parametrize("kind", WRITERS)
def test_part_of_the_training_images_can_be_held_out(tmp_path, kind):
    folder = WRITERS[kind](tmp_path)
    data = load_dataset(folder, validation_split=1)
    assert (len(data.train), len(data.test)) == (2, 1)
    parts = described(data.train, CLASSES) | described(data.test, CLASSES)
    assert parts == expected(SPLITS["train"].items(), kind == "coco")
    only_train = load_dataset(WRITERS[kind](tmp_path / "single", {"train": SPLITS["train"]}))
    assert len(only_train.train) + len(only_train.test) == 3


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_of_annotated_images_is_also_a_folder_of_images(tmp_path, kind):
    folder = WRITERS[kind](tmp_path)
    assert len(image_source(folder).names) == 5
    write_text(tmp_path / "classes.csv", "file,label\none,x\ntwo,y\nthree,x\nfour,y\nfive,x")
    assert load_test(folder, labels=tmp_path / "classes.csv").test.objects is None


def test_voc_without_lists_of_splits_and_with_subfolders(tmp_path):
    folder = WRITERS["voc"](tmp_path)
    (folder / "ImageSets").rename(tmp_path / "other")
    data = load_test(folder, "train")
    assert described(data.test, CLASSES) == expected((SPLITS["train"] | SPLITS["val"]).items())
    for parent, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (folder / parent / "sub").mkdir()
        (folder / parent / f"one.{suffix}").rename(folder / parent / "sub" / f"one.{suffix}")
    write_text(folder / "ImageSets/Main/test.txt", "sub/one\nfour\n")
    found = described(load_test(folder).test, CLASSES)
    assert found == {"sub/one": sorted(SPLITS["train"]["one"]), "four": SPLITS["val"]["four"]}


def test_class_folders_beside_an_unrelated_annotations_json(tmp_path):
    for name in ("ant/1.png", "bee/2.png", "ant/3.png", "bee/4.png"):
        save_image(tmp_path / name)
    for content in ('{"1.png": "ant"}', "[]", '{"images": 4}', ""):
        write_text(tmp_path / "annotations.json", content)
        data = load_dataset(tmp_path, validation_split=2)
        assert data.class_names == ("ant", "bee") and data.train.objects is None


def test_polygons_and_runs_are_read_with_their_areas(tmp_path):
    folder = write_coco(tmp_path)
    file = folder / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0] |= {"segmentation": [[4, 3, 24, 3, 4, 18]], "iscrowd": 0}
    runs = {"size": [HEIGHT, WIDTH], "counts": [600, 300, 300]}
    content["annotations"][1] |= {"segmentation": runs, "iscrowd": 1, "area": 300}
    file.write_text(json.dumps(content))
    objects = load_dataset(folder).train.objects
    assert objects.areas[:3].tolist() == [150, 300, 20] and objects.crowd.tolist() == [False, True, False, False, False]
    assert objects.mask(1).sum() == 300 and objects.mask(2) is None
    assert objects.mask(1)[:, 20:30].all()  # runs are down the columns


def test_the_area_of_compressed_runs_is_that_of_pycocotools(tmp_path):
    folder = write_coco(tmp_path)
    file = folder / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    runs = pycoco.encode(np.asfortranarray(np.tri(HEIGHT, WIDTH, dtype="uint8")))
    content["annotations"][0]["segmentation"] = runs | {"counts": runs["counts"].decode()}
    file.write_text(json.dumps(content))
    assert load_dataset(folder).train.objects.areas[0] == pycoco.area(runs) != 20 * 15


def test_a_yolo_data_set_below_a_folder_of_images(tmp_path):
    """Only folders of the data set are exchanged for labels; without "images", text files are beside the images."""
    folder = write_yolo(tmp_path / "images/insects")
    assert described(load_test(folder).test, CLASSES) == expected(SPLITS["val"].items())
    for parent in ("images", "labels"):
        for path in (folder / parent / "val").iterdir():
            write_text(folder / "flat/readme", "")
            path.rename(folder / "flat" / path.name)
    write_text(folder / "data.yaml", f"val: flat\nnames: {list(CLASSES)}")
    assert described(load_test(folder).test, CLASSES) == expected(SPLITS["val"].items())


def test_yolo_polygons_are_masks(tmp_path):
    folder = write_yolo(tmp_path)
    write_text(folder / "labels/train/two.txt", "1 0.1 0.1 0.6 0.1 0.6 0.6 0.1 0.6\n")
    data = load_dataset(folder)
    (index,) = np.flatnonzero(data.train.objects.image_ids == "two")
    found = data.train[[index]].objects
    np.testing.assert_allclose(found.boxes, [[4, 3, 24, 18]], rtol=1e-6)
    np.testing.assert_allclose(found.areas, [20 * 15])
    assert found.mask(0)[3:18, 4:24].all() and found.mask(0).sum() == 20 * 15


@pytest.mark.parametrize(
    "places",
    [
        "train: ../train/images\nval: ../valid/images",
        "train: [./train/images]\nval: valid/images",
        "train: t.txt\nval: v.txt",
    ],
)
def test_the_places_that_data_yaml_names(tmp_path, places):
    for split, images in (("train", SPLITS["train"]), ("valid", SPLITS["val"])):
        for name in images:
            save_image(tmp_path / split / "images" / f"{name}.jpg")
            write_text(tmp_path / split / "labels" / f"{name}.txt", "2 0.5 0.5 1 1")
        lines = "\n".join(f"./{split}/images/{name}.jpg" for name in images)
        write_text(tmp_path / f"{split[0]}.txt", lines)
    write_text(tmp_path / "data.yaml", f"{places}\nnames: {{0: ant, 1: bee, 2: wasp}}")
    for name in (tmp_path, tmp_path / "data.yaml"):
        data = load_dataset(name)
        assert set(described(data.train, CLASSES)) == set(SPLITS["train"])
        assert described(data.test, CLASSES) == {name: [("wasp", (0, 0, 40, 30))] for name in SPLITS["val"]}


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_folders_of_splits_with_annotations_beside_the_images(tmp_path, kind):
    """As Roboflow writes them."""
    source, folder = WRITERS[kind](tmp_path / "source"), tmp_path / "folder"
    for split, target in (("train", folder / "train"), ("val", folder / "valid")):
        target.mkdir(parents=True)
        for name in SPLITS[split]:
            for path in source.rglob(f"{name}.*"):
                path.rename(target / path.name)
        for path in source.glob(f"annotations/*{split}*"):
            path.rename(target / "_annotations.coco.json")
    data = load_dataset(folder)
    assert described(data.train, CLASSES) == expected(SPLITS["train"].items(), kind == "coco")
    assert described(data.test, CLASSES) == expected(SPLITS["val"].items(), kind == "coco")


def save_turned(path, mask, orientation):
    """Saves a mask as an image that EXIF says is stored in an orientation; returns the upright mask."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.uint8(255 * mask)).save(save_image(path), exif=exif)
    return np.asarray(load_image(path, 1)) > 0


def box_of(mask):
    """x1, y1, x2, y2 around a mask."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


@pytest.mark.parametrize("form", ["polygons", "runs"])
@pytest.mark.parametrize(
    "annotated, orientation", [("upright", number) for number in range(1, 9)] + [("stored", n) for n in range(5, 9)]
)
def test_boxes_and_masks_are_in_the_upright_image(tmp_path, annotated, orientation, form):
    bars = np.zeros((2, HEIGHT, WIDTH), bool)
    bars[0, 3:8, 4:24] = bars[1, 3:18, 4:8] = True  # a corner, which is not symmetric
    upright_bars = np.array([save_turned(tmp_path / "bar.png", bar, orientation) for bar in bars])
    visible = save_turned(tmp_path / "train/a.png", bars.any(axis=0), orientation)
    if annotated == "upright":
        bars = upright_bars
    mask = bars.any(axis=0)
    if form == "runs":
        segmentation = encode_mask(mask)
    else:
        corners = ((x1, y1, x2, y1, x2, y2, x1, y2) for x1, y1, x2, y2 in map(box_of, bars))
        segmentation = [list(polygon) for polygon in corners]
    x1, y1, x2, y2 = box_of(mask)
    annotation = {"image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": segmentation}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": mask.shape[0], "width": mask.shape[1]}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "corner"}],
    }
    write_text(tmp_path / "annotations/train.json", json.dumps(content))
    objects = load_test(tmp_path).test.objects
    np.testing.assert_array_equal(objects.mask(0), visible)
    assert objects.sizes.tolist() == [list(visible.shape)] and objects.boxes.tolist() == [box_of(visible)]
