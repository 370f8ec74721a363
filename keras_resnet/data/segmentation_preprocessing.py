"""Preprocessing of images for segmenters: resized without cropping, normalised."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from keras_resnet.data.image_files import as_pil_image, image_list
from keras_resnet.data.preprocessing import MAX_SIDE
from keras_resnet.errors import value_error
from keras_resnet.normalization import Normalization, get_normalization, normalize
from keras_resnet.schema import check_fields, checked


@dataclass(frozen=True)
class SegmentationPreprocessing:
    """How images are resized and normalised for a segmenter. Calling it does so.

    >>> import numpy as np
    >>> from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
    >>> SegmentationPreprocessing(shorter_side=64)(np.zeros((50, 100, 3), "uint8")).shape
    (1, 64, 128, 3)

    Source: torchvision/transforms/_presets.py, SemanticSegmentation.

    Raises:
        ValueError: on construction, for an unknown mode or a side that is not pixels.
    """

    mode: str | Normalization = "torch"
    """A name in MODES, or a Normalization."""
    shorter_side: int | None = None
    """Length of the shorter side in pixels after resizing; None: images keep their size."""

    def __post_init__(self):
        check_fields(self)
        if self.shorter_side is not None and not 1 <= self.shorter_side <= MAX_SIDE:
            raise value_error("shorter_side", self.shorter_side, f"from 1 to {MAX_SIDE} pixels, or None")
        if get_normalization(self.mode).channels not in (1, 3):
            raise value_error("mode", self.mode, "a normalisation of three channels")

    @classmethod
    def from_config(cls, config: Mapping) -> "SegmentationPreprocessing":
        """The inverse of `to_config`; raises ValueError for other values."""
        return checked(config, cls, "preprocessing")

    def to_config(self) -> dict:
        """The fields as JSON values."""
        config = asdict(self)
        if isinstance(self.mode, Normalization):
            config["mode"] |= {"mean": list(self.mode.mean), "std": list(self.mode.std)}
        return config

    def for_size(self, shorter_side: int | None) -> "SegmentationPreprocessing":
        """The preprocessing for another shorter side; None: unchanged."""
        return self if shorter_side is None else replace(self, shorter_side=shorter_side)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing, the longer side rounded down, as torchvision does.

        >>> from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
        >>> SegmentationPreprocessing(shorter_side=520).resized(480, 641)
        (520, 694)

        Raises:
            ValueError: for an image whose longer side would exceed MAX_SIDE.
        """
        if self.shorter_side is None:
            return height, width
        shorter, longer = sorted((height, width))
        resized = self.shorter_side, int(self.shorter_side * longer / shorter)
        if resized[1] > MAX_SIDE:
            expected = f"at most {MAX_SIDE} pixels along the longer side when the shorter one has {self.shorter_side}"
            raise value_error("image", f"{width} x {height}", expected)
        return resized if height <= width else resized[::-1]

    def pixels(self, image: Any) -> np.ndarray:
        """(h, w, 3) uint8: a resized image, not normalised; bilinear with antialiasing, as Pillow does.

        Args:
            image: a path, a PIL image or a uint8 array (H, W, 3).

        Raises:
            ValueError: for unreadable files, and arrays of another shape or dtype.
            OSError: for a file that cannot be opened.
        """
        from PIL import Image

        image = as_pil_image(image, 3)
        height, width = self.resized(image.height, image.width)
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))

    def __call__(self, images: Any) -> np.ndarray:
        """Preprocesses a path, a PIL image or a uint8 array (H, W, 3), or a sequence of these.

        Returns:
            (B, h, w, 3) float32, normalised.

        Raises:
            ValueError: as `pixels`, and for images of different sizes, which `keras_resnet.segment` takes.
        """
        pixels = [self.pixels(image) for image in image_list(images)]
        if len(sizes := {image.shape for image in pixels}) > 1:
            expected = "of one size after resizing"
            hint = "`keras_resnet.segment` takes images of any sizes."
            raise value_error("images", sorted(shape[:2] for shape in sizes)[:5], expected, hint)
        return normalize(np.stack(pixels), self.mode, data_format="channels_last")
