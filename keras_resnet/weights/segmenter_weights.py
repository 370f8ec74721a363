"""SegmenterWeights: the weights of a segmenter in an open file, and the spec, classes and facts that follow."""

import itertools
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet.architecture.heads import EPSILON
from keras_resnet.architecture.segmentation_heads import SEGMENTER_PREFIXES, head_width
from keras_resnet.architecture.segmenter import build_segmenter
from keras_resnet.architecture.segmenter_spec import MAX_CONVOLUTIONS, SegmenterSpec
from keras_resnet.data.labels import VOC_CLASSES
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.errors import error_summary, value_error
from keras_resnet.weights.array_lengths import check_size, lengths_in_file
from keras_resnet.weights.catalog import WEIGHTS
from keras_resnet.weights.layout_axes import to_keras_axes, weight_variables
from keras_resnet.weights.layouts import Layout
from keras_resnet.weights.network_weights import AnySizeWeights
from keras_resnet.weights.spec_matching import NOT_IN_ARRAYS, match_spec_to_weights
from keras_resnet.weights.weights_file import StoredArray, WeightsFile

_LENGTHS = {
    "head_width": ("fcn_hidden_bn/gamma", "aspp_project_bn/gamma"),
    "decoder_width": ("decoder_skip_bn/gamma",),
    "classes": ("fcn_logits/bias", "aspp_logits/bias", "decoder_logits/bias"),
}
"""Field of SegmenterSpec -> weights; the first one that the file has is as long as the field's value."""
_KERNELS = {
    "deeplabv3plus": "decoder_skip_conv/kernel",
    "deeplabv3": "aspp_project_conv/kernel",
    "fcn": "fcn_hidden_conv/kernel",
}
"""Head -> a weight by which it is recognized, unless the file has that of a head before it."""
_PREDICTORS = {"fcn": "fcn_logits", "deeplabv3": "aspp_logits", "deeplabv3plus": "decoder_logits"}
"""Head -> its layer that predicts the classes."""
_AUXILIARY = (
    "aux_hidden_conv/kernel",
    *(f"aux_hidden_bn/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")),
    *("aux_logits/kernel", "aux_logits/bias"),
)
"""Weights of the auxiliary head."""


@dataclass(frozen=True)
class SegmenterWeights(AnySizeWeights):
    """The weights of a segmenter in an open file: everything that can be known before a model is built."""

    preprocessing_class = SegmentationPreprocessing

    @cached_property
    def num_classes(self) -> int | None:
        """Number of classes; None for a file without the layer that predicts them."""
        kernel = f"{_PREDICTORS[self.spec.head]}/kernel"
        return self.spec.classes if _has(kernel, self.layout, self.spec, self.file) else None

    @property
    def head_weights(self) -> tuple[str, ...]:
        """Weights of the layers that predict classes, of the head and of the auxiliary head."""
        layers = (_PREDICTORS[self.spec.head], "aux_logits")
        return tuple(f"{layer}/{kind}" for layer in layers for kind in ("kernel", "bias"))

    @classmethod
    def match(cls, spec: SegmenterSpec, layout: Layout, file: WeightsFile) -> SegmenterSpec:
        """The requested segmenter with the widths, decoder, classes and backbone that the file has.

        It has an auxiliary head if it should have one and the file has its weights. The output stride is the requested
        one, since it does not change the weights.

        Raises:
            ValueError: if the file has the weights of another head, or widths that need more memory than the arrays of
                the file.
        """
        saved = file.metadata.spec
        _check_structure(spec, layout, file)
        backbone = match_spec_to_weights(spec, layout, file.arrays, saved)
        found: dict[str, Any] = {name: getattr(saved or spec, name) for name in NOT_IN_ARRAYS[SegmenterSpec]}
        if spec.head == "deeplabv3plus":
            found["decoder_kernels"] = _decoder_kernels(layout, spec, file)
        names = _replaced(spec, file, **found)  # the names of arrays depend on the decoder
        found |= _predicted_classes(layout, names, file) | lengths_in_file(_LENGTHS, layout, names, file)
        if found.get("head_width") == head_width(spec):
            del found["head_width"]
        found["auxiliary"] = spec.auxiliary and any(_has(name, layout, spec, file) for name in _AUXILIARY)
        matched = _replaced(spec, file, backbone=backbone, **found)
        check_size(spec, matched, file, _LENGTHS)
        return matched

    def build(self, include_top: bool, classes: int | None, input_shape: tuple | None, **arguments: Any) -> keras.Model:
        """The segmenter, whose kernels are zeros; warns if its output stride is not that of the file."""
        saved: Any = self.file.metadata.spec
        if saved and saved.output_stride != self.spec.output_stride:
            warnings.warn(
                f"The weights of `{self.file.path}` were trained with an output stride of {saved.output_stride}, the "
                f"network has {self.spec.output_stride}: `output_stride={saved.output_stride}` changes that.",
                stacklevel=5,
            )
        spec = replace(self.spec, classes=self.spec.classes if classes is None else classes)
        return build_segmenter(spec, initialize=False, **arguments)

    def keras_arrays(self, model: keras.Model) -> dict[str, StoredArray]:
        """As of other networks; without those of the auxiliary head, which has no effect, if the model has none.

        Weights that the networks of the layout do not have are zeros, and variances contain the difference between the
        epsilon of its batch norm and that of the networks here.
        """
        arrays = super().keras_arrays(model)
        variables = weight_variables(model)
        arrays |= {name: _zeros(variables[name].shape) for name in self.layout.zeros if name in variables}
        if epsilon := self.layout.head_epsilon:
            arrays = {name: _with_epsilon(name, array, epsilon - EPSILON) for name, array in arrays.items()}
        if model.spec.auxiliary:
            return arrays
        others = {*_AUXILIARY, *(self.layout.array_name(name, self.spec) for name in _AUXILIARY)}
        return {name: array for name, array in arrays.items() if name not in others}

    def _usual_class_names(self):
        """Those of PASCAL VOC for files of that many classes of torchvision and KerasHub."""
        is_voc = not self.layout.is_keras and self.num_classes == len(VOC_CLASSES)
        return VOC_CLASSES if is_voc else None

    def _usual_preprocessing(self):
        """The preprocessing of the published file of this name."""
        published = {Path(row.url).name: row.preprocessing for row in WEIGHTS.values()}
        found = published.get(self.file.path.name)
        return found if isinstance(found, SegmentationPreprocessing) else None


