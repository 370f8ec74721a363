"""`build`: a ResNetSpec as a Keras model."""

import numbers
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import singledispatch
from typing import Annotated, Any

import keras
import numpy as np
from keras import layers

from keras_resnet.architecture.blocks import Block, stage
from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.detector_spec import DetectorSpec, backbone_of
from keras_resnet.architecture.layers import DeferredInitializer, bn_relu, chain, restore_initializers
from keras_resnet.architecture.localizer_spec import LocalizerSpec
from keras_resnet.architecture.metadata import channel_axis, checked_metadata
from keras_resnet.architecture.segmenter_spec import SegmenterSpec
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.architecture.stems import stem
from keras_resnet.errors import check_known, value_error
from keras_resnet.normalization import Normalization, get_normalization
from keras_resnet.schema import Range, checked

MAX_PARAMETERS = 2**31
"""Largest number of parameters: 8 GB, more than twice the largest published networks of the family."""
MAX_SIDE = 2**16
"""Largest side of input images in pixels, and largest number of their channels."""
Classes = Annotated[int, Range(1, 2**20)]
"""Number of classes; those of WordNet and of all species that data sets have are a tenth of it."""
POOLINGS = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}


@keras.saving.register_keras_serializable("keras_resnet")
class ResNet(keras.Model):
    """A flat Functional model whose spec and info are saved in its `.keras` file.

    >>> import keras_resnet
    >>> model = keras_resnet.create("resnet20", weights="cifar10")
    >>> model.spec.depth, model.info["weights"]
    (20, 'cifar10')

    In all other respects it is a `keras.Model(inputs, outputs)`.
    """

    spec: Any = None
    """The ResNetSpec it was built from."""
    spec_class: type = ResNetSpec
    _has_warned = False
    info: dict | None = None
    """Facts about its weights as JSON values: their source, the preprocessing of images, the class names."""

    @property
    def data_format(self) -> str:
        """ "channels_last" or "channels_first"."""
        return "channels_first" if channel_axis(self) == 1 else "channels_last"

    @property
    def pyramid_outputs(self) -> dict[str, keras.KerasTensor]:
        """The feature maps of a feature extractor by KerasHub's names: {"P2": C2 or stage1, ...}."""
        levels = {f"stage{number}": f"P{number + 1}" for number in range(1, num_stages(self) + 1)}
        levels |= {level.replace("P", "C"): level for level in levels.values()}
        found = self.output.items() if isinstance(self.output, dict) else ()
        return {levels[name]: maps for name, maps in found if name in levels and len(maps.shape) == 4}

    def predict(self, x, *arguments, **keywords):
        """As `keras.Model.predict`; warns once of arrays that cannot be images normalised for this model's weights."""
        self._check_images(x)
        return super().predict(x, *arguments, **keywords)

    def predict_on_batch(self, x):
        """As `keras.Model.predict_on_batch`; warns as `predict` does."""
        self._check_images(x)
        return super().predict_on_batch(x)

    def _check_images(self, images):
        """Warns once if some values of the first images of a NumPy array cannot be normalised for this model."""
        config = (self.info or {}).get("preprocessing")
        if self._has_warned or not config or not isinstance(images, np.ndarray) or images.dtype.kind not in "fui":
            return
        values = images[:4].ravel()[::7]
        values = values[~np.isnan(values)]  # the padding of detectors' images
        normalization = get_normalization(checked(config["mode"], str | Normalization, "mode"))
        if values.size and normalization.cannot_be(values):
            self._has_warned = True
            low, high = normalization.value_range
            warnings.warn(
                f"The images for {self.name} should be normalised as its weights need it, to values from {low:.3g} to "
                f"{high:.3g}: use `keras_resnet.preprocessing(model)(images)` or "
                "`keras_resnet.preprocess_input(images, model)`. "
                f"Received: images with values from {values.min():.3g} to {values.max():.3g}",
                stacklevel=3,
            )

    def get_config(self):
        spec = self.spec and self.spec.to_config()
        return {**super().get_config(), "resnet": {"spec": spec, "info": dict(self.info or {})}}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        metadata = checked_metadata(config.get("resnet"))
        if metadata.spec is not None:
            metadata = metadata._replace(spec=checked(metadata.spec, cls.spec_class, "spec"))
            allow_depth(backbone_of(metadata.spec))
        others = {key: value for key, value in config.items() if key != "resnet"}
        model = super().from_config(others, custom_objects=custom_objects)
        model.spec, model.info = metadata
        return model


