"""A network as a source of features: the maps of its endpoints, or a vector for each image."""

import os
from collections.abc import Iterable

from keras import layers

from keras_resnet.architecture.metadata import channel_axis, copy_metadata
from keras_resnet.architecture.network import ResNet
from keras_resnet.errors import unknown_name_error
from keras_resnet.models.create import create, load_model
from keras_resnet.models.layers import check_network, endpoints_of, last_feature_map
from keras_resnet.models.transforms import clone

POOLINGS = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}
PRE_LOGITS = "pre_logits"
DETECTION = {f"C{number + 1}": f"stage{number}" for number in range(1, 5)}
"""What the detection literature calls the stages (Lin et al. 2017, arXiv:1612.03144, sec. 3)."""


def feature_extractor(name_or_model, weights=None, endpoints=None, pooling=None, input_shape=None):
    """A network that answers with its features.

    Args:
        name_or_model: name of a network of VARIANTS, path of a .keras file, or a Keras model whose layers are named as
            in keras.applications, such as ours and its own; its weights are shared, not copied. Of an extractor, the
            endpoints that it has.
        weights: with a name: None (random ones), a tag of `list_weights(name)`, or the path of a weights file.
        endpoints: one or several of "stem", "stage1" to "stage4" (or "C2" to "C5"), of which CIFAR nets have three, and
            "pre_logits", what the classifier sees: a vector in any case; of a network without a classifier, the
            average of the last stage. None: the last stage.
        pooling: None for maps, "avg" or "max" for one vector an image.
        input_shape: (H, W, C), or (C, H, W) for channels-first, with None for sides of any length. None: as the model
            has it; with a name, of any size.

    Returns:
        A Functional model, (B, H, W, C) -> {endpoint: (B, h, w, channels), or (B, channels)}, that keeps the spec and
        the preprocessing of the network.

    Raises:
        ValueError: for an unknown endpoint (with the list), another pooling, weights with what has its own, and in the
            cases of `create` and `load_model`.
    """
    if pooling not in (None, *POOLINGS):
        raise unknown_name_error("pooling", pooling, (None, *POOLINGS))
    model = _network(name_or_model, weights, input_shape)
    known = _tensors(model)
    outputs = {name: _pooled(_find(known, name), pooling, model, name) for name in _names(endpoints, known)}
    return copy_metadata(ResNet(model.inputs[0], outputs, name=model.name), model)


def _network(name_or_model, weights, input_shape):
    is_name = isinstance(name_or_model, (str, os.PathLike))
    if is_name and not str(name_or_model).endswith(".keras"):
        return create(name_or_model, include_top=False, weights=weights, input_shape=input_shape)
    if weights is not None:
        raise ValueError(
            f"`weights` should be left out with a model or a .keras file, which have their own. Received: {weights!r}"
        )
    model = load_model(name_or_model) if is_name else name_or_model
    check_network(model)
    return model if input_shape is None else _of_shape(model, input_shape)


def _of_shape(model, input_shape):
    """A copy of the model for images of another size."""
    given, axis = model.inputs[0].shape[1:], channel_axis(model) - 1
    if not isinstance(input_shape, (tuple, list)) or len(input_shape) != 3 or input_shape[axis] != given[axis]:
        raise ValueError(
            f"`input_shape` should be like {given}, with other sides or None for them. Received: {input_shape!r}"
        )
    return clone(model, input_shape)


def _tensors(model):
    """{endpoint: Keras tensor}, first layer first."""
    if isinstance(model.output, dict):  # an extractor: what comes before its endpoints are no endpoints of it
        return dict(model.output)
    return {name: layer.output for name, layer in endpoints_of(model).items()} | {PRE_LOGITS: _pre_logits(model)}


def _pre_logits(model):
    """What the last dense layer sees; without one, what one would see."""
    last = last_feature_map(model)
    after = model.layers[model.layers.index(last) + 1 :]
    classifiers = [layer for layer in after if isinstance(layer, layers.Dense)]
    if classifiers:
        return classifiers[-1].input
    return _pooled(model.outputs[0], "avg", model, PRE_LOGITS)


def _names(endpoints, known):
    """The endpoints that are asked for, one at least."""
    if endpoints is None:
        return [_last(known)]
    names = [endpoints] if isinstance(endpoints, str) or not isinstance(endpoints, Iterable) else list(endpoints)
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`endpoints` should be some of {list(known)}. Received: endpoints={endpoints!r}")
    return names


def _last(known):
    """Name of the last stage."""
    return [name for name in known if name != PRE_LOGITS or len(known) == 1][-1]


def _find(known, name):
    stage = name if name in known else DETECTION.get(name, name)
    if stage not in known:
        raise unknown_name_error("endpoints", name, known)
    return known[stage]


def _pooled(tensor, pooling, model, name):
    """A vector as it is, maps pooled if they are to be."""
    if pooling is None or len(tensor.shape) == 2:
        return tensor
    data_format = "channels_first" if channel_axis(model) == 1 else "channels_last"
    return POOLINGS[pooling](data_format=data_format, name=f"{name}_{pooling}")(tensor)
