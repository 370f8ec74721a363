"""Makes images.npz: a synthetic image, and what torchvision and timm make of it for a network's input.

Run with torch, torchvision and timm installed; what was done is in the keys, which the tests read:

- `image`: (61, 97, 3) uint8; the tall one is its transpose, the grey one its first channel.
- `<image>_<interpolation>_<resize>_<size>`: (size, size, C) uint8, resized and cropped by torchvision; resize "none"
  for the whole image.
- `torchvision_<resize>_<size>`: (size, size, 3) float32, by torchvision's ImageClassification preset.
- `timm_<n>`: (size, size, 3) float32, by timm's evaluation transform; `timm_<n>_cfg`: its pretrained_cfg as JSON.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from torchvision.transforms._presets import ImageClassification

# (image, interpolation, resize, size): larger and smaller than the image, odd margins, a crop beyond the edges
CASES = (
    ("wide", "bilinear", 40, 32),
    ("tall", "bilinear", 40, 32),
    ("wide", "bicubic", 37, 32),
    ("tall", "bicubic", 37, 24),
    ("wide", "nearest", 40, 31),
    ("wide", "lanczos", 40, 32),
    ("wide", "bilinear", 70, 32),
    ("tall", "bilinear", 17, 32),
    ("grey", "bilinear", 40, 32),
    ("wide", "bilinear", None, 32),
)
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALVES = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
TIMM = (
    IMAGENET | {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center"},
    IMAGENET | {"input_size": [3, 24, 24], "test_input_size": [3, 32, 32], "crop_pct": 0.875, "test_crop_pct": 1.0},
    HALVES | {"input_size": [3, 32, 32], "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"},
)


def synthetic(height=61, width=97):
    """(H, W, 3) uint8: waves with edges and some noise, so that every detail of a resampling shows."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / a + y / b) for a, b in ((5, 9), (13, -4), (-3, 7))]
    pixels = np.stack(waves, axis=-1) + np.random.default_rng(0).normal(0, 15, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = 255
    return pixels.clip(0, 255).astype("uint8")


def resized_and_cropped(image, interpolation, resize, size):
    """(H, W, C) or (H, W) uint8 -> (size, size, C) or (size, size) uint8."""
    sides = resize if resize else (size, size)
    transform = Compose([Resize(sides, interpolation=InterpolationMode(interpolation)), CenterCrop(size)])
    return np.asarray(transform(Image.fromarray(image)))


def channels_last(tensor):
    return tensor.permute(1, 2, 0).numpy()


def references():
    image = synthetic()
    images = {"wide": image, "tall": image.transpose(1, 0, 2).copy(), "grey": image[..., 0].copy()}
    image, arrays = Image.fromarray(image), {"image": image}
    for name, interpolation, resize, size in CASES:
        key = f"{name}_{interpolation}_{resize or 'none'}_{size}"
        arrays[key] = resized_and_cropped(images[name], interpolation, resize, size)
    arrays["torchvision_40_32"] = channels_last(ImageClassification(crop_size=32, resize_size=40)(image))
    for number, config in enumerate(TIMM):
        data = resolve_data_config({}, pretrained_cfg=config, use_test_size=True)
        arrays[f"timm_{number}"] = channels_last(create_transform(**data, is_training=False)(image))
        arrays[f"timm_{number}_cfg"] = np.asarray(json.dumps(config))
    return arrays


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_name("images.npz"), **references())
