"""Losses of detectors as layers: each returns the loss of every image, and their mean is torchvision's of the batch."""

from dataclasses import dataclass
from typing import Literal

import keras
from keras import ops

from keras_resnet.architecture.boxes import decode_boxes, encode_boxes, gather_rows, generalized_iou, has_sides
from keras_resnet.architecture.detection_layers import (
    ANCHOR_ARGUMENTS,
    BOX_WEIGHTS,
    AnchorLayer,
    Parameterless,
    boxes_of_images,
    level_rows,
    masks_of_classes,
    rows_by_image,
)
from keras_resnet.architecture.detector_spec import Count, Share
from keras_resnet.schema import check_fields
from keras_resnet.training.mask_targets import mask_targets
from keras_resnet.training.matching import IGNORED, Sampling, match_boxes, random_uniform, sample, samples_of

BETA = 1 / 9
"""Error of an offset from which smooth L1 is linear (torchvision/models/detection/{rpn,roi_heads}.py)."""
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
"""Weight of the true class, and exponent of what is missing in its probability (arXiv:1708.02002, sec. 5.1)."""
ANCHOR_STREAM, REGION_STREAM = 0, 1
"""Random numbers by which anchors and regions are sampled."""

_ANCHORS = Sampling(0.7, 0.3, low_quality=True, samples=256)
_REGIONS = Sampling(0.5, 0.5, samples=512, positive_share=0.25)
_DENSE = Sampling(0.5, 0.4, low_quality=True)


@dataclass(frozen=True)
class DetectionLosses:
    """What a detector is trained on; the defaults are torchvision's.

    >>> DetectionLosses().regions.samples
    512
    """

    anchors: Sampling = _ANCHORS
    """Anchors on which the region proposal network is trained."""
    regions: Sampling = _REGIONS
    """Regions on which the box head is trained; the mask head on those with an object."""
    dense: Sampling = _DENSE
    """Anchors on which a dense head is trained."""
    dense_boxes: Literal["l1", "giou"] = "l1"
    """Loss of a dense head's boxes: absolute errors of the offsets, or 1 - generalized IoU."""
    candidates: Count = 2000
    """Number of the best anchors of each level that become proposals in training."""
    proposals: Count = 2000
    """Largest number of proposals in training."""
    proposal_nms_threshold: Share = 0.7
    """Largest overlap (IoU) of two proposals of the same level."""

    def __post_init__(self):
        check_fields(self)


DETECTION_LOSSES = {"detection": DetectionLosses(), "detection_giou": DetectionLosses(dense_boxes="giou")}
"""torchvision's losses of its first detectors, and of RetinaNet's second version."""


class TrueObjects(Parameterless):
    """The objects of the images, of which those without an area become padding, and at least one row.

    Inputs: a dict of `boxes` (B, G, 4), `labels` (B, G), 0 for padding, and perhaps `masks` (B, G, H, W).
    """

    def call(self, inputs):
        found = {name: _at_least_one_row(values) for name, values in inputs.items()}
        is_true = ops.logical_and(found["labels"] > 0, has_sides(found["boxes"], 1e-6))
        boxes = ops.where(is_true[..., None], found["boxes"], 0.0)
        return found | {"boxes": boxes, "labels": ops.where(is_true, found["labels"], 0)}

    def compute_output_spec(self, inputs):
        return {name: keras.KerasTensor(values.shape, values.dtype) for name, values in inputs.items()}


def _at_least_one_row(values):
    """(B, G, ...) -> (B, max(G, 1), ...)."""
    batch, rows, *shape = ops.shape(values)
    if isinstance(rows, int) and rows > 0:
        return values
    return ops.concatenate([values, ops.zeros((batch, 1 - ops.minimum(rows, 1), *shape), values.dtype)], axis=1)


