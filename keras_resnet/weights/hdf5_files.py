"""Keras's three formats, which are HDF5 files or hold one: the legacy .h5, .weights.h5 and .keras."""

import io
import math
import mmap
import re
import struct
import zipfile
from dataclasses import replace

import numpy as np

from keras_resnet.weights.weights_file import OURS, Entry, Refusal, WeightsFile, decoded, json_object, widened
from keras_resnet.weights.zip_members import member_size, read_member, stored_member

_HEAP_MAGIC = b"GCOL\x01"
_NAMES_LIMIT = 2**16
"""Strings in one attribute that is read."""
_ATTRIBUTE_LIMIT = 64512
"""Bytes of one attribute that is written, as in Keras' legacy_h5_format.py."""
_EXPANSION_LIMIT = 1100
"""DEFLATE, HDF5's common filter, makes at most 1032 bytes of one."""
_EXPANSION_FLOOR = 2**24
"""Bytes that a compressed dataset may have however few are stored."""

_NO_LAYER = re.compile(r"(^optimizer|(^|/)seed_generator(_\d+)?)(/|$)")
_KINDS = {
    "batch_normalization": (("gamma", "beta", "moving_mean", "moving_variance"), ("moving_mean", "moving_variance")),
    "conv2d": (("kernel", "bias"), ("kernel",)),
    "dense": (("kernel", "bias"), ("kernel",)),
    "depthwise_conv2d": (("kernel", "bias"), ("kernel",)),
    "separable_conv2d": (("depthwise_kernel", "pointwise_kernel", "bias"), ("depthwise_kernel", "pointwise_kernel")),
}
"""Layer class, as `.weights.h5` spells it -> the variables that it may have, in the order it numbers them."""


def open_hdf5(path, file, stack):
    """WeightsFile of an .h5 or .weights.h5; `file` is `path`, open. Stays open as long as the ExitStack."""
    return _open(path, path, _mapped(file, stack), stack)


def open_keras(path, archive, stack):
    """WeightsFile of a .keras, an open ZipFile. Stays open as long as the ExitStack."""
    config = json_object(read_member(archive, "config.json"))
    info = archive.getinfo("model.weights.h5")
    if info.compress_type == zipfile.ZIP_STORED:
        source, image = stored_member(archive, info), _mapped(archive.fp, stack)
    else:  # by hand, since Keras does not compress
        member_size(archive, info)
        image = archive.read(info)
        source = io.BytesIO(image)
    return replace(_open(path, source, image, stack), format="keras", config=config)


def _mapped(file, stack):
    return stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _open(path, source, image, stack):
    """`source`: a path or a seekable binary file; `image`: bytes that it lies in."""
    import h5py

    _check_heaps(image)
    root = stack.enter_context(h5py.File(source, "r"))
    paths = _paths(root)
    group = root.get("model_weights", root)
    config = json_object(_read_text(root, "model_config", "{}"))
    if OURS in root.attrs:
        config[OURS] = _read_text(root, OURS, "")
    if layers := _read_names(group, "layer_names"):
        return WeightsFile(path, "h5", _distinct(_legacy_entries(group, layers)), config)
    return WeightsFile(path, "weights.h5", _distinct(_keras_entries(root, paths)), config)


