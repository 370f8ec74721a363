"""Drawings of detections: images with the boxes, classes, scores and masks of objects."""

import os
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from keras_resnet.data.image_files import SUFFIXES, as_pil_image
from keras_resnet.data.objects import Objects
from keras_resnet.detection import Detection
from keras_resnet.errors import value_error
from keras_resnet.files import atomic_write, local_path

OPACITY = 0.45
"""Opacity of masks, from 0 to 1."""
SHEET_WIDTH = 500
"""Width of the images in a sheet, in pixels."""


def draw_detections(image: Any, detection: Detection) -> Any:
    """Draws the objects of an image: a box with the name and the score of each, and its mask.

    >>> import numpy as np
    >>> from keras_resnet.detection import Detection
    >>> from keras_resnet.drawing import draw_detections
    >>> box, score = np.array([[10, 20, 60, 70]], "float32"), np.array([0.9], "float32")
    >>> found = Detection(None, (80, 100), box, score, np.array([3]), ("car",))
    >>> draw_detections(np.zeros((80, 100, 3), "uint8"), found).size
    (100, 80)

    The objects have matplotlib's TABLEAU_COLORS one after another, in the order of their scores.

    Args:
        image: the image in which the objects were found: a path, a PIL image or a uint8 array.
        detection: what `detect` returned for it.

    Returns:
        A PIL image, upright, of mode "RGB".

    Raises:
        ValueError: for an image of another size.
    """
    if (size := as_pil_image(image, 3).size) != detection.size[::-1]:
        raise value_error("image", size, f"of the width and height of the detection, {detection.size[::-1]}")
    texts = [f"{name} {score:.0%}" for name, score in zip(detection.names, detection.scores, strict=True)]
    has_masks = detection.mask_probabilities is not None
    masks = [detection.mask_part(index) for index in range(len(detection))] if has_masks else []
    return _draw(image, detection.boxes, texts, masks)


def draw_objects(image: Any, objects: Objects, class_names: Sequence[str]) -> Any:
    """Draws the true objects of an image, as `draw_detections` draws what was found, with names alone.

    >>> import numpy as np
    >>> from keras_resnet.data.objects import Objects
    >>> from keras_resnet.drawing import draw_objects
    >>> box, no, one = np.array([[10, 20, 60, 70]], "float32"), np.zeros(1, bool), np.array([0])
    >>> objects = Objects(one, box, one, no, no, np.array([2500.0]), None, np.array([[80, 100]]), one)
    >>> draw_objects(np.zeros((80, 100, 3), "uint8"), objects, ["car"]).size
    (100, 80)

    Args:
        image: a path, a PIL image or a uint8 array.
        objects: Objects of this image alone.
        class_names: names of the data set's classes.

    Returns:
        A PIL image, upright, of mode "RGB".
    """
    texts = [class_names[label] for label in objects.labels]
    masks = [objects.mask(index) for index in range(len(objects))]
    return _draw(image, objects.boxes, texts, [None if mask is None else (0, 0, mask) for mask in masks])


def draw_sheet(rows: Sequence[Sequence[Any]], width: int = SHEET_WIDTH) -> Any:
    """Images in a table: those of a row side by side, each `width` pixels wide, on white.

    >>> from PIL import Image
    >>> from keras_resnet.drawing import draw_sheet
    >>> draw_sheet([[Image.new("RGB", (100, 50))] * 2, [Image.new("RGB", (200, 200))] * 2], width=100).size
    (210, 170)

    Args:
        rows: PIL images; those of a row have the same size, and all rows have as many.
        width: width in the table, in pixels.

    Returns:
        A PIL image of mode "RGB".
    """
    from PIL import Image, ImageOps

    margin = width // 10
    scaled = [[ImageOps.contain(image, (width, 4 * width)) for image in row] for row in rows]
    heights = [row[0].height for row in scaled]
    columns = len(rows[0])
    sheet = Image.new("RGB", (columns * (width + margin) - margin, sum(heights) + margin * (len(rows) - 1)), "white")
    top = 0
    for row, height in zip(scaled, heights, strict=True):
        for column, image in enumerate(row):
            sheet.paste(image, (column * (width + margin), top))
        top += height + margin
    return sheet


