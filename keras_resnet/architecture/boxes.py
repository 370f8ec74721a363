"""Boxes as tensors (..., 4), (x1, y1, x2, y2) in pixels: offsets, clipping, overlap, non-maximum suppression."""

import math

import keras
import numpy as np
from keras import ops

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

MAX_LOG_SCALE = math.log(1000 / 16)
"""Largest logarithm of the factor by which a box becomes wider or higher (torchvision/models/detection/_utils.py)."""

_COLUMNS = 10
"""Columns of the grid on which groups of boxes are shifted apart; ten rows are enough for COCO's classes."""

_EPSILON = 1e-7
"""Added to areas by which generalized IoU divides (torchvision/ops/giou_loss.py)."""


def decode_boxes(deltas, boxes, weights=(1.0, 1.0, 1.0, 1.0)):
    """Boxes moved and scaled by predicted offsets (Girshick et al. 2014, arXiv:1311.2524, appendix C).

    Args:
        deltas: (..., 4): shift of the centre in widths and heights, and logarithms of the changes of width and height.
        boxes: (..., 4), to which the offsets are relative.
        weights: factors by which the four offsets were multiplied in training.
    """
    dx, dy, dw, dh = (ops.squeeze(part, -1) / w for part, w in zip(ops.split(deltas, 4, -1), weights, strict=True))
    x1, y1, x2, y2 = unstack(boxes)
    width, height = x2 - x1, y2 - y1
    x, y = dx * width + x1 + 0.5 * width, dy * height + y1 + 0.5 * height
    half_width = 0.5 * ops.exp(ops.minimum(dw, MAX_LOG_SCALE)) * width
    half_height = 0.5 * ops.exp(ops.minimum(dh, MAX_LOG_SCALE)) * height
    return ops.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)


def encode_boxes(targets, boxes, weights=(1.0, 1.0, 1.0, 1.0)):
    """Offsets (..., 4) by which `decode_boxes` makes `targets` of `boxes`: its inverse.

    Args:
        targets: (..., 4), boxes with positive sides.
        boxes: (..., 4), likewise.
        weights: factors by which the four offsets are multiplied.
    """
    (x1, y1, x2, y2), (left, top, right, bottom) = unstack(targets), unstack(boxes)
    width, height = right - left, bottom - top
    dx = weights[0] * (x1 + 0.5 * (x2 - x1) - (left + 0.5 * width)) / width
    dy = weights[1] * (y1 + 0.5 * (y2 - y1) - (top + 0.5 * height)) / height
    dw, dh = weights[2] * ops.log((x2 - x1) / width), weights[3] * ops.log((y2 - y1) / height)
    return ops.stack([dx, dy, dw, dh], axis=-1)


def unstack(boxes):
    """[x1, y1, x2, y2] of boxes (..., 4)."""
    return [boxes[..., side] for side in range(4)]


def clip_boxes(boxes, sizes):
    """Boxes (B, ..., 4) clipped to their images; sizes: (B, 2), height and width of each image."""
    shape = (-1, *(1,) * (len(boxes.shape) - 2))
    height, width = ops.reshape(sizes[:, 0], shape), ops.reshape(sizes[:, 1], shape)
    x1, y1, x2, y2 = unstack(boxes)
    x1, x2 = (ops.clip(x, 0.0, width) for x in (x1, x2))
    y1, y2 = (ops.clip(y, 0.0, height) for y in (y1, y2))
    return ops.stack([x1, y1, x2, y2], axis=-1)


def has_sides(boxes, minimum):
    """Whether both sides of boxes (..., 4) are at least `minimum` pixels."""
    x1, y1, x2, y2 = unstack(boxes)
    return ops.logical_and(x2 - x1 >= minimum, y2 - y1 >= minimum)


def box_area(boxes):
    """Areas (...,) of boxes (..., 4)."""
    x1, y1, x2, y2 = unstack(boxes)
    return (x2 - x1) * (y2 - y1)


