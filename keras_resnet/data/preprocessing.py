"""Images as networks want them: resized, cropped, normalised. Works on every Keras backend."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import keras
import numpy as np

from keras_resnet.data.image_files import as_pil_image, check_channels, is_single_image
from keras_resnet.errors import is_integer, unknown_name_error

MAX_SIDE = 8192
"""Pixels of a side at most: a Preprocessing may come with somebody's file."""
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Normalization:
    """RGB pixels in 0..255 -> (pixels / divisor - mean) / std, channel by channel; a single value serves them all.

    Raises:
        ValueError: on construction, for lengths that do not go together or a division by zero.
    """

    divisor: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False
    """Whether the channels are put in the order blue, green, red first; `mean` and `std` are in that order then."""

    def __post_init__(self):
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if not self.mean or not self.std or {len(self.mean), len(self.std)} - {1, self.channels}:
            raise ValueError(
                "`mean` and `std` should have a value for each channel, or a single one. "
                f"Received: mean={self.mean}, std={self.std}"
            )
        if not self.divisor > 0 or not min(self.std) > 0:
            raise ValueError(
                f"`divisor` and every `std` should be positive. Received: divisor={self.divisor}, std={self.std}"
            )

    @property
    def channels(self):
        """How many channels an image must have; 1 if any number will do."""
        return max(len(self.mean), len(self.std), 3 if self.bgr else 1)


MODES = {
    # keras/src/applications/imagenet_utils.py; "caffe" goes with the released Caffe weights (the paper's own text
    # subtracts a mean for each pixel)
    "caffe": Normalization(divisor=1.0, mean=(103.939, 116.779, 123.68), bgr=True),
    "torch": Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "tf": Normalization(divisor=127.5, mean=(1.0,)),
    # mean and deviation of all pixels of CIFAR-10's 50,000 training images
    "cifar": Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
}


def preprocess_input(images, mode, data_format=None):
    """Pixels -> network input; the argument stays as it is (keras.applications overwrites a float NumPy array).

    Args:
        images: (B, H, W, C) or (H, W, C), integers or floats in 0..255, RGB: a NumPy array, a tensor of the Keras
            backend, or a KerasTensor. Channels come before H for "channels_first".
        mode: a name in MODES, or a Normalization.
        data_format: "channels_last", "channels_first", or None for Keras's configured one.

    Returns:
        The same kind and shape: float32, or the dtype of `images` if that is a float. A float16 or bfloat16 one is
        computed in float32 and rounded once.

    Raises:
        ValueError: for an unknown mode or data format, another rank, or channels that the mode has no values for.
    """
    row = _normalization(mode)
    if not (keras.ops.is_tensor(images) or isinstance(images, keras.KerasTensor)):
        images = np.asarray(images)
    ops = np if isinstance(images, np.ndarray) else keras.ops
    axis = _channel_axis(images.shape, row, mode, data_format)
    given = keras.backend.standardize_dtype(images.dtype)
    result = given if keras.backend.is_float_dtype(given) else "float32"
    dtype = "float64" if result == "float64" else "float32"
    mean, std = (np.asarray(values, dtype).reshape(-1, *[1] * (-1 - axis)) for values in (row.mean, row.std))
    pixels = _cast(images, dtype)
    if row.bgr:
        pixels = ops.flip(pixels, axis)
    scaled = ops.divide(pixels, np.asarray(row.divisor, dtype))
    return _cast(ops.divide(ops.subtract(scaled, mean), std), result)


def _cast(images, dtype):
    return images.astype(dtype) if isinstance(images, np.ndarray) else keras.ops.cast(images, dtype)


def _normalization(mode):
    if isinstance(mode, Normalization):
        return mode
    _check_choice("mode", mode, tuple(MODES))
    return MODES[mode]


def _check_choice(name, value, choices):
    if not isinstance(value, str) or value not in choices:
        raise unknown_name_error(name, value, choices)


