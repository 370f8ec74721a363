"""PyTorch's pickled state dicts, read and written without torch and without running code.

The unpickler implements only the opcodes and globals that tensors need, and calls nothing outside this module.
"""

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from dataclasses import dataclass
from typing import BinaryIO, ClassVar

import numpy as np

from keras_resnet.weights.weights_file import MAX_AXES, Budget, WeightsFileError

MAX_PICKLE_BYTES = 2**24
"""Longest pickle that is read; that of ResNet-1202 with the state of its optimizer has three megabytes."""
_MAX_KEY = 100
"""Largest number of characters in the key of a storage; torch writes numbers."""

STORAGES = {
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


@dataclass(frozen=True)
class Storage:
    """Elements [start, start + count) of the storage `key` in the file."""

    key: str
    dtype: str
    start: int
    count: int

    @classmethod
    def from_persistent_id(cls, tag, dtype, key, location, count, view=None):
        """From torch's ("storage", type, key, device, count) and, in streams, None or (view key, start, count)."""
        _, start, size = view or (None, 0, count)
        if tag != "storage" or dtype not in STORAGES.values():
            raise WeightsFileError(f"The type of a tensor's storage should be one of {sorted(STORAGES)}.")
        if not isinstance(key, str) or len(key) > _MAX_KEY:
            raise WeightsFileError(f"The key of a storage should be a string of at most {_MAX_KEY} characters.")
        _check_sizes(count, start, size)
        if start + size > count:
            raise WeightsFileError(f"Storage {key!r} of {count} elements should have {size} from {start} on.")
        return cls(key, dtype, start, size)

    @property
    def itemsize(self):
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Tensor:
    """A strided view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def rebuild(cls, storage, offset, shape, strides, *_):
        """From the arguments of `torch._utils._rebuild_tensor_v2`; the last three matter only in training."""
        if not isinstance(storage, Storage):
            raise WeightsFileError(f"A tensor should have a storage, not a {type(storage).__name__}.")
        shape, strides = _size(shape), _size(strides)
        _check_sizes(offset, *shape, *strides)
        tensor = cls(storage, offset, shape, strides)
        if len(shape) != len(strides):
            raise WeightsFileError(f"A tensor of {len(shape)} axes should have as many strides, not {len(strides)}.")
        if max(offset + tensor.span, math.prod(shape)) > storage.count:
            raise WeightsFileError(f"{tensor} should be inside its storage of {storage.count} elements.")
        return tensor

    @property
    def span(self):
        """Number of elements from the first to the last of the tensor, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))


def _check_sizes(*values):
    """Values that are refused are never printed: nested tuples may be exponentially longer than their pickle."""
    for value in values:
        if not (isinstance(value, int) and 0 <= value < 2**63):
            kind = "a large or negative one" if isinstance(value, int) else f"a {type(value).__name__}"
            raise WeightsFileError(f"Sizes, offsets and strides of tensors should be 63-bit integers, not {kind}.")


def _size(values=()):
    """Replacement for `torch.Size`."""
    if not isinstance(values, (tuple, list)) or len(values) > MAX_AXES:
        raise WeightsFileError(f"A tensor's size should be a tuple of at most {MAX_AXES} integers.")
    return tuple(values)


def _checked_dict(pairs=()):
    """Replacement for `collections.OrderedDict`; keys must not be tuples, which may take forever to hash."""
    pairs = [(key, value) for key, value in pairs]
    if not all(isinstance(key, (str, int)) for key, _ in pairs):
        raise WeightsFileError("The keys of a checkpoint's dicts should be strings or integers.")
    return dict(pairs)


def _ignore(*_):
    """Replacement for constructors of values other than tensors, such as NumPy scalars and devices."""


