"""Anybody's weights file as named arrays: read lazily, measured before memory is taken, and never run.

A file is recognised by what is in it, not by its suffix. Pickles are read by an interpreter that knows the few opcodes
and names which tensors need and calls nothing from outside this module.
"""

import io
import json
import math
import mmap
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

_KNOWN_FORMATS = "a Keras .h5, .weights.h5 or .keras file, a .safetensors file or a PyTorch .pth file"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_HEAP_MAGIC = b"GCOL\x01"
_ZIP_MAGIC = b"PK\x03\x04"
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TEXT_LIMIT = 2**26
"""Bytes of a zip member that is read whole: a model's config or the pickle of a state dict."""
_NAMES_LIMIT = 2**16
"""Strings in one HDF5 attribute."""
_EXPANSION_LIMIT = 1100
"""DEFLATE, HDF5's common filter, makes at most 1032 bytes of one."""
_EXPANSION_FLOOR = 2**24

_KINDS = {
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
}
"""Layer class, as `.weights.h5` spells it -> its variables in the order it numbers them."""

_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
TORCH_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""torch's storage class -> dtype of its elements."""

_STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True)
class Entry:
    """One array of a weights file that has not been read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    """Of what `read` returns: float32 for every floating-point type."""
    read: Callable[[], np.ndarray]
    """Returns the array, C-contiguous; raises ValueError if the file is damaged there."""


@dataclass(frozen=True)
class WeightsFile:
    """An open weights file: its arrays by name, in the file's order."""

    path: Path
    format: str
    """ "h5" (legacy Keras), "weights.h5", "keras", "safetensors" or "torch"."""
    entries: dict[str, Entry]
    config: dict
    """`config.json` of a .keras, `model_config` of a whole-model .h5, `__metadata__` of a safetensors file, else {}."""


