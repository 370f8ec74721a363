"""ResNet18(...), ResNet50(...), ...: the signature of keras.applications, for every network of VARIANTS."""

import os
from dataclasses import fields, replace
from pathlib import Path

import keras

from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.network import build
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.errors import unknown_name_error
from keras_resnet.variants import canonical_name, get_spec
from keras_resnet.weights.catalog import WEIGHTS, unknown_weights_error
from keras_resnet.weights.download import resolve_weights
from keras_resnet.weights.loading import build_from_file


def create(
    variant,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=None,
    classifier_activation="softmax",
    name=None,
    **changes,
):
    """A network of VARIANTS by its name, with random weights or anybody's.

    Args:
        variant: name of a network, such as "resnet50d"; see `list_models()`.
        include_top: whether average pooling and the classifier follow the last stage; None: if the weights have one.
        weights: None (He initialisation), a tag of `list_weights(variant)`, or the path of a weights file.
        input_tensor: Keras tensor to build upon, instead of `input_shape`.
        input_shape: (H, W, C), or (C, H, W) for channels-first; without the top, H and W may be None. Default: the
            size and channels of the weights, else (224, 224, 3), (32, 32, 3) for the CIFAR nets; sides None without
            the top. Inputs are floats, prepared by `preprocessing(model)`.
        pooling: without the top: None for feature maps, "avg" or "max" for one vector an image.
        classes: number of classes; None for the weights' own, else 1000 (10 for the CIFAR nets). Another number than
            the weights' keeps the body and starts a fresh classifier.
        classifier_activation: "softmax", or None for logits; without pretrained weights any Keras activation.
        name: name of the model; default the variant's.
        **changes: fields of ResNetSpec to change, such as `output_stride=8` or `drop_path=0.1`.

    Returns:
        A ResNet, a flat Functional model: (B, H, W, C) -> (B, classes) float32, or features without the top.

    Raises:
        ValueError: in the cases in which keras.applications raises it, for an unknown name or tag (with the nearest
            known ones), and for a file that does not fit (with the list of what does not).
        ConnectionError: if a tag's file cannot be fetched.
        TypeError: for a change of what is no field of ResNetSpec.
    """
    variant = canonical_name(variant)
    spec = replace(get_spec(variant), **_known(changes))
    _check_weights(variant, weights, include_top, classes, classifier_activation)
    if include_top and isinstance(input_shape, (tuple, list)) and None in input_shape:
        raise ValueError(
            f"If `include_top` is True, you should specify a static `input_shape`. Received: input_shape={input_shape}"
        )
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
    path, preprocessing = resolve_weights(weights, variant, include_top)
    model = build_from_file(spec, path, classes=classes, preprocessing=preprocessing, **arguments)
    if path != Path(weights):
        model.info["weights"] = weights
    for field in changes:
        needed, asked = getattr(model.spec, field), getattr(spec, field)
        if asked not in (needed, None):  # a data format of None is resolved by now
            raise ValueError(f"`{field}` should be {needed!r} for these weights. Received: {field}={asked!r}")
    return model


def _known(changes):
    """The changes, if they are of fields that a ResNetSpec has."""
    known = [field.name for field in fields(ResNetSpec)]
    for name in changes:
        if name not in known:
            raise TypeError(str(unknown_name_error("changes", name, known, "fields of ResNetSpec")))
    return changes


def _check_weights(variant, weights, include_top, classes, classifier_activation):
    """The errors of keras.applications."""
    if weights is None:
        if include_top is None:
            raise ValueError("`include_top` should be True or False without weights. Received: include_top=None")
        return
    if weights == "imagenet" and (variant, weights) not in WEIGHTS:
        raise unknown_weights_error(variant, weights)
    if not isinstance(weights, (str, os.PathLike)):
        raise unknown_weights_error(variant, weights)
    if include_top and weights == "imagenet" and classes not in (None, 1000):
        raise ValueError(
            "If using `weights='imagenet'` with `include_top=True`, `classes` should be 1000 (other tags and files "
            f"start a fresh classifier). Received: classes={classes}"
        )
    activation = keras.activations.get(classifier_activation)
    if include_top and activation not in (keras.activations.get("softmax"), keras.activations.get(None)):
        raise ValueError(
            "Only `None` and `softmax` activations are allowed for the `classifier_activation` argument when using "
            f"pretrained weights, with `include_top=True`. Received: classifier_activation={classifier_activation}"
        )


