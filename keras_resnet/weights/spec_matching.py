"""What the names of a file's arrays say: their layout, the kind of network, and the spec that its weights need."""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from keras_resnet.architecture.detector_spec import DetectorSpec, backbone_of
from keras_resnet.architecture.localizer_spec import LocalizerSpec
from keras_resnet.architecture.segmenter_spec import SegmenterSpec
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.errors import check_known, value_error
from keras_resnet.variants import VARIANTS
from keras_resnet.weights.layouts import LAYOUTS, Layout

_DETECTOR_NAMES = re.compile(
    r"(rpn_objectness|dense_scores)/.*|(rpn\.head|head\.classification_head)\.cls_logits\..*", re.DOTALL
)
"""The arrays that every detector has, of the objectness or of the classes of anchors."""
_SEGMENTER_NAMES = re.compile(
    r"(fcn_hidden|aspp_project|segmentation_head)_conv/kernel|classifier\.(0|0\.project\.0|aspp\.project\.0)\.weight"
)
"""The kernel that every segmenter with a head of each kind has."""


def kind_of_network(names: Collection[str]) -> type:
    """Class of the spec of a network whose arrays have these names."""
    if any(map(_DETECTOR_NAMES.fullmatch, names)):
        return DetectorSpec
    if any(map(_SEGMENTER_NAMES.fullmatch, names)):
        return SegmenterSpec
    return LocalizerSpec if "box_deltas/kernel" in names else ResNetSpec


def detect_layout(names: Iterable[str], path: str | os.PathLike) -> Layout:
    """The Layout with these array names; raises ValueError, which names the file `path`, if there is none."""
    for layout in LAYOUTS.values():
        if all(any(re.fullmatch(pattern, name) for name in names) for pattern in layout.patterns):
            return layout
    names = sorted(names)
    raise ValueError(
        f"`{path}` should contain the weights of a residual network, with array names of one of the layouts "
        f"{list(LAYOUTS)}. Received: {names[:4]} and {max(0, len(names) - 4)} more"
    )


def get_layout(name: str, spec: Any) -> Layout:
    """The Layout with this name; "timm" and "auto" are the one in which timm has networks like `spec`."""
    check_known("layout", name, (*LAYOUTS, "auto"))
    if isinstance(spec, DetectorSpec) and name in ("torchvision", "auto"):
        return LAYOUTS["torchvision_detection" if spec.backbone.bn_epsilon else "torchvision_detection_2019"]
    if isinstance(spec, SegmenterSpec) and name in ("torchvision", "auto"):
        return LAYOUTS["torchvision_segmentation"]
    if isinstance(spec, SegmenterSpec) and name == "keras_hub":
        return LAYOUTS["keras_hub_segmentation"]
    spec = backbone_of(spec)
    if name in ("timm", "auto"):
        return LAYOUTS["timm" if spec.preactivation else "torchvision"]
    return LAYOUTS[name]


_FIELDS_OF_WEIGHTS = ("stride_on", "downsample_at", "stem", "conv_bias", "bn_epsilon")
"""Fields of ResNetSpec that are taken from the weights."""
_FIELDS_OF_NETWORK = (
    *("block", "depths", "widths", "stem_width", "shortcut", "preactivation", "groups", "group_width"),
    *("se_ratio", "eca", "merge"),
)
"""Fields that should be as requested: with another value, arrays may still have the same names and shapes."""
NOT_IN_ARRAYS = {
    ResNetSpec: (),
    DetectorSpec: ("anchor_sizes", "anchor_ratios"),
    LocalizerSpec: ("anchor_sizes",),
    SegmenterSpec: ("rates",),
}
"""Class of a spec -> its fields that no array shows, which are taken from the spec that is stored in a file."""


def match_spec_to_weights(
    spec: Any,
    layout: Layout,
    names: Iterable[str],
    saved: Any = None,
) -> ResNetSpec:
    """`spec` with the stride placement, biases and epsilon with which the weights of a file were trained.

    They are in `saved`, the spec that is stored in the file, or follow from the layout and the names of
    the file's arrays. Arrays with Keras's names and without a stored spec fit `spec` if both or neither have biases;
    otherwise they are the weights of keras.applications (with biases), or of torchvision or timm.

    Raises:
        ValueError: if the layout has no such networks, or the file contains the spec of another network.
    """
    spec = backbone_of(spec)
    if saved:
        saved = backbone_of(saved)
        if different := field_differences(saved.to_config(), spec.to_config(), _FIELDS_OF_NETWORK):
            raise ValueError(f"The weights should be for the requested network. Received: weights for {different}")
        return replace(spec, **{name: getattr(saved, name) for name in _FIELDS_OF_WEIGHTS})
    if layout.is_keras:
        has_biases = any(re.fullmatch(r"(conv1_conv|conv1_1_conv|conv2d)/bias", name) for name in names)
        if has_biases == spec.conv_bias:
            return spec
        layout = LAYOUTS["keras" if has_biases else "timm" if spec.preactivation else "torchvision"]
    fields = layout.preactivation if spec.preactivation else layout.postactivation
    if fields is None:
        kind = "post-activation" if spec.preactivation else "pre-activation"
        expected = f"{not spec.preactivation}: all networks in the layout {layout.name!r} are {kind} networks"
        raise value_error("preactivation", spec.preactivation, expected)
    return replace(spec, **fields)


def field_differences(config: Mapping, other: Mapping, names: Iterable[str]) -> str:
    """The fields `names` that differ, as "<field>=<value> (not <other value>), ..."."""
    different = (name for name in names if config[name] != other[name])
    return ", ".join(f"{name}={config[name]!r} (not {other[name]!r})" for name in different)


def variant_of(spec: ResNetSpec, ignored: Collection[str] = ()) -> str | None:
    """Name of the first network of VARIANTS with the weights of `spec`; None if there is none.

    Args:
        spec: ResNetSpec.
        ignored: fields that may differ.
    """
    names, config = (*_FIELDS_OF_NETWORK, *_FIELDS_OF_WEIGHTS), spec.to_config()
    names = [name for name in names if name not in ignored]
    return next((name for name, row in VARIANTS.items() if not field_differences(row.to_config(), config, names)), None)


def check_spec_fits_weights(spec: Any, required: Any, path: str | os.PathLike) -> None:
    """Raise ValueError if a model's spec differs from what its weights need in a field that no array shows."""
    different = field_differences(required.to_config(), spec.to_config(), NOT_IN_ARRAYS[type(required)])
    config = backbone_of(required).to_config()
    if different := different or field_differences(config, backbone_of(spec).to_config(), _FIELDS_OF_WEIGHTS):
        name = variant_of(required) if isinstance(required, ResNetSpec) else None
        arguments = repr(name) if name else "..., weights=path"
        raise ValueError(
            f"`model` should have the spec that the weights need: {different}. "
            f"`create({arguments})` builds such a model. Received: path={str(path)!r}"
        )
