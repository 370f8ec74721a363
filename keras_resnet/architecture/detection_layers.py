"""Layers of detectors without weights: padding of images, proposals, features of regions, detections, masks."""

from typing import Annotated, Any

import keras
from keras import layers, ops

from keras_resnet.architecture.anchors import cell_anchors, grid_anchors
from keras_resnet.architecture.boxes import (
    clip_boxes,
    decode_boxes,
    gather_rows,
    has_sides,
    suppress_overlaps,
    top_scores,
    vote_boxes,
)
from keras_resnet.architecture.detector_spec import Count, Share
from keras_resnet.architecture.regions import align_regions
from keras_resnet.schema import Range, checked

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

PROPOSAL_SIDE = 1e-3
DETECTION_SIDE = 1e-2
"""Smallest sides of proposals and detections in pixels (torchvision/models/detection/{rpn,roi_heads}.py)."""
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Factors of the second stage's offsets (torchvision/models/detection/roi_heads.py)."""
ANCHOR_ARGUMENTS = {"anchor_sizes": tuple[tuple[int, ...], ...], "anchor_ratios": tuple[float, ...]}
_DETECTIONS = {"score_threshold": Share, "nms_threshold": Share, "detections": Count}


class Parameterless(layers.Layer):
    """A layer that computes in float32 and whose arguments are its attributes; `get_config` has them."""

    arguments: dict[str, Any] = {}
    """Name -> annotation of the value, which may come from a file."""

    def __init__(self, *, name=None, dtype="float32", **arguments):
        super().__init__(name=name, dtype=dtype)
        self.supports_jit = keras.backend.backend() != "tensorflow"  # XLA has no such kernels, and compiles each size
        for argument, annotation in self.arguments.items():
            setattr(self, argument, checked(arguments.get(argument), annotation, argument))

    def get_config(self):
        return super().get_config() | {argument: getattr(self, argument) for argument in self.arguments}


@keras.saving.register_keras_serializable("keras_resnet")
class PaddedImages(Parameterless):
    """Images padded with NaN at the right and the bottom -> images padded with zeros, and sizes without the padding.

    (B, H, W, 3) -> (B, H, W, 3), and (B, 2), height and width. Thus images of different sizes are one tensor; images
    without padding are valid, too.
    """

    def call(self, images):
        missing = ops.isnan(images)
        height = ops.sum(ops.cast(ops.logical_not(missing[:, :, 0, 0]), "float32"), axis=1)
        width = ops.sum(ops.cast(ops.logical_not(missing[:, 0, :, 0]), "float32"), axis=1)
        return ops.where(missing, 0.0, images), ops.stack([height, width], axis=-1)

    def compute_output_shape(self, images_shape):
        return images_shape, (images_shape[0], 2)


class AnchorLayer(Parameterless):
    """A layer that knows the sizes and ratios of the anchors of each level, `ANCHOR_ARGUMENTS`."""

    def level_anchors(self, images, maps):
        """Anchors (h * w * A, 4) of each map (B, h, w, ...)."""
        image_size = ops.shape(images)[1:3]
        cells = [cell_anchors(tuple(sizes), tuple(self.anchor_ratios)) for sizes in self.anchor_sizes]
        shapes = [ops.shape(level)[1:3] for level in maps]
        return [grid_anchors(cell, shape, image_size) for cell, shape in zip(cells, shapes, strict=True)]


def level_rows(maps, width):
    """Predictions of a level, ordered as its anchors: (B, h, w, A * width) -> (B, h * w * A, width)."""
    return ops.reshape(maps, (ops.shape(maps)[0], -1, width))


def _best(boxes, scores, threshold, count, groups=None):
    """Boxes and scores left by non-maximum suppression, padded with zeros; their indices; whether they are valid."""
    indices, valid = suppress_overlaps(boxes, scores, threshold, count, groups)
    kept = ops.where(valid[..., None], gather_rows(boxes, indices), 0.0)
    scores = ops.where(valid, ops.take_along_axis(scores, indices, axis=1), 0.0)
    return kept, scores, indices, valid


