"""Write what torchvision's detectors compute in training, as references for the tests, beside what they detect.

Run in an environment with torch, torchvision, timm and safetensors, after make_detectors.py:

    python make_detector_losses.py

`detectors/training.npz` holds three images of different sizes as one padded batch, `x` (3, H, W, 3) and `sizes` (3, 2),
and their objects, `boxes` (3, G, 4), `labels` (3, G), 0 for padding, and `masks` (3, G, H, W); the last image has none.

`detectors/<name>_losses.npz` holds the losses of these images, `loss_...`, computed in float64, and what was random:
`anchor_matches` (3, A), the index of the true box of each anchor, -1 for background and -2 for those that are not
trained; of the R-CNNs the `proposals` (3, P, 4), padded with zeros, their number `proposal_count` (3,), the
`region_matches` (3, P + G) of the proposals and the true boxes after them, and the samples of both, `anchor_samples`
and `region_samples` (3, S): indices, first of the samples with an object, -1 after the last one; `anchor_positives` and
`region_positives` (3,) is the number of those with an object.

`detectors/<name>_gradients.safetensors` holds the gradients of the sum of the losses in float32, under the names of the
weights; zeros for what is not trained.
"""

from pathlib import Path

import numpy as np
import torch
from make_detectors import ROWS, SIDES, old_name, padded
from make_networks import images
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList

FOLDER = Path(__file__).parent / "detectors"
SIZES = [SIDES, (51, 69), SIDES]
BOXES = [
    [[3, 5, 44, 60.5], [30, 8, 90, 40], [70.5, 50, 74.5, 53], [0, 0, 96, 64]],
    [[10, 12, 41, 47.5], [44, 2, 69, 20]],
]
LABELS = [[1, 3, 2, 1], [2, 2]]
ANCHORS, REGIONS, PROPOSALS = 64, 100, 100
"""Number of samples and of proposals; there are fewer regions than samples, and thus fewer samples than 100."""
GRADIENTS = ("maskrcnn", "fasterrcnn_v2", "retinanet")


