"""Makes detection_crops.npz: what torchvision's augmentations for detectors sample, and how they change boxes.

Run with torch and torchvision installed. Arrays:

- `<scene>/boxes`, `<scene>/size`: objects in an image and its height and width.
- `<scene>/overlap` (1000, 4) int16: crops that RandomIoUCrop samples for them, x1, y1, x2, y2; `<scene>/kept` (1000,)
  int16: how many objects stay.
- `<scene>/scale_jitter` (1000, 2) int16: heights and widths that ScaleJitter samples for a square of 96 pixels.
- `<scene>/shortest` (1000, 2) int16: those of RandomShortestSize for 64 to 96 pixels, the longer side at most 120.
- `<scene>/resized` (N, 4): the boxes in the image resized to 61 x 83, by `resize_boxes` of its detectors.
"""

from pathlib import Path

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.models.detection.transform import resize_boxes
from torchvision.transforms import v2

COUNT = 1000
SCENES = {
    "wide": ((150, 200), [[30, 20, 110, 90], [150, 60, 180, 100], [5, 100, 60, 140]]),
    "tall": ((240, 110), [[3.5, 7.25, 100, 230]]),
    "small": ((60, 64), [[20, 20, 28, 29], [40, 41, 44, 46], [41, 40, 46, 44], [1, 1, 5, 6]]),
}


def sample_crop(crop, image, boxes):
    """The crop of RandomIoUCrop and the number of objects that stay."""
    found = crop.make_params([image, boxes])
    if not found:
        return [0, 0, image.shape[2], image.shape[1], len(boxes)]
    left, top = found["left"], found["top"]
    return [left, top, left + found["width"], top + found["height"], int(found["is_within_crop_area"].sum())]


def scene_arrays(size, boxes):
    image = tv_tensors.Image(torch.zeros(3, *size, dtype=torch.uint8))
    tensor = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size, dtype=torch.float32)
    crops = np.array([sample_crop(v2.RandomIoUCrop(), image, tensor) for _ in range(COUNT)], "int16")
    samplers = {"scale_jitter": v2.ScaleJitter((96, 96)), "shortest": v2.RandomShortestSize(range(64, 97), 120)}
    sizes = {
        name: np.array([sampler.make_params([image])["size"] for _ in range(COUNT)], "int16")
        for name, sampler in samplers.items()
    }
    resized = resize_boxes(tensor.as_subclass(torch.Tensor), list(size), [61, 83]).numpy()
    return {
        "boxes": np.array(boxes, "float32"),
        "size": np.array(size),
        "overlap": crops[:, :4],
        "kept": crops[:, 4],
        "resized": resized,
        **sizes,
    }


torch.manual_seed(0)
arrays = {
    f"{name}/{key}": array for name, (size, boxes) in SCENES.items() for key, array in scene_arrays(size, boxes).items()
}
np.savez_compressed(Path(__file__).parent / "detection_crops.npz", **arrays)
