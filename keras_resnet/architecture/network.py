"""From a specification to a Keras model."""

import numbers
import re
import sys
from dataclasses import replace

import keras
from keras import layers

from keras_resnet.architecture.blocks import stage
from keras_resnet.architecture.layers import bn_relu, chain
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.architecture.stems import stem
from keras_resnet.errors import is_integer, unknown_name_error

_POOLINGS = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}


@keras.saving.register_keras_serializable("keras_resnet")
class ResNet(keras.Model):
    """A flat Functional model that knows what it is, also after `.keras` and back.

    `spec` is its ResNetSpec; `info` holds, as JSON values, what belongs to its weights: where they came from, how
    images are to be prepared for them, the names of the classes. In all else it is `keras.Model(inputs, outputs)`.
    """

    spec = None
    info = None

    def get_config(self):
        spec = self.spec and self.spec.to_config()
        return {**super().get_config(), "resnet": {"spec": spec, "info": dict(self.info or {})}}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        about = config.get("resnet", {})
        config = {key: value for key, value in config.items() if key != "resnet"}
        spec = ResNetSpec(**about["spec"]) if about.get("spec") else None
        _allow_depth(spec)
        model = super().from_config(config, custom_objects=custom_objects)
        model.spec = spec
        model.info = dict(about.get("info") or {})
        return model


def endpoints(spec, inputs):
    """The named feature maps of a network: {"stem": ..., "stage1": ..., "stage2": ..., ...}.

    Args:
        spec: ResNetSpec.
        inputs: Keras tensor (B, H, W, C), or (B, C, H, W) where the spec says so.

    Returns:
        A dict of Keras tensors, first layer first. Stage 1 to 4 are C2 to C5 of the detection literature. The last one
        is what the classifier sees: normalised and rectified in pre-activation networks too.
    """
    x = stem(spec)(inputs)
    outputs = {"stem": x}
    for number, blocks in enumerate(spec.stages, 1):
        x = outputs[f"stage{number}"] = stage(blocks, spec=spec)(x)
    if spec.preactivation:
        outputs[f"stage{len(spec.stages)}"] = bn_relu(spec=spec, name="post")(x)
    return outputs


def num_stages(model):
    """How many stages a network has, by the names of its layers."""
    found = (re.match(r"conv(\d+)_", layer.name) for layer in model.layers)
    return max((int(match[1]) for match in found if match), default=1) - 1


def stage_index(layer_name, stages):
    """How far up in a network a layer is, by its name: 0 for the stem, 1 to `stages`, above them the classifier.

    Args:
        layer_name: as keras.applications has them: "conv1_conv", "conv3_block1_2_bn", "predictions".
        stages: how many the network has.
    """
    prefix = layer_name.partition("_")[0]
    if prefix in ("conv1", "pool1"):
        return 0
    if prefix == "post":  # the last norm of a pre-activation net
        return stages
    return int(prefix[4:]) - 1 if prefix.startswith("conv") and prefix[4:].isdecimal() else stages + 1


def build(
    spec,
    include_top=True,
    classes=None,
    input_shape=None,
    input_tensor=None,
    pooling=None,
    classifier_activation="softmax",
    name="resnet",
    initialize=True,
):
    """The model that `spec` describes, with random weights.

    Args:
        spec: ResNetSpec.
        include_top: whether average pooling and the classifier follow the last stage.
        classes: number of classes of the classifier; default the spec's usual one, 1000, or 10 for the CIFAR nets.
        input_shape: (H, W, C), or (C, H, W) for channels-first; H and W may be None. Default: the network's usual
            size with the top, unknown sizes without.
        input_tensor: Keras tensor to build upon, instead of `input_shape`.
        pooling: without the top: None (feature maps), "avg" or "max" (one vector an image).
        classifier_activation: "softmax", None for logits, or any Keras activation.
        name: name of the model.
        initialize: False leaves all kernels zero: for weights that are about to be overwritten.

    Returns:
        A ResNet: (B, H, W, C) -> (B, classes), or (B, h, w, channels) or (B, channels) without the top.

    Raises:
        ValueError: for an input shape of another rank, without channels or smaller than `spec.minimum_size`, for a
            number of classes that is no positive integer, or an unknown pooling.
    """
    if pooling not in (None, *_POOLINGS):
        raise unknown_name_error("pooling", pooling, (None, *_POOLINGS))
    classes = spec.default_classes if classes is None else classes
    if include_top and not is_integer(classes, 1):
        raise ValueError(f"`classes` should be a positive integer. Received: classes={classes!r}")
    spec = replace(spec, data_format=spec.data_format or keras.config.image_data_format())
    _allow_depth(spec)
    inputs = _inputs(spec, include_top, input_shape, input_tensor)
    placeholder = keras.initializers.Zeros()
    drawn = spec if initialize else replace(spec, kernel_initializer=placeholder)

    *_, x = endpoints(drawn, inputs).values()
    tail = _head(drawn, classes, classifier_activation) if include_top else (_pool(pooling, spec),)
    x = chain(*tail)(x)
    sources = [inputs] if input_tensor is None else keras.utils.get_source_inputs(inputs)
    model = ResNet(sources[0] if len(sources) == 1 else sources, x, name=name)
    for layer in model.layers:  # clones and saved configurations are initialised as the spec says
        if getattr(layer, "kernel_initializer", None) is placeholder:
            layer.kernel_initializer = keras.initializers.get(spec.kernel_initializer)
    model.spec, model.info = spec, {}
    return model


def _allow_depth(spec):
    """Lets Python recurse as deep as the network is: Keras walks a graph by a call a layer, 1202 are too many for it.

    The limit stays raised, since clones and sub-models are walked too.
    """
    if spec is not None:
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + 10 * spec.depth))


def _pool(pooling, spec):
    """(B, H, W, C) -> (B, C), or nothing."""
    return pooling and _POOLINGS[pooling](data_format=spec.data_format, name=f"{pooling}_pool")


def _head(spec, classes, activation):
    """Average pooling and the classifier, which under mixed precision computes in float32, as its loss should."""
    yield _pool("avg", spec)
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
        if keras.utils.is_keras_tensor(input_tensor):
            return input_tensor
        return layers.Input(tensor=input_tensor)
    if input_shape is None:
        size = spec.default_size if include_top else None
        input_shape = (3, size, size) if spec.channel_axis == 1 else (size, size, 3)
    _check_input_shape(spec, input_shape)
    return layers.Input(tuple(input_shape))


def _check_input_shape(spec, input_shape):
    order = "(height, width, channels)" if spec.channel_axis == 3 else "(channels, height, width)"
    integers = isinstance(input_shape, (tuple, list)) and all(
        side is None or (isinstance(side, numbers.Integral) and side > 0) for side in input_shape
    )
    if not integers or len(input_shape) != 3:
        raise ValueError(f"`input_shape` should be {order}, three integers. Received: input_shape={input_shape}")
    *sides, channels = input_shape if spec.channel_axis == 3 else (*input_shape[1:], input_shape[0])
    if channels is None:
        raise ValueError(f"The number of channels should be known. Received: input_shape={input_shape}")
    if any(side is not None and side < spec.minimum_size for side in sides):
        least = f"{spec.minimum_size}x{spec.minimum_size}"
        raise ValueError(f"Input size should be at least {least} pixels. Received: input_shape={input_shape}")