def training_data():
    """The arrays of training.npz."""
    pixels, masks = images(3, *SIDES, 3), np.zeros((3, 4, *SIDES), "uint8")
    for image, (height, width) in zip(pixels, SIZES, strict=True):
        image[height:], image[:, width:] = 0, 0
    boxes, labels = (
        padded([np.array(rows) for rows in given] + [np.array(given[0])[:0]], 4) for given in (BOXES, LABELS)
    )
    y, x = np.mgrid[: SIDES[0], : SIDES[1]] + 0.5
    for mask, (x1, y1, x2, y2) in zip(masks[:2].reshape(-1, *SIDES), boxes[:2].reshape(-1, 4), strict=True):
        if x2 > x1:
            mask[((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 < 1] = 1
    return {
        "x": pixels,
        "sizes": np.array(SIZES),
        "boxes": boxes.astype("float32"),
        "labels": labels.astype("int32"),
        "masks": masks,
    }


def prepare(name):
    """A detector of make_detectors.py in training mode, with fewer samples; batch norm is frozen but for the _v2."""
    row = ROWS[name]
    model = row.build().double().train()
    arrays = load_file(FOLDER / f"{name}.safetensors")
    model.load_state_dict({key: arrays[old_name(key) if row.old else key] for key in model.state_dict()})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not row.is_v2:
            module.eval().requires_grad_(False)
    if isinstance(model, RetinaNet):
        model.head.regression_head._loss_type = "giou" if row.is_v2 else "l1"
    else:
        model.rpn._post_nms_top_n["training"] = PROPOSALS
        model.rpn.fg_bg_sampler = RecordedSamples(model.rpn.fg_bg_sampler, ANCHORS)
        model.roi_heads.fg_bg_sampler = RecordedSamples(model.roi_heads.fg_bg_sampler, REGIONS)
    matcher = model if isinstance(model, RetinaNet) else model.rpn
    matcher.proposal_matcher = RecordedMatches(matcher.proposal_matcher)
    return model


class RecordedSamples:
    """A sampler of torchvision with another number of samples, which remembers what it returned."""

    def __init__(self, sampler, samples):
        self.sampler, sampler.batch_size_per_image = sampler, samples
        self.samples = samples

    def __call__(self, labels):
        self.labels, self.chosen = labels, self.sampler(labels)
        return self.chosen

    def arrays(self, name):
        """`<name>_samples` and `<name>_positives`."""
        positive, negative = ([torch.where(mask)[0] for mask in masks] for masks in self.chosen)
        indices = [torch.cat(parts).numpy() for parts in zip(positive, negative, strict=True)]
        counts = [len(image) for image in positive]
        return {f"{name}_samples": padded([i + 1 for i in indices], self.samples) - 1, f"{name}_positives": counts}


class RecordedMatches(Matcher):
    """A matcher of torchvision that remembers what it returned."""

    def __init__(self, matcher):
        super().__init__(matcher.high_threshold, matcher.low_threshold, matcher.allow_low_quality_matches)
        self.found = []

    def __call__(self, quality):
        self.found.append(super().__call__(quality).clone())
        return self.found[-1]

    def array(self):
        """The matches of each image; those of an image without objects are background."""
        return np.stack([*(image.numpy() for image in self.found), np.full(len(self.found[0]), -1)])


def retina_losses(model, batch, maps, targets):
    """RetinaNet's losses and matches."""
    maps = list(maps.values())
    losses = model.compute_loss(targets, model.head(maps), model.anchor_generator(batch, maps))
    return losses, {"anchor_matches": model.proposal_matcher.array()}


def region_losses(model, batch, maps, targets):
    """The losses of an R-CNN, and what it matched and sampled."""
    model.roi_heads.proposal_matcher = RecordedMatches(model.roi_heads.proposal_matcher)
    proposals, losses = model.rpn(batch, maps, targets)
    counts = [len(image) for image in proposals]
    arrays = {"proposals": padded([image.detach().numpy() for image in proposals], PROPOSALS), "proposal_count": counts}
    _, of_regions = model.roi_heads(maps, list(proposals), batch.image_sizes, targets)
    arrays |= model.rpn.fg_bg_sampler.arrays("anchor") | model.roi_heads.fg_bg_sampler.arrays("region")
    arrays["anchor_matches"] = model.rpn.proposal_matcher.array()
    matches = [image.numpy() for image in model.roi_heads.proposal_matcher.found]
    matches.append(np.full(counts[-1], -1))
    arrays["region_matches"] = np.stack([_spread(*image, -2) for image in zip(matches, counts, strict=True)])
    for image, count in zip(arrays["region_samples"], counts, strict=True):
        image[image >= count] += PROPOSALS - count  # the true boxes stand after the padding
    return losses | of_regions, arrays


def _spread(matches, count, fill):
    """Matches of proposals and true boxes -> those of padded proposals and padded true boxes."""
    spread = np.full(PROPOSALS + 4, fill)
    spread[:count], spread[PROPOSALS : PROPOSALS + len(matches) - count] = matches[:count], matches[count:]
    return spread


def write(name, data):
    """Write the losses of a detector, and perhaps their gradients."""
    model = prepare(name)
    batch = ImageList(torch.from_numpy(data["x"]).double().permute(0, 3, 1, 2), SIZES)
    numbers = (data["labels"] > 0).sum(axis=1)
    targets = [
        {
            "boxes": torch.from_numpy(boxes[:n]).double(),
            "labels": torch.from_numpy(labels[:n]).long(),
            "masks": torch.from_numpy(masks[:n]),
        }
        for boxes, labels, masks, n in zip(data["boxes"], data["labels"], data["masks"], numbers, strict=True)
    ]
    torch.manual_seed(0)
    compute = retina_losses if isinstance(model, RetinaNet) else region_losses
    losses, arrays = compute(model, batch, model.backbone(batch.tensors), targets)
    arrays = {key: np.asarray(array, "float32" if key == "proposals" else "int16") for key, array in arrays.items()}
    values = {f"loss_{key.removeprefix('loss_')}": loss.item() for key, loss in losses.items()}
    print(name, values, {k: v.tolist() for k, v in arrays.items() if v.ndim == 1})
    np.savez_compressed(FOLDER / f"{name}_losses.npz", **arrays, **values)
    if name in GRADIENTS:
        sum(losses.values()).backward()
        gradients = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
        gradients |= {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        rename = old_name if ROWS[name].old else str
        arrays = {rename(key): value.float().contiguous() for key, value in gradients.items()}
        save_file(arrays, FOLDER / f"{name}_gradients.safetensors")


if __name__ == "__main__":
    data = training_data()
    np.savez_compressed(FOLDER / "training.npz", **data)
    for name in ROWS:
        write(name, data)
