"""A classifier that takes pictures of any size, and looks at every part of them (He et al. 2015, sec. 3.4)."""

from itertools import pairwise

import keras
from keras import layers

from keras_resnet.models import clone


def fully_convolutional(model, side):
    """The same network as if it looked through a window of `side` pixels wherever its feature maps allow it.

    Global average pooling becomes an average over as many pixels of the last feature map as a picture of side x side
    has there, at every place; the classifier follows there, as a 1x1 convolution would (Sermanet et al. 2013,
    arXiv:1312.6229; Simonyan and Zisserman 2014, arXiv:1409.1556, sec. 3.2); and the probabilities are averaged. On
    a picture of side x side that is the network itself. Squeeze-excite gates go on seeing the whole picture.

    Args:
        model: Functional classifier, channels last, that ends in global average pooling and layers for one vector.
        side: pixels; smaller pictures the result does not take.

    Returns:
        keras.Model with the weights of `model`: (B, H, W, C) -> (B, classes) probabilities, H and W at least `side`.

    Raises:
        ValueError: for a model that ends otherwise, or is no graph of layers with one input.
    """
    position, channels = _pooling(model), model.input_shape[-1]
    copy = clone(model, (None, None, channels))
    features = copy.layers[position].input
    window = keras.Model(copy.inputs, features).compute_output_shape((1, side, side, channels))[1:3]
    x = layers.AveragePooling2D(window, strides=1, dtype=features.dtype, name="window")(features)
    for layer in copy.layers[position + 1 :]:
        x = layer(x)
    if getattr(model.layers[-1], "activation", None) is keras.activations.linear:
        x = layers.Softmax(name="probabilities")(x)
    dense = keras.Model(copy.inputs, keras.ops.mean(x, axis=(1, 2)), name=model.name)
    if keras.backend.backend() == "tensorflow":
        dense.jit_compile = False  # XLA would compile it anew for every size of picture
    return dense


PER_PLACE = (layers.Dense, layers.Dropout, layers.Activation, layers.ReLU, layers.Softmax)
"""Layers that do to every place of a map what they do to a vector."""


def _pooling(model):
    """Number of the layer that pools the last feature map; what follows it can be done at every place."""
    found = [i for i, layer in enumerate(model.layers) if isinstance(layer, layers.GlobalAveragePooling2D)]
    pooling, *tail = model.layers[found[-1] :] if found else (None,)
    follow = all(after.input is before.output for before, after in pairwise([pooling, *tail]))
    nested = any(isinstance(layer, keras.Model) for layer in model.layers)
    if nested or not tail or not follow or not all(isinstance(layer, PER_PLACE) for layer in tail):
        raise ValueError(
            "`model` should be one graph of layers that ends in global average pooling and a classifier. "
            f"Received: {model.name}, which ends in {[layer.name for layer in model.layers[-3:]]}"
        )
    if pooling.data_format != "channels_last":
        raise ValueError(f"`model` should have its channels last. Received: {model.name} with {pooling.data_format}")
    return found[-1]
