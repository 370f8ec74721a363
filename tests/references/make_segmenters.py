"""Write segmentation networks of torchvision with random weights, and their outputs, as references for the tests.

Run in an environment with torch, torchvision, timm and safetensors:

    python make_segmenters.py                                    # narrow ones into segmenters/, with an index.json
    python make_segmenters.py --full DIR fcn_resnet50 ...        # full-size ones into DIR, 25 to 120 MB each

`<name>.safetensors` holds the state dict in float16, exactly: the weights were rounded before anything was computed.
`<name>.npz` holds images of two sizes, one of which is no multiple of 8, and what the network in eval mode makes of
them, computed in float64, stored in float32: for images `x64` (1, 64, 64, 3) the logits `logits64` (1, 64, 64, classes)
and those of the auxiliary head before they are enlarged, `aux64` (1, 8, 8, classes); the same for `x49` (1, 49, 65, 3).
The sizes of full-size networks are 520x520 and 97x131. index.json also has what torchvision states of its networks.
"""

import argparse
import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from make_networks import NarrowResNet, images, randomise, save_weights
from torch import nn
from torch.nn import functional
from torchvision.models import segmentation
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.models.segmentation.fcn import FCNHead

CLASSES, WIDTH, SKIP_WIDTH = 5, 12, 6
SIZES = {"64": (64, 64), "49": (49, 65)}
FULL_SIZES = {"520": (520, 520), "97": (97, 131)}
PUBLISHED = ("fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101")


def deeplab_head(channels, rates):
    """torchvision's DeepLabHead, of another width than 256."""
    return nn.Sequential(
        ASPP(channels, rates, WIDTH),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.Conv2d(WIDTH, CLASSES, 1),
    )


class DecoderHead(nn.Module):
    """DeepLabV3+'s head on torchvision's ASPP (arXiv:1802.02611, fig. 2), with the names of DeepLabV3Plus-Pytorch."""

    def __init__(self, low_channels, channels, rates):
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(low_channels, SKIP_WIDTH, 1, bias=False), nn.BatchNorm2d(SKIP_WIDTH))
        self.aspp = ASPP(channels, rates, WIDTH)
        self.classifier = nn.Sequential(
            nn.Conv2d(WIDTH + SKIP_WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            nn.Conv2d(WIDTH, CLASSES, 1),
        )

    def forward(self, low, high):
        low = functional.relu(self.project(low))
        high = functional.interpolate(self.aspp(high), size=low.shape[-2:], mode="bilinear", align_corners=False)
        return self.classifier(torch.cat([high, low], dim=1))


class DeepLabPlus(nn.Module):
    """A network with a DecoderHead."""

    def __init__(self, body, channels, rates):
        super().__init__()
        self.backbone = IntermediateLayerGetter(body, {"layer1": "low", "layer4": "out"})
        self.classifier = DecoderHead(channels[0], channels[-1], rates)

    def forward(self, x):
        maps = self.backbone(x)
        logits = self.classifier(maps["low"], maps["out"])
        return {"out": functional.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)}


def network(body, channels, head, rates=None, aux=True):
    """torchvision's FCN or DeepLabV3 on a network whose last stages have these channels, or a DeepLabPlus."""
    if head == "deeplabv3plus":
        return DeepLabPlus(body, channels, rates)
    factory = segmentation.FCN if head == "fcn" else segmentation.DeepLabV3
    classifier = FCNHead(channels[-1], CLASSES) if head == "fcn" else deeplab_head(channels[-1], rates)
    layers = {"layer4": "out", **({"layer3": "aux"} if aux else {})}
    return factory(IntermediateLayerGetter(body, layers), classifier, FCNHead(channels[-2], CLASSES) if aux else None)


def bottlenecks(output_stride=8):
    """(narrow ResNet of torchvision with four bottlenecks, channels of its stages)."""
    dilate = (False, output_stride == 8, True)
    widths = (4, 8, 12, 16)
    body = NarrowResNet(
        block=Bottleneck,
        layers=(1, 2, 2, 2),
        channels=widths,
        num_classes=1,
        replace_stride_with_dilation=dilate,
    )
    return body, [4 * width for width in widths]


def basic_blocks():
    """(narrow ResNet-18 of timm, whose basic blocks torchvision cannot dilate, channels of its stages)."""
    widths = (8, 12, 16, 24)
    return timm.create_model("resnet18", channels=widths, output_stride=8, num_classes=1), widths


@dataclass(frozen=True)
class Row:
    """One narrow network."""

    variant: str
    """Our name of its full-size relative."""
    build: Callable
    """Makes torch's network."""
    backbone: dict
    """The fields of ResNetSpec in which the backbone differs from that of `variant`."""
    spec: dict
    """The other fields of SegmenterSpec in which it differs."""


