"""Drawings: images with the boxes, classes, scores and masks of objects, or with the class of each pixel."""

import os
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.architecture.segmenter_spec import IGNORED
from keras_resnet.data.image_files import SUFFIXES, as_pil_image
from keras_resnet.data.labels import BACKGROUND
from keras_resnet.data.objects import Objects
from keras_resnet.detection import Detection
from keras_resnet.errors import value_error
from keras_resnet.files import atomic_write, local_path
from keras_resnet.segmentation import Segmentation

OPACITY = 0.45
"""Opacity of masks of objects, from 0 to 1."""
CLASS_OPACITY = 0.6
"""Opacity of the classes of pixels."""
BACKGROUNDS = (BACKGROUND, "background")
"""Names of the class of pixels that are not drawn over."""
LEGEND_SIZE = 11
"""Smallest height of the letters of a legend, in pixels."""
LOSSY = (".jpg", ".jpeg", ".webp")
"""Suffixes of formats that are written with a quality."""
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
        >>> from keras_resnet.data.labels import BACKGROUND
    from keras_resnet.data.objects import Objects
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


def default_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """The first colours of PASCAL VOC's colour map: red, green and blue, from 0 to 255, of at most 256 classes.

    >>> from keras_resnet.drawing import default_colors
    >>> default_colors(4)
    ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))

    The bits of a class's number are the highest bits of red, green and blue, one after the other (VOClabelcolormap.m).
    """
    numbers = np.arange(count)
    bits = (numbers[:, None] >> np.arange(24)) & 1
    colors = [(bits[:, channel::3] << np.arange(7, -1, -1)).sum(axis=1).tolist() for channel in range(3)]
    return tuple(zip(*colors, strict=True))


def draw_segmentation(image: Any, segmentation: Segmentation, legend: bool = True) -> Any:
    """Draws the class of each pixel over an image, and below it a legend of the classes that occur.

    >>> import numpy as np
    >>> from keras_resnet.drawing import draw_segmentation
    >>> from keras_resnet.segmentation import Segmentation
    >>> found = Segmentation(None, np.ones((80, 100), "uint8"), ("sky", "road"))
    >>> draw_segmentation(np.zeros((80, 100, 3), "uint8"), found, legend=False).size
    (100, 80)

    Classes have the colours of the segmentation, or the `default_colors`. Pixels without a class (255), or of a class
    that is named as the background, are not changed.

    Args:
        image: the segmented image: a path, a PIL image or a uint8 array.
        segmentation: what `segment` returned for it, or a Segmentation with its true mask.
        legend: whether the legend is added, which makes the drawing higher than the image.

    Returns:
        A PIL image, upright, of mode "RGB".

    Raises:
        ValueError: for an image of another size.
    """
    from PIL import Image

    drawing = as_pil_image(image, 3)
    if drawing.size != segmentation.size[::-1]:
        expected = f"of the width and height of the segmentation, {segmentation.size[::-1]}"
        raise value_error("image", drawing.size, expected)
    classes = mask_image(segmentation).convert("RGB")
    drawing = Image.composite(Image.blend(drawing, classes, CLASS_OPACITY), drawing, _painted(segmentation))
    return stack(drawing, draw_legend([segmentation], drawing.width)) if legend else drawing


def _painted(segmentation):
    """A PIL image of mode "L" that is white where pixels have a class, other than the background."""
    from PIL import Image

    painted = np.full(256, 255, "uint8")
    painted[[index for index, name in enumerate(segmentation.class_names) if name in BACKGROUNDS]] = 0
    painted[IGNORED] = 0
    return Image.fromarray(painted[segmentation.mask])


def stack(image: Any, below: Any) -> Any:
    """A PIL image above another one of its width."""
    from PIL import Image

    joined = Image.new("RGB", (image.width, image.height + below.height), "white")
    joined.paste(image, (0, 0))
    joined.paste(below, (0, image.height))
    return joined


