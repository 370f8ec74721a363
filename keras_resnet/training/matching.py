"""Matching of anchors and proposals with the true boxes of their images, and random samples of them."""

from dataclasses import dataclass

import keras
from keras import ops

from keras_resnet.architecture.boxes import box_iou, gather_rows
from keras_resnet.architecture.detector_spec import Count, Share
from keras_resnet.schema import check_fields

BACKGROUND, IGNORED = -1, -2
"""Instead of the index of a true box: of boxes that overlap none, and of boxes that are not trained."""


@dataclass(frozen=True)
class Sampling:
    """Which anchors or proposals are trained, and as what (torchvision/models/detection/_utils.py).

    >>> Sampling(foreground=0.7, background=0.3, samples=256).positive_share
    0.5
    """

    foreground: Share
    """Smallest overlap (IoU) with a true box of a box that is trained to find it."""
    background: Share
    """Boxes with smaller overlaps are background; those between the two are not trained."""
    low_quality: bool = False
    """Whether the boxes that overlap a true box the most are trained to find it, however little they overlap it."""
    samples: Count | None = None
    """Number of boxes of an image, chosen at random; None for all."""
    positive_share: Share = 0.5
    """Largest share of samples that are not background."""

    def __post_init__(self):
        check_fields(self)

    @property
    def positives(self) -> int:
        """Largest number of samples that are not background."""
        return int((self.samples or 0) * self.positive_share)


def match_boxes(boxes, true_boxes, is_true, sampling: Sampling):
    """Index of the true box that each box is trained to find: (B, N) int32, or BACKGROUND or IGNORED.

    Takes one true box after the other, so that no matrix of all overlaps is in memory. Differs from torchvision's
    Matcher only where no box overlaps a true box at all: torchvision matches all of them with it.

    Args:
        boxes: (B, N, 4), or (1, N, 4) for the same boxes in all images.
        true_boxes: (B, G, 4), of at least one row.
        is_true: (B, G) booleans, False for padding.
        sampling: the overlaps.
    """
    boxes, true_boxes = (ops.stop_gradient(ops.convert_to_tensor(values)) for values in (boxes, true_boxes))
    is_true = ops.convert_to_tensor(is_true)

    def overlaps_with(number):
        overlaps = box_iou(true_boxes[:, number][:, None], boxes)[:, 0]
        return ops.where(is_true[:, number][:, None], overlaps, -1.0)

    def match(number, state):
        largest, matches, is_best = state
        overlaps = overlaps_with(number)
        most = ops.max(overlaps, axis=1, keepdims=True)
        is_best = ops.logical_or(is_best, ops.logical_and(overlaps == most, most > 0))
        matches = ops.where(overlaps > largest, ops.cast(number, "int32"), matches)
        return ops.maximum(largest, overlaps), matches, is_best

    none = ops.zeros_like(overlaps_with(0))
    start = (none, ops.cast(none, "int32"), ops.cast(none, "bool"))
    largest, matches, is_best = ops.fori_loop(0, ops.shape(true_boxes)[1], match, start)
    found = largest >= sampling.foreground
    if sampling.low_quality:
        found = ops.logical_or(found, is_best)
    return ops.where(found, matches, ops.where(largest < sampling.background, BACKGROUND, IGNORED))


class _KeySeed(keras.random.SeedGenerator):
    """A seed of which Keras makes random numbers without any state."""

    def __init__(self, key):
        self.key = key

    def next(self, ordered=True):
        return self.key


def random_uniform(keys, stream: int, count):
    """Random numbers in [0, 1) of each image: (B, count).

    An image has the same numbers in any batch, and on any device of the same kind of backend.

    Args:
        keys: (B, 2) int32: the seed, and the position of the image in the run.
        stream: 0 or 1, for different numbers of the same keys.
        count: how many.
    """
    dtype = {"jax": "uint32", "torch": "int64"}.get(keras.backend.backend(), "int32")
    keys = ops.cast(keys * ops.array([1, 2], "int32") + ops.array([0, stream], "int32"), dtype)
    return ops.map(lambda key: keras.random.uniform((count,), seed=_KeySeed(key)), keys)


def sample(matches, random, sampling: Sampling):
    """Indices of random boxes, first those with a true box, then background: (B, S), and two numbers of them.

    Args:
        matches: (B, N), as `match_boxes` returns them.
        random: (B, N), random numbers in [0, 1): those with the largest numbers are chosen.
        sampling: the number of samples, S, and the share of those with a true box.

    Returns:
        Indices (B, S) int32, 0 where there are not enough boxes; the number of samples (B,), and of those with a true
        box, (B,).
    """

    def choose(chosen, number):
        scores = ops.pad(ops.where(chosen, random, -1.0), ((0, 0), (0, sampling.samples)), constant_values=-1.0)
        scores, indices = ops.top_k(scores, number)
        return indices, ops.sum(ops.cast(scores >= 0, "int32"), axis=1)

    positive, positives = choose(matches >= 0, sampling.positives)
    negative, negatives = choose(matches == BACKGROUND, sampling.samples)
    count = ops.minimum(positives + negatives, sampling.samples)
    place = ops.arange(sampling.samples, dtype="int32")[None]
    order = ops.where(place < positives[:, None], place, place - positives[:, None] + sampling.positives)
    indices = ops.take_along_axis(ops.concatenate([positive, negative], axis=1), order, axis=1)
    return ops.where(place < count[:, None], indices, 0), count, positives


def samples_of(candidates, matches, objects, chosen):
    """What is known of sampled boxes: a dict of arrays (B, S, ...).

    Args:
        candidates: (B, N, 4), the boxes of which they are samples.
        matches: (B, N), as `match_boxes` returns them.
        objects: `boxes` (B, G, 4) and `labels` (B, G) of the true boxes.
        chosen: (indices, count, positives), as `sample` returns them.

    Returns:
        `indices` (B, S) into the candidates; `boxes` (B, S, 4); for the first `positives` (B,) of each image the true
        box: its index `matches` (B, S), `targets` (B, S, 4), and `labels` (B, S), 0 for the others; `count` (B,), the
        number of samples without padding.
    """
    indices, count, positives = chosen
    matches = ops.maximum(ops.take_along_axis(matches, indices, axis=1), 0)
    is_positive = ops.arange(indices.shape[1])[None] < positives[:, None]
    return {
        "indices": indices,
        "boxes": gather_rows(candidates, indices),
        "matches": matches,
        "targets": gather_rows(objects["boxes"], matches),
        "labels": ops.where(is_positive, ops.take_along_axis(objects["labels"], matches, axis=1), 0),
        "count": count,
        "positives": positives,
    }
