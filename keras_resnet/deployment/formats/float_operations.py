"""Which operations of a graph are left in float32 when a network is quantised to int8."""

from collections.abc import Mapping, Sequence, Set

import keras
import numpy as np


def quantized_kernels(model: keras.Model, float_layers: Sequence[str]) -> set[bytes]:
    """The kernels of a model's convolutions, (filters, channels, height, width), without those of some layers.

    Operations of other formats do not have the names of the layers: they are found by their kernels.
    """
    layers = [layer for layer in model.layers if hasattr(layer, "kernel") and layer.name not in float_layers]
    return {np.moveaxis(keras.ops.convert_to_numpy(layer.kernel), (3, 2), (0, 1)).tobytes() for layer in layers}


def float_operations(parents: Mapping[str, Sequence[str]], quantized: Set[str]) -> list[str]:
    """Names of the operations that do not lead from a quantised one to another one.

    >>> from keras_resnet.deployment.formats.float_operations import float_operations
    >>> parents = {"images": [], "normalise": ["images"], "conv1": ["normalise"], "relu": ["conv1"]}
    >>> float_operations(parents | {"conv2": ["relu"], "softmax": ["conv2"]}, {"conv1", "conv2"})
    ['images', 'normalise', 'softmax']

    Args:
        parents: operation -> operations whose outputs it receives; those come first.
        quantized: operations that are quantised.
    """
    after, before = set(quantized), set(quantized)
    for name, inputs in parents.items():
        if after.intersection(inputs):
            after.add(name)
    for name, inputs in reversed(list(parents.items())):
        if name in before:
            before.update(inputs)
    return [name for name in parents if name not in after & before]
