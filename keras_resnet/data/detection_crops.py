"""Crops of training images for detectors: which part of an image is used, and its size after resizing.

The functions of crops take:

    size: height and width of the image.
    boxes: (N, 4), those of its objects, (x1, y1, x2, y2) in pixels of the image.
    preprocessing: DetectionPreprocessing with the sizes of training.
    scale: of the recipe.
    random: numpy.random.Generator.

They return a ResizedCrop.
"""

from dataclasses import dataclass, replace

import numpy as np

from keras_resnet.data.detection_preprocessing import resize_bilinearly

MINIMUM_OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, None)
"""`overlap_crop`: the intersection over union that one of the objects should have with the crop; None: no crop."""
ATTEMPTS = 40
"""`overlap_crop`: attempts to find a crop for one of MINIMUM_OVERLAPS."""
ASPECT_RATIOS = (0.5, 2.0)
"""`overlap_crop`: smallest and largest ratio of width to height."""


@dataclass(frozen=True)
class ResizedCrop:
    """A part of an image, resized and perhaps mirrored; how pixels, boxes and masks change by it.

    >>> import numpy as np
    >>> from keras_resnet.data.detection_crops import ResizedCrop
    >>> crop = ResizedCrop((10, 0, 30, 20), (40, 40), flip=True)
    >>> crop.resize_boxes(np.array([[10.0, 5.0, 15.0, 25.0]]))
    array([[30., 10., 40., 40.]], dtype=float32)
    """

    box: tuple[float, float, float, float]
    """(x1, y1, x2, y2) in pixels of the image, within it."""
    size: tuple[int, int]
    """Height and width after resizing."""
    antialias: bool = False
    """Whether pixels are averaged when the image becomes smaller; detectors are tested without."""
    only_centres: bool = False
    """Whether objects are left out whose centre is outside."""
    flip: bool = False
    """Whether it is mirrored."""

    def resize_image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) float32 -> (h, w, 3) float32, bilinearly; pixels around the box contribute to its edges."""
        if self.antialias:
            resized = _resize_antialiased(image, self.box, self.size)
        else:
            resized = resize_bilinearly(image, self.size, self.box)
        return resized[:, ::-1] if self.flip else resized

    def resize_mask(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) -> (h, w): the values at the nearest pixels."""
        x1, y1, x2, y2 = self.box
        rows, columns = (
            (start + (np.arange(side) + 0.5) * ((stop - start) / side)).astype(int)
            for start, stop, side in ((y1, y2, self.size[0]), (x1, x2, self.size[1]))
        )
        return mask[np.ix_(rows, columns[::-1] if self.flip else columns)]

    def resize_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) -> (N, 4) float32 in pixels of the result, clipped to it, by the ratio of sides of each axis."""
        x1, y1, x2, y2 = self.box
        height, width = self.size
        limits = np.array([width, height, width, height], "float64")
        moved = (boxes - np.array([x1, y1, x1, y1])) * (limits / ([x2 - x1, y2 - y1] * 2))
        moved = np.clip(moved, 0, limits)
        if self.flip:
            moved = np.stack([width - moved[:, 2], moved[:, 1], width - moved[:, 0], moved[:, 3]], axis=1)
        return moved.astype("float32")

    def keeps(self, boxes: np.ndarray) -> np.ndarray:
        """(N,) bool: whether an object with this box is still in the image, with an area."""
        resized = self.resize_boxes(boxes)
        has_area = np.all(resized[:, 2:] > resized[:, :2], axis=1)
        return np.logical_and(has_area, not self.only_centres or _centres_inside(boxes, self.box))

    def cuts(self, boxes: np.ndarray) -> np.ndarray:
        """(N,) bool: whether a part of the box is outside."""
        outside = np.concatenate([boxes[:, :2] < self.box[:2], boxes[:, 2:] > self.box[2:]], axis=1)
        return np.any(outside, axis=1)


def whole_image(size, boxes, preprocessing, scale, random):
    """The whole image in the size of test images."""
    return ResizedCrop((0, 0, size[1], size[0]), preprocessing.resized(*size))


def shorter_side_jitter(size, boxes, preprocessing, scale, random):
    """The whole image, its shorter side of a random length: the preprocessing's `min_size` times scale[0] to scale[1].

    The longer side is limited as in testing, as by torchvision's RandomShortestSize.
    """
    low, high = (max(1, round(preprocessing.min_size * factor)) for factor in scale)
    shorter = int(random.integers(low, high, endpoint=True))
    return whole_image(size, boxes, replace(preprocessing, min_size=shorter), scale, random)


def large_scale_jitter(size, boxes, preprocessing, scale, random):
    """The image resized by a random factor and cropped to a square, if it is larger (arXiv:2012.07177).

    A factor of 1 fits the image into the square, whose side is the preprocessing's `min_size`. A smaller image is
    padded as every image in a batch. Source: torchvision's ScaleJitter and FixedSizeCrop, which has one random number
    for the position on both axes.
    """
    side, sides = preprocessing.min_size, np.array(size)
    resized = np.maximum(1, (sides * (random.uniform(*scale) * side / sides.max())).astype(int))
    cropped = np.minimum(resized, side)
    corner = random.integers(0, resized - cropped, endpoint=True)
    top, left, bottom, right = (np.concatenate([corner, corner + cropped]) * np.tile(sides / resized, 2)).tolist()
    return ResizedCrop((left, top, right, bottom), tuple(cropped.tolist()), antialias=True)


def overlap_crop(size, boxes, preprocessing, scale, random):
    """A random part of the image that an object overlaps by a random minimum (SSD, arXiv:1512.02325, sec. 2.2).

    Each side is scale[0] to scale[1] of the image's; objects whose centre is outside are left out. Sampled as by
    torchvision's RandomIoUCrop.
    """
    sides = np.array(size[::-1])
    while (minimum := MINIMUM_OVERLAPS[random.integers(len(MINIMUM_OVERLAPS))]) is not None:
        for _ in range(ATTEMPTS):
            cropped = (sides * random.uniform(*scale, 2)).astype(int)
            corner = ((sides - cropped) * random.random(2)).astype(int)
            box = (*corner.tolist(), *(corner + cropped).tolist())
            if not cropped.all() or not ASPECT_RATIOS[0] <= cropped[0] / cropped[1] <= ASPECT_RATIOS[1]:
                continue
            inside = boxes[_centres_inside(boxes, box)]
            if len(inside) and _overlaps(inside, box).max() >= minimum:
                return ResizedCrop(box, preprocessing.resized(*cropped[::-1].tolist()), only_centres=True)
    return whole_image(size, boxes, preprocessing, scale, random)


def _centres_inside(boxes, box):
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres > box[:2]) & (centres < box[2:])).all(axis=1)


def _overlaps(boxes, box):
    """(N,): intersection over union of each of the boxes with a box."""
    corners = np.array(box, "float64")
    shared = np.clip(np.minimum(boxes[:, 2:], corners[2:]) - np.maximum(boxes[:, :2], corners[:2]), 0, None)
    intersection, areas = shared.prod(axis=1), (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return intersection / (areas + (corners[2:] - corners[:2]).prod() - intersection)


def _resize_antialiased(image, box, size):
    from PIL import Image

    channels = (Image.fromarray(np.ascontiguousarray(image[..., channel])) for channel in range(image.shape[2]))
    resized = [channel.resize(size[::-1], Image.Resampling.BILINEAR, box) for channel in channels]
    return np.stack(resized, axis=-1)
