"""Image files: finding them, and reading them upright, opaque, in eight bits, as RGB or grey."""

import contextlib
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from keras_resnet.data.image_limits import MAX_FILE_BYTES, LimitedReader, check_exif, check_file, check_size
from keras_resnet.errors import check_path, value_error
from keras_resnet.files import check_regular_file

FORMATS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Format -> suffixes. Pillow reads more formats, some by running other programs (EPS); these are not accepted."""
SUFFIXES = sum(FORMATS.values(), ())
ORIENTATION_TAG = 0x0112
"""EXIF's tag of the orientation."""
ROWS = 256
"""Rows of an image that are converted at once, if that needs several copies."""
REVERSALS = (
    # orientation -> whether rows and columns are reversed (after the transposition of orientations from 5)
    *[(False, False), (False, False), (False, True), (True, True), (True, False)],  # 0 is not an orientation
    *[(False, False), (False, True), (True, True), (True, False)],
)
"""How the pixels of a stored image are made upright."""
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
        ValueError: if the source is not an image in one of FORMATS, is truncated or empty, or is beyond the limits of
            `image_limits.py`.
        OSError: if the file cannot be opened, or is a pipe, a socket or a device.
    """
    check_channels(channels)
    return with_pil_image(source, lambda image: _convert(image, channels))


def with_pil_image(source, function):
    """Result of a function of the PIL image in a source; before, only its header is read. Raises as `load_image`."""
    from PIL import Image, UnidentifiedImageError

    with _open(source) as file:
        try:
            check_file(file)
            with Image.open(file, formats=tuple(FORMATS)) as image:
                check_size(image)
                return function(image)
        except Exception as error:  # on damaged files Pillow's readers raise exceptions of almost any type
            name = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", source)
            received = f"{len(source)} bytes" if isinstance(source, bytes) else f"path={str(name)!r}"
            reason = str(error) or type(error).__name__
            if isinstance(error, UnidentifiedImageError):
                reason = "not an image" if file.seek(0, io.SEEK_END) else "the file is empty"
            raise UnreadableImageError(received, reason) from error


def orientation_of(image):
    """EXIF orientation of a PIL image, from 1 to 8; 1, upright, if it has none."""
    check_exif(image)
    orientation = image.getexif().get(ORIENTATION_TAG)
    return int(orientation) if orientation in range(1, 9) else 1


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (H, W) or (H, W, C) of an image with an EXIF orientation, from 1 to 8, as those of the upright one.

    >>> import numpy as np
    >>> from keras_resnet.data.image_files import turn_upright
    >>> turn_upright(np.array([[1, 2, 3]]), 6).tolist()
    [[1], [2], [3]]
    """
    turned = np.swapaxes(pixels, 0, 1) if orientation > 4 else pixels
    rows, columns = (slice(None, None, -1 if reverse else 1) for reverse in REVERSALS[orientation])
    return turned[rows, columns]


def exif_orientation(contents: bytes) -> int:
    """EXIF orientation of an image file, from 1 to 8; 1 if it has none, or cannot be read."""
    if contents[:2] == b"\xff\xd8" and b"Exif" not in contents and b"tiff:Orientation" not in contents:
        return 1  # a JPEG file without metadata; Pillow would take five times as long
    try:
        return with_pil_image(contents, orientation_of)
    except UnreadableImageError:
        return 1


def raise_if_unreadable(errors, skip_bad, where=""):
    """Raises ValueError for a list of messages, one per unreadable image in a folder `where`, unless `skip_bad`."""
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
    if isinstance(image, (str, bytes, os.PathLike)) or hasattr(image, "read"):  # NumPy's strings too
        return load_image(image, channels)
    pixels = np.asarray(image) if hasattr(image, "__array__") else np.array(image, object)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (3, 4))
    if pixels.dtype != np.uint8 or not is_image or not pixels.size:
        raise ValueError(
            "An image should be a path, a PIL image, or a uint8 array (H, W) or (H, W, C) with 1, 3 or 4 channels. "
            f"Received: an array of shape {pixels.shape}, {pixels.dtype}"
        )
    return _convert(Image.fromarray(pixels), channels)


