"""`feature_extractor`: a model that outputs the feature maps or vectors of its endpoints."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import keras
from keras import layers

from keras_resnet.architecture.detector import Detector, backbone_spec
from keras_resnet.architecture.detector_spec import backbone_of
from keras_resnet.architecture.metadata import channel_axis, model_info, model_spec
from keras_resnet.architecture.network import POOLINGS, ResNet, build
from keras_resnet.architecture.segmenter import Segmenter, segmenter_backbone
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.errors import check_known, unknown_name_error, value_error
from keras_resnet.models.cloning import as_functional, clone
from keras_resnet.models.create import create
from keras_resnet.models.layers import endpoint_layers, last_feature_map
from keras_resnet.models.localizers import classifier_of
from keras_resnet.models.model_files import load_model
from keras_resnet.variants import get_spec, network_task
from keras_resnet.weights.layout_axes import weight_variables
from keras_resnet.weights.loading import require_spec
from keras_resnet.weights.spec_matching import variant_of

PRE_LOGITS = "pre_logits"
_DETECTION_NAMES = {f"C{number + 1}": f"stage{number}" for number in range(1, 5)}
"""Name in the detection literature (Lin et al. 2017, arXiv:1612.03144, sec. 3) -> endpoint."""
_BACKBONES: dict[type, Callable[[Any], ResNetSpec]] = {Detector: backbone_spec, Segmenter: segmenter_backbone}
"""Class of models whose endpoints are those of their residual network -> function of its spec that returns that of the
network."""


def feature_extractor(
    name_or_model: str | os.PathLike | keras.Model,
    weights: str | os.PathLike | None = None,
    endpoints: str | Iterable[str] | None = None,
    pooling: str | None = None,
    input_shape: tuple[int | None, ...] | None = None,
    output_stride: int | None = None,
) -> ResNet:
    """A model that outputs the features of one or several endpoints of a network.

    >>> from keras_resnet import feature_extractor
    >>> extractor = feature_extractor("resnet20", endpoints=("stage2", "stage3"), input_shape=(32, 32, 3))
    >>> {name: tuple(maps.shape) for name, maps in extractor.output.items()}
    {'stage2': (None, 16, 16, 32), 'stage3': (None, 8, 8, 64)}

    Args:
        name_or_model: name of a network, path of a .keras file, or a Keras model with the layer names of
            keras.applications. A model shares its weights with the extractor, unless there are models among its layers,
            which are copied. An extractor offers its own endpoints, networks of other tasks those of their backbone.
        weights: with a name: None (random), a tag of `list_weights(name)`, or the path of a weights file.
        endpoints: one or several of "stem", "stage1" to "stage4" (or "C2" to "C5"; the CIFAR networks have three
            stages), and "pre_logits": the input of the classifier, a vector; for a model without a classifier, the
            average of the last stage. None: the last stage.
        pooling: None for feature maps, "avg" or "max" for one vector per image.
        input_shape: (H, W, C), or (C, H, W) for channels first, with None for sides of any length. None: as in the
            model; with a name, sides of any length.
        output_stride: largest total stride: 8 or 16 dilates the last stages instead, with the same weights, as in
            DeepLab. None: that of the network. Of a model, the extractor then has a copy of the weights.

    Returns:
        A Functional model, (B, H, W, C) -> {endpoint: (B, h, w, channels), or (B, channels)}, with the spec and the
        preprocessing of the network. Its `pyramid_outputs` and `data_format` are those that KerasHub's detectors expect
        of an `image_encoder`.

    Raises:
        ValueError: for an unknown endpoint or pooling, `weights` given together with a model, an `output_stride` of a
            model without a spec, and as `create` and `load_model`.
    """
    check_known("pooling", pooling, (None, *POOLINGS))
    model = _get_model(name_or_model, weights, input_shape, output_stride)
    known = _known_endpoints(model)
    outputs = {}
    for name in _endpoint_names(endpoints, known):
        stage = name if name in known else _DETECTION_NAMES.get(name, name)
        if stage not in known:
            raise unknown_name_error("endpoints", name, known)
        outputs[name] = _pooled(known[stage], pooling, model, name)
    extractor = ResNet(model.inputs[0], outputs, name=model.name)
    extractor.spec, extractor.info = model_spec(model), model_info(model)
    if type(model) in _BACKBONES:
        extractor.spec = _BACKBONES[type(model)](model.spec)
    return extractor


def _known_endpoints(model):
    """{endpoint: tensor}; an extractor has its own, and a detector or segmenter has no "pre_logits"."""
    has_backbone = type(model) in _BACKBONES
    if isinstance(model.output, dict) and not has_backbone:
        return dict(model.output)
    known = {name: layer.output for name, layer in endpoint_layers(model).items()}
    return known if has_backbone else known | {PRE_LOGITS: _pre_logits(model)}


def _get_model(name_or_model, weights, input_shape, output_stride):
    is_path = isinstance(name_or_model, (str, os.PathLike))
    is_name = is_path and not str(name_or_model).endswith(".keras")
    if is_name and network_task(name_or_model) == "localization":  # the files of localizers contain that network
        name_or_model = variant_of(backbone_of(get_spec(name_or_model)))
    if is_name and network_task(name_or_model) not in ("detection", "segmentation"):
        changes = {} if output_stride is None else {"output_stride": output_stride}
        return create(name_or_model, include_top=False, weights=weights, input_shape=input_shape, **changes)
    if weights is not None and not is_name:
        raise value_error("weights", weights, "None for a model or a .keras file, which has its own")
    if is_name:
        model = create(name_or_model, weights=weights)
    else:
        model = as_functional(classifier_of(load_model(name_or_model) if is_path else name_or_model))
    if output_stride is not None:
        model = _dilated(model, output_stride)
    if input_shape is None:
        return model
    own, axis = model.inputs[0].shape[1:], channel_axis(model) - 1
    if not isinstance(input_shape, (tuple, list)) or len(input_shape) != 3 or input_shape[axis] != own[axis]:
        raise value_error("input_shape", input_shape, f"like {own}, with other sides or None for them")
    return clone(model, input_shape)


def _dilated(model, output_stride):
    """A copy of a network of this package, without its top, with another output stride."""
    if type(model) in _BACKBONES:
        raise value_error("output_stride", output_stride, "None for a detector or segmenter, which has its own")
    spec = replace(require_spec(model), output_stride=output_stride)
    copy = build(spec, include_top=False, input_shape=model.inputs[0].shape[1:], name=model.name, initialize=False)
    variables = weight_variables(model)
    for name, variable in weight_variables(copy).items():
        variable.assign(variables[name])
    copy.info = model_info(model)
    return copy


def _pre_logits(model):
    """The input of the last Dense layer, or the average of the last feature map if there is none."""
    after = model.layers[model.layers.index(last_feature_map(model)) + 1 :]
    classifiers = [layer for layer in after if isinstance(layer, layers.Dense)]
    return classifiers[-1].input if classifiers else _pooled(model.outputs[0], "avg", model, PRE_LOGITS)


def _endpoint_names(endpoints, known):
    """The requested endpoints as a list, the last stage by default."""
    if endpoints is None:
        return [[name for name in known if name != PRE_LOGITS or len(known) == 1][-1]]
    names = [endpoints] if isinstance(endpoints, str) or not isinstance(endpoints, Iterable) else list(endpoints)
    if not names or not all(isinstance(name, str) for name in names):
        raise value_error("endpoints", endpoints, f"some of {list(known)}")
    return names


def _pooled(tensor, pooling, model, name):
    """The tensor, pooled if it is a feature map and `pooling` is not None."""
    if pooling is None or len(tensor.shape) == 2:
        return tensor
    data_format = "channels_first" if channel_axis(model) == 1 else "channels_last"
    return POOLINGS[pooling](data_format=data_format, name=f"{name}_{pooling}")(tensor)
