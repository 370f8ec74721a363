"""The layers of residual networks. Each factory returns a function of a tensor, so that they can be chained."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from itertools import product

import keras
from keras import layers

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


@dataclass(frozen=True)
class Convolution:
    """One convolution as data, from which it is built and its parameters and multiply-adds are counted."""

    filters: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1

    @property
    def padding(self) -> int:
        """Width of the zero padding on each of the four sides, in pixels: symmetric, as in Caffe and PyTorch."""
        return self.dilation * (self.kernel_size - 1) // 2


def chain(*functions: Callable | None) -> Callable:
    """Composition in reading order: chain(f, g)(x) == g(f(x)); None stands for the identity."""
    return lambda x: reduce(lambda y, function: function(y) if function else y, functions, x)


def conv(row, *, spec, name, bn_follows=True, kernel_initializer=None):
    """x -> convolution(x): (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), filters).

    A strided convolution is preceded by a padding layer: TensorFlow's "same" pads asymmetrically, unlike all published
    weights. A bias before a batch norm is redundant; only the v1 weights have one (`conv_bias`).
    """
    explicit = row.padding > 0 and (row.stride > 1 or spec.explicit_padding)
    return chain(
        layers.ZeroPadding2D(row.padding, data_format=spec.data_format, name=f"{name}_pad") if explicit else None,
        Conv2D(
            row.filters,
            row.kernel_size,
            strides=row.stride,
            padding="valid" if explicit else "same",
            dilation_rate=row.dilation,
            groups=row.groups,
            use_bias=uses_bias(spec, bn_follows),
            kernel_initializer=kernel_initializer or spec.kernel_initializer,
            data_format=spec.data_format,
            name=f"{name}_conv",
        ),
    )


class DeferredInitializer(keras.initializers.Zeros):
    """Zeros in place of the values of another initializer, until `restore_initializers` is called."""

    def __init__(self, initializer):
        self.initializer = initializer


def restore_initializers(model: keras.Model, initialize: bool = False) -> None:
    """Gives layers their deferred initializers; with `initialize`, also sets their kernels to new random values."""
    for layer in model.layers:
        deferred = getattr(layer, "kernel_initializer", None)
        if isinstance(deferred, DeferredInitializer):
            layer.kernel_initializer = keras.initializers.get(deferred.initializer)
            if initialize:
                initialize_kernel(layer)


def initialize_kernel(layer: keras.Layer) -> None:
    """Sets the kernel of a layer to new random values."""
    layer.kernel.assign(layer.kernel_initializer(layer.kernel.shape, dtype=layer.kernel.dtype))


def uses_bias(spec, bn_follows):
    """Whether a convolution has a bias; before a batch norm only in post-activation networks, as in the v1 weights."""
    return spec.conv_bias and not (spec.preactivation and bn_follows)


def batch_norm(*, spec, name, gamma_initializer="ones"):
    """x -> gamma * (x - mean) / sqrt(variance + epsilon) + beta, per channel (Ioffe and Szegedy 2015)."""
    return BatchNormalization(
        axis=spec.channel_axis,
        momentum=spec.bn_momentum,
        epsilon=spec.bn_epsilon,
        gamma_initializer=gamma_initializer,
        name=f"{name}_bn",
    )


def conv_bn(row, *, spec, name, activation=True, gamma_initializer="ones"):
    """x -> relu(bn(conv(x))): batch norm between convolution and activation (He et al. 2015, sec. 3.4)."""
    return chain(
        conv(row, spec=spec, name=name),
        batch_norm(spec=spec, name=name, gamma_initializer=gamma_initializer),
        layers.Activation("relu", name=f"{name}_relu") if activation else None,
    )


def bn_relu(*, spec, name):
    """x -> relu(bn(x)), which precedes each convolution of a pre-activation network (arXiv:1603.05027)."""
    return chain(batch_norm(spec=spec, name=name), layers.Activation("relu", name=f"{name}_relu"))


def squeeze_excite_width(channels: int, ratio: float) -> int:
    """Channels of the reduced layer: `ratio * channels`, rounded to the nearest multiple of 8 as in timm."""
    return max(8, int(channels * ratio + 4) // 8 * 8)


def squeeze_excite(channels, *, spec, name):
    """x -> x * sigmoid(expand(relu(reduce(mean(x))))) (Hu et al. 2018, arXiv:1709.01507)."""
    shared = {"kernel_initializer": spec.kernel_initializer, "data_format": spec.data_format}
    width = squeeze_excite_width(channels, spec.se_ratio)
    gate = chain(
        layers.GlobalAveragePooling2D(keepdims=True, data_format=spec.data_format, name=f"{name}_se_squeeze"),
        layers.Conv2D(width, 1, activation="relu", name=f"{name}_se_reduce", **shared),
        layers.Conv2D(channels, 1, activation="sigmoid", name=f"{name}_se_expand", **shared),
    )
    return lambda x: layers.Multiply(name=f"{name}_se_scale")([x, gate(x)])


def eca_kernel_size(channels: int) -> int:
    """Neighbouring channels that ECA combines: log2(channels) / 2 + 1 / 2, rounded to an odd number, at least 3."""
    return max(3, int((math.log2(channels) + 1) / 2) | 1)


def efficient_channel_attention(channels, *, spec, name):
    """x -> x * sigmoid(conv1d(mean(x))), a convolution along the channels (Wang et al. 2020, arXiv:1910.03151)."""
    per_channel = (1, 1, channels) if spec.channel_axis == 3 else (channels, 1, 1)
    gate = chain(
        layers.GlobalAveragePooling2D(data_format=spec.data_format, name=f"{name}_eca_squeeze"),
        layers.Reshape((channels, 1), name=f"{name}_eca_sequence"),
        layers.Conv1D(
            1,
            eca_kernel_size(channels),
            padding="same",
            use_bias=False,
            activation="sigmoid",
            kernel_initializer=spec.kernel_initializer,
            data_format="channels_last",
            name=f"{name}_eca_conv",
        ),
        layers.Reshape(per_channel, name=f"{name}_eca_gate"),
    )
    return lambda x: layers.Multiply(name=f"{name}_eca_scale")([x, gate(x)])


@keras.saving.register_keras_serializable("keras_resnet")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` that is faster in TensorFlow if dilated or wide; on other backends unchanged.

    Keras has TensorFlow cut the input of a dilated convolution into a batch of smaller inputs (SpaceToBatchND), which
    takes time and memory, and which exported networks would contain, too: here it is one operation. For training on
    CPUs, `_convolve_in_training` computes the gradients of wide kernels. Weights, configuration and class name, by
    which `.weights.h5` files identify layers, are the same.
    """

    def call(self, inputs, training=None):
        if not (training and self._is_plain() and self._is_wide() and not _has_gpu()):
            return super().call(inputs)
        kernel = tf.convert_to_tensor(self.kernel)
        outputs = _convolve_in_training(inputs, kernel, self.padding.upper(), self.dilation_rate)
        return self.activation(keras.ops.add(outputs, self.bias) if self.use_bias else outputs)

    def convolution_op(self, inputs, kernel):
        if not (self._is_plain() and max(self.dilation_rate) > 1):
            return super().convolution_op(inputs, kernel)
        kernel = tf.convert_to_tensor(kernel)
        return tf.nn.conv2d(inputs, kernel, 1, self.padding.upper(), dilations=self.dilation_rate)

    def _is_wide(self):
        return max(self.kernel_size) > 1 and self.kernel.shape[2] >= 512

    def _is_plain(self):
        return (
            keras.backend.backend() == "tensorflow"
            and (max(self.strides), self.groups, self.data_format) == (1, 1, "channels_last")
            and self.padding in ("same", "valid")
            and _has_dilated_gradients()
        )


