"""Write detectors of torchvision with random weights, and their outputs, as references for the tests.

Run in an environment with torch, torchvision, timm and safetensors:

    python make_detectors.py                                          # narrow ones into detectors/, with an index.json
    python make_detectors.py --full DIR fasterrcnn_resnet50_fpn ...   # full-size ones into DIR, 40 to 150 MB each

`<name>.safetensors` holds the state dict in float16, exactly: the weights were rounded before anything was computed.
`<name>.npz` holds two images of different sizes as one padded batch, `x` (2, H, W, 3) and `sizes` (2, 2), and what the
detector in eval mode makes of them, computed in float64, stored in float32: for each level the logits and offsets of
its anchors (`objectness<i>`, `deltas<i>`; of RetinaNet `scores<i>`), the `proposals` (2, P, 4), padded with zeros, and
their number `proposal_count` (2,), the logits of their classes `class_logits` (2, P, classes) and the offsets
`box_deltas` (2, P, 4 * classes), the detections `boxes` (2, N, 4), `scores`, `labels`, `count`, and the logits of the
masks of their classes, `mask_logits` (2, N, 28, 28).
"""

import argparse
import importlib.metadata
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from make_networks import NarrowResNet, images, randomise, save_weights
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

CLASSES, WIDTH, BOX_WIDTH = 4, 16, 16
SIDES = (64, 96)
RCNN = {"rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 40, "box_detections_per_img": 8}
RETINA = {"topk_candidates": 100, "detections_per_img": 10}
OURS = {
    "rpn_pre_nms_top_n_test": "candidates",
    "rpn_post_nms_top_n_test": "proposals",
    "box_detections_per_img": "detections",
    "topk_candidates": "candidates",
    "detections_per_img": "detections",
}
"""torchvision's name of a number -> the field of DetectionSettings."""
PREDICTORS = {
    r"rpn\.head\.cls_logits": 2.0,
    r"rpn\.head\.bbox_pred": 0.5,
    r"roi_heads\.box_predictor\.cls_score": 2.0,
    r"roi_heads\.box_predictor\.bbox_pred": 1.0,
    r"roi_heads\.mask_predictor\.mask_fcn_logits": 2.0,
    r"head\.classification_head\.cls_logits": 2.0,
    r"head\.regression_head\.bbox_reg": 0.5,
}
"""Module -> standard deviation of what it predicts: not all scores are 0 or 1, nor all boxes as large as the image."""
OLD_NAMES = {
    r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.0\.": r"\1.",
    r"rpn\.head\.conv\.0\.0\.": r"rpn.head.conv.",
    **{rf"roi_heads\.mask_head\.{i}\.0\.": f"roi_heads.mask_head.mask_fcn{i + 1}." for i in range(4)},
    **{rf"(head\..+_head\.conv)\.{i}\.0\.": rf"\1.{2 * i}." for i in (3, 2, 1, 0)},
}
"""Names of today -> those of the files of 2019 and 2020."""


@dataclass(frozen=True)
class Row:
    """One narrow detector."""

    variant: str
    """Our name of its full-size relative."""
    factory: Callable
    arguments: dict = field(default_factory=dict)
    old: bool = False
    """Whether it is written as in 2019: with the old names, and made with frozen batch norms of epsilon 0."""

    @property
    def is_v2(self):
        """Whether it is one of torchvision's second versions, here with bottlenecks."""
        return self.variant.endswith("_v2")

    @property
    def backbone(self):
        """The fields of ResNetSpec in which the backbone differs from that of `variant`."""
        return {"depths": (1, 1, 1, 1), "widths": (4, 8, 12, 16), "stem_width": 4}

    def build(self):
        """torchvision's detector."""
        block = Bottleneck if self.is_v2 else BasicBlock
        norm = partial(FrozenBatchNorm2d, eps=0.0) if self.old else nn.BatchNorm2d
        body = NarrowResNet(
            block=block, layers=(1, 1, 1, 1), channels=self.backbone["widths"], num_classes=1, norm_layer=norm
        )
        body.bn1 = norm(self.backbone["stem_width"])
        channels = [block.expansion * width for width in self.backbone["widths"]]
        return self.factory(body, channels, self.is_v2, **self.arguments)

    @property
    def settings(self):
        """The fields of DetectionSettings that differ from their defaults."""
        return {OURS[name]: value for name, value in self.arguments.items()}


def pyramid(body, channels, levels, width, norm, extra):
    """A narrow network with a feature pyramid on its `levels`, from 1 to 4."""
    layers = {f"layer{level}": str(number) for number, level in enumerate(levels)}
    return BackboneWithFPN(body, layers, [channels[level - 1] for level in levels], width, extra, norm)


def faster(body, channels, is_v2, mask=False, **arguments):
    """Faster R-CNN or Mask R-CNN, as torchvision's builders assemble them at full width."""
    norm = nn.BatchNorm2d if is_v2 else None
    backbone = pyramid(body, channels, (1, 2, 3, 4), WIDTH, norm, LastLevelMaxPool())
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    if is_v2:
        box_head = FastRCNNConvFCHead((WIDTH, 7, 7), [WIDTH] * 4, [BOX_WIDTH], norm_layer=norm)
    else:
        box_head = TwoMLPHead(WIDTH * 7**2, BOX_WIDTH)
    parts = {
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(WIDTH, 3, conv_depth=2 if is_v2 else 1),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(BOX_WIDTH, CLASSES),
    }
    if not mask:
        return detection.FasterRCNN(backbone, **parts, **arguments)
    parts["mask_head"] = MaskRCNNHeads(WIDTH, [WIDTH] * 4, 1, norm_layer=norm)
    parts["mask_predictor"] = MaskRCNNPredictor(WIDTH, WIDTH, CLASSES)
    return detection.MaskRCNN(backbone, **parts, **arguments)


def retina(body, channels, is_v2, **arguments):
    """RetinaNet; its group norms need a multiple of 32 channels."""
    width = 32 if is_v2 else WIDTH
    extra = LastLevelP6P7(channels[-1] if is_v2 else width, width)
    backbone = pyramid(body, channels, (2, 3, 4), width, None, extra)
    norm = partial(nn.GroupNorm, 32) if is_v2 else None
    return detection.RetinaNet(backbone, CLASSES, head=RetinaNetHead(width, 9, CLASSES, norm_layer=norm), **arguments)


mask = partial(faster, mask=True)
ROWS = {
    "fasterrcnn": Row("fasterrcnn_resnet18_fpn", faster, RCNN),
    "fasterrcnn_v2": Row("fasterrcnn_resnet50_fpn_v2", faster, RCNN),
    "maskrcnn": Row("maskrcnn_resnet18_fpn", mask, RCNN, old=True),
    "maskrcnn_v2": Row("maskrcnn_resnet50_fpn_v2", mask, RCNN),
    "retinanet": Row("retinanet_resnet18_fpn", retina, RETINA, old=True),
    "retinanet_v2": Row("retinanet_resnet50_fpn_v2", retina, RETINA),
}


def full_size(name):
    """torchvision's detector of 91 classes; on backbones for which it has no builder, as for ResNet-50."""
    if hasattr(detection, name):
        return getattr(detection, name)(weights=None, weights_backbone=None)
    kind, depth, _ = name.split("_")
    shared = {"backbone_name": depth, "weights": None, "norm_layer": nn.BatchNorm2d, "trainable_layers": 5}
    if kind == "retinanet":
        extra = LastLevelP6P7(256, 256)
        return detection.RetinaNet(resnet_fpn_backbone(**shared, returned_layers=[2, 3, 4], extra_blocks=extra), 91)
    return {"fasterrcnn": detection.FasterRCNN, "maskrcnn": detection.MaskRCNN}[kind](resnet_fpn_backbone(**shared), 91)


def scale_predictors(model):
    """Changes the last layers at their next call, so that PREDICTORS holds and no class is the best everywhere."""
    for name, module in model.named_modules():
        for pattern, deviation in PREDICTORS.items():
            if re.fullmatch(pattern, name):
                module.register_forward_hook(partial(_scale, deviation=deviation, done=set()))


def _scale(module, inputs, output, deviation, done):
    if not done:
        done.add(module)
        factor = deviation / output.std()
        mean = output.mean([axis for axis in range(output.ndim) if axis != 1])
        module.weight.data = (module.weight * factor).half().double()
        module.bias.data = (module.bias - mean * factor).half().double()
        return module.forward(*inputs)


def padded(arrays, length):
    """Arrays of different lengths as one, with zeros at their ends: (B, length, ...)."""
    stacked = np.zeros((len(arrays), length, *arrays[0].shape[1:]))
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked


def outputs(model, sides):
    """Two images, and what the model makes of them: {name: array}, the .npz file."""
    x = images(2, *sides, 3)
    sizes = [sides, (sides[0] - 13, sides[1] - 27)]
    for image, (height, width) in zip(x, sizes, strict=True):
        image[height:], image[:, width:] = 0, 0
    batch = ImageList(torch.from_numpy(x).double().permute(0, 3, 1, 2), sizes)
    with torch.inference_mode():
        maps = model.backbone(batch.tensors)
        found = retina_outputs if isinstance(model, detection.RetinaNet) else region_outputs
        arrays, detections = found(model, batch, maps)
    count = model.detections_per_img if isinstance(model, detection.RetinaNet) else model.roi_heads.detections_per_img
    for name in ("boxes", "scores", "labels"):
        arrays[name] = padded([detected[name].numpy() for detected in detections], count)
    arrays["count"] = [len(detected["boxes"]) for detected in detections]
    if not all(number > 0 for number in arrays["count"]):
        raise ValueError(f"`count` should be positive for each image. Received: {arrays['count']}")
    floats = {name: np.asarray(array, "float32") for name, array in arrays.items()}
    return {"x": x, "sizes": np.array(sizes), **floats}


def by_level(name, maps):
    """{name0: (B, h, w, channels), ...}."""
    return {f"{name}{i}": level.permute(0, 2, 3, 1).numpy() for i, level in enumerate(maps)}


def retina_outputs(model, batch, maps):
    """RetinaNet's raw outputs and detections, as its `forward` computes them."""
    maps = list(maps.values())
    anchors = model.anchor_generator(batch, maps)
    counts = [level.shape[2] * level.shape[3] for level in maps]
    heads = model.head(maps)
    arrays = {}
    for ours, theirs in (("scores", "cls_logits"), ("deltas", "bbox_regression")):
        levels = heads[theirs].split([9 * count for count in counts], dim=1)
        for i, (level, grid) in enumerate(zip(levels, maps, strict=True)):
            arrays[f"{ours}{i}"] = level.reshape(len(level), *grid.shape[2:], -1).numpy()
    split = {name: list(values.split([9 * count for count in counts], dim=1)) for name, values in heads.items()}
    anchors = [list(image.split([9 * count for count in counts])) for image in anchors]
    return arrays, model.postprocess_detections(split, anchors, batch.image_sizes)


def region_outputs(model, batch, maps):
    """Raw outputs, proposals and detections of the R-CNNs, as their `forward` computes them."""
    objectness, deltas = model.rpn.head(list(maps.values()))
    proposals, _ = model.rpn(batch, maps)
    heads, sizes = model.roi_heads, batch.image_sizes
    logits, offsets = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, proposals, sizes)))
    boxes, scores, labels = heads.postprocess_detections(logits, offsets, proposals, sizes)
    counts, length = [len(image) for image in proposals], model.rpn.post_nms_top_n()
    arrays = by_level("objectness", objectness) | by_level("deltas", deltas)
    arrays |= {"proposals": padded([image.numpy() for image in proposals], length), "proposal_count": counts}
    arrays["class_logits"] = padded([image.numpy() for image in logits.split(counts)], length)
    arrays["box_deltas"] = padded([image.numpy() for image in offsets.split(counts)], length)
    if heads.has_mask():
        masks = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(maps, boxes, sizes)))
        masks = masks[torch.arange(len(masks)), torch.cat(labels)].split([len(image) for image in boxes])
        arrays["mask_logits"] = padded([image.numpy() for image in masks], heads.detections_per_img)
    names = ("boxes", "scores", "labels")
    return arrays, [dict(zip(names, values, strict=True)) for values in zip(boxes, scores, labels, strict=True)]


