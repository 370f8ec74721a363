"""The networks of all tasks, each as a row, named as in keras.applications, timm or torchvision: `TASKS`."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras_resnet.architecture.localizer_complexity
import keras_resnet.architecture.segmenter_complexity  # noqa: F401  so that `complexity` knows networks of all tasks
from keras_resnet.architecture.detector_spec import DetectorSpec
from keras_resnet.architecture.localizer_spec import BOXES, LocalizerSpec
from keras_resnet.architecture.segmenter_spec import SegmenterSpec
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.errors import unknown_name_error, value_error

# As in torchvision and timm: without biases, and with the stride on the 3x3 (v1.5).
_18 = ResNetSpec("basic", depths=(2, 2, 2, 2))
_34 = replace(_18, depths=(3, 4, 6, 3))
_26 = ResNetSpec("bottleneck", depths=(2, 2, 2, 2))
_50 = replace(_26, depths=(3, 4, 6, 3))
_101 = replace(_26, depths=(3, 4, 23, 3))
_152 = replace(_26, depths=(3, 8, 36, 3))
_200 = replace(_26, depths=(3, 24, 36, 3))

_KERAS = {"conv_bias": True, "bn_epsilon": 1.001e-5, "bn_momentum": 0.99}
_V1 = {"stride_on": "1x1", **_KERAS}
_V2 = {"preactivation": True, "downsample_at": "last", "explicit_padding": True, **_KERAS}
_V2_TIMM = {"preactivation": True, "stem": "imagenet_torch"}
_C = {"stem": "deep"}
_S = {"stem": "deep", "stem_width": 128}
_D = {"stem": "deep", "shortcut": "pooled"}
_T = {"stem": "deep_tiered", "shortcut": "pooled"}
_X4 = {"groups": 32, "group_width": 4}
_X8 = {"groups": 32, "group_width": 8}
_X64 = {"groups": 64, "group_width": 4}
_SE = {"se_ratio": 1 / 16}
_RS = {**_D, "stem": "deep_conv", "se_ratio": 1 / 4}


def _cifar(blocks, block="basic", widen=1, **changes):
    """A CIFAR network: three stages of `blocks` blocks on 32x32, 16x16 and 8x8 maps (sec. 4.2: 6n + 2 layers)."""
    widths = (16 * widen, 32 * widen, 64 * widen)
    return ResNetSpec(block, (blocks,) * 3, widths, **{"stem": "cifar", "stem_width": 16, "shortcut": "A", **changes})


VARIANTS = {
    # He et al. 2015, arXiv:1512.03385, table 1; a suffix _a or _c is its shortcut (sec. 4.1), otherwise B
    "resnet18": _18,
    "resnet18_a": replace(_18, shortcut="A"),
    "resnet34": _34,
    "resnet34_a": replace(_34, shortcut="A"),
    "resnet34_c": replace(_34, shortcut="C"),
    "resnet50": replace(_50, **_V1),  # stride on the first 1x1, biases: keras/src/applications/resnet.py
    "resnet101": replace(_101, **_V1),
    "resnet152": replace(_152, **_V1),
    "plain18": replace(_18, shortcut=None),
    "plain34": replace(_34, shortcut=None),
    # v1.5: torchvision/models/resnet.py, timm/models/resnet.py
    "resnet26": _26,
    "resnet50_v1_5": _50,
    "resnet101_v1_5": _101,
    "resnet152_v1_5": _152,
    # He et al. 2016, arXiv:1603.05027: as in keras.applications, as in timm/models/resnetv2.py
    "resnet50v2": replace(_50, **_V2),
    "resnet101v2": replace(_101, **_V2),
    "resnet152v2": replace(_152, **_V2),
    "resnetv2_50": replace(_50, **_V2_TIMM),
    "resnetv2_101": replace(_101, **_V2_TIMM),
    "resnetv2_152": replace(_152, **_V2_TIMM),
    # Tong He et al. 2018 (bag of tricks), arXiv:1812.01187
    "resnet18d": replace(_18, **_D),
    "resnet34d": replace(_34, **_D),
    "resnet26d": replace(_26, **_D),
    "resnet50d": replace(_50, **_D),
    "resnet101d": replace(_101, **_D),
    "resnet152d": replace(_152, **_D),
    "resnet200d": replace(_200, **_D),
    "resnext50d_32x4d": replace(_50, **_D, **_X4),
    # ResNet-vd of PaddlePaddle and KerasHub, whose first block has a projection; from 50 layers on they are those above
    "resnet18_vd": replace(_18, **_D | {"shortcut": "pooled_first"}),
    "resnet34_vd": replace(_34, **_D | {"shortcut": "pooled_first"}),
    # its changes one by one: C is the deep stem, S a wider one, T one of three widths (gluon-cv, timm/models/resnet.py)
    "resnet26t": replace(_26, **_T),
    "resnet50c": replace(_50, **_C),
    "resnet50s": replace(_50, **_S),
    "resnet50t": replace(_50, **_T),
    "resnet101c": replace(_101, **_C),
    "resnet101s": replace(_101, **_S),
    "resnet152c": replace(_152, **_C),
    "resnet152s": replace(_152, **_S),
    # Xie et al. 2017, arXiv:1611.05431
    "resnext50_32x4d": replace(_50, **_X4),
    "resnext101_32x4d": replace(_101, **_X4),
    "resnext101_32x8d": replace(_101, **_X8),
    "resnext101_32x16d": replace(_101, groups=32, group_width=16),
    "resnext101_32x32d": replace(_101, groups=32, group_width=32),
    "resnext101_64x4d": replace(_101, **_X64),
    # Zagoruyko and Komodakis 2016, arXiv:1605.07146
    "wide_resnet50_2": replace(_50, group_width=128),
    "wide_resnet101_2": replace(_101, group_width=128),
    # Hu et al. 2018, arXiv:1709.01507
    "seresnet18": replace(_18, **_SE),
    "seresnet34": replace(_34, **_SE),
    "seresnet50": replace(_50, **_SE),
    "seresnet101": replace(_101, **_SE),
    "seresnet152": replace(_152, **_SE),
    "seresnet152d": replace(_152, **_SE, **_D),
    "seresnext26d_32x4d": replace(_26, **_SE, **_D, **_X4),
    "seresnext26t_32x4d": replace(_26, **_SE, **_T, **_X4),
    "seresnext50_32x4d": replace(_50, **_SE, **_X4),
    "seresnext101_32x4d": replace(_101, **_SE, **_X4),
    "seresnext101_32x8d": replace(_101, **_SE, **_X8),
    "seresnext101_64x4d": replace(_101, **_SE, **_X64),
    "seresnext101d_32x8d": replace(_101, **_SE, **_D, **_X8),
    # Wang et al. 2020, arXiv:1910.03151
    "ecaresnet26t": replace(_26, eca=True, **_T),
    "ecaresnet50d": replace(_50, eca=True, **_D),
    "ecaresnet50t": replace(_50, eca=True, **_T),
    "ecaresnet101d": replace(_101, eca=True, **_D),
    "ecaresnet269d": replace(_26, depths=(3, 30, 48, 8), eca=True, **_D),
    "ecaresnetlight": replace(_26, depths=(1, 1, 11, 3), eca=True, shortcut="pooled"),
    # Bello et al. 2021, arXiv:2103.07579
    "resnetrs50": replace(_50, **_RS),
    "resnetrs101": replace(_101, **_RS),
    "resnetrs152": replace(_152, **_RS),
    "resnetrs200": replace(_200, **_RS),
    "resnetrs270": replace(_26, depths=(4, 29, 53, 4), **_RS),
    "resnetrs350": replace(_26, depths=(4, 36, 72, 4), **_RS),
    "resnetrs420": replace(_26, depths=(4, 44, 87, 4), **_RS),
    # He et al. 2015, sec. 4.2
    "resnet20_cifar": _cifar(3),
    "resnet32_cifar": _cifar(5),
    "resnet44_cifar": _cifar(7),
    "resnet56_cifar": _cifar(9),
    "resnet110_cifar": _cifar(18),
    "resnet1202_cifar": _cifar(200),
    "plain20_cifar": _cifar(3, shortcut=None),
    "plain32_cifar": _cifar(5, shortcut=None),
    "plain44_cifar": _cifar(7, shortcut=None),
    "plain56_cifar": _cifar(9, shortcut=None),
    # He et al. 2016, arXiv:1603.05027, sec. 3 and table 4
    "preact_resnet110_cifar": _cifar(18, preactivation=True),
    "preact_resnet164_cifar": _cifar(18, "bottleneck", shortcut="B", preactivation=True),
    "preact_resnet1001_cifar": _cifar(111, "bottleneck", shortcut="B", preactivation=True),
    # arXiv:1605.07146: 28 convolutions, the three projections among them
    "wrn28_10_cifar": _cifar(4, widen=10, shortcut="B", preactivation=True),
}


_BACKBONES = {
    "resnet18": VARIANTS["resnet18"],
    "resnet34": VARIANTS["resnet34"],
    "resnet50": VARIANTS["resnet50_v1_5"],
    "resnet101": VARIANTS["resnet101_v1_5"],
    "resnet152": VARIANTS["resnet152_v1_5"],
}
"""Name in a detector's name -> network: torchvision's, with the stride in the 3x3 convolutions."""

_DETECTOR_V2 = {
    "neck_norm": "batch",
    "box_head": "conv",
    "head_norm": "batch",
    "rpn_convs": 2,
    "frozen_batch_norm": False,
}
_DENSE = {
    "levels": (3, 4, 5),
    "box_head": "dense",
    "anchor_sizes": tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512)),
}
_C4 = {
    "neck": "c4",
    "levels": (4,),
    "extra_levels": None,
    "box_head": "stage4",
    "rpn_width": 512,
    "anchor_sizes": ((64, 128, 256, 512),),
}


def _detectors():
    for name, backbone in _BACKBONES.items():
        faster = DetectorSpec(backbone)
        yield f"fasterrcnn_{name}_fpn", faster
        yield f"maskrcnn_{name}_fpn", replace(faster, mask_head=True)
        yield f"retinanet_{name}_fpn", replace(faster, extra_levels="p5", **_DENSE)
    faster = DetectorSpec(_BACKBONES["resnet50"], **_DETECTOR_V2)
    yield "fasterrcnn_resnet50_fpn_v2", faster
    yield "maskrcnn_resnet50_fpn_v2", replace(faster, mask_head=True)
    retina = DetectorSpec(
        _BACKBONES["resnet50"], extra_levels="c5", head_norm="group", frozen_batch_norm=False, **_DENSE
    )
    yield "retinanet_resnet50_fpn_v2", retina
    # He et al. 2015, appendix A: conv1 to conv4 are shared, conv5 is applied to each region
    for name in ("resnet50", "resnet101"):
        yield f"fasterrcnn_{name}_c4", DetectorSpec(replace(VARIANTS[name], conv_bias=False, bn_epsilon=1e-5), **_C4)


DETECTORS = dict(_detectors())
"""Name of a detector, as in torchvision -> DetectorSpec."""

LOCALIZERS = {
    f"localizer_{name}" + ("" if boxes == "shared" else f"_{boxes}"): LocalizerSpec(backbone, boxes)
    for name, backbone in _BACKBONES.items()
    for boxes in BOXES
}
"""Name of a localizer -> LocalizerSpec."""

_HEADS = {
    # torchvision/models/segmentation: output stride 8, dilations 12, 24 and 36, an auxiliary head
    "fcn": {"head": "fcn"},
    "deeplabv3": {"head": "deeplabv3", "dropout": 0.5},
    # arXiv:1802.02611, table 3: output stride 16 in training, with half of these dilations
    "deeplabv3plus": {"head": "deeplabv3plus", "dropout": 0.5, "output_stride": 16, "auxiliary": False},
}
SEGMENTERS = {
    f"{head}_{name}": SegmenterSpec(_BACKBONES[name], **fields)
    for head, fields in _HEADS.items()
    for name in ("resnet18", "resnet34", "resnet50", "resnet101")
}
"""Name of a segmenter, as in torchvision -> SegmenterSpec."""

TASKS: dict[str, Mapping[str, Any]] = {
    "classification": VARIANTS,
    "detection": DETECTORS,
    "localization": LOCALIZERS,
    "segmentation": SEGMENTERS,
}
"""Task -> its networks by name."""


def canonical_name(name: str, task: str | None = None, argument: str = "name") -> str:
    """The key of a network in its row of TASKS for a name in any case; "_cifar" may be omitted ("resnet20").

    Args:
        name: name of a network.
        task: a name in TASKS, or None for networks of any task.
        argument: name of the argument that the error for an unknown name is about.

    Raises:
        ValueError: for an unknown name, with the nearest known ones.
    """
    known = [key for each, networks in TASKS.items() if task in (None, each) for key in networks]
    lower = str(name).lower()
    for key in (lower, f"{lower}_cifar"):
        if key in known:
            return key
    expected = "a name of `list_models()`" if task is None else f"a name of `list_models(task={task!r})`"
    raise unknown_name_error(argument, name, [key.removesuffix("_cifar") for key in known], expected)


def get_spec(name: str, task: str | None = None, argument: str = "name") -> Any:
    """The spec of a network by its name: a ResNetSpec, or that of a detector, localizer or segmenter.

    >>> from keras_resnet import get_spec
    >>> spec = get_spec("resnet50")
    >>> spec.depth, spec.block, spec.depths
    (50, 'bottleneck', (3, 4, 6, 3))
    >>> get_spec("retinanet_resnet50_fpn").levels
    (3, 4, 5)

    Args:
        name: name of a network.
        task: a name in TASKS, or None for networks of any task.
        argument: as of `canonical_name`.

    Raises:
        ValueError: for an unknown name, with the nearest known ones.
    """
    name = canonical_name(name, task, argument)
    return next(networks[name] for networks in TASKS.values() if name in networks)


_TASK_OF_SPEC = {DetectorSpec: "detection", LocalizerSpec: "localization", SegmenterSpec: "segmentation"}


def network_task(network: Any) -> str | None:
    """The name in TASKS of the task of a network: by its name, its spec, its model, or None if that is not known yet.

    >>> from keras_resnet.variants import network_task
    >>> network_task("RetinaNet_ResNet50_FPN"), network_task("resnet50"), network_task("network.keras")
    ('detection', 'classification', None)
    """
    if isinstance(network, (str, os.PathLike)):
        name = os.fspath(network).lower()
        return next((task for task, known in TASKS.items() if {name, f"{name}_cifar"} & known.keys()), None)
    spec = getattr(network, "spec", network)
    of_function = None if callable(network) and not hasattr(network, "layers") else "classification"
    return _TASK_OF_SPEC.get(type(spec), of_function)


def check_classifier(argument: str, network: Any, hint: str) -> None:
    """Raises ValueError for a network of another task, given by its name, its spec or its model.

    Args:
        argument: name of the argument that should be a classifier.
        network: its value.
        hint: sentence that says what to use instead.
    """
    task = network_task(network)
    if task not in (None, "classification"):
        kind = {"detection": "a detector", "localization": "a localizer", "segmentation": "a segmenter"}[task]
        raise value_error(argument, network_name(network), f"a classifier, not {kind}", hint)


def network_name(network: Any) -> str:
    """A network as messages name it: a name or path, the name of a model, or the class of a spec."""
    if isinstance(network, (str, os.PathLike)):
        return os.fspath(network)
    return getattr(network, "name", f"{type(network).__name__}(...)")
