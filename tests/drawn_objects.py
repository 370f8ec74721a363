"""Drawn rectangles, and small networks that find them: what tests train networks on that find objects."""

import json
from dataclasses import replace

import numpy as np
from annotated_images import write_text
from support import SMALL, narrow, png_bytes

from keras_resnet import DetectorSpec, LocalizerSpec, SegmenterSpec, get_spec
from keras_resnet.data.datasets import Dataset, Split, default_preprocessing
from keras_resnet.data.objects import Objects, corner_and_sides
from keras_resnet.data.semantic_masks import masks_in_memory

SIZE = 64
"""Shorter side of the images for TINY."""
TINY = DetectorSpec(
    replace(narrow(get_spec("resnet18")), depths=(1, 1, 1, 1)),
    levels=(3, 4, 5),
    extra_levels=None,
    anchor_sizes=((16,), (32,), (64,)),
    neck_width=16,
    rpn_width=16,
    box_width=32,
    mask_width=8,
    mask_convs=1,
    frozen_batch_norm=False,
)
"""Faster R-CNN on a residual network of a few thousand weights, which builds and trains in seconds."""
TINY_LOCALIZER = LocalizerSpec(SMALL, "per_class", box_width=32)
TINY_SEGMENTER = SegmenterSpec(
    replace(SMALL, widths=(16, 32), stem_width=16),  # with 8 channels, TensorFlow 2.21 crashes in its shortcuts
    "deeplabv3",
    output_stride=2,
    head_width=16,
    rates=(2, 4),
    classes=3,
)
TINY_MASKS = replace(TINY, mask_head=True)
TINY_DENSE = replace(TINY, box_head="dense", head_convs=1)


def drawn_dataset(train=12, test=4, size=(48, 64), masks=False):
    """Images with one or two red or blue rectangles on grey, in memory; the last training image has none."""
    parts = [_drawn_split(count, size, seed, masks) for seed, count in enumerate((train, test))]
    return Dataset("drawings", *parts, ("red", "blue"), default_preprocessing((None, None, 3)))


def _drawn_split(count, size, seed, masks):
    generator = np.random.default_rng(seed)
    images, rows = np.full((count, *size, 3), 128, "uint8"), []
    for number in range(count if seed else count - 1):
        for _ in range(generator.integers(1, 3)):
            sides = generator.integers(14, 25, 2)
            y, x = (generator.integers(0, np.array(size) - sides)).tolist()
            label = int(generator.integers(2))
            images[number, y : y + sides[0], x : x + sides[1]] = ((220, 30, 30), (30, 30, 220))[label]
            rows.append((number, (x, y, x + int(sides[1]), y + int(sides[0])), label))
    image, boxes, labels = (np.array(column) for column in zip(*rows, strict=True))
    no = np.zeros(len(rows), bool)
    polygons = np.empty(len(rows), object)
    polygons[:] = [[[float(v) for v in (x1, y1, x2, y1, x2, y2, x1, y2)]] for x1, y1, x2, y2 in boxes]
    objects = Objects(
        image,
        boxes.astype("float32"),
        labels.astype("int32"),
        no,
        no,
        np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).astype(float),
        polygons if masks else None,
        np.tile(np.array(size, "int32"), (count, 1)),
        np.array([f"drawing {number}" for number in range(count)], object),
    )
    return Split(images, objects.label_matrix(2), objects=objects)


def drawn_masks(train=12, test=4, size=(36, 44)):
    """The images of `drawn_dataset` with the class of each pixel; a frame of one pixel does not count."""
    parts = [_split_with_masks(count, size, seed) for seed, count in enumerate((train, test))]
    colors = ((0, 0, 0), (220, 30, 30), (30, 30, 220))
    preprocessing = default_preprocessing((None, None, 3))
    return Dataset("drawings", *parts, ("background", "red", "blue"), preprocessing, colors=colors)


def _split_with_masks(count, size, seed):
    images = _drawn_split(count, size, seed, masks=False).images
    masks = np.select([images[..., 0] == 220, images[..., 2] == 220], [1, 2], 0).astype("uint8")
    masks[:, [0, -1]], masks[:, :, [0, -1]] = 255, 255
    found = masks_in_memory(masks)
    return Split(images, found.label_matrix(3), masks=found)


def write_drawn_masks(folder, dataset=None):
    """Writes a data set of `drawn_masks` as folders of images and masks; returns the folder."""
    dataset = dataset or drawn_masks()
    for name, split in (("train", dataset.train), ("val", dataset.test)):
        for number, pixels in enumerate(split.images):
            for kind, values in (("images", pixels), ("masks", split.masks.read(number))):
                path = folder / name / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png_bytes(values))
    write_text(folder / "classes.txt", "\n".join(dataset.class_names))
    return folder


def write_rectangles(folder, count=48):
    """Writes images of two classes, white wide and grey high rectangles on black, with their boxes, for localizers."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        lines = []
        for number in range(count):
            label, pixels = number % 2, np.zeros((32, 32), "uint8")
            width, height = random.integers(12, 20, 2) // ((1, 2) if label == 0 else (2, 1))
            x, y = random.integers(0, (32 - width, 32 - height))
            pixels[y : y + height, x : x + width] = 255 if label == 0 else 120
            name = f"{'wide' if label == 0 else 'high'}/{number}.png"
            (folder / split / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / split / name).write_bytes(png_bytes(pixels))
            lines.append("\t".join(map(str, (name, name.split("/")[0], x, y, x + width - 1, y + height - 1))))
        (folder / f"{split}_boxes.tsv").write_text("\n".join(lines))
    return folder


def write_drawings(folder, dataset=None):
    """Writes a data set of `drawn_dataset` in the format of COCO; returns the folder."""
    dataset = dataset or drawn_dataset()
    categories = [{"id": number, "name": name} for number, name in enumerate(dataset.class_names)]
    for name, split in (("train", dataset.train), ("val", dataset.test)):
        objects = split.objects
        images = []
        for number, (pixels, (height, width)) in enumerate(zip(split.images, objects.sizes.tolist(), strict=True)):
            path = folder / f"{name}2017" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png_bytes(pixels))
            images.append({"id": number, "file_name": path.name, "height": height, "width": width})
        columns = (objects.image.tolist(), objects.labels.tolist(), corner_and_sides(objects.boxes).tolist())
        annotations = [
            {"id": number, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3]}
            for number, (image, label, box) in enumerate(zip(*columns, strict=True), start=1)
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_text(folder / "annotations" / f"instances_{name}2017.json", json.dumps(content))
    return folder