def box_iou(boxes, others):
    """Intersection over union of all pairs of boxes (..., N, 4) and (..., M, 4): (..., N, M)."""
    boxes, others = ops.convert_to_tensor(boxes), ops.convert_to_tensor(others)
    a, b = unstack(boxes), unstack(others)
    a, b = [side[..., :, None] for side in a], [side[..., None, :] for side in b]
    width = ops.minimum(a[2], b[2]) - ops.maximum(a[0], b[0])
    height = ops.minimum(a[3], b[3]) - ops.maximum(a[1], b[1])
    intersection = ops.maximum(width, 0.0) * ops.maximum(height, 0.0)
    union = box_area(boxes)[..., :, None] + box_area(others)[..., None, :] - intersection
    return ops.where(intersection > 0, intersection / ops.where(union > 0, union, 1.0), 0.0)


def generalized_iou(boxes, others):
    """Generalized IoU of boxes (..., 4) with `others` (..., 4), one by one: (...,), from -1 to 1.

    The intersection over union, less the share of the smallest box around both that neither covers (Rezatofighi et
    al. 2019, arXiv:1902.09630). Its gradient also brings boxes together that do not overlap.
    """
    a, b = unstack(boxes), unstack(others)
    inner = [ops.maximum(a[0], b[0]), ops.maximum(a[1], b[1]), ops.minimum(a[2], b[2]), ops.minimum(a[3], b[3])]
    outer = [ops.minimum(a[0], b[0]), ops.minimum(a[1], b[1]), ops.maximum(a[2], b[2]), ops.maximum(a[3], b[3])]
    overlap = ops.logical_and(inner[2] > inner[0], inner[3] > inner[1])
    intersection = ops.where(overlap, (inner[2] - inner[0]) * (inner[3] - inner[1]), 0.0)
    union = box_area(boxes) + box_area(others) - intersection
    around = (outer[2] - outer[0]) * (outer[3] - outer[1])
    return intersection / (union + _EPSILON) - (around - union) / (around + _EPSILON)


def vote_boxes(boxes, others, scores, threshold):
    """Mean of the boxes around each box, weighted by their scores (Gidaris & Komodakis 2015, arXiv:1505.01749, sec. 5).

    Args:
        boxes: (..., N, 4), as non-maximum suppression left them.
        others: (..., N, M, 4): for each of them, the boxes of its class, including itself.
        scores: (..., N, M), scores of `others`; negative ones have no weight.
        threshold: smallest intersection over union of a box that votes.

    Returns:
        (..., N, 4); a box without votes is unchanged.
    """
    overlaps = box_iou(boxes[..., None, :], others)[..., 0, :]
    weights = ops.where(overlaps >= threshold, ops.maximum(scores, 0.0), 0.0)[..., None]
    total = ops.sum(weights, axis=-2)
    voters = ops.where(weights > 0, others, 0.0)  # without NaN, which stays NaN with a weight of zero
    return ops.where(total > 0, ops.sum(weights * voters, axis=-2) / ops.where(total > 0, total, 1.0), boxes)


def gather_rows(values, indices):
    """values[b, indices[b, k]] for each image b of the batch: (B, N, ...), (B, K) -> (B, K, ...)."""
    batch, count = ops.shape(values)[:2]
    flat = ops.reshape(values, (-1, *values.shape[2:]))
    return ops.take(flat, indices + count * ops.arange(batch, dtype=indices.dtype)[:, None], axis=0)


def top_scores(scores, count):
    """The highest scores and their indices, in descending order; all of them, if there are fewer than `count`."""
    available = ops.shape(scores)[-1]
    return ops.top_k(scores, min(count, available) if isinstance(available, int) else ops.minimum(count, available))


