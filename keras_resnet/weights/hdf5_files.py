"""Keras's three formats: the legacy .h5 and .weights.h5, which are HDF5 files, and .keras, which contains one."""

import io
import math
import mmap
import re
import struct
import zipfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from keras_resnet.schema import parse_json
from keras_resnet.weights.weights_file import (
    METADATA_KEY,
    Budget,
    StoredArray,
    WeightsFile,
    WeightsFileError,
    decode,
    dtype_in_memory,
    read_member,
    read_text,
)

_HEAP_MAGIC = b"GCOL\x01"
_MAX_NAMES = 2**16
"""Largest number of strings in an attribute that is read."""
_MAX_ATTRIBUTE_BYTES = 64512
"""Largest attribute that is written, as in Keras's legacy_h5_format.py."""
_MAX_COMPRESSION_RATIO = 1100
"""Largest ratio of uncompressed to compressed bytes; DEFLATE, HDF5's usual filter, reaches at most 1032."""
_SMALL_DATASET_BYTES = 2**24
"""Size up to which the compression ratio of a dataset is not checked."""

_NOT_A_LAYER = re.compile(r"(^optimizer|(^|/)seed_generator(_\d+)?)(/|$)")
_WEIGHT_NAMES = {
    "batch_normalization": (("gamma", "beta", "moving_mean", "moving_variance"), ("moving_mean", "moving_variance")),
    "conv1d": (("kernel", "bias"), ("kernel",)),
    "conv2d": (("kernel", "bias"), ("kernel",)),
    "dense": (("kernel", "bias"), ("kernel",)),
    "depthwise_conv2d": (("kernel", "bias"), ("kernel",)),
    "separable_conv2d": (("depthwise_kernel", "pointwise_kernel", "bias"), ("depthwise_kernel", "pointwise_kernel")),
}
"""Layer class as `.weights.h5` spells it -> the possible names of its weights, in the order of their numbers."""


def open_hdf5(path: Path, file: BinaryIO, stack: ExitStack, budget: Budget) -> WeightsFile:
    """WeightsFile of an .h5 or .weights.h5; `file` is `path`, open. It stays open until `stack` closes."""
    content = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return _open(path, path, content, stack, budget)


def open_keras(path: Path, archive: zipfile.ZipFile, stack: ExitStack, budget: Budget) -> WeightsFile:
    """WeightsFile of a .keras file, an open ZipFile. It stays open until `stack` closes."""
    config = parse_json(read_text(archive, "config.json", budget), dict[str, Any], "config.json")
    content = read_member(archive, archive.getinfo("model.weights.h5"), budget).tobytes()
    return replace(_open(path, io.BytesIO(content), content, stack, budget), format="keras", config=config)


def _open(path, source, content, stack, budget):
    """WeightsFile of `source`, a path or a seekable binary file; `content`: bytes that contain the HDF5 file."""
    import h5py

    _check_heaps(content)
    root = stack.enter_context(h5py.File(source, "r"))
    paths = []  # of all groups and datasets

    def visit(path, link):
        path = path.decode("utf-8")
        if link.type != h5py.h5l.TYPE_HARD:
            kind = "ExternalLink" if link.type == h5py.h5l.TYPE_EXTERNAL else "SoftLink"
            raise WeightsFileError(f"An HDF5 weights file should contain its own arrays; `{path}` is an HDF5 {kind}.")
        paths.append(path)

    root.id.links.visit(visit, info=True)
    group = root.get("model_weights", root)
    config = parse_json(_read_string(root, "model_config", "{}"), dict[str, Any], "model_config")
    if METADATA_KEY in root.attrs:
        config[METADATA_KEY] = _read_string(root, METADATA_KEY, "")
    layers = _read_names(group, "layer_names")
    arrays = {}
    for name, dataset in _legacy_datasets(group, layers) if layers else _numbered_datasets(root, paths):
        if name in arrays:
            raise WeightsFileError(f"The names of arrays should be unique; `{name}` occurs twice.")
        arrays[name] = _stored_array(dataset)
    return WeightsFile(path, "h5" if layers else "weights.h5", arrays, config)


