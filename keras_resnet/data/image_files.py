"""Image files: found, and read as networks take them: upright, opaque, in eight bits, RGB or grey."""

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
"""Format -> suffixes. Pillow reads more, some by running other programs (EPS), so it is asked for these alone."""

MAX_LISTED = 20
"""UnreadableImageError files that a message names; more are counted."""


def load_image(source, channels=3):
    """Reads an image, upright, in eight bits.

    The orientation in EXIF is applied, what is transparent becomes white, of an animation the first frame is taken,
    and 16-bit grey is scaled down.

    Args:
        source: path, bytes, or a file open for reading bytes.
        channels: 3 for RGB, 1 for grey.

    Returns:
        A PIL image of mode "RGB" or "L".

    Raises:
        ValueError: for what is no image of FORMATS, is truncated or empty, or larger than PIL.Image.MAX_IMAGE_PIXELS.
        OSError: for a file that is not there or may not be read.
    """
    check_channels(channels)
    return _with_image(source, lambda image: _converted(image, channels))


def check_image(source):
    """Raises what `load_image` raises, as far as the head of a file tells: nothing is decoded."""
    _with_image(source, lambda image: None)


def _with_image(source, use):
    """`use` of the PIL image that a source holds."""
    from PIL import Image

    with _opened(source) as file:
        try:
            with Image.open(file, formats=tuple(FORMATS)) as image:
                _refuse_bomb(image)
                return use(image)
        except Exception as error:  # on damaged files Pillow's readers raise nearly anything
            received = f"{len(source)} bytes" if isinstance(source, bytes) else f"path={_name(source)!r}"
            raise UnreadableImageError(received, _reason(error, file)) from error


class UnreadableImageError(ValueError):
    """What was to be read is no image, or a damaged one."""

    def __init__(self, received, reason):
        super().__init__(f"Expected an image ({', '.join(FORMATS)}). Received: {received} ({reason})")
        self.reason = reason


def raise_if_unreadable(faults, skip_bad, where=""):
    """Raises ValueError for images that cannot be read, unless they are to be left out.

    Args:
        faults: list of what is wrong with each, in words.
        skip_bad: whether they are to be left out.
        where: the folder that was looked through.
    """
    if faults and not skip_bad:
        raise ValueError(
            f"Expected images that can be read ({', '.join(FORMATS)}), or `skip_bad` (--skip-bad) to leave out the "
            f"others. Received: {len(faults)} unreadable{where and f' in {where}'}:\n  {format_errors(faults)}"
        )


def format_errors(faults):
    """Lines for the first MAX_LISTED of them, and how many more there are."""
    more = [f"and {len(faults) - MAX_LISTED} more"] if len(faults) > MAX_LISTED else []
    return "\n  ".join([*faults[:MAX_LISTED], *more])


def as_pil_image(image, channels):
    """A path, PIL image or uint8 array -> PIL image of mode "RGB" or "L"."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return _converted(image, channels)
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
    return _converted(Image.fromarray(pixels), channels)


def is_single_image(images):
    """Whether it is what `as_pil_image` takes, and not a sequence or an array (B, H, W, C) of them."""
    from PIL import Image

    return isinstance(images, (str, bytes, os.PathLike, io.IOBase, Image.Image)) or getattr(images, "ndim", 4) < 4


def check_channels(channels):
    """Raises ValueError unless an image can be read with so many channels."""
    if channels not in (1, 3):
        raise ValueError(f"`channels` should be 3 for RGB or 1 for grey. Received: channels={channels!r}")


def _opened(source):
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        _refuse_url(source)
        return open(source, "rb")
    return contextlib.nullcontext(source)


def _name(source):
    return str(source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", source))


def _reason(error, file):
    from PIL import UnidentifiedImageError

    if not isinstance(error, UnidentifiedImageError):
        return str(error) or type(error).__name__
    return "it holds something else" if file.seek(0, io.SEEK_END) else "it is empty"


def _refuse_bomb(image):
    """Pillow refuses what is twice as large as its limit, and only warns below that."""
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(
            f"{image.width} x {image.height} is more than the {Image.MAX_IMAGE_PIXELS} pixels of "
            "PIL.Image.MAX_IMAGE_PIXELS"
        )


def _converted(image, channels):
    """Any PIL image -> upright, opaque, mode "RGB" or "L"."""
    from PIL import Image, ImageOps

    image.load()
    if 0 in image.size:
        raise ValueError(f"An image should have pixels. Received: one of {image.width} x {image.height}")
    image = _eight_bits(ImageOps.exif_transpose(image))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB" if channels == 3 else "L")


def _eight_bits(image):
    """16-bit grey scaled to 8 bits (Pillow would clip it at 255); pixels of no known range are refused."""
    from PIL import Image

    if image.mode[0] not in "IF":
        return image
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"Pixels should have 8 bits, or 16 in grey. Received: pixels of Pillow's mode {image.mode!r}")
    return Image.fromarray(np.round(pixels / 257).astype("uint8"))


def find_images(paths):
    """Image files, by their names; they are not opened.

    Args:
        paths: a file, a folder, or a sequence of them. Files are taken as they are; folders are searched with all
            their folders for the suffixes of FORMATS, hidden files and folders left out.

    Returns:
        List of Path in the order of `paths`, those of a folder sorted.

    Raises:
        FileNotFoundError: for a path where nothing is.
        ValueError: for a folder without images, and for a URL.
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    return [image for path in paths for image in _images_at(path)]


def _images_at(path):
    _refuse_url(path)
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"Expected an image or a folder of images; there is none. Received: path={str(path)!r}")
    if not folder.is_dir():
        return [folder]
    files = (file for file in folder.rglob("*") if _looks_like_a_image(file.relative_to(folder)))
    found = sorted(file for file in files if file.is_file())
    if not found:
        suffixes = " ".join(suffix for row in FORMATS.values() for suffix in row)
        raise ValueError(f"Expected a folder with images ({suffixes}). Received: path={str(path)!r}")
    return found


def _looks_like_a_image(path):
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and any(path.suffix.lower() in suffixes for suffixes in FORMATS.values())


def _refuse_url(path):
    """Also after Path has made one slash of two; a drive's single letter is no scheme."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)) and not os.path.exists(path):
        raise ValueError(
            f"Expected a path: URLs are not fetched, download the image first. Received: path={str(path)!r}"
        )
