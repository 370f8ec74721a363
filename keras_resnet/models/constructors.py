"""ResNet50(...) and its relatives: one function for each network, with the signature of keras.applications."""

import inspect
import os
from typing import Any, Protocol

from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.network import ResNet
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.equivalents import MODEL_ARGUMENTS
from keras_resnet.errors import check_keywords
from keras_resnet.models.create import create
from keras_resnet.variants import canonical_name, get_spec
from keras_resnet.weights.catalog import WEIGHTS

__all__ = [
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    "PlainNet18",
    "PlainNet34",
    "ResNet50V2",
    "ResNet101V2",
    "ResNet152V2",
    "ResNet50D",
    "ResNeXt50",
    "ResNeXt101",
    "WideResNet50",
    "WideResNet101",
    "SEResNet50",
    "SEResNet101",
    "ResNet20",
    "ResNet32",
    "ResNet44",
    "ResNet56",
    "ResNet110",
    "ResNet1202",
    "PlainNet20",
    "PlainNet32",
    "PlainNet44",
    "PlainNet56",
]


class Constructor(Protocol):
    """Creates a network with the signature, defaults and errors of keras.applications; see `create`."""

    def __call__(
        self,
        include_top: bool = True,
        weights: str | os.PathLike | None = None,
        input_tensor: Any = None,
        input_shape: tuple[int | None, ...] | None = None,
        pooling: str | None = None,
        classes: int = 1000,
        classifier_activation: Any = "softmax",
        name: str = "",
    ) -> ResNet: ...


class _DefaultClasses(int):
    """A default number of classes, distinguishable from the same number given by the caller."""


def _constructor(class_name: str, variant: str, source: str) -> Constructor:
    """The function `class_name`, which creates the network `variant` of VARIANTS."""
    spec, default_name = get_spec(variant), variant
    default_classes = _DefaultClasses(spec.default_classes)
    default_weights = "imagenet" if (canonical_name(variant), "imagenet") in WEIGHTS else None

    def constructor(
        include_top=True,
        weights=default_weights,
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=default_classes,
        classifier_activation="softmax",
        name=default_name,
        **unknown,
    ):
        if unknown:
            check_keywords("create", unknown, ResNetSpec, equivalents=MODEL_ARGUMENTS)
            raise TypeError(f"`{class_name}` should get fields of ResNetSpec by `create`. Received: {sorted(unknown)}")
        num_classes = None if classes is default_classes else classes
        return create(
            variant, include_top, weights, input_tensor, input_shape, pooling, num_classes, classifier_activation, name
        )

    cost, size = complexity(spec), spec.default_size
    *documented, _ = inspect.signature(constructor).parameters.values()  # all but `unknown`, as in keras.applications
    vars(constructor)["__signature__"] = inspect.Signature(documented)
    constructor.__name__ = constructor.__qualname__ = class_name
    constructor.__doc__ = f"""{class_name}, the network {variant!r} ({source}).

    {cost.parameters / 1e6:.2f} M parameters, {cost.multiply_adds / 1e9:.2f} G multiply-adds at {size}x{size}.

    >>> import keras_resnet
    >>> keras_resnet.complexity(keras_resnet.get_spec({variant!r})).parameters
    {cost.parameters}

    Arguments, result and errors are those of `create({variant!r}, ...)`. If `classes` is not given, the number of
    classes is that of the weights.
    """
    return constructor


_IMAGENET, _CIFAR = "He et al. 2015, table 1", "He et al. 2015, sec. 4.2"
_PREACTIVATION, _SE = "He et al. 2016, arXiv:1603.05027", "Hu et al. 2018, arXiv:1709.01507"
_RESNEXT, _WIDE = "Xie et al. 2017, arXiv:1611.05431", "Zagoruyko and Komodakis 2016, arXiv:1605.07146"

ResNet18 = _constructor("ResNet18", "resnet18", _IMAGENET)
ResNet34 = _constructor("ResNet34", "resnet34", _IMAGENET)
ResNet50 = _constructor("ResNet50", "resnet50", _IMAGENET)
ResNet101 = _constructor("ResNet101", "resnet101", _IMAGENET)
ResNet152 = _constructor("ResNet152", "resnet152", _IMAGENET)
PlainNet18 = _constructor("PlainNet18", "plain18", _IMAGENET)
PlainNet34 = _constructor("PlainNet34", "plain34", _IMAGENET)
ResNet50V2 = _constructor("ResNet50V2", "resnet50v2", _PREACTIVATION)
ResNet101V2 = _constructor("ResNet101V2", "resnet101v2", _PREACTIVATION)
ResNet152V2 = _constructor("ResNet152V2", "resnet152v2", _PREACTIVATION)
ResNet50D = _constructor("ResNet50D", "resnet50d", "Tong He et al. 2018, arXiv:1812.01187")
ResNeXt50 = _constructor("ResNeXt50", "resnext50_32x4d", _RESNEXT)
ResNeXt101 = _constructor("ResNeXt101", "resnext101_32x8d", _RESNEXT)
WideResNet50 = _constructor("WideResNet50", "wide_resnet50_2", _WIDE)
WideResNet101 = _constructor("WideResNet101", "wide_resnet101_2", _WIDE)
SEResNet50 = _constructor("SEResNet50", "seresnet50", _SE)
SEResNet101 = _constructor("SEResNet101", "seresnet101", _SE)
ResNet20 = _constructor("ResNet20", "resnet20", _CIFAR)
ResNet32 = _constructor("ResNet32", "resnet32", _CIFAR)
ResNet44 = _constructor("ResNet44", "resnet44", _CIFAR)
ResNet56 = _constructor("ResNet56", "resnet56", _CIFAR)
ResNet110 = _constructor("ResNet110", "resnet110", _CIFAR)
ResNet1202 = _constructor("ResNet1202", "resnet1202", _CIFAR)
PlainNet20 = _constructor("PlainNet20", "plain20", _CIFAR)
PlainNet32 = _constructor("PlainNet32", "plain32", _CIFAR)
PlainNet44 = _constructor("PlainNet44", "plain44", _CIFAR)
PlainNet56 = _constructor("PlainNet56", "plain56", _CIFAR)
