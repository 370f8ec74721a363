"""Load a weights file into a network, and build the network of a weights file."""

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_resnet.architecture.metadata import model_spec
from keras_resnet.architecture.network import build
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.weights.layouts import HEAD_WEIGHTS, check_spec_fits_weights, weight_variables
from keras_resnet.weights.network_weights import open_network_weights
from keras_resnet.weights.weights_file import StoredArray


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
        layout: names and axes of the arrays: "keras", "torchvision", "timm", "cifar", or "auto" to detect them.

    Raises:
        ValueError: if the file is damaged or does not match the model; the message lists the differences. The model
            is unchanged in this case.
        FileNotFoundError: if there is no such file.
    """
    spec = require_spec(model)
    with open_network_weights(path, spec, layout) as weights:
        check_spec_fits_weights(spec, weights.spec, path)
        matched = _match_variables(model, weights.keras_arrays(model), path)
        values = [(variable, array.read()) for variable, array in matched]
        info = weights.info(_first_kernel(model)[1].shape[2])
    for variable, value in values:  # everything has been read and validated
        variable.assign(value)
    model.info = info


def build_from_file(
    spec: ResNetSpec,
    path: str | os.PathLike,
    include_top: bool | None = True,
    classes: int | None = None,
    input_shape: tuple[int | None, int | None, int | None] | None = None,
    input_tensor: Any = None,
    preprocessing: Preprocessing | None = None,
    **arguments: Any,
) -> keras.Model:
    """Build the network of a weights file and load the weights.

    If the number of input channels differs from the file's, the first kernels are adapted: summed over the channels
    for grayscale images, otherwise repeated over the channels and scaled.

    Args:
        spec: ResNetSpec; stride placement, biases and epsilon are taken from the weights.
        path: weights file.
        include_top: whether to build the classifier; None: if the file has one.
        classes: number of classes; None for the file's. For another number the classifier is newly initialized.
        input_shape: as for `build`; None for the file's number of channels and, with the classifier, the size of its
            preprocessing.
        input_tensor: as for `build`.
        preprocessing: Preprocessing that was published with the file; None to take it from the file.
        **arguments: other arguments of `build`.

    Returns:
        A ResNet.

    Raises:
        ValueError: if the file is damaged or belongs to another network; the message lists the differences.
    """
    with open_network_weights(path, spec, source_preprocessing=preprocessing) as weights:
        has_head = weights.num_classes is not None
        include_top = has_head if include_top is None else include_top
        classes = weights.num_classes if classes is None else classes
        if input_shape is None:
            input_shape = _input_shape(weights, include_top)
        model = build(weights.spec, include_top, classes, input_shape, input_tensor, initialize=False, **arguments)
        arrays = weights.keras_arrays(model)
        new_head = include_top and has_head and weights.num_classes != classes
        if new_head or not include_top:
            arrays = {name: array for name, array in arrays.items() if name not in HEAD_WEIGHTS}
        _adapt_channels(arrays, model, path)
        for variable, array in _match_variables(model, arrays, path, exclude=HEAD_WEIGHTS if new_head else ()):
            variable.assign(array.read())
        if new_head:
            _initialize_head(model.get_layer("predictions"), weights)
        model.info = weights.info(_first_kernel(model)[1].shape[2], new_head)
    return model


def require_spec(model: keras.Model) -> ResNetSpec:
    """The ResNetSpec of a model; raises ValueError for a model without one."""
    spec = model_spec(model)
    if spec is None:
        raise ValueError(
            "`model` should be a network of keras_resnet with a `spec` (a clone needs `clone.spec = model.spec`). "
            f"Received: model={model!r}"
        )
    return spec


def _input_shape(weights, include_top):
    """Input shape for the channels of the weights; with the classifier, for images of their preprocessing's size."""
    preprocessing, channels = weights.preprocessing, weights.num_channels
    size = (preprocessing.size if preprocessing else weights.spec.default_size) if include_top else None
    return (channels, size, size) if weights.spec.channel_axis == 1 else (size, size, channels)


def _match_variables(
    model: keras.Model, arrays: Mapping[str, StoredArray], path: str | os.PathLike, exclude: Iterable[str] = ()
) -> list[tuple[keras.Variable, StoredArray]]:
    """Pairs of a model's variables and the arrays for them, without the variables in `exclude`.

    Raises:
        ValueError: if an array is missing, superfluous or has another shape.
    """
    variables = {name: variable for name, variable in weight_variables(model).items() if name not in exclude}
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    problems = {
        "missing": [name for name in shapes if name not in arrays],
        "left over": [name for name in arrays if name not in shapes],
        "of another shape": [
            f"{name} {tuple(arrays[name].shape)}, not {shape}"
            for name, shape in shapes.items()
            if name in arrays and tuple(arrays[name].shape) != shape
        ],
    }
    if any(problems.values()):
        raise ValueError(_mismatch_message(model, path, problems))
    return [(variable, arrays[name]) for name, variable in variables.items()]


def _mismatch_message(model, path, problems):
    lists = (
        f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for kind, names in problems.items()
        if names
    )
    no_head = set(problems["missing"]) == set(HEAD_WEIGHTS)
    hint = " (the file has no classifier: pass include_top=False)" if no_head else ""
    return f"`{path}` should contain exactly the weights of {model.name}. Received: {'; '.join(lists)}{hint}"


def _initialize_head(layer, weights):
    """Initialize the kernel of a new classifier and warn that it is untrained; its bias is zero."""
    layer.kernel.assign(layer.kernel_initializer(layer.kernel.shape, dtype=layer.kernel.dtype))
    warnings.warn(
        f"`{weights.path}` has {weights.num_classes} classes: the classifier for {layer.kernel.shape[-1]} classes is "
        "newly initialized and untrained.",
        stacklevel=4,
    )


def _adapt_channels(arrays, model, path):
    """Replace the array of the first kernel in `arrays` if the model has another number of input channels."""
    name, kernel = _first_kernel(model)
    array, (*window, num_channels, filters) = arrays.get(name), kernel.shape
    if array is None or len(array.shape) != 4:
        return
    stored_channels = array.shape[2]
    if stored_channels == num_channels or tuple(array.shape) != (*window, stored_channels, filters):
        return
    arrays[name] = replace(array, shape=tuple(kernel.shape), read=lambda: _with_channels(array.read(), num_channels))
    how = "summed over the channels" if num_channels == 1 else "repeated over the channels and scaled"
    warnings.warn(
        f"`{path}` expects {stored_channels} input channels: for {num_channels}, its first kernels are {how}.",
        stacklevel=4,
    )


def _first_kernel(model):
    """(name, variable) of the first convolution's kernel."""
    return next(item for item in weight_variables(model).items() if item[0].endswith("/kernel"))


def _with_channels(kernel, num_channels):
    """(h, w, C, filters) -> (h, w, num_channels, filters) with the same response to a grayscale image."""
    stored_channels = kernel.shape[2]
    if num_channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return np.take(kernel, np.arange(num_channels) % stored_channels, axis=2) * (stored_channels / num_channels)