@contextmanager
def open_weights(path) -> Iterator[WeightsFile]:
    """Open a weights file of any known format; its entries can be read inside the `with` only.

    Names are "<layer>/<kind>" ("conv1_conv/kernel") in Keras' formats. In safetensors and PyTorch files they are the
    file's own, less a prefix that all of them share ("module.", "_orig_mod.", "model.") and less the
    `num_batches_tracked` counters. A checkpoint's other contents (epoch, optimizer, ...) are passed over.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is of no known format, damaged, or refused because it asks for code, for other files,
            or for more memory than its size warrants.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"`path` should be {_KNOWN_FORMATS}; there is none. Received: path={str(path)!r}")
    with ExitStack() as stack:
        with _explained(path):
            weights = _open(path, stack)
        yield replace(weights, entries={name: _guarded(path, entry) for name, entry in weights.entries.items()})


class _Refusal(ValueError):
    """What is wrong with a file, as a sentence; `_explained` adds the path."""


@contextmanager
def _explained(path):
    """Turn whatever a parser raises at a damaged file into one ValueError that names the file."""
    try:
        yield
    except ImportError:
        raise
    except _Refusal as error:
        raise ValueError(f"{error} Received: path={str(path)!r}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"The weights file should be intact; {reason}. Received: path={str(path)!r}") from error


def _guarded(path, entry):
    def read():
        with _explained(path), np.errstate(over="raise"):
            array = np.asarray(entry.read(), entry.dtype, order="C")
            if array.shape != entry.shape:
                raise _Refusal(f"An array of shape {entry.shape} should be there, not one of {array.shape}.")
            return array

    return replace(entry, read=read)


def _open(path, stack):
    if path.is_dir():
        raise _Refusal(f"`path` should be {_KNOWN_FORMATS}, not a folder.")
    file = stack.enter_context(open(path, "rb"))
    head = file.read(16)
    file.seek(0)
    if head.startswith(_HDF5_MAGIC):
        return _open_hdf5(path, path, _mapped(file, stack), stack)
    if head.startswith(_ZIP_MAGIC):
        return _open_zip(path, file, stack)
    if head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= path.stat().st_size - 8:
        return _open_safetensors(path, file)
    if head.startswith(b"\x80"):
        return _open_torch_stream(path, file)
    found = f"begins with {head!r}" if head else "is empty"
    raise _Refusal(f"`path` should be {_KNOWN_FORMATS}; the file {found}.")


def _open_zip(path, file, stack):
    archive = stack.enter_context(zipfile.ZipFile(file))
    names = set(archive.namelist())
    if {"config.json", "model.weights.h5"} <= names:
        return _open_keras(path, archive, stack)
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return _open_torch_zip(path, archive)
    raise _Refusal(f"A zip file should be a .keras or a PyTorch file; this one holds {sorted(names)[:4]}.")


def _open_keras(path, archive, stack):
    config = _dictionary(json.loads(_read_member(archive, "config.json")))
    info = archive.getinfo("model.weights.h5")
    if info.compress_type == zipfile.ZIP_STORED:
        source, image = _stored_member(archive, info), _mapped(archive.fp, stack)
    else:  # by hand, since Keras does not compress
        _member_size(archive, info)
        image = archive.read(info)
        source = io.BytesIO(image)
    return replace(_open_hdf5(path, source, image, stack), format="keras", config=config)


def _mapped(file, stack):
    return stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _open_hdf5(path, source, image, stack):
    """`source`: a path or a seekable binary file; `image`: bytes that it lies in."""
    import h5py

    _check_heaps(image)
    root = stack.enter_context(h5py.File(source, "r"))
    root.visititems_links(_check_link)
    group = root["model_weights"] if "model_weights" in root else root
    if layers := _read_names(group, "layer_names"):
        config = _dictionary(json.loads(_read_text(root, "model_config", "{}")))
        return WeightsFile(path, "h5", _collected(_legacy_entries(group, layers)), config)
    return WeightsFile(path, "weights.h5", _collected(_keras_entries(root)), {})


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
                raise _Refusal(f"The HDF5 heap at byte {begin} should hold objects that follow each other.")
            position += step
        begin = image.find(_HEAP_MAGIC, begin + 1)


def _check_link(name, link):
    import h5py

    if not isinstance(link, h5py.HardLink):
        raise _Refusal(f"An HDF5 weights file should hold its own arrays; `{name}` is an HDF5 {type(link).__name__}.")


def _read_names(group, attribute):
    """Names in an attribute, or in several numbered ones where they exceed HDF5's 64 kB (keras legacy_h5_format.py)."""
    if attribute in group.attrs:
        return _read_texts(group, attribute)
    chunks = (f"{attribute}{i}" for i in range(len(group.attrs)))
    return [name for chunk in chunks if chunk in group.attrs for name in _read_texts(group, chunk)]


def _read_texts(item, attribute):
    """Strings of an HDF5 attribute; libhdf5 itself would take any number of them, or other types for them."""
    import h5py

    header = h5py.h5a.open(item.id, attribute.encode())
    count = header.get_space().get_simple_extent_npoints()
    if count and not (isinstance(header.get_type(), h5py.h5t.TypeStringID) and count <= _NAMES_LIMIT):
        raise _Refusal(f"Attribute `{attribute}` of `{item.name}` should hold names.")
    values = np.ravel(item.attrs[attribute]) if count else []
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values]


def _read_text(item, attribute, default):
    return _read_texts(item, attribute)[0] if attribute in item.attrs else default


def _legacy_entries(group, layers):
    """Pairs ("<layer>/<kind>", Entry); the layers of a nested model, which share a group, under their own names."""
    for layer in layers:
        names = _read_names(group[layer], "weight_names")
        scopes = {name.split("/")[-2] for name in names if "/" in name}
        for name in names:
            nested = len(scopes) > 1 or re.match(rf"{re.escape(layer)}/.*/", name)
            owner = name.split("/")[-2] if nested and "/" in name else layer
            kind = name.rpartition("/")[2].partition(":")[0]
            yield f"{owner}/{kind}", _dataset_entry(group[layer][name])