def _check_heaps(content):
    """Check the object sizes in the global heaps, where HDF5 stores strings: libhdf5 never returns from a wrong one."""
    start = content.find(_HEAP_MAGIC)
    while start >= 0:
        end = min(start + struct.unpack_from("<Q", content, start + 8)[0], len(content))
        position = start + 16
        while position + 16 <= end:
            index, size = struct.unpack_from("<H6xQ", content, position)
            step = 16 + -(-size // 8) * 8 if index else size
            if step < 16 or position + step > end:
                raise WeightsFileError(f"The HDF5 heap at byte {start} should be a sequence of objects that fit in it.")
            position += step
        start = content.find(_HEAP_MAGIC, start + 1)


def _legacy_datasets(group, layers):
    """Pairs ("<layer>/<weight>", dataset); layers of a nested model, which share a group, keep their own names."""
    for layer in layers:
        names = _read_names(group[layer], "weight_names")
        scopes = {name.split("/")[-2] for name in names if "/" in name}
        for name in names:
            nested = len(scopes) > 1 or re.match(rf"{re.escape(layer)}/.*/", name)
            owner = name.split("/")[-2] if nested and "/" in name else layer
            weight = name.rpartition("/")[2].partition(":")[0]
            yield f"{owner}/{weight}", group[layer][name]


def _numbered_datasets(root, paths):
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
        layer = _read_string(group, "name", group_name)
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


def _stored_array(dataset):
    """StoredArray of an h5py.Dataset, once its type and the size in its header have been checked."""
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        raise WeightsFileError(f"`{dataset.name}` should be an HDF5 dataset, not a {type(dataset).__name__}.")
    if dataset.external or dataset.is_virtual:
        raise WeightsFileError(f"An HDF5 weights file should contain its arrays; `{dataset.name}` is in another file.")
    dtype = dataset.dtype
    if dtype == "V2" and _read_string(dataset, "dtype", "") == "bfloat16":
        dtype = "bfloat16"
    if dataset.shape is None or (dtype != "bfloat16" and (dtype.kind not in "fiub" or dtype.itemsize > 8)):
        raise WeightsFileError(f"`{dataset.name}` should be an array of numbers, not of {dataset.dtype}.")
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = min(dataset.id.get_storage_size(), dataset.file.id.get_filesize())
    chunk = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
    limit = stored if dataset.chunks is None else max(_MAX_COMPRESSION_RATIO * stored, _SMALL_DATASET_BYTES)
    if max(size, chunk) > limit:
        raise WeightsFileError(f"`{dataset.name}` should have {size} bytes, but only {stored} are stored.")
    return StoredArray(dataset.shape, dtype_in_memory(dtype), lambda: decode(np.asarray(dataset[()]), dtype))


def write_hdf5(arrays: dict[str, np.ndarray], path: Path, metadata: dict[str, str]) -> None:
    """Write arrays named "<layer>/<weight>", else ValueError, as Keras's legacy_h5_format.py: one group per layer."""
    import h5py

    layers: dict[str, list[str]] = {}
    for name in arrays:
        if not re.fullmatch("[^/]+/[^/]+", name):
            raise ValueError(f'Names of arrays in an .h5 file should be "<layer>/<weight>". Received: {name!r}')
        layers.setdefault(name.partition("/")[0], []).append(name)
    with h5py.File(path, "w") as file:
        file.attrs.update(metadata)
        _write_names(file, "layer_names", layers)
        for layer, names in layers.items():
            group = file.create_group(layer)
            _write_names(group, "weight_names", names)
            for name in names:
                group.create_dataset(name, data=arrays[name])


def _write_names(group, attribute, names):
    """Write names as one attribute, or as several numbered ones if they exceed the size of an HDF5 attribute."""
    encoded = np.array([name.encode("utf-8") for name in names])
    count = -(-encoded.nbytes // _MAX_ATTRIBUTE_BYTES) or 1
    for i, chunk in enumerate(np.array_split(encoded, count)):
        group.attrs[attribute if count == 1 else f"{attribute}{i}"] = chunk


def _read_names(group, attribute):
    """Names from one attribute, or from several numbered ones, as `_write_names` writes them."""
    chunks = [attribute] if attribute in group.attrs else [f"{attribute}{i}" for i in range(len(group.attrs))]
    return [name for chunk in chunks if chunk in group.attrs for name in _read_strings(group, chunk)]


def _read_string(item, attribute, default):
    return _read_strings(item, attribute)[0] if attribute in item.attrs else default


def _read_strings(item, attribute):
    """Strings of an HDF5 attribute, whose type and number are checked, since libhdf5 accepts any."""
    import h5py

    header = h5py.h5a.open(item.id, attribute.encode())
    count = header.get_space().get_simple_extent_npoints()
    if count and not (isinstance(header.get_type(), h5py.h5t.TypeStringID) and count <= _MAX_NAMES):
        raise WeightsFileError(f"Attribute `{attribute}` of `{item.name}` should be at most {_MAX_NAMES} strings.")
    values = np.ravel(item.attrs[attribute]) if count else []
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values]
