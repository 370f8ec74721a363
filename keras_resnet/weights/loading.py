"""Load a weights file into a network, and build the network of a weights file; NetworkWeights describes the file."""

import os
import warnings
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.metadata import info_without_head, input_size, model_spec
from keras_resnet.architecture.network import build
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.architecture.stems import STEMS
from keras_resnet.data.labels import CIFAR10_CLASSES, imagenet_classes
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.errors import bounded_repr, value_error
from keras_resnet.weights.catalog import WEIGHTS
from keras_resnet.weights.file_formats import open_weights
from keras_resnet.weights.layouts import (
    HEAD_WEIGHTS,
    Layout,
    check_spec_fits_weights,
    detect_layout,
    get_layout,
    match_spec_to_weights,
    to_keras_axes,
    weight_variables,
    with_layer_names,
)
from keras_resnet.weights.timm_config import CONFIG_NAME, timm_class_names, timm_preprocessing
from keras_resnet.weights.weights_file import StoredArray, WeightsFile


@dataclass(frozen=True)
class NetworkWeights:
    """The weights of a residual network in an open file: everything that can be known before a model is built."""

    file: WeightsFile
    layout: Layout
    spec: ResNetSpec
    """Spec of the network that the weights belong to."""
    source_preprocessing: Preprocessing | None = None
    """Preprocessing that was published with the file, if it came from the catalog or a hub."""

    def _keras_shape(self, *names):
        """Shape, with Keras's axes, of the first of these weights that the file has; () if it has none."""
        for name in names:
            if array := self.file.arrays.get(self.layout.array_name(name, self.spec)):
                return to_keras_axes(array, self.layout, name).shape
        return ()

    @cached_property
    def num_classes(self) -> int | None:
        """Number of classes of the classifier; None without a classifier whose kernel fits the network and the bias.

        A network is built with this number: a bias alone would make it much larger than the file.
        """
        kernel = self._keras_shape(HEAD_WEIGHTS[0], "dense/kernel")
        bias = self._keras_shape(HEAD_WEIGHTS[1], "dense/bias")
        return bias[0] if bias and kernel == (self.spec.stages[-1][-1].out_channels, *bias) else None

    @cached_property
    def num_channels(self) -> int:
        """Number of input channels of the first convolution; 3 if the file's first kernel does not fit the network."""
        layer, row = STEMS[self.spec.stem].rows(self.spec)[0]
        shape = self._keras_shape(f"{layer}_conv/kernel", "conv2d/kernel")
        fits = len(shape) == 4 and (*shape[:2], shape[3]) == (row.kernel_size, row.kernel_size, row.filters)
        return shape[2] or 3 if fits else 3

    @cached_property
    def preprocessing(self) -> Preprocessing | None:
        """Preprocessing that was published with the file, stored in it, or is usual for such files; None if unknown.

        Raises:
            ValueError: if the stored Preprocessing is invalid.
        """
        if self.source_preprocessing:
            return self.source_preprocessing
        config = self.file.metadata.info.get("preprocessing")
        if config is None:
            return self._usual_preprocessing()
        try:
            return Preprocessing.from_config(config)
        except (TypeError, KeyError, ValueError) as error:
            expected = f"`{self.file.path}` should contain the values of a Preprocessing"
            raise ValueError(f"{expected}. Received: {bounded_repr(config)} ({error})") from error

    def _usual_preprocessing(self):
        """The Preprocessing of the published file of this name, of timm's config.json beside it, or of its layout.

        None unless the classes are ImageNet's or the layout is CIFAR's: names of arrays do not identify the images.
        """
        path = self.file.path
        published = {Path(row.url).name: row.preprocessing for row in WEIGHTS.values()}
        if path.name in published:
            return published[path.name]
        if timm_config := self._timm_config:
            with suppress(ValueError):  # the config.json of another library
                return timm_preprocessing(timm_config)
        if self.layout.name == "cifar":
            return Preprocessing("torch", size=32, resize=None)
        if self.layout.name in ("timm", "keras_hub") or self.num_classes not in (None, len(imagenet_classes())):
            return None  # their networks differ in their preprocessing
        if not self.layout.is_keras:
            return Preprocessing("torch")
        return Preprocessing("tf" if self.spec.preactivation else "caffe") if self.spec.conv_bias else None

    @cached_property
    def _timm_config(self):
        """Path of the config.json beside a file with the names of torch, or None."""
        path = self.file.path.with_name(CONFIG_NAME)
        return path if path.exists() and not self.layout.keras_axes else None

    def _timm_class_names(self):
        with suppress(ValueError):  # the config.json of another library
            names = self._timm_config and timm_class_names(self._timm_config)
            return names if names and len(names) == self.num_classes else None
        return None

    def input_shape(self, include_top: bool) -> tuple[int | None, int | None, int | None]:
        """Default input shape: the file's channels and, with the classifier, the size of its preprocessing."""
        size = (self.preprocessing.size if self.preprocessing else self.spec.default_size) if include_top else None
        return (self.num_channels, size, size) if self.spec.channel_axis == 1 else (size, size, self.num_channels)

    def info(self, model: keras.Model, new_head: bool = False) -> dict[str, Any]:
        """Facts about the weights for `model.info`: source, preprocessing, class names.

        Args:
            model: the model that gets the weights; the preprocessing is adapted to the size and channels of its images.
            new_head: whether the model has another classifier than the file, so that its class names do not apply.
        """
        info = {"weights": self.file.path.name, **self.file.metadata.info}
        if self.layout.name == "cifar" and self.num_classes == len(CIFAR10_CLASSES):
            info.setdefault("class_names", list(CIFAR10_CLASSES))
        if names := self._timm_class_names():
            info.setdefault("class_names", names)
        if new_head:
            info = info_without_head(info)
        info.pop("preprocessing", None)
        preprocessing = self.preprocessing and self.preprocessing.for_channels(_first_kernel(model)[1].shape[2])
        if preprocessing is None:
            return info
        return info | {"preprocessing": preprocessing.for_size(input_size(model) or preprocessing.size).to_config()}

    def keras_arrays(self, model: keras.Model) -> dict[str, StoredArray]:
        """The file's arrays, unread, with Keras's names and axes; arrays that are not the model's keep their names."""
        arrays = self.file.arrays
        if self.layout.is_keras:
            return with_layer_names(arrays, model.layers)
        names = {self.layout.array_name(name, self.spec): name for name in (*weight_variables(model), *HEAD_WEIGHTS)}
        return {
            names.get(name, name): to_keras_axes(array, self.layout, names.get(name)) for name, array in arrays.items()
        }


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
        spec = match_spec_to_weights(spec, row, file.arrays, file.metadata.spec)
        yield NetworkWeights(file, row, spec, source_preprocessing)


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
    spec: ResNetSpec,
    path: str | os.PathLike,
    include_top: bool | None = True,
    classes: int | None = None,
    input_shape: tuple[int | None, int | None, int | None] | None = None,
    preprocessing: Preprocessing | None = None,
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
        if input_shape is None:
            input_shape = weights.input_shape(include_top)
        model = build(weights.spec, include_top, classes, input_shape, initialize=False, **arguments)
        arrays = weights.keras_arrays(model)
        new_head = include_top and weights.num_classes != classes
        if new_head or not include_top:
            arrays = {name: array for name, array in arrays.items() if name not in HEAD_WEIGHTS}
        _adapt_channels(arrays, model, path)
        for variable, array in _match_variables(model, arrays, path, exclude=HEAD_WEIGHTS if new_head else ()):
            variable.assign(array.read())
        if new_head:
            head = model.get_layer("predictions")
            head.kernel.assign(head.kernel_initializer(head.kernel.shape, dtype=head.kernel.dtype))  # the bias is zero
            warnings.warn(
                f"`{path}` has {weights.num_classes or 'no'} classes: the classifier for {classes} classes is newly "
                "initialized and untrained.",
                stacklevel=3,
            )
        _set_info(model, weights.info(model, new_head))
    warn_if_not_finite(model, path)
    return model


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


def require_spec(model: keras.Model) -> ResNetSpec:
    """The ResNetSpec of a model; raises ValueError for a model without one."""
    spec = model_spec(model)
    if spec is None:
        expected = "a network of keras_resnet with a `spec`"
        raise value_error("model", model, expected, "A clone needs `clone.spec = model.spec`.")
    return spec


def _match_variables(model, arrays, path, exclude=()):
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
        raise ValueError(f"`{path}` should contain exactly the weights of {model.name}. Received: {received}{hint}")
    return [(variable, arrays[name]) for name, variable in variables.items()]


def _adapt_channels(arrays, model, path):
    """Replace the array of the first kernel in `arrays` if the model has another number of input channels."""
    name, kernel = _first_kernel(model)
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


def _first_kernel(model):
    """(name, variable) of the first convolution's kernel."""
    return next(item for item in weight_variables(model).items() if item[0].endswith("/kernel"))


def _with_channels(kernel, num_channels):
    """(h, w, C, filters) -> (h, w, num_channels, filters) with the same response to a grayscale image."""
    stored_channels = kernel.shape[2]
    if num_channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return np.take(kernel, np.arange(num_channels) % stored_channels, axis=2) * (stored_channels / num_channels)
