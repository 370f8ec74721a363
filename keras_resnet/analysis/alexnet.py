"""AlexNet, to which residual networks are compared (Krizhevsky, Sutskever and Hinton, NIPS 2012)."""

import keras
import numpy as np
from keras import layers, ops

from keras_resnet.architecture.layers import chain
from keras_resnet.errors import value_error

_ONES = {"bias_initializer": "ones"}  # gives the ReLUs positive inputs at first (sec. 5)
_CONVOLUTIONS = (
    # arguments of Conv2D, and what follows its ReLU (sec. 3.5); the two groups were trained on a GPU each
    ({"filters": 96, "kernel_size": 11, "strides": 4, "padding": "valid"}, ("normalization", "pool")),
    ({"filters": 256, "kernel_size": 5, "groups": 2, **_ONES}, ("normalization", "pool")),
    ({"filters": 384, "kernel_size": 3}, ()),
    ({"filters": 384, "kernel_size": 3, "groups": 2, **_ONES}, ()),
    ({"filters": 256, "kernel_size": 3, "groups": 2, **_ONES}, ("pool",)),
)


def alexnet(
    classes: int = 1000,
    input_shape: tuple[int, int, int] = (227, 227, 3),
    initialize: bool = True,
    name: str = "alexnet",
) -> keras.Model:
    """Build AlexNet, with the layers and sizes of Caffe's `bvlc_alexnet`.

    The default input size is 227: with the 224 that the paper states, the feature maps would not have its 55x55 pixels.

    >>> from keras_resnet import analysis
    >>> analysis.alexnet(initialize=False).count_params()
    60965224

    Args:
        classes: number of classes.
        input_shape: (H, W, C), with H and W at least 67.
        initialize: False for kernels of zeros, if the weights will be overwritten or only counted.
        name: name of the model.

    Returns:
        A Functional model: (B, H, W, C) -> (B, classes) probabilities.

    Raises:
        ValueError: for an input shape that is too small or not three integers.
    """
    sides = tuple(input_shape)
    if len(sides) != 3 or not all(isinstance(side, int) for side in sides) or min(sides[:2]) < 67 or sides[2] < 1:
        raise value_error("input_shape", input_shape, "(height, width, channels), height and width at least 67")
    kernels = keras.initializers.RandomNormal(stddev=0.01) if initialize else "zeros"  # sec. 5
    inputs = layers.Input(sides)
    return keras.Model(inputs, chain(*_layers(classes, kernels))(inputs), name=name)


def _layers(classes, kernels):
    """All layers from conv1 to predictions."""
    usual = {"padding": "same", "activation": "relu", "kernel_initializer": kernels, "data_format": "channels_last"}
    for number, (arguments, following) in enumerate(_CONVOLUTIONS, 1):
        yield layers.Conv2D(**{**usual, **arguments}, name=f"conv{number}")
        if "normalization" in following:
            yield LocalResponseNormalization(name=f"norm{number}")
        if "pool" in following:
            yield layers.MaxPooling2D(3, strides=2, data_format="channels_last", name=f"pool{number}")
    yield layers.Flatten(name="flatten", data_format="channels_last")
    for number in (6, 7):
        yield layers.Dense(4096, "relu", kernel_initializer=kernels, bias_initializer="ones", name=f"fc{number}")
        yield layers.Dropout(0.5, name=f"drop{number}")
    yield layers.Dense(classes, "softmax", kernel_initializer=kernels, name="predictions")


@keras.saving.register_keras_serializable("keras_resnet")
class LocalResponseNormalization(layers.Layer):
    """x / (2 + 1e-4 * sum of the squares of x in five neighboring channels) ** 0.75 (sec. 3.3); no weights.

    The sum over neighbors is a product with a band matrix, which every Keras backend supports.
    """

    def call(self, inputs):
        channel = np.arange(inputs.shape[-1])
        neighbors = abs(channel[:, None] - channel) <= 2
        squares = ops.matmul(ops.square(inputs), ops.cast(neighbors, inputs.dtype))
        return inputs * ops.power(2 + 1e-4 * squares, -0.75)