def sample_specs(batch, samples):
    """The dict of `samples_of` as Keras tensors."""
    rows = {"indices": (), "boxes": (4,), "matches": (), "targets": (4,), "labels": ()}
    floats = ("boxes", "targets")
    specs = {
        name: keras.KerasTensor((batch, samples, *shape), "float32" if name in floats else "int32")
        for name, shape in rows.items()
    }
    return specs | {name: keras.KerasTensor((batch,), "int32") for name in ("count", "positives")}


class SampledAnchors(AnchorLayer):
    """Anchors on which the region proposal network is trained.

    Inputs: a dict of `images` (B, H, W, 3), `objectness`, the logits (B, h, w, A) of each level, `objects`, the outputs
    of TrueObjects, and `keys` (B, 2). Outputs: the dict of `samples_of`.
    """

    arguments = {**ANCHOR_ARGUMENTS, "sampling": Sampling}

    def call(self, inputs):
        anchors = ops.concatenate(self.level_anchors(inputs["images"], inputs["objectness"]))[None]
        objects = inputs["objects"]
        matches = match_boxes(anchors, objects["boxes"], objects["labels"] > 0, self.sampling)
        random = random_uniform(inputs["keys"], ANCHOR_STREAM, ops.shape(matches)[1])
        candidates = ops.broadcast_to(anchors, (*ops.shape(matches), 4))
        return samples_of(candidates, matches, objects, sample(matches, random, self.sampling))

    def compute_output_spec(self, inputs):
        return sample_specs(inputs["images"].shape[0], self.sampling.samples)


class SampledRegions(Parameterless):
    """Regions on which the heads are trained: samples of the proposals and the true boxes.

    Inputs: a dict of `proposals` (B, P, 4), `count` (B,), `objects`, the outputs of TrueObjects, and `keys` (B, 2).
    Outputs: the dict of `samples_of`.
    """

    arguments = {"sampling": Sampling}

    def call(self, inputs):
        objects, proposals = inputs["objects"], inputs["proposals"]
        is_true = objects["labels"] > 0
        is_proposal = ops.arange(proposals.shape[1])[None] < inputs["count"][:, None]
        candidates = ops.concatenate([proposals, objects["boxes"]], axis=1)
        matches = match_boxes(candidates, objects["boxes"], is_true, self.sampling)
        matches = ops.where(ops.concatenate([is_proposal, is_true], axis=1), matches, IGNORED)
        random = random_uniform(inputs["keys"], REGION_STREAM, ops.shape(matches)[1])
        return samples_of(candidates, matches, objects, sample(matches, random, self.sampling))

    def compute_output_spec(self, inputs):
        return sample_specs(inputs["proposals"].shape[0], self.sampling.samples)


def per_image(losses, number):
    """Losses (B, N), zero where they do not count -> (B,), whose mean is their sum divided by the sum of `number` (B,).

    torchvision divides by the number of samples in the batch.
    """
    batch = ops.cast(ops.shape(losses)[0], "float32")
    return ops.sum(losses, axis=1) * (batch / ops.maximum(ops.cast(ops.sum(number), "float32"), 1.0))


def _loss_specs(batch):
    """Two losses (B,) as Keras tensors."""
    return keras.KerasTensor((batch,)), keras.KerasTensor((batch,))


def smooth_l1(errors):
    """Sum of the smooth absolute values of offsets (..., 4): (...,)."""
    size = ops.abs(errors)
    return ops.sum(ops.where(size < BETA, 0.5 / BETA * ops.square(errors), size - 0.5 * BETA), axis=-1)


def _offset_losses(deltas, samples, weights):
    """Smooth L1 of offsets (B, S, 4) of samples with a true box; zeros of the others."""
    is_positive = _first(samples["positives"], deltas.shape[1])[..., None]
    targets = ops.where(is_positive, encode_boxes(samples["targets"], samples["boxes"], weights), 0.0)
    return smooth_l1(ops.where(is_positive, deltas - targets, 0.0))


def _first(number, places):
    """(B, places) booleans, True for the first number[b] places."""
    return ops.arange(places)[None] < number[:, None]


