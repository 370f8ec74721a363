"""The application, what its commands print, and how an error or a signal ends a command."""

import json
import logging
import signal
import sys
import warnings
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from keras_resnet.errors import error_summary

app = typer.Typer(
    help="Residual networks in Keras: build, load published weights, train, evaluate, fine-tune, search, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
study = typer.Typer(help="The paper's own experiments.", no_args_is_help=True)
app.add_typer(study, name="study")
ERRORS = (ValueError, OSError, ImportError, ArithmeticError, RuntimeError)
"""Exceptions caused by the input or the machine, printed as one message. Others are bugs and keep their traceback."""
out, err = Console(markup=False, emoji=False), Console(stderr=True)  # class and file names may contain [ ] and : :


def print_json(value):
    """Prints a value as indented JSON on standard output."""
    print(json.dumps(value, indent=2))


def print_line(*parts):
    """Prints one line as it is on standard output, however long."""
    out.print(*parts, highlight=False, soft_wrap=True)


def print_progress(text):
    """Prints a line about what is going on, on standard error."""
    err.print(Text(text), soft_wrap=True)


def print_note(kind, text, color="red"):
    """Prints "kind: text" on standard error, or "kind" alone."""
    err.print(f"[{color}]{kind}{':' if text else ''}[/]", Text(text), sep=" " if text else "", soft_wrap=True)


def print_table(rows, title=None, left=(), unbroken=()):
    """Prints a table of dicts: the first column and those named in `left` are text, the others are numbers.

    Numbers without a unit, and the columns named in `unbroken`, are never broken into lines.
    """
    table = Table(box=None, header_style="bold", title=title and Text(title), title_justify="left")
    for row in rows:
        for column in row if not table.columns else ():
            text = column in (next(iter(row)), *left)
            number = not text and " " not in str(row[column])  # neither a unit nor a range
            whole = number or column in unbroken
            table.add_column(column, overflow="fold", no_wrap=whole, justify="left" if text else "right")
        table.add_row(*map(str, row.values()))
    if table.columns:
        out.print(table)


@contextmanager
def progress_bar(total=None):
    """Gives a function of the number of finished images, and of all images, that draws a bar on a terminal."""
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("images", total=total)

        def update(done, total=total):
            progress.update(bar, completed=done, total=total)

        yield update


@contextmanager
def error_messages():
    """Ends a command that fails with one message: exit status 1 after an error, 130 after Ctrl-C, 143 after SIGTERM."""
    interrupts, handler = [], signal.getsignal(signal.SIGINT)

    def interrupt(*signal_and_frame):
        interrupts.append(signal_and_frame)
        signal.default_int_handler(*signal_and_frame)

    if handler is signal.default_int_handler:  # not ignored, as in the background of a script
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        stopped = interrupts or isinstance(error, KeyboardInterrupt)  # libraries in C++ raise errors of their own
        library = isinstance(error, (MemoryError, *_tensorflow_errors()))
        if isinstance(error, typer.Exit) or not (stopped or library or isinstance(error, ERRORS)):
            raise
        print_note("stopped" if stopped else "error", _one_line(error) if library and not stopped else str(error))
        raise typer.Exit(128 + getattr(error, "signal_number", signal.SIGINT) if stopped else 1) from None
    finally:
        signal.signal(signal.SIGINT, handler)


def _tensorflow_errors():
    """TensorFlow's own class of errors, such as ResourceExhaustedError, if TensorFlow is imported."""
    tensorflow = sys.modules.get("tensorflow")
    return (tensorflow.errors.OpError,) if tensorflow else ()


def _one_line(error):
    """The message of a library's error as one line, after "not enough memory" where that is its cause."""
    memory = isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"
    return f"not enough memory ({error_summary(error)})" if memory else error_summary(error)


def main():
    """Runs the command line."""
    warnings.showwarning = _print_warning
    logging.getLogger("absl").setLevel(logging.ERROR)  # notes of tensorflow-datasets to its developers
    app()


def _print_warning(message, category, *_):
    """Prints a warning for users as one line; warnings for developers are not shown."""
    if issubclass(category, UserWarning):
        print_note("note", str(message), "yellow")
