"""The command that brings a network elsewhere: export."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

import keras_resnet
from keras_resnet.cli.app import AsJson, DataDir, Download, Weights, app, network, out, print_json
from keras_resnet.cli.testing import Mode
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.sources import load_test
from keras_resnet.deployment.formats.table import FORMATS, PRECISIONS
from keras_resnet.deployment.report import as_markdown
from keras_resnet.models.preprocessing import set_preprocessing


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A network of `keras-resnet models`, or a .keras file.")],
    target: Annotated[
        Path, typer.Argument(help="The file to write, .onnx, .xml or .tflite, or a folder.", metavar="OUT")
    ],
    weights: Weights = None,
    form: Annotated[
        str | None, typer.Option("--format", help=f"{', '.join(FORMATS)}.", show_default="by the name of the file")
    ] = None,
    precision: Annotated[str, typer.Option(help=f"{', '.join(PRECISIONS)}.")] = "float32",
    calibration: Annotated[
        str | None, typer.Option(help="For int8: images like those it will see, a folder or the name of a data set.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(help="To compare on: a folder or the name of a data set.", show_default="a few of scikit-learn's"),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Leave preprocessing out of the exported network.")] = False,
    batch_size: Annotated[int | None, typer.Option(help="Images at a time.", show_default="any", min=1)] = None,
    samples: Annotated[int, typer.Option(help="Images of --calibration, at most.", min=1)] = 300,
    timed: Annotated[bool, typer.Option(help="Whether Keras and the export are timed.")] = True,
    mode: Mode = None,
    data_dir: DataDir = None,
    download: Download = True,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
    as_json: AsJson = False,
):
    """Write a network for another runtime, and show that it still says the same; reports stand beside it."""
    exported = network(model, weights, default_weights="imagenet")
    set_preprocessing(exported, Preprocessing(mode or "torch"), mode)
    values = keras_resnet.export(
        exported,
        target,
        form,
        precision,
        raw,
        batch_size,
        _images(calibration, "train", data_dir, download),
        _images(images, None, data_dir, download),
        samples,
        timed,
        overwrite,
    )
    if as_json:
        print_json(values)
    else:
        out.print(Markdown(as_markdown(values)))


def _images(name, split, data_dir, download):
    """A folder as it is, of which every image counts; else a data set, by its name."""
    if name is None or Path(name).exists():
        return name
    return load_test(name, split, data_dir, download)
