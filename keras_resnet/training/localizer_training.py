"""`localizer_training_model`: a model of a localizer's layers whose outputs are its losses."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

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


class LossLayer(layers.Layer):
    """A function (targets, *predictions) -> losses (B,) as a layer, in float32."""

    def __init__(self, function: Callable, name: str):
        super().__init__(name=name, dtype="float32")
        self.function = function

    def call(self, targets, *predictions):
        return self.function(targets, *predictions)

    def compute_output_shape(self, targets_shape, *shapes):
        return targets_shape[:1]


def localizer_training_model(localizer: Localizer) -> keras.Model:
    """A model with the layers of a localizer whose outputs are the losses of each image.

    Inputs are `images` (B, H, W, 3), `labels` (B, K), one-hot, and `targets` (B, 6): x1, y1, x2, y2 as shares of the
    image's sides, the class, and 1, or 0 for an image without a box. Outputs, (B,), are `classification`,
    cross-entropy, and `boxes`: `box_loss`, or of a dense localizer `DenseLoss`.

    Args:
        localizer: a Localizer for images of one size.
    """
    labels, targets = layers.Input((localizer.spec.classes,), name="labels"), layers.Input((6,), name="targets")
    if localizer.spec.boxes == "dense":
        predictions = [localizer.get_layer(name).output for name in ("box_scores", "box_deltas")]
        function: Callable = DenseLoss(localizer, predictions[0].shape[1:3])
    else:
        predictions, function = [localizer.output["boxes"]], box_loss
    cross_entropy = LossLayer(keras.losses.categorical_crossentropy, "classification_loss")
    losses = {
        "classification": cross_entropy(labels, localizer.output["probabilities"]),
        "boxes": LossLayer(function, "boxes_loss")(targets, *predictions),
    }
    inputs = {"images": localizer.inputs[0], "labels": labels, "targets": targets}
    with warnings.catch_warnings():  # Keras finds inputs by these keys, and warns if a tensor has another name
        warnings.filterwarnings("ignore", "When providing `inputs` as a dict")
        return keras.Model(inputs, losses, name=localizer.name)


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

    def __init__(self, localizer: Localizer, map_size: tuple[int, int]):
        spec, size = localizer.spec, image_shape(localizer)[:2]
        anchors = relative_anchors(spec.anchor_sizes, spec.backbone.stride, map_size, size)
        self.anchors, self.num_anchors = ops.convert_to_numpy(anchors), len(spec.anchor_sizes)

    def __call__(self, targets: Any, scores: Any, deltas: Any) -> Any:
        """Targets (B, 6), logits (B, h, w, A * K) and offsets (B, h, w, A * K * 4) -> losses (B,)."""
        logits, deltas = flat_predictions(scores, deltas, self.num_anchors)
        boxes, weights = targets[:, None, :4], targets[:, 5]
        anchors = ops.convert_to_tensor(self.anchors)[None]
        overlaps = box_iou(boxes, anchors)[:, 0]
        best = ops.logical_and(overlaps > 0, overlaps > ops.max(overlaps, axis=1, keepdims=True) - ROUNDING)
        positive = ops.cast(ops.logical_or(overlaps >= FOREGROUND, best), "float32")
        negative = ops.cast(overlaps < BACKGROUND, "float32") * (1 - positive)
        is_class = ops.one_hot(ops.cast(targets[:, 4], "int32"), logits.shape[-1], dtype="float32")
        expected = positive[..., None] * is_class[:, None]
        entropy = ops.sum(ops.softplus(logits) - expected * logits, axis=-1)
        score_loss = (_mean(entropy, positive) + _mean(entropy, negative)) / 2
        offsets = ops.where(weights[:, None, None] > 0, encode_boxes(_not_empty(boxes), anchors), 0.0)
        found = ops.sum(deltas * is_class[:, None, :, None], axis=2)
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
