"""Widths and classes of a network from the lengths of the arrays in a file, and whether the file has such a network."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from keras_resnet.architecture.complexity import complexity
from keras_resnet.weights.layouts import Layout
from keras_resnet.weights.weights_file import WeightsFile

_SIDE = 64
"""Side in pixels of the images for which weights are counted."""


def lengths_in_file(
    table: Mapping[str, tuple[str, ...]], layout: Layout, spec: Any, file: WeightsFile
) -> dict[str, int]:
    """{field: length of the first of its weights that the file has}, without those of which it has none.

    Args:
        table: field of a spec -> weights of one axis.
        layout: Layout of the file.
        spec: spec of the network, for the names of its arrays.
        file: the open file.
    """
    arrays = {
        field: [file.arrays.get(layout.array_name(name, spec) or "") for name in names]
        for field, names in table.items()
    }
    lengths = {
        field: [array.shape[0] for array in found if array and len(array.shape) == 1] for field, found in arrays.items()
    }
    return {field: found[0] for field, found in lengths.items() if found and found[0]}


def check_size(requested: Any, found: Any, file: WeightsFile, widths: Iterable[str]) -> None:
    """Raises ValueError if the spec that a file implies has more weights than the requested one and the file's arrays.

    Args:
        requested: spec of the requested network.
        found: the same with the widths that follow from the lengths of the file's arrays.
        file: the open file.
        widths: names of these fields.
    """
    needed, limit = map(_num_weights, (found, requested))
    stored = sum(math.prod(array.shape) for array in file.arrays.values())
    if needed > max(stored, limit):
        lengths = {field: getattr(found, field) for field in widths}
        expected = f"`{file.path}` should have {needed:,} weights, since the lengths of its arrays imply {lengths}"
        raise ValueError(f"{expected}. Received: {stored:,} weights")


def _num_weights(spec):
    """Number of all weights, trainable or not, which does not depend on the size of the images."""
    found = complexity(spec, input_shape=(_SIDE, _SIDE, 3))
    return found.parameters + found.statistics
