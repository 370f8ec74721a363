"""Load a weights file into a network, and build the network of a weights file."""

import os
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.detector_spec import DetectorSpec
from keras_resnet.architecture.layers import initialize_kernel
from keras_resnet.architecture.localizer_spec import LocalizerSpec
from keras_resnet.architecture.metadata import model_spec
from keras_resnet.architecture.network import build
from keras_resnet.architecture.segmenter_spec import SegmenterSpec
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.errors import value_error
from keras_resnet.weights.detector_weights import DetectorWeights
from keras_resnet.weights.file_formats import open_weights
from keras_resnet.weights.layout_axes import HEAD_PREFIXES, HEAD_WEIGHTS, weight_variables
from keras_resnet.weights.localizer_weights import LocalizerWeights
from keras_resnet.weights.network_weights import NetworkWeights, first_kernel
from keras_resnet.weights.segmenter_weights import SegmenterWeights
from keras_resnet.weights.spec_matching import (
    check_spec_fits_weights,
    detect_layout,
    get_layout,
    kind_of_network,
    variant_of,
)
from keras_resnet.weights.weights_file import WeightsFile

_KINDS = {
    ResNetSpec: NetworkWeights,
    DetectorSpec: DetectorWeights,
    LocalizerSpec: LocalizerWeights,
    SegmenterSpec: SegmenterWeights,
}
"""Class of a spec -> that of the weights of its networks."""


@contextmanager
def _open_network_weights(path, spec, layout="auto", source_preprocessing=None, head=None):
    """Yield the NetworkWeights of a file for a network like `spec`; `layout`: a name in LAYOUTS, or "auto".

    `head`: path of another file, whose arrays are added, or None.
    """
    network_bytes = 4 * complexity(spec).parameters
    with open_weights(path, network_bytes) as file, open_weights(head) if head else nullcontext() as head_file:
        if head_file:
            file = replace(file, arrays=file.arrays | head_file.arrays)
        row = detect_layout(file.arrays, path) if layout == "auto" else get_layout(layout, spec)
        file = _of_kind(type(spec), file)
        weights = _KINDS[type(spec)]
        yield weights(file, row, weights.match(spec, row, file), source_preprocessing)


_NAMES = {
    ResNetSpec: "a residual network",
    DetectorSpec: "a detector",
    LocalizerSpec: "a localizer",
    SegmenterSpec: "a segmenter",
}
_HINTS = {
    ResNetSpec: "Weights of a backbone are the argument `backbone_weights` of `create`.",
    DetectorSpec: "`create(name, weights=path)` with the name of a detector takes them.",
    SegmenterSpec: "`create(name, weights=path)` with the name of a segmenter takes them.",
}


def _of_kind(requested, file):
    """The file with the arrays of such a network; a localizer's without the box head are those of its classifier."""
    if requested is ResNetSpec and _kind(file) is LocalizerSpec:
        arrays = {name: array for name, array in file.arrays.items() if not name.startswith(HEAD_PREFIXES)}
        return replace(file, arrays=arrays)
    check_kind(requested, file)
    return file


def check_kind(requested: type, file: WeightsFile) -> None:
    """Raises ValueError for an open file with the weights of a network that has a spec of another class."""
    if (found := _kind(file)) is not requested:
        expected = f"a file with the weights of {_NAMES[requested]}, not of {_NAMES[found]}"
        raise value_error("path", str(file.path), expected, _HINTS.get(found, ""))


def _kind(file):
    """Class of the spec of the network in a file; raises ValueError for a spec that is not that of the arrays."""
    found, saved = kind_of_network(file.arrays), file.metadata.spec
    if saved and type(saved) is not found:
        expected = f"a file with the spec of {_NAMES[found]}, whose arrays it has, not of {_NAMES[type(saved)]}"
        raise value_error("path", str(file.path), expected)
    return found


def load_weights(model: keras.Model, path: str | os.PathLike, layout: str = "auto") -> None:
    """Load all weights of a file into a network; names and shapes should match exactly.

    >>> import keras_resnet
    >>> keras_resnet.save_weights(keras_resnet.create("resnet20", classes=3), "weights.safetensors")
    >>> model = keras_resnet.create("resnet20", classes=3)
    >>> keras_resnet.load_weights(model, "weights.safetensors")
    >>> model.info["weights"]
    'weights.safetensors'

    Args:
        model: network of this package.
        path: `.safetensors`, PyTorch or Keras file, recognized by its content.
        layout: names and axes of the arrays: "keras", "torchvision", "timm", "cifar", "keras_hub", or "auto" to detect
            them.

    Raises:
        ValueError: if the file is damaged or does not match the model; the message lists the differences. The model
            is unchanged in this case.
        FileNotFoundError: if there is no such file.
    """
    spec = require_spec(model)
    with _open_network_weights(path, spec, layout) as weights:
        check_spec_fits_weights(spec, weights.spec, path)
        matched = _match_variables(model, weights.keras_arrays(model), path)
        values = [(variable, array.read()) for variable, array in matched]
        info = weights.info(model)
    for variable, value in values:  # everything has been read and validated
        variable.assign(value)
    _set_info(model, info)
    warn_if_not_finite(model, path)