class ProposalLosses(Parameterless):
    """Losses of the region proposal network (Ren et al. 2015, arXiv:1506.01497, eq. 1).

    Inputs: a dict of `objectness` and `deltas` of each level, as for Proposals, and `samples`, the anchors. Outputs:
    the losses (B,) of the objectness, binary cross-entropy, and of the offsets, smooth L1.
    """

    def call(self, inputs):
        samples = inputs["samples"]
        objectness = ops.concatenate([level_rows(level, 1) for level in inputs["objectness"]], axis=1)
        deltas = ops.concatenate([level_rows(level, 4) for level in inputs["deltas"]], axis=1)
        logits = gather_rows(objectness, samples["indices"])[..., 0]
        is_object = ops.cast(samples["labels"] > 0, "float32")
        losses = ops.where(_first(samples["count"], logits.shape[1]), binary_cross_entropy(logits, is_object), 0.0)
        offsets = _offset_losses(gather_rows(deltas, samples["indices"]), samples, (1.0, 1.0, 1.0, 1.0))
        return per_image(losses, samples["count"]), per_image(offsets, samples["count"])

    def compute_output_spec(self, inputs):
        return _loss_specs(inputs["samples"]["count"].shape[0])


def binary_cross_entropy(logits, targets):
    """Of each logit, without a difference of large numbers."""
    return targets * ops.softplus(-logits) + (1 - targets) * ops.softplus(logits)


class RegionLosses(Parameterless):
    """Losses of the box head (torchvision/models/detection/roi_heads.py).

    Inputs: a dict of `scores` (R, classes), logits, `deltas` (R, 4 * classes) and `samples`; the R rows are those that
    `boxes_of_images` returns for the number of samples, or for None if there are rows for the padding, too. Outputs:
    the losses (B,) of the classes, cross-entropy, and of the offsets of the true class, smooth L1.
    """

    arguments = {"rows_of_padding": bool}

    def call(self, inputs):
        samples, classes = inputs["samples"], inputs["scores"].shape[-1]
        labels, count = samples["labels"], samples["count"]
        batch, places = ops.shape(labels)
        rows = None if self.rows_of_padding else count
        scores, deltas = (rows_by_image(inputs[name], rows, batch, places) for name in ("scores", "deltas"))
        true = ops.one_hot(labels, classes, dtype="float32")
        losses = -ops.sum(ops.log_softmax(scores) * true, axis=-1)
        deltas = ops.reshape(deltas, (batch, places, classes, 4))
        offsets = _offset_losses(ops.sum(deltas * true[..., None], axis=2), samples, BOX_WEIGHTS)
        return per_image(ops.where(_first(count, places), losses, 0.0), count), per_image(offsets, count)

    def compute_output_spec(self, inputs):
        return _loss_specs(inputs["samples"]["count"].shape[0])


class MaskLoss(Parameterless):
    """Loss of the mask head (B,): binary cross-entropy of the masks of the true classes.

    Inputs: a dict of `logits` (R, 28, 28, classes) of the rows that `boxes_of_images` returns for the regions with an
    object, `masks` (B, G, H, W), and `samples`, of which those with an object come first.
    """

    arguments = {"places": Count}

    def call(self, inputs):
        samples, masks = inputs["samples"], inputs["masks"]
        number, size = samples["positives"], inputs["logits"].shape[1]
        labels, matches, boxes = (samples[name][:, : self.places] for name in ("labels", "matches", "boxes"))
        logits = masks_of_classes(inputs["logits"], labels, number)
        targets = self._targets(masks, boxes, matches, number, size)
        losses = ops.mean(binary_cross_entropy(logits, targets), axis=(2, 3))
        return per_image(ops.where(_first(number, self.places), losses, 0.0), number)

    def _targets(self, masks, boxes, matches, number, size):
        batch, objects, *sides = ops.shape(masks)
        masks = ops.reshape(masks, (-1, *sides))
        of_box = ops.reshape(matches + objects * ops.arange(batch, dtype="int32")[:, None], (-1,))
        boxes, rows = ops.reshape(boxes, (-1, 4)), boxes_of_images(number, self.places)
        if rows is not None:
            of_box, boxes = ops.take(of_box, rows), ops.take(boxes, rows, axis=0)
        return rows_by_image(mask_targets(masks, boxes, of_box, size), number, batch, self.places)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((inputs["samples"]["count"].shape[0],))


