"""NetworkWeights: an open weights file as the weights of a residual network."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras

from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.labels import CIFAR10_CLASSES, imagenet_classes
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.weights.catalog import WEIGHTS
from keras_resnet.weights.download import timm_preprocessing
from keras_resnet.weights.file_formats import open_weights
from keras_resnet.weights.layouts import (
    HEAD_WEIGHTS,
    Layout,
    detect_layout,
    get_layout,
    match_spec_to_weights,
    to_keras_axes,
    weight_variables,
    with_layer_names,
)
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

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.file.path

    @cached_property
    def num_classes(self) -> int | None:
        """Number of classes of the classifier; None without a classifier."""
        for name in (self.layout.array_name(HEAD_WEIGHTS[1], self.spec), "dense/bias"):
            if name in self.file.arrays and len(self.file.arrays[name].shape) == 1:
                return self.file.arrays[name].shape[0]
        return None

    @cached_property
    def num_channels(self) -> int:
        """Number of input channels of the first convolution; 3 if the file has no first convolution."""
        stems = (self.layout.array_name(f"{stem}_conv/kernel", self.spec) for stem in ("conv1", "conv1_1"))
        for name in (*stems, "conv2d/kernel"):
            if name in self.file.arrays and len(self.file.arrays[name].shape) == 4:
                return self.file.arrays[name].shape[2 if self.layout.is_keras else 1]
        return 3

    @cached_property
    def preprocessing(self) -> Preprocessing | None:
        """Preprocessing that was published with the file, stored in it, or is usual for such files; None if unknown.

        Raises:
            ValueError: if the stored Preprocessing is invalid.
        """
        if self.source_preprocessing:
            return self.source_preprocessing
        config = self.file.metadata["info"].get("preprocessing")
        if config is None:
            return self._usual_preprocessing()
        try:
            return Preprocessing.from_config(config)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"`{self.path}` should contain the values of a Preprocessing. Received: {config!r} ({error})"
            ) from error

    def _usual_preprocessing(self):
        """The Preprocessing of the published file of this name, of timm's config.json beside it, or of its layout.

        None unless the classes are ImageNet's or the layout is CIFAR's: names of arrays do not identify the images.
        """
        published = {Path(row.url).name: row.preprocessing for row in WEIGHTS.values()}
        if self.path.name in published:
            return published[self.path.name]
        timm_config = self.path.with_name("config.json")
        if not self.layout.is_keras and timm_config.exists():
            with suppress(ValueError):  # the config.json of another library
                return timm_preprocessing(timm_config)
        if self.layout.name == "cifar":
            return Preprocessing("torch", size=32, resize=None)
        if self.layout.name == "timm" or self.num_classes not in (None, len(imagenet_classes())):
            return None  # timm's networks differ in their preprocessing
        if not self.layout.is_keras:
            return Preprocessing("torch")
        return Preprocessing("tf" if self.spec.preactivation else "caffe") if self.spec.conv_bias else None

    def info(self, num_channels: int, new_head: bool = False) -> dict[str, Any]:
        """Facts about the weights for `model.info`: source, preprocessing, class names.

        Args:
            num_channels: number of channels of the model's input images, to which the preprocessing is adapted.
            new_head: whether the model has another classifier than the file, so that its class names do not apply.
        """
        info = {"weights": self.path.name, **self.file.metadata["info"]}
        if self.layout.name == "cifar" and self.num_classes == len(CIFAR10_CLASSES):
            info.setdefault("class_names", list(CIFAR10_CLASSES))
        if new_head:
            info.pop("class_names", None)
        info.pop("preprocessing", None)
        preprocessing = self.preprocessing and self.preprocessing.for_channels(num_channels)
        return {**info, "preprocessing": preprocessing.to_config()} if preprocessing else info

    def keras_arrays(self, model: keras.Model) -> dict[str, StoredArray]:
        """The file's arrays, unread, with Keras's names and axes; arrays that are not the model's keep their names."""
        arrays = self.file.arrays
        if self.layout.is_keras:
            return with_layer_names(arrays, model.layers)
        names = {self.layout.array_name(name, self.spec): name for name in (*weight_variables(model), *HEAD_WEIGHTS)}
        return {names.get(name, name): to_keras_axes(array, names.get(name)) for name, array in arrays.items()}


@contextmanager
def open_network_weights(
    path: str | os.PathLike,
    spec: ResNetSpec,
    layout: str = "auto",
    source_preprocessing: Preprocessing | None = None,
) -> Iterator[NetworkWeights]:
    """Open a weights file as the weights of a network.

    Args:
        path: weights file; see `open_weights` for the formats.
        spec: ResNetSpec of the requested network; stride placement, biases and epsilon are taken from the weights.
        layout: name of a row of LAYOUTS, or "auto" to detect it from the names of the arrays.
        source_preprocessing: Preprocessing that was published with the file, if known.

    Raises:
        ValueError: if the file does not contain the weights of such a network, and as `open_weights`.
    """
    with open_weights(path) as file:
        row = detect_layout(file.arrays, path) if layout == "auto" else get_layout(layout)
        spec = match_spec_to_weights(spec, row, file.arrays, file.metadata["spec"])
        yield NetworkWeights(file, row, spec, source_preprocessing)