def _keras_entries(root):
    """Pairs ("<layer>/<kind>", Entry) from `layers/<class>_<n>/vars/<i>` (keras saving_lib.py), numbers in order.

    Old Keras versions write `_layer_checkpoint_dependencies/` for `layers/` and do not store the layer's name; the
    group's stands in for it.
    """
    import h5py

    paths = []
    root.visititems(lambda name, item: paths.append(name) if isinstance(item, h5py.Dataset) else None)
    groups = {}
    for path in sorted(paths, key=_natural):
        owner, _, variable = path.rpartition("/vars/")
        if owner and not re.search(r"(^optimizer|(^|/)seed_generator(_\d+)?)(/|$)", owner):
            groups.setdefault(owner, []).append(variable)
    for owner, variables in groups.items():
        group = root[owner]["vars"]
        own_name = owner.rpartition("/")[2]
        layer = _read_text(group, "name", own_name)
        for kind, variable in zip(_kinds(own_name, variables), variables, strict=True):
            yield f"{layer}/{kind}", _dataset_entry(group[variable])


def _kinds(group_name, variables):
    """("conv2d_3", ["0", "1"]) -> ("kernel", "bias"); "var0", ... where class and count leave it open."""
    kinds = _KINDS.get(re.sub(r"_\d+$", "", group_name), ())
    if "gamma" in kinds and len(variables) == 2:  # neither scale nor centre
        kinds = kinds[2:]
    complete = len(variables) == len(kinds) or ("gamma" not in kinds and len(variables) == len(kinds) - 1)
    if complete and variables == [str(i) for i in range(len(variables))]:
        return kinds[: len(variables)]
    return tuple(f"var{name}" if name.isdecimal() else name for name in variables)


def _dataset_entry(dataset):
    """Entry of an h5py.Dataset; what its header claims is held against the bytes that are stored."""
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        raise _Refusal(f"`{dataset.name}` should be an HDF5 dataset, not a {type(dataset).__name__}.")
    if dataset.external or dataset.is_virtual:
        raise _Refusal(f"An HDF5 weights file should hold its own arrays; `{dataset.name}` lies in another file.")
    dtype = dataset.dtype
    if dtype == "V2" and _read_text(dataset, "dtype", "") == "bfloat16":
        dtype = "bfloat16"
    if dataset.shape is None or (dtype != "bfloat16" and (dtype.kind not in "fiub" or dtype.itemsize > 8)):
        raise _Refusal(f"`{dataset.name}` should hold numbers, not {dataset.dtype}.")
    _check_stored_size(dataset)
    return Entry(dataset.shape, _widened(dtype), lambda: _decode(np.asarray(dataset[()]), dtype))


def _check_stored_size(dataset):
    size = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = min(dataset.id.get_storage_size(), dataset.file.id.get_filesize())
    chunk = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
    limit = stored if dataset.chunks is None else max(_EXPANSION_LIMIT * stored, _EXPANSION_FLOOR)
    if max(size, chunk) > limit:
        raise _Refusal(f"`{dataset.name}` should hold {size} bytes, but only {stored} are stored.")


def _open_safetensors(path, file):
    import safetensors

    with safetensors.safe_open(path, framework="numpy"):  # checks the header: no gaps, no overlaps, nothing beyond
        header_size = struct.unpack("<Q", file.read(8))[0]
        header = _dictionary(json.loads(file.read(header_size)))
    config = header.pop("__metadata__", {})
    entries = ((name, _safetensors_entry(row, file, 8 + header_size)) for name, row in header.items())
    return WeightsFile(path, "safetensors", _collected(_without_prefix(entries)), config)


def _safetensors_entry(row, file, start):
    begin, end = row["data_offsets"]
    if row["dtype"] not in _SAFETENSORS_DTYPES:
        raise _Refusal(f"Arrays should be of a dtype in {sorted(_SAFETENSORS_DTYPES)}, not {row['dtype']}.")
    dtype = _SAFETENSORS_DTYPES[row["dtype"]]

    def read():
        file.seek(start + begin)
        return _decode(_read_bytes(file, end - begin), dtype).reshape(row["shape"])

    return Entry(tuple(row["shape"]), _widened(dtype), read)


