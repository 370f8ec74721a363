"""Images of one class with boxes: every format, real data, and what is refused."""

import numpy as np
import pytest
from annotated_images import HEIGHT, LOCALIZED, WIDTH, localized_rows, save_image, write_tables, write_text

from keras_resnet.data.datasets import Split
from keras_resnet.data.sources import load_dataset, load_test


def text(numbers, separator=" "):
    return separator.join(map(str, numbers))


def write_tiny_imagenet(folder):
    lines = {}
    for class_name, name, _, boxes in localized_rows("train"):
        save_image(folder / "train" / class_name / "images" / f"{name}.JPEG")
        lines.setdefault(class_name, []).extend(text((f"{name}.JPEG", *box), "\t") for box in boxes)
    for class_name, found in lines.items():
        write_text(folder / "train" / class_name / f"{class_name}_boxes.txt", "\n".join(found) + "\n")
    for _, name, _, _ in localized_rows("val"):
        save_image(folder / "val" / "images" / f"{name}.JPEG")
    found = [
        text((f"{name}.JPEG", class_name, *box), "\t")
        for class_name, name, _, boxes in localized_rows("val")
        for box in boxes
    ]
    write_text(folder / "val" / "val_annotations.txt", "\n".join(found))
    save_image(folder / "test" / "images" / "test_0.JPEG")


def write_archive(folder):
    """Images as in ImageNet's archive: training images in class folders, the others not."""
    for split in LOCALIZED:
        for class_name, name, _, _ in localized_rows(split):
            parts = (split, class_name) if split == "train" else (split,)
            save_image(folder.joinpath("ILSVRC", "Data", "CLS-LOC", *parts, f"{name}.JPEG"))


def write_kaggle(folder):
    write_archive(folder)
    for split in LOCALIZED:
        lines = [f"{name},{text(text((c, *box)) for box in boxes)} " for c, name, _, boxes in localized_rows(split)]
        write_text(folder / f"LOC_{split}_solution.csv", "\n".join(["ImageId,PredictionString", *lines]))


def write_xml(folder, target):
    for split in LOCALIZED:
        for class_name, name, _, boxes in localized_rows(split):
            items = "".join(
                f"<object><name>{class_name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
                f"<ymax>{y2}</ymax></bndbox></object>"
                for x1, y1, x2, y2 in boxes
            )
            sides = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
            parts = (split, class_name) if split == "train" else (split,)
            write_text(folder.joinpath(target, *parts, f"{name}.xml"), f"<annotation>{sides}{items}</annotation>")


def write_imagenet(folder):
    write_archive(folder)
    write_xml(folder, "ILSVRC/Annotations/CLS-LOC")


def write_xml_beside_class_folders(folder):
    write_tables(folder)
    for split in LOCALIZED:
        (folder / f"{split}_boxes.tsv").unlink()
    write_xml(folder, "Annotations")


WRITERS = {
    "tables": write_tables,
    "tiny imagenet": write_tiny_imagenet,
    "kaggle": write_kaggle,
    "imagenet": write_imagenet,
    "xml": write_xml_beside_class_folders,
}


def described(split, class_names):
    """{image: (class, boxes)} of a Split."""
    objects = split.objects
    boxes = {name: objects.select([index]).boxes.tolist() for index, name in enumerate(objects.image_ids)}
    return {
        name: (class_names[label], [tuple(map(int, box)) for box in boxes[name]])
        for name, label in zip(objects.image_ids, split.labels, strict=True)
    }


def expected(split):
    return {name: (class_name, boxes) for class_name, name, boxes, _ in localized_rows(split)}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_has_the_same_images_classes_and_boxes(tmp_path, kind):
    WRITERS[kind](tmp_path)
    data = load_dataset(tmp_path)
    assert data.class_names == ("ant", "bee") and not data.multi_label
    assert described(data.train, data.class_names) == expected("train")
    assert described(data.test, data.class_names) == expected("val")
    assert described(load_test(tmp_path).test, data.class_names) == expected("val")
    assert described(load_test(tmp_path, "train").test, data.class_names) == expected("train")


