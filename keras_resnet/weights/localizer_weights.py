"""LocalizerWeights: the weights of a localizer in an open file, and the spec, classes and facts that follow."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import keras

from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.localizer import build_localizer
from keras_resnet.architecture.localizer_spec import LocalizerSpec
from keras_resnet.errors import error_summary, value_error
from keras_resnet.weights.array_lengths import lengths_in_file
from keras_resnet.weights.layout_axes import HEAD_WEIGHTS
from keras_resnet.weights.layouts import Layout
from keras_resnet.weights.network_weights import NetworkWeights
from keras_resnet.weights.spec_matching import NOT_IN_ARRAYS, field_differences, match_spec_to_weights
from keras_resnet.weights.weights_file import WeightsFile

_LENGTHS = {"box_width": ("box_conv/bias",), "classes": HEAD_WEIGHTS[1:]}
"""Field of LocalizerSpec -> weight that is as long as the field's value."""
_MAX_MISSING = 2**22
"""Largest number of weights that a localizer may have beyond those of its file, whose names a message then lists."""


@dataclass(frozen=True)
class LocalizerWeights(NetworkWeights):
    """The weights of a localizer in an open file: everything that can be known before a model is built."""

    @classmethod
    def match(cls, spec: LocalizerSpec, layout: Layout, file: WeightsFile) -> LocalizerSpec:
        """The requested localizer with the width, classes, anchors and network that the file has.

        Raises:
            ValueError: if the file has another network, other boxes, or arrays of lengths that no localizer has.
        """
        saved = file.metadata.spec
        if saved and (different := field_differences(saved.to_config(), spec.to_config(), ("boxes",))):
            expected = f"`{file.path}` should have the weights of the requested localizer"
            raise ValueError(f"{expected}. Received: one with {different}")
        backbone = match_spec_to_weights(spec, layout, file.arrays, saved)
        found: dict[str, Any] = {name: getattr(saved or spec, name) for name in NOT_IN_ARRAYS[LocalizerSpec]}
        found |= lengths_in_file(_LENGTHS, layout, spec, file)
        try:
            return replace(spec, backbone=backbone, **found)
        except ValueError as error:
            raise value_error("path", str(file.path), f"the weights of a localizer ({error_summary(error)})") from error

    def build(self, include_top: bool, classes: int | None, input_shape: tuple | None, **arguments: Any) -> keras.Model:
        """The localizer, whose kernels are zeros.

        Raises:
            ValueError: for images so large that the box head has many more weights than the file.
        """
        shape = self.input_shape(include_top) if input_shape is None else tuple(input_shape)
        stored = sum(math.prod(array.shape) for array in self.file.arrays.values())
        sides = [side or self.network.minimum_size for side in shape[:2]]
        if complexity(self.spec, input_shape=(*sides, *shape[2:])).parameters > stored + _MAX_MISSING:
            expected = f"the size of the images for which the {stored:,} weights of `{self.file.path}` were trained"
            raise value_error("input_shape", shape, expected)
        return build_localizer(replace(self.spec, classes=classes), shape, initialize=False, **arguments)

    @cached_property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.spec.classes

    @property
    def head_weights(self) -> tuple[str, ...]:
        """Weights of the layers that depend on the number of classes: not those of boxes that all classes share."""
        layers = () if self.spec.boxes == "shared" else ("box_scores", "box_deltas")
        return (*HEAD_WEIGHTS, *(f"{layer}/{kind}" for layer in layers for kind in ("kernel", "bias")))
