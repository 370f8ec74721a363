"""JSON of others: text of bounded size and depth, and values checked against the annotations of dataclasses."""

import json
import math
import numbers
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from itertools import accumulate
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from keras_resnet.errors import bounded_repr, check_known, value_error

MAX_JSON_BYTES = 2**25
"""Largest JSON text; the config of a ResNet-1202 has an eighth of it."""
MAX_JSON_VALUES = 1_500_000
"""Largest number of values in a JSON text, six ResNets-1202; each may take 200 bytes, an object with one value."""
MAX_JSON_DEPTH = 100
"""Deepest nesting of a JSON text: Python's parser calls itself for each level."""
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*+"?', re.DOTALL)
"""A string, or one without an end: each byte of a text is then read once."""
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SCALARS = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "an integer"),
    float: (numbers.Real, "a finite number"),
    str: (str, "a string"),
    NoneType: (NoneType, "null"),
}
"""Annotation -> (class of the values, among them NumPy's numbers; what they should be)."""
_CONTAINERS = {list: (list, tuple), tuple: (list, tuple), dict: Mapping}
"""Annotation -> class of the values."""


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of a number, for annotations.

    >>> from typing import Annotated
    >>> from keras_resnet.schema import Range, checked
    >>> checked(1.5, Annotated[float, Range(0, 1, open_end=True)], "dropout")
    Traceback (most recent call last):
    ValueError: `dropout` should be a finite number in [0, 1). Received: dropout=1.5
    """

    smallest: float
    largest: float
    open_end: bool = False
    """Whether the largest value itself is excluded."""

    def __contains__(self, value):
        return self.smallest <= value < self.largest or (value == self.largest and not self.open_end)

    def __str__(self):
        return f"[{self.smallest}, {self.largest}{')' if self.open_end else ']'}"


def parse_json(
    text: str | bytes,
    annotation: Any = Any,
    name: str = "value",
    max_bytes: int = MAX_JSON_BYTES,
    max_values: int = MAX_JSON_VALUES,
    max_containers: int = MAX_JSON_VALUES,
) -> Any:
    """The value of a JSON text, as `checked` returns it.

    >>> from keras_resnet.schema import parse_json
    >>> parse_json('{"depths": [3, 4]}', dict[str, tuple[int, ...]])
    {'depths': (3, 4)}

    Args:
        text: JSON in UTF-8, with NaN and Infinity as Python writes them.
        annotation: the type that the value should have.
        name: name of the value in errors.
        max_bytes: largest length of the text.
        max_values: largest number of values.
        max_containers: largest number of lists and objects, which take more memory than other values.

    Raises:
        ValueError: for text that is not JSON, is longer than `max_bytes`, has more than `max_values` values or
            `max_containers` lists and objects, or is nested deeper than MAX_JSON_DEPTH; and as `checked`.
    """
    text = text.encode() if isinstance(text, str) else text
    if len(text) > max_bytes:
        raise ValueError(f"`{name}` should have at most {max_bytes} bytes of JSON. Received: {len(text)} bytes")
    _check_structure(text, name, max_values, max_containers)
    return checked(json.loads(text.decode()), annotation, name)


def _check_structure(text, name, max_values, max_containers):
    """Raises ValueError for JSON with too many values or levels, which would take memory or the parser's stack."""
    _check_count(name, text.count(b'"') // 4, max_values, "values")  # a key and a value have four quotes
    structure = _STRING.sub(b"", text)
    containers = structure.count(b"[") + structure.count(b"{")
    _check_count(name, containers + structure.count(b","), max_values, "values")
    _check_count(name, containers, max_containers, "lists and objects")
    brackets = structure.translate(None, _NO_BRACKETS)
    depth = max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0)
    if depth > MAX_JSON_DEPTH:
        raise ValueError(f"`{name}` should be JSON of at most {MAX_JSON_DEPTH} levels. Received: {depth} levels")


def _check_count(name, count, limit, what):
    if count > limit:
        raise ValueError(f"`{name}` should have at most {limit} JSON {what}. Received: {count} {what}")


