"""Checks of values, and errors in Keras's form: what was expected, what was received, and the nearest known names."""

import difflib


def unknown_name_error(argument, value, known, expected=None):
    """The ValueError for a name that is not among the known ones.

    Args:
        argument: name of the argument.
        value: what was given for it.
        known: the names that exist.
        expected: in words, where the known names are too many to list.
    """
    names = [str(name) for name in known]
    given = str(value)
    longer = [name for name in names if given and name.lower().startswith(given.lower())]
    near = list(dict.fromkeys(longer + difflib.get_close_matches(given.lower(), names, n=3, cutoff=0.4)))[:3]
    nearest = f" Nearest: {near}." if near else ""
    return ValueError(
        f"`{argument}` should be {expected or f'one of {names}'}.{nearest} Received: {argument}={value!r}"
    )


def is_number(value):
    """Whether a value is an integer or a float; True and False are neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_integer(value, least):
    """Whether a value is an integer, and large enough; True is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_integers(least=1, **arguments):
    """Raises ValueError for arguments that are no integers, or smaller than the least that makes sense."""
    for argument, value in arguments.items():
        if not is_integer(value, least):
            raise ValueError(f"`{argument}` should be an integer, {least} or more. Received: {argument}={value!r}")


def error_summary(error):
    """What a library's exception says, in a line: without the places in C++ that some begin with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from ", "Check '"))]
    return (telling or lines or [type(error).__name__])[0][:300]
