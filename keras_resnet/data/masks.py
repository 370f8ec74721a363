"""Masks of objects in COCO's forms, polygons or runs of equal pixels (RLE); masks that a detector predicted."""

from itertools import cycle

import numpy as np

from keras_resnet.errors import DETECTION, check_installed, value_error

TOLERANCE = 1.0
"""Pixels by which boxes and polygons may exceed their image, as rounding makes them."""
MASK_THRESHOLD = 0.5
"""Probability above which a pixel of a predicted mask belongs to the object."""
RUN_CHARACTERS = 7
"""Largest number of characters, of five bits each, for a run in a compressed RLE: more than 32 bits are not needed."""


def decode_mask(segmentation: list | dict, size: tuple[int, int]) -> np.ndarray:
    """Mask of an object as pixels.

    >>> from keras_resnet.data.masks import decode_mask
    >>> decode_mask({"size": [2, 3], "counts": [2, 3, 1]}, (2, 3)).astype(int)
    array([[0, 1, 1],
           [0, 1, 0]])

    Args:
        segmentation: polygons [[x, y, x, y, ...], ...] in pixels, or {"size": [height, width], "counts": run lengths or
            COCO's compressed string}.
        size: height and width of the image.

    Returns:
        (height, width) bool.

    Raises:
        ImportError: for polygons, without faster-coco-eval.
        ValueError: as `check_segmentation`.
    """
    check_segmentation(segmentation, size)
    if isinstance(segmentation, dict):
        runs = _run_lengths(segmentation)
        return np.repeat(np.arange(len(runs)) % 2 > 0, runs).reshape(size, order="F")
    check_installed("Masks of polygons", ["faster_coco_eval"], DETECTION)
    from faster_coco_eval.core import mask as mask_api

    return mask_api.decode(mask_api.segmToRle(segmentation, size[1], size[0])).astype(bool)


def mask_area(segmentation: list | dict, size: tuple[int, int]) -> float:
    """Area of a valid mask in pixels, of polygons by their corners; arguments as for `decode_mask`.

    >>> from keras_resnet.data.masks import mask_area
    >>> mask_area([[0, 0, 3, 0, 0, 2]], (2, 3)), mask_area({"size": [2, 3], "counts": [2, 3, 1]}, (2, 3))
    (3.0, 3.0)
    """
    if isinstance(segmentation, dict):
        return float(sum(_run_lengths(segmentation)[1::2]))
    polygons = (np.array(polygon, float).reshape(-1, 2).T for polygon in segmentation)
    return float(sum(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2 for x, y in polygons))


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """The smallest boxes around masks that are not empty.

    >>> import numpy as np
    >>> from keras_resnet.data.masks import mask_boxes
    >>> mask_boxes(np.array([[[0, 0, 0], [0, 1, 1]]], bool))
    array([[1., 1., 3., 2.]], dtype=float32)

    Args:
        masks: (N, height, width) bool.

    Returns:
        (N, 4) float32, x1, y1, x2, y2 in pixels.
    """
    columns, rows = np.any(masks, axis=1), np.any(masks, axis=2)
    starts = [np.argmax(it, axis=1) for it in (columns, rows)]
    stops = [it.shape[1] - np.argmax(it[:, ::-1], axis=1) for it in (columns, rows)]
    return np.stack([*starts, *stops], axis=1).astype("float32")


def encode_mask(mask: np.ndarray) -> dict:
    """COCO's compressed RLE of a mask (height, width) bool: {"size": [height, width], "counts": string}.

    >>> import numpy as np
    >>> from keras_resnet.data.masks import encode_mask
    >>> encode_mask(np.eye(2, dtype=bool))
    {'size': [2, 2], 'counts': '0120'}
    """
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels, prepend=False))
    runs = np.diff(changes, prepend=0, append=pixels.size)
    runs[3:] -= runs[1:-2].copy()
    return {"size": list(mask.shape), "counts": "".join(map(_run_text, runs.tolist()))}


def _run_text(number):
    """The characters of a number in a compressed RLE, see `_run_lengths`."""
    text, is_last = "", False
    while not is_last:
        bits, number = number & 31, number >> 5
        is_last = number == (-1 if bits & 16 else 0)
        text += chr(48 + bits + (0 if is_last else 32))
    return text