def old_name(name):
    """The name of an array in the files of 2019 and 2020."""
    for pattern, old in OLD_NAMES.items():
        name = re.sub(f"^{pattern}", old, name)
    return name


def write(model, folder, name, sides, old=False):
    """Write a detector with random weights, and its outputs."""
    model = randomise(model, seed=sum(name.encode())).double()
    scale_predictors(model)
    outputs(model, sides)  # scales the predictors
    arrays = outputs(model, sides)
    state = model.state_dict()
    save_weights({old_name(key) if old else key: value for key, value in state.items()}, folder / f"{name}.safetensors")
    np.savez_compressed(folder / f"{name}.npz", **arrays)


def write_narrow(folder):
    """Write every detector of ROWS, and index.json, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    index = {}
    for name, row in ROWS.items():
        write(row.build(), folder, name, SIDES, row.old)
        index[name] = {"variant": row.variant, "backbone": row.backbone, "settings": row.settings, "classes": CLASSES}
    versions = {package: importlib.metadata.version(package) for package in ("torch", "torchvision")}
    text = json.dumps({"versions": versions, "detectors": index}, indent=1)
    (folder / "index.json").write_text(f"{text}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", nargs="+", metavar=("DIR", "NAME"), help="names such as maskrcnn_resnet101_fpn")
    if full := parser.parse_args().full:
        folder, *names = full
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            write(full_size(name), Path(folder), name, (192, 256))
    else:
        write_narrow(Path(__file__).parent / "detectors")
