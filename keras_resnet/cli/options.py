"""Options of the commands: made of the parameters of the functions that they call, and those that several share."""

import inspect
import json
import re
from dataclasses import fields
from functools import cache, wraps
from itertools import chain
from pathlib import Path
from typing import Annotated

import docstring_parser
from typer import Option

import keras_resnet
from keras_resnet.cli.app import app, error_messages
from keras_resnet.equivalents import RECIPE_FIELDS
from keras_resnet.errors import check_known, value_error
from keras_resnet.normalization import MODES
from keras_resnet.precision import COMPUTED, precision_scope
from keras_resnet.training.recipe import Recipe
from keras_resnet.variants import network_task
from keras_resnet.weights.repositories import is_repository

AsJson = Annotated[bool, Option("--json", help="Print JSON instead of a table.")]
NETWORK_OR_FILE = "A network of `keras-resnet models`, or a .keras file."
Model = Annotated[str, Option("--model", help=NETWORK_OR_FILE)]
Weights = Annotated[str | None, Option(help="A tag (see `keras-resnet models`) or the path of a weights file.")]
Mode = Annotated[str | None, Option(help=f"Preprocessing, unless the weights define one: {', '.join(MODES)}.")]
Precision = Annotated[str | None, Option(help=f"What the network computes in: {', '.join(COMPUTED)}.")]
CLASS_FOLDERS = "digits, a name of tensorflow-datasets, or a folder of class folders."
TrainingSet = Annotated[str, Option("--dataset", help=CLASS_FOLDERS)]
TestSet = Annotated[str, Option("--dataset", help="digits, a name of tensorflow-datasets, or a folder of images.")]
CHANGES = Option("--set", help="Change a field of the recipe: --set epochs=2.", metavar="FIELD=VALUE")
Changes = Annotated[list[str] | None, CHANGES]
DEFAULT_WEIGHTS = {"detection": "coco", "segmentation": "coco_voc"}
"""Task -> tag of the weights of its networks, if no other one is given."""
TYPES = (bool, int, float, Path, str)
"""Types of options. A parameter with several types has the first of them."""


def command(application=app, **groups):
    """Registers a command that hands some of its options on to the functions that it calls.

    A keyword is an argument of the command: {function or dataclass: names of its parameters in one string}. Each of
    these parameters becomes an option with its type, default and description; the command gets their values as a dict.
    """

    def register(function):
        options = {
            group: [option(callee, name) for callee, names in callees.items() for name in names.split()]
            for group, callees in groups.items()
        }

        @wraps(function)
        def run(**values):
            handed_on = {group: {it.name: values.pop(it.name) for it in options[group]} for group in groups}
            with error_messages():
                return function(**values, **handed_on)

        own = [it for it in inspect.signature(function).parameters.values() if it.name not in groups]
        parameters = [it.replace(kind=it.KEYWORD_ONLY) for it in (*own, *chain(*options.values()))]
        run.__signature__, run.__annotations__ = inspect.Signature(parameters), {}
        application.command()(run)
        return function

    return register


def option(callee, name):
    """The inspect.Parameter of a command for a parameter of a function, or for a field of a dataclass.

    Its help is the first sentence of the parameter's description. "None: all of them" is shown as the default.
    """
    parameter = inspect.signature(callee).parameters[name]
    text = " ".join(_descriptions(callee)[name].split())
    default = re.search(r"(?:^|[;.,]\s)None:? ([^.;]+)", text)
    text = re.split(r"[;.,]\sNone\b|\.\s|\.$", text)[0]
    text = re.sub(r"^[Ww]hether to ", "", text)
    words = re.findall(r"\w+", str(parameter.annotation))
    if {"int", "float"} <= set(words) or "dict" in words:
        kind, settings = str, {"parser": value, "metavar": "NAME|JSON" if "dict" in words else "NUMBER"}
    else:
        kind, settings = next((it for it in TYPES if it.__name__ in words), str), {}
    shown = bool(parameter.default)
    if parameter.default is None:
        kind, shown = kind | None, default[1] if default else False
    option = Option(help=f"{text[:1].upper()}{text[1:]}.", show_default=shown, **settings)
    return parameter.replace(annotation=Annotated[kind, option])


@cache
def _descriptions(callee):
    """{name: description} of the parameters in a docstring, or of the documented fields of a dataclass."""
    return {it.arg_name: it.description for it in docstring_parser.parse_from_object(callee).params}


def model_from(name, weights, default_weights=None, precision=None):
    """A model by the name of its network, or the one in a .keras file, which has its own weights and precision."""
    if name.endswith(".keras"):
        raise_if_unused("a .keras file, which has its own", weights=weights, precision=precision)
        return keras_resnet.load_model(name)
    if weights is None and default_weights and not is_repository(name):
        weights = DEFAULT_WEIGHTS.get(network_task(name), default_weights)
        if weights not in (tags := keras_resnet.list_weights(name)):
            known = f", or one of {tags}" if tags else ""
            raise value_error("--weights", None, f"a weights file{known}, as {name} has no weights {weights!r}")
    with precision_scope(precision):
        return keras_resnet.create(name, weights=weights)


def raise_if_changed(what, callee, values):
    """Raises ValueError for each option of a function that is given, but not used for what the command got."""
    for name, given in values.items():
        if given != inspect.signature(callee).parameters[name].default:
            raise value_error(f"--{name.replace('_', '-')}", given, f"left out for {what}")


def numbers(option, text, count=None, decimals=False):
    """ "224,256" -> (224, 256), of length `count`, with `decimals` "0.5,1" -> (0.5, 1); None stays None."""
    if text is None:
        return None
    found, pattern = text.split(","), r"\s*[0-9]{1,9}(\.[0-9]{1,9})?\s*" if decimals else r"\s*[0-9]{1,9}\s*"
    if not all(re.fullmatch(pattern, number) for number in found) or len(found) != (count or len(found)):
        raise value_error(f"--{option}", text, f"{count or ''} numbers with commas between them".strip())
    return tuple(float(number) if "." in number else int(number) for number in found)


def value(text):
    """ "2" -> 2, "0.5" -> 0.5, "cosine" -> "cosine"."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError, TypeError):  # TypeError: a default, which is a number already
        return text


def recipe_changes(texts, **options):
    """["epochs=2"] -> {"epochs": 2}, fields of a recipe, and the options that are given: not None or False."""
    changes, known = {}, [field.name for field in fields(Recipe)]
    for field, equals, text in (text.partition("=") for text in texts or ()):
        if not equals:
            raise value_error("--set", field, "FIELD=VALUE, such as epochs=2")
        check_known("--set", field, known, "fields of a recipe", RECIPE_FIELDS)
        changes[field] = value(text)
    return changes | {field: given for field, given in options.items() if given is not None and given is not False}


def raise_if_unused(what, **options):
    """Raises ValueError for each option that is given, but not used for what the command got."""
    for name, given in options.items():
        if given is not None:
            raise value_error(f"--{name.replace('_', '-')}", str(given), f"left out for {what}")
