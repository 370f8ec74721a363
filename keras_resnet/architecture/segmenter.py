"""`build_segmenter`: a SegmenterSpec as a Keras model."""

from dataclasses import replace
from typing import Any

import keras
from keras import layers, ops

from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.detection_layers import Parameterless
from keras_resnet.architecture.heads import head_layer
from keras_resnet.architecture.layers import chain, restore_initializers
from keras_resnet.architecture.metadata import copy_metadata
from keras_resnet.architecture.network import (
    ResNet,
    allow_depth,
    build,
    check_parameters,
    feature_maps,
    without_initialization,
)
from keras_resnet.architecture.segmentation_heads import (
    AUXILIARY_DROPOUT,
    SEGMENTER_PREFIXES,
    auxiliary_rows,
    decoder_rows,
    deeplab_rows,
    fcn_rows,
    head_rows,
    pyramid_rows,
)
from keras_resnet.architecture.segmenter_spec import SegmenterSpec
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.errors import value_error

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

MIN_SIDE = 64
"""Sides of images for which parameters are counted, in pixels: their number does not depend on it."""


@keras.saving.register_keras_serializable("keras_resnet")
class Segmenter(ResNet):
    """A Functional model of a SegmenterSpec: images in, logits of each pixel out.

    >>> import keras_resnet, numpy as np
    >>> model = keras_resnet.create("fcn_resnet18", classes=5)
    >>> model.predict(np.zeros((1, 61, 90, 3)), verbose=0).shape
    (1, 61, 90, 5)

    Inputs are normalised images (B, H, W, 3) of any size. Outputs are logits (B, H, W, K) float32, enlarged bilinearly
    to the size of the images. The layers of the auxiliary head, if there is one, belong to the model, but have no
    effect on its output: `training_model` computes their loss.
    """

    spec: Any = None
    """The SegmenterSpec it was built from."""
    spec_class: type = SegmenterSpec

    @classmethod
    def from_config(cls, config, custom_objects=None):
        model = super().from_config(config, custom_objects=custom_objects)
        if model.spec is not None:
            _check_layers(model)
        return model


@keras.saving.register_keras_serializable("keras_resnet")
class ResizeLike(layers.Layer):
    """Feature maps (B, h, w, C), resized bilinearly to the height and width of another tensor: (B, H, W, C).

    As torch's `interpolate(mode="bilinear", align_corners=False)`. Maps of one pixel are repeated.
    """

    def call(self, maps, like):
        if tuple(maps.shape[1:3]) == (1, 1):
            return maps + ops.cast(ops.zeros_like(like[..., :1]), maps.dtype)
        size = ops.shape(like)[1:3]
        if keras.backend.backend() == "tensorflow":  # where Keras 3.15 compares a size that is not known yet with 0
            return ops.cast(tf.image.resize(maps, size), maps.dtype)
        return ops.image.resize(maps, size, interpolation="bilinear", antialias=False)

    def compute_output_shape(self, maps_shape, like_shape):
        return (*like_shape[:3], maps_shape[-1])


@keras.saving.register_keras_serializable("keras_resnet")
class WithAuxiliary(Parameterless):
    """The first of two inputs; the other one, the output of the auxiliary head, only has to belong to the model."""

    def call(self, logits, auxiliary):
        return logits

    def compute_output_shape(self, logits_shape, auxiliary_shape):
        return logits_shape


@build.register
def build_segmenter(spec: SegmenterSpec, name: str = "segmenter", initialize: bool = True) -> Segmenter:
    """Builds the segmenter that `spec` describes, with random weights; `build` calls it for a SegmenterSpec.

    Args:
        spec: SegmenterSpec.
        name: name of the model.
        initialize: False leaves all kernels zero, which is faster if weights are loaded next.

    Raises:
        ValueError: for a segmenter of more than MAX_PARAMETERS parameters.
    """
    check_parameters(spec, complexity(spec, input_shape=(MIN_SIDE, MIN_SIDE, 3)).parameters)
    allow_depth(spec)
    backbone = segmenter_backbone(spec)
    built = backbone if initialize else without_initialization(backbone)
    images = layers.Input((None, None, 3), name="images")
    _, *maps = feature_maps(built, built.levels, images)
    logits = _HEADS[spec.head](spec, maps)
    outputs = ResizeLike(name="logits", dtype="float32")(logits, images)
    if spec.auxiliary:
        outputs = WithAuxiliary(name="auxiliary")(outputs, _fcn(auxiliary_rows(spec), AUXILIARY_DROPOUT)(maps[-2]))
    model = Segmenter(images, outputs, name=name)
    restore_initializers(model, initialize)
    model.spec, model.info = spec, {}
    return model


