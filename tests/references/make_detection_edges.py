"""Makes detection_edges.npz: what torchvision's detectors do at the edges.

Run with torch, torchvision, timm and safetensors installed. Arrays are named `<case>/<array>`:

- `nms_<threshold>`: boxes of small whole sides, so that many overlaps are equal to thresholds and many scores to each
  other, and boxes without area: `boxes`, `scores`, `groups`, and the indices that `batched_nms` keeps, `kept`.
- `decode_<weights>`: offsets that are huge, infinite or NaN, and boxes without sides: `deltas`, `boxes`, `decoded`.
- `align`: `boxes` without sides and beyond the border of a 64 x 96 image, `map0`...; `regions` (B * P, 7, 7, C).
- `proposals`, `detections`, `dense`: the layers after the heads, for an image of 64 x 96 pixels, and one of 48 x 70
  padded to it: their inputs, and for each image the results `boxes0`, `boxes1`, ...; some inputs are NaN or infinite,
  and one class, or all classes of the second image, have no detection.
- `resized`: `sides` (N, 4), height and width of an image, and those after resizing to 800 and 1333 pixels.
- `<detector>_<width>`: detections of one image padded to 64 x `width` pixels, by a detector of detectors/.
"""

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from make_detectors import ROWS, old_name, region_outputs, retina_outputs
from safetensors.torch import load_file
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, batched_nms

FOLDER = Path(__file__).parent
GENERATOR = np.random.default_rng(0)
SIZES = [(64, 96), (48, 70)]
"""Heights and widths of two images, padded to the first."""
RATIOS = (0.5, 1.0, 2.0)


def tensor(array):
    """float32 array -> tensor; maps (B, h, w, C) as (B, C, h, w)."""
    array = torch.from_numpy(np.ascontiguousarray(array, "float32"))
    return array.permute(0, 3, 1, 2).contiguous() if array.ndim == 4 else array


def random(*shape, scale=1.0):
    """Normally distributed float32."""
    return GENERATOR.normal(0, scale, shape).astype("float32")


def nms_case(threshold, count=200):
    """Boxes with whole corners in 12 x 12 pixels; every tenth has no width or no height."""
    corners = GENERATOR.integers(0, 9, (count, 2))
    sides = GENERATOR.integers(1, 5, (count, 2))
    sides[::10, 0], sides[5::20, 1] = 0, 0
    boxes = np.concatenate([corners, corners + sides], axis=1).astype("float32")
    scores = (GENERATOR.integers(1, 10, count) / 10).astype("float32")
    groups = GENERATOR.integers(1, 4, count)
    kept = batched_nms(tensor(boxes), tensor(scores), torch.from_numpy(groups), threshold)
    return {"boxes": boxes, "scores": scores, "groups": groups, "kept": kept.numpy()}


