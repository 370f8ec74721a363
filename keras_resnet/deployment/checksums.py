"""The checksum that an exported network contains: it shows damage before a runtime reads the file."""

import hashlib
import mmap
import re
from collections.abc import Sequence
from pathlib import Path

EMPTY_CHECKSUM = "sha256:" + "0" * 64
"""What a format's `write` stores in the metadata, for `write_checksum` to fill in."""
CHECKSUM = re.compile(rb"sha256:([0-9a-f]{64})")
MAX_BYTES = 2**31
"""Size of the largest network: FlatBuffers and protocol buffers, and so LiteRT and ONNX, allow no larger files."""


def write_checksum(files: Sequence[Path]) -> None:
    """Writes the SHA-256 of the files of an export into the first of them, in place of EMPTY_CHECKSUM.

    Its own digits are left out of it, names are too: files that are renamed or copied together keep a valid checksum.
    It is found and computed in the same way in every format, without a reader of the format.
    """
    _, checksum, position = _find_and_compute(files)
    with files[0].open("r+b") as file:
        file.seek(position)
        file.write(checksum)


def has_checksum(files: Sequence[Path]) -> bool:
    """Whether the files of an export have a checksum, which is compared with their contents.

    Raises:
        ValueError: if it is another, or the files are larger than MAX_BYTES.
        OSError: if a file is missing or cannot be read.
    """
    stored, computed, _ = _find_and_compute(files)
    if stored not in (None, computed):
        raise ValueError("it was damaged or changed after the export, as its checksum shows")
    return stored is not None


def _find_and_compute(files):
    """(checksum in the first file or None, checksum of all files, position of the former), checksums as hex digits."""
    for file in files:
        if not file.is_file():  # a pipe would be waited for
            raise FileNotFoundError(f"{file.name} is missing or is not a file")
    if (size := sum(file.stat().st_size for file in files)) > MAX_BYTES:
        raise ValueError(f"at most {MAX_BYTES:,} bytes are read, not {size:,}")
    first, *others = files
    with first.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
        found = CHECKSUM.search(contents)
        start, end = found.span(1) if found else (0, 0)
        with memoryview(contents) as view:
            digest = hashlib.sha256(view[:start])
            digest.update(view[end:])
        stored = found and found[1]
    for other in others:
        with other.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return stored, digest.hexdigest().encode(), start