@keras.saving.register_keras_serializable("keras_resnet")
class Proposals(AnchorLayer):
    """The most probable boxes of a region proposal network (Ren et al. 2015, arXiv:1506.01497, sec. 3.3).

    Inputs: a dict of `images` (B, H, W, 3), `sizes` (B, 2), and for each level `objectness` (B, h, w, A), logits, and
    `deltas` (B, h, w, 4 * A). Outputs: boxes (B, P, 4), padded with zeros, and the number of boxes (B,).
    """

    arguments = {**ANCHOR_ARGUMENTS, "candidates": Count, "proposals": Count, "nms_threshold": Share}

    def call(self, inputs):
        anchors = self.level_anchors(inputs["images"], inputs["objectness"])
        levels = zip(anchors, inputs["objectness"], inputs["deltas"], strict=True)
        kept = [self._of_level(*level, inputs["sizes"]) for level in levels]
        boxes, scores = (ops.concatenate(parts, axis=1) for parts in zip(*kept, strict=True))
        scores, order = ops.top_k(scores, self.proposals) if len(kept) > 1 else (scores, None)
        boxes = boxes if order is None else gather_rows(boxes, order)
        return ops.stop_gradient(boxes), ops.sum(ops.cast(scores > -0.5, "int32"), axis=1)

    def _of_level(self, anchors, objectness, deltas, sizes):
        """(B, P, 4), (B, P): boxes of one level after non-maximum suppression; padding has scores of -1."""
        logits = level_rows(objectness, 1)[..., 0]
        logits, indices = top_scores(logits, self.candidates)
        deltas = gather_rows(level_rows(deltas, 4), indices)
        boxes = clip_boxes(decode_boxes(deltas, ops.take(anchors, indices, axis=0)), sizes)
        scores = ops.sigmoid(logits)
        is_good = ops.logical_and(scores >= 0, has_sides(boxes, PROPOSAL_SIDE))  # neither NaN
        scores = ops.where(is_good, scores, -1.0)
        boxes, scores, _, valid = _best(boxes, scores, self.nms_threshold, self.proposals)
        return boxes, ops.where(valid, scores, -1.0)

    def compute_output_spec(self, inputs):
        batch = inputs["images"].shape[0]
        return keras.KerasTensor((batch, self.proposals, 4)), keras.KerasTensor((batch,), "int32")


@keras.saving.register_keras_serializable("keras_resnet")
class RegionFeatures(Parameterless):
    """RoIAlign of the levels of a pyramid: maps and boxes (B, P, 4) -> (B * P, size, size, C).

    With `count` (B,), the number of boxes of each image without the padding, TensorFlow skips the padding: the result
    has only the rows that `boxes_of_images` returns.
    """

    arguments = {"first_level": Annotated[int, Range(2, 5)], "size": Annotated[int, Range(1, 64)]}

    def call(self, maps, boxes, count=None):
        batch, places = ops.shape(boxes)[:2]
        image = ops.repeat(ops.arange(batch, dtype="int32"), places)
        boxes = ops.reshape(boxes, (-1, 4))
        rows = boxes_of_images(count, places)
        if rows is not None:
            image, boxes = ops.take(image, rows), ops.take(boxes, rows, axis=0)
        return align_regions(maps, boxes, image, self.first_level, self.size)

    def compute_output_shape(self, maps_shape, boxes_shape, count_shape=None):
        batch, places = boxes_shape[:2]
        return (batch and batch * places, self.size, self.size, maps_shape[0][-1])


def boxes_of_images(count, places):
    """Indices in (B * P,) of the first count[b] boxes of each image; None for all B * P boxes.

    If there are none, they are the first ones of all images, as convolutions need at least one region.
    Backends other than TensorFlow need shapes that do not depend on values, and compute all of them.
    """
    if count is None or keras.backend.backend() != "tensorflow":
        return None
    count = tf.maximum(count, 1 - tf.reduce_max(count))
    return tf.where(tf.reshape(tf.range(places)[None] < count[:, None], [-1]))[:, 0]


def rows_by_image(values, count, batch, places):
    """(R, ...), values of the rows that `boxes_of_images` returns -> (B, P, ...), with zeros for the others."""
    rows = boxes_of_images(count, places)
    if rows is not None:
        values = ops.scatter(rows[:, None], values, (batch * places, *values.shape[1:]))
    return ops.reshape(values, (-1, places, *values.shape[1:]))


@keras.saving.register_keras_serializable("keras_resnet")
class WithWholeImage(Parameterless):
    """Boxes (B, P, 4) and a last one around the image: (B, P + 1, 4); sizes: (B, 2), height and width."""

    def call(self, boxes, sizes):
        whole = ops.stack([sizes[:, 0] * 0, sizes[:, 0] * 0, sizes[:, 1], sizes[:, 0]], axis=-1)
        return ops.concatenate([boxes, whole[:, None]], axis=1)

    def compute_output_shape(self, boxes_shape, sizes_shape):
        return (boxes_shape[0], boxes_shape[1] + 1, 4)


