"""The command that tests networks, and what it shares with the studies: evaluate."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

import keras_resnet
from keras_resnet.cli.app import (
    AsJson,
    DataDir,
    Download,
    Precision,
    SkipBad,
    app,
    err,
    network,
    numbers,
    out,
    print_json,
)
from keras_resnet.data.image_files import listed
from keras_resnet.data.preprocessing import MODES
from keras_resnet.data.protocols import PROTOCOLS, get_protocol
from keras_resnet.data.sources import load_test
from keras_resnet.evaluation import check_confusion, plot_confusion
from keras_resnet.models.preprocessing import set_preprocessing

Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="A network of `keras-resnet models`, or a .keras file; several are an ensemble."),
]
AllWeights = Annotated[
    list[str] | None,
    typer.Option("--weights", help="A tag or the path of a weights file, for each network that is no .keras file."),
]
TestSet = Annotated[
    str, typer.Option("--dataset", help="digits, a name of tensorflow-datasets, or a folder of images.")
]
Part = Annotated[
    str | None, typer.Option("--split", help="Another part of it, such as train or validation.", show_default="test")
]
Labels = Annotated[
    Path | None,
    typer.Option(help="File with the class of each image, for a folder without class folders (ImageNet's val)."),
]
Mode = Annotated[
    str | None, typer.Option(help=f"How to prepare images where the weights do not say it: {', '.join(MODES)}.")
]


@app.command()
def evaluate(
    dataset: TestSet,
    model: Models = None,
    weights: AllWeights = None,
    protocol: Annotated[str, typer.Option(help=f"Of {', '.join(PROTOCOLS)}.")] = "center",
    scales: Annotated[
        str | None, typer.Option(help="Pixels of the shorter side: 224,256,384.", show_default="the protocol's")
    ] = None,
    flip: Annotated[
        bool | None, typer.Option(help="Whether mirrored views count as well.", show_default="the protocol's")
    ] = None,
    split: Part = None,
    data_dir: DataDir = None,
    download: Download = True,
    labels: Labels = None,
    skip_bad: SkipBad = False,
    batch_size: Annotated[int, typer.Option(help="Views that a network sees at a time.", min=1)] = 100,
    mode: Mode = None,
    precision: Precision = None,
    confusion: Annotated[Path | None, typer.Option(help="PNG to draw: which classes were taken for which.")] = None,
    by_class: Annotated[bool, typer.Option("--by-class", help="Print the errors of each class.")] = False,
    as_json: AsJson = False,
):
    """Test a network as the paper does, or several together: top-1 and top-5 error."""
    changes = {"scales": numbers("scales", scales), "flip": flip}
    protocol = get_protocol(protocol, **{name: change for name, change in changes.items() if change is not None})
    tested = networks(model or ["resnet50"], weights, precision=precision)
    if confusion:
        check_confusion(next(iter(tested.values())), confusion)
    images = load_test(dataset, split, data_dir, download, labels, skip_bad)
    for one in tested.values():
        set_preprocessing(one, images.preprocessing, mode)
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("looking", total=len(images.test))
        result = keras_resnet.evaluate(
            list(tested.values()),
            images,
            protocol,
            batch_size,
            skip_bad,
            progress=lambda done: progress.update(bar, completed=done),
        )
    if as_json:
        about = {"models": list(tested), "dataset": images.name, "protocol": protocol.to_config()}
        print_json({**result.to_json(), **about})
    else:
        _print_evaluation(result, f"{' + '.join(tested)} on {images.name}", by_class)
    if confusion:
        plot_confusion(result, confusion)


def networks(names, weights, required=True, precision=None):
    """{what to call it: network}; the weights go, in their order, with the networks that are no .keras files.

    Args:
        names: networks and .keras files.
        weights: tags and files; a single network may have several. None: "imagenet".
        required: False: None means random weights.
        precision: of the networks that are no .keras files.
    """
    bare = [name for name in names if not name.endswith(".keras")]
    if len(names) == len(bare) == 1 and weights:
        names = bare = bare * len(weights)
    if weights and len(weights) != len(bare):
        raise ValueError(
            f"`--weights` should be given for each of {bare}, in their order. Received: {len(weights)} ({weights})"
        )
    sources = iter(weights or [_usual(name) if required else None for name in bare])
    given = [(name, None) if name.endswith(".keras") else (name, next(sources)) for name in names]
    found = [network(*pair, precision=precision) for pair in given]
    titles = [one.name for one in found]
    if len(set(titles)) < len(titles):
        titles = [f"{one.name} ({source or name})" for one, (name, source) in zip(found, given, strict=True)]
    return dict(zip(titles, found, strict=True))


def _usual(name):
    """The weights of a network for which none were asked."""
    tags = keras_resnet.list_weights(name)
    if "imagenet" not in tags:
        raise ValueError(f"`--weights` should be given for {name}: a file, or one of {tags}. Received: none")
    return "imagenet"


def _print_evaluation(result, title, by_class):
    table = Table(box=None, header_style="bold", title=Text(title), title_justify="left")
    for column in ("", "error", "95 % confidence", "wrong"):
        table.add_column(column, justify="right" if column else "left")
    for k in (1, 5):
        low, high = result.interval(k)
        wrong = f"{result.num_wrong(k)} of {result.num_images}"
        table.add_row(f"top-{k}", f"{result.error(k):.2%}", f"{low:.2%} to {high:.2%}", wrong)
    out.print(table)
    if by_class:
        out.print(_classes(result))
    if result.skipped:
        faults = Text(f"{len(result.skipped)} images that could not be read:\n  {listed(result.skipped)}")
        err.print("[yellow]left out:[/]", faults, soft_wrap=True)


def _classes(result):
    table = Table("class", box=None, header_style="bold")
    for column in ("images", "top-1 error", "top-5 error"):
        table.add_column(column, justify="right")
    for row in result.by_class:
        table.add_row(row["name"], str(row["num_images"]), f"{row['top1_error']:.2%}", f"{row['top5_error']:.2%}")
    return table
