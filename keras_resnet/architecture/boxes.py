"""Boxes as tensors (..., 4), (x1, y1, x2, y2) in pixels: offsets, clipping, overlap, non-maximum suppression."""

import math

import keras
from keras import ops

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

MAX_LOG_SCALE = math.log(1000 / 16)
"""Largest logarithm by which an offset enlarges a box (torchvision/models/detection/_utils.py)."""

_COLUMNS = 10
"""Groups along the first axis when boxes are shifted apart; ten rows of them are enough for COCO's classes."""


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


def unstack(boxes):
    """[x1, y1, x2, y2] of boxes (..., 4)."""
    return [boxes[..., side] for side in range(4)]


def clip_boxes(boxes, sizes):
    """Boxes (B, ..., 4) without what is outside of their images; sizes: (B, 2), height and width of each image."""
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
    a, b = unstack(boxes), unstack(others)
    a, b = [side[..., :, None] for side in a], [side[..., None, :] for side in b]
    width = ops.minimum(a[2], b[2]) - ops.maximum(a[0], b[0])
    height = ops.minimum(a[3], b[3]) - ops.maximum(a[1], b[1])
    intersection = ops.maximum(width, 0.0) * ops.maximum(height, 0.0)
    union = box_area(boxes)[..., :, None] + box_area(others)[..., None, :] - intersection
    return ops.where(intersection > 0, intersection / ops.where(union > 0, union, 1.0), 0.0)


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
        Indices (B, K), by descending score, and whether they are valid, (B, K) booleans: places beyond the number of
        boxes kept have index 0.
    """
    if groups is not None:
        kept = ops.where(scores[..., None] >= 0, boxes, 0.0)
        shift = ops.max(kept, axis=(1, 2), keepdims=True) + 1
        place = ops.stack([groups % _COLUMNS, groups // _COLUMNS] * 2, axis=-1)
        boxes = boxes + ops.cast(place, boxes.dtype) * shift
    suppress = _suppress_by_kernel if keras.backend.backend() == "tensorflow" else _suppress_by_matrix
    indices, kept = _map_images(lambda image: suppress(*image, threshold, count), (boxes, scores))
    valid = ops.arange(count)[None] < kept[:, None]
    return ops.where(valid, indices, 0), valid


def _map_images(function, values):
    """`function` of the values of each image, stacked; without a loop for a batch of one image."""
    if values[0].shape[0] == 1:
        return [result[None] for result in function([value[0] for value in values])]
    return ops.map(function, values)


def _suppress_by_kernel(boxes, scores, threshold, count):
    """(N, 4), (N,) -> indices (count,) and the number of boxes kept, by TensorFlow's kernel."""
    indices, _, kept = tf.raw_ops.NonMaxSuppressionV5(
        boxes=boxes,
        scores=scores,
        max_output_size=count,
        iou_threshold=threshold,
        score_threshold=-0.5,  # scores are negative or probabilities
        soft_nms_sigma=0.0,
        pad_to_max_output_size=True,
    )
    return indices, kept


def _suppress_by_matrix(boxes, scores, threshold, count):
    """The same in `keras.ops`: "kept unless a better one that is kept overlaps" is repeated until nothing changes."""
    order = ops.flip(ops.argsort(ops.flip(scores)))  # descending; of equal scores the first
    overlaps = ops.triu(box_iou(*(ops.take(boxes, order, axis=0),) * 2) > threshold, k=1)
    valid = ops.take(scores, order) >= 0

    def improve(kept, _):
        suppressed = ops.any(ops.logical_and(overlaps, kept[:, None]), axis=0)
        better = ops.logical_and(valid, ops.logical_not(suppressed))
        return better, ops.any(ops.not_equal(better, kept))

    kept, _ = ops.while_loop(lambda kept, changed: changed, improve, (valid, ops.any(valid)))
    places = ops.argsort(ops.where(kept, 0, 1))  # stable: those kept come first, in their order
    missing = max(0, count - places.shape[0])
    indices = ops.pad(ops.take(order, places), [(0, missing)])[:count]
    return ops.cast(indices, "int32"), ops.minimum(ops.sum(ops.cast(kept, "int32")), count)
