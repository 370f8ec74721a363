"""`create`: a network of VARIANTS as a Keras model, with random or published weights."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras

from keras_resnet.architecture.network import ResNet, build
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.equivalents import MODEL_ARGUMENTS
from keras_resnet.errors import check_keywords, value_error
from keras_resnet.models.detectors import check_changes, create_detector
from keras_resnet.models.localizers import create_localizer
from keras_resnet.models.nested import preprocessing_before
from keras_resnet.models.segmenters import create_segmenter
from keras_resnet.variants import canonical_name, get_spec, network_task
from keras_resnet.weights.catalog import WEIGHTS, unknown_weights_error
from keras_resnet.weights.download import resolve_weights
from keras_resnet.weights.loading import build_from_file
from keras_resnet.weights.repositories import is_repository, open_repository


def create(
    variant: str,
    include_top: bool | None = True,
    weights: str | os.PathLike | None = None,
    input_tensor: Any = None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int | None = None,
    classifier_activation: Any = "softmax",
    name: str | None = None,
    **changes: Any,
) -> ResNet:
    """Creates a network of VARIANTS by its name, with random weights or those of a file.

    >>> import keras_resnet
    >>> model = keras_resnet.create("resnet20", weights="cifar10")
    >>> model
    <ResNet name=resnet20, built=True>
    >>> model.input_shape, model.output_shape
    ((None, 32, 32, 3), (None, 10))

    Args:
        variant: name of a network, such as "resnet50d"; see `list_models()`. Or a folder that `save_pretrained`, timm
            or KerasHub (`save_to_preset`) wrote, or "hf://user/name" on the Hugging Face Hub: the network with its
            weights, its preprocessing and, except KerasHub's, its class names.
        include_top: whether average pooling and the classifier follow the last stage; None: if the weights have one.
        weights: None (random, He initialization), a tag of `list_weights(variant)`, "hf://user/name", or the path of a
            weights file.
        input_tensor: Keras tensor to build upon, instead of `input_shape`. If the layers before it normalise images,
            `preprocessing(model)` returns pixels in 0..255.
        input_shape: (H, W, C), or (C, H, W) for channels first; without the top, H and W may be None. Default: the
            size and channels of the weights, else (224, 224, 3), or (32, 32, 3) for the CIFAR networks; without the
            top, H and W are None. Inputs are floats, prepared by `preprocessing(model)`, which has the size of these
            images and the crop share of the weights.
        pooling: without the top: None for feature maps, "avg" or "max" for one vector per image.
        classes: number of classes; None for that of the weights, else 1000 (10 for the CIFAR networks). For another
            number than that of the weights, or weights without a classifier, it is newly initialized.
        classifier_activation: "softmax", which is a sigmoid for the weights of a multi-label network, or None for
            logits; without pretrained weights any Keras activation.
        name: name of the model; default the variant's.
        **changes: fields of ResNetSpec to change, such as `output_stride=8` or `drop_path=0.1`. For a detector (a name
            of `list_models(task="detection")`), `backbone_weights`, the weights of its residual network alone, and
            fields of DetectorSpec, DetectionSettings and DetectionPreprocessing, such as `backbone="resnet50d"`,
            `score_threshold=0.5`, or `min_size=320, max_size=533`; its `classes` are counted with the background. For a
            localizer (`list_models(task="localization")`), `backbone_weights` and fields of LocalizerSpec; for a
            segmenter (`list_models(task="segmentation")`), `backbone_weights` and fields of SegmenterSpec and
            SegmentationPreprocessing, such as `output_stride=16` or `shorter_side=520`.

    Returns:
        A ResNet, a flat Functional model: (B, H, W, C) -> (B, classes) float32, or features without the top. A Detector
        for the name of one: (B, H, W, 3) -> {"boxes": (B, N, 4), "scores": (B, N), ...}; a Segmenter: (B, H, W, 3) ->
        logits (B, H, W, classes).

    Raises:
        ValueError: where keras.applications raises it, for an unknown name or tag (with the nearest known ones), and
            for a file that does not fit the network (with the list of differences).
        ConnectionError: if the file of a tag cannot be downloaded.
        TypeError: for a change of something that is not a field of ResNetSpec.
    """
    source, repository = variant, None
    if is_repository(source):
        if weights is not None:
            raise value_error("weights", weights, "None for a folder or repository, which has its own")
        repository = open_repository(source)
        weights = repository.weights
    variant = repository.name if repository else canonical_name(variant)
    task = network_task(repository.spec if repository else variant)
    if task in ("detection", "segmentation"):
        _check_unused(
            {"detection": "detector", "segmentation": "segmenter"}[task],
            include_top=include_top,
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classifier_activation=classifier_activation,
        )
        arguments: dict[str, Any] = {"weights": weights, "classes": classes, "name": name, **changes}
        if task == "detection":
            return create_detector(variant, **arguments)
        return create_segmenter(variant, repository=repository, **arguments)
    if task == "localization":
        _check_unused(
            "localizer",
            include_top=include_top,
            input_tensor=input_tensor,
            pooling=pooling,
            classifier_activation=classifier_activation,
        )
        return create_localizer(variant, weights, classes=classes, name=name, input_shape=input_shape, **changes)
    check_keywords("create", changes, ResNetSpec, equivalents=MODEL_ARGUMENTS)
    spec = replace(repository.spec if repository else get_spec(variant), **changes)
    _check_like_keras(variant, weights, include_top, input_shape, classes, classifier_activation)
    arguments = {
        "include_top": include_top,
        "input_tensor": input_tensor,
        "input_shape": input_shape,
        "pooling": pooling,
        "classifier_activation": classifier_activation,
        "name": name or variant.removesuffix("_cifar"),
    }
    if weights is None:
        return build(spec, classes=classes, **arguments)
    if repository:
        path, preprocessing, arguments["head"] = repository.weights, repository.preprocessing, repository.head
    else:
        source, (path, preprocessing) = weights, resolve_weights(weights, variant, include_top)
    model = build_from_file(spec, path, classes=classes, preprocessing=preprocessing, **arguments)
    if not Path(source).exists():  # a tag or a repository
        model.info["weights"] = str(source)
    check_changes(model.spec, spec, changes)
    if input_tensor is not None and (needed := model.info.get("preprocessing")):
        found = preprocessing_before(model, input_tensor, Preprocessing.from_config(needed))
        model.info["preprocessing"] = found and found.to_config()
    return model


_UNUSED = {"include_top": (True, None), "classifier_activation": ("softmax",)}
"""Argument of a classifier -> the values that have no effect on other networks; for other arguments None alone."""


def _check_unused(kind, **arguments):
    """Raises ValueError for arguments that only classifiers have."""
    for name, value in arguments.items():
        if not any(type(value) is type(unused) and value == unused for unused in _UNUSED.get(name, (None,))):
            raise value_error(name, value, f"left out for a {kind}, which has its own heads and inputs")


def _check_like_keras(variant, weights, include_top, input_shape, classes, classifier_activation):
    """Raises the errors of keras.applications."""
    if include_top and isinstance(input_shape, (tuple, list)) and None in input_shape:
        raise ValueError(
            f"If `include_top` is True, you should specify a static `input_shape`. Received: input_shape={input_shape}"
        )
    if weights is None:
        if include_top is None:
            raise value_error("include_top", include_top, "True or False without weights")
        return
    if not isinstance(weights, (str, os.PathLike)) or (weights == "imagenet" and (variant, weights) not in WEIGHTS):
        raise unknown_weights_error(variant, weights)
    if include_top and weights == "imagenet" and classes not in (None, 1000):
        raise ValueError(
            "If using `weights='imagenet'` with `include_top=True`, `classes` should be 1000 (for other tags and files "
            f"the classifier is newly initialized). Received: classes={classes}"
        )
    activation = keras.activations.get(classifier_activation)
    if include_top and activation not in (keras.activations.get("softmax"), keras.activations.get(None)):
        raise ValueError(
            "Only `None` and `softmax` activations are allowed for the `classifier_activation` argument when using "
            f"pretrained weights, with `include_top=True`. Received: classifier_activation={classifier_activation}"
        )
