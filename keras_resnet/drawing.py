"""Drawings of detections: images with the boxes, classes, scores and masks of objects."""

import os
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from keras_resnet.data.image_files import SUFFIXES, as_pil_image
from keras_resnet.detection import Detection
from keras_resnet.errors import value_error
from keras_resnet.files import atomic_write, local_path

OPACITY = 0.45
"""Opacity of masks, from 0 to 1."""


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
    from matplotlib.colors import TABLEAU_COLORS
    from PIL import ImageColor, ImageDraw

    drawing = as_pil_image(image, 3).copy()
    if drawing.size != detection.size[::-1]:
        raise value_error("image", drawing.size, f"of the width and height of the detection, {detection.size[::-1]}")
    palette = map(ImageColor.getrgb, TABLEAU_COLORS.values())
    colors = list(islice(cycle(palette), len(detection)))
    if detection.mask_probabilities is not None:
        for index, color in enumerate(colors):
            _draw_mask(drawing, detection.mask_part(index), color)
    canvas, unit = ImageDraw.Draw(drawing), max(1, round(min(drawing.size) / 240))
    objects = list(zip(detection.boxes.tolist(), detection.names, detection.scores, colors, strict=True))
    for box, name, score, color in reversed(objects):  # the highest score last, above the others
        canvas.rectangle(box, outline=color, width=unit)
        _draw_label(canvas, f"{name} {score:.0%}", box, color, 8 * unit)
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
