"""Image files: finding them, and reading them upright, opaque, in eight bits, as RGB or grey."""

import contextlib
import io
import os
import re
from pathlib import Path

import numpy as np

FORMATS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Format -> suffixes. Pillow reads more formats, some by running other programs (EPS); these are not accepted."""

MAX_LISTED = 20
"""Number of unreadable files that a message lists."""


class UnreadableImageError(ValueError):
    """Content that is not an image, or a damaged one."""

    def __init__(self, received, reason):
        super().__init__(f"Expected an image ({', '.join(FORMATS)}). Received: {received} ({reason})")
        self.reason = reason


def load_image(source, channels=3):
    """Reads an image, upright and in eight bits.

    Applies the EXIF orientation, makes transparent pixels white, takes the first frame of an animation, and scales
    16-bit grey to 8 bits.

    Args:
        source: path, bytes, or a file opened for reading bytes.
        channels: 3 for RGB, 1 for grey.

    Returns:
        A PIL image of mode "RGB" or "L".

    Raises:
        ValueError: if the source is not an image in one of FORMATS, is truncated or empty, or has more pixels than
            PIL.Image.MAX_IMAGE_PIXELS.
        OSError: if the file does not exist or cannot be opened.
    """
    check_channels(channels)
    return with_pil_image(source, lambda image: _convert(image, channels))


def check_image(source):
    """Raises the errors of `load_image` that the header of a file shows, without decoding the image."""
    with_pil_image(source, lambda image: None)


def with_pil_image(source, function):
    """The result of a function of the PIL image in a source. Raises as `load_image`."""
    from PIL import Image

    with _open(source) as file:
        try:
            with Image.open(file, formats=tuple(FORMATS)) as image:
                _check_num_pixels(image)
                return function(image)
        except Exception as error:  # on damaged files Pillow's readers raise exceptions of almost any type
            received = f"{len(source)} bytes" if isinstance(source, bytes) else f"path={_name(source)!r}"
            raise UnreadableImageError(received, _reason(error, file)) from error


def raise_if_unreadable(errors, skip_bad, where=""):
    """Raises ValueError for unreadable images, unless they are to be skipped.

    Args:
        errors: list of messages, one per image.
        skip_bad: whether unreadable images are skipped.
        where: the folder of the images.
    """
    if errors and not skip_bad:
        raise ValueError(
            f"Expected readable images ({', '.join(FORMATS)}); pass `skip_bad=True` (--skip-bad) to skip the others. "
            f"Received: {len(errors)} unreadable{where and f' in {where}'}:\n  {format_errors(errors)}"
        )


def format_errors(errors):
    """One line for each of the first MAX_LISTED messages, and the number of the others."""
    more = [f"and {len(errors) - MAX_LISTED} more"] if len(errors) > MAX_LISTED else []
    return "\n  ".join([*errors[:MAX_LISTED], *more])


def as_pil_image(image, channels):
    """Converts a path, PIL image or uint8 array to a PIL image of mode "RGB" or "L"."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return _convert(image, channels)
    if not hasattr(image, "__array__"):
        return load_image(image, channels)
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (3, 4))
    if pixels.dtype != np.uint8 or not is_image or not pixels.size:
        raise ValueError(
            "An image should be a path, a PIL image, or a uint8 array (H, W) or (H, W, C) with 1, 3 or 4 channels. "
            f"Received: an array of shape {np.shape(image)}, {pixels.dtype}"
        )
    return _convert(Image.fromarray(pixels), channels)


def is_single_image(images):
    """Whether `images` is one image for `as_pil_image`, not a sequence or an array (B, H, W, C)."""
    from PIL import Image

    return isinstance(images, (str, bytes, os.PathLike, io.IOBase, Image.Image)) or getattr(images, "ndim", 4) < 4


def check_channels(channels):
    """Raises ValueError unless `channels` is 1 or 3."""
    if channels not in (1, 3):
        raise ValueError(f"`channels` should be 3 for RGB or 1 for grey. Received: channels={channels!r}")


def _check_num_pixels(image):
    """Raises for images above Pillow's limit, at which Pillow only warns; it raises at twice the limit."""
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(
            f"{image.width} x {image.height} is more than the {Image.MAX_IMAGE_PIXELS} pixels of "
            "PIL.Image.MAX_IMAGE_PIXELS"
        )


def _open(source):
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        _raise_if_url(source)
        return open(source, "rb")
    return contextlib.nullcontext(source)


def _name(source):
    return str(source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", source))


def _reason(error, file):
    from PIL import UnidentifiedImageError

    if not isinstance(error, UnidentifiedImageError):
        return str(error) or type(error).__name__
    return "not an image" if file.seek(0, io.SEEK_END) else "the file is empty"


def _convert(image, channels):
    """Any PIL image -> upright, opaque, of mode "RGB" or "L"."""
    from PIL import Image, ImageOps

    image.load()
    if 0 in image.size:
        raise ValueError(f"An image should have pixels. Received: an image of {image.width} x {image.height}")
    image = _to_eight_bits(ImageOps.exif_transpose(image))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB" if channels == 3 else "L")


def _to_eight_bits(image):
    """Scales 16-bit grey to 8 bits, which Pillow would clip at 255. Raises ValueError for other value ranges."""
    from PIL import Image

    if image.mode[0] not in "IF":
        return image
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"Pixels should have 8 bits, or 16 in grey. Received: pixels of Pillow's mode {image.mode!r}")
    return Image.fromarray(np.round(pixels / 257).astype("uint8"))


def find_images(paths):
    """Finds image files by their suffixes, without opening them.

    Args:
        paths: a file, a folder, or a sequence of them. Files are returned whatever their suffix; folders are searched
            recursively for the suffixes of FORMATS, except for hidden files and folders.

    Returns:
        List of Path in the order of `paths`, sorted within each folder.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a folder without images, and for a URL.
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    return [image for path in paths for image in _images_at(path)]


def has_image_suffix(name):
    """Whether a file name, which is not that of a hidden file, ends in a suffix of FORMATS."""
    return not name.startswith(".") and name.lower().endswith(tuple(sum(FORMATS.values(), ())))


def _images_at(path):
    _raise_if_url(path)
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"Expected an image or a folder of images. Received: path={str(path)!r}, not found")
    if not folder.is_dir():
        return [folder]
    files = (file for file in folder.rglob("*") if has_image_suffix(file.name))
    visible = (file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts))
    found = sorted(file for file in visible if file.is_file())
    if not found:
        suffixes = " ".join(sum(FORMATS.values(), ()))
        raise ValueError(f"Expected a folder with images ({suffixes}). Received: path={str(path)!r}")
    return found


def _raise_if_url(path):
    """Also if Path has turned two slashes into one; the single letter of a drive is not a URL scheme."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)) and not os.path.exists(path):
        raise ValueError(
            f"Expected a path: URLs are not fetched, download the image first. Received: path={str(path)!r}"
        )
