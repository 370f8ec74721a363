"""Limits on image files, checked before they are decoded: a file of 40 bytes may claim gigabytes, or take minutes."""

import io
import re
import struct
from contextlib import suppress

MAX_SIDE = 65_535
"""Largest side of an image in pixels, that of JPEG and GIF."""
MAX_ASPECT = 2_000
"""Largest ratio of an image's sides."""
MAX_PIXELS = {
    # Format -> pixels that Pillow decodes and converts in less than 500 MB
    "BMP": 50_000_000,
    "GIF": 50_000_000,
    "JPEG": 61_000_000,
    "JPEG, progressive": 33_000_000,  # its coefficients take six or eight bytes a pixel more
    "PNG": 50_000_000,
    "TIFF": 50_000_000,
    "WEBP": 25_000_000,  # its reader keeps four copies
}
MAX_FILE_BYTES = 2**28
"""Largest size of an image file."""
MAX_READS = 300_000
"""Most calls with which Pillow reads a file: of a header it keeps every chunk, segment and comment."""
MAX_EXTRA_BYTES = 2**26
"""Bytes of a file that may be read more than once: entries of a TIFF file may share them, and each gets a copy."""
MAX_EXIF_BYTES = 2**17
"""Largest size of EXIF, whose entries may share bytes as well."""
MAX_SCANS = 40
"""Most scans of a JPEG file: each goes through the whole image, but may have two bytes."""
MAX_TEXTS = 64
"""Most compressed texts of a PNG file: TensorFlow expands each to 8 MB."""
MAX_STRIPS = 2**17
"""Most strips or tiles of a TIFF file."""
MAX_BLOCKS = 2_000_000
"""Most blocks of a GIF file."""
MAX_FRAME_PIXELS = 100_000_000
"""Most pixels in all frames of a GIF file, of which TensorFlow decodes every one."""
FRAME_PIXELS = 1000
"""Pixels that take as much memory as a frame without pixels."""


class LimitedReader(io.BufferedReader):
    """A raw stream of bytes that raises ValueError when it is read in too many parts, or again and again."""

    def __init__(self, raw):
        super().__init__(raw)
        self.parts, self.bytes = MAX_READS, MAX_EXTRA_BYTES + self.seek(0, io.SEEK_END)
        self.seek(0)

    def read(self, size=-1, /):
        contents = super().read(size)
        self.parts, self.bytes = self.parts - 1, self.bytes - len(contents)
        if self.parts < 0 or self.bytes < 0:
            raise ValueError("its header has too many parts")
        return contents


def check_file(file: io.BufferedIOBase) -> None:
    """Raises ValueError for an image file beyond the limits that do not depend on its size in pixels; rewinds it."""
    _check_limit(file.seek(0, io.SEEK_END), MAX_FILE_BYTES, "bytes")
    file.seek(0)
    head = file.read(4)
    for start, check in _CHECKS.items():
        if head.startswith(start):
            file.seek(0)
            check(file)
    file.seek(0)


def check_size(image) -> None:
    """Raises ValueError for a PIL image that is too large, before its pixels are read."""
    kind = "JPEG" if image.format == "MPO" else image.format  # Pillow's name of a JPEG that previews follow
    is_progressive = kind == "JPEG" and image.info.get("progressive")
    _check_sides(image.size, MAX_PIXELS["JPEG, progressive" if is_progressive else kind])


def _check_sides(size, max_pixels):
    shorter, longer = sorted(size)
    if longer > MAX_SIDE or longer > MAX_ASPECT * shorter or longer * shorter > max_pixels:
        raise ValueError(
            f"{size[0]} x {size[1]} is more than {max_pixels:,} pixels, {MAX_SIDE:,} a side, or a ratio of "
            f"{MAX_ASPECT:,}"
        )


def check_exif(image) -> None:
    """Raises ValueError for too much EXIF in a PIL image, before it is parsed."""
    _check_limit(len(image.info.get("exif", b"")), MAX_EXIF_BYTES, "bytes of EXIF")


def check_gif_frames(contents: bytes) -> None:
    """Raises ValueError for the contents of a GIF file that has too many pixels in its frames, or too many blocks."""

    def colours(flags):
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    with suppress(IndexError, struct.error):  # an incomplete file
        blocks, pixels, position = 0, 0, 13 + colours(contents[10])
        while contents[position] in b"!,":  # an extension or a frame
            if contents[position] == ord(","):
                width, height = struct.unpack_from("<HH", contents, position + 5)
                pixels += width * height + FRAME_PIXELS
                position += 9 + colours(contents[position + 9])
            position += 2
            while length := contents[position]:
                position, blocks = position + length + 1, blocks + 1
                _check_limit(blocks, MAX_BLOCKS, "blocks")
            position += 1
            _check_limit(pixels, MAX_FRAME_PIXELS, "pixels in its frames")


def _check_limit(count, limit, what):
    if count > limit:
        raise ValueError(f"{count:,} {what}; the limit is {limit:,}")


def _check_jpeg(file):
    contents = file.read()
    _check_limit(contents.count(b"\xff\xda"), MAX_SCANS, "scans")
    exif = re.finditer(rb"\xff\xe1(..)Exif\0\0", contents, re.DOTALL)
    _check_limit(sum(int.from_bytes(segment[1]) for segment in exif), MAX_EXIF_BYTES, "bytes of EXIF")


def _check_png(file):
    contents = file.read()
    _check_limit(contents.count(b"zTXt") + contents.count(b"iTXt"), MAX_TEXTS, "texts")


def _check_tiff(file):
    from PIL.TiffImagePlugin import ImageFileDirectory_v1

    header = file.read(8)
    directory = ImageFileDirectory_v1(header + file.read(8) if header[2] == 43 else header)  # 43: BigTIFF
    file.seek(directory.next)
    directory.load(file)
    strips = max(len(directory.tagdata.get(tag, b"")) for tag in (273, 324))  # offsets of strips, of tiles
    _check_limit(strips, 4 * MAX_STRIPS, "bytes of offsets")


def _check_webp(file):
    """Pillow's reader allocates memory for all pixels before it says how many there are."""
    head = file.read(30)
    bits = int.from_bytes(head[21:25], "little")
    sides = {
        b"VP8X": [1 + int.from_bytes(head[start : start + 3], "little") for start in (24, 27)],
        b"VP8L": [1 + (bits >> shift) % 2**14 for shift in (0, 14)],
        b"VP8 ": [int.from_bytes(head[start : start + 2], "little") % 2**14 for start in (26, 28)],
    }
    if head[12:16] in sides:
        _check_sides(sides[head[12:16]], MAX_PIXELS["WEBP"])


_CHECKS = {
    b"\xff\xd8": _check_jpeg,
    b"\x89PNG": _check_png,
    b"II": _check_tiff,
    b"MM": _check_tiff,
    b"RIFF": _check_webp,
}
"""First bytes of a file -> function that checks it."""
