"""Makes segmenter_training.npz: how torch and torchvision augment images with masks, and what they compute in training.

Run with torch and torchvision installed. Arrays:

- `image` (45, 60, 3) uint8, `mask` (45, 60) uint8, of five classes and 255.
- `crops` (N, 6): shorter side after resizing, height and width of the crop, its row and column in the mirrored image,
  and whether it is mirrored; `crop<n>/image`, `crop<n>/mask`: the crop by the functions of
  references/segmentation/transforms.py on PIL images, of which the image is padded with 0, the mask with 255.
- `jitter/factors` (3,) and `jitter/brightness`, `contrast` and `saturation`: the image changed by each.
- `polynomial` (50,): learning rates of PolynomialLR over 50 steps, from 0.02, with power 0.9.
- `logits` (3, 9, 12, 5) and `auxiliary` (3, 5, 6, 5): maps of logits; `masks` (3, 33, 47) for them, the last of which
  has few counted pixels; `weights` (5,); `plain/...` and `weighted/...`: `loss`, in float64, that of
  references/segmentation/train.py for the maps enlarged to the masks, and its gradients, `logits` and `auxiliary`.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

# Sizes of which no pixel of a resized mask lies exactly between two pixels of the mask
CROPS = [
    # shorter side, height, width, row, column, mirrored
    (45, 45, 60, 0, 0, 0),
    (90, 45, 60, 17, 39, 0),
    (90, 45, 60, 45, 60, 1),
    (33, 30, 30, 2, 9, 1),
    (63, 63, 30, 0, 51, 0),
    (24, 45, 60, 0, 0, 0),
    (24, 45, 60, 0, 0, 1),
    (42, 60, 40, 0, 13, 1),
]


def augmented(image, mask, shorter, height, width, top, left, mirrored):
    """The image and the mask, padded by `pad_if_smaller` with 0 and 255, cropped."""
    image = transforms.resize(image, shorter, antialias=True)
    mask = transforms.resize(mask, shorter, interpolation=InterpolationMode.NEAREST)
    if mirrored:
        image, mask = transforms.hflip(image), transforms.hflip(mask)
    padding = (0, 0, max(width - image.width, 0), max(height - image.height, 0))
    image, mask = transforms.pad(image, padding, fill=0), transforms.pad(mask, padding, fill=255)
    return [np.asarray(transforms.crop(it, top, left, height, width)) for it in (image, mask)]


def augmentation_arrays(random):
    coarse = random.integers(0, 256, (6, 8, 3), "uint8")
    image = np.asarray(Image.fromarray(coarse).resize((60, 45), Image.Resampling.BICUBIC))
    mask = np.kron(random.choice([0, 1, 2, 3, 4, 255], (9, 12)), np.ones((5, 5))).astype("uint8")
    arrays = {"image": image, "mask": mask, "crops": np.array(CROPS)}
    pillow = Image.fromarray(image)
    for number, crop in enumerate(CROPS):
        found = augmented(pillow, Image.fromarray(mask), *crop)
        arrays |= dict(zip((f"crop{number}/image", f"crop{number}/mask"), found, strict=True))
    factors = {"brightness": 0.72, "contrast": 1.31, "saturation": 0.64}
    for name, factor in factors.items():
        arrays[f"jitter/{name}"] = np.asarray(getattr(transforms, f"adjust_{name}")(pillow, factor))
    return arrays | {"jitter/factors": np.array([*factors.values()])}


def learning_rates(steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.02)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps, power=0.9)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return np.array(rates)


def loss_arrays(random):
    maps = {"logits": 3 * random.standard_normal((3, 9, 12, 5)), "auxiliary": random.standard_normal((3, 5, 6, 5))}
    maps = {name: values.astype("float32") for name, values in maps.items()}
    masks = random.choice([0, 1, 2, 3, 4, 255], (3, 33, 47)).astype("uint8")
    masks[2, 3:] = 255
    weights = np.array([0.3, 1.0, 2.5, 0.0, 7.0], "float32")
    arrays = maps | {"masks": masks, "weights": weights}
    for name, given in (("plain", None), ("weighted", torch.tensor(weights, dtype=torch.float64))):
        inputs = {key: torch.tensor(it, dtype=torch.float64, requires_grad=True) for key, it in maps.items()}
        losses = [
            functional.cross_entropy(
                functional.interpolate(it.permute(0, 3, 1, 2), masks.shape[1:], mode="bilinear", align_corners=False),
                torch.tensor(masks.astype("int64")),
                weight=given,
                ignore_index=255,
            )
            for it in inputs.values()
        ]
        loss = losses[0] + 0.5 * losses[1]
        loss.backward()
        arrays[f"{name}/loss"] = loss.detach().numpy()
        arrays |= {f"{name}/{key}": it.grad.numpy().astype("float32") for key, it in inputs.items()}
    return arrays


random = np.random.default_rng(0)
arrays = augmentation_arrays(random) | loss_arrays(random) | {"polynomial": learning_rates(50)}
np.savez_compressed(Path(__file__).with_name("segmenter_training.npz"), **arrays)
