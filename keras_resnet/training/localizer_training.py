"""`localizer_training_model`: a model that trains a localizer with `fit`, and the losses of its outputs."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_resnet.architecture.boxes import box_iou, encode_boxes
from keras_resnet.architecture.localizer import Localizer, flat_predictions, relative_anchors
from keras_resnet.architecture.metadata import image_shape
from keras_resnet.training.detection_losses import smooth_l1

BOX_WEIGHT = 5.0
"""Factor of the loss of boxes as shares of the image's sides, as in DETR (arXiv:2005.12872, sec. A.4)."""
FOREGROUND, BACKGROUND = 0.7, 0.3
"""Smallest overlap of a positive anchor, and largest of a negative one (Ren et al. 2015, arXiv:1506.01497, sec. 3.1.2);
the anchors that overlap the box most are positive in any case."""
ROUNDING = 1e-5
"""Difference of overlaps that are the same but for rounding, as those of two anchors around the whole box."""


def localizer_training_model(localizer: Localizer) -> tuple[keras.Model, dict[str, Callable]]:
    """(a model with the layers of a localizer, {name of an output: its loss}).

    Its outputs are `probabilities`, with cross-entropy, and `boxes`, with the smooth L1 loss of the true class's box;
    of a dense localizer `anchors`: scores and offsets at all positions, with `DenseLoss`. Their targets, except those
    of the probabilities, are (B, 6): x1, y1, x2, y2, the class, and 1, or 0 for an image without a box.

    Args:
        localizer: a Localizer for images of one size.
    """
    outputs: dict[str, Any] = {"probabilities": localizer.output["probabilities"]}
    losses: dict[str, Callable] = {"probabilities": cross_entropy}
    if localizer.spec.boxes != "dense":
        outputs["boxes"], losses["boxes"] = localizer.output["boxes"], box_loss
        return keras.Model(localizer.inputs[0], outputs, name=localizer.name), losses
    scores, deltas = (localizer.get_layer(name).output for name in ("box_scores", "box_deltas"))
    losses["anchors"] = DenseLoss(localizer, scores.shape[1:3])
    scores, deltas = flat_predictions(scores, deltas, len(localizer.spec.anchor_sizes))
    outputs["anchors"] = ops.concatenate([scores[..., None], deltas], axis=-1)
    return keras.Model(localizer.inputs[0], outputs, name=localizer.name), losses


def cross_entropy(labels: Any, probabilities: Any) -> Any:
    """Cross-entropy (B,) of one-hot labels and probabilities (B, K)."""
    return keras.losses.categorical_crossentropy(labels, probabilities)


def box_loss(targets: Any, boxes: Any) -> Any:
    """Smooth L1 loss (B,) of the box of the true class.

    >>> from keras import ops
    >>> targets = ops.array([[0.0, 0.0, 1.0, 1.0, 1, 1], [0.0, 0.0, 1.0, 1.0, 0, 0]])
    >>> boxes = ops.array([[[0.0, 0, 0, 0], [0.5, 0, 1, 1]], [[0.0, 0, 0, 0], [0.0, 0, 0, 0]]])
    >>> [round(float(loss), 4) for loss in box_loss(targets, boxes)]
    [2.2222, 0.0]

    Args:
        targets: (B, 6), see `localizer_training_model`.
        boxes: (B, 1 or K, 4).
    """
    found = _of_class(boxes, targets[:, 4])
    return BOX_WEIGHT * targets[:, 5] * smooth_l1(found - targets[:, :4])


class DenseLoss:
    """Loss of the scores and offsets at all anchors of a dense localizer (He et al. 2015, appendix C).

    Binary cross-entropy of all classes, averaged over positive and negative anchors with half of the weight each, and
    smooth L1 of the offsets of the true class, averaged over the positive ones. The paper samples eight anchors, half
    of them positive: this is the expected value over such samples.

    Args:
        localizer: a dense Localizer for images of one size.
        map_size: (h, w) of its feature map.
    """

    __name__ = "dense_loss"

    def __init__(self, localizer: Localizer, map_size: tuple[int, int]):
        spec, size = localizer.spec, image_shape(localizer)[:2]
        anchors = relative_anchors(spec.anchor_sizes, spec.backbone.stride, map_size, size)
        self.anchors = ops.convert_to_numpy(anchors)

    def __call__(self, targets: Any, predictions: Any) -> Any:
        """Targets (B, 6) and predictions (B, P, K, 5), logits and offsets -> losses (B,)."""
        boxes, weights = targets[:, None, :4], targets[:, 5]
        anchors = ops.convert_to_tensor(self.anchors)[None]
        overlaps = box_iou(boxes, anchors)[:, 0]
        best = ops.logical_and(overlaps > 0, overlaps > ops.max(overlaps, axis=1, keepdims=True) - ROUNDING)
        positive = ops.cast(ops.logical_or(overlaps >= FOREGROUND, best), "float32")
        negative = ops.cast(overlaps < BACKGROUND, "float32") * (1 - positive)
        logits = predictions[..., 0]
        is_class = ops.one_hot(ops.cast(targets[:, 4], "int32"), logits.shape[-1], dtype="float32")
        expected = positive[..., None] * is_class[:, None]
        entropy = ops.sum(ops.softplus(logits) - expected * logits, axis=-1)
        score_loss = (_mean(entropy, positive) + _mean(entropy, negative)) / 2
        offsets = ops.where(weights[:, None, None] > 0, encode_boxes(_not_empty(boxes), anchors), 0.0)
        found = ops.sum(predictions[..., 1:] * is_class[:, None, :, None], axis=2)
        return weights * (score_loss + _mean(smooth_l1(found - offsets), positive))


def _not_empty(boxes):
    """Boxes (..., 4), of which those without an area, of images without a box, become the whole image."""
    whole = ops.array([0.0, 0.0, 1.0, 1.0])
    return ops.where(boxes[..., 2:3] > boxes[..., 0:1], boxes, whole)


def _mean(values, weights):
    """Mean (B,) of values (B, P) with weights (B, P); 0 where all weights are."""
    return ops.sum(values * weights, axis=1) / ops.maximum(ops.sum(weights, axis=1), 1.0)


def _of_class(boxes, classes):
    """Boxes (B, 1 or K, 4) of classes (B,): (B, 4)."""
    chosen = ops.one_hot(ops.minimum(ops.cast(classes, "int32"), boxes.shape[1] - 1), boxes.shape[1], dtype="float32")
    return ops.sum(boxes * chosen[..., None], axis=1)
