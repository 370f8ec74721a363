"""Commands that test networks and repeat the paper's experiments: evaluate, study."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

import keras_resnet
from keras_resnet import analysis
from keras_resnet.cli.app import (
    AsJson,
    app,
    assignment,
    err,
    in_precision,
    last_words,
    network,
    numbers,
    out,
    print_json,
)
from keras_resnet.data.preprocessing import MODES
from keras_resnet.data.sources import load_dataset, load_test
from keras_resnet.data.views import PROTOCOLS, get_protocol
from keras_resnet.evaluation import draw_confusion, labelled_inputs
from keras_resnet.studies.degradation import degradation as run_degradation
from keras_resnet.studies.results import FAMILIES
from keras_resnet.studies.sizes import SIZES
from keras_resnet.training.workdir import write_json

study = typer.Typer(help="The paper's own experiments.", no_args_is_help=True)
app.add_typer(study, name="study")

Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="A network of `keras-resnet models`, or a .keras file; several are an ensemble."),
]
AllWeights = Annotated[
    list[str] | None,
    typer.Option("--weights", help="A tag or the path of a weights file, for each network that is no .keras file."),
]
TestSet = Annotated[
    str, typer.Option("--dataset", help="digits, a name of tensorflow-datasets, or a folder of pictures.")
]
Part = Annotated[
    str | None, typer.Option("--split", help="Another part of it, such as train or validation.", show_default="test")
]
DataDir = Annotated[Path | None, typer.Option(help="Where tensorflow-datasets keeps its data.")]
Download = Annotated[bool, typer.Option(help="Whether a missing data set may be downloaded.")]
Labels = Annotated[
    Path | None,
    typer.Option(help="File with the class of each picture, for a folder without class folders (ImageNet's val)."),
]
SkipBad = Annotated[bool, typer.Option(help="Leave out pictures that cannot be read.")]
Precision = Annotated[str | None, typer.Option(help="float32, mixed_bfloat16 or mixed_float16.")]


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
    mode: Annotated[
        str | None, typer.Option(help=f"How to prepare pictures where the weights do not say it: {', '.join(MODES)}.")
    ] = None,
    precision: Precision = None,
    confusion: Annotated[Path | None, typer.Option(help="PNG to draw: which classes were taken for which.")] = None,
    by_class: Annotated[bool, typer.Option("--by-class", help="Print the errors of each class.")] = False,
    as_json: AsJson = False,
):
    """Test a network as the paper does, or several together: top-1 and top-5 error."""
    changes = {"scales": numbers("scales", scales), "flip": flip}
    protocol = get_protocol(protocol, **{name: change for name, change in changes.items() if change is not None})
    if precision and any(name.endswith(".keras") for name in model or ()):
        raise ValueError(
            f"`--precision` should be left out: a .keras file has its own. Received: --precision {precision}"
        )
    with in_precision(precision):
        networks = _networks(model or ["resnet50"], weights)
    pictures = load_test(dataset, split, data_dir, download, labels, skip_bad)
    _tell(networks, pictures.preprocessing, mode)
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("looking", total=len(pictures.test))
        result = keras_resnet.evaluate(
            list(networks.values()),
            pictures,
            protocol,
            batch_size,
            skip_bad,
            progress=lambda done: progress.update(bar, completed=done),
        )
    if confusion:
        draw_confusion(result, confusion)
    if as_json:
        about = {"models": list(networks), "dataset": pictures.name, "protocol": protocol.to_config()}
        return print_json({**result.to_json(), **about})
    _print_evaluation(result, f"{' + '.join(networks)} on {pictures.name}")
    if by_class:
        _print_classes(result)


def _networks(names, weights, default="imagenet"):
    """{what to call it: network}; the weights go, in their order, with the networks that are no .keras files."""
    bare = [name for name in names if not name.endswith(".keras")]
    if len(names) == len(bare) == 1 and weights:
        names = bare = bare * len(weights)
    if weights and len(weights) != len(bare):
        raise ValueError(
            f"`--weights` should be given for each of {bare}, in their order. Received: {len(weights)} ({weights})"
        )
    sources = iter(weights or [default] * len(bare))
    given = [(name, None if name.endswith(".keras") else next(sources)) for name in names]
    found = [network(*pair) for pair in given]
    titles = [one.name for one in found]
    if len(set(titles)) < len(titles):
        titles = [f"{one.name} ({source or name})" for one, (name, source) in zip(found, given, strict=True)]
    return dict(zip(titles, found, strict=True))


def _tell(networks, look, mode):
    """Tells networks whose weights do not say it how pictures are prepared: as the data set's, in this mode."""
    for one in networks.values():
        info = getattr(one, "info", None) or {}
        if mode and "preprocessing" not in info:
            size = one.input_shape[1] or look.size
            wanted = replace(look, mode=mode, size=size, resize=look.resize and look.resize * size // look.size)
            one.info = {**info, "preprocessing": wanted.to_config()}


def _print_evaluation(result, title):
    table = Table(box=None, header_style="bold", title=title, title_justify="left")
    for column in ("", "error", "95 % confidence", "wrong"):
        table.add_column(column, justify="right" if column else "left")
    for k in (1, 5):
        low, high = result.interval(k)
        wrong = f"{result.wrong(k)} of {result.images}"
        table.add_row(f"top-{k}", f"{result.error(k):.2f} %", f"{low:.2f} to {high:.2f} %", wrong)
    out.print(table)
    if result.left_out:
        err.print(f"[yellow]left out:[/] {len(result.left_out)} pictures that could not be read")


def _print_classes(result):
    table = Table("class", box=None, header_style="bold")
    for column in ("images", "top-1 error", "top-5 error"):
        table.add_column(column, justify="right")
    for row in result.by_class:
        table.add_row(row["name"], str(row["images"]), f"{row['top1_error']:.2f} %", f"{row['top5_error']:.2f} %")
    out.print(table)


@study.command()
def degradation(
    size: Annotated[str, typer.Option(help=f"How much work: {', '.join(SIZES)}.")] = "digits",
    workdir: Annotated[
        Path | None, typer.Option(help="Folder for what the study leaves.", show_default="runs/degradation_SIZE")
    ] = None,
    depths: Annotated[str | None, typer.Option(help="Layers: 20,56.", show_default="the size's")] = None,
    dataset: Annotated[str | None, typer.Option(help="Another data set.", show_default="the size's")] = None,
    pictures: Annotated[str | None, typer.Option(help="How many of its pictures train and test: 10000,2000.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A row of RECIPES.", show_default="the size's")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a field of the recipe: --set epochs=2.", metavar="FIELD=VALUE"),
    ] = None,
    data_dir: DataDir = None,
    download: Download = True,
    precision: Precision = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    deterministic: Annotated[bool, typer.Option(help="The same numbers in every run on this machine.")] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints within an epoch.", min=1)
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Train the networks of an earlier study anew.")] = False,
    as_json: AsJson = False,
):
    """Train plain and residual networks of several depths: do the deeper ones get worse? (fig. 6)

    Repeat the command to go on with an interrupted study.
    """
    workdir = workdir or Path("runs") / f"degradation_{size}"
    source = SIZES[size].dataset if dataset is None and size in SIZES else dataset
    with last_words():
        result = run_degradation(
            workdir,
            size,
            source and partial(load_dataset, source, data_dir=data_dir, download=download),
            numbers("depths", depths),
            recipe,
            numbers("pictures", pictures),
            seed,
            overwrite,
            checkpoint_every=checkpoint_every,
            deterministic=deterministic,
            precision=precision,
            progress=lambda text: err.print(Text(text)),
            **dict(map(assignment, changes or ())),
        )
    if as_json:
        return print_json(result.to_config())
    _print_degradation(result, workdir)


def _print_degradation(result, workdir):
    table = Table("network", box=None, header_style="bold")
    for column in ("parameters", "training error", "test error", "time"):
        table.add_column(column, justify="right")
    for cell in result.cells:
        errors = (f"{error:.2f} %" for error in (cell.training_error, cell.test_error))
        table.add_row(cell.network, f"{cell.parameters:,}", *errors, f"{cell.wall_time_s:,.0f} s")
    out.print(table)
    for change in result.changes:
        out.print(
            f"{FAMILIES[change.family]}, from {change.shallowest} to {change.deepest} layers: training error "
            f"{change.training_error:+.2f}, test error {change.test_error:+.2f} points",
            highlight=False,
        )
    out.print(f"everything in {workdir}/", highlight=False, soft_wrap=True)


@study.command()
def responses(
    dataset: TestSet,
    model: Models = None,
    weights: AllWeights = None,
    split: Part = None,
    data_dir: DataDir = None,
    download: Download = True,
    labels: Labels = None,
    skip_bad: SkipBad = False,
    workdir: Annotated[Path, typer.Option(help="Folder for responses.png and .json.")] = Path("runs/responses"),
    as_json: AsJson = False,
):
    """Measure how strongly the 3x3 layers of networks respond (fig. 7)."""
    pictures = load_test(dataset, split, data_dir, download, labels, skip_bad)
    found = {
        name: analysis.layer_responses(one, labelled_inputs(one, pictures, skip_bad=skip_bad))
        for name, one in _networks(model or ["resnet50"], weights).items()
    }
    draw = partial(analysis.draw_responses, title=f"layer responses on {pictures.name}")
    _publish({"responses": (found, draw, "standard deviation of responses")}, workdir, as_json)


@study.command()
def signals(
    dataset: TestSet,
    model: Models = None,
    weights: AllWeights = None,
    split: Part = None,
    data_dir: DataDir = None,
    download: Download = True,
    labels: Labels = None,
    skip_bad: SkipBad = False,
    batch_size: Annotated[int, typer.Option(help="Pictures: the first of the set.", min=1)] = 128,
    workdir: Annotated[Path, typer.Option(help="Folder for two pictures and their JSON.")] = Path("runs/signals"),
    as_json: AsJson = False,
):
    """Check that signals do not vanish in a training step: variances and gradients by depth (sec. 4.1).

    Networks without weights are measured as they are initialised.
    """
    pictures = load_test(dataset, split, data_dir, download, labels, skip_bad)
    networks, variances, norms = _networks(model or ["resnet50"], weights, default=None), {}, {}
    _tell(networks, pictures.preprocessing, pictures.preprocessing.mode)
    for name, one in networks.items():
        inputs, targets = next(labelled_inputs(one, pictures, batch_size, skip_bad))
        variances[name], norms[name] = (
            analysis.forward_variances(one, inputs),
            analysis.gradient_norms(one, inputs, targets),
        )
    found = {"forward_variances": (variances, "variance of responses"), "gradient_norms": (norms, "norm of gradients")}
    draws = {
        name: (values, partial(analysis.draw_signals, label=label), label) for name, (values, label) in found.items()
    }
    _publish(draws, workdir, as_json)


def _publish(found, workdir, as_json):
    """Writes and prints {file's name: ({network: {layer: value}}, function that draws it, what the values are)}."""
    workdir.mkdir(parents=True, exist_ok=True)
    for name, (values, draw, _) in found.items():
        draw(values, workdir / f"{name}.png")
        write_json(values, workdir / f"{name}.json")
    if as_json:
        return print_json({name: values for name, (values, *_) in found.items()})
    for values, _, unit in found.values():
        table = Table("network", box=None, header_style="bold", title=unit, title_justify="left")
        for column in ("layers", "mean", "median", "smallest", "largest"):
            table.add_column(column, justify="right")
        for title, layers in values.items():
            spread = [summary(layers.values()) for summary in (mean, median, min, max)]
            table.add_row(title, str(len(layers)), *(f"{value:.3g}" for value in spread))
        out.print(table)
    out.print(f"everything in {workdir}/", highlight=False, soft_wrap=True)


@study.command()
def complexity(
    model: Annotated[
        str | None,
        typer.Option(help="A network or a .keras file, layer by layer.", show_default="the paper's comparison"),
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG to draw.")] = None,
    as_json: AsJson = False,
):
    """Count parameters and multiply-adds: the paper's networks beside AlexNet and VGG, or one layer by layer."""
    one = model and network(model, None)
    rows = analysis.layer_costs(one) if one else analysis.comparison()
    if picture:
        analysis.draw_costs(rows, picture, model) if one else analysis.draw_comparison(rows, picture)
    if as_json:
        return print_json([vars(row) for row in rows])
    out.print(_layers(rows) if one else _comparison(rows))
    if getattr(one, "spec", None):
        fields = analysis.receptive_fields(one.spec).items()
        out.print("receptive fields:", ", ".join(f"{name} {field.size} px" for name, field in fields), highlight=False)


def _comparison(rows):
    table = Table("network", box=None, header_style="bold")
    for column in ("layers", "parameters", "multiply-adds", "of VGG-19's"):
        table.add_column(column, justify="right")
    for row in rows:
        cost = (f"{row.parameters / 1e6:.2f} M", f"{row.multiply_adds / 1e9:.2f} G", f"{row.ratio:.0%}")
        table.add_row(row.name, str(row.layers), *cost)
    return table


def _layers(rows):
    table = Table("layer", "kind", "output", box=None, header_style="bold")
    for column in ("parameters", "multiply-adds"):
        table.add_column(column, justify="right")
    for row in (row for row in rows if row.parameters):
        size = " x ".join(map(str, row.output_shape))
        table.add_row(row.name, row.kind, size, f"{row.parameters:,}", f"{row.multiply_adds:,}")
    total = analysis.total_cost(rows)
    table.add_row("all", "", "", f"{total.parameters:,}", f"{total.multiply_adds:,}", style="bold")
    return table
