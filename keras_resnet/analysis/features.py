"""First-layer filters and feature maps as arrays and plots."""

import math
import os

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_resnet.architecture.metadata import to_channels_last
from keras_resnet.files import figure_file
from keras_resnet.models.cloning import as_functional
from keras_resnet.models.layers import check_inputs, convolutions, find_layer


def first_filters(model: keras.Model) -> np.ndarray:
    """The kernels of the first convolution as images.

    >>> import keras_resnet
    >>> keras_resnet.analysis.first_filters(keras_resnet.create("resnet20")).shape
    (16, 3, 3, 3)

    Args:
        model: Keras model with convolutions.

    Returns:
        (filters, k, k, C) float32 in 0..1: each filter divided by twice its largest absolute weight, plus 0.5. The
        channels are in the order of the model's inputs, which is BGR for the preprocessing mode "caffe".

    Raises:
        ValueError: for a model without convolutions.
    """
    kernel = np.asarray(keras.ops.convert_to_numpy(convolutions(as_functional(model))[0].kernel), "float32")
    filters = np.moveaxis(kernel, -1, 0)
    largest = abs(filters).max(axis=(1, 2, 3), keepdims=True)
    return 0.5 + filters / np.maximum(2 * largest, np.finfo("float32").tiny)


def feature_maps(model: keras.Model, inputs: ArrayLike, layer: str) -> np.ndarray:
    """The output of a layer with height and width.

    >>> import keras_resnet
    >>> import numpy as np
    >>> model = keras_resnet.create("resnet20")
    >>> keras_resnet.analysis.feature_maps(model, np.zeros((1, 32, 32, 3)), "stage2").shape
    (1, 16, 16, 32)

    Args:
        model: Keras model.
        inputs: (B, H, W, C) preprocessed images, in the model's data format.
        layer: name of a layer, or an endpoint of a residual network ("stem", "stage1", ...).

    Returns:
        (B, h, w, C) float32, channels last for any model.

    Raises:
        ValueError: for an unknown layer, with the nearest known names, and for inputs that do not fit the model.
    """
    model = as_functional(model)
    found, inputs = find_layer(model, layer), check_inputs(model, inputs)
    maps = keras.Model(model.inputs[0], keras.ops.cast(found.output, "float32")).predict_on_batch(inputs)
    return to_channels_last(model, np.asarray(keras.ops.convert_to_numpy(maps)))


def plot_filters(filters: np.ndarray, path: str | os.PathLike, title: str = "") -> None:
    """Plot filters side by side: in color if they have 3 channels, otherwise every channel in gray.

    >>> import keras_resnet
    >>> filters = keras_resnet.analysis.first_filters(keras_resnet.create("resnet20"))
    >>> keras_resnet.analysis.plot_filters(filters, "filters.png")

    Args:
        filters: (filters, k, k, C) in 0..1, from `first_filters`.
        path: PNG file to write.
        title: title of the figure.

    Raises:
        ValueError: for an array of another rank.
    """
    filters = np.asarray(filters)
    if filters.ndim != 4 or not filters.size:
        raise ValueError(f"`filters` should be (filters, k, k, C), not empty. Received: shape {filters.shape}")
    if filters.shape[-1] != 3:
        filters = np.concatenate(np.moveaxis(filters, -1, 1))
    _plot_mosaic(filters, path, title)


def plot_feature_maps(maps: np.ndarray, path: str | os.PathLike, title: str = "", max_channels: int = 64) -> None:
    """Plot the channels of one image's feature maps in gray, each from its minimum (black) to its maximum (white).

    >>> import numpy as np
    >>> from keras_resnet import analysis
    >>> analysis.plot_feature_maps(np.random.default_rng(0).normal(size=(8, 8, 16)), "maps.png")

    Args:
        maps: (h, w, C), such as `feature_maps(model, inputs, "stage2")[0]`.
        path: PNG file to write.
        title: title of the figure.
        max_channels: number of channels to plot at most.

    Raises:
        ValueError: for an array of another rank.
    """
    maps = np.asarray(maps, "float32")
    if maps.ndim != 3 or not maps.size:
        raise ValueError(f"`maps` should be (h, w, C), the maps of one image. Received: shape {maps.shape}")
    tiles = np.moveaxis(maps[..., :max_channels], -1, 0)
    lowest, highest = (f(tiles, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    scale = np.maximum(highest - lowest, np.finfo("float32").tiny)
    _plot_mosaic((tiles - lowest) / scale, path, title)


def _plot_mosaic(tiles, path, title):
    with figure_file(path, figsize=(7, 7)) as figure:
        axes = figure.add_subplot(title=title)
        axes.imshow(mosaic(tiles), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.axis("off")


def mosaic(tiles: ArrayLike) -> np.ndarray:
    """Arrange (n, h, w) or (n, h, w, C) values in 0..1 in about as many columns as rows, one white pixel apart."""
    tiles = np.asarray(tiles, "float32")
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    height, width = np.add(tiles.shape[1:3], 1)
    sheet = np.ones((rows * height, columns * width, *tiles.shape[3:]), "float32")
    for i, tile in enumerate(tiles):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height - 1, left : left + width - 1] = tile
    return sheet[:-1, :-1]
