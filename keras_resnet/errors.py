"""Checks of values, and errors in Keras's form: what was expected, what was received, and the nearest known names."""

import difflib
import importlib.util
import math
import numbers
import os
import reprlib
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import fields
from typing import Any


class _BoundedRepr(reprlib.Repr):
    """repr of a value of any size: a file of a few bytes can hold a tuple that takes minutes to print."""

    def __init__(self):
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 12
        self.maxstring = self.maxother = 300

    def repr_int(self, value, level):
        """Python refuses to print integers with more than 4,300 digits."""
        return repr(value) if value.bit_length() <= 512 else f"<integer of {value.bit_length()} bits>"


def bounded_repr(value: object) -> str:
    """The repr of a value, shortened to at most 500 characters, in bounded time for nested values.

    >>> from keras_resnet.errors import bounded_repr
    >>> bounded_repr([0] * 10**6), bounded_repr(10**5000)
    ('[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ...]', '<integer of 16610 bits>')
    """
    text = _BoundedRepr().repr(value)
    return text if len(text) <= 500 else f"{text[:497]}..."


def value_error(argument: str, value: object, expected: str, hint: str = "") -> ValueError:
    """ValueError("`argument` should be EXPECTED. HINT Received: argument=value"), with `hint` a sentence or empty."""
    received = f"Received: {argument}={bounded_repr(value)}"
    return ValueError(f"`{argument}` should be {expected}.{hint and ' ' + hint} {received}")


def unknown_name_error(
    argument: str,
    value: object,
    known: Iterable,
    expected: str | None = None,
    equivalents: Mapping[str, str] | None = None,
) -> ValueError:
    """The ValueError for a name that is not one of the known ones.

    Args:
        argument: name of the argument.
        value: the unknown name.
        known: the known names.
        expected: description of the known names, if they are too many to list.
        equivalents: {name in another library: what to write here}; named instead of the nearest known names.
    """
    names = [str(name) for name in known]
    given = (value if isinstance(value, str) else bounded_repr(value))[:100]
    if equivalent := (equivalents or {}).get(given.replace("-", "_")):
        return value_error(argument, value, expected or f"one of {names}", f"Use {equivalent}.")
    longer = [name for name in names if given and name.lower().startswith(given.lower())]
    near = list(dict.fromkeys(longer + difflib.get_close_matches(given.lower(), names, n=3, cutoff=0.4)))[:3]
    return value_error(argument, value, expected or f"one of {names}", f"Nearest: {near}." if near else "")


def check_known(
    argument: str,
    value: object,
    known: Collection,
    expected: str | None = None,
    equivalents: Mapping[str, str] | None = None,
) -> None:
    """Raises the ValueError of `unknown_name_error` for a value that is not one of the known ones."""
    if not isinstance(value, Hashable) or value not in known:
        raise unknown_name_error(argument, value, known, expected, equivalents)


def check_keywords(
    function: str, names: Iterable[str], *classes: Any, equivalents: Mapping[str, str] | None = None
) -> None:
    """Raises TypeError for keyword arguments of a function that are not fields of one of some dataclasses.

    >>> from keras_resnet import DetectionSettings
    >>> from keras_resnet.errors import check_keywords
    >>> check_keywords("with_settings", ["detections"], DetectionSettings)

    Args:
        function: name of the function.
        names: names of the keyword arguments that are not the function's own.
        classes: the dataclasses.
        equivalents: as of `unknown_name_error`.
    """
    known = [field.name for each in classes for field in fields(each)]
    expected = f"arguments of `{function}`, or fields of {' or '.join(each.__name__ for each in classes)}"
    for name in names:
        if name not in known:
            raise TypeError(str(unknown_name_error("changes", name, known, expected, equivalents)))


TENSORFLOW = "keras-residual[tensorflow]"
"""What installs TensorFlow and tensorflow-datasets."""
DETECTION = "keras-residual[detection]"
"""What installs faster-coco-eval, for masks and COCO's metrics."""


def check_installed(what: str, modules: Iterable[str], package: str) -> None:
    """Raises ImportError, with the command that installs `package`, if `what` needs modules that are missing."""
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise ImportError(
            f"{what} needs {', '.join(missing)}, not installed here. Install with `pip install '{package}'`."
        )


def is_number(value: object) -> bool:
    """Whether a value is an integer or a float, of Python or NumPy; False for True and False."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_integer(value: object, minimum: int, maximum: float = math.inf) -> bool:
    """Whether a value is an integer from `minimum` to `maximum`, of Python or NumPy; False for True and False."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and minimum <= int(value) <= maximum


MAX_COUNT = 10**9
"""Largest number of anything that an argument counts, such as steps: larger ones overflow in libraries."""


def check_integers(minimum: int = 1, maximum: int = MAX_COUNT, **arguments: object) -> None:
    """Raises ValueError for an argument that is not an integer from `minimum` to `maximum`."""
    for argument, value in arguments.items():
        if not is_integer(value, minimum, maximum):
            raise value_error(argument, value, f"an integer from {minimum} to {maximum:,}")


def check_path(argument: str, value: object) -> None:
    """Raises ValueError for an argument that is not a path."""
    if not isinstance(value, (str, os.PathLike)) and not hasattr(value, "joinpath"):  # a UPath is no PathLike
        raise value_error(argument, value, "a path")


def error_summary(error: BaseException) -> str:
    """One line of at most 300 characters from an exception's message, without leading C++ source locations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    readable = [line for line in lines if not line.startswith(("Exception from ", "Check '"))]
    return (readable or lines or [type(error).__name__])[0][:300]