def paste_mask(probabilities: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """Mask of an object in the part of the image around its box, from the probabilities in the box.

    They are padded with a zero on each side, resized bilinearly to the box, which grows accordingly and is truncated to
    integers, and thresholded at MASK_THRESHOLD: torchvision/models/detection/roi_heads.py.

    >>> import numpy as np
    >>> from keras_resnet.data.masks import paste_mask
    >>> top, left, mask = paste_mask(np.ones((28, 28), "float32"), np.array([2, 1, 5, 3], "float32"), (4, 6))
    >>> top, left, mask.astype(int).tolist()
    (0, 1, [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]])

    Args:
        probabilities: (M, M) float32, of the box's pixels.
        box: (4,) float32, (x1, y1, x2, y2) in pixels of the image.
        size: height and width of the image.

    Returns:
        The first row and column of the part, and its mask (h, w) bool. All other pixels of the image are False.
    """
    padded = np.pad(probabilities, 1)
    box = np.asarray(box, "float32")
    centre, half = (box[:2] + box[2:]) * 0.5, (box[2:] - box[:2]) * 0.5 * (len(padded) / len(probabilities))
    left, top = (centre - half).astype(int)
    sides = np.maximum((centre + half).astype(int) - (left, top) + 1, 1)
    columns, rows = (
        _bilinear_weights(len(padded), side, range(max(first, 0), min(first + side, limit)), first)
        for first, side, limit in zip((left, top), sides, size[::-1], strict=True)
    )
    return max(top, 0), max(left, 0), rows @ padded @ columns.T > MASK_THRESHOLD


def _bilinear_weights(count, new_count, positions, first):
    """(len(positions), count): weights that interpolate some of `new_count` pixels, which start at `first`."""
    centres = (np.array(positions) - first + 0.5) * (count / new_count) - 0.5
    centres = np.clip(centres, 0, count - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(count))).astype("float32")


def check_segmentation(segmentation: list | dict, size: tuple[int, int]) -> None:
    """Raises ValueError for a value that is not polygons or an RLE inside an image of a height and width.

    Nothing is rasterised.
    """
    if isinstance(segmentation, dict):
        _check_rle(segmentation, size)
    elif isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            _check_polygon(polygon, size)
    else:
        raise value_error("segmentation", segmentation, "a list of polygons, or an object with size and counts")


def _check_rle(rle, size):
    if rle.get("size") != list(size):
        raise value_error("segmentation.size", rle.get("size"), f"the height and width of the image, {list(size)}")
    runs, pixels = _run_lengths(rle), size[0] * size[1]
    are_lengths = isinstance(runs, list) and all(type(run) is int and 0 <= run <= pixels for run in runs)
    if not are_lengths or sum(runs) != pixels:
        expected = f"lengths of runs of {pixels} pixels in all, or COCO's compressed string of them"
        raise value_error("segmentation.counts", rle.get("counts"), expected)


def _run_lengths(rle):
    """The `counts` of an RLE as a list, or None for a string that COCO does not write; other values as they are.

    In a string, a character has five bits of a number, the lowest first, and one that is set unless they are the
    highest; its code in ASCII is 48 more than these six bits. From the fourth on, numbers are differences from the last
    but one (rleToString in pycocotools' maskApi.c).
    """
    text = rle.get("counts")
    if not isinstance(text, str):
        return text
    codes = np.frombuffer(text.encode("utf-8", "surrogatepass"), "uint8").astype("int64") - 48
    is_last = codes & 32 == 0
    if not text or not is_last[-1] or not ((codes >= 0) & (codes < 64)).all():
        return None
    ends = np.flatnonzero(is_last)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > RUN_CHARACTERS:
        return None
    starts = ends + 1 - lengths
    places = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    is_negative = codes[ends] & 16 > 0
    runs = np.add.reduceat((codes & 31) << places, starts) - (is_negative.astype("int64") << 5 * lengths)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs.tolist()


def _check_polygon(polygon, size):
    is_flat = isinstance(polygon, list) and all(type(number) in (int, float) for number in polygon)
    if not is_flat or len(polygon) < 6 or len(polygon) % 2:
        raise value_error("segmentation", polygon, "polygons of x and y of three points or more")
    limits = cycle((size[1] + TOLERANCE, size[0] + TOLERANCE))  # Python compares integers of any length
    if not all(-TOLERANCE <= number <= limit for number, limit in zip(polygon, limits, strict=False)):
        raise value_error("segmentation", polygon, f"polygons inside the image of {size[1]} x {size[0]} pixels")
