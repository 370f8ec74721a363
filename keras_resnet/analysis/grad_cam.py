"""Grad-CAM: which part of an image speaks for a class (Selvaraju et al. 2017, arXiv:1610.02391)."""

import math

import keras
import numpy as np
from keras import ops

from keras_resnet.analysis.gradients import gradients
from keras_resnet.architecture.metadata import to_channels_last
from keras_resnet.files import save_figure
from keras_resnet.models.layers import check_inputs, class_scores, find_layer, last_feature_map


def grad_cam(model, inputs, classes=None, layer=None):
    """Heat maps: relu of the feature maps' sum, weighted by the mean gradient of the class's score (eq. 1 and 2).

    The score is the one before the softmax. A map is divided by its maximum; one that is nowhere positive is all zero.

    Args:
        model: keras.Model, a classifier, on the backends TensorFlow, JAX or torch.
        inputs: network inputs (B, H, W, C), in the model's order of axes.
        classes: number of a class, or one for each image; None for the predicted ones.
        layer: name of a layer or endpoint through which all that follows passes, such as "stage3" or the output of a
            block; None for the last feature map.

    Returns:
        (B, h, w) float32 in 0..1, of the size of the layer's maps.

    Raises:
        ValueError: for inputs that do not fit the model, an unknown layer (with the nearest known ones) or one within a
            block, a class that does not exist, and a model that is no classifier.
    """
    inputs, scores = check_inputs(model, inputs), class_scores(model)
    found = find_layer(model, layer) if layer else last_feature_map(model)
    tail = _tail(found, scores)
    features, values = keras.Model(model.inputs[0], [found.output, scores]).predict_on_batch(inputs)
    chosen = ops.one_hot(_check_classes(classes, ops.convert_to_numpy(values)), values.shape[-1])

    def score(maps):
        return ops.sum(chosen * ops.cast(tail(maps[0], training=False), "float32"))

    (slopes,) = gradients(score, [features])
    features = np.asarray(ops.convert_to_numpy(ops.cast(features, "float32")))
    maps, slopes = (to_channels_last(model, array) for array in (features, slopes))
    heat = np.maximum(np.einsum("bhwc,bc->bhw", maps, slopes.mean(axis=(1, 2))), 0)
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), np.finfo("float32").tiny)


def _tail(layer, scores):
    """The model from a layer's maps to the scores."""
    try:
        return keras.Model(layer.output, scores)
    except ValueError as error:  # Keras: not connected to the inputs
        raise ValueError(
            "`layer` should be one through which all that follows passes, such as an endpoint or the output of a "
            f"block. Received: layer={layer.name!r}"
        ) from error


def _check_classes(classes, scores):
    """(B,) numbers of classes."""
    count = scores.shape[-1]
    chosen = scores.argmax(axis=-1) if classes is None else np.asarray(classes)
    integers = chosen.shape in ((), (len(scores),)) and chosen.dtype.kind in "iu"
    if not integers or chosen.min() < 0 or chosen.max() >= count:
        raise ValueError(
            f"`classes` should be an integer from 0 to {count - 1}, or one for each of {len(scores)} images. "
            f"Received: classes={classes!r}"
        )
    return np.broadcast_to(chosen, len(scores)).astype("int32")


def draw_grad_cam(images, maps, path, titles=None):
    """Draws heat maps over the images that they explain.

    Args:
        images: (B, H, W, 3) or (B, H, W, 1), or a list of (H, W, C) of any sizes: uint8, or floats in 0..1.
        maps: (B, h, w) in 0..1, stretched over them.
        path: the PNG to write.
        titles: a text for each image.

    Raises:
        ValueError: if there are not as many images and titles as maps.
    """
    from matplotlib.figure import Figure

    titles = [""] * len(maps) if titles is None else titles
    if not len(images) == len(maps) == len(titles) or not len(maps):
        raise ValueError(
            "`images`, `maps` and `titles` should be equally many, at least one. "
            f"Received: {len(images)}, {len(maps)} and {len(titles)}"
        )
    columns = math.ceil(math.sqrt(len(maps)))
    rows = math.ceil(len(maps) / columns)
    figure = Figure(figsize=(3 * columns, 3.3 * rows), layout="constrained")
    for i, (image, heat, title) in enumerate(zip(images, maps, titles, strict=True), 1):
        height, width = image.shape[:2]
        axes = figure.add_subplot(rows, columns, i, title=title)
        extent = (0, width, height, 0)
        axes.imshow(image, cmap="gray", extent=extent)
        axes.imshow(heat, "jet", alpha=0.45, vmin=0, vmax=1, extent=extent, interpolation="bilinear")
        axes.axis("off")
    save_figure(figure, path)
