"""State dicts as PyTorch pickles them, read and written without torch; no pickle is executed.

The unpickler knows the few opcodes and names which tensors need and calls nothing from outside this module.
"""

import math
import pickle
import pickletools
import struct
from dataclasses import dataclass

import numpy as np

from keras_resnet.weights.weights_file import Refusal

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
    """Elements [start, start + count) of what the file keeps under `key`."""

    key: str
    dtype: str
    start: int
    count: int

    @classmethod
    def from_persistent_id(cls, tag, dtype, key, location, count, view=None):
        """torch's ("storage", type, key, device, elements), and in streams None or (view key, start, elements)."""
        _, start, size = view or (None, 0, count)
        if tag != "storage" or dtype not in STORAGES.values() or not isinstance(key, str):
            raise Refusal(f"A tensor's storage should be of a type in {sorted(STORAGES)}.")
        if not (_is_natural(count, start, size) and start + size <= count):
            raise Refusal(f"Storage {key!r} of {count} elements should hold elements {start} to {start} + {size}.")
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
        """The arguments of `torch._utils._rebuild_tensor_v2`; its last three concern training only."""
        if len(shape) != len(strides) or len(shape) > 64:
            raise Refusal(f"A tensor should have as many strides as axes, not {len(strides)} and {len(shape)}.")
        tensor = cls(storage, offset, tuple(shape), tuple(strides))
        natural = _is_natural(offset, *shape, *strides)
        if not natural or max(offset + tensor.span, math.prod(shape)) > storage.count:
            raise Refusal(
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


def _is_natural(*values):
    return all(isinstance(value, int) and value >= 0 for value in values)


def _plain_dictionary(pairs=()):
    """Stands in for `collections.OrderedDict`. Keys are simple, since hashing nested tuples can take for ever."""
    pairs = [(key, value) for key, value in pairs]
    if not all(isinstance(key, (str, int)) for key, _ in pairs):
        raise Refusal("The keys of a checkpoint's dictionaries should be strings or integers.")
    return dict(pairs)


def _ignored(*_):
    """Stands in for what makes values other than tensors: a NumPy scalar such as `best_prec1`, a device."""


_STAND_INS = {
    "collections.OrderedDict": _plain_dictionary,
    "torch._utils._rebuild_tensor": Tensor.rebuild,
    "torch._utils._rebuild_tensor_v2": Tensor.rebuild,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.Size": tuple,
    "torch.storage.UntypedStorage": "uint8",
    **{f"torch.{storage}": dtype for storage, dtype in STORAGES.items()},
    **dict.fromkeys((f"torch.{dtype}" for dtype in STORAGES.values()), _ignored),
    **dict.fromkeys(("torch.device", "numpy.dtype", "_codecs.encode"), _ignored),
    **dict.fromkeys((f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")), _ignored),
}
"""Every name that a pickle may ask for -> what it gets instead."""

_OPCODES = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINSTRING SHORT_BINSTRING
    BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST APPEND APPENDS
    EMPTY_DICT BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID REDUCE
""".split()  # noqa: SIM905 (a literal takes forty lines)
"""What pickles of tensors use and `pickle` may do as it does; three more are redefined below."""


class _Opcodes(dict):
    """What the unpickler does for an opcode; one that no state dict needs is refused by its name."""

    def __missing__(self, code):
        name = next((opcode.name for opcode in pickletools.opcodes if ord(opcode.code) == code), hex(code))
        raise Refusal(
            f"A PyTorch file should hold weights only, but this one asks for the pickle opcode {name}, which runs code "
            "or is in no state dict. Nothing was run; save `model.state_dict()` alone instead."
        )


class StateDictUnpickler(pickle._Unpickler):
    """Reads the pickle of a state dict, calling only this module's stand-ins.

    `load` returns the unpickled value, each tensor in it a `Tensor`; it raises Refusal for a pickle that asks for
    anything but data, and whatever comes for one that is damaged.

    It builds on Python's own interpreter written in Python, where opcodes can be left out and replaced: BUILD would
    set attributes of any object. In the C version an index into the memo also takes memory at will.
    """

    def __init__(self, file):
        super().__init__(file, encoding="latin1")
        self.itemsizes = {}
        """Storage key -> bytes an element."""

    def find_class(self, module, name):
        if f"{module}.{name}" not in _STAND_INS:
            raise Refusal(
                "A PyTorch file should hold weights only, but this one carries code: it asks for the global "
                f"`{module}.{name}`. Nothing was run; save `model.state_dict()` alone instead."
            )
        return _STAND_INS[f"{module}.{name}"]

    def persistent_load(self, identifier):
        storage = Storage.from_persistent_id(*identifier)
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
    dispatch = _Opcodes(dispatch)


def state_dict_pickle(arrays):
    """Pickle of an OrderedDict of the tensors; the elements of array i are the storage of key "i".

    A tensor is torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, backward_hooks).
    """
    items = b"".join(_push(name) + _push_tensor(str(i), arrays[name]) for i, name in enumerate(arrays))
    return pickle.PROTO + b"\x02" + _PUSH_ORDERED_DICT + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


def _push_tensor(key, array):
    storage_class = next(name for name, dtype in STORAGES.items() if dtype == array.dtype.name)
    storage = ("storage", _push_global("torch", storage_class), key, "cpu", array.size)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    arguments = (_push(storage) + pickle.BINPERSID, 0, array.shape, strides, False, _PUSH_ORDERED_DICT)
    return _push_global("torch._utils", "_rebuild_tensor_v2") + _push(arguments) + pickle.REDUCE


def _push_global(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _push(value):
    """Protocol-2 opcodes that push a value; bytes are opcodes already."""
    match value:
        case bytes():
            return value
        case bool():
            return pickle.NEWTRUE if value else pickle.NEWFALSE
        case int():
            digits = pickle.encode_long(value)
            return pickle.LONG1 + bytes([len(digits)]) + digits
        case str():
            text = value.encode("utf-8")
            return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
        case tuple():
            return pickle.MARK + b"".join(map(_push, value)) + pickle.TUPLE


_PUSH_ORDERED_DICT = _push_global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
