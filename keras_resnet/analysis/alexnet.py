"""AlexNet, the network that residual networks are measured against (Krizhevsky, Sutskever and Hinton, NIPS 2012)."""

from dataclasses import dataclass

import keras
import numpy as np
from keras import layers, ops

from keras_resnet.architecture.layers import Convolution, chain


@dataclass(frozen=True)
class Row:
    """One convolution of AlexNet, and what follows its ReLU."""

    convolution: Convolution
    bias: float
    """What its biases start from; 1 spares the first ReLUs from being born dead (sec. 5)."""
    normalises: bool = False
    pools: bool = False


CONVOLUTIONS = (  # sec. 3.5; two groups: the halves that lived on a GPU each
    Row(Convolution(96, 11, stride=4), bias=0, normalises=True, pools=True),
    Row(Convolution(256, 5, groups=2), bias=1, normalises=True, pools=True),
    Row(Convolution(384, 3), bias=0),
    Row(Convolution(384, 3, groups=2), bias=1),
    Row(Convolution(256, 3, groups=2), bias=1, pools=True),
)
HIDDEN = (4096, 4096)


def alexnet(classes=1000, input_shape=(227, 227, 3), initialize=True, name="alexnet"):
    """AlexNet as one flat Keras model: 60,965,224 parameters and 724,406,816 multiply-adds at 227x227.

    It is the network of Caffe's `bvlc_alexnet`, whose layers and sizes are the paper's; the paper's 224 pixels do not
    yield its maps of 55x55, 227 do.

    Args:
        classes: number of classes.
        input_shape: (H, W, C), all known; at least 67 pixels a side.
        initialize: False leaves all kernels zero: for weights that are about to be overwritten, or only counted.
        name: name of the model.

    Returns:
        A keras.Model: (B, H, W, C) -> (B, classes) probabilities.

    Raises:
        ValueError: for an input shape that is not three known integers, or too small.
    """
    sides = tuple(input_shape)
    if len(sides) != 3 or not all(isinstance(side, int) for side in sides) or min(sides[:2]) < 67 or sides[2] < 1:
        raise ValueError(
            "`input_shape` should be (height, width, channels), height and width at least 67. "
            f"Received: input_shape={input_shape}"
        )
    kernels = keras.initializers.RandomNormal(stddev=0.01) if initialize else "zeros"  # sec. 5
    inputs = layers.Input(sides)
    x = chain(*_features(kernels), layers.Flatten(name="flatten", data_format="channels_last"))(inputs)
    x = chain(*_classifier(classes, kernels))(x)
    return keras.Model(inputs, x, name=name)


def _features(kernels):
    """conv1 to pool5."""
    for number, row in enumerate(CONVOLUTIONS, 1):
        convolution = row.convolution
        yield layers.Conv2D(
            convolution.filters,
            convolution.kernel_size,
            strides=convolution.stride,
            padding="same" if convolution.stride == 1 else "valid",
            groups=convolution.groups,
            activation="relu",
            kernel_initializer=kernels,
            bias_initializer=keras.initializers.Constant(row.bias),
            data_format="channels_last",
            name=f"conv{number}",
        )
        if row.normalises:
            yield LocalResponseNormalization(name=f"norm{number}")
        if row.pools:
            yield layers.MaxPooling2D(3, strides=2, data_format="channels_last", name=f"pool{number}")


def _classifier(classes, kernels):
    """fc6 to fc8."""
    for number, units in enumerate(HIDDEN, len(CONVOLUTIONS) + 1):
        yield layers.Dense(
            units, "relu", kernel_initializer=kernels, bias_initializer=keras.initializers.Ones(), name=f"fc{number}"
        )
        yield layers.Dropout(0.5, name=f"drop{number}")
    yield layers.Dense(classes, "softmax", kernel_initializer=kernels, name="predictions")


@keras.saving.register_keras_serializable("keras_resnet")
class LocalResponseNormalization(layers.Layer):
    """x / (2 + 1e-4 * sum of the squares of x in five neighbouring channels) ** 0.75 (sec. 3.3); no weights.

    The sum over neighbours is a product with a band matrix, which every Keras backend can do.
    """

    def call(self, inputs):
        channel = np.arange(inputs.shape[-1])
        neighbours = abs(channel[:, None] - channel) <= 2
        activity = ops.matmul(ops.square(inputs), ops.cast(neighbours, inputs.dtype))
        return inputs * ops.power(2 + 1e-4 * activity, -0.75)
