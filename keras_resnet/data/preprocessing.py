"""Preprocessing of images: resizing, cropping and normalisation; by Pillow, or as a layer on every Keras backend."""

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Required, TypedDict

import keras
import numpy as np
from keras.src.layers.preprocessing.data_layer import DataLayer  # documented for layers that also work in tf.data

from keras_resnet.data.image_files import as_pil_image, check_channels, image_list
from keras_resnet.errors import check_known, value_error
from keras_resnet.normalization import MODES, Normalization, get_normalization, normalize
from keras_resnet.schema import Range, check_fields, checked

MAX_SIDE = 8192
"""Largest side in pixels: a Preprocessing may come from an untrusted file."""
INTERPOLATIONS = {"nearest": "nearest", "bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "lanczos3"}
"""Name in Pillow -> name in Keras."""


class TimmPreprocessing(TypedDict, total=False):
    """Values of timm's `pretrained_cfg` from which a Preprocessing follows."""

    input_size: Required[tuple[int, ...]]
    """(channels, height, width)."""
    mean: Required[tuple[float, ...]]
    std: Required[tuple[float, ...]]
    test_input_size: tuple[int, ...]
    crop_pct: Annotated[float, Range(0.01, 100)]
    test_crop_pct: Annotated[float, Range(0.01, 100)]
    crop_mode: str
    interpolation: str


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
        check_fields(self)
        check_known("interpolation", self.interpolation, INTERPOLATIONS)
        for name in ("size", "resize"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_SIDE:
                raise value_error(name, value, f"from 1 to {MAX_SIDE} pixels")
        check_channels(self.channels)
        if get_normalization(self.mode).channels not in (1, self.channels):
            expected = f"{get_normalization(self.mode).channels} for mode={self.mode!r}"
            raise value_error("channels", self.channels, expected)

    @classmethod
    def from_timm(cls, pretrained_cfg: Mapping) -> "Preprocessing":
        """The test preprocessing in the `pretrained_cfg` of a timm model or of its config.json.

        Follows timm/data/config.py and transforms_imagenet_eval of timm/data/transforms_factory.py.

        Raises:
            ValueError: for missing values, and for inputs that are not square or crops from padded or squashed images.
        """
        given = {name: value for name, value in pretrained_cfg.items() if value is not None}
        given = checked(given, TimmPreprocessing, "pretrained_cfg")
        shape = given.get("test_input_size", given["input_size"])
        if len(shape) != 3:
            raise value_error("input_size", shape, "(channels, height, width)")
        channels, height, width = shape
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

    def to_timm(self) -> dict:
        """The inverse of `from_timm`: the values of this preprocessing in a timm model's `pretrained_cfg`.

        >>> import keras_resnet
        >>> keras_resnet.Preprocessing("tf", size=224, resize=256).to_timm()["crop_pct"]
        0.875

        Raises:
            ValueError: for a mode with the channels in the order blue, green, red, which timm does not have.
        """
        normalization, share = get_normalization(self.mode), self.size / (self.resize or self.size)
        if normalization.bgr:
            raise value_error("mode", self.mode, "one with the channels red, green, blue, as in timm")
        while self.resize and math.floor(self.size / share) < self.resize:  # timm's rounding of the resized side
            share = math.nextafter(share, 0)
        scale = normalization.divisor / 255
        return {
            "input_size": [self.channels, self.size, self.size],
            "interpolation": self.interpolation,
            "crop_pct": share,
            "crop_mode": "center" if self.resize else "squash",
            "mean": [mean * scale for mean in np.broadcast_to(normalization.mean, self.channels).tolist()],
            "std": [std * scale for std in np.broadcast_to(normalization.std, self.channels).tolist()],
        }

    @classmethod
    def from_config(cls, config: Mapping) -> "Preprocessing":
        """The inverse of `to_config`; raises ValueError for values that are not those of a Preprocessing."""
        return checked(config, cls, "preprocessing")

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
        old = get_normalization(self.mode)
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

    def __call__(self, images) -> Any:
        """Preprocesses images, with the results of torchvision.transforms.Resize and CenterCrop.

        Args:
            images: a path, a PIL image, or a uint8 array (H, W) or (H, W, C); or a sequence of these, which may differ
                in size and type, or an array (B, H, W, C). Symbolic tensors, in `tf.data` or of a Functional model, are
                preprocessed by `layer`.

        Returns:
            (B, size, size, channels) float32, channels last; from a symbolic tensor one of the same rank.

        Raises:
            ValueError: for unreadable files, and arrays of another shape or dtype.
            OSError: for a file that cannot be opened.
        """
        if _is_symbolic(images):
            return self.layer()(images)
        return normalize(self.pixels(images), self.mode, data_format="channels_last")

    def layer(self, **arguments: Any) -> "PreprocessingLayer":
        """The preprocessing as a Keras layer, for `tf.data` or inside a model, on every backend.

        It resizes with antialiasing, as Pillow does, but does not round to whole levels: in photographs, the pixels of
        both differ by half a level.

        >>> import numpy as np
        >>> import keras_resnet
        >>> layer = keras_resnet.Preprocessing("torch", size=8, resize=10).layer()
        >>> tuple(layer(np.zeros((2, 30, 20, 3), "uint8")).shape)
        (2, 8, 8, 3)

        Args:
            **arguments: `name` and other arguments of Keras layers.

        Returns:
            A PreprocessingLayer: images (B, H, W, channels) or (H, W, channels), uint8 or floats in 0..255 ->
            (B, size, size, channels) or (size, size, channels) float32.

        Raises:
            ValueError: if `resize` is smaller than `size`, so that images would be padded.
        """
        return PreprocessingLayer(self, **arguments)

    def pixels(self, images) -> np.ndarray:
        """Resized and cropped images before normalisation: (B, size, size, channels) uint8."""
        images = image_list(images)
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


@keras.saving.register_keras_serializable("keras_resnet")
class PreprocessingLayer(DataLayer):
    """`Preprocessing` as a Keras layer: see `Preprocessing.layer`."""

    def __init__(self, preprocessing: Preprocessing | Mapping, **arguments):
        super().__init__(**{"dtype": "float32"} | arguments)
        if isinstance(preprocessing, Mapping):
            preprocessing = Preprocessing.from_config(preprocessing)
        if (preprocessing.resize or preprocessing.size) < preprocessing.size:
            raise value_error("resize", preprocessing.resize, f"{preprocessing.size} or more, `size`, in a layer")
        self.preprocessing = preprocessing

    def get_config(self):
        return {**super().get_config(), "preprocessing": self.preprocessing.to_config()}

    def compute_output_shape(self, input_shape):
        side, channels = self.preprocessing.size, self.preprocessing.channels
        if len(input_shape) not in (3, 4) or input_shape[-1] not in (channels, None):
            expected = f"(B, H, W, {channels}) or (H, W, {channels})"
            raise ValueError(f"`images` should be {expected}. Received: images of shape {tuple(input_shape)}")
        return (*input_shape[:-3], side, side, channels)

    def call(self, images):
        *_, side, _, channels = shape = self.compute_output_shape(images.shape)
        pixels = self._resize_and_crop(self.backend.cast(images, "float32"))
        pixels = self.backend.numpy.reshape(pixels, (*[-1] * (len(shape) - 3), side, side, channels))
        return get_normalization(self.preprocessing.mode)(pixels, ops=self.backend.numpy)

    def _resize_and_crop(self, images):
        """(..., H, W, C) -> (..., size, size, C) in 0..255; without static sides, these are tensors."""
        size, resize = self.preprocessing.size, self.preprocessing.resize
        *_, height, width, _ = self.backend.shape(images)
        if resize is None:
            return self._resize(images, (height, width), (size, size))
        static = isinstance(height, int) and isinstance(width, int)
        shorter = (min if static else self.backend.numpy.minimum)(height, width)
        sides = [resize * side // shorter for side in (height, width)]
        top, left = (_half_to_even(side - size) for side in sides)
        images = self._resize(images, (height, width), sides)
        return images[..., top : top + size, left : left + size, :]

    def _resize(self, images, sides, new_sides):
        if all(isinstance(side, int) for side in sides) and list(sides) == list(new_sides):
            return images
        kernel = INTERPOLATIONS[self.preprocessing.interpolation]
        resized = self.backend.image.resize(images, new_sides, kernel, antialias=True, data_format="channels_last")
        return self.backend.numpy.clip(resized, 0, 255)


def _half_to_even(difference):
    """round(difference / 2), as Python rounds, of an integer or a tensor of at least 0."""
    half = difference // 2
    return half + difference % 2 * (half % 2)


def _is_symbolic(images):
    """Whether these are tensors of a graph, without values."""
    tensorflow = sys.modules.get("tensorflow")  # whatever Keras's backend; if it is not imported, it made no tensor
    return isinstance(images, keras.KerasTensor) or bool(tensorflow and tensorflow.is_symbolic_tensor(images))


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
