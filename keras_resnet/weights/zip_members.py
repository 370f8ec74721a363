"""Members of .keras and PyTorch's zip files, measured before memory is taken for them."""

import io
import struct
import zipfile

from keras_resnet.weights.weights_file import Refusal

_TEXT_LIMIT = 2**26
"""Bytes of a member that is read whole: a model's config or the pickle of a state dict."""
_EXPANSION_LIMIT = 100
"""Bytes that one compressed byte may stand for; weights hardly compress."""


def member_size(archive, info):
    """Bytes of a zip member once unpacked; raises Refusal if it is encrypted or the archive cannot hold as many."""
    expansion = 1 if info.compress_type == zipfile.ZIP_STORED else _EXPANSION_LIMIT
    if info.flag_bits & 1:
        raise Refusal(f"`{info.filename}` in the zip file should not be encrypted.")
    end = archive.fp.seek(0, io.SEEK_END)
    if info.header_offset + info.compress_size > end or info.file_size > expansion * info.compress_size:
        raise Refusal(f"`{info.filename}` should have {info.file_size} bytes, but {info.compress_size} are stored.")
    return info.file_size


def read_member(archive, name):
    """Bytes of a short member; raises Refusal if it is long, or as `member_size` does."""
    size = member_size(archive, archive.getinfo(name))
    if size > _TEXT_LIMIT:
        raise Refusal(f"`{name}` in the zip file should have at most {_TEXT_LIMIT} bytes, not {size}.")
    return archive.read(name)


def stored_member(archive, info):
    """A member that is not compressed, as a file in which seeking back costs nothing, unlike in zipfile's."""
    size = member_size(archive, info)
    archive.fp.seek(info.header_offset + 26)
    begin = info.header_offset + 30 + sum(struct.unpack("<HH", archive.fp.read(4)))
    if begin + size > archive.fp.seek(0, io.SEEK_END):
        raise Refusal(f"`{info.filename}` in the zip file should have {size} bytes, but the file ends.")
    return _Window(archive.fp, begin, size)


class _Window(io.RawIOBase):
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
