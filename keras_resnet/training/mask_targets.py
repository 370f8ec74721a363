"""Targets of the mask head: true masks in boxes, as torchvision's RoIAlign samples them."""

from keras import ops

from keras_resnet.architecture.boxes import unstack


def mask_targets(masks, boxes, indices, size):
    """RoIAlign of one mask for each box, with as many samples in a cell as it has pixels: (R, size, size).

    The weights of rows and of columns are separate matrices, so that a target is a product of three.

    Args:
        masks: (M, H, W), numbers from 0 to 1.
        boxes: (R, 4) in pixels of the masks.
        indices: (R,), of the mask of each box.
        size: cells along each side of a box.

    Source: torchvision/models/detection/roi_heads.py, `project_masks_on_boxes`.
    """
    height, width = ops.shape(masks)[1:]
    x1, y1, x2, y2 = unstack(boxes)
    rows, columns = _cell_weights(y1, y2, height, size), _cell_weights(x1, x2, width, size)

    def target(box):
        index, rows, columns = box
        mask = ops.cast(ops.take(masks, index, axis=0), "float32")
        return ops.matmul(ops.matmul(rows, mask), ops.transpose(columns))

    return ops.map(target, (indices, rows, columns))


def _cell_weights(start, end, side, size):
    """Weights of the pixels in the cells of boxes along one axis: (R, size, side).

    A cell is the mean of ceil(length / size) points, each interpolated between two pixels; those more than a pixel
    outside are zero.
    """
    length = ops.maximum(end - start, 1.0)
    points = ops.ceil(length / size)
    point = ops.arange((side + size - 1) // size, dtype="float32")
    share = (point + 0.5) / points[:, None]
    cell = (length / size)[:, None, None]
    position = start[:, None, None] + cell * (ops.arange(size, dtype="float32")[:, None] + share[:, None])
    limit = ops.cast(side, "float32")
    counts = ops.logical_and(position >= -1, position <= limit)
    counts = ops.logical_and(counts, (point < points[:, None])[:, None])
    weight = ops.where(counts, 1 / points[:, None, None], 0.0)
    position = ops.clip(position, 0.0, limit - 1)
    low = ops.floor(position)
    part = position - low
    index = ops.cast(low, "int32")
    weights = ops.stack([weight * (1 - part), weight * part], axis=-1)
    pixels = ops.stack([index, ops.minimum(index + 1, side - 1)], axis=-1)
    cells = ops.shape(start)[0] * size
    pixels = ops.reshape(pixels, (cells, -1)) + side * ops.arange(cells)[:, None]
    sums = ops.segment_sum(ops.reshape(weights, (-1,)), ops.reshape(pixels, (-1,)), num_segments=cells * side)
    return ops.reshape(sums, (-1, size, side))
