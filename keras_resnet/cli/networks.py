"""Commands about networks and their weights: models, summary, predict, convert."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track
from rich.table import Table
from rich.text import Text

import keras_resnet
from keras_resnet.cli.app import AsJson, Weights, app, err, network, out, own_weights, print_json
from keras_resnet.data.image_files import find_images
from keras_resnet.deployment.exported import is_exported
from keras_resnet.weights.catalog import WEIGHTS


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help='Which networks, as in a shell: "*cifar*".')] = "*",
    as_json: AsJson = False,
):
    """List the networks: depth, parameters, multiply-adds, known weights (all tags, if only one network matches)."""
    names = keras_resnet.list_models(pattern)
    if not names:
        raise ValueError(f"`pattern` should match a name of `keras-resnet models`. Received: pattern={pattern!r}")
    rows = [_model_row(name) for name in names]
    if as_json:
        return print_json(rows)
    table = Table("network", "depth", "parameters", "multiply-adds", "at", box=None, header_style="bold")
    table.add_column("weights", overflow="fold")
    for row in rows:
        table.add_row(
            row["name"],
            str(row["depth"]),
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['multiply_adds'] / 1e9:.2f} G",
            f"{row['input_size']} px",
            _in_full(row["name"], row["weights"]) if len(rows) == 1 else _in_short(row["weights"]),
        )
    out.print(table)


def _in_full(name, tags):
    """One tag a line, with its published ImageNet top-1 accuracy and its license where the catalog has them."""
    rows = {tag: WEIGHTS[name, tag] for tag in tags if (name, tag) in WEIGHTS}
    facts = {tag: f" (top-1 {100 * row.top1_accuracy:.5g} %, {row.license})" for tag, row in rows.items()}
    return "\n".join(tag + facts.get(tag, "") for tag in tags)


def _in_short(tags):
    """["imagenet", "hf://timm/a", "hf://timm/b"] -> "imagenet, hf://timm (2)"."""
    groups = Counter("hf://timm" if tag.startswith("hf:") else tag.split(":")[0] for tag in tags)
    return ", ".join(f"{group} ({count})" if group != "imagenet" else group for group, count in groups.items())


def _model_row(name):
    spec = keras_resnet.get_spec(name)
    cost = keras_resnet.complexity(spec)
    return {
        "name": name,
        "depth": spec.depth,
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "input_size": spec.default_size,
        "weights": keras_resnet.list_weights(name),
    }


@app.command()
def summary(
    name: Annotated[str, typer.Argument(help="A network of `keras-resnet models`, or a .keras file.")],
    weights: Weights = None,
):
    """Show a network layer by layer."""
    model = network(name, weights)
    model.summary(line_length=min(out.width, 120), print_fn=lambda line: out.print(line, highlight=False))


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.", metavar="IMAGE...")],
    model: Annotated[
        str,
        typer.Option(help="A network of `keras-resnet models`, a .keras file, or what `keras-resnet export` wrote."),
    ] = "resnet50",
    weights: Weights = None,
    top: Annotated[int, typer.Option(help="Classes an image.", min=1)] = 5,
    as_json: AsJson = False,
):
    """Say what is in images. Files that are no images are listed, and make the exit status 1."""
    paths = find_images(images)  # before any weights are fetched
    looker = any_network(model, weights)
    answers = keras_resnet.predict(looker, paths, top=top)
    answers = list(track(answers, "looking", len(paths), console=err, transient=True, disable=not err.is_terminal))
    if as_json:
        print_json([_as_json(answer) for answer in answers])
    else:
        _print_predictions(answers)
    bad = [answer for answer in answers if answer.error]
    for answer in bad:
        err.print("[red]not read:[/]", Text(f"{answer.path}: {answer.error}"), soft_wrap=True)
    if bad:
        raise typer.Exit(1)


def any_network(name, weights):
    """A network by its name, or out of a file: Keras's, or an exported one."""
    if not is_exported(name):
        return network(name, weights, default_weights="imagenet")
    own_weights("an exported network", weights=weights)
    return keras_resnet.load_exported(name)


def _as_json(answer):
    classes = [{"id": i, "name": name, "probability": float(share)} for i, name, share in answer.classes]
    return {"path": str(answer.path), "error": answer.error, "classes": classes}


def _print_predictions(answers):
    table = Table(box=None, header_style="bold")
    table.add_column("image", overflow="fold")
    table.add_column("class", no_wrap=True)
    table.add_column("probability", no_wrap=True, justify="right")
    for answer in answers:
        for rank, (_, name, share) in enumerate(answer.classes):
            table.add_row(str(answer.path) if rank == 0 else "", name, f"{100 * share:.1f} %")
    if table.row_count:
        out.print(table)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A weights file, or a tag.", metavar="IN")],
    target: Annotated[Path, typer.Argument(help=".safetensors, .pth, .h5, .weights.h5 or .keras.", metavar="OUT")],
    model: Annotated[str, typer.Option(help="The network the weights are of.")],
    layout: Annotated[str, typer.Option(help="Names to write: keras, torchvision, timm, cifar, auto.")] = "keras",
):
    """Convert weights from one library's file to another's."""
    network = keras_resnet.create(model, include_top=None, weights=source)
    keras_resnet.save_weights(network, target, layout=layout)
    out.print(f"{target}: {network.name}, {network.count_params():,} numbers in the {layout} layout", highlight=False)