def _check_heaps(image):
    """Walk the global heaps, where HDF5 keeps strings: at a size that leads nowhere libhdf5 would stay for ever."""
    begin = image.find(_HEAP_MAGIC)
    while begin >= 0:
        end = min(begin + struct.unpack_from("<Q", image, begin + 8)[0], len(image))
        position = begin + 16
        while position + 16 <= end:
            index, size = struct.unpack_from("<H6xQ", image, position)
            step = 16 + -(-size // 8) * 8 if index else size
            if step < 16 or position + step > end:
                raise Refusal(f"The HDF5 heap at byte {begin} should hold objects that follow each other.")
            position += step
        begin = image.find(_HEAP_MAGIC, begin + 1)


def _paths(root):
    """Paths of everything in the file; links that lead anywhere else are refused."""
    import h5py

    paths = []

    def visit(path, link):
        path = path.decode("utf-8")
        if link.type != h5py.h5l.TYPE_HARD:
            kind = "ExternalLink" if link.type == h5py.h5l.TYPE_EXTERNAL else "SoftLink"
            raise Refusal(f"An HDF5 weights file should hold its own arrays; `{path}` is an HDF5 {kind}.")
        paths.append(path)

    root.id.links.visit(visit, info=True)
    return paths


def _distinct(entries):
    """Pairs (name, Entry) -> dictionary, in which a name must not come twice."""
    distinct = {}
    for name, entry in entries:
        if name in distinct:
            raise Refusal(f"The names of arrays should differ; `{name}` comes twice.")
        distinct[name] = entry
    return distinct


def _legacy_entries(group, layers):
    """Pairs ("<layer>/<kind>", Entry); the layers of a nested model, which share a group, under their own names."""
    for layer in layers:
        names = _read_names(group[layer], "weight_names")
        scopes = {name.split("/")[-2] for name in names if "/" in name}
        for name in names:
            nested = len(scopes) > 1 or re.match(rf"{re.escape(layer)}/.*/", name)
            owner = name.split("/")[-2] if nested and "/" in name else layer
            kind = name.rpartition("/")[2].partition(":")[0]
            yield f"{owner}/{kind}", _entry(group[layer][name])


def _keras_entries(root, paths):
    """Pairs ("<layer>/<kind>", Entry) from `layers/<class>_<n>/vars/<i>` (keras saving_lib.py), numbers in order.

    Old Keras versions write `_layer_checkpoint_dependencies/` for `layers/` and do not store the layer's name; the
    group's stands in for it.
    """
    for owner, variables in _variables_by_owner(paths).items():
        group = root[owner]["vars"]
        own_name = owner.rpartition("/")[2]
        layer = _read_text(group, "name", own_name)
        for kind, variable in zip(_kinds(own_name, variables), variables, strict=True):
            yield f"{layer}/{kind}", _entry(group[variable])


def _variables_by_owner(paths):
    """{"layers/conv2d_2": ["0", "1"], ...}: the variables of layers, in the order in which Keras numbers them."""
    owners = {}
    for path in sorted(paths, key=_natural_order):
        owner, _, variable = path.rpartition("/vars/")
        if owner and not _NO_LAYER.search(owner):
            owners.setdefault(owner, []).append(variable)
    return owners


def _natural_order(path):
    """Sort key by which conv2d_10 follows conv2d_2."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path)]


def _kinds(group_name, variables):
    """("conv2d_3", ["0", "1"]) -> ("kernel", "bias"); "var0", ... where class and count leave it open."""
    if variables == [str(i) for i in range(len(variables))]:
        for kinds in _KINDS.get(re.sub(r"_\d+$", "", group_name), ()):
            if len(kinds) == len(variables):
                return kinds
    return tuple(f"var{name}" if name.isdecimal() else name for name in variables)


def _entry(dataset):
    """Entry of an h5py.Dataset; what its header claims is held against the bytes that are stored."""
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        raise Refusal(f"`{dataset.name}` should be an HDF5 dataset, not a {type(dataset).__name__}.")
    if dataset.external or dataset.is_virtual:
        raise Refusal(f"An HDF5 weights file should hold its own arrays; `{dataset.name}` lies in another file.")
    dtype = dataset.dtype
    if dtype == "V2" and _read_text(dataset, "dtype", "") == "bfloat16":
        dtype = "bfloat16"
    if dataset.shape is None or (dtype != "bfloat16" and (dtype.kind not in "fiub" or dtype.itemsize > 8)):
        raise Refusal(f"`{dataset.name}` should hold numbers, not {dataset.dtype}.")
    _check_stored_size(dataset)
    return Entry(dataset.shape, widened(dtype), lambda: decoded(np.asarray(dataset[()]), dtype))


def _check_stored_size(dataset):
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = min(dataset.id.get_storage_size(), dataset.file.id.get_filesize())
    chunk = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
    limit = stored if dataset.chunks is None else max(_EXPANSION_LIMIT * stored, _EXPANSION_FLOOR)
    if max(size, chunk) > limit:
        raise Refusal(f"`{dataset.name}` should hold {size} bytes, but only {stored} are stored.")


def write_hdf5(arrays, path, metadata):
    """Write arrays named "<layer>/<kind>", a group a layer, as Keras' legacy_h5_format.py does.

    Raises:
        ValueError: for names of another form.
    """
    import h5py

    layers = {}
    for name in arrays:
        layer, slash, kind = name.partition("/")
        if not (layer and slash and kind) or "/" in kind:
            raise ValueError(f'Names in an .h5 file should be "<layer>/<kind>". Received: {name!r}')
        layers.setdefault(layer, []).append(name)
    with h5py.File(path, "w") as file:
        file.attrs.update(metadata)
        _write_names(file, "layer_names", layers)
        for layer, names in layers.items():
            group = file.create_group(layer)
            _write_names(group, "weight_names", names)
            for name in names:
                group.create_dataset(name, data=arrays[name])


def _write_names(group, attribute, names):
    """One attribute, or numbered ones where the names exceed what HDF5 lets an attribute hold."""
    encoded = np.array([name.encode("utf-8") for name in names])
    chunks = np.array_split(encoded, -(-encoded.nbytes // _ATTRIBUTE_LIMIT) or 1)
    if len(chunks) == 1:
        group.attrs[attribute] = encoded
    else:
        group.attrs.update({f"{attribute}{i}": chunk for i, chunk in enumerate(chunks)})


def _read_names(group, attribute):
    """Names in an attribute, or in several numbered ones where they exceed HDF5's 64 kB (keras legacy_h5_format.py)."""
    if attribute in group.attrs:
        return _read_texts(group, attribute)
    chunks = (f"{attribute}{i}" for i in range(len(group.attrs)))
    return [name for chunk in chunks if chunk in group.attrs for name in _read_texts(group, chunk)]


def _read_text(item, attribute, default):
    return _read_texts(item, attribute)[0] if attribute in item.attrs else default


def _read_texts(item, attribute):
    """Strings of an HDF5 attribute; libhdf5 itself would take any number of them, or other types for them."""
    import h5py

    header = h5py.h5a.open(item.id, attribute.encode())
    count = header.get_space().get_simple_extent_npoints()
    if count and not (isinstance(header.get_type(), h5py.h5t.TypeStringID) and count <= _NAMES_LIMIT):
        raise Refusal(f"Attribute `{attribute}` of `{item.name}` should hold names.")
    values = np.ravel(item.attrs[attribute]) if count else []
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values]
