"""What the first layer looks for, and what the maps of any layer hold for a given image."""

import keras
import numpy as np

from keras_resnet.analysis.drawing import draw_mosaic
from keras_resnet.architecture.metadata import to_channels_last
from keras_resnet.models.layers import check_inputs, convolutions, find_layer


def first_filters(model):
    """The kernels of the first convolution as images.

    Args:
        model: keras.Model with convolutions.

    Returns:
        (filters, k, k, C) float32 in 0..1: each filter scaled by its largest absolute weight, zero at 0.5. Channels are
        in the order of the network's inputs, that is BGR for the preprocessing mode "caffe".

    Raises:
        ValueError: for a model without convolutions.
    """
    kernel = np.asarray(keras.ops.convert_to_numpy(convolutions(model)[0].kernel), "float32")
    filters = np.moveaxis(kernel, -1, 0)
    largest = abs(filters).max(axis=(1, 2, 3), keepdims=True)
    return 0.5 + filters / np.maximum(2 * largest, np.finfo("float32").tiny)


def feature_maps(model, inputs, layer):
    """The maps that leave a layer.

    Args:
        model: keras.Model.
        inputs: network inputs (B, H, W, C), in the model's order of axes.
        layer: name of a layer, or an endpoint of a residual network ("stem", "stage1", ...).

    Returns:
        (B, h, w, C) float32, channels last in any model.

    Raises:
        ValueError: for an unknown layer, with the nearest known ones, and for inputs that do not fit the model.
    """
    found, inputs = find_layer(model, layer), check_inputs(model, inputs)
    maps = keras.Model(model.inputs[0], keras.ops.cast(found.output, "float32")).predict_on_batch(inputs)
    return to_channels_last(model, np.asarray(keras.ops.convert_to_numpy(maps)))


def draw_filters(filters, path, title=""):
    """Draws `first_filters(model)` side by side; those of other than 1 or 3 channels a channel at a time, in grey."""
    filters = np.asarray(filters)
    if filters.ndim != 4 or not filters.size:
        raise ValueError(f"`filters` should be (n, k, k, C), not empty. Received: shape {filters.shape}")
    if filters.shape[-1] != 3:
        filters = np.concatenate(np.moveaxis(filters, -1, 1))
    draw_mosaic(filters, path, title)


def draw_feature_maps(maps, path, title="", most=64):
    """Draws the first channels of one image's maps, each from its least value, dark, to its greatest.

    Args:
        maps: (h, w, C), such as `feature_maps(model, inputs, "stage2")[0]`.
        path: the PNG to write.
        title: above the image.
        most: how many channels.

    Raises:
        ValueError: for maps of another rank.
    """
    maps = np.asarray(maps, "float32")
    if maps.ndim != 3 or not maps.size:
        raise ValueError(f"`maps` should be (h, w, C), the maps of one image. Received: shape {maps.shape}")
    tiles = np.moveaxis(maps[..., :most], -1, 0)
    least, greatest = (f(tiles, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    span = np.maximum(greatest - least, np.finfo("float32").tiny)
    draw_mosaic((tiles - least) / span, path, title)
