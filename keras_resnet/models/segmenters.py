"""Segmenters by their names: with random or published weights, or those of a backbone."""

import os
from dataclasses import fields, replace
from typing import Any

from keras_resnet.architecture.metadata import model_info
from keras_resnet.architecture.segmenter import Segmenter, build_segmenter
from keras_resnet.architecture.segmenter_spec import SegmenterSpec
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.equivalents import SEGMENTER_ARGUMENTS
from keras_resnet.errors import check_keywords, value_error
from keras_resnet.models.detectors import check_changes, resolve_backbone_weights
from keras_resnet.variants import canonical_name, get_spec
from keras_resnet.weights.download import resolve_weights
from keras_resnet.weights.loading import build_from_file, build_on_backbone
from keras_resnet.weights.repositories import Repository

_OWNERS = (SegmenterSpec, SegmentationPreprocessing)
"""Dataclasses whose fields are arguments of `create`."""


def create_segmenter(
    variant: str,
    weights: str | os.PathLike | None = None,
    classes: int | None = None,
    name: str | None = None,
    backbone_weights: str | os.PathLike | None = None,
    repository: Repository | None = None,
    **changes: Any,
) -> Segmenter:
    """Creates a segmenter of SEGMENTERS by its name, or one of a repository; `create` calls it.

    Args:
        variant: name of a segmenter, such as "deeplabv3_resnet50"; see `list_models(task="segmentation")`.
        weights: None (random), a tag of `list_weights(variant)`, or the path of a weights file, from which widths, the
            number of classes and the auxiliary head follow.
        classes: number of classes; None for that of the weights, else 21. For another number than that of the weights,
            the last layers of the heads are newly initialized.
        name: name of the model; default the variant's.
        backbone_weights: weights of the residual network alone: a tag of its `list_weights`, or the path of a file.
        repository: the segmenter and its weights; `variant` is its name then.
        **changes: fields of SegmenterSpec, such as `output_stride=16` or `backbone`, a name or a ResNetSpec, and of
            SegmentationPreprocessing, such as `shorter_side=520`.

    Raises:
        ValueError: for unknown names, values that are invalid, and files that do not fit.
        TypeError: for a change that is not a field of these.
    """
    variant = repository.name if repository else canonical_name(variant, "segmentation")
    check_keywords("create", changes, *_OWNERS, equivalents=SEGMENTER_ARGUMENTS)
    of_spec, of_preprocessing = (
        {field.name: changes[field.name] for field in fields(owner) if field.name in changes} for owner in _OWNERS
    )
    if isinstance(backbone := changes.get("backbone"), str):
        of_spec["backbone"] = get_spec(backbone, "classification", "backbone")
    known: Any = repository.spec if repository else get_spec(variant)
    spec, name = replace(known, **of_spec), name or variant
    replace(SegmentationPreprocessing(), **of_preprocessing)  # raises for what is invalid before anything is built
    if weights is not None:
        if backbone_weights is not None:
            raise value_error("backbone_weights", backbone_weights, "None with `weights`, which include the backbone's")
        if "auxiliary" not in of_spec:
            spec = replace(spec, auxiliary=True)  # if the file has it
        if repository:
            path, published, head = repository.weights, repository.preprocessing, repository.head
        else:
            (path, published), head = resolve_weights(weights, variant), None
        model = build_from_file(spec, path, classes=classes, preprocessing=published, head=head, name=name)
        check_changes(model.spec, spec, of_spec.keys() - {"backbone"})
    else:
        spec = spec if classes is None else replace(spec, classes=classes)
        model = segmenter_with_backbone(spec, backbone_weights, name=name)
    info = model_info(model)
    prepared = replace(SegmentationPreprocessing.from_config(info["preprocessing"]), **of_preprocessing)
    model.info = info | {"preprocessing": prepared.to_config()}
    return model


def segmenter_with_backbone(
    spec: SegmenterSpec, backbone_weights: str | os.PathLike | None = None, **arguments: Any
) -> Segmenter:
    """Builds a segmenter with random heads, and a backbone with random weights or those of a tag or file.

    >>> from keras_resnet import get_spec
    >>> from keras_resnet.models.segmenters import segmenter_with_backbone
    >>> segmenter_with_backbone(get_spec("fcn_resnet18"), name="mine").name
    'mine'

    Args:
        spec: SegmenterSpec.
        backbone_weights: as for `create_segmenter`.
        **arguments: further arguments of `build_segmenter`.

    Raises:
        ValueError: for unknown tags, and files that do not fit.
    """
    if backbone_weights is None:
        model = build_segmenter(spec, **arguments)
        model.info = {"preprocessing": SegmentationPreprocessing().to_config()}
        return model
    path, published = resolve_backbone_weights(backbone_weights, spec.backbone)
    return build_on_backbone(spec, path, preprocessing=published, **arguments)