def checked(value: Any, annotation: Any, name: str) -> Any:
    """A value as its annotation says: lists as tuples, integers as floats, objects as dataclasses.

    >>> from keras_resnet.schema import checked
    >>> checked([1, 2], tuple[float, ...], "mean")
    (1.0, 2.0)

    Args:
        value: a value of JSON, of NumPy or of Python.
        annotation: Any, bool, int, float (finite), str, None, list[T], tuple[T, ...], dict[str, T], Literal[...],
            Annotated[T, Range(...)], a dataclass, a TypedDict, another class, or a union of these. Keys that a
            TypedDict does not have are not checked.
        name: name of the value in errors.

    Raises:
        ValueError: for a value of another type, an unknown field of a dataclass, and a missing one.
    """
    origin: Any = get_origin(annotation) or annotation
    arguments = get_args(annotation)
    if annotation is Any or (type(value) is origin and is_dataclass(value)):
        return value
    if origin in (Union, UnionType):
        return _checked_union(value, arguments, name)
    if origin is Annotated:
        return _checked_number(value, arguments[0], arguments[1], name)
    if origin is Literal:
        check_known(name, value, arguments)
        return value
    if origin in _CONTAINERS:
        return _checked_items(value, origin, arguments, name)
    if origin in _SCALARS or annotation is None:
        return _checked_scalar(value, annotation or NoneType, name)
    if is_dataclass(origin) or is_typeddict(origin):
        return _checked_fields(value, origin, name)
    if not isinstance(value, origin):
        raise value_error(name, value, f"a {origin.__name__}")
    return value


def check_fields(instance: Any) -> None:
    """Sets each field of a frozen dataclass to its value, as `checked` returns it: for its `__post_init__`.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Crop:
    ...     size: int
    ...     def __post_init__(self):
    ...         check_fields(self)
    >>> Crop(size="large")
    Traceback (most recent call last):
    ValueError: `size` should be an integer. Received: size='large'

    Raises:
        ValueError: for a value of another type than the field's.
    """
    cls: Any = type(instance)
    for name, annotation in _annotations(cls).items():
        object.__setattr__(instance, name, checked(getattr(instance, name), annotation, name))


@cache
def _annotations(cls):
    """{field: annotation} of a dataclass or TypedDict."""
    hints = get_type_hints(cls, include_extras=True)
    if not is_dataclass(cls):
        marked = (Required, NotRequired)
        return {name: get_args(hint)[0] if get_origin(hint) in marked else hint for name, hint in hints.items()}
    return {field.name: hints[field.name] for field in fields(cls)}


def _checked_scalar(value, annotation, name):
    accepted, expected = _SCALARS[annotation]
    if not isinstance(value, accepted) or (isinstance(value, bool) and annotation is not bool):
        raise value_error(name, value, expected)
    if annotation is NoneType:
        return None
    try:
        converted = annotation(value)
    except OverflowError:  # an integer with more than 308 digits as a float
        converted = math.inf
    if annotation is float and not math.isfinite(converted):
        raise value_error(name, value, expected)
    return converted


def _checked_number(value, annotation, limits, name):
    number = checked(value, annotation, name)
    if number not in limits:
        raise value_error(name, value, f"{_SCALARS[annotation][1]} in {limits}")
    return number


def _checked_union(value, options, name):
    errors = []
    for option in options:
        try:
            return checked(value, option, name)
        except ValueError as error:
            errors.append(error)
    raise errors[-1 if options[-1] is not NoneType else 0]


def _checked_items(value, origin, arguments, name):
    if not isinstance(value, _CONTAINERS[origin]):
        raise value_error(name, value, "an object" if origin is dict else "a list")
    if origin is not dict:
        item = arguments[0] if arguments else Any
        return origin(checked(part, item, f"{name}[{index}]") for index, part in enumerate(value))
    key_annotation, item = arguments or (Any, Any)
    return {checked(key, key_annotation, name): checked(part, item, _of(name, key)) for key, part in value.items()}


def _checked_fields(value, cls, name):
    """A dataclass, or a dict with all keys of `value`, of values with the annotations of the class."""
    annotations = _annotations(cls)
    required = (
        cls.__required_keys__ if is_typeddict(cls) else {field.name for field in fields(cls) if _is_required(field)}
    )
    if not isinstance(value, Mapping):
        raise value_error(name, value, f"an object with {sorted(annotations)}")
    if missing := sorted(required - value.keys()):
        raise value_error(name, sorted(value, key=str), f"an object with {missing}")
    if is_typeddict(cls):
        return {key: checked(part, annotations.get(key, Any), _of(name, key)) for key, part in value.items()}
    for key in value:
        check_known(name, key, annotations, f"an object with fields among {sorted(annotations)}")
    return cls(**{key: checked(part, annotations[key], _of(name, key)) for key, part in value.items()})


def _is_required(field):
    return field.default is MISSING and field.default_factory is MISSING


def _of(name, key):
    """Name of a value in an object, with a short key."""
    is_short = isinstance(key, str) and key.isidentifier() and len(key) <= 50
    return f"{name}.{key}" if is_short else f"{name}[{bounded_repr(key)}]"