def test_tiny_imagenet(test_data):
    data = load_dataset(test_data / "tiny_imagenet")
    assert (len(data.train), len(data.test), len(data.class_names)) == (5000, 1000, 20)
    assert np.bincount(data.train.labels).tolist() == [250] * 20
    lines = (test_data / "tiny_imagenet/val_boxes.tsv").read_text().splitlines()
    name, class_name, *corners = lines[1].split("\t")
    (index,) = np.flatnonzero(data.test.objects.image_ids == name.split("/")[1].removesuffix(".JPEG"))
    assert data.class_names[data.test.labels[index]] == class_name
    np.testing.assert_array_equal(data.test[[index]].objects.boxes[0], np.add(np.array(corners, float), [0, 0, 1, 1]))
    rest, held_out = data.train.stratified_split(0.1)
    assert np.bincount(held_out.labels).tolist() == [25] * 20 and len(held_out.objects) == len(held_out) == 500
    assert len(rest) == 4500


def test_images_of_a_class_folder_may_have_no_boxes(tmp_path):
    """As most training images of ImageNet."""
    write_imagenet(tmp_path)
    (tmp_path / "ILSVRC/Annotations/CLS-LOC/train/ant/ant_1.xml").unlink()
    data = load_dataset(tmp_path)
    assert described(data.train, data.class_names) == expected("train") | {"ant_1": ("ant", [])}


@pytest.mark.parametrize(
    "kind, file, old, new, message",
    [
        ("tables", "val_boxes.tsv", "20\t10\t29\t19", "20\t10\t99\t19", "object 1 .*outside"),
        ("tables", "val_boxes.tsv", "20\t10\t29\t19", "30\t10\t20\t19", "object 1 .*empty"),
        ("tables", "val_boxes.tsv", "20\t10\t29\t19", "20\t10\tnan\t19", "line 1 .*four numbers"),
        ("tables", "val_boxes.tsv", "bee/val_0.JPEG", "../val_0.JPEG", "line 1 .*inside the folder"),
        ("tables", "val_boxes.tsv", "bee/val_0.JPEG", "bee/val_9.JPEG", "val_9.JPEG .*"),
        ("tiny imagenet", "val/val_annotations.txt", "20\t10", "20", "line 1 .*four numbers"),
        ("kaggle", "LOC_val_solution.csv", "20 10 29", "20 29", "line 2 .*"),
        ("kaggle", "LOC_val_solution.csv", "val_1,", "val_7,", "val_7.JPEG"),
        ("imagenet", "ILSVRC/Annotations/CLS-LOC/val/val_0.xml", "<xmax>29", "<xmax>59", "object 1 .*outside"),
        ("imagenet", "ILSVRC/Annotations/CLS-LOC/val/val_0.xml", "<annotation>", "<a>", "val_0.xml"),
        ("imagenet", "ILSVRC/Annotations/CLS-LOC/train/ant/ant_0.xml", ">ant<", ">bee<", "its class is bee"),
    ],
)
def test_invalid_lines_and_objects_are_listed_and_left_out(tmp_path, kind, file, old, new, message):
    WRITERS[kind](tmp_path)
    content = (tmp_path / file).read_text()
    assert old in content
    (tmp_path / file).write_text(content.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"1 invalid in .*(?s:.*){message}"):
        load_dataset(tmp_path)
    with pytest.warns(UserWarning, match=message):
        data = load_dataset(tmp_path, skip_bad=True)
    assert len(data.skipped) == 1
    assert len(data.train.objects) + len(data.test.objects) == 7


@pytest.mark.parametrize("skip_bad", [False, True])
def test_lists_without_a_valid_line(tmp_path, skip_bad):
    write_tables(tmp_path)
    content = (tmp_path / "train_boxes.tsv").read_text()
    (tmp_path / "train_boxes.tsv").write_text(content.replace("\t", " "))
    with pytest.raises(ValueError, match="lists of boxes with valid lines.*train_boxes.tsv, line 1"):
        load_dataset(tmp_path, skip_bad=skip_bad)


@pytest.mark.parametrize("kind, file", [("tables", "val_boxes.tsv"), ("kaggle", "LOC_val_solution.csv")])
def test_other_classes_in_the_test_images(tmp_path, kind, file):
    WRITERS[kind](tmp_path)
    content = (tmp_path / file).read_text()
    (tmp_path / file).write_text(content.replace("ant", "wasp"))
    if kind == "tables":
        (tmp_path / "val/ant").rename(tmp_path / "val/wasp")
    with pytest.raises(ValueError, match="the same classes in train and val"):
        load_dataset(tmp_path)


def test_objects_should_have_the_class_of_their_image(tmp_path):
    write_tables(tmp_path)
    train = load_dataset(tmp_path).train
    with pytest.raises(ValueError, match="of the class of their image"):
        Split(train.images, 1 - train.labels, None, train.objects)
    with pytest.raises(ValueError, match="of 2 images"):
        Split(train.images[:2], train.labels[:2], None, train.objects)