def build_from_file(
    spec: ResNetSpec | DetectorSpec | LocalizerSpec | SegmenterSpec,
    path: str | os.PathLike,
    include_top: bool | None = True,
    classes: int | None = None,
    input_shape: tuple[int | None, ...] | None = None,
    preprocessing: Any = None,
    head: str | os.PathLike | None = None,
    **arguments: Any,
) -> keras.Model:
    """Build the network of a weights file and load the weights.

    If the number of input channels differs from the file's, the first kernels are adapted: summed over the channels
    for grayscale images, otherwise repeated over the channels and scaled.

    Args:
        spec: requested network; stride placement, biases and epsilon are taken from the weights.
        path: weights file.
        include_top: whether to build the classifier; None: if the file has one.
        classes: number of classes; None for the file's. For another number, or if the file has no classifier, it is
            newly initialized.
        input_shape: None for the file's number of channels and, with the classifier, the size of its preprocessing.
        preprocessing: Preprocessing that was published with the file; None to take it from the file.
        head: file with the weights of the classifier, if they are not in `path`.
        **arguments: further arguments of `build`.

    Raises:
        ValueError: if the file is damaged or belongs to another network; the message lists the differences.
    """
    with _open_network_weights(path, spec, source_preprocessing=preprocessing, head=head) as weights:
        has_head = weights.num_classes is not None
        include_top = has_head if include_top is None else include_top
        classes = weights.num_classes if classes is None else classes
        model = weights.build(include_top, classes, input_shape, **arguments)
        arrays = weights.keras_arrays(model)
        new_head = include_top and weights.num_classes != classes
        if new_head or not include_top:
            arrays = {name: array for name, array in arrays.items() if name not in weights.head_weights}
        _adapt_channels(arrays, model, path)
        exclude = weights.head_weights if new_head else ()
        for variable, array in _match_variables(model, arrays, path, exclude=exclude):
            variable.assign(array.read())
        if new_head:
            _initialize(model, weights.head_weights)
            warnings.warn(
                f"`{path}` has {weights.num_classes or 'no'} classes: the classifier for {classes} classes is newly "
                "initialized and untrained.",
                stacklevel=3,
            )
        _set_info(model, weights.info(model, new_head))
    warn_if_not_finite(model, path)
    return model


_PREPROCESSINGS: dict[type, Any] = {DetectorSpec: DetectionPreprocessing, SegmenterSpec: SegmentationPreprocessing}
"""Class of a spec -> that of the preprocessing of its networks' images."""


def build_on_backbone(
    spec: DetectorSpec | SegmenterSpec, path: str | os.PathLike, preprocessing: Any = None, **arguments: Any
) -> Any:
    """Build a detector or segmenter on a backbone with the weights of a classifier's file; the other layers are random.

    Args:
        spec: requested network; stride placement, biases and epsilon of its backbone are taken from the weights.
        path: weights file of the residual network.
        preprocessing: Preprocessing that was published with the file; None to take it from the file. Images of the new
            network are normalised in the same way.
        **arguments: further arguments of `build_detector` or `build_segmenter`.

    Returns:
        A Detector or a Segmenter.

    Raises:
        ValueError: if the file is damaged or belongs to another network; the message lists the differences.
    """
    with _open_network_weights(path, spec.backbone, source_preprocessing=preprocessing) as weights:
        prepared = _PREPROCESSINGS[type(spec)]()
        if weights.preprocessing:
            prepared = replace(prepared, mode=weights.preprocessing.mode)
        model = build(replace(spec, backbone=weights.spec), initialize=False, **arguments)
        names = weight_variables(model)
        stages = {_stage(name) for name in names}  # without those above the last level that the heads need
        arrays = {name: array for name, array in weights.keras_arrays(model).items() if _stage(name) in stages}
        heads = [name for name in names if name.startswith(HEAD_PREFIXES)]
        network = variant_of(spec.backbone, ignored=("conv_bias", "bn_epsilon")) or "the network"
        for variable, array in _match_variables(model, arrays, path, heads, f"{network}, the backbone of {model.name}"):
            variable.assign(array.read())
    _initialize(model, heads)
    model.info = {"preprocessing": prepared.to_config()}
    warn_if_not_finite(model, path)
    return model