def _channel_axis(shape, row, mode, data_format):
    """-1 or -3, after a check that the images have the channels that the mode has values for."""
    data_format = data_format or keras.config.image_data_format()
    _check_choice("data_format", data_format, ("channels_last", "channels_first"))
    if len(shape) not in (3, 4):
        raise ValueError(f"`images` should be (B, H, W, C) or (H, W, C). Received: images of shape {tuple(shape)}")
    axis = -1 if data_format == "channels_last" else -3
    if row.channels > 1 and shape[axis] not in (row.channels, None):
        raise ValueError(
            f"`images` should have {row.channels} channels on axis {axis} ({data_format}) for mode={mode!r}. "
            f"Received: images of shape {tuple(shape)}"
        )
    return axis


@dataclass(frozen=True)
class Preprocessing:
    """What a network's weights want their images to look like: values only; calling it makes them so.

    Raises:
        ValueError: on construction, for an unknown mode or interpolation, or values that do not go together.
    """

    mode: str | Normalization
    """A name in MODES, or a Normalization of one's own."""
    size: int = 224
    """Side of the square that the network sees, in pixels."""
    resize: int | None = 256
    """What the shorter side is resized to before the middle is cropped, in pixels; None: the whole image is resized
    to (size, size), whatever its proportions."""
    interpolation: str = "bilinear"
    """A name in INTERPOLATIONS; antialiased, as Pillow does it."""
    channels: int = 3
    """3 for RGB, 1 for grey."""

    def __post_init__(self):
        _check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        for name in ("size", "resize"):
            value = getattr(self, name)
            if not (is_integer(value, 1) and value <= MAX_SIDE) and (name, value) != ("resize", None):
                raise ValueError(f"`{name}` should be from 1 to {MAX_SIDE} pixels. Received: {name}={value!r}")
        check_channels(self.channels)
        if _normalization(self.mode).channels not in (1, self.channels):
            raise ValueError(
                f"`channels` should be {_normalization(self.mode).channels}, as many as mode={self.mode!r} has values "
                f"for. Received: channels={self.channels}"
            )

    @classmethod
    def from_timm(cls, pretrained_cfg):
        """From the `pretrained_cfg` of a timm model or of its config.json, at the size it is tested at.

        Follows timm/data/config.py and transforms_imagenet_eval of timm/data/transforms_factory.py.

        Args:
            pretrained_cfg: dict with `input_size` (C, H, W), `mean` and `std`, and what timm has defaults for.

        Raises:
            ValueError: if these are missing, or for what a Preprocessing cannot say: sides that differ, and crops from
                padded or squashed images.
        """
        given = {name: value for name, value in pretrained_cfg.items() if value is not None}
        if missing := {"input_size", "mean", "std"} - given.keys():
            raise ValueError(f"`pretrained_cfg` should have {sorted(missing)}. Received: {sorted(given)}")
        channels, height, width = given.get("test_input_size", given["input_size"])
        crop_share = given.get("test_crop_pct", given.get("crop_pct", 0.875))
        crop_mode = given.get("crop_mode", "center")
        whole = crop_mode == "squash" and crop_share == 1
        if height != width or not (whole or crop_mode == "center"):
            raise ValueError(
                "`pretrained_cfg` should ask for a square from the centre, or for the whole image. Received: "
                f"input_size={(channels, height, width)}, crop_mode={crop_mode!r}, crop_pct={crop_share}"
            )
        row = Normalization(mean=given["mean"], std=given["std"])
        return cls(
            mode="torch" if row == MODES["torch"] else row,
            size=height,
            resize=None if whole else math.floor(height / crop_share),
            interpolation=given.get("interpolation", "bicubic"),
            channels=channels,
        )

    @classmethod
    def from_config(cls, config):
        """The way back from `to_config()`, also through JSON."""
        mode = config["mode"]
        return cls(**{**config, "mode": Normalization(**mode) if isinstance(mode, Mapping) else mode})

    def to_config(self):
        """The values as JSON can hold them."""
        config = asdict(self)
        if isinstance(self.mode, Normalization):
            config["mode"] |= {"mean": list(self.mode.mean), "std": list(self.mode.std)}
        return config

    def for_channels(self, channels):
        """The same for a network whose first kernels were adapted to another number of input channels.

        Args:
            channels: 3, or 1 for grey images, which get the mean of the three channels' values, as in timm.

        Returns:
            A Preprocessing, or None for another number: what these channels hold is not known here.
        """
        if channels not in (1, self.channels):
            return None
        if channels == self.channels:
            return self
        row = _normalization(self.mode)
        grey = Normalization(row.divisor, (sum(row.mean) / len(row.mean),), (sum(row.std) / len(row.std),))
        return replace(self, mode=self.mode if row.channels == 1 else grey, channels=1)

    def __call__(self, images):
        """Images -> network input, resized and cropped as torchvision.transforms.Resize and CenterCrop do it.

        Args:
            images: a path, a PIL image or a uint8 array (H, W) or (H, W, C); or a sequence of such, as is an array
                (B, H, W, C). They may differ in size and in kind.

        Returns:
            (B, size, size, channels) float32, channels last.

        Raises:
            ValueError: for a file that is no image and an array that is none.
            OSError: for a file that cannot be opened.
        """
        return preprocess_input(self.pixels(images), self.mode, data_format="channels_last")

    def pixels(self, images):
        """The same images before their values are normalised: (B, size, size, channels) uint8."""
        images = [images] if is_single_image(images) else list(images)
        pixels = np.empty((len(images), self.size, self.size, self.channels), "uint8")
        for row, image in zip(pixels, images, strict=True):
            row[:] = np.asarray(self.square(as_pil_image(image, self.channels))).reshape(row.shape)
        return pixels

    def square(self, image):
        """What the network sees of a PIL image, as a PIL image."""
        if self.resize is None:
            return image.resize((self.size, self.size), self._resampling)
        sides = _resized(image.size, self.resize)
        if max(sides) > 16 * max(self.size, self.resize):
            return _square_of_strip(image, sides, self.size, self._resampling)
        return _center_crop(self.resized(image, self.resize), self.size)

    def resized(self, image, shorter):
        """A PIL image whose shorter side has so many pixels."""
        return image.resize(_resized(image.size, shorter), self._resampling)

    @property
    def _resampling(self):
        from PIL import Image

        return Image.Resampling[self.interpolation.upper()]