class DenseLosses(AnchorLayer):
    """Losses of a dense head (Lin et al. 2017, arXiv:1708.02002, sec. 4.1).

    Inputs: a dict of `images`, and of each level `scores` and `deltas`, as for DenseDetections, and `objects`, the
    outputs of TrueObjects. Outputs: the losses (B,) of the classes, focal, and of the boxes, each divided by the number
    of anchors with an object in the image.
    """

    arguments = {**ANCHOR_ARGUMENTS, "classes": Count, "sampling": Sampling, "boxes": Literal["l1", "giou"]}

    def call(self, inputs):
        objects, levels = inputs["objects"], self.level_anchors(inputs["images"], inputs["scores"])
        anchors = ops.concatenate(levels)[None]
        matches = match_boxes(anchors, objects["boxes"], objects["labels"] > 0, self.sampling)
        is_object, match = matches >= 0, ops.maximum(matches, 0)
        labels = ops.take_along_axis(objects["labels"], match, axis=1)
        deltas = ops.concatenate([level_rows(level, 4) for level in inputs["deltas"]], axis=1)
        boxes = BOX_LOSSES[self.boxes](deltas, gather_rows(objects["boxes"], match), anchors)
        losses, start = [], 0
        for level, level_anchors in zip(inputs["scores"], levels, strict=True):
            part = slice(start, start := start + ops.shape(level_anchors)[0])
            losses.append(_focal_losses(level_rows(level, self.classes), labels[:, part], matches[:, part]))
        number = ops.maximum(ops.sum(ops.cast(is_object, "float32"), axis=1), 1.0)
        return sum(losses) / number, ops.sum(ops.where(is_object, boxes, 0.0), axis=1) / number

    def compute_output_spec(self, inputs):
        return _loss_specs(inputs["images"].shape[0])


def _focal_losses(logits, labels, matches):
    """Focal loss (B,) of logits (B, N, classes); the true class is `labels` (B, N) where `matches` (B, N) >= 0.

    All classes as if none was true, and for the true ones the difference: there is no array of targets.
    """
    false = ops.where(matches == IGNORED, 0.0, ops.sum(_focal(-logits) * (1 - FOCAL_ALPHA), axis=-1))
    row = ops.reshape(ops.arange(ops.size(labels)), ops.shape(labels))
    true = ops.take(ops.reshape(logits, (-1,)), row * logits.shape[-1] + labels)
    difference = FOCAL_ALPHA * _focal(true) - (1 - FOCAL_ALPHA) * _focal(-true)
    return ops.sum(false + ops.where(matches >= 0, difference, 0.0), axis=1)


def _focal(logits):
    """Loss of logits whose class is the true one, without the weight of the class."""
    return ops.softplus(-logits) * ops.sigmoid(-logits) ** FOCAL_GAMMA


def _l1(deltas, boxes, anchors):
    """Sum of the absolute errors of offsets (B, N, 4); where boxes have no area, the offsets are ignored."""
    targets = ops.where(has_sides(boxes, 1e-6)[..., None], encode_boxes(boxes, anchors), 0.0)
    return ops.sum(ops.abs(deltas - targets), axis=-1)


BOX_LOSSES = {
    "l1": _l1,
    "giou": lambda deltas, boxes, anchors: 1 - generalized_iou(decode_boxes(deltas, anchors), boxes),
}
"""Loss of boxes (B, N) from offsets (B, N, 4), true boxes (B, N, 4) and anchors (1, N, 4)."""