def _check_structure(spec, layout, file):
    """Raises ValueError if the file, by its spec or by the names of its arrays, has another head or another pyramid."""
    different, saved = "", file.metadata.spec
    heads = (head for head, name in _KERNELS.items() if _has(name, layout, replace(spec, head=head), file))
    found = saved.head if saved else next(heads, None)
    if found != spec.head:
        different = f"one with the head {found!r}, not {spec.head!r}"
    elif spec.head != "fcn":
        names = (f"aspp_branch{number}_conv/kernel" for number in itertools.count(1))
        branches = sum(1 for _ in itertools.takewhile(lambda name: _has(name, layout, spec, file), names))
        if branches != len(rates := (saved or spec).rates):
            different = f"one with {branches} dilated convolutions, not {len(rates)} as `rates={rates}`"
    if different:
        raise ValueError(f"`{file.path}` should have the weights of the requested segmenter. Received: {different}")


def _replaced(spec, file, **fields):
    """The spec with other fields; raises ValueError, which names the file, for values that it cannot have."""
    try:
        return replace(spec, **fields)
    except ValueError as error:
        raise value_error("path", str(file.path), f"the weights of a segmenter ({error_summary(error)})") from error


def _kernel_shape(layer, layout, spec, file):
    """Shape of a convolution's kernel with Keras's axes; None if the file has no such kernel."""
    array = file.arrays.get(layout.array_name(f"{layer}/kernel", spec) or "")
    shape = array and to_keras_axes(array, layout, f"{layer}/kernel").shape
    return shape if shape and len(shape) == 4 else None


def _decoder_kernels(layout, spec, file):
    """Sides of the kernels of the decoder's hidden convolutions, those that a batch norm follows."""
    layers = (f"decoder_hidden{number}" for number in range(MAX_CONVOLUTIONS))
    found = itertools.takewhile(lambda layer: _has(f"{layer}_bn/gamma", layout, spec, file), layers)
    shapes = (_kernel_shape(f"{layer}_conv", layout, spec, file) for layer in found)
    return tuple(shape[0] for shape in shapes if shape)


def _predicted_classes(layout, spec, file):
    """{"classes": channels of the layer that predicts them}; {} if the file has no such layer."""
    shape = _kernel_shape(_PREDICTORS[spec.head], layout, spec, file)
    return {"classes": shape[-1]} if shape and shape[-1] else {}


def _zeros(shape):
    """A StoredArray of zeros."""
    return StoredArray(tuple(shape), np.dtype("float32"), lambda: np.zeros(shape, "float32"))


def _with_epsilon(name, array, difference):
    """The StoredArray, to which a number is added if it is a variance of a head."""
    if not (name.startswith(SEGMENTER_PREFIXES) and name.endswith("/moving_variance")):
        return array
    return replace(array, read=lambda: array.read() + np.float32(difference))


def _has(name, layout, spec, file):
    """Whether a file has a weight."""
    return layout.array_name(name, spec) in file.arrays