def _stage(name):
    """The start of a weight's name: "conv5" of "conv5_block1_1_conv/kernel"."""
    return name.partition("_")[0]


def _initialize(model, names):
    """Gives kernels, which are zeros in a network that is built for weights, random values; biases have theirs."""
    for layer in model.layers:
        if f"{layer.name}/kernel" in names:
            initialize_kernel(layer)


def warn_if_not_finite(model: keras.Model, path: str | os.PathLike) -> None:
    """Warns of NaN and infinite weights, which a diverged run leaves, with the names of the arrays.

    Args:
        model: any Keras model with the weights of a file.
        path: the file.
    """
    finite = {weight.path: keras.ops.convert_to_numpy(keras.ops.isfinite(weight)) for weight in model.weights}
    counts = {name: array.size - np.count_nonzero(array) for name, array in finite.items()}
    damaged = [f"{name} ({count} of {finite[name].size})" for name, count in counts.items() if count]
    if damaged:
        names = ", ".join(damaged[:5]) + (", ..." if len(damaged) > 5 else "")
        what = f"NaN or infinite values in {len(damaged)} of {len(finite)} arrays"
        warnings.warn(f"The weights of `{path}` have {what}: {names}.", stacklevel=3)


def _set_info(model, info):
    """Sets the facts about the weights; the classifier of a multi-label network has a sigmoid in place of softmax."""
    model.info, activation = info, getattr(model.layers[-1], "activation", None)
    if info.get("multi_label") and activation is keras.activations.softmax:
        model.layers[-1].activation = keras.activations.sigmoid


def require_spec(model: keras.Model) -> Any:
    """The ResNetSpec of a model, or that of a detector, localizer or segmenter; raises ValueError for other models."""
    spec = model_spec(model)
    if spec is None:
        expected = "a network of keras_resnet with a `spec`"
        raise value_error("model", model, expected, "A clone needs `clone.spec = model.spec`.")
    return spec


def _match_variables(model, arrays, path, exclude=(), name=""):
    """Pairs (variable, StoredArray) of a model without the variables in `exclude`; raises ValueError unless all fit."""
    variables = {name: variable for name, variable in weight_variables(model).items() if name not in exclude}
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    problems = {
        "missing": [name for name in shapes if name not in arrays],
        "left over": [name for name in arrays if name not in shapes],
        "of another shape": [
            f"{name} {arrays[name].shape}, not {shape}"
            for name, shape in shapes.items()
            if name in arrays and arrays[name].shape != shape
        ],
    }
    lists = (
        f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for kind, names in problems.items()
        if names
    )
    if received := "; ".join(lists):
        no_head = set(problems["missing"]) == set(HEAD_WEIGHTS)
        hint = " (the file has no classifier: pass include_top=False)" if no_head else ""
        if any(problem.startswith("box_fc/kernel") for problem in problems["of another shape"]):
            hint = " (its box head is for images of another size)"
        raise ValueError(
            f"`{path}` should contain exactly the weights of {name or model.name}. Received: {received}{hint}"
        )
    return [(variable, arrays[name]) for name, variable in variables.items()]


def _adapt_channels(arrays, model, path):
    """Replace the array of the first kernel in `arrays` if the model has another number of input channels."""
    name, kernel = first_kernel(model)
    array, shape = arrays.get(name), tuple(kernel.shape)
    if array is None or array.shape == shape or array.shape != (*shape[:2], *array.shape[2:3], *shape[3:]):
        return
    stored_channels, num_channels = array.shape[2], shape[2]
    arrays[name] = replace(array, shape=shape, read=lambda: _with_channels(array.read(), num_channels))
    how = "summed over the channels" if num_channels == 1 else "repeated over the channels and scaled"
    warnings.warn(
        f"`{path}` expects {stored_channels} input channels: for {num_channels}, its first kernels are {how}.",
        stacklevel=4,
    )


def _with_channels(kernel, num_channels):
    """(h, w, C, filters) -> (h, w, num_channels, filters) with the same response to a grayscale image."""
    stored_channels = kernel.shape[2]
    if num_channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return np.take(kernel, np.arange(num_channels) % stored_channels, axis=2) * (stored_channels / num_channels)