def _convolve_in_training(inputs, kernel, padding, dilations):
    """A convolution whose gradient with respect to the kernel is one matrix product for each position of the kernel.

    From 512 channels on, this is faster than oneDNN's gradient, which also multiplies with the zero padding, where most
    positions of a kernel with a large dilation lie.
    """

    @tf.custom_gradient
    def convolve(inputs, kernel):
        def gradients(of_outputs):
            of_inputs = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(inputs),
                filter=kernel,
                out_backprop=of_outputs,
                strides=[1] * 4,
                padding=padding,
                dilations=[1, *dilations, 1],
            )
            return of_inputs, _kernel_gradient(inputs, of_outputs, kernel.shape, padding, dilations)

        return tf.nn.conv2d(inputs, kernel, 1, padding, dilations=dilations), gradients

    return convolve(inputs, kernel)


def _kernel_gradient(inputs, of_outputs, kernel_shape, padding, dilations):
    """(B, H, W, C), gradient of (B, H', W', F) -> gradient of the kernel (K, L, C, F)."""
    sizes, out_sizes = (tf.unstack(tf.shape(x)[1:3]) for x in (inputs, of_outputs))
    rows, columns = map(_overlaps, kernel_shape[:2], dilations, [padding] * 2, sizes, out_sizes)
    products = []
    for (row, out_row), (column, out_column) in product(rows, columns):
        with tf.control_dependencies(products[-1:]):  # one after the other, so that one slice is in memory at a time
            x, gradient = inputs[:, row, column], of_outputs[:, out_row, out_column]
            products.append(tf.einsum("bhwc,bhwf->cf", x, gradient))
    return tf.reshape(tf.stack(products), kernel_shape)


