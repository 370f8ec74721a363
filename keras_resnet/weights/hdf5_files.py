"""Keras's two formats that are HDF5 files: the legacy .h5 and .weights.h5, which .keras files contain as well."""

import io
import math
import mmap
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from keras_resnet.schema import parse_json
from keras_resnet.weights.hdf5_datasets import OBJECT_STEPS, stored_array
from keras_resnet.weights.hdf5_structures import check_structures
from keras_resnet.weights.weights_file import (
    METADATA_KEY,
    Budget,
    StoredArray,
    WeightsFile,
    WeightsFileError,
)

_MAX_DEPTH = 64
"""Deepest nesting of groups; nested models take two levels each."""
_MAX_ATTRIBUTE_BYTES = 64512
"""Largest attribute that is written, as in Keras's legacy_h5_format.py."""

_NOT_A_LAYER = re.compile(r"(^optimizer|(^|/)seed_generator(_\d+)?)(/|$)")
_WEIGHT_NAMES = {
    "batch_normalization": (("gamma", "beta", "moving_mean", "moving_variance"), ("moving_mean", "moving_variance")),
    "conv1d": (("kernel", "bias"), ("kernel",)),
    "conv2d": (("kernel", "bias"), ("kernel",)),
    "conv2d_transpose": (("kernel", "bias"), ("kernel",)),
    "dense": (("kernel", "bias"), ("kernel",)),
    "depthwise_conv2d": (("kernel", "bias"), ("kernel",)),
    "group_normalization": (("gamma", "beta"),),
    "separable_conv2d": (("depthwise_kernel", "pointwise_kernel", "bias"), ("depthwise_kernel", "pointwise_kernel")),
}
"""Layer class as `.weights.h5` spells it -> the possible names of its weights, in the order of their numbers."""


def open_hdf5(path: Path, file: BinaryIO, stack: ExitStack, budget: Budget) -> WeightsFile:
    """WeightsFile of an .h5 or .weights.h5; `file` is `path`, open. It stays open until `stack` closes."""
    content = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return _open(path, path, content, stack, budget)


def open_hdf5_bytes(path: Path, content: bytes, stack: ExitStack, budget: Budget) -> WeightsFile:
    """WeightsFile of an HDF5 file in memory, which is a part of the file `path`."""
    return _open(path, io.BytesIO(content), content, stack, budget)


def count_values(content: bytes, budget: Budget) -> int:
    """Number of values in all arrays of an HDF5 file in memory, after checks that Keras can read it as well.

    Raises:
        ValueError or OSError: as `open_weights`, and for compressed arrays, of which libhdf5 does not check the chunks.
    """
    with ExitStack() as stack:
        reader, root = _open_reader(io.BytesIO(content), content, stack, budget)
        arrays = []
        for path, dataset in reader.datasets(root):
            if dataset.chunks is not None:
                raise WeightsFileError(f"`{path}` should be stored in one piece, as Keras writes it, not in chunks.")
            arrays.append(reader.array(dataset))
        return sum(math.prod(array.shape) for array in arrays)


def _open_reader(source, content, stack, budget):
    """(_Reader, h5py.File) of `source`, a path or a seekable binary file; `content`: its bytes."""
    import h5py

    reader = _Reader(content, check_structures(content, budget), budget)
    return reader, stack.enter_context(h5py.File(source, "r"))


def _open(path, source, content, stack, budget):
    """WeightsFile of `source`, a path or a seekable binary file; `content`: bytes that contain the HDF5 file."""
    reader, root = _open_reader(source, content, stack, budget)
    paths = [path for path, _ in reader.datasets(root)]
    group = root.get("model_weights", root)
    config = parse_json(reader.string(root, "model_config", "{}"), dict[str, Any], "model_config")
    if METADATA_KEY in root.attrs:
        config[METADATA_KEY] = reader.string(root, METADATA_KEY, "")
    layers = reader.names(group, "layer_names")
    arrays = {}
    for name, dataset in _legacy_datasets(reader, group, layers) if layers else _numbered_datasets(reader, root, paths):
        if name in arrays:
            raise WeightsFileError(f"The names of arrays should be unique; `{name}` occurs twice.")
        arrays[name] = reader.array(dataset)
    return WeightsFile(path, "h5" if layers else "weights.h5", arrays, config)


