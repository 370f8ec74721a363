"""`segmenter_training_model`: a model of a segmenter's layers whose outputs are its losses."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from keras_resnet.architecture.segmenter import ResizeLike, Segmenter
from keras_resnet.architecture.segmenter_spec import IGNORED

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

AUXILIARY_WEIGHT = 0.5
"""Factor of the loss of the auxiliary head, as in torchvision's references/segmentation/train.py."""


def segmenter_training_model(segmenter: Segmenter, class_weights: Sequence[float] | None = None) -> keras.Model:
    """A model with the layers of a segmenter whose outputs are the losses of each image.

    >>> import keras_resnet, numpy as np
    >>> from keras_resnet.training.segmenter_training import segmenter_training_model
    >>> model = segmenter_training_model(keras_resnet.create("fcn_resnet18", classes=3))
    >>> batch = {"images": np.zeros((2, 32, 32, 3), "float32"), "masks": np.full((2, 32, 32), 255, "uint8")}
    >>> {name: losses.tolist() for name, losses in model.predict(batch, verbose=0).items()}
    {'segmentation': [0.0, 0.0], 'auxiliary': [0.0, 0.0]}

    Inputs are `images` (B, H, W, 3), normalised, and `masks` (B, H, W) uint8, the class of each pixel, or IGNORED.
    Outputs, (B,) float32, are `segmentation`, the cross-entropy of the pixels, and with an auxiliary head `auxiliary`,
    that of its output, enlarged to the size of the images, times AUXILIARY_WEIGHT. Their means over the batch are
    means over its pixels, see `PixelLoss`; the sum of the means is the loss in torchvision's references.

    Args:
        segmenter: a Segmenter.
        class_weights: factor of the loss of the pixels of each class, (K,), as torch's `weight`; None: 1 for all.
    """
    images, masks = segmenter.inputs[0], layers.Input((None, None), dtype="uint8", name="masks")
    logits = {"segmentation": segmenter.get_layer("logits").output}
    if segmenter.spec.auxiliary:
        enlarge = ResizeLike(name="aux_enlarged", dtype="float32")
        logits["auxiliary"] = enlarge(segmenter.get_layer("aux_logits").output, images)
    losses = {
        name: PixelLoss(class_weights, AUXILIARY_WEIGHT if name == "auxiliary" else 1.0, f"{name}_loss")(found, masks)
        for name, found in logits.items()
    }
    return keras.Model({"images": images, "masks": masks}, losses, name=segmenter.name)


class PixelLoss(layers.Layer):
    """Cross-entropy of logits (B, H, W, K) and masks (B, H, W) -> losses (B,) in float32.

    The mean of the losses is the mean over all pixels of the batch that are not IGNORED, weighted by `class_weights`,
    as of torch's `cross_entropy`; 0 if all are IGNORED. The loss of an image is its share of this mean, times B. On
    several devices, it is the mean over the whole batch, not over the part of each.

    Args:
        class_weights: (K,), or None for 1.
        factor: of the loss.
        name: name of the layer.
    """

    def __init__(self, class_weights: Sequence[float] | None = None, factor: float = 1.0, name: str | None = None):
        super().__init__(name=name, dtype="float32")
        self.class_weights = None if class_weights is None else tuple(map(float, class_weights))
        self.factor = factor

    def call(self, logits, masks):
        counted = masks != IGNORED
        labels = ops.where(counted, ops.cast(masks, "int32"), 0)
        weights = ops.cast(counted, "float32")
        if self.class_weights is not None:
            weights = weights * ops.take(ops.convert_to_tensor(self.class_weights, "float32"), labels)
        losses = ops.sum(weights * _cross_entropy(labels, ops.cast(logits, "float32")), axis=(1, 2))
        total, images = _sum_over_devices([ops.sum(weights), ops.sum(ops.ones_like(losses))])
        return losses * (self.factor * images / ops.where(total > 0, total, 1.0))

    def compute_output_shape(self, logits_shape, masks_shape):
        return logits_shape[:1]


def _cross_entropy(labels, logits):
    """(B, H, W) and (B, H, W, K) -> (B, H, W)."""
    if keras.backend.backend() == "torch":  # for which Keras would make one-hot tensors
        found = ops.take_along_axis(logits, ops.cast(labels, "int64")[..., None], axis=-1)[..., 0]
        return ops.logsumexp(logits, axis=-1) - found
    return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def _sum_over_devices(values: list) -> Any:
    """Sums of values over the parts of a batch: of TensorFlow's replicas; on JAX a batch is not divided here."""
    replica = tf.distribute.get_replica_context() if keras.backend.backend() == "tensorflow" else None
    if replica is None or replica.num_replicas_in_sync == 1:  # None while the model is built
        return values
    return replica.all_reduce("SUM", values)