def _resized(size, shorter):
    """(W, H) -> (W, H) with the given shorter side: _compute_resized_output_size of torchvision/transforms."""
    width, height = size
    longer = int(shorter * max(size) / min(size))
    return (shorter, longer) if width <= height else (longer, shorter)


def _center_crop(image, size):
    """The middle size x size; where the image is smaller, black around it (torchvision's center_crop)."""
    left, top = (round((side - size) / 2) if side > size else -((size - side) // 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def _square_of_strip(image, sides, size, interpolation):
    """As resizing to `sides` and cropping, but of the crop alone: 1 x 100,000 pixels resized whole take gigabytes.

    It may differ from that by what Pillow rounds and clips between its two passes, whose order depends on the sizes;
    hence other images are not cropped so.
    """
    windows = [_window(given, side, size, min(image.size)) for given, side in zip(image.size, sides, strict=True)]
    visible, part, box = zip(*windows, strict=True)
    around = image.crop(np.ravel(part, order="F").tolist())
    return _center_crop(around.resize(visible, interpolation, np.ravel(box, order="F").tolist()), size)


def _window(given, side, size, short):
    """Along one axis: pixels of the crop, the part of the image it is computed from, and where in that it lies."""
    scale, start = given / side, max(0, round((side - size) / 2))
    stop = min(side, start + size)
    margin = 4 * short  # further than any interpolation reaches
    first, last = max(0, int(start * scale) - margin), min(given, int(stop * scale) + margin + 1)
    return stop - start, (first, last), (start * scale - first, min(given, stop * scale) - first)
