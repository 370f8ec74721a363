"""Members of .keras files and of PyTorch's zip files, whose sizes are checked before memory is allocated."""

import io
import struct
import zipfile
from typing import BinaryIO

from keras_resnet.weights.weights_file import WeightsFileError

_MAX_TEXT_BYTES = 2**26
"""Largest member that is read whole: a model's config or the pickle of a state dict."""
_MAX_COMPRESSION_RATIO = 100
"""Largest ratio of uncompressed to compressed bytes; weights hardly compress."""


def member_size(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Uncompressed bytes of a zip member; raises WeightsFileError if it is encrypted or the archive is too small."""
    ratio = 1 if info.compress_type == zipfile.ZIP_STORED else _MAX_COMPRESSION_RATIO
    if info.flag_bits & 1:
        raise WeightsFileError(f"`{info.filename}` in the zip file should not be encrypted.")
    end = archive.fp.seek(0, io.SEEK_END)
    if info.header_offset + info.compress_size > end or info.file_size > ratio * info.compress_size:
        raise WeightsFileError(
            f"`{info.filename}` should have {info.file_size} bytes, but {info.compress_size} are stored."
        )
    return info.file_size


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Bytes of a short member; raises WeightsFileError if it is too long, or as `member_size` does."""
    size = member_size(archive, archive.getinfo(name))
    if size > _MAX_TEXT_BYTES:
        raise WeightsFileError(f"`{name}` in the zip file should have at most {_MAX_TEXT_BYTES} bytes, not {size}.")
    return archive.read(name)


def open_stored_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    """An uncompressed member as a seekable file; unlike zipfile's own, it seeks backwards without reading again."""
    size = member_size(archive, info)
    archive.fp.seek(info.header_offset + 26)
    start = info.header_offset + 30 + sum(struct.unpack("<HH", archive.fp.read(4)))
    if start + size > archive.fp.seek(0, io.SEEK_END):
        raise WeightsFileError(f"`{info.filename}` in the zip file should have {size} bytes, but the file ends.")
    return _FileSection(archive.fp, start, size)


class _FileSection(io.RawIOBase):
    """Bytes [start, start + size) of a seekable file, as a file."""

    def __init__(self, file, start, size):
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer):
        count = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._start + self._position)
        count = self._file.readinto(memoryview(buffer)[:count])
        self._position += count
        return count
