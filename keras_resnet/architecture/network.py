"""From a specification to a Keras model."""

from dataclasses import replace

import keras
from keras import layers

from keras_resnet.architecture.blocks import stage
from keras_resnet.architecture.layers import bn_relu, chain
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.architecture.stems import stem

_POOLINGS = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}


@keras.saving.register_keras_serializable("keras_resnet")
class ResNet(keras.Model):
    """A flat Functional model that knows what it is, also after `.keras` and back.

    `spec` is its ResNetSpec; `info` holds, as JSON values, what belongs to its weights: where they came from, how
    pictures are to be prepared for them, the names of the classes. In all else it is `keras.Model(inputs, outputs)`.
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
        model = super().from_config(config, custom_objects=custom_objects)
        model.spec = ResNetSpec(**about["spec"]) if about.get("spec") else None
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
    outputs = {"stem": stem(spec)(inputs)}
    x = outputs["stem"]
    for number, blocks in enumerate(spec.stages, 1):
        x = outputs[f"stage{number}"] = stage(blocks, spec=spec)(x)
    if spec.preactivation:
        outputs[f"stage{number}"] = bn_relu(spec=spec, name="post")(x)
    return outputs


def build(
    spec,
    include_top=True,
    classes=1000,
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
        classes: number of classes of the classifier.
        input_shape: (H, W, C), or (C, H, W) for channels-first; H and W may be None. Default: the network's usual
            size with the top, unknown sizes without.
        input_tensor: Keras tensor to build upon, instead of `input_shape`.
        pooling: without the top: None (feature maps), "avg" or "max" (one vector a picture).
        classifier_activation: "softmax", None for logits, or any Keras activation.
        name: name of the model.
        initialize: False leaves all kernels zero: for weights that are about to be overwritten.

    Returns:
        A ResNet: (B, H, W, C) -> (B, classes), or (B, h, w, channels) or (B, channels) without the top.

    Raises:
        ValueError: for an input shape of another rank, smaller than `spec.minimum_size`, or an unknown pooling.
    """
    if pooling not in (None, *_POOLINGS):
        raise ValueError(f"`pooling` should be None, 'avg' or 'max'. Received: pooling={pooling!r}")
    if include_top and not (isinstance(classes, int) and classes > 0):
        raise ValueError(f"`classes` should be a positive integer. Received: classes={classes!r}")
    spec = replace(spec, data_format=spec.data_format or keras.config.image_data_format())
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
    last = spec.channel_axis == 3
    if not isinstance(input_shape, (tuple, list)) or len(input_shape) != 3:
        order = "(height, width, channels)" if last else "(channels, height, width)"
        raise ValueError(f"`input_shape` should be a tuple of three: {order}. Received: input_shape={input_shape}")
    *sides, channels = input_shape if last else (*input_shape[1:], input_shape[0])
    if not (isinstance(channels, int) and channels > 0):
        raise ValueError(f"The number of channels should be a positive integer. Received: input_shape={input_shape}")
    if any(side is not None and side < spec.minimum_size for side in sides):
        least = f"{spec.minimum_size}x{spec.minimum_size}"
        raise ValueError(f"Input size should be at least {least} pixels. Received: input_shape={input_shape}")