def endpoints(spec: ResNetSpec, inputs: keras.KerasTensor) -> dict[str, keras.KerasTensor]:
    """Builds a network without its top: {"stem": feature map, "stage1": feature map, ...}.

    >>> import keras
    >>> from keras_resnet import endpoints, get_spec
    >>> maps = endpoints(get_spec("resnet20"), keras.Input((32, 32, 3)))
    >>> {name: tuple(tensor.shape) for name, tensor in maps.items() if name != "stem"}
    {'stage1': (None, 32, 32, 16), 'stage2': (None, 16, 16, 32), 'stage3': (None, 8, 8, 64)}

    Args:
        spec: ResNetSpec.
        inputs: Keras tensor (B, H, W, C), or (B, C, H, W) for a channels-first spec.

    Returns:
        A dict of Keras tensors from stem to last stage. Stages 1 to 4 are C2 to C5 of the detection literature. The
        last one is the input of the top: in pre-activation networks, after the final batch norm and ReLU.
    """
    _check_parameters(spec, False, None, inputs.shape[spec.channel_axis])
    first, *others = feature_maps(spec, spec.stages, inputs)
    return {"stem": first} | {f"stage{number}": maps for number, maps in enumerate(others, 1)}


def feature_maps(spec: ResNetSpec, groups: Iterable[Sequence[Block]], inputs: keras.KerasTensor) -> list:
    """Builds a network without its top: the feature map after the stem, and after each of the groups of blocks."""
    outputs = [stem(spec)(inputs)]
    for blocks in groups:
        outputs.append(stage(blocks, spec=spec)(outputs[-1]))
    if spec.preactivation:
        outputs[-1] = bn_relu(spec=spec, name="post")(outputs[-1])
    return outputs


def num_stages(model: keras.Model) -> int:
    """Number of residual stages, from the names of the layers."""
    found = (re.match(r"conv(\d+)_", layer.name) for layer in model.layers)
    return max((int(match[1]) for match in found if match), default=1) - 1


def stage_index(layer_name: str, stages: int) -> int:
    """Stage of a layer by its name in keras.applications: 0 for the stem, 1 to `stages`, `stages` + 1 for the top.

    Such names are "conv1_conv", "conv3_block1_2_bn", "predictions".
    """
    prefix = layer_name.partition("_")[0]
    if prefix in ("conv1", "pool1"):
        return 0
    if prefix == "post":  # the final batch norm of a pre-activation network
        return stages
    return int(prefix[4:]) - 1 if prefix.startswith("conv") and prefix[4:].isdecimal() else stages + 1


@singledispatch
def build(
    spec: Any,
    include_top: bool = True,
    classes: int | None = None,
    input_shape: tuple[int | None, ...] | None = None,
    input_tensor: Any = None,
    pooling: str | None = None,
    classifier_activation: Any = "softmax",
    name: str = "resnet",
    initialize: bool = True,
) -> ResNet:
    """Builds the model that `spec` describes, with random weights.

    >>> import keras_resnet
    >>> spec = keras_resnet.ResNetSpec("basic", depths=(2, 2), widths=(16, 32), stem="cifar", stem_width=16)
    >>> keras_resnet.build(spec, classes=5, input_shape=(32, 32, 3)).output_shape
    (None, 5)
    >>> spec = keras_resnet.DetectorSpec(keras_resnet.get_spec("resnet18"), neck_width=32, box_width=64, classes=3)
    >>> model = keras_resnet.build(spec, settings=keras_resnet.DetectionSettings(detections=10))
    >>> model.output["boxes"].shape
    (None, 10, 4)

    Args:
        spec: ResNetSpec; or a DetectorSpec, LocalizerSpec or SegmenterSpec, which have the arguments of
            `build_detector`, `build_localizer` and `build_segmenter` instead.
        include_top, classes, input_shape, input_tensor, pooling, classifier_activation, name: as for `create` without
            weights; with the top, H and W may also be None.
        initialize: False leaves all kernels zero, which is faster if weights are loaded next.

    Returns:
        A ResNet: (B, H, W, C) -> (B, classes), or (B, h, w, channels) or (B, channels) without the top. A Detector,
        Localizer or Segmenter for the spec of one.

    Raises:
        ValueError: for more than MAX_PARAMETERS parameters, an input shape of another rank, with unknown channels or
            sides below `spec.minimum_size`, `classes` that is not a positive integer, and an unknown pooling.
    """
    check_known("pooling", pooling, (None, *POOLINGS))
    classes = checked(spec.default_classes if classes is None else classes, Classes, "classes") if include_top else None
    spec = replace(spec, data_format=spec.data_format or keras.config.image_data_format())
    allow_depth(spec)
    inputs = _inputs(spec, include_top, input_shape, input_tensor)
    _check_parameters(spec, include_top, classes, inputs.shape[spec.channel_axis])
    built = spec if initialize else without_initialization(spec)

    *_, x = endpoints(built, inputs).values()
    x = chain(*_head(built, include_top, pooling, classes, classifier_activation))(x)
    sources = [inputs] if input_tensor is None else keras.utils.get_source_inputs(inputs)
    model = ResNet(sources[0] if len(sources) == 1 else sources, x, name=name)
    restore_initializers(model)  # clones and loaded models are initialized as the spec says
    model.spec, model.info = spec, {}
    return model


