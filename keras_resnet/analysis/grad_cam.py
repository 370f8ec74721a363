"""Grad-CAM: heat maps of the image regions that increase the score of a class (arXiv:1610.02391)."""

import math
import os
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_resnet.analysis.signals import gradients
from keras_resnet.architecture.metadata import to_channels_last
from keras_resnet.errors import value_error
from keras_resnet.files import figure_file
from keras_resnet.models.cloning import as_functional
from keras_resnet.models.layers import check_inputs, class_scores, find_layer, last_feature_map


def grad_cam(
    model: keras.Model, inputs: ArrayLike, class_indices: ArrayLike | None = None, layer: str | None = None
) -> np.ndarray:
    """Grad-CAM heat maps (Selvaraju et al. 2017, eq. 1 and 2).

    A heat map is the ReLU of the sum of a layer's feature maps, each weighted by the mean gradient of the class's score
    before the softmax; for a detector, of the score of its best detection of the class. It is divided by its maximum;
    without positive values it is all zero.

    >>> import keras_resnet
    >>> import numpy as np
    >>> model = keras_resnet.create("resnet20")
    >>> keras_resnet.analysis.grad_cam(model, np.ones((2, 32, 32, 3))).shape
    (2, 8, 8)

    Args:
        model: Keras classifier or detector, on the backends TensorFlow, JAX or torch.
        inputs: preprocessed images (B, H, W, C) in the model's data format.
        class_indices: index of a class, or one per image, for a detector a label of its detections; None for the
            predicted classes.
        layer: layer with a feature map, or endpoint, such as "stage3"; None for the last feature map, for a detector
            that of the last stage.

    Returns:
        (B, h, w) float32 in 0..1, with the height and width of the layer's feature maps.

    Raises:
        ValueError: for inputs that do not fit the model, an unknown layer (with the nearest known names), a layer that
            is called several times, a class that does not exist, and a model that is no classifier or detector.
    """
    model = as_functional(model)
    inputs, scores = check_inputs(model, inputs), class_scores(model)
    found = find_layer(model, layer) if layer else last_feature_map(model)
    network = keras.Model(model.inputs[0], [found.output, scores])
    if sum(node.operation is found for nodes in network._nodes_by_depth.values() for node in nodes) > 1:
        raise value_error("layer", found.name, "a layer that is called once")
    features, values = network.predict_on_batch(inputs)
    selected = ops.one_hot(_check_classes(class_indices, ops.convert_to_numpy(values)), values.shape[-1])

    def score(changes):
        def call(operation, *arguments, **keywords):
            outputs = operation(*arguments, **keywords)
            return outputs + changes[0] if operation is found else outputs

        _, scores = network._run_through_graph(ops.convert_to_tensor(inputs), call_fn=call)
        return ops.sum(selected * ops.cast(scores, "float32"))

    (slopes,) = gradients(score, [ops.zeros_like(features)])
    features = np.asarray(ops.convert_to_numpy(ops.cast(features, "float32")))
    maps, slopes = (to_channels_last(model, array) for array in (features, slopes))
    heat = np.maximum(np.einsum("bhwc,bc->bhw", maps, slopes.mean(axis=(1, 2))), 0)
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), np.finfo("float32").tiny)


def _check_classes(class_indices, logits):
    """(B,) indices of classes."""
    num_images, num_classes = logits.shape
    indices = logits.argmax(axis=-1) if class_indices is None else np.asarray(class_indices)
    integers = indices.shape in ((), (num_images,)) and indices.dtype.kind in "iu"
    if not integers or indices.min() < 0 or indices.max() >= num_classes:
        expected = f"an integer from 0 to {num_classes - 1}, or {num_images} such integers"
        raise value_error("class_indices", class_indices, expected)
    return np.broadcast_to(indices, num_images).astype("int32")


def plot_grad_cam(
    images: np.ndarray | Sequence[np.ndarray],
    maps: np.ndarray,
    path: str | os.PathLike,
    titles: Sequence[str] | None = None,
) -> None:
    """Plot heat maps over their images.

    >>> import numpy as np
    >>> from keras_resnet import analysis
    >>> analysis.plot_grad_cam(np.zeros((1, 32, 32, 3)), np.ones((1, 8, 8)), "grad_cam.png", ["cat"])

    Args:
        images: (B, H, W, 3) or (B, H, W, 1), or a list of (H, W, C) of any sizes: uint8, or floats in 0..1.
        maps: (B, h, w) in 0..1, resized to the images.
        path: PNG file to write.
        titles: title of each image.

    Raises:
        ValueError: if the numbers of images, maps and titles differ, or are zero.
    """
    titles = [""] * len(maps) if titles is None else titles
    if not len(images) == len(maps) == len(titles) or not len(maps):
        raise ValueError(
            "`images`, `maps` and `titles` should have the same length, at least 1. "
            f"Received: lengths {len(images)}, {len(maps)} and {len(titles)}"
        )
    columns = math.ceil(math.sqrt(len(maps)))
    rows = math.ceil(len(maps) / columns)
    with figure_file(path, figsize=(3 * columns, 3.3 * rows), layout="constrained") as figure:
        for i, (image, heat, title) in enumerate(zip(images, maps, titles, strict=True), 1):
            height, width = image.shape[:2]
            axes = figure.add_subplot(rows, columns, i, title=title)
            extent = (0, width, height, 0)
            axes.imshow(image, cmap="gray", extent=extent)
            axes.imshow(heat, "jet", alpha=0.45, vmin=0, vmax=1, extent=extent, interpolation="bilinear")
            axes.axis("off")