def _overlaps(kernel_size, dilation, padding, size, out_size):
    """For each position of a kernel along one axis: the slice of the inputs it meets, and that of their outputs."""
    padded = dilation * (kernel_size - 1) // 2 if padding == "SAME" else 0
    for offset in range(-padded, dilation * kernel_size - padded, dilation):
        start = tf.maximum(0, -offset)
        stop = tf.maximum(start, tf.minimum(out_size, size - offset))
        yield slice(start + offset, stop + offset), slice(start, stop)


@cache
def _has_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


@cache
def _has_dilated_gradients() -> bool:
    """Whether TensorFlow has gradients of dilated convolutions, which without oneDNN it has on GPUs only."""
    with tf.init_scope():
        images, kernel = tf.zeros((1, 4, 4, 1)), tf.zeros((3, 3, 1, 1))
        try:
            with tf.GradientTape() as tape:
                tape.watch((images, kernel))
                outputs = tf.nn.conv2d(images, kernel, 1, "SAME", dilations=2)
            tape.gradient(outputs, (images, kernel))
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            return False
        return True


@keras.saving.register_keras_serializable("keras_resnet")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` computed by TensorFlow's fused kernel; on other backends unchanged.

    Keras computes mean, variance, scale and offset in separate operations; the fused kernel (cuDNN on GPUs) reads the
    activations once. Weights and moving averages are the same: the kernel's unbiased variance is converted to Keras's
    biased one. So is the class name, by which `.weights.h5` files identify layers.
    """

    def call(self, inputs, training=None, mask=None):
        if mask is not None or not self._fusible(inputs):
            return super().call(inputs, training=training, mask=mask)
        if not (training and self.trainable):
            return self._fused(inputs, self.moving_mean, self.moving_variance, is_training=False)[0]
        outputs, mean, variance = self._fused(inputs, tf.zeros(0), tf.zeros(0), is_training=True)
        count = tf.cast(tf.size(inputs) // tf.size(mean), "float32")  # values per channel
        variance *= tf.maximum(count - 1, 1) / count
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return outputs

    def _fusible(self, inputs):
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis % 4 in _FUSED_FORMATS
            and self.scale
            and self.center
            and not (self.renorm or self.synchronized)
            and keras.backend.standardize_dtype(inputs.dtype) in ("float32", "float16", "bfloat16")
            and keras.backend.standardize_dtype(self.variable_dtype) == "float32"
        )

    def _fused(self, inputs, mean, variance, is_training):
        scale, offset, mean, variance = map(tf.convert_to_tensor, (self.gamma, self.beta, mean, variance))
        return tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=scale,
            offset=offset,
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            exponential_avg_factor=1.0,
            data_format=_FUSED_FORMATS[self.axis % 4],
            is_training=is_training,
        )[:3]


_FUSED_FORMATS = {1: "NCHW", 3: "NHWC"}  # channel axis -> the kernel's name of the data format