def segmenter_backbone(spec: SegmenterSpec) -> ResNetSpec:
    """The residual network of a segmenter, channels last, dilated where it would exceed the output stride."""
    return replace(spec.backbone, data_format="channels_last", output_stride=spec.output_stride)


def without_auxiliary(model: Segmenter) -> Segmenter:
    """The segmenter without its auxiliary head, with the same layers: what is needed for inference.

    >>> import keras_resnet
    >>> model = keras_resnet.create("fcn_resnet18")
    >>> without_auxiliary(model).spec.auxiliary, len(model.layers) - len(without_auxiliary(model).layers)
    (False, 6)
    """
    if not model.spec.auxiliary:
        return model
    inference = copy_metadata(Segmenter(model.inputs[0], model.get_layer("logits").output, name=model.name), model)
    inference.spec = replace(model.spec, auxiliary=False)
    return inference


def _check_layers(model):
    """Raises ValueError for heads with other layers, channels, kernels or dilations than the model's spec has."""
    rows = {row.name if row.norm is None else f"{row.name}_conv": row for row in head_rows(model.spec)}
    expected = {name: (row.filters, row.kernel_size, row.dilation) for name, row in rows.items()}
    found = {
        layer.name: (layer.filters, layer.kernel_size[0], layer.dilation_rate[0])
        for layer in model.layers
        if isinstance(layer, layers.Conv2D) and layer.name.startswith(SEGMENTER_PREFIXES)
    }
    if different := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        expected, found = ({name: each[name] for name in different if name in each} for each in (expected, found))
        raise value_error(
            "layers", found, f"the heads of the spec, with (channels, kernel size, dilation) of {expected}"
        )


def _fcn(rows, dropout):
    """A 3x3 convolution, dropout, and the classes: (B, h, w, C) -> (B, h, w, K)."""
    hidden, logits = rows
    name = hidden.name.partition("_")[0]
    return chain(head_layer(hidden), layers.Dropout(dropout, name=f"{name}_drop"), head_layer(logits))


def _fcn_head(spec, maps):
    return _fcn(fcn_rows(spec), spec.dropout)(maps[-1])


def _pyramid(spec, maps):
    """Atrous spatial pyramid pooling: (B, h, w, C) -> (B, h, w, width)."""
    rows = pyramid_rows(spec)
    pooled = chain(layers.GlobalAveragePooling2D(keepdims=True, name="aspp_mean"), head_layer(rows.pool))(maps)
    branches = [head_layer(row)(maps) for row in rows.branches]
    branches.append(ResizeLike(name="aspp_repeat")(pooled, branches[0]))
    joined = layers.Concatenate(name="aspp_concat")(branches)
    return chain(head_layer(rows.project), layers.Dropout(spec.dropout, name="aspp_drop"))(joined)


def _deeplab_head(spec, maps):
    return chain(*map(head_layer, deeplab_rows(spec)))(_pyramid(spec, maps[-1]))


def _decoder_head(spec, maps):
    skip, others = decoder_rows(spec)
    fine = head_layer(skip)(maps[0])
    enlarged = ResizeLike(name="decoder_enlarge")(_pyramid(spec, maps[-1]), fine)
    return chain(*map(head_layer, others))(layers.Concatenate(name="decoder_concat")([enlarged, fine]))


_HEADS = {"fcn": _fcn_head, "deeplabv3": _deeplab_head, "deeplabv3plus": _decoder_head}
"""Head -> function of the spec and the backbone's maps that returns logits of the size of such a map."""