_18 = {"widths": (8, 12, 16, 24)}
_50 = {"depths": (1, 2, 2, 2), "widths": (4, 8, 12, 16), "stem_width": 4}
RATES = (2, 3, 5)
_DEEPLAB = {"rates": RATES, "head_width": WIDTH}
ROWS = {
    "fcn": Row("fcn_resnet50", lambda: network(*bottlenecks(), "fcn"), _50, {}),
    "fcn_basic": Row("fcn_resnet18", lambda: network(*basic_blocks(), "fcn", aux=False), _18, {"auxiliary": False}),
    "deeplabv3": Row("deeplabv3_resnet50", lambda: network(*bottlenecks(), "deeplabv3", RATES), _50, _DEEPLAB),
    "deeplabv3_no_aux": Row(
        "deeplabv3_resnet50",
        lambda: network(*bottlenecks(), "deeplabv3", (1, 2), aux=False),
        _50,
        {"rates": (1, 2), "head_width": WIDTH, "auxiliary": False},
    ),
    "deeplabv3plus": Row(  # rates are those for an output stride of 8
        "deeplabv3plus_resnet50",
        lambda: network(*bottlenecks(16), "deeplabv3plus", (1, 2, 3)),
        _50,
        {"rates": (2, 4, 6), "head_width": WIDTH, "decoder_width": SKIP_WIDTH},
    ),
}


def full_size(name):
    """torchvision's network of 21 classes with an auxiliary head; on basic blocks, timm's, with torchvision's heads."""
    if name in PUBLISHED:
        return getattr(segmentation, name)(weights=None, weights_backbone=None, aux_loss=True)
    head, body = name.split("_")
    layers = {"layer4": "out", "layer3": "aux"}
    backbone = IntermediateLayerGetter(timm.create_model(body, output_stride=8), layers)
    if head == "fcn":
        return segmentation.FCN(backbone, FCNHead(512, 21), FCNHead(256, 21))
    return segmentation.DeepLabV3(backbone, segmentation.deeplabv3.DeepLabHead(512, 21), FCNHead(256, 21))


def outputs(model, sizes):
    """Images, and what the model makes of them: {name: array}, the .npz file."""
    arrays = {}
    for name, size in sizes.items():
        x = images(1, *size, 3)
        batch = torch.from_numpy(x).double().permute(0, 3, 1, 2)
        with torch.inference_mode():
            logits = model(batch)["out"]
            arrays |= {f"x{name}": x, f"logits{name}": channels_last(logits)}
            if getattr(model, "aux_classifier", None) is not None:
                arrays[f"aux{name}"] = channels_last(model.aux_classifier(model.backbone(batch)["aux"]))
        if not 1e-2 < logits.abs().max() < 1e6:
            raise ValueError(f"logits of {name} should be of sane size. Received: {logits}")
    return arrays


def channels_last(maps):
    """(B, C, h, w) -> (B, h, w, C) float32 of NumPy."""
    return np.ascontiguousarray(maps.permute(0, 2, 3, 1).float().numpy())


def write(model, folder, name, sizes):
    """Write a network with random weights, and its outputs."""
    model = randomise(model, seed=sum(name.encode())).double()
    save_weights(model.state_dict(), folder / f"{name}.safetensors")
    np.savez_compressed(folder / f"{name}.npz", **outputs(model, sizes))


def statements(name):
    """Parameters, giga multiply-adds and metrics that torchvision states of its published weights."""
    weights = segmentation.__dict__[_weights_name(name)].COCO_WITH_VOC_LABELS_V1
    metrics = weights.meta["_metrics"]["COCO-val2017-VOC-labels"]
    return {
        "url": weights.url,
        "num_params": weights.meta["num_params"],
        "giga_multiply_adds": weights.meta["_ops"],
        "mean_iou": metrics["miou"],
        "pixel_accuracy": metrics["pixel_acc"],
        "shorter_side": weights.transforms().resize_size[0],
        "categories": weights.meta["categories"],
    }


def _weights_name(name):
    head, depth = name.split("_resnet")
    return f"{ {'fcn': 'FCN', 'deeplabv3': 'DeepLabV3'}[head] }_ResNet{depth}_Weights"


def write_narrow(folder):
    """Write every network of ROWS, and index.json, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    index = {}
    for name, row in ROWS.items():
        write(row.build(), folder, name, SIZES)
        index[name] = {"variant": row.variant, "backbone": row.backbone, "spec": row.spec, "classes": CLASSES}
    versions = {package: importlib.metadata.version(package) for package in ("torch", "torchvision", "timm")}
    content = {"versions": versions, "segmenters": index, "published": {name: statements(name) for name in PUBLISHED}}
    (folder / "index.json").write_text(f"{json.dumps(content, indent=1)}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", nargs="+", metavar=("DIR", "NAME"), help="names such as deeplabv3_resnet101")
    if full := parser.parse_args().full:
        folder, *names = full
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            write(full_size(name), Path(folder), name, FULL_SIZES)
    else:
        write_narrow(Path(__file__).parent / "segmenters")
