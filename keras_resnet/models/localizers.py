"""Localizers by their names: with random weights, or those of a trained classifier."""

import os
from dataclasses import replace
from typing import Any

from keras_resnet.architecture.localizer import Localizer, build_localizer, localizer_backbone, with_box_head
from keras_resnet.architecture.localizer_spec import LocalizerSpec
from keras_resnet.architecture.metadata import copy_metadata, model_spec
from keras_resnet.architecture.network import ResNet
from keras_resnet.errors import check_keywords, value_error
from keras_resnet.models.detectors import check_changes, resolve_backbone_weights
from keras_resnet.variants import canonical_name, get_spec
from keras_resnet.weights.download import resolve_weights
from keras_resnet.weights.loading import build_from_file


def create_localizer(
    variant: str,
    weights: str | os.PathLike | None = None,
    classes: int | None = None,
    name: str | None = None,
    backbone_weights: str | os.PathLike | None = None,
    input_shape: tuple[int | None, ...] | None = None,
    **changes: Any,
) -> Localizer:
    """Creates a localizer of LOCALIZERS by its name; `create` calls it.

    Args:
        variant: name of a localizer, such as "localizer_resnet50_per_class"; see `list_models(task="localization")`.
        weights: None (random), or the path of a localizer's weights file, from which the width of the box head and the
            number of classes follow.
        classes: number of classes; None for that of the weights, else 1000. For another number than that of the
            weights, the layers that depend on it are newly initialized.
        name: name of the model; default the variant's.
        backbone_weights: weights of a trained classifier or localizer: a tag of the `list_weights` of its network, or
            the path of a file. The classifier comes with it, unless it has another number of classes; the box head is
            new.
        input_shape: (H, W, C); None: the size of the weights, else the one for which the network was designed.
        **changes: fields of LocalizerSpec, such as `backbone`, a name or a ResNetSpec.

    Raises:
        ValueError: for unknown names, values that are invalid, and files that do not fit.
        TypeError: for a change that is not a field of LocalizerSpec.
    """
    variant = canonical_name(variant, "localization")
    check_keywords("create", changes, LocalizerSpec)
    if isinstance(backbone := changes.get("backbone"), str):
        changes["backbone"] = get_spec(backbone, "classification", "backbone")
    spec, name = replace(get_spec(variant), **changes), name or variant
    if weights is not None:
        if backbone_weights is not None:
            raise value_error("backbone_weights", backbone_weights, "None with `weights`, which include the backbone's")
        path, _ = resolve_weights(weights, variant)
        model = build_from_file(spec, path, classes=classes, input_shape=input_shape, name=name)
        check_changes(model.spec, spec, changes.keys() - {"backbone"})
        return model
    if backbone_weights is None:
        return build_localizer(spec if classes is None else replace(spec, classes=classes), input_shape, name)
    classifier = backbone_classifier(spec, backbone_weights, classes, input_shape)
    return as_localizer(classifier, name, **{key: getattr(spec, key) for key in ("boxes", "box_width", "anchor_sizes")})


def backbone_classifier(
    spec: LocalizerSpec,
    backbone_weights: str | os.PathLike,
    classes: int | None = None,
    input_shape: tuple[int | None, ...] | None = None,
) -> ResNet:
    """The classifier of a localizer's network with the weights of a file; arguments as of `create_localizer`."""
    path, published = resolve_backbone_weights(backbone_weights, spec.backbone, include_top=True)
    return build_from_file(
        localizer_backbone(spec), path, classes=classes, input_shape=input_shape, preprocessing=published
    )


def classifier_of(model: Any) -> Any:
    """The classifier in a localizer, with the same layers; another model itself."""
    if not isinstance(model_spec(model), LocalizerSpec):
        return model
    classifier = copy_metadata(ResNet(model.inputs[0], model.output["probabilities"], name=model.name), model)
    classifier.spec = model.spec.backbone
    return classifier


def as_localizer(classifier: ResNet, name: str | None = None, **changes: Any) -> Localizer:
    """A localizer of the layers of a trained classifier, with a new box head.

    >>> import keras_resnet
    >>> classifier = keras_resnet.create("resnet20", weights="cifar10")
    >>> model = as_localizer(classifier, boxes="per_class")
    >>> model.output["boxes"].shape, model.spec.classes
    ((None, 10, 4), 10)

    Args:
        classifier: a network of this package with a softmax over its classes.
        name: name of the model; None for that of the classifier.
        **changes: fields of LocalizerSpec, such as `boxes="per_class"`.
    """
    spec = LocalizerSpec(classifier.spec, classes=classifier.output_shape[-1], **changes)
    return with_box_head(classifier, spec, name)
