"""Commands about other runtimes: export, benchmark."""

import json
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown
from typer import Argument, Option

import keras_resnet
from keras_resnet.benchmark.comparison import compare
from keras_resnet.benchmark.contenders import CONTENDERS, MEASURED_PRECISIONS, TASKS
from keras_resnet.benchmark.report import notes, table
from keras_resnet.cli.app import err, out, print_json, print_line, print_progress
from keras_resnet.cli.options import AsJson, Mode, Weights, command, model_from, names
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.sources import load_dataset, load_test
from keras_resnet.deployment.report import to_markdown
from keras_resnet.files import atomic_write
from keras_resnet.models.preprocessing import set_preprocessing


@command(
    options={keras_resnet.export: "format precision batch_size calibration_size measure_speed overwrite"},
    data={load_dataset: "data_dir download"},
)
def export(
    options,
    data,
    model: Annotated[str, Argument(help="A network of `keras-resnet models`, or a .keras file.")],
    target: Annotated[Path, Argument(help="The file to write (.onnx, .xml or .tflite), or a folder.", metavar="OUT")],
    weights: Weights = None,
    calibration: Annotated[
        str | None, Option(help="Typical images for int8: a folder or the name of a data set.")
    ] = None,
    images: Annotated[
        str | None,
        Option(help="Images to compare on: a folder or a data set.", show_default="a few of scikit-learn's"),
    ] = None,
    raw: Annotated[bool, Option("--raw", help="Leave preprocessing out of the exported network.")] = False,
    mode: Mode = None,
    as_json: AsJson = False,
):
    """Write a network for another runtime, compare its outputs with Keras's, and write a report beside it."""
    model = model_from(model, weights, default_weights="imagenet")
    set_preprocessing(model, Preprocessing(mode or "torch"), mode)
    calibration, images = _images(calibration, "train", data), _images(images, None, data)
    report = keras_resnet.export(model, target, raw=raw, calibration=calibration, images=images, **options)
    if as_json:
        print_json(report)
    else:
        out.print(Markdown(to_markdown(report)))


def _images(name, split, data):
    """A path stays as it is: all its images are taken. Otherwise one split of a data set."""
    return name if name is None or Path(name).exists() else load_test(name, split, **data)


@command(options={compare: "model batch_size image_size rounds steps xla"})
def benchmark(
    options,
    precision: Annotated[
        list[str] | None, Option(help=f"Of {', '.join(MEASURED_PRECISIONS)}.", show_default="float32")
    ] = None,
    contenders: Annotated[
        list[str] | None, Option(help=f"Of {', '.join(CONTENDERS)}.", show_default="all that are installed")
    ] = None,
    tasks: Annotated[list[str] | None, Option(help=f"Of {', '.join(TASKS)}.", show_default="all")] = None,
    json_file: Annotated[
        Path | None, Option("--json", help="File for the whole report; - prints it instead of a table.")
    ] = None,
):
    """Measure a network side by side with keras.applications, torch, ONNX Runtime and OpenVINO, where installed.

    Lists are separated by commas, or their option is repeated. Run nothing else on the machine meanwhile.
    """
    as_json = json_file == Path("-")
    options["precisions"] = names(precision) or ("float32",)
    options |= {"contenders": names(contenders) or tuple(CONTENDERS), "tasks": names(tasks) or tuple(TASKS)}
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