@keras.saving.register_keras_serializable("keras_resnet")
class GlobalContext(layers.Layer):
    """Features of each region and of the whole image, concatenated: (B * (P + 1), C) -> (B * P, 2 * C).

    He et al. 2015, appendix B. The second input is the regions, (B, P + 1, 4), of which the last one is the image.
    """

    def call(self, features, boxes):
        regions = ops.reshape(features, (-1, boxes.shape[1], features.shape[-1]))
        image = ops.broadcast_to(regions[:, -1:], ops.shape(regions[:, :-1]))
        return ops.reshape(ops.concatenate([regions[:, :-1], image], axis=-1), (-1, 2 * features.shape[-1]))

    def compute_output_shape(self, features_shape, boxes_shape):
        batch, regions = boxes_shape[:2]
        return (batch and batch * (regions - 1), 2 * features_shape[-1])


@keras.saving.register_keras_serializable("keras_resnet")
class Detections(Parameterless):
    """Detections from the class scores and offsets of regions (torchvision/models/detection/roi_heads.py).

    Inputs: a dict of `proposals` (B, P, 4), `count` (B,), `scores` (B * P, classes), logits, `deltas`
    (B * P, 4 * classes), and `sizes` (B, 2). Outputs: boxes (B, N, 4), scores, labels (B, N), and their number (B,).
    """

    arguments = _DETECTIONS

    def call(self, inputs):
        return self.best(*class_boxes(inputs, self.score_threshold))

    def best(self, boxes, scores):
        """Detections among boxes (B, P, K, 4) of K classes with scores (B, P, K)."""
        regions, classes = scores.shape[1:]
        candidates = regions * classes
        labels = ops.tile(ops.arange(1, classes + 1, dtype="int32"), regions)[None]
        return detect_best(ops.reshape(boxes, (-1, candidates, 4)), ops.reshape(scores, (-1, candidates)), labels, self)

    def compute_output_spec(self, inputs):
        return _detection_specs(inputs["proposals"].shape[0], self.detections)


def class_boxes(inputs, score_threshold):
    """Boxes of regions for each class, without the background: (B, P, K, 4), and scores (B, P, K), -1 if too low.

    The inputs are those of Detections.
    """
    proposals, logits = inputs["proposals"], inputs["scores"]
    regions, classes = proposals.shape[1], logits.shape[-1]
    scores = ops.reshape(ops.softmax(logits), (-1, regions, classes))[:, :, 1:]
    deltas = ops.reshape(inputs["deltas"], (-1, regions, classes, 4))[:, :, 1:]
    boxes = clip_boxes(decode_boxes(deltas, proposals[:, :, None], BOX_WEIGHTS), inputs["sizes"])
    is_proposal = (ops.arange(regions)[None] < inputs["count"][:, None])[..., None]
    is_good = ops.logical_and(scores > score_threshold, has_sides(boxes, DETECTION_SIDE))
    return boxes, ops.where(ops.logical_and(is_good, is_proposal), scores, -1.0)


@keras.saving.register_keras_serializable("keras_resnet")
class RegressedBoxes(Parameterless):
    """The box of the most probable class of each region, for another pass of the second stage.

    Inputs: those of Detections. Outputs: boxes (B, P, 4).
    """

    def call(self, inputs):
        boxes, scores = class_boxes(inputs, 0.0)
        best = ops.argmax(scores, axis=-1)[..., None, None]
        return ops.take_along_axis(boxes, best, axis=2)[:, :, 0]

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs["proposals"].shape)


