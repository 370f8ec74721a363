"""Makes masks.npz: masks of boxes, pasted into an image by torchvision's paste_masks_in_image.

Run with torchvision installed; the arrays are

- `probabilities`: (N, 28, 28) uint8, in 255ths.
- `boxes`: (N, 4) float32: large and small ones, at the edges, beyond them, without area, of the whole image.
- `pasted`: (N, 61, 97) bool, the masks above 0.5.
"""

from pathlib import Path

import numpy as np
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

SIZE = 61, 97
BOXES = (
    *(
        (10.3, 5.7, 80.2, 50.9),
        (0, 0, 97, 61),
        (0, 0, 3.5, 61),
        (90.1, 40, 97, 61),
        (20, 20, 21, 21),
        (30.5, 3, 30.5, 9),
    ),
    *((30.9, 30.1, 31.2, 60), (50, 10, 96.99, 10.4), (5.5, 58.2, 60.1, 60.99), (-4, -3, 40, 20), (80, 50, 110, 70)),
    *((40, 20, 68, 48), (12.25, 33.5, 26.25, 47.5)),
)


def main():
    random = np.random.default_rng(0)
    coarse = torch.tensor(random.random((len(BOXES), 1, 6, 6)), dtype=torch.float32)
    smooth = torch.nn.functional.interpolate(coarse, (28, 28), mode="bicubic").clamp(0, 1)
    probabilities = (smooth[:, 0] * 255).round().to(torch.uint8)
    boxes = torch.tensor(BOXES, dtype=torch.float32)
    pasted = paste_masks_in_image((probabilities / 255)[:, None], boxes, SIZE)[:, 0] > 0.5
    arrays = {"probabilities": probabilities.numpy(), "boxes": boxes.numpy(), "pasted": pasted.numpy()}
    np.savez_compressed(Path(__file__).with_name("masks.npz"), **arrays)


if __name__ == "__main__":
    main()