def draw_legend(segmentations: Sequence[Segmentation], width: int) -> Any:
    """A legend of the classes that occur in some segmentations of one data set, in the order of the classes.

    >>> import numpy as np
    >>> from keras_resnet.drawing import draw_legend
    >>> from keras_resnet.segmentation import Segmentation
    >>> draw_legend([Segmentation(None, np.ones((2, 2), "uint8"), ("sky", "road"))], width=100).width
    100

    Args:
        segmentations: Segmentations with the same class names and colours.
        width: width of the legend in pixels.

    Returns:
        A PIL image of mode "RGB", as high as the names need.
    """
    from PIL import Image, ImageDraw

    found = sorted({(index, name) for one in segmentations for index, name, _ in one.classes})
    colors = _colors(segmentations[0])
    size = max(LEGEND_SIZE, width // 45)
    font, line, gap = _font(size), round(1.6 * size), size // 2
    places, x, y = [], gap, gap
    for index, name in found:
        needed = round(font.getlength(name)) + 3 * gap + size
        if x > gap and x + needed > width:
            x, y = gap, y + line
        places.append((x, y, colors[index], name))
        x += needed
    legend = Image.new("RGB", (width, y + line if found else 1), "white")
    canvas = ImageDraw.Draw(legend)
    for x, y, color, name in places:
        canvas.rectangle((x, y, x + size, y + size), fill=color, outline="black")
        canvas.text((x + size + gap, y), name, "black", font)
    return legend


def mask_image(segmentation: Segmentation) -> Any:
    """The mask as a palette image, whose pixels are the classes, in their colours: as in PASCAL VOC's mask files.

    Pixels that do not count (255) have the colour that they have there.

    >>> import numpy as np
    >>> from keras_resnet.drawing import mask_image
    >>> from keras_resnet.segmentation import Segmentation
    >>> image = mask_image(Segmentation(None, np.array([[1, 255]], "uint8"), ("sky", "road")))
    >>> image.mode, list(image.getdata()), image.convert("RGB").getpixel((0, 0))
    ('P', [1, 255], (128, 0, 0))

    Returns:
        A PIL image of mode "P".
    """
    from PIL import Image

    image = Image.fromarray(segmentation.mask)
    palette = [*_colors(segmentation), *default_colors(256)[len(segmentation.class_names) :]]
    image.putpalette([value for color in palette for value in color])
    return image


def _colors(segmentation):
    return segmentation.colors or default_colors(len(segmentation.class_names))


def draw_sheet(rows: Sequence[Sequence[Any]], width: int = SHEET_WIDTH) -> Any:
    """Images in a table: those of a row side by side, each `width` pixels wide, on white.

    >>> from PIL import Image
    >>> from keras_resnet.drawing import draw_sheet
    >>> draw_sheet([[Image.new("RGB", (100, 50))] * 2, [Image.new("RGB", (200, 200))] * 2], width=100).size
    (210, 160)

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
    font = _font(size)
    left, top, right, bottom = canvas.textbbox((0, 0), text, font)
    width, height = right + left, bottom + top
    x = max(0, min(box[0], canvas.im.size[0] - width))
    y = box[1] - height if box[1] >= height else box[1]
    canvas.rectangle((x, y, x + width, y + height), fill=color)
    red, green, blue = color
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 140  # luma of ITU-R BT.601
    canvas.text((x, y), text, "black" if is_light else "white", font)


def _font(size):
    """matplotlib's sans-serif font, which has the letters of most languages."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(os.path.join(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def drawing_paths(
    inputs: Sequence[str | os.PathLike], images: Sequence[Path], folder: Path, masks: bool = False
) -> dict[Path, Path]:
    """Paths of the drawings of images: {image: file in `folder`}, with the names and subfolders of the images.

    >>> from pathlib import Path
    >>> from keras_resnet.drawing import drawing_paths
    >>> {image.name: str(path) for image, path in drawing_paths(["a.jpg"], [Path("a.jpg")], Path("out")).items()}
    {'a.jpg': 'out/a.jpg'}

    Args:
        inputs: the files and folders in which the images were found.
        images: paths of the images.
        folder: a folder that need not exist.
        masks: whether the paths are those of masks: PNG files.

    Raises:
        ValueError: for a folder that contains some of the images, which drawings could replace, and for images whose
            drawings would have the same path.
    """
    argument = "masks" if masks else "draw"
    target = local_path(folder, argument).resolve()
    for image in images:
        if image.resolve().is_relative_to(target):
            raise value_error(argument, str(folder), f"a folder without images to predict; it has {image}")
    roots = [
        os.path.abspath(path if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))) for path in inputs
    ]
    root, originals = os.path.commonpath(roots), {image.resolve() for image in images}
    found: dict[Path, Path] = {}
    drawn: dict[Path, Path] = {}
    for image in images:
        path = folder / os.path.relpath(os.path.abspath(image), root)
        if path.suffix.lower() not in SUFFIXES:
            path = path.with_name(f"{path.name}.png")
        elif masks:
            path = path.with_suffix(".png")
        original = image.resolve()
        if path.resolve() in originals or drawn.setdefault(path, original) != original:
            raise value_error(argument, str(folder), f"a folder in which no other image becomes {path}")
        found[image] = path
    return found


def write_drawing(found: Detection | Segmentation, path: Path) -> None:
    """Reads the image of a Detection or Segmentation again, and writes its drawing, in the format of the suffix.

    Raises:
        ValueError, OSError: for an image that has changed, or cannot be read any more; as `atomic_write`.
    """
    draw: Any = draw_segmentation if isinstance(found, Segmentation) else draw_detections
    _save(draw(found.path, found), path, **({"quality": 95} if path.suffix.lower() in LOSSY else {}))


def write_mask(segmentation: Segmentation, path: Path) -> None:
    """Writes the mask of a Segmentation as a PNG file with a palette, see `mask_image`; OSError as `atomic_write`."""
    _save(mask_image(segmentation), path)


def _save(image, path, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        image.save(temporary, **settings)
