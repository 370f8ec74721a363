"""Preprocessing of images: resizing, cropping and normalisation, on every Keras backend."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_resnet.data.image_files import as_pil_image, check_channels, is_single_image
from keras_resnet.errors import is_integer, unknown_name_error, value_error

MAX_SIDE = 8192
"""Largest side in pixels: a Preprocessing may come from an untrusted file."""
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Normalization:
    """RGB pixels in 0..255 -> (pixels / divisor - mean) / std, with one value per channel or one for all.

    The constructor raises ValueError for inconsistent lengths and divisions by zero.
    """

    divisor: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False
    """Whether channels are first reordered to blue, green, red, which is then the order of `mean` and `std`."""

    def __post_init__(self):
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if not self.mean or not self.std or {len(self.mean), len(self.std)} - {1, self.channels}:
            raise ValueError(f"`mean` and `std` should have one value, or one per channel. Received: {self}")
        if not self.divisor > 0 or not min(self.std) > 0:
            raise ValueError(f"`divisor` and every `std` should be positive. Received: {self}")

    @property
    def channels(self) -> int:
        """Required number of channels; 1 if any number is possible."""
        return max(len(self.mean), len(self.std), 3 if self.bgr else 1)


MODES = {
    # keras/src/applications/imagenet_utils.py; "caffe" is for the released Caffe weights (the paper itself subtracts a
    # mean image)
    "caffe": Normalization(divisor=1.0, mean=(103.939, 116.779, 123.68), bgr=True),
    "torch": Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "tf": Normalization(divisor=127.5, mean=(1.0,)),
    # mean and standard deviation of all pixels of CIFAR-10's 50,000 training images
    "cifar": Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
}


def preprocess_input(images: Any, mode: str | Normalization, data_format: str | None = None) -> Any:
    """Normalises the pixels of images for a model, without modifying the argument, unlike keras.applications.

    >>> import numpy as np
    >>> import keras_resnet
    >>> images = np.array([[[[0, 127.5, 255]]]])
    >>> keras_resnet.preprocess_input(images, mode="tf", data_format="channels_last")
    array([[[[-1.,  0.,  1.]]]])

    Args:
        images: (B, H, W, C) or (H, W, C), integers or floats in 0..255, RGB: a NumPy array, a tensor of the Keras
            backend, or a KerasTensor. For "channels_first", (B, C, H, W) or (C, H, W).
        mode: a name in MODES ("caffe", "torch", "tf", "cifar"), or a Normalization.
        data_format: "channels_last", "channels_first", or None for Keras's configured format.

    Returns:
        The same type and shape: float32, or the dtype of `images` if that is a float. float16 and bfloat16 are computed
        in float32 and rounded once.

    Raises:
        ValueError: for an unknown mode or data format, another rank, or another number of channels than the mode has.
    """
    normalization = _normalization(mode)
    if not (keras.ops.is_tensor(images) or isinstance(images, keras.KerasTensor)):
        images = np.asarray(images)
    ops = np if isinstance(images, np.ndarray) else keras.ops
    axis = _channel_axis(images.shape, normalization, mode, data_format)
    input_dtype = keras.backend.standardize_dtype(images.dtype)
    output_dtype = input_dtype if keras.backend.is_float_dtype(input_dtype) else "float32"
    dtype = "float64" if output_dtype == "float64" else "float32"
    shape = (-1, *[1] * (-1 - axis))
    mean, std = (np.asarray(values, dtype).reshape(shape) for values in (normalization.mean, normalization.std))
    pixels = _cast(images, dtype)
    if normalization.bgr:
        pixels = ops.flip(pixels, axis)
    scaled = ops.divide(pixels, np.asarray(normalization.divisor, dtype))
    return _cast(ops.divide(ops.subtract(scaled, mean), std), output_dtype)


def _cast(images, dtype):
    return images.astype(dtype) if isinstance(images, np.ndarray) else keras.ops.cast(images, dtype)


def _normalization(mode):
    return mode if isinstance(mode, Normalization) else MODES[_check_choice("mode", mode, tuple(MODES))]


def _check_choice(name, value, choices):
    if not isinstance(value, str) or value not in choices:
        raise unknown_name_error(name, value, choices)
    return value


def _channel_axis(shape, normalization, mode, data_format):
    """-1 or -3, after a check of the rank and the number of channels."""
    data_format = data_format or keras.config.image_data_format()
    _check_choice("data_format", data_format, ("channels_last", "channels_first"))
    if len(shape) not in (3, 4):
        raise ValueError(f"`images` should be (B, H, W, C) or (H, W, C). Received: images of shape {tuple(shape)}")
    axis = -1 if data_format == "channels_last" else -3
    if normalization.channels > 1 and shape[axis] not in (normalization.channels, None):
        raise ValueError(
            f"`images` should have {normalization.channels} channels on axis {axis} ({data_format}) for mode={mode!r}. "
            f"Received: images of shape {tuple(shape)}"
        )
    return axis


@dataclass(frozen=True)
class Preprocessing:
    """How images are resized, cropped and normalised for a model. Calling it does so.

    >>> import numpy as np
    >>> import keras_resnet
    >>> preprocessing = keras_resnet.Preprocessing("torch", size=8, resize=10)
    >>> preprocessing(np.zeros((30, 20, 3), "uint8")).shape
    (1, 8, 8, 3)

    Raises:
        ValueError: on construction, for an unknown mode or interpolation, or inconsistent values.
    """

    mode: str | Normalization
    """A name in MODES, or a Normalization."""
    size: int = 224
    """Height and width of the model input in pixels."""
    resize: int | None = 256
    """Length of the shorter side in pixels after resizing, before the centre crop; None: the whole image is resized to
    (size, size) without keeping its aspect ratio."""
    interpolation: str = "bilinear"
    """A name in INTERPOLATIONS; antialiased, as in Pillow."""
    channels: int = 3
    """3 for RGB, 1 for grey."""

    def __post_init__(self):
        _check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        for name in ("size", "resize"):
            value = getattr(self, name)
            if not (is_integer(value, 1) and value <= MAX_SIDE) and (name, value) != ("resize", None):
                raise value_error(name, value, f"from 1 to {MAX_SIDE} pixels")
        check_channels(self.channels)
        if _normalization(self.mode).channels not in (1, self.channels):
            expected = f"{_normalization(self.mode).channels} for mode={self.mode!r}"
            raise value_error("channels", self.channels, expected)

    @classmethod
    def from_timm(cls, pretrained_cfg: Mapping) -> "Preprocessing":
        """The test preprocessing in the `pretrained_cfg` of a timm model or of its config.json.

        Follows timm/data/config.py and transforms_imagenet_eval of timm/data/transforms_factory.py.

        Raises:
            ValueError: for missing values, and for inputs that are not square or crops from padded or squashed images.
        """
        given = {name: value for name, value in pretrained_cfg.items() if value is not None}
        if missing := {"input_size", "mean", "std"} - given.keys():
            raise ValueError(f"`pretrained_cfg` should have {sorted(missing)}. Received: {sorted(given)}")
        channels, height, width = given.get("test_input_size", given["input_size"])
        crop_fraction = given.get("test_crop_pct", given.get("crop_pct", 0.875))
        crop_mode = given.get("crop_mode", "center")
        whole = crop_mode == "squash" and crop_fraction == 1
        if height != width or not (whole or crop_mode == "center"):
            raise ValueError(
                "`pretrained_cfg` should describe a square centre crop, or the whole image. Received: "
                f"input_size={(channels, height, width)}, crop_mode={crop_mode!r}, crop_pct={crop_fraction}"
            )
        normalization = Normalization(mean=given["mean"], std=given["std"])
        return cls(
            mode="torch" if normalization == MODES["torch"] else normalization,
            size=height,
            resize=None if whole else math.floor(height / crop_fraction),
            interpolation=given.get("interpolation", "bicubic"),
            channels=channels,
        )

    @classmethod
    def from_config(cls, config: Mapping) -> "Preprocessing":
        """The inverse of `to_config`."""
        mode = config["mode"]
        return cls(**{**config, "mode": Normalization(**mode) if isinstance(mode, Mapping) else mode})

    def to_config(self) -> dict:
        """The fields as JSON values."""
        config = asdict(self)
        if isinstance(self.mode, Normalization):
            config["mode"] |= {"mean": list(self.mode.mean), "std": list(self.mode.std)}
        return config

    def for_channels(self, channels: int) -> "Preprocessing | None":
        """The preprocessing of a model whose first convolution was adapted to another number of input channels.

        Grey images are normalised by the mean of the three channels' values, as in timm. None for other numbers than 1
        and `self.channels`, because the meaning of such channels is unknown.
        """
        if channels == self.channels:
            return self
        if channels != 1:
            return None
        old = _normalization(self.mode)
        grey = Normalization(old.divisor, (sum(old.mean) / len(old.mean),), (sum(old.std) / len(old.std),))
        return replace(self, mode=self.mode if old.channels == 1 else grey, channels=1)

    def for_size(self, size: int) -> "Preprocessing":
        """The preprocessing of a model built for another input size, with the same crop share.

        >>> import keras_resnet
        >>> keras_resnet.Preprocessing("torch", size=224, resize=256).for_size(96)
        Preprocessing(mode='torch', size=96, resize=109, interpolation='bilinear', channels=3)

        Raises:
            ValueError: if `size` is not a number of pixels.
        """
        checked = replace(self, size=size)
        return checked if self.resize is None else replace(checked, resize=self.resize * size // self.size)

    def __call__(self, images) -> np.ndarray:
        """Preprocesses images, with the results of torchvision.transforms.Resize and CenterCrop.

        Args:
            images: a path, a PIL image, or a uint8 array (H, W) or (H, W, C); or a sequence of these, which may differ
                in size and type, or an array (B, H, W, C).

        Returns:
            (B, size, size, channels) float32, channels last.

        Raises:
            ValueError: for unreadable files, and arrays of another shape or dtype.
            OSError: for a file that cannot be opened.
        """
        return preprocess_input(self.pixels(images), self.mode, data_format="channels_last")

    def pixels(self, images) -> np.ndarray:
        """Resized and cropped images before normalisation: (B, size, size, channels) uint8."""
        images = [images] if is_single_image(images) else list(images)
        pixels = np.empty((len(images), self.size, self.size, self.channels), "uint8")
        for row, image in zip(pixels, images, strict=True):
            row[:] = np.asarray(self.resize_and_crop(as_pil_image(image, self.channels))).reshape(row.shape)
        return pixels

    def resize_and_crop(self, image):
        """A PIL image, resized and cropped."""
        if self.resize is None:
            return image.resize((self.size, self.size), self._resampling)
        sides = _resized(image.size, self.resize)
        if max(sides) > 16 * max(self.size, self.resize):
            return _square_of_strip(image, sides, self.size, self._resampling)
        return _center_crop(image.resize(sides, self._resampling), self.size)

    def resize_shorter_side(self, image, shorter):
        """A PIL image, resized so that its shorter side has `shorter` pixels."""
        return image.resize(_resized(image.size, shorter), self._resampling)

    @property
    def _resampling(self):
        from PIL import Image

        return Image.Resampling[self.interpolation.upper()]


def _resized(size, shorter):
    """(W, H) after resizing the shorter side: _compute_resized_output_size of torchvision/transforms."""
    width, height = size
    longer = int(shorter * max(size) / min(size))
    return (shorter, longer) if width <= height else (longer, shorter)


def _center_crop(image, size):
    """The centre `size` x `size`; smaller images are padded with black (torchvision's center_crop)."""
    left, top = (round((side - size) / 2) if side > size else -((size - side) // 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def _square_of_strip(image, sides, size, interpolation):
    """Resizes to `sides` and crops, but computes the crop alone: 1 x 100,000 pixels resized whole take gigabytes.

    The result may differ by what Pillow rounds and clips between its two passes, whose order depends on the sizes; so
    other images are not cropped like this.
    """
    parts = [_part(side, resized, size, min(image.size)) for side, resized in zip(image.size, sides, strict=True)]
    visible, part, box = zip(*parts, strict=True)
    cropped = image.crop(np.ravel(part, order="F").tolist())
    return _center_crop(cropped.resize(visible, interpolation, np.ravel(box, order="F").tolist()), size)


def _part(side, resized, size, shorter):
    """Along one axis: (length of the crop, interval of the image that it is computed from, crop in that interval)."""
    scale, start = side / resized, max(0, round((resized - size) / 2))
    stop = min(resized, start + size)
    margin = 4 * shorter  # wider than any interpolation kernel
    first, last = max(0, int(start * scale) - margin), min(side, int(stop * scale) + margin + 1)
    return stop - start, (first, last), (start * scale - first, min(side, stop * scale) - first)
