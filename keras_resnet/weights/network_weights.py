"""NetworkWeights: the weights of a residual network in an open file, and the spec and facts that follow from them."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import keras

from keras_resnet.architecture.detector_spec import backbone_of
from keras_resnet.architecture.metadata import info_without_head, input_size, model_info
from keras_resnet.architecture.network import build
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.architecture.stems import STEMS
from keras_resnet.data.labels import CIFAR10_CLASSES, imagenet_classes
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.errors import bounded_repr
from keras_resnet.weights.catalog import WEIGHTS
from keras_resnet.weights.layout_axes import HEAD_WEIGHTS, to_keras_axes, weight_variables, with_layer_names
from keras_resnet.weights.layouts import Layout
from keras_resnet.weights.spec_matching import match_spec_to_weights
from keras_resnet.weights.timm_config import CONFIG_NAME, timm_class_names, timm_preprocessing
from keras_resnet.weights.weights_file import StoredArray, WeightsFile


@dataclass(frozen=True)
class NetworkWeights:
    """The weights of a residual network in an open file: everything that can be known before a model is built."""

    file: WeightsFile
    layout: Layout
    spec: Any
    """Spec of the network that the weights belong to."""
    source_preprocessing: Any = None
    """Preprocessing that was published with the file, if it came from the catalog or a hub."""
    preprocessing_class: ClassVar[Any] = Preprocessing

    @property
    def head_weights(self) -> tuple[str, ...]:
        """Weights that depend on the number of classes."""
        return HEAD_WEIGHTS

    @property
    def network(self) -> ResNetSpec:
        """Spec of the residual network."""
        return backbone_of(self.spec)

    @classmethod
    def match(cls, spec: Any, layout: Layout, file: WeightsFile) -> Any:
        """The requested spec with the fields that the weights of the file need."""
        return match_spec_to_weights(spec, layout, file.arrays, file.metadata.spec)

    def build(self, include_top: bool, classes: int | None, input_shape: tuple | None, **arguments: Any) -> keras.Model:
        """The network, whose weights are not initialised."""
        shape = self.input_shape(include_top) if input_shape is None else input_shape
        return build(self.spec, include_top, classes, shape, initialize=False, **arguments)

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
        return bias[0] if bias and kernel == (self.network.stages[-1][-1].out_channels, *bias) else None

    @cached_property
    def num_channels(self) -> int:
        """Number of input channels of the first convolution; 3 if the file's first kernel does not fit the network."""
        layer, row = STEMS[self.network.stem].rows(self.network)[0]
        shape = self._keras_shape(f"{layer}_conv/kernel", "conv2d/kernel")
        fits = len(shape) == 4 and (*shape[:2], shape[3]) == (row.kernel_size, row.kernel_size, row.filters)
        return shape[2] or 3 if fits else 3

    @cached_property
    def preprocessing(self) -> Any:
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
            return self.preprocessing_class.from_config(config)
        except (TypeError, KeyError, ValueError) as error:
            expected = f"`{self.file.path}` should contain the values of a {self.preprocessing_class.__name__}"
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
        return Preprocessing("tf" if self.network.preactivation else "caffe") if self.network.conv_bias else None

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
        preprocessing = self.preprocessing and self.preprocessing.for_channels(first_kernel(model)[1].shape[2])
        if preprocessing is None:
            return info
        return info | {"preprocessing": preprocessing.for_size(input_size(model) or preprocessing.size).to_config()}

    def keras_arrays(self, model: keras.Model) -> dict[str, StoredArray]:
        """The file's arrays, unread, with Keras's names and axes; arrays that are not the model's keep their names."""
        arrays = self.file.arrays
        if self.layout.is_keras:
            return with_layer_names(arrays, model.layers)
        names = {
            self.layout.array_name(name, self.spec): name for name in (*weight_variables(model), *self.head_weights)
        }
        return {
            names.get(name, name): to_keras_axes(array, self.layout, names.get(name)) for name, array in arrays.items()
        }


class AnySizeWeights(NetworkWeights):
    """The weights of a detector or segmenter: a network for images of any size whose spec has the number of classes."""

    @cached_property
    def num_classes(self) -> int | None:
        """Number of classes, of a detector with the background."""
        return self.spec.classes

    def _usual_class_names(self):
        """Names of the classes if the file has none; None if they are not known."""
        return None

    def _usual_preprocessing(self):
        return None

    def info(self, model: keras.Model, new_head: bool = False) -> dict[str, Any]:
        """Facts about the weights for `model.info`: source, preprocessing (else the model's), class names."""
        info = {"weights": self.file.path.name, **self.file.metadata.info}
        if names := self._usual_class_names():
            info.setdefault("class_names", list(names))
        info = info_without_head(info) if new_head else info
        known = self.preprocessing.to_config() if self.preprocessing else model_info(model).get("preprocessing")
        return info | {"preprocessing": known or self.preprocessing_class().to_config()}


def first_kernel(model: keras.Model) -> tuple[str, keras.Variable]:
    """(name, variable) of the kernel of a network's first convolution."""
    return next(item for item in weight_variables(model).items() if item[0].endswith("/kernel"))