@dataclass(frozen=True)
class _Storage:
    """Elements [start, start + count) of what the file keeps under `key`."""

    key: str
    dtype: str
    start: int
    count: int

    @classmethod
    def from_persistent_id(cls, tag, dtype, key, location, count, view=None):
        """torch's ("storage", type, key, device, elements), and in streams None or (view key, start, elements)."""
        _, start, size = view or (None, 0, count)
        if tag != "storage" or dtype not in TORCH_STORAGES.values() or not isinstance(key, str):
            raise _Refusal(f"A tensor's storage should be of a type in {sorted(TORCH_STORAGES)}.")
        if not (_is_count(count) and _is_count(start) and _is_count(size) and start + size <= count):
            raise _Refusal(f"Storage {key!r} of {count} elements should hold elements {start} to {start} + {size}.")
        return cls(key, dtype, start, size)

    @property
    def itemsize(self):
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class _Tensor:
    """A strided view of a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def rebuild(cls, storage, offset, shape, strides, *_):
        """The arguments of `torch._utils._rebuild_tensor_v2`; its last three concern training only."""
        if len(shape) != len(strides) or len(shape) > 64:
            raise _Refusal(f"A tensor should have as many strides as axes, not {len(strides)} and {len(shape)}.")
        tensor = cls(storage, offset, tuple(shape), tuple(strides))
        natural = all(map(_is_count, (offset, *shape, *strides)))
        if not natural or max(offset + tensor.span, math.prod(shape)) > storage.count:
            raise _Refusal(
                f"A tensor of shape {tensor.shape}, strides {tensor.strides} and offset {offset} should lie inside "
                f"its storage of {storage.count} elements."
            )
        return tensor

    @property
    def span(self):
        """Elements from the first to the last, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))


def _plain_dictionary(pairs=()):
    """Stands in for `collections.OrderedDict`. Keys are simple, since hashing nested tuples can take for ever."""
    pairs = [(key, value) for key, value in pairs]
    if not all(isinstance(key, (str, int)) for key, _ in pairs):
        raise _Refusal("The keys of a checkpoint's dictionaries should be strings or integers.")
    return dict(pairs)


def _ignored(*_):
    """Stands in for what makes values other than tensors: a NumPy scalar such as `best_prec1`, a device."""


