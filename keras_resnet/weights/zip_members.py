"""Members of .keras files and of PyTorch's zip files, whose sizes are checked before memory is allocated."""

import io
import zipfile

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
    end = archive.fp.seek(0, io.SEEK_END) if archive.fp else 0
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
