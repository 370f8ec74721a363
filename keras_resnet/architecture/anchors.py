"""Anchors: the boxes of fixed sizes around each position of a feature map, to which detectors predict offsets."""

import numpy as np
from keras import ops


def cell_anchors(sizes: tuple[int, ...], ratios: tuple[float, ...]) -> np.ndarray:
    """Anchors around the origin, with corners at whole pixels: (len(ratios) * len(sizes), 4) float32.

    >>> cell_anchors((32,), (1.0, 2.0)).tolist()
    [[-16.0, -16.0, 16.0, 16.0], [-11.0, -23.0, 11.0, 23.0]]

    Args:
        sizes: square roots of the areas, in pixels.
        ratios: heights divided by widths; the sizes of the first ratio come first.

    Source: torchvision/models/detection/anchor_utils.py.
    """
    scales = np.asarray(sizes, "float32")
    heights = np.sqrt(np.asarray(ratios, "float32"))
    widths = np.outer(1 / heights, scales).ravel()
    heights = np.outer(heights, scales).ravel()
    return np.round(np.stack([-widths, -heights, widths, heights], axis=1) / 2).astype("float32")


def grid_anchors(cell, map_size, image_size):
    """Anchors at each position of a feature map: (h * w * A, 4) float32, ordered by row, column and anchor.

    Args:
        cell: (A, 4), those of `cell_anchors`.
        map_size: (h, w) of the feature map.
        image_size: (H, W) of the padded images; the strides are H // h and W // w pixels.
    """
    strides = [image // side for image, side in zip(image_size, map_size, strict=True)]
    y, x = (ops.cast(ops.arange(side) * stride, "float32") for side, stride in zip(map_size, strides, strict=True))
    y, x = ops.meshgrid(y, x, indexing="ij")
    shifts = ops.stack([x, y, x, y], axis=-1)
    return ops.reshape(shifts[:, :, None] + ops.convert_to_tensor(cell), (-1, 4))
