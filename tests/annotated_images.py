"""A small data set of annotated images in the formats of COCO, PASCAL VOC and YOLO, for tests to read and to damage."""

import json
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 40, 30
CLASSES = ("ant", "bee", "wasp")
SPLITS = {
    "train": {
        "one": [("bee", (4, 3, 24, 18)), ("ant", (0, 0, 40, 30))],
        "two": [],
        "three": [("wasp", (10, 20, 12, 30)), ("bee", (7, 7, 9, 9)), ("bee", (1, 1, 39, 29))],
    },
    "val": {"four": [("ant", (20, 10, 30, 20))], "five": [("wasp", (5, 5, 10, 10)), ("bee", (30, 2, 40, 4))]},
}
"""Split -> image -> objects: class and box in pixels."""


def save_image(path, size=(WIDTH, HEIGHT), **options):
    """Saves an image and makes its folder; returns its path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "gray").save(path, **options)
    return path


def write_text(path, text):
    """Writes a file and makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_coco(folder, splits=SPLITS, size=(WIDTH, HEIGHT)):
    """annotations/instances_train2017.json, train2017/one.png and so on; images and objects are numbered from 1."""
    categories = [{"id": 10 * (number + 1), "name": name} for number, name in enumerate(CLASSES)]
    for split, images in splits.items():
        rows, annotations = [], []
        for name, objects in images.items():
            save_image(folder / f"{split}2017" / f"{name}.png")
            rows.append({"id": len(rows) + 1, "file_name": f"{name}.png", "width": size[0], "height": size[1]})
            for class_name, (x1, y1, x2, y2) in objects:
                annotation = {"id": len(annotations) + 1, "image_id": len(rows), "bbox": [x1, y1, x2 - x1, y2 - y1]}
                annotations.append(annotation | {"category_id": 10 * (CLASSES.index(class_name) + 1)})
        content = {"images": rows, "annotations": annotations, "categories": categories}
        write_text(folder / f"annotations/instances_{split}2017.json", json.dumps(content))
    return folder


def write_voc(folder, splits=SPLITS, size=(WIDTH, HEIGHT)):
    """Annotations/one.xml, JPEGImages/one.jpg and ImageSets/Main/train.txt and so on."""
    for split, images in splits.items():
        write_text(folder / f"ImageSets/Main/{split}.txt", "\n".join(images))
        for name, objects in images.items():
            save_image(folder / "JPEGImages" / f"{name}.jpg")
            items = "".join(
                f"<object><name>{class_name}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin>"
                f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
                for class_name, (x1, y1, x2, y2) in objects
            )
            sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
            text = f"<annotation><filename>/etc/passwd</filename>{sides}{items}</annotation>"
            write_text(folder / "Annotations" / f"{name}.xml", text)
    return folder


def write_yolo(folder, splits=SPLITS, size=(WIDTH, HEIGHT)):
    """data.yaml, images/train/one.png, labels/train/one.txt and so on; no label file for an image without objects."""
    width, height = size
    places = "".join(f"{split}: images/{split}\n" for split in splits)
    write_text(folder / "data.yaml", f"path: ../datasets/insects\n{places}nc: 3\nnames: {list(CLASSES)}\n")
    for split, images in splits.items():
        for name, objects in images.items():
            save_image(folder / "images" / split / f"{name}.png")
            lines = [
                f"{CLASSES.index(class_name)} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} "
                f"{(x2 - x1) / width} {(y2 - y1) / height}"
                for class_name, (x1, y1, x2, y2) in objects
            ]
            if lines:
                write_text(folder / "labels" / split / f"{name}.txt", "\n".join(lines))
    return folder


WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}
"""Format -> function of a folder that writes the data set there and returns the folder."""

LOCALIZED = {
    "train": {
        "ant": {"ant_0": [(4, 3, 24, 18)], "ant_1": [(0, 0, 40, 30), (5, 6, 7, 8)]},
        "bee": {"bee_0": [(10, 20, 12, 30)], "bee_1": [(7, 7, 8, 8)]},
    },
    "val": {"bee": {"val_0": [(20, 10, 30, 20)], "val_2": [(1, 1, 39, 29)]}, "ant": {"val_1": [(30, 2, 40, 4)]}},
}
"""Split -> class -> image -> boxes, x1, y1, x2, y2."""


def localized_rows(split):
    """(class, image, boxes, boxes as the files state them) of a split."""
    for class_name, images in LOCALIZED[split].items():
        for name, boxes in images.items():
            yield class_name, name, boxes, [(x1, y1, x2 - 1, y2 - 1) for x1, y1, x2, y2 in boxes]


def write_tables(folder):
    """train/ant/ant_0.JPEG and so on, train_boxes.tsv and val_boxes.tsv; returns the folder."""
    for split in LOCALIZED:
        lines = []
        for class_name, name, _, boxes in localized_rows(split):
            save_image(folder / split / class_name / f"{name}.JPEG")
            lines += ["\t".join(map(str, (f"{class_name}/{name}.JPEG", class_name, *box))) for box in boxes]
        write_text(folder / f"{split}_boxes.tsv", "\n".join(lines))
    return folder
