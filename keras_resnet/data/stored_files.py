"""Encoded images inside larger files, such as tar and Parquet files."""

from collections.abc import Callable
from typing import Any

import numpy as np


class StoredFiles:
    """An array (N,) of the contents of N files, each of which is read when it is needed.

    Indexing is that of NumPy: an integer gives the contents, anything else StoredFiles.
    """

    dtype, ndim = np.dtype(object), 1

    def __init__(self, read: Callable[[int], bytes], name: Callable[[int], str], indices: np.ndarray):
        """`read` and `name` return the contents and the name at an index, in any order and from several threads."""
        self.read, self.name, self.indices = read, name, indices

    @property
    def shape(self) -> tuple[int]:
        return self.indices.shape

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        selected = self.indices[index]
        return StoredFiles(self.read, self.name, selected) if np.ndim(selected) else self.read(int(selected))

    @property
    def names(self) -> list[str]:
        """The names of all files."""
        return [self.name(int(index)) for index in self.indices]

    def tolist(self) -> list[bytes]:
        """The contents of all files."""
        return [self.read(int(index)) for index in self.indices]
