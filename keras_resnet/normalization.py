"""Normalisation of pixels, on every Keras backend."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import keras
import numpy as np

from keras_resnet.errors import check_known
from keras_resnet.schema import check_fields

CONTRAST = 8
"""Levels of 255 between which no batch of photographs lies."""


@dataclass(frozen=True)
class Normalization:
    """RGB pixels in 0..255 -> (pixels / divisor - mean) / std, with one value per channel or one for all.

    The constructor raises ValueError for values that are not finite numbers, inconsistent lengths and divisions by
    zero.
    """

    divisor: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False
    """Whether channels are first reordered to blue, green, red, which is then the order of `mean` and `std`."""

    def __post_init__(self):
        check_fields(self)
        if not self.mean or not self.std or {len(self.mean), len(self.std)} - {1, self.channels}:
            raise ValueError(f"`mean` and `std` should have one value, or one per channel. Received: {self}")
        if not self.divisor > 0 or not min(self.std) > 0:
            raise ValueError(f"`divisor` and every `std` should be positive. Received: {self}")

    @property
    def channels(self) -> int:
        """Required number of channels; 1 if any number is possible."""
        return max(len(self.mean), len(self.std), 3 if self.bgr else 1)

    @property
    def value_range(self) -> tuple[float, float]:
        """(smallest, largest) normalised value of pixels in 0..255."""
        extremes = self(np.broadcast_to(np.array([[0.0], [255.0]]), (2, self.channels)), ops=np, dtype="float64")
        return float(extremes.min()), float(extremes.max())

    def cannot_be(self, values: np.ndarray) -> bool:
        """Whether images certainly were not normalised by this.

        They lie outside the range by three times its width; or they have contrast, but not of CONTRAST levels of 255.
        """
        (low, high), least, most = self.value_range, values.min(), values.max()
        width = high - low
        return bool(max(low - least, most - high) > 3 * width or 0.5 < most - least < CONTRAST / 255 * width)

    def __call__(self, pixels: Any, axis: int = -1, ops: ModuleType = keras.ops, dtype: str = "float32") -> Any:
        """Normalised pixels (..., C), with the channels on `axis`, computed by the `flip`, `subtract` ... of `ops`.

        Pixels are floats of `dtype`.
        """
        shape = (-1, *[1] * (-1 - axis))
        mean, std = (np.asarray(values, dtype).reshape(shape) for values in (self.mean, self.std))
        if self.bgr:
            pixels = ops.flip(pixels, axis)
        scaled = ops.divide(pixels, np.asarray(self.divisor, dtype))
        return ops.divide(ops.subtract(scaled, mean), std)


MODES = {
    # keras/src/applications/imagenet_utils.py; "caffe" is for the released Caffe weights (the paper itself subtracts a
    # mean image)
    "caffe": Normalization(divisor=1.0, mean=(103.939, 116.779, 123.68), bgr=True),
    "torch": Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "tf": Normalization(divisor=127.5, mean=(1.0,)),
    # mean and standard deviation of all pixels of CIFAR-10's 50,000 training images
    "cifar": Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    # unchanged, for models that normalise them inside
    "pixels": Normalization(divisor=1.0),
}


def get_normalization(mode: str | Normalization) -> Normalization:
    """The Normalization of a name in MODES, or the given one.

    Raises:
        ValueError: for an unknown name, with the nearest known ones.
    """
    if isinstance(mode, Normalization):
        return mode
    check_known("mode", mode, tuple(MODES))
    return MODES[mode]


def normalize(images: Any, mode: str | Normalization, data_format: str | None = None) -> Any:
    """`preprocess_input` by a name in MODES or a Normalization."""
    normalization = get_normalization(mode)
    if not (keras.ops.is_tensor(images) or isinstance(images, keras.KerasTensor)):
        images = np.asarray(images)
    axis = _channel_axis(images.shape, normalization, mode, data_format)
    input_dtype = keras.backend.standardize_dtype(images.dtype)
    output_dtype = input_dtype if keras.backend.is_float_dtype(input_dtype) else "float32"
    dtype = "float64" if output_dtype == "float64" else "float32"
    ops = np if isinstance(images, np.ndarray) else keras.ops
    return _cast(normalization(_cast(images, dtype), axis, ops, dtype), output_dtype)


def _cast(images, dtype):
    return images.astype(dtype) if isinstance(images, np.ndarray) else keras.ops.cast(images, dtype)


def _channel_axis(shape, normalization, mode, data_format):
    """-1 or -3, after a check of the rank and the number of channels."""
    data_format = data_format or keras.config.image_data_format()
    check_known("data_format", data_format, ("channels_last", "channels_first"))
    if len(shape) not in (3, 4):
        raise ValueError(f"`images` should be (B, H, W, C) or (H, W, C). Received: images of shape {tuple(shape)}")
    axis = -1 if data_format == "channels_last" else -3
    if normalization.channels > 1 and shape[axis] not in (normalization.channels, None):
        raise ValueError(
            f"`images` should have {normalization.channels} channels on axis {axis} ({data_format}) for mode={mode!r}. "
            f"Received: images of shape {tuple(shape)}"
        )
    return axis