_GLOBALS = {
    "collections.OrderedDict": _plain_dictionary,
    "torch._utils._rebuild_tensor": _Tensor.rebuild,
    "torch._utils._rebuild_tensor_v2": _Tensor.rebuild,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.Size": tuple,
    "torch.storage.UntypedStorage": "uint8",
    **{f"torch.{storage}": dtype for storage, dtype in TORCH_STORAGES.items()},
    **dict.fromkeys((f"torch.{dtype}" for dtype in TORCH_STORAGES.values()), _ignored),
    **dict.fromkeys(("torch.device", "numpy.dtype", "_codecs.encode"), _ignored),
    **dict.fromkeys((f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")), _ignored),
}
"""Every name that a pickle may ask for -> what it gets instead."""

_OPCODES = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINSTRING SHORT_BINSTRING
    BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST APPEND APPENDS
    EMPTY_DICT SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID REDUCE BUILD
""".split()


class _StateDictUnpickler(pickle._Unpickler):
    """Reads the pickle of a state dict, calling only this module's stand-ins.

    It builds on Python's own interpreter written in Python, where opcodes can be left out and replaced: BUILD would
    set attributes of any object. In the C version an index into the memo also takes memory at will.
    """

    def __init__(self, file):
        super().__init__(file, encoding="latin1")
        self.itemsizes = {}
        """Storage key -> bytes an element."""

    def find_class(self, module, name):
        if f"{module}.{name}" not in _GLOBALS:
            raise _Refusal(
                "A PyTorch file should hold weights only, but this one carries code: it asks for the global "
                f"`{module}.{name}`. Nothing was run; save `model.state_dict()` alone instead."
            )
        return _GLOBALS[f"{module}.{name}"]

    def persistent_load(self, identifier):
        storage = _Storage.from_persistent_id(*identifier)
        self.itemsizes.setdefault(storage.key, storage.itemsize)
        return storage

    def load_build(self):
        self.stack.pop()

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1].update(_plain_dictionary([(key, value)]))

    def load_setitems(self):
        items = self.pop_mark()
        self.stack[-1].update(_plain_dictionary(zip(items[::2], items[1::2], strict=True)))

    dispatch = {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPCODES}
    dispatch |= {pickle.BUILD[0]: load_build, pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}


def _unpickled(file):
    return _StateDictUnpickler(file).load()


def _open_torch_zip(path, archive):
    """The format of torch.save since 1.6: <root>/data.pkl, <root>/data/<key>, <root>/byteorder."""
    root = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl").removesuffix("data.pkl")
    checkpoint = _unpickled(io.BytesIO(_read_member(archive, f"{root}data.pkl")))
    stored = [info for info in archive.infolist() if info.filename.startswith(f"{root}data/")]
    members = {info.filename.removeprefix(f"{root}data/"): info for info in stored}
    byteorder = _read_member(archive, f"{root}byteorder") if f"{root}byteorder" in archive.namelist() else b"little"
    order = {b"little": "<", b"big": ">"}[byteorder]

    def fetch(key, begin, size):
        with archive.open(members[key]) as member:
            member.seek(begin)
            return _read_bytes(member, size)

    sizes = {key: _member_size(archive, info) for key, info in members.items()}
    return _torch_file(path, checkpoint, sizes, fetch, order)


def _open_torch_stream(path, file):
    """The format of torch.save before 1.6: pickles in a row, then each storage as its count and its elements."""
    if _unpickled(file) != _TORCH_MAGIC or _unpickled(file) != 1001:
        raise _Refusal("A pickle should be one that torch.save wrote.")
    _unpickled(file)  # the machine that wrote it
    unpickler = _StateDictUnpickler(file)
    checkpoint = unpickler.load()
    keys = _unpickled(file)
    begins, sizes = {}, {}
    for key in keys:
        count = struct.unpack("<q", file.read(8))[0]
        begins[key], sizes[key] = file.tell(), count * unpickler.itemsizes[key]
        if count < 0 or begins[key] + sizes[key] > path.stat().st_size:
            raise _Refusal(f"Storage {key!r} of {count} elements should lie inside the file.")
        file.seek(sizes[key], io.SEEK_CUR)

    def fetch(key, begin, size):
        file.seek(begins[key] + begin)
        return _read_bytes(file, size)

    return _torch_file(path, checkpoint, sizes, fetch, "<")


def _torch_file(path, checkpoint, sizes, fetch, order):
    """`sizes`: storage key -> bytes in the file; `fetch(key, begin, size)` -> those bytes of it."""
    entries = [(name, _tensor_entry(tensor, sizes, fetch, order)) for name, tensor in _state_dict(checkpoint).items()]
    return WeightsFile(path, "torch", _collected(_without_prefix(entries)), {})


def _state_dict(checkpoint):
    """The first dictionary with tensors: under a key that checkpoints use for it, or the checkpoint itself."""
    if not isinstance(checkpoint, dict):
        raise _Refusal(f"A PyTorch file should hold a dictionary of tensors, not a {type(checkpoint).__name__}.")
    for candidate in (*map(checkpoint.get, _STATE_DICT_KEYS), checkpoint):
        pairs = candidate.items() if isinstance(candidate, dict) else ()
        if tensors := {str(name): value for name, value in pairs if isinstance(value, _Tensor)}:
            return tensors
    raise _Refusal(f"A PyTorch file should hold tensors; this one has the keys {list(checkpoint)[:8]}.")


def _tensor_entry(tensor, sizes, fetch, order):
    storage = tensor.storage
    end = (storage.start + storage.count) * storage.itemsize
    if end > sizes.get(storage.key, 0):
        raise _Refusal(f"Storage {storage.key!r} should have {end} bytes, but {sizes.get(storage.key, 0)} are stored.")

    def read():
        begin = (storage.start + tensor.offset) * storage.itemsize
        flat = _decode(fetch(storage.key, begin, tensor.span * storage.itemsize), storage.dtype, order)
        strides = [stride * flat.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides)

    return Entry(tensor.shape, _widened(storage.dtype), read)


def _collected(entries):
    """Pairs -> dictionary, in which a name must not come twice and which must not be empty."""
    collected = {}
    for name, entry in entries:
        if name in collected:
            raise _Refusal(f"The names of arrays should differ; `{name}` comes twice.")
        collected[name] = entry
    if not collected:
        raise _Refusal("A weights file should hold arrays; this one has none.")
    return collected


def _without_prefix(entries):
    """Pairs less the prefixes that all names share, less BN's batch counters."""
    entries = dict(entries)
    while entries and (prefix := _shared_prefix(entries)):
        entries = {name.removeprefix(prefix): entry for name, entry in entries.items()}
    return [(name, entry) for name, entry in entries.items() if not name.endswith("num_batches_tracked")]


def _shared_prefix(names):
    return next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in names)), None)


