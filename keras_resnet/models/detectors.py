"""Detectors by their names: with random or published weights, those of a backbone, and other thresholds."""

import os
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from keras_resnet.architecture.detector import Detector, build_detector, default_settings
from keras_resnet.architecture.detector_spec import DetectionSettings, DetectorSpec
from keras_resnet.architecture.metadata import model_info
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.equivalents import DETECTOR_ARGUMENTS
from keras_resnet.errors import check_keywords, value_error
from keras_resnet.variants import canonical_name, get_spec
from keras_resnet.weights.download import resolve_weights
from keras_resnet.weights.loading import build_from_file, build_on_backbone
from keras_resnet.weights.spec_matching import variant_of

_OWNERS = (DetectorSpec, DetectionSettings, DetectionPreprocessing)
"""Dataclasses whose fields are arguments of `create`."""


def create_detector(
    variant: str,
    weights: str | os.PathLike | None = None,
    classes: int | None = None,
    name: str | None = None,
    backbone_weights: str | os.PathLike | None = None,
    **changes: Any,
) -> Detector:
    """Creates a detector of DETECTORS by its name; `create` calls it.

    Args:
        variant: name of a detector, such as "maskrcnn_resnet50_fpn"; see `list_models(task="detection")`.
        weights: None (random), a tag of `list_weights(variant)`, or the path of a weights file, from which widths and
            the number of classes follow.
        classes: number of classes with the background; None for that of the weights, else 91. For another number than
            that of the weights, the predictors are newly initialized.
        name: name of the model; default the variant's.
        backbone_weights: weights of the residual network alone: a tag of its `list_weights`, or the path of a file.
        **changes: fields of DetectorSpec (such as `backbone`, a name or a ResNetSpec), of DetectionSettings (such as
            `score_threshold=0.5`), or of DetectionPreprocessing (`min_size`, `max_size`).

    Raises:
        ValueError: for unknown names, values that are invalid, and files that do not fit.
        TypeError: for a change that is not a field of these.
    """
    variant = canonical_name(variant, "detection")
    check_keywords("create", changes, *_OWNERS, equivalents=DETECTOR_ARGUMENTS)
    of_spec, of_settings, of_preprocessing = (
        {field.name: changes[field.name] for field in fields(owner) if field.name in changes} for owner in _OWNERS
    )
    if isinstance(backbone := changes.get("backbone"), str):
        of_spec["backbone"] = get_spec(backbone, "classification", "backbone")
    spec = replace(get_spec(variant), **of_spec)
    replace(DetectionPreprocessing(), **of_preprocessing)  # raises for what is invalid before anything is built
    arguments: dict[str, Any] = {"settings": replace(default_settings(spec), **of_settings), "name": name or variant}
    if weights is not None:
        if backbone_weights is not None:
            raise value_error("backbone_weights", backbone_weights, "None with `weights`, which include the backbone's")
        path, published = resolve_weights(weights, variant)
        model = build_from_file(spec, path, classes=classes, preprocessing=published, **arguments)
        check_changes(model.spec, spec, of_spec.keys() - {"backbone"})
    else:
        spec = spec if classes is None else replace(spec, classes=classes)
        model = build_with_backbone(spec, backbone_weights, **arguments)
    info = model_info(model)
    prepared = replace(DetectionPreprocessing.from_config(info["preprocessing"]), **of_preprocessing)
    model.info = info | {"preprocessing": prepared.to_config()}
    return model


def check_changes(built: Any, requested: Any, changed: Iterable[str]) -> None:
    """Raises ValueError for a changed field of a spec that the weights of a file do not allow."""
    for field in changed:
        needed, given = getattr(built, field), getattr(requested, field)
        if given not in (needed, None):  # the data format of a model is no longer None
            raise value_error(field, given, f"{needed!r} for these weights")


def build_with_backbone(
    spec: DetectorSpec, backbone_weights: str | os.PathLike | None = None, **arguments: Any
) -> Detector:
    """Builds a detector with random heads, and a backbone with random weights or those of a tag or file.

    >>> from keras_resnet import get_spec
    >>> from keras_resnet.models.detectors import build_with_backbone
    >>> build_with_backbone(get_spec("fasterrcnn_resnet18_fpn"), name="mine").name
    'mine'

    Args:
        spec: DetectorSpec.
        backbone_weights: as for `create_detector`.
        **arguments: further arguments of `build_detector`.

    Raises:
        ValueError: for unknown tags, and files that do not fit.
    """
    if backbone_weights is None:
        model = build_detector(spec, **arguments)
        model.info = {"preprocessing": DetectionPreprocessing().to_config()}
        return model
    path, published = resolve_backbone_weights(backbone_weights, spec.backbone)
    return build_on_backbone(spec, path, preprocessing=published, **arguments)


def resolve_backbone_weights(
    backbone_weights: str | os.PathLike, backbone: ResNetSpec, include_top: bool = False
) -> tuple[Path, Any]:
    """`resolve_weights` for a ResNetSpec, which has the tags of its variant: biases and epsilon follow from weights."""
    if name := variant_of(backbone, ignored=("conv_bias", "bn_epsilon")):
        return resolve_weights(backbone_weights, name, include_top=include_top)
    if os.path.exists(backbone_weights):
        return Path(backbone_weights), None
    expected = "the path of a weights file, since the backbone is none of `list_models()`, which have tags"
    raise value_error("backbone_weights", backbone_weights, expected)
