"""The layers every residual network is made of. Each factory returns a function of a tensor, so that they chain."""

from dataclasses import dataclass
from functools import reduce

import keras
from keras import layers

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


@dataclass(frozen=True)
class Convolution:
    """One convolution as data: what builds it, and what counts its parameters and multiply-adds."""

    filters: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1

    @property
    def padding(self):
        """Pixels of zeros on each of the four sides: symmetric, as in Caffe and torch."""
        return self.dilation * (self.kernel_size - 1) // 2


def chain(*functions):
    """chain(f, g)(x) == g(f(x)); None stands for the identity."""
    return lambda x: reduce(lambda y, function: function(y) if function else y, functions, x)


def conv(row, *, spec, name, bn_follows=True, kernel_initializer=None):
    """x -> convolution(x): (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), filters).

    A strided convolution gets its padding from a layer of its own: "same" in TensorFlow would pad unevenly, and no
    published weights expect that. A bias in front of a batch norm is redundant; only the v1 files have it (conv_bias).
    """
    explicit = row.padding > 0 and (row.stride > 1 or spec.explicit_padding)
    return chain(
        layers.ZeroPadding2D(row.padding, data_format=spec.data_format, name=f"{name}_pad") if explicit else None,
        layers.Conv2D(
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


def uses_bias(spec, bn_follows):
    """Whether a convolution has a bias: in front of a batch norm only in post-activation nets, as in the v1 files."""
    return spec.conv_bias and not (spec.preactivation and bn_follows)


def batch_norm(*, spec, name, gamma_initializer="ones"):
    """x -> gamma * (x - mean) / sqrt(variance + epsilon) + beta, a channel at a time (Ioffe and Szegedy 2015)."""
    return BatchNormalization(
        axis=spec.channel_axis,
        momentum=spec.bn_momentum,
        epsilon=spec.bn_epsilon,
        gamma_initializer=gamma_initializer,
        name=f"{name}_bn",
    )


def relu(name):
    """x -> max(x, 0)."""
    return layers.Activation("relu", name=f"{name}_relu")


def conv_bn(row, *, spec, name, activation=True, gamma_initializer="ones"):
    """x -> relu(bn(conv(x))), the paper's unit (He et al. 2015, sec. 3.4): normalised before the activation."""
    return chain(
        conv(row, spec=spec, name=name),
        batch_norm(spec=spec, name=name, gamma_initializer=gamma_initializer),
        relu(name) if activation else None,
    )


def bn_relu(*, spec, name):
    """x -> relu(bn(x)), what pre-activation nets put before a convolution (He et al. 2016, arXiv:1603.05027)."""
    return chain(batch_norm(spec=spec, name=name), relu(name))


def squeeze_excite_width(channels, ratio):
    """Channels of the squeezed layer: `ratio * channels` to the nearest multiple of 8, as timm rounds it."""
    return max(8, int(channels * ratio + 4) // 8 * 8)


def squeeze_excite(channels, *, spec, name):
    """x -> x * sigmoid(expand(relu(reduce(mean(x))))) (Hu et al. 2018, arXiv:1709.01507)."""

    def dense(filters, activation, part):
        return layers.Conv2D(
            filters,
            1,
            activation=activation,
            kernel_initializer=spec.kernel_initializer,
            data_format=spec.data_format,
            name=f"{name}_se_{part}",
        )

    gate = chain(
        layers.GlobalAveragePooling2D(keepdims=True, data_format=spec.data_format, name=f"{name}_se_squeeze"),
        dense(squeeze_excite_width(channels, spec.se_ratio), "relu", "reduce"),
        dense(channels, "sigmoid", "expand"),
    )
    return lambda x: layers.Multiply(name=f"{name}_se_scale")([x, gate(x)])


def drop_path(rate, *, name):
    """F -> F or, for a share `rate` of the images, 0: stochastic depth (Huang et al. 2016, arXiv:1603.09382)."""
    return layers.Dropout(rate, noise_shape=(None, 1, 1, 1), name=f"{name}_drop_path")


@keras.saving.register_keras_serializable("keras_resnet")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` through TensorFlow's fused kernel (cuDNN on GPUs); elsewhere unchanged.

    Keras composes mean, variance, multiply and add from separate ops; the fused kernel reads the activations once.
    Same weights, same moving averages (the kernel's unbiased variance is turned back into Keras's biased one), and the
    same class name, without which `.weights.h5` files of either class would not load into the other.
    """

    def call(self, inputs, training=None, mask=None):
        if mask is not None or not self._fusible(inputs):
            return super().call(inputs, training=training, mask=mask)
        if not (training and self.trainable):
            return self._fused(inputs, self.moving_mean, self.moving_variance, is_training=False)[0]
        outputs, mean, variance = self._fused(inputs, tf.zeros(0), tf.zeros(0), is_training=True)
        count = tf.cast(tf.size(inputs) // tf.size(mean), "float32")  # values a channel
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
        return tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=tf.convert_to_tensor(mean),
            variance=tf.convert_to_tensor(variance),
            epsilon=self.epsilon,
            exponential_avg_factor=1.0,
            data_format=_FUSED_FORMATS[self.axis % 4],
            is_training=is_training,
        )[:3]


_FUSED_FORMATS = {1: "NCHW", 3: "NHWC"}  # axis of the channels -> the kernel's name for it