def load_model(path):
    """A model from a `.keras` file: ours with their spec, preprocessing and class names, or anybody's.

    Args:
        path: what `model.save(path)` wrote.

    Raises:
        ValueError: if it is no such file, or wants code that Keras's safe mode refuses.
        FileNotFoundError: if there is none.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"`path` should be a .keras file; there is none. Received: path={str(path)!r}")
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises what its parsers and layers raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"`path` should be an intact .keras file ({reason}). Received: path={str(path)!r}") from error


class _Usual(int):
    """A default that can be told from the same number given by the caller."""


def _constructor(class_name, variant, source):
    """A function with the signature of keras.applications for one network."""
    spec, default_name = get_spec(variant), variant
    usual_classes = _Usual(spec.default_classes)
    default_weights = "imagenet" if (canonical_name(variant), "imagenet") in WEIGHTS else None

    def constructor(
        include_top=True,
        weights=default_weights,
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=usual_classes,
        classifier_activation="softmax",
        name=default_name,
    ):
        classes = None if classes is usual_classes else classes
        return create(
            variant, include_top, weights, input_tensor, input_shape, pooling, classes, classifier_activation, name
        )

    cost, size = complexity(spec), spec.default_size
    constructor.__name__ = constructor.__qualname__ = class_name
    constructor.__doc__ = (
        f"{class_name}: {cost.parameters / 1e6:.2f} M parameters, {cost.multiply_adds / 1e9:.2f} G multiply-adds at "
        f"{size}x{size} ({source}).\n\n    Arguments, result and errors are those of `create({variant!r}, ...)`; "
        "`classes` left\n    alone is the weights' own number."
    )
    return constructor


ResNet18 = _constructor("ResNet18", "resnet18", "He et al. 2015, table 1")
ResNet34 = _constructor("ResNet34", "resnet34", "He et al. 2015, table 1")
ResNet50 = _constructor("ResNet50", "resnet50", "He et al. 2015, table 1")
ResNet101 = _constructor("ResNet101", "resnet101", "He et al. 2015, table 1")
ResNet152 = _constructor("ResNet152", "resnet152", "He et al. 2015, table 1")
ResNet50V2 = _constructor("ResNet50V2", "resnet50v2", "He et al. 2016, arXiv:1603.05027")
ResNet101V2 = _constructor("ResNet101V2", "resnet101v2", "He et al. 2016, arXiv:1603.05027")
ResNet152V2 = _constructor("ResNet152V2", "resnet152v2", "He et al. 2016, arXiv:1603.05027")
ResNet50D = _constructor("ResNet50D", "resnet50d", "Tong He et al. 2018, arXiv:1812.01187")
ResNeXt50 = _constructor("ResNeXt50", "resnext50_32x4d", "Xie et al. 2017, arXiv:1611.05431")
ResNeXt101 = _constructor("ResNeXt101", "resnext101_32x8d", "Xie et al. 2017, arXiv:1611.05431")
WideResNet50 = _constructor("WideResNet50", "wide_resnet50_2", "Zagoruyko and Komodakis 2016, arXiv:1605.07146")
WideResNet101 = _constructor("WideResNet101", "wide_resnet101_2", "Zagoruyko and Komodakis 2016, arXiv:1605.07146")
SEResNet50 = _constructor("SEResNet50", "seresnet50", "Hu et al. 2018, arXiv:1709.01507")
SEResNet101 = _constructor("SEResNet101", "seresnet101", "Hu et al. 2018, arXiv:1709.01507")
PlainNet18 = _constructor("PlainNet18", "plain18", "He et al. 2015, table 1")
PlainNet34 = _constructor("PlainNet34", "plain34", "He et al. 2015, table 1")
ResNet20 = _constructor("ResNet20", "resnet20", "He et al. 2015, sec. 4.2")
ResNet32 = _constructor("ResNet32", "resnet32", "He et al. 2015, sec. 4.2")
ResNet44 = _constructor("ResNet44", "resnet44", "He et al. 2015, sec. 4.2")
ResNet56 = _constructor("ResNet56", "resnet56", "He et al. 2015, sec. 4.2")
ResNet110 = _constructor("ResNet110", "resnet110", "He et al. 2015, sec. 4.2")
ResNet1202 = _constructor("ResNet1202", "resnet1202", "He et al. 2015, sec. 4.2")
PlainNet20 = _constructor("PlainNet20", "plain20", "He et al. 2015, sec. 4.2")
PlainNet32 = _constructor("PlainNet32", "plain32", "He et al. 2015, sec. 4.2")
PlainNet44 = _constructor("PlainNet44", "plain44", "He et al. 2015, sec. 4.2")
PlainNet56 = _constructor("PlainNet56", "plain56", "He et al. 2015, sec. 4.2")
