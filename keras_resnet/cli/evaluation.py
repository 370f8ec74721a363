"""Commands that measure networks, and what they share with the studies: evaluate, benchmark."""

import json
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

import keras_resnet
from keras_resnet.benchmark.comparison import compare
from keras_resnet.benchmark.contenders import CONTENDERS, MEASURED_PRECISIONS, TASKS
from keras_resnet.benchmark.report import notes, table
from keras_resnet.cli.app import err, out, print_json, print_line, print_note, print_progress, print_table, progress_bar
from keras_resnet.cli.options import AsJson, Mode, Precision, TestSet, command, model_from, names, numbers
from keras_resnet.data.image_files import format_errors
from keras_resnet.data.protocols import PROTOCOLS, get_protocol
from keras_resnet.data.sources import load_dataset, load_test
from keras_resnet.evaluation import check_confusion, plot_confusion
from keras_resnet.files import atomic_write
from keras_resnet.models.preprocessing import set_preprocessing

MODELS = "A network of `keras-resnet models`, or a .keras file; several are an ensemble."
Models = Annotated[list[str], Option("--model", help=MODELS)]
ALL_WEIGHTS = "A tag or a weights file for each network that is not a .keras file."
AllWeights = Annotated[list[str] | None, Option("--weights", help=ALL_WEIGHTS)]
DATA = {load_test: "split labels", load_dataset: "data_dir download skip_bad"}


@command(data=DATA, options={keras_resnet.evaluate: "batch_size"})
def evaluate(
    data,
    options,
    dataset: TestSet,
    model: Models = ("resnet50",),
    weights: AllWeights = None,
    protocol: Annotated[str, Option(help=f"Test views: {', '.join(PROTOCOLS)}.")] = "center",
    scales: Annotated[str | None, Option(help="Shorter sides: 224,256,384.", show_default="the protocol's")] = None,
    flip: Annotated[bool | None, Option(help="Add mirrored views.", show_default="the protocol's")] = None,
    mode: Mode = None,
    precision: Precision = None,
    confusion: Annotated[Path | None, Option(help="PNG file for a plot of the confusion matrix.")] = None,
    by_class: Annotated[bool, Option("--by-class", help="Print the errors of each class.")] = False,
    as_json: AsJson = False,
):
    """Evaluate a network as the paper does, or an ensemble of several: top-1 and top-5 error."""
    changes = {"scales": numbers("scales", scales), "flip": flip}
    protocol = get_protocol(protocol, **{name: change for name, change in changes.items() if change is not None})
    models = models_from(model, weights, precision=precision)
    if confusion:
        check_confusion(next(iter(models.values())), confusion)
    images = load_test(dataset, **data)
    for one in models.values():
        set_preprocessing(one, images.preprocessing, mode)
    options |= {"skip_bad": data["skip_bad"]}
    with progress_bar(len(images.test)) as progress:
        result = keras_resnet.evaluate(list(models.values()), images, protocol, progress=progress, **options)
    if as_json:
        described = {"models": list(models), "dataset": images.name, "protocol": protocol.to_config()}
        print_json({**result.to_json(), **described})
    else:
        _print_evaluation(result, f"{' + '.join(models)} on {images.name}", by_class)
    if confusion:
        plot_confusion(result, confusion)


def models_from(names, weights, default_weights="imagenet", precision=None):
    """{title: model} of networks given by name, with `weights` in their order, and of .keras files.

    A single network may have several weights: it is built with each of them.
    """
    by_name = [name for name in names if not name.endswith(".keras")]
    if len(names) == len(by_name) == 1 and weights:
        names = by_name = by_name * len(weights)
    if weights and len(weights) != len(by_name):
        raise ValueError(
            f"`--weights` should be given for each of {by_name}, in their order. Received: {len(weights)} ({weights})"
        )
    tags = iter(weights or [None] * len(by_name))
    pairs = [(name, None if name.endswith(".keras") else next(tags)) for name in names]
    models = [model_from(name, tag, default_weights, precision) for name, tag in pairs]
    titles = [model.name for model in models]
    if len(set(titles)) < len(titles):
        titles = [f"{model.name} ({tag or name})" for model, (name, tag) in zip(models, pairs, strict=True)]
    return dict(zip(titles, models, strict=True))


def _print_evaluation(result, title, by_class):
    print_table((_error_row(result, k) for k in (1, 5)), title)
    if by_class:
        print_table(map(_class_row, result.by_class))
    if result.skipped:
        text = f"{len(result.skipped)} images that could not be read:\n  {format_errors(result.skipped)}"
        print_note("skipped", text, "yellow")


def _error_row(result, k):
    low, high = result.interval(k)
    wrong = f"{result.num_wrong(k)} of {result.num_images}"
    return {
        "": f"top-{k}",
        "error": f"{result.error(k):.2%}",
        "95% confidence": f"{low:.2%} to {high:.2%}",
        "wrong": wrong,
    }


def _class_row(row):
    errors = {f"top-{k} error": f"{row[f'top{k}_error']:.2%}" for k in (1, 5)}
    return {"class": row["name"], "images": row["num_images"], **errors}


@command(options={compare: "model batch_size image_size rounds steps xla"})
def benchmark(
    options,
    precision: Annotated[list[str], Option(help=f"Of {', '.join(MEASURED_PRECISIONS)}.")] = ("float32",),
    contenders: Annotated[list[str], Option(help=f"Of {', '.join(CONTENDERS)}.", show_default="all")] = tuple(
        CONTENDERS
    ),
    tasks: Annotated[list[str], Option(help=f"Of {', '.join(TASKS)}.", show_default="all")] = tuple(TASKS),
    json_file: Annotated[Path | None, Option("--json", help="File for the report; - prints it.")] = None,
):
    """Measure a network side by side with keras.applications, torch, ONNX Runtime and OpenVINO, where installed.

    Lists are separated by commas, or their option is repeated. Run nothing else on the machine meanwhile.
    """
    as_json = json_file == Path("-")
    options |= {"precisions": names(precision), "contenders": names(contenders), "tasks": names(tasks)}
    file = nullcontext() if json_file is None or as_json else atomic_write(json_file)
    with file as partial, err.status("") as status:
        report = compare(progress=status.update if err.is_terminal else print_progress, **options)
        report = {"command": shlex.join(["keras-resnet", *sys.argv[1:]]), **report}
        if partial:
            partial.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    if as_json:
        return print_json(report)
    out.print(table(report))
    for note in notes(report):
        print_line(note)
    if not report["results"]:
        raise typer.Exit(1)
