"""What the commands share: the application, its two streams, options, and how an error ends it."""

import json
import logging
import signal
import sys
import warnings
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import keras_resnet
from keras_resnet.errors import unknown_name_error
from keras_resnet.precision import COMPUTED, precision_scope
from keras_resnet.training.recipes import Recipe

app = typer.Typer(
    help="Residual networks in Keras: build, load anybody's weights, train, test, fine-tune, search, look at images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ERRORS = (ValueError, OSError, ImportError, ArithmeticError, RuntimeError)
"""What bad input and bad machines end in; the rest is ours to mend, and has a traceback."""
out, err = Console(markup=False), Console(stderr=True)  # names of classes and files are no markup

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Weights = Annotated[str | None, typer.Option(help="A tag (see `keras-resnet models`) or the path of a weights file.")]
DataDir = Annotated[Path | None, typer.Option(help="Where tensorflow-datasets keeps its data.")]
Download = Annotated[bool, typer.Option(help="Whether a missing data set may be downloaded.")]
ValidationSplit = Annotated[
    str | None,
    typer.Option(help="Judge by this share or number of the training images; the test set stays untouched."),
]
SkipBad = Annotated[bool, typer.Option(help="Leave out images that cannot be read.")]
Precision = Annotated[str | None, typer.Option(help=f"{', '.join(COMPUTED[:-1])} or {COMPUTED[-1]}.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a field of the recipe: --set epochs=2.", metavar="FIELD=VALUE"),
]
Seed = Annotated[int, typer.Option(help="Of weights, order and augmentation.")]
Deterministic = Annotated[bool, typer.Option(help="The same numbers in every run on this machine.")]
Devices = Annotated[int | None, typer.Option(help="GPUs to use, or parts of the CPU.", show_default="all GPUs")]
Resume = Annotated[bool, typer.Option(help="Go on with the run in the folder.")]
Overwrite = Annotated[bool, typer.Option(help="Replace an earlier run in the folder.")]
CheckpointEvery = Annotated[int | None, typer.Option(help="Steps between checkpoints within an epoch.", min=1)]


def network(name, weights, default_weights=None, precision=None):
    """A network by its name, or the model in a .keras file."""
    if name.endswith(".keras"):
        own_weights("a .keras file", weights=weights, precision=precision)
        return keras_resnet.load_model(name)
    with precision_scope(precision):
        return keras_resnet.create(name, weights=weights or default_weights)


def source(dataset, data_dir, download, skip_bad=False, validation_split=None):
    """A function that loads a data set, to be called when TensorFlow's devices are set up."""
    judged_by = value(validation_split) if validation_split else None
    return partial(keras_resnet.load_dataset, dataset, data_dir, download, judged_by, skip_bad)


def own_weights(what, **options):
    """Raises ValueError for options about a network in a file, which has its own."""
    for option, given in options.items():
        if given is not None:
            raise ValueError(f"`--{option}` should be left out: {what} has its own. Received: --{option} {given}")


def numbers(option, text, count=None):
    """ "224,256" -> (224, 256), so many of them; None stays."""
    if text is None:
        return None
    found = text.split(",")
    if not all(number.strip().isdecimal() for number in found) or len(found) != (count or len(found)):
        amount = f"{count} numbers" if count else "numbers"
        raise ValueError(f"`--{option}` should be {amount} with commas between them. Received: --{option} {text!r}")
    return tuple(int(number) for number in found)


def print_json(value):
    print(json.dumps(value, indent=2))


@contextmanager
def last_words():
    """Ctrl-C says how to go on; typer would swallow that."""
    try:
        yield
    except KeyboardInterrupt as stop:
        err.print("[red]stopped:[/]", Text(str(stop)), soft_wrap=True)
        raise typer.Exit(130) from None


def recipe_changes(texts):
    """["epochs=2"] -> {"epochs": 2}, fields of a recipe."""
    return dict(map(_assignment, texts or ()))


def _assignment(text):
    """ "epochs=2" -> ("epochs", 2)."""
    field, equals, given = text.partition("=")
    if not equals:
        raise ValueError(f"`--set` should be FIELD=VALUE, such as epochs=2. Received: --set {text}")
    known = [row.name for row in fields(Recipe)]
    if field not in known:
        raise unknown_name_error("--set", field, known, f"one of the fields of a recipe: {known}")
    return field, value(given)


def value(text):
    """ "2" -> 2, "0.5" -> 0.5, "cosine" -> "cosine"."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def separated(texts):
    """["a,b", "c"] -> ("a", "b", "c")."""
    return tuple(name.strip() for text in texts or () for name in text.split(","))


def _note(message, category, *_):
    """A warning as a line for people; those for developers are left out."""
    if issubclass(category, UserWarning):
        err.print("[yellow]note:[/]", Text(str(message)), soft_wrap=True)


@contextmanager
def _noticed():
    """A list that is no longer empty after Ctrl-C; libraries in C++ make an error of their own of it."""
    stops, before = [], signal.getsignal(signal.SIGINT)

    def stop(*signal_and_frame):
        stops.append(signal_and_frame)
        signal.default_int_handler(*signal_and_frame)

    if before is signal.default_int_handler:  # not ignored, as in the background of a script
        signal.signal(signal.SIGINT, stop)
    try:
        yield stops
    finally:
        signal.signal(signal.SIGINT, before)


def main():
    """The entry point: an error is one message and an exit status of 1, never a traceback."""
    warnings.showwarning = _note
    logging.getLogger("absl").setLevel(logging.ERROR)  # tensorflow-datasets' notes to its developers
    with _noticed() as stops:
        try:
            app()
        except KeyboardInterrupt:
            err.print("[red]stopped[/]")
            sys.exit(130)
        except Exception as error:
            if not stops and not isinstance(error, ERRORS):
                raise
            word, status = ("stopped", 130) if stops else ("error", 1)
            err.print(f"[red]{word}:[/]", Text(str(error)), soft_wrap=True)
            sys.exit(status)
