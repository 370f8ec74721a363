"""DETECTORS: every detector as one row with its source, named as in torchvision."""

from dataclasses import replace

from keras_resnet.architecture.detector_spec import DetectorSpec
from keras_resnet.variants import VARIANTS

BACKBONES = {
    "resnet18": VARIANTS["resnet18"],
    "resnet34": VARIANTS["resnet34"],
    "resnet50": VARIANTS["resnet50_v1_5"],
    "resnet101": VARIANTS["resnet101_v1_5"],
    "resnet152": VARIANTS["resnet152_v1_5"],
}
"""Name in a detector's name -> network: torchvision's, with the stride in the 3x3 convolutions."""

_V2 = {"neck_norm": "batch", "box_head": "conv", "head_norm": "batch", "rpn_convs": 2, "frozen_batch_norm": False}
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


def _rows():
    for name, backbone in BACKBONES.items():
        faster = DetectorSpec(backbone)
        yield f"fasterrcnn_{name}_fpn", faster
        yield f"maskrcnn_{name}_fpn", replace(faster, mask_head=True)
        yield f"retinanet_{name}_fpn", replace(faster, extra_levels="p5", **_DENSE)
    faster = DetectorSpec(BACKBONES["resnet50"], **_V2)
    yield "fasterrcnn_resnet50_fpn_v2", faster
    yield "maskrcnn_resnet50_fpn_v2", replace(faster, mask_head=True)
    retina = DetectorSpec(BACKBONES["resnet50"], extra_levels="c5", head_norm="group", frozen_batch_norm=False, **_DENSE)
    yield "retinanet_resnet50_fpn_v2", retina
    # He et al. 2015, appendix A: conv1 to conv4 are shared, conv5 is applied to each region
    for name in ("resnet50", "resnet101"):
        yield f"fasterrcnn_{name}_c4", DetectorSpec(replace(VARIANTS[name], conv_bias=False, bn_epsilon=1e-5), **_C4)


DETECTORS = dict(_rows())