def _decode(raw, dtype, order="<"):
    """Bytes, or an HDF5 array, of elements of `dtype` -> array; bfloat16, the upper half of a float32, as float32."""
    if dtype == "bfloat16":
        return (raw.view(f"{order}u2").astype(np.uint32) << 16).view(np.float32)
    return raw if raw.dtype == dtype else raw.view(np.dtype(dtype).newbyteorder(order))


def _widened(dtype):
    """The dtype that arrays of `dtype` are read as."""
    floating = dtype == "bfloat16" or np.dtype(dtype).kind == "f"
    return np.dtype(np.float32) if floating else np.dtype(dtype).newbyteorder("=")


def _read_bytes(file, size):
    """The next `size` bytes as uint8; the caller knows that the file has them."""
    raw = np.empty(size, np.uint8)
    if file.readinto(raw) != size:
        raise _Refusal(f"{size} bytes should follow, but the file ends.")
    return raw


def _member_size(archive, info):
    """Bytes of a zip member, which the archive must be able to hold."""
    expansion = 1 if info.compress_type == zipfile.ZIP_STORED else 100
    if info.flag_bits & 1:
        raise _Refusal(f"`{info.filename}` in the zip file should not be encrypted.")
    end = archive.fp.seek(0, io.SEEK_END)
    if info.header_offset + info.compress_size > end or info.file_size > expansion * info.compress_size:
        raise _Refusal(f"`{info.filename}` should have {info.file_size} bytes, but {info.compress_size} are stored.")
    return info.file_size


def _read_member(archive, name):
    size = _member_size(archive, archive.getinfo(name))
    if size > _TEXT_LIMIT:
        raise _Refusal(f"`{name}` in the zip file should have at most {_TEXT_LIMIT} bytes, not {size}.")
    return archive.read(name)


def _stored_member(archive, info):
    """A zip member that is not compressed, as a file in which seeking back costs nothing."""
    size = _member_size(archive, info)
    archive.fp.seek(info.header_offset + 26)
    begin = info.header_offset + 30 + sum(struct.unpack("<HH", archive.fp.read(4)))
    if begin + size > archive.fp.seek(0, io.SEEK_END):
        raise _Refusal(f"`{info.filename}` in the zip file should have {size} bytes, but the file ends.")
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

    def tell(self):
        return self._position

    def readinto(self, buffer):
        count = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._start + self._position)
        count = self._file.readinto(memoryview(buffer)[:count])
        self._position += count
        return count


def _dictionary(value):
    if not isinstance(value, dict):
        raise _Refusal(f"A JSON object should describe the model, not a {type(value).__name__}.")
    return value


def _is_count(value):
    return isinstance(value, int) and value >= 0


def _natural(path):
    """Sort key by which conv2d_10 follows conv2d_2."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path)]