@dataclass(frozen=True)
class _Reader:
    """Checked reading of the contents of an HDF5 file; libhdf5 trusts the sizes and links in it."""

    content: Any
    """The bytes of the file, for slicing."""
    largest_string: int
    """Bytes of the largest string outside the attributes themselves."""
    budget: Budget

    def datasets(self, root: Any) -> Iterator[tuple[str, Any]]:
        """Pairs (path, h5py.Dataset) of all datasets; raises WeightsFileError for links to other places and files."""
        import h5py

        seen, groups = set(), [("", root)]
        while groups:
            path, group = groups.pop()
            for name in group:
                self.budget.spend(steps=OBJECT_STEPS)
                inner = f"{path}/{name}".lstrip("/")
                if group.get(name, getlink=True, getclass=True) is not h5py.HardLink:
                    raise WeightsFileError(f"An HDF5 weights file should contain its own arrays; `{inner}` is a link.")
                item = group[name]
                address = h5py.h5o.get_info(item.id).addr
                if isinstance(item, h5py.Dataset):
                    yield inner, item
                elif isinstance(item, h5py.Group) and address not in seen:
                    if inner.count("/") > _MAX_DEPTH:
                        raise WeightsFileError(f"The groups of an HDF5 file should have at most {_MAX_DEPTH} levels.")
                    groups.append((inner, item))
                seen.add(address)

    def array(self, dataset: Any) -> StoredArray:
        """StoredArray of an h5py.Dataset; raises WeightsFileError for anything else."""
        import h5py

        self.budget.spend(steps=OBJECT_STEPS)
        if not isinstance(dataset, h5py.Dataset):
            raise WeightsFileError(f"`{dataset.name}` should be an HDF5 dataset, not a {type(dataset).__name__}.")
        bfloat16 = self.string(dataset, "dtype", "") == "bfloat16" and dataset.dtype == "V2"
        return stored_array(dataset, "bfloat16" if bfloat16 else dataset.dtype, self.content, self.budget)

    def names(self, group: Any, attribute: str) -> list[str]:
        """Names from one attribute, or from several numbered ones, as `_write_names` writes them."""
        chunks = [attribute] if attribute in group.attrs else [f"{attribute}{i}" for i in range(len(group.attrs))]
        return [name for chunk in chunks if chunk in group.attrs for name in self._strings(group, chunk)]

    def string(self, item: Any, attribute: str, default: str) -> str:
        """The string in an attribute, or `default` without the attribute."""
        return self._strings(item, attribute)[0] if attribute in item.attrs else default

    def _strings(self, item, attribute):
        """Strings of an attribute, whose type and size are checked: many may be one and the same in the file."""
        import h5py

        header = h5py.h5a.open(item.id, attribute.encode())
        kind, count = header.get_type(), header.get_space().get_simple_extent_npoints()
        if count and not isinstance(kind, h5py.h5t.TypeStringID):
            raise WeightsFileError(f"Attribute `{attribute}` of `{item.name}` should be strings.")
        size = self.largest_string if count and kind.is_variable_str() else kind.get_size()
        self.budget.spend(bytes=count * size, steps=count)
        values = np.ravel(item.attrs[attribute]) if count else []
        return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values]


def _legacy_datasets(reader, group, layers):
    """Pairs ("<layer>/<weight>", dataset); layers of a nested model, which share a group, keep their own names."""
    for layer in layers:
        names = reader.names(group[layer], "weight_names")
        scopes = {name.split("/")[-2] for name in names if "/" in name}
        for name in names:
            nested = len(scopes) > 1 or re.match(rf"{re.escape(layer)}/.*/", name)
            owner = name.split("/")[-2] if nested and "/" in name else layer
            weight = name.rpartition("/")[2].partition(":")[0]
            yield f"{owner}/{weight}", group[layer][name]


def _numbered_datasets(reader, root, paths):
    """Pairs ("<layer>/<weight>", dataset) of `layers/<class>_<n>/vars/<i>` (keras saving_lib.py), in order.

    Old Keras versions write `_layer_checkpoint_dependencies/` for `layers/` and do not store the layer's name; then
    the name of the group is used.
    """
    groups: dict[str, list[str]] = {}
    for path in sorted(paths, key=_natural_order):
        owner, _, number = path.rpartition("/vars/")
        if owner and not _NOT_A_LAYER.search(owner):
            groups.setdefault(owner, []).append(number)
    for owner, numbers in groups.items():
        group = root[owner]["vars"]
        group_name = owner.rpartition("/")[2]
        layer = reader.string(group, "name", group_name)
        for weight, number in zip(_weight_names(group_name, numbers), numbers, strict=True):
            yield f"{layer}/{weight}", group[number]


def _natural_order(path):
    """Sort key that puts conv2d_2 before conv2d_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path)]


def _weight_names(group_name, numbers):
    """("conv2d_3", ["0", "1"]) -> ("kernel", "bias"); ("var0", ...) for an unknown class or number of weights."""
    if numbers == [str(i) for i in range(len(numbers))]:
        for names in _WEIGHT_NAMES.get(re.sub(r"_\d+$", "", group_name), ()):
            if len(names) == len(numbers):
                return names
    return tuple(f"var{number}" if number.isdecimal() else number for number in numbers)


def write_hdf5(arrays: dict[str, np.ndarray], path: Path, metadata: dict[str, str]) -> None:
    """Write arrays named "<layer>/<weight>", else ValueError, as Keras's legacy_h5_format.py: one group per layer."""
    import h5py

    layers: dict[str, list[str]] = {}
    for name in arrays:
        if not re.fullmatch("[^/]+/[^/]+", name):
            raise ValueError(f'Names of arrays in an .h5 file should be "<layer>/<weight>". Received: {name!r}')
        layers.setdefault(name.partition("/")[0], []).append(name)
    buffer = io.BytesIO()  # libhdf5 crashes if a disk is full
    with h5py.File(buffer, "w") as file:
        file.attrs.update(metadata)
        _write_names(file, "layer_names", layers)
        for layer, names in layers.items():
            group = file.create_group(layer)
            _write_names(group, "weight_names", names)
            for name in names:
                group.create_dataset(name, data=arrays[name])
    path.write_bytes(buffer.getbuffer())


def _write_names(group, attribute, names):
    """Write names as one attribute, or as several numbered ones if they exceed the size of an HDF5 attribute."""
    encoded = np.array([name.encode("utf-8") for name in names])
    count = -(-encoded.nbytes // _MAX_ATTRIBUTE_BYTES) or 1
    for i, chunk in enumerate(np.array_split(encoded, count)):
        group.attrs[attribute if count == 1 else f"{attribute}{i}"] = chunk