def suppress_overlaps(boxes, scores, threshold, count, groups=None):
    """Non-maximum suppression: indices of the best boxes of which no two overlap by more than `threshold`.

    As `torchvision.ops.batched_nms`: boxes of different groups are shifted apart, so that they do not overlap. They are
    shifted along both axes, because boxes far from the origin are rounded more, and then overlap more or less.

    Args:
        boxes: (B, N, 4).
        scores: (B, N); boxes with negative scores are ignored.
        threshold: largest intersection over union.
        count: largest number of boxes to keep, K.
        groups: integers (B, N), such as class numbers, or None for one group.

    Returns:
        Indices (B, K) int32, by descending score, and whether they are valid, (B, K) booleans: entries beyond the
        number of boxes kept have index 0.
    """
    if groups is not None:
        kept = ops.where(scores[..., None] >= 0, boxes, 0.0)
        shift = ops.max(kept, axis=(1, 2), keepdims=True) + 1
        place = ops.stack([groups % _COLUMNS, groups // _COLUMNS] * 2, axis=-1)
        boxes = boxes + ops.cast(place, boxes.dtype) * shift
    boxes, scores = ops.stop_gradient(boxes), ops.stop_gradient(scores)  # loops have no gradient on JAX
    suppress = _suppress_by_kernel if keras.backend.backend() == "tensorflow" else _suppress_one_by_one
    indices, kept = suppress(boxes, scores, _round_down(threshold), count)
    valid = ops.arange(count)[None] < kept[:, None]
    return ops.where(valid, indices, 0), valid


def _round_down(threshold):
    """The largest float32 that is not larger: `iou > threshold` is then as for torch, which compares in float64."""
    nearest = np.float32(threshold)
    return float(nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-1)))


def _suppress_by_kernel(boxes, scores, threshold, count):
    """(B, N, 4), (B, N) -> indices (B, count) and the numbers of boxes kept (B,), by TensorFlow's kernel."""
    boxes = _separate_empty(boxes)

    def suppress(image):
        indices, _, kept = tf.raw_ops.NonMaxSuppressionV5(
            boxes=image[0],
            scores=image[1],
            max_output_size=count,
            iou_threshold=threshold,
            score_threshold=-0.5,  # ignored boxes have negative scores, the others probabilities
            soft_nms_sigma=0.0,
            pad_to_max_output_size=True,
        )
        return indices, kept

    if boxes.shape[0] == 1:
        return [result[None] for result in suppress((boxes[0], scores[0]))]
    return ops.map(suppress, (boxes, scores))


def _separate_empty(boxes):
    """Boxes (B, N, 4) of which those without an area are replaced by others outside the images, each at its own place.

    Neither overlap anything, but LiteRT's kernel selects a box again and again if it does not overlap itself.
    """
    number = ops.cumsum(ops.ones_like(boxes[..., :1]), axis=1)
    return ops.where(box_area(boxes)[..., None] > 0, boxes, -2.0 * number + ops.array([0.0, 0.0, 1.0, 1.0]))


def _suppress_one_by_one(boxes, scores, threshold, count):
    """The same in `keras.ops`: takes the best box and drops those that overlap it, `count` times; no N x N matrix."""
    places = ops.arange(count)[None]

    def take_best(number, scores, indices, kept):
        best = ops.argmax(scores, axis=1)[:, None]  # of equal scores the first
        found = ops.take_along_axis(scores, best, axis=1) >= 0
        overlaps = box_iou(gather_rows(boxes, best), boxes)[:, 0] > threshold
        dropped = ops.logical_or(overlaps, ops.arange(scores.shape[1])[None] == best)
        indices = ops.where(places == number, ops.cast(best, "int32"), indices)
        return number + 1, ops.where(dropped, -1.0, scores), indices, kept + ops.cast(found[:, 0], "int32")

    def is_left(number, scores, indices, kept):
        return ops.logical_and(number < count, ops.any(scores >= 0))

    batch = boxes.shape[0]
    start = (0, scores, ops.zeros((batch, count), "int32"), ops.zeros((batch,), "int32"))
    return ops.while_loop(is_left, take_best, start)[2:]