def without_initialization(spec: ResNetSpec) -> ResNetSpec:
    """The spec of a network whose kernels are zeros; `restore_initializers` gives it those of `spec`."""
    return replace(spec, kernel_initializer=DeferredInitializer(spec.kernel_initializer))


def _check_parameters(spec, include_top, classes, channels):
    """Raises ValueError for a network that is too large, before any layer is made."""
    size = spec.minimum_size
    check_parameters(spec, complexity(spec, include_top, classes, (size, size, channels)).parameters)


def check_parameters(spec: ResNetSpec | DetectorSpec | LocalizerSpec | SegmenterSpec, parameters: int) -> None:
    """Raises ValueError if the number of parameters of a network exceeds MAX_PARAMETERS."""
    if parameters > MAX_PARAMETERS:
        raise value_error("spec", spec, f"a network of at most {MAX_PARAMETERS:,} parameters, not {parameters:,}")


def allow_depth(spec):
    """Raises Python's recursion limit for deep networks: Keras traverses a graph with one nested call for each layer.

    The limit stays raised, since cloning and sub-models traverse the graph again. MAX_BLOCKS bounds it.
    """
    if spec is not None:
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + 10 * spec.depth))


def _head(spec, include_top, pooling, classes, activation):
    """Yields global pooling, dropout and the classifier, which computes in float32 under mixed precision."""
    if pooling := "avg" if include_top else pooling:
        yield POOLINGS[pooling](data_format=spec.data_format, name=f"{pooling}_pool")
    if not include_top:
        return
    if spec.dropout:
        yield layers.Dropout(spec.dropout, name="head_drop")
    yield layers.Dense(
        classes,
        activation=activation,
        kernel_initializer=spec.kernel_initializer,
        dtype=keras.config.dtype_policy().variable_dtype,
        name="predictions",
    )


def _inputs(spec, include_top, input_shape, input_tensor):
    if input_tensor is not None:
        _check_input_shape(spec, tuple(input_tensor.shape)[1:])
        return input_tensor if keras.utils.is_keras_tensor(input_tensor) else layers.Input(tensor=input_tensor)
    if input_shape is None:
        size = spec.default_size if include_top else None
        input_shape = (3, size, size) if spec.channel_axis == 1 else (size, size, 3)
    _check_input_shape(spec, input_shape)
    return layers.Input(tuple(input_shape))


def _check_input_shape(spec, input_shape):
    first = spec.channel_axis == 1
    order = "(channels, height, width)" if first else "(height, width, channels)"
    if not (
        isinstance(input_shape, (tuple, list))
        and len(input_shape) == 3
        and all(side is None or (isinstance(side, numbers.Integral) and 0 < side <= MAX_SIDE) for side in input_shape)
    ):
        raise value_error("input_shape", input_shape, f"{order}, three integers from 1 to {MAX_SIDE}")
    *sides, channels = (*input_shape[1:], input_shape[0]) if first else input_shape
    if channels is None:
        raise value_error("input_shape", input_shape, f"{order} with a known number of channels")
    minimum = spec.minimum_size
    if any(side is not None and side < minimum for side in sides):
        raise value_error("input_shape", input_shape, f"{order}, at least {minimum}x{minimum} pixels")