def _draw(image, boxes, texts, masks):
    """The image with masks (first row, first column, (h, w) bool), boxes and texts, the first ones above the others.

    `masks` may be empty; an object without a mask has None.
    """
    from matplotlib.colors import TABLEAU_COLORS
    from PIL import ImageColor, ImageDraw

    drawing = as_pil_image(image, 3).copy()
    colors = list(islice(cycle(map(ImageColor.getrgb, TABLEAU_COLORS.values())), len(boxes)))
    for mask, color in zip(masks, colors, strict=False):
        if mask is not None:
            _draw_mask(drawing, mask, color)
    canvas, unit = ImageDraw.Draw(drawing), max(1, round(min(drawing.size) / 240))
    for box, text, color in reversed(list(zip(boxes.tolist(), texts, colors, strict=True))):
        canvas.rectangle(box, outline=color, width=unit)
        _draw_label(canvas, text, box, color, 8 * unit)
    return drawing


def _draw_mask(drawing, part, color):
    """Blends the pixels of a mask with a colour."""
    from PIL import Image

    top, left, mask = part
    drawing.paste(color, (left, top), Image.fromarray((mask * round(255 * OPACITY)).astype("uint8")))


def _draw_label(canvas, text, box, color, size):
    """Writes a text on a coloured background above a box, or inside it at the upper edge of the image."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    font = ImageFont.truetype(os.path.join(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
    left, top, right, bottom = canvas.textbbox((0, 0), text, font)
    width, height = right + left, bottom + top
    x = max(0, min(box[0], canvas.im.size[0] - width))
    y = box[1] - height if box[1] >= height else box[1]
    canvas.rectangle((x, y, x + width, y + height), fill=color)
    red, green, blue = color
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 140  # luma of ITU-R BT.601
    canvas.text((x, y), text, "black" if is_light else "white", font)


def drawing_paths(inputs: Sequence[str | os.PathLike], images: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Paths of the drawings of images: {image: file in `folder`}, with the names and subfolders of the images.

    >>> from pathlib import Path
    >>> from keras_resnet.drawing import drawing_paths
    >>> {image.name: str(path) for image, path in drawing_paths(["a.jpg"], [Path("a.jpg")], Path("out")).items()}
    {'a.jpg': 'out/a.jpg'}

    Args:
        inputs: the files and folders in which the images were found.
        images: paths of the images.
        folder: a folder that need not exist.

    Raises:
        ValueError: for a folder that contains some of the images, which drawings could replace, and for images whose
            drawings would have the same path.
    """
    target = local_path(folder, "draw").resolve()
    for image in images:
        if image.resolve().is_relative_to(target):
            raise value_error("draw", str(folder), f"a folder without images to predict; it has {image}")
    roots = [
        os.path.abspath(path if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))) for path in inputs
    ]
    root, originals = os.path.commonpath(roots), {image.resolve() for image in images}
    found: dict[Path, Path] = {}
    drawn: dict[Path, Path] = {}
    for image in images:
        path = folder / os.path.relpath(os.path.abspath(image), root)
        path = path if path.suffix.lower() in SUFFIXES else path.with_name(f"{path.name}.png")
        original = image.resolve()
        if path.resolve() in originals or drawn.setdefault(path, original) != original:
            raise value_error("draw", str(folder), f"a folder in which no other image becomes {path}")
        found[image] = path
    return found


def write_drawing(detection: Detection, path: Path) -> None:
    """Reads the image of a detection again, and writes its drawing, in the format of the suffix, by `atomic_write`.

    Raises:
        ValueError, OSError: for an image that has changed, or cannot be read any more; if it cannot be written.
    """
    drawing = draw_detections(detection.path, detection)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        drawing.save(temporary, **({"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}))