_GLOBALS = {
    "collections.OrderedDict": _checked_dict,
    "torch._utils._rebuild_tensor": Tensor.rebuild,
    "torch._utils._rebuild_tensor_v2": Tensor.rebuild,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.Size": _size,
    "torch.storage.UntypedStorage": "uint8",
    **{f"torch.{storage}": dtype for storage, dtype in STORAGES.items()},
    **dict.fromkeys((f"torch.{dtype}" for dtype in STORAGES.values()), _ignore),
    **dict.fromkeys(("torch.device", "numpy.dtype", "_codecs.encode"), _ignore),
    **dict.fromkeys((f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")), _ignore),
}
"""Every global that a pickle may use -> what replaces it."""

_OPCODES = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINSTRING SHORT_BINSTRING
    BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST APPEND APPENDS
    EMPTY_DICT BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID
""".split()  # noqa: SIM905 (a literal takes forty lines)
"""Opcodes of tensor pickles that `pickle._Unpickler` handles; four more are redefined below."""
_WEIGHTS_ONLY = "It should contain weights only. Nothing was run; save only `model.state_dict()`."


class _Opcodes(dict):
    """Opcode -> method of the unpickler, which costs steps of a budget; WeightsFileError for an opcode without one."""

    def __init__(self, methods, budget):
        super().__init__(methods)
        self.budget = budget

    def __getitem__(self, code):
        self.budget.spend(steps=2)
        return super().__getitem__(code)

    def __missing__(self, code):
        name = next((opcode.name for opcode in pickletools.opcodes if ord(opcode.code) == code), hex(code))
        raise WeightsFileError(f"This PyTorch file uses the pickle opcode {name}, unlike a state dict. {_WEIGHTS_ONLY}")


class _PickleFile:
    """The bytes from the position of a file on, of which at most MAX_PICKLE_BYTES can be read."""

    def __init__(self, file):
        self.file, self.left = file, MAX_PICKLE_BYTES

    def read(self, size):
        self.left -= size
        if self.left < 0:
            raise WeightsFileError(f"A PyTorch file should have pickles of at most {MAX_PICKLE_BYTES} bytes.")
        return self.file.read(size)

    def readline(self):
        """A line of GLOBAL: the name of a module or class."""
        return self.file.readline(256)


class StateDictUnpickler(pickle._Unpickler):
    """Unpickler of state dicts that calls only the replacements in this module.

    `load` returns the unpickled value with a `Tensor` for each tensor. It raises WeightsFileError for a pickle with
    anything but data or that exceeds the budget, and any exception for a damaged pickle.

    The base class is the Python version of pickle's interpreter: opcodes can be removed and replaced (BUILD would set
    attributes of any object), and a large memo index does not allocate memory as in the C version.
    """

    def __init__(self, file: BinaryIO, budget: Budget):
        super().__init__(_PickleFile(file), encoding="latin1")
        self.budget = budget
        self.dispatch = _Opcodes(self.dispatch, budget)  # type: ignore[misc]
        self.itemsizes: dict[str, int] = {}
        """Storage key -> bytes per element."""

    def find_class(self, module, name):
        path = f"{module}.{name}"
        if path not in _GLOBALS:
            raise WeightsFileError(f"This PyTorch file contains code: the global `{path[:100]}`. {_WEIGHTS_ONLY}")
        return _GLOBALS[path]

    def persistent_load(self, identifier):
        storage = Storage.from_persistent_id(*identifier)
        self.itemsizes.setdefault(storage.key, storage.itemsize)
        return storage

    def load_reduce(self):
        """A replacement takes as long as its arguments, which may be the same ones many times, are long."""
        arguments = self.stack[-1]
        self.budget.spend(steps=len(arguments) + sum(len(value) for value in arguments if hasattr(value, "__len__")))
        super().load_reduce()

    def load_build(self):
        self.stack.pop()

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1].update(_checked_dict([(key, value)]))

    def load_setitems(self):
        items = self.pop_mark()
        self.stack[-1].update(_checked_dict(zip(items[::2], items[1::2], strict=True)))

    dispatch: ClassVar[dict] = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPCODES
    }
    dispatch |= {pickle.REDUCE[0]: load_reduce, pickle.BUILD[0]: load_build}
    dispatch |= {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}


def state_dict_pickle(arrays: dict[str, np.ndarray]) -> bytes:
    """Pickle of an OrderedDict of tensors; the elements of array i are the storage with the key "i"."""
    tensors = OrderedDict()
    for i, (name, array) in enumerate(arrays.items()):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        tensors[name] = Tensor(Storage(str(i), array.dtype.name, 0, array.size), 0, array.shape, strides)
    file = io.BytesIO()
    _StateDictPickler(file, protocol=2).dump(tensors)
    return file.getvalue()


class _StateDictPickler(pickle._Pickler):
    """Pickler that writes each `Tensor` as a torch.Tensor, with the names of torch's globals."""

    def persistent_id(self, value):
        if isinstance(value, Storage):
            name = next(name for name, dtype in STORAGES.items() if dtype == value.dtype)
            return "storage", _global("torch", name), value.key, "cpu", value.count

    def reducer_override(self, value):
        if isinstance(value, Tensor):  # (storage, offset, shape, strides, requires_grad, backward_hooks)
            arguments = (value.storage, value.offset, value.shape, value.strides, False, OrderedDict())
            return _global("torch._utils", "_rebuild_tensor_v2"), arguments
        # Classes are written by `save_global`, also after an import of dill, which replaces how pickle does it
        return value.__name__ if isinstance(value, type) else NotImplemented

    def save_global(self, value, name=None):
        self.write(pickle.GLOBAL + f"{value.__module__}\n{value.__name__}\n".encode())


def _global(module, name):
    """A placeholder that is pickled as a global of a module, which is not imported."""
    return type(name, (), {"__module__": module})