@keras.saving.register_keras_serializable("keras_resnet")
class RefinedDetections(Detections):
    """Detections from two passes, of regions and of the boxes regressed from them (He et al. 2015, appendix B).

    Inputs: a list of the inputs of Detections, one for each pass. Non-maximum suppression takes the boxes of both;
    each box it keeps becomes the mean, weighted by score, of the boxes of its class with an IoU of at least
    `voting_threshold`.
    """

    arguments = {**_DETECTIONS, "voting_threshold": Share}

    def call(self, passes):
        found = [class_boxes(inputs, self.score_threshold) for inputs in passes]
        boxes, scores = (ops.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        kept, best, labels, count = self.best(boxes, scores)
        of_class = ops.maximum(labels - 1, 0)
        others = gather_rows(ops.transpose(boxes, (0, 2, 1, 3)), of_class)
        weights = gather_rows(ops.transpose(scores, (0, 2, 1)), of_class)
        return vote_boxes(kept, others, weights, self.voting_threshold), best, labels, count

    def compute_output_spec(self, passes):
        return super().compute_output_spec(passes[0])


def detect_best(boxes, scores, labels, settings):
    """Boxes, scores, labels and their number after non-maximum suppression by class; labels: (B, N) or (1, N)."""
    labels = ops.broadcast_to(labels, ops.shape(scores))
    boxes, scores, indices, valid = _best(boxes, scores, settings.nms_threshold, settings.detections, labels)
    labels = ops.take_along_axis(labels, indices, axis=1)
    return boxes, scores, ops.where(valid, labels, 0), ops.sum(ops.cast(valid, "int32"), axis=1)


def _detection_specs(batch, detections):
    """Boxes, scores, labels and their number as Keras tensors."""
    rows = (((batch, detections, 4), "float32"), ((batch, detections), "float32"), ((batch, detections), "int32"))
    return *(keras.KerasTensor(*row) for row in rows), keras.KerasTensor((batch,), "int32")


@keras.saving.register_keras_serializable("keras_resnet")
class DenseDetections(AnchorLayer):
    """Detections from class scores and offsets of all anchors (torchvision/models/detection/retinanet.py).

    Inputs: a dict of `images` (B, H, W, 3), `sizes` (B, 2), and for each level `scores` (B, h, w, A * classes), logits,
    and `deltas` (B, h, w, A * 4). Outputs as those of Detections.
    """

    arguments = {**ANCHOR_ARGUMENTS, **_DETECTIONS, "classes": Count, "candidates": Count}

    def call(self, inputs):
        anchors = self.level_anchors(inputs["images"], inputs["scores"])
        levels = [self._of_level(*level) for level in zip(anchors, inputs["scores"], inputs["deltas"], strict=True)]
        boxes, scores, labels = (ops.concatenate(parts, axis=1) for parts in zip(*levels, strict=True))
        boxes = clip_boxes(boxes, inputs["sizes"])
        return detect_best(boxes, ops.where(has_sides(boxes, 0), scores, -1.0), labels, self)  # without NaN

    def _of_level(self, anchors, logits, deltas):
        """Boxes, scores and labels of the best (anchor, class) pairs of a level; scores below the threshold are -1."""
        logits = level_rows(logits, 1)[..., 0]
        best, indices = top_scores(logits, self.candidates)
        anchor = indices // self.classes
        boxes = decode_boxes(gather_rows(level_rows(deltas, 4), anchor), ops.take(anchors, anchor, axis=0))
        scores = ops.sigmoid(best)
        return boxes, ops.where(scores > self.score_threshold, scores, -1.0), indices % self.classes

    def compute_output_spec(self, inputs):
        return _detection_specs(inputs["images"].shape[0], self.detections)


@keras.saving.register_keras_serializable("keras_resnet")
class PredictedMasks(Parameterless):
    """Mask probabilities of the predicted classes: (R, 28, 28, classes) logits, (B, N) labels -> (B, N, 28, 28).

    The logits are those of the R boxes that RegionFeatures keeps with the same `count` (B,); other masks are zeros.
    """

    def call(self, logits, labels, count):
        masks = ops.sigmoid(masks_of_classes(logits, labels, count))
        valid = ops.arange(labels.shape[1])[None] < count[:, None]
        return ops.where(valid[..., None, None], masks, 0.0)

    def compute_output_shape(self, logits_shape, labels_shape, count_shape):
        return (*labels_shape, *logits_shape[1:3])


def masks_of_classes(logits, labels, count):
    """Logits (R, 28, 28, classes) of the boxes with labels (B, N) -> those of their own class, (B, N, 28, 28).

    The R boxes are those of `boxes_of_images` with the same `count` (B,); other masks are zeros.
    """
    batch, places = ops.shape(labels)
    rows = boxes_of_images(count, places)
    labels = ops.reshape(labels, (-1,))
    labels = labels if rows is None else ops.take(labels, rows)
    chosen = ops.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return rows_by_image(ops.sum(logits * chosen[:, None, None], axis=-1), count, batch, places)
