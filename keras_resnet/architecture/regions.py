"""RoIAlign: the features in boxes of any size, sampled from the levels of a feature pyramid."""

import itertools

import keras
from keras import ops

from keras_resnet.architecture.boxes import box_area, unstack

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

SAMPLES = 2
"""Sampling points of a cell along each axis (torchvision/models/detection/faster_rcnn.py)."""


def pyramid_level(boxes, first, last):
    """Level in which a box is sampled (Lin et al. 2016, arXiv:1612.03144, eq. 1): (..., 4) -> (...,) int32.

    A box of 224x224 pixels is sampled in level 4; those of half its side one level below.
    """
    side = ops.sqrt(ops.maximum(box_area(boxes), 0.0))
    level = ops.floor(4 + ops.log2(ops.maximum(side, 1e-8) / 224) + 1e-6)
    return ops.cast(ops.clip(level, first, last), "int32")


def align_regions(maps, boxes, image, first_level, size):
    """Features in boxes, by bilinear interpolation (He et al. 2017, arXiv:1703.06870): (R, size, size, C).

    As `torchvision.ops.MultiScaleRoIAlign` with two samples a cell along each axis: the mean of four points.

    Args:
        maps: feature maps (B, h, w, C), of strides 2**first_level, 2**(first_level + 1), ...
        boxes: (R, 4) in pixels of the images.
        image: (R,), index of each box's image in the batch.
        first_level: level of the first map.
        size: cells along each side of a box.
    """
    level = pyramid_level(boxes, first_level, first_level + len(maps) - 1) - first_level
    align = _align_by_kernel if keras.backend.backend() == "tensorflow" else _align_by_gather
    return align(maps, boxes, image, level, first_level, size)


def _first_and_last_samples(boxes, stride, size):
    """(y1, x1, y2, x2) of the outer sampling points, in pixels of a map; boxes have sides of 1 or more there."""
    x1, y1, x2, y2 = unstack(boxes / stride)
    points = size * SAMPLES
    step_y, step_x = ops.maximum(y2 - y1, 1.0) / points, ops.maximum(x2 - x1, 1.0) / points
    y, x = y1 + step_y / 2, x1 + step_x / 2
    return y, x, y + (points - 1) * step_y, x + (points - 1) * step_x


def _align_by_kernel(maps, boxes, image, level, first_level, size):
    """Samples each map where boxes belong to it, with one gather of the boxes at the end."""
    regions, places = [], []
    for number, level_map in enumerate(maps):
        where = tf.where(level == number)[:, 0] if len(maps) > 1 else tf.range(tf.shape(boxes)[0])
        samples = _first_and_last_samples(tf.gather(boxes, where), 2.0 ** (first_level + number), size)
        padded = tf.pad(level_map, [(0, 0), (1, 1), (1, 1), (0, 0)], "SYMMETRIC")  # points up to 1 pixel outside
        regions.append(_mean_of_points(padded, [side + 1 for side in samples], tf.gather(image, where), size))
        places.append(where)
    if len(maps) == 1:
        return regions[0]
    order = tf.math.invert_permutation(tf.cast(tf.concat(places, 0), "int32"))
    return tf.gather(tf.concat(regions, 0), order)


def _mean_of_points(level_map, samples, image, size):
    """Mean of the four points of each cell: a crop for each of them takes less memory than one crop of all points.

    It also needs no pooling, which OpenVINO cannot compute for a level without boxes.
    """
    height, width = (tf.cast(side - 1, "float32") for side in tf.unstack(tf.shape(level_map)[1:3]))
    y1, x1, y2, x2 = samples
    steps = size * SAMPLES - 1
    step_y, step_x = (y2 - y1) / steps, (x2 - x1) / steps
    crops = []
    for y, x in itertools.product(range(SAMPLES), repeat=2):
        top, bottom = y1 + y * step_y, y2 - (SAMPLES - 1 - y) * step_y
        left, right = x1 + x * step_x, x2 - (SAMPLES - 1 - x) * step_x
        grid = tf.stack([top / height, left / width, bottom / height, right / width], axis=-1)
        crops.append(tf.image.crop_and_resize(level_map, grid, image, [size, size]))
    return tf.add_n(crops) / len(crops)


def _align_by_gather(maps, boxes, image, level, first_level, size):
    """The same in `keras.ops`: the pixels of all maps are one list; the four neighbours of each point are taken."""
    channels, points = maps[0].shape[-1], size * SAMPLES
    pixels = ops.concatenate([ops.reshape(level_map, (-1, channels)) for level_map in maps])
    shapes = [ops.shape(level_map)[1:3] for level_map in maps]
    heights, widths = (ops.take(ops.convert_to_tensor(sides), level) for sides in zip(*shapes, strict=True))
    starts, start = [], 0
    for level_map in maps:
        starts.append(start)
        start += level_map.shape[0] * level_map.shape[1] * level_map.shape[2]
    start = ops.take(ops.convert_to_tensor(starts), level) + image * heights * widths
    y1, x1, y2, x2 = _first_and_last_samples(boxes, ops.cast(2 ** (first_level + level), "float32")[:, None], size)
    share = ops.arange(points, dtype="float32") / (points - 1)
    rows = _neighbours(y1[:, None] + (y2 - y1)[:, None] * share, heights[:, None])
    columns = _neighbours(x1[:, None] + (x2 - x1)[:, None] * share, widths[:, None])
    total = 0.0
    for y, weight_y in rows:
        for x, weight_x in columns:
            place = start[:, None, None] + y[:, :, None] * widths[:, None, None] + x[:, None, :]
            total = total + ops.take(pixels, place, axis=0) * (weight_y[:, :, None] * weight_x[:, None, :])[..., None]
    cells = ops.reshape(total, (-1, size, SAMPLES, size, SAMPLES, channels))
    return ops.mean(cells, axis=(2, 4))


def _neighbours(position, side):
    """[(index, weight), (index, weight)] of the two pixels around points; zero weights more than 1 pixel outside."""
    limit = ops.cast(side, "float32")
    inside = ops.logical_and(position >= -1, position <= limit)
    position = ops.clip(position, 0.0, limit - 1)
    low = ops.floor(position)
    share = position - low
    weights = (ops.where(inside, 1 - share, 0.0), ops.where(inside, share, 0.0))
    low = ops.cast(low, "int32")
    return list(zip((low, ops.minimum(low + 1, side - 1)), weights, strict=True))