def decode_case(weights):
    """All combinations of special offsets with special boxes."""
    values = np.float32([0.5, -3, 50, np.inf, -np.inf, np.nan])
    deltas = np.concatenate([np.stack(np.meshgrid(values, values), -1).reshape(-1, 2)] * 2, axis=1)
    deltas[: len(deltas) // 2, :2] = 0.25
    boxes = np.float32([[0, 0, 10, 20], [5, 5, 5, 5], [0, 0, 4000, 1], [-10, 3.5, 20, 3000.25]])
    deltas, boxes = np.repeat(deltas, len(boxes), axis=0), np.tile(boxes, (len(deltas), 1))
    return {
        "deltas": deltas,
        "boxes": boxes,
        "decoded": BoxCoder(weights).decode_single(tensor(deltas), tensor(boxes)).numpy(),
    }


def align_case(channels=4):
    """RoIAlign of unusual boxes in maps of strides 4 to 32."""
    maps = [random(2, 64 // stride, 96 // stride, channels) for stride in (4, 8, 16, 32)]
    special = [[10, 10, 10, 10], [0, 0, 0, 0], [0, 0, 96, 64], [90, 60, 96, 64], [95.5, 0, 96, 64], [-40, -40, 20, 20]]
    special += [[200, 200, 300, 300], [-500, -500, 1000, 1000], [3.3, 7.7, 3.4, 50.1], [0, 0, 0.001, 0.001]]
    corners = GENERATOR.uniform(0, 60, (12, 2))
    boxes = np.float32([*special, *np.concatenate([corners, corners + GENERATOR.uniform(0, 200, (12, 2))], axis=1)])
    boxes = np.stack([boxes, boxes[::-1] * np.float32(0.7)])
    pool = MultiScaleRoIAlign(list("0123"), 7, 2)
    regions = pool(dict(zip("0123", map(tensor, maps), strict=True)), list(map(tensor, boxes)), [SIZES[0]] * 2)
    return {"boxes": boxes, "regions": regions.permute(0, 2, 3, 1).numpy()} | numbered("map", maps)


def numbered(name, arrays):
    """{name0: array, name1: array, ...}."""
    return {f"{name}{number}": np.asarray(array) for number, array in enumerate(arrays)}


def proposals_case():
    """Region proposals, from fewer anchors than candidates; some logits and offsets are infinite or NaN."""
    maps = [(8, 12), (4, 6), (2, 3)]
    objectness = [random(2, *size, 3, scale=3) for size in maps]
    deltas = [random(2, *size, 12, scale=0.7) for size in maps]
    deltas[0][0, 0, :3, :] = [[np.nan], [np.inf], [100]]
    deltas[1][1, 0, 0, 2:4] = -np.inf
    objectness[2][0, 0] = [[-np.inf], [np.inf], [0]]

    class Given(nn.Module):
        def forward(self, features):
            return [tensor(level) for level in objectness], [tensor(level) for level in deltas]

    anchors = AnchorGenerator(((8,), (16,), (32,)), (RATIOS,) * 3)
    before, after = ({"training": count, "testing": count} for count in (1000, 100))
    rpn = RegionProposalNetwork(anchors, Given(), 0.7, 0.3, 256, 0.5, before, after, 0.7).eval()
    found, _ = rpn(padded_images(), dict(enumerate(map(tensor, objectness))))
    return numbered("objectness", objectness) | numbered("deltas", deltas) | numbered("boxes", found)


def padded_images():
    """torchvision's batch of two images."""
    return ImageList(torch.zeros(2, 3, *SIZES[0]), SIZES)


def detections_case(regions=60, classes=5):
    """Detections of two images: class 4 has none, and neither has the second image."""
    corners = GENERATOR.uniform(0, 60, (2, regions, 2))
    proposals = np.concatenate([corners, corners + GENERATOR.uniform(5, 40, (2, regions, 2))], axis=2).astype("float32")
    logits, deltas = random(2, regions, classes, scale=2), random(2, regions, 4 * classes, scale=2)
    logits[:, :, 4], logits[1, :, 1:] = -20, -30
    logits[0, 1] = logits[0, 0]
    deltas[0, 2], deltas[0, 3], deltas[0, 4, 8:] = np.nan, np.inf, 1e4
    proposals[0, 5] = 0
    heads = RoIHeads(*[None] * 3, 0.5, 0.5, 1, 0.5, None, 0.05, 0.5, 40)
    flat = [tensor(array.reshape(-1, array.shape[-1])) for array in (logits, deltas)]
    found = heads.postprocess_detections(*flat, list(map(tensor, proposals)), SIZES)
    return {"proposals": proposals, "logits": logits, "deltas": deltas} | results("", zip(*found, strict=True))


def dense_case(classes=4):
    """RetinaNet's detections of two images: class 3 has none, and neither has the second image."""
    maps = [(8, 12), (4, 6)]
    logits = [random(2, *size, 3 * classes, scale=2) - 2 for size in maps]
    deltas = [random(2, *size, 12, scale=0.7) for size in maps]
    for level, offsets in zip(logits, deltas, strict=True):
        level.reshape(2, -1, classes)[:, :, 3], level[1] = -20, -30
        offsets[0, 0, 0, :4], offsets[0, 0, 1, 2:4] = np.inf, -np.inf
    logits[0][0, 2, 3, :], deltas[0][0, 2, 3, :] = 0.5, 0  # equal scores
    retinanet = SimpleNamespace(
        score_thresh=0.05, topk_candidates=1000, nms_thresh=0.5, detections_per_img=30, box_coder=BoxCoder((1.0,) * 4)
    )
    rows = {
        "cls_logits": [tensor(level.reshape(2, -1, classes)) for level in logits],
        "bbox_regression": [tensor(level.reshape(2, -1, 4)) for level in deltas],
    }
    generator = AnchorGenerator(((8,), (16,)), (RATIOS,) * 2)
    anchors = generator(padded_images(), [torch.zeros(2, 1, *size) for size in maps])
    anchors = [list(image.split([3 * height * width for height, width in maps])) for image in anchors]
    found = RetinaNet.postprocess_detections(retinanet, rows, anchors, SIZES)
    return numbered("logits", logits) | numbered("deltas", deltas) | results("", found)


def results(prefix, images):
    """Detections of images, dicts or (boxes, scores, labels), as arrays {prefix + boxes0: ...}."""
    arrays = {}
    for number, found in enumerate(images):
        found = found if isinstance(found, dict) else dict(zip(("boxes", "scores", "labels"), found, strict=True))
        arrays |= {f"{prefix}{name}{number}": values.detach().numpy() for name, values in found.items()}
    return arrays


def resized_case():
    """Sides after resizing: those that rounding makes 799 pixels among them, and the longest and shortest."""
    sides = [(97, 97), (161, 200), (334, 500), (1, 1), (1, 400), (400, 1), (4, 4000), (4000, 4000), (4000, 3000)]
    sides += [tuple(row) for row in GENERATOR.integers(1, 3000, (60, 2)).tolist() if max(row) < 1000 * min(row)]
    transform = GeneralizedRCNNTransform(800, 1333, [0.0] * 3, [1.0] * 3)
    rows = []
    for height, width in sides:
        image = torch.zeros(1, 1, 1).expand(3, height, width)
        rows.append((height, width, *transform.resize(image)[0].shape[1:]))
    return {"sides": np.array(rows)}


def canvas_case(name, width):
    """Detections of the second image of detectors/<name>.npz, 50 pixels wide, padded to 64 x `width` pixels."""
    row = ROWS[name]
    model = row.build().eval().double()
    arrays = load_file(FOLDER / "detectors" / f"{name}.safetensors")
    model.load_state_dict({key: arrays[old_name(key) if row.old else key] for key in model.state_dict()})
    image = np.load(FOLDER / "detectors" / f"{name}.npz")["x"][1, :51, :50]
    batch = torch.zeros(1, 3, 64, width).double()
    batch[0, :, :51, :50] = tensor(image[None])
    found = retina_outputs if isinstance(model, RetinaNet) else region_outputs
    with torch.inference_mode():
        _, detections = found(model, ImageList(batch, [(51, 50)]), model.backbone(batch))
    return {key: values.float().numpy() for key, values in detections[0].items()}


CASES = {
    **{f"nms_{threshold}": (nms_case, threshold) for threshold in (0.3, 0.5, 0.6, 0.7)},
    **{f"decode_{weights[0]}": (decode_case, weights) for weights in ((1.0,) * 4, (10.0, 10.0, 5.0, 5.0))},
    "align": (align_case,),
    "proposals": (proposals_case,),
    "detections": (detections_case,),
    "dense": (dense_case,),
    "resized": (resized_case,),
    **{f"{name}_{width}": (canvas_case, name, width) for name in ("maskrcnn", "retinanet") for width in (64, 96)},
}
"""Case -> function and its arguments."""

if __name__ == "__main__":
    arrays = {"torchvision": np.array(importlib.metadata.version("torchvision"))}
    for case, (function, *arguments) in CASES.items():
        arrays |= {f"{case}/{name}": values for name, values in function(*arguments).items()}
    np.savez_compressed(FOLDER / "detection_edges.npz", **arrays)