def image_list(images):
    """A list of what `as_pil_image` takes, from one image, a sequence of images or an array (B, H, W, C)."""
    from PIL import Image

    if isinstance(images, (str, bytes, os.PathLike, io.IOBase, Image.Image)) or getattr(images, "ndim", 4) < 4:
        return [images]
    if not isinstance(images, Iterable):
        raise value_error("images", images, "an image (a path, a PIL image or a uint8 array), or several")
    return list(images)


def check_channels(channels):
    """Raises ValueError unless `channels` is 1 or 3."""
    if channels not in (1, 3):
        raise value_error("channels", channels, "3 for RGB or 1 for grey")


@contextlib.contextmanager
def _open(source):
    """Yields a LimitedReader of a path, of contents, or of an opened file, which stays open."""
    if isinstance(source, (str, os.PathLike)):
        _raise_if_url(source)
        check_regular_file(source)
        raw = io.FileIO(source)
    elif isinstance(source, bytes):
        raw = io.BytesIO(source)
    else:
        source.seek(0)
        raw = io.BytesIO(source.read(MAX_FILE_BYTES + 1))
    with LimitedReader(raw) as file:
        yield file


def _convert(image, channels):
    """Any PIL image -> upright, opaque, of mode "RGB" or "L"."""
    from PIL import ImageOps

    image.load()
    if 0 in image.size:
        raise ValueError(f"An image should have pixels. Received: an image of {image.width} x {image.height}")
    image = _to_eight_bits(ImageOps.exif_transpose(image) if orientation_of(image) > 1 else image)
    mode = "RGB" if channels == 3 else "L"
    if image.has_transparency_data:
        return _on_white(image, mode)
    return image if image.mode == mode else image.convert(mode)


def _on_white(image, mode):
    """A PIL image with transparent pixels as one of another mode, on white; in parts, which take little memory."""
    from PIL import Image

    opaque = Image.new(mode, image.size)
    for top in range(0, image.height, ROWS):
        part = image.crop((0, top, image.width, min(top + ROWS, image.height))).convert("RGBA")
        opaque.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert(mode), (0, top))
    return opaque


def _to_eight_bits(image):
    """Scales 16-bit grey to 8 bits, which Pillow would clip at 255. Raises ValueError for other value ranges."""
    from PIL import Image

    if image.mode[0] not in "IF":
        return image
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"Pixels should have 8 bits, or 16 in grey. Received: pixels of Pillow's mode {image.mode!r}")
    grey = np.empty(pixels.shape, "uint8")
    for top in range(0, len(grey), ROWS):
        grey[top : top + ROWS] = np.round(pixels[top : top + ROWS] / 257)
    return Image.fromarray(grey)


def find_images(paths):
    """Finds image files by their suffixes, without opening them.

    Args:
        paths: a file, a folder, or a sequence of them. Files are returned whatever their suffix; of a folder, those of
            `images_in_folder` that are files.

    Returns:
        List of Path in the order of `paths`; those of a folder and its subfolders are sorted as one list.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a folder without images, and for a URL.
    """
    several = isinstance(paths, Iterable) and not isinstance(paths, (str, bytes))
    found = []
    for path in paths if several else [paths]:
        check_path("paths", path)
        _raise_if_url(path)
        if not os.path.exists(path):
            raise FileNotFoundError(f"Expected an image or a folder of images. Received: path={str(path)!r}, not found")
        images = [file for file in images_in_folder(path) if os.path.isfile(file)] if os.path.isdir(path) else [path]
        if not images:
            raise ValueError(f"Expected a folder with images ({' '.join(SUFFIXES)}). Received: path={str(path)!r}")
        found += sorted(map(Path, images))
    return found


def images_in_folder(folder):
    """Paths (str) in a folder and its subfolders with a suffix of FORMATS, except for hidden files and folders.

    Links are followed; a folder that they lead to again is entered once. Subfolders follow the files of a folder.
    """
    visited = {str(parent) for parent in Path(folder).resolve().parents}
    images = []
    for root, folders, files in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(root))
        shown = (name for name in sorted(folders) if not name.startswith("."))
        folders[:] = [name for name in shown if os.path.realpath(os.path.join(root, name)) not in visited]
        names = (name for name in sorted(files) if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        images += [os.path.join(root, name) for name in names]
    return images


def _raise_if_url(path):
    """Also if Path has turned two slashes into one; the single letter of a drive is not a URL scheme."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)) and not os.path.exists(path):
        raise ValueError(
            f"Expected a path: URLs are not fetched, download the image first. Received: path={str(path)!r}"
        )
