"""Commands that train and measure: train, benchmark."""

import json
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

import keras_resnet
from keras_resnet.architecture.spec import read_spec
from keras_resnet.benchmark.compare import compare
from keras_resnet.benchmark.contenders import CONTENDERS, PRECISIONS, TASKS
from keras_resnet.benchmark.report import notes, table
from keras_resnet.cli.app import (
    Changes,
    CheckpointEvery,
    DataDir,
    Deterministic,
    Devices,
    Download,
    Overwrite,
    Precision,
    Resume,
    Seed,
    SkipBad,
    ValidationSplit,
    app,
    err,
    last_words,
    out,
    print_json,
    recipe_changes,
    separated,
    source,
)
from keras_resnet.files import atomic_write


@app.command()
def train(
    recipe: Annotated[str, typer.Option(help="A row of RECIPES.")] = "quickstart",
    model: Annotated[
        str | None, typer.Option(help="A network of `keras-resnet models`.", show_default="resnet20")
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(help="A ResNetSpec as JSON instead, such as the winner.json of `keras-resnet tune`.")
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="digits, a name of tensorflow-datasets, or a folder with a folder for each class.")
    ] = "digits",
    workdir: Annotated[
        Path | None, typer.Option(help="Folder for what the run leaves.", show_default="runs/RECIPE")
    ] = None,
    changes: Changes = None,
    data_dir: DataDir = None,
    download: Download = True,
    validation_split: ValidationSplit = None,
    skip_bad: SkipBad = False,
    devices: Devices = None,
    sync_batch_norm: Annotated[bool, typer.Option(help="Batch norm over all devices' images.")] = False,
    precision: Precision = None,
    xla: Annotated[bool | None, typer.Option(help="Compile with XLA.", show_default="only on a GPU")] = None,
    seed: Seed = 0,
    deterministic: Deterministic = False,
    checkpoint_every: CheckpointEvery = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    tensorboard: Annotated[bool, typer.Option(help="Write logs for TensorBoard.")] = False,
    validation_freq: Annotated[int, typer.Option(help="Epochs between tests.", min=1)] = 1,
    keep: Annotated[
        str, typer.Option(help="best: the weights of the epoch that tested best; give it a --validation-split.")
    ] = "last",
):
    """Train a network, and leave model, checkpoint, log, curves, settings and report in a folder."""
    if spec and model:
        raise ValueError(f"`--model` and `--spec` should not be given both. Received: --model {model} --spec {spec}")
    row = keras_resnet.get_recipe(recipe, **recipe_changes(changes))
    workdir = workdir or Path("runs") / recipe
    with last_words():
        report = keras_resnet.train(
            read_spec(spec) if spec else model or "resnet20",
            source(dataset, data_dir, download, skip_bad, validation_split),
            row,
            workdir,
            seed=seed,
            overwrite=overwrite,
            resume=resume,
            checkpoint_every=checkpoint_every,
            deterministic=deterministic,
            devices=devices,
            sync_batch_norm=sync_batch_norm,
            precision=precision,
            xla=xla,
            tensorboard=tensorboard,
            validation_freq=validation_freq,
            keep=keep,
        ).report
    out.print(
        f"top-1 accuracy {100 * report['top1_accuracy']:.2f} % on {report['test_images']} test images, "
        f"{report['wall_time_s']:.0f} s, everything in {workdir}/",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def benchmark(
    model: Annotated[str, typer.Option(help="A network of `keras-resnet models`.")] = "resnet50",
    batch_size: Annotated[int, typer.Option(help="Images a step.", min=1)] = 16,
    image_size: Annotated[int | None, typer.Option(help="Their sides.", show_default="the network's usual one")] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(PRECISIONS)}.", show_default="float32")
    ] = None,
    contenders: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(CONTENDERS)}.", show_default="all that are installed")
    ] = None,
    tasks: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(TASKS)}.", show_default="all")] = None,
    rounds: Annotated[int, typer.Option(help="Turns for each contender.", min=1)] = 5,
    steps: Annotated[
        int | None, typer.Option(help="Batches a turn.", min=1, show_default="as many as take two seconds")
    ] = None,
    xla: Annotated[bool | None, typer.Option(help="Compile Keras with XLA.", show_default="where it is faster")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the whole report; - prints it instead of a table.")
    ] = None,
):
    """Measure a network side by side with keras.applications, torch, ONNX Runtime and OpenVINO, where installed.

    Lists are separated by commas, or their option is repeated. Leave the machine alone meanwhile.
    """
    as_json = json_file == Path("-")
    with (
        nullcontext() if json_file is None or as_json else atomic_write(json_file) as partial,
        err.status("") as status,
    ):
        report = compare(
            model,
            batch_size,
            image_size,
            separated(precision) or ("float32",),
            separated(contenders) or tuple(CONTENDERS),
            separated(tasks) or tuple(TASKS),
            rounds,
            steps,
            xla,
            progress=status.update if err.is_terminal else lambda text: err.print(Text(text)),
        )
        report = {"command": shlex.join(["keras-resnet", *sys.argv[1:]]), **report}
        if partial:
            partial.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    if as_json:
        return print_json(report)
    out.print(table(report))
    for note in notes(report):
        out.print(note, soft_wrap=True, highlight=False)
    if not report["results"]:
        raise typer.Exit(1)
