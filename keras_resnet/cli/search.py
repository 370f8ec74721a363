"""The command that searches for a network: tune."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

import keras_resnet
from keras_resnet.cli.app import (
    AsJson,
    Changes,
    CheckpointEvery,
    DataDir,
    Deterministic,
    Devices,
    Download,
    Overwrite,
    Precision,
    Seed,
    ValidationSplit,
    app,
    err,
    last_words,
    out,
    print_json,
    recipe_changes,
    source,
    value,
)
from keras_resnet.search.results import in_words
from keras_resnet.search.tune import WINNER

UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}


@app.command()
def tune(
    dataset: Annotated[str, typer.Option(help="digits, a tensorflow-datasets name, or class folders.")] = "digits",
    tuner: Annotated[str, typer.Option(help="random, bayesian or hyperband.")] = "random",
    trials: Annotated[int, typer.Option(help="Candidates to train, earlier ones included.", min=1)] = 20,
    max_params: Annotated[str | None, typer.Option(help="Most parameters: 100k, 1.5M.")] = None,
    max_multiply_adds: Annotated[str | None, typer.Option(help="Most for one image: 40M, 4G.")] = None,
    max_latency: Annotated[float | None, typer.Option(help="Most milliseconds for one image, measured here.")] = None,
    recipe: Annotated[str, typer.Option(help="A row of RECIPES, for what is not searched.")] = "quickstart",
    changes: Changes = None,
    workdir: Annotated[
        Path | None, typer.Option(help="Folder for what the search leaves.", show_default="runs/tune_DATASET")
    ] = None,
    data_dir: DataDir = None,
    download: Download = True,
    validation_split: ValidationSplit = "0.2",
    final: Annotated[bool, typer.Option(help="Train the best one on all training images, and test it.")] = True,
    devices: Devices = None,
    precision: Precision = None,
    seed: Seed = 0,
    deterministic: Deterministic = False,
    checkpoint_every: CheckpointEvery = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
):
    """Search for the most accurate network within a budget, and how to train it. Repeat it to go on.

    Several processes share a search: give each KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT and KERASTUNER_TUNER_ID,
    which is "chief" in one of them.
    """
    workdir = workdir or Path("runs") / f"tune_{Path(dataset).name}"
    with last_words():
        result = keras_resnet.tune(
            source(dataset, data_dir, download),
            tuner,
            trials,
            amount("max-params", max_params),
            amount("max-multiply-adds", max_multiply_adds),
            max_latency,
            recipe,
            workdir,
            seed,
            overwrite,
            validation_split=value(validation_split),
            final=final,
            checkpoint_every=checkpoint_every,
            deterministic=deterministic,
            devices=devices,
            precision=precision,
            progress=lambda text: err.print(Text(text), soft_wrap=True),
            **recipe_changes(changes),
        )
    if as_json:
        return print_json(result.to_config())
    if result.winner:  # a worker may end before the chief has written anything
        _print(result)
        again = {"recipe": recipe, "dataset": dataset, "data-dir": data_dir, "precision": precision, "devices": devices}
        out.print(f"again: {_command(result, workdir, again)}", highlight=False, soft_wrap=True)
    out.print(f"everything in {workdir}/", highlight=False, soft_wrap=True)


def amount(option, text):
    """ "100k" -> 100000; None stays."""
    if text is None:
        return None
    unit = UNITS.get(text[-1:], 1)
    try:
        return round(float(text.removesuffix(text[-1]) if unit > 1 else text) * unit)
    except (ValueError, OverflowError):
        raise ValueError(
            f"`--{option}` should be a number, such as 100000, 100k or 1.5M. Received: --{option} {text!r}"
        ) from None


def _print(result):
    front = result.front()
    table = Table("trial", box=None, header_style="bold")
    table.add_column("network", overflow="fold")
    for column in ("parameters", "multiply-adds", "accuracy"):
        table.add_column(column, justify="right", no_wrap=True)
    for candidate in result.completed:
        accuracy = f"{100 * candidate.top1_accuracy:.2f} %{' *' if candidate in front else '  '}"
        costs = (f"{candidate.parameters:,}", f"{candidate.multiply_adds:,}")
        table.add_row(candidate.trial, in_words(candidate.spec), *costs, accuracy)
    out.print(table)
    out.print("* no cheaper candidate is as accurate; on the images that judge", highlight=False)
    if result.final:
        accuracy = 100 * result.final["top1_accuracy"]
        out.print(
            f"trial {result.winner.trial}, trained on all training images: {accuracy:.2f} % "
            f"of {result.final['test_images']:,} test images",
            highlight=False,
            soft_wrap=True,
        )


def _command(result, workdir, options):
    """How to train the best network again, as it is trained in the end of the search."""
    named = keras_resnet.get_recipe(options["recipe"]).to_config()
    trained = result.settings["recipe"] | result.winner.final_recipe
    changes = {name: given for name, given in trained.items() if given != named[name]}
    options = {"spec": workdir / WINNER, **options, "seed": result.settings["seed"]}
    words = ["keras-resnet", "train"]
    for option, given in options.items():
        words += () if given is None else (f"--{option}", str(given))
    for name, given in changes.items():
        words += ("--set", f"{name}={given if isinstance(given, str) else json.dumps(given)}")
    return shlex.join(words)
