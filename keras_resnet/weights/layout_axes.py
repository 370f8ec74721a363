"""Weights of a network by name, and the axes of its arrays in each layout."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import keras
import numpy as np

from keras_resnet.architecture.detector import BOX_SIZE
from keras_resnet.architecture.detector import HEAD_PREFIXES as DETECTOR_PREFIXES
from keras_resnet.architecture.segmentation_heads import SEGMENTER_PREFIXES
from keras_resnet.weights.layouts import Layout
from keras_resnet.weights.weights_file import StoredArray

HEAD_WEIGHTS = ("predictions/kernel", "predictions/bias")
HEAD_PREFIXES = (*DETECTOR_PREFIXES, *SEGMENTER_PREFIXES)
"""Prefixes of the names of layers that detectors, localizers and segmenters have beside their residual network's."""
FLATTENED = ("box_fc6/kernel", "box_fc_after_convs/kernel")
"""Dense layers on flattened features of regions: torch flattens (channels, height, width)."""
_CELLS = BOX_SIZE**2
_NUMBERED = {"Conv2D": "conv2d", "BatchNormalization": "batch_normalization", "Dense": "dense"}


def weight_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """{"<layer>/<weight>": variable} of a network, in the order of its layers, without layers before `input_tensor`."""
    layers = (
        layer
        for layer in model.layers
        if re.match(r"conv\d+_|pool1_|post_|predictions$", layer.name) or layer.name.startswith(HEAD_PREFIXES)
    )
    return {f"{layer.name}/{weight.name}": weight for layer in layers for weight in layer.weights}


def with_layer_names(arrays: Mapping[str, StoredArray], layers: Iterable[keras.Layer]) -> dict[str, StoredArray]:
    """Arrays by layer name: "conv2d_3/kernel" of older Keras files, which number the layers of a class, is renamed."""
    names, counts = {}, Counter[str]()
    for layer in layers:
        if kind := _NUMBERED.get(type(layer).__name__):
            names[f"{kind}_{counts[kind]}" if counts[kind] else kind] = layer.name
            counts[kind] += 1
    split = ((*name.rpartition("/"), array) for name, array in arrays.items())
    return {f"{names.get(layer, layer)}{slash}{weight}": array for layer, slash, weight, array in split}


_AXES = {4: (2, 3, 1, 0), 3: (2, 1, 0), 2: (1, 0)}
"""Number of axes of a kernel -> torch's axes in Keras's order; torch has (out, in, height, width)."""


def to_keras_axes(array: StoredArray, layout: Layout, name: str | None) -> StoredArray:
    """The array of a file for the Keras weight `name` with Keras's axes; unchanged if `name` is None."""
    axes = _AXES.get(len(array.shape))
    if layout.keras_axes or name is None or axes is None:
        return array
    if name in FLATTENED and len(axes) == 2 and array.shape[1] % _CELLS == 0:
        units, inputs = array.shape
        return replace(array, shape=(inputs, units), read=lambda: _flatten_cells(array.read()))
    shape = tuple(array.shape[axis] for axis in axes)
    if name == HEAD_WEIGHTS[0]:  # in some files a 1x1 convolution
        shape = shape[-2:] if shape[:-2] in ((), (1, 1)) else shape
    return replace(array, shape=shape, read=lambda: array.read().transpose(axes).reshape(shape))


def _flatten_cells(kernel):
    """(units, channels * cells) of a dense layer on a region's features -> (cells * channels, units)."""
    units = len(kernel)
    return np.ascontiguousarray(kernel.reshape(units, -1, _CELLS).transpose(2, 1, 0)).reshape(-1, units)


def to_layout_axes(array: np.ndarray, layout: Layout, name: str) -> np.ndarray:
    """The Keras weight `name` with the axes of the layout, contiguous."""
    if layout.keras_axes or array.ndim not in _AXES:
        return array
    if layout.dense_as_conv and name == HEAD_WEIGHTS[0]:
        array = array[None, None]
    if name in FLATTENED:
        array = array.reshape(_CELLS, -1, array.shape[1]).transpose(1, 0, 2).reshape(array.shape)
    return np.ascontiguousarray(array.transpose(np.argsort(_AXES[array.ndim])))
