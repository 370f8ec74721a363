"""The paper's own experiments as commands: study degradation, responses, signals, complexity."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from keras_resnet import analysis
from keras_resnet.architecture.metadata import model_info, model_spec
from keras_resnet.cli.app import (
    AsJson,
    Changes,
    CheckpointEvery,
    DataDir,
    Deterministic,
    Download,
    Precision,
    Seed,
    SkipBad,
    app,
    err,
    last_words,
    network,
    numbers,
    out,
    print_json,
    recipe_changes,
    source,
)
from keras_resnet.cli.testing import AllWeights, Labels, Mode, Models, Part, TestSet, networks
from keras_resnet.data.sources import load_test
from keras_resnet.evaluation import evenly_spaced_subset, labelled_inputs
from keras_resnet.files import write_json
from keras_resnet.models.preprocessing import set_preprocessing
from keras_resnet.studies.degradation import degradation as run_degradation
from keras_resnet.studies.sizes import SIZES

study = typer.Typer(help="The paper's own experiments.", no_args_is_help=True)
app.add_typer(study, name="study")


@study.command()
def degradation(
    size: Annotated[str, typer.Option(help=f"How much work: {', '.join(SIZES)}.")] = "digits",
    workdir: Annotated[
        Path | None, typer.Option(help="Folder for what the study leaves.", show_default="runs/degradation_SIZE")
    ] = None,
    depths: Annotated[str | None, typer.Option(help="Layers: 20,56.", show_default="the size's")] = None,
    dataset: Annotated[str | None, typer.Option(help="Another data set.", show_default="the size's")] = None,
    images: Annotated[str | None, typer.Option(help="How many of its images train and test: 10000,2000.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A row of RECIPES.", show_default="the size's")] = None,
    changes: Changes = None,
    data_dir: DataDir = None,
    download: Download = True,
    precision: Precision = None,
    seed: Seed = 0,
    deterministic: Deterministic = False,
    checkpoint_every: CheckpointEvery = None,
    overwrite: Annotated[bool, typer.Option(help="Train the networks of an earlier study anew.")] = False,
    as_json: AsJson = False,
):
    """Train plain and residual networks of several depths: do the deeper ones get worse? (fig. 6)

    Repeat the command to go on with an interrupted study.
    """
    workdir = workdir or Path("runs") / f"degradation_{size}"
    name = SIZES[size].dataset if dataset is None and size in SIZES else dataset
    with last_words():
        result = run_degradation(
            workdir,
            size,
            name and source(name, data_dir, download),
            numbers("depths", depths),
            recipe,
            numbers("images", images, count=2),
            seed=seed,
            overwrite=overwrite,
            checkpoint_every=checkpoint_every,
            deterministic=deterministic,
            precision=precision,
            progress=lambda text: err.print(Text(text)),
            **recipe_changes(changes),
        )
    if as_json:
        return print_json(result.to_config())
    _print_degradation(result, workdir)


def _print_degradation(result, workdir):
    table = Table("network", box=None, header_style="bold")
    for column in ("parameters", "training error", "test error", "time"):
        table.add_column(column, justify="right")
    for row in result.networks:
        errors = (f"{100 * error:.2f} %" for error in (row.training_error, row.test_error))
        table.add_row(row.name, f"{row.parameters:,}", *errors, f"{row.wall_time_s:,.0f} s")
    out.print(table)
    for effect in result.effects:
        out.print(str(effect), highlight=False)
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
    mode: Mode = None,
    workdir: Annotated[Path, typer.Option(help="Folder for responses.png and .json.")] = Path("runs/responses"),
    as_json: AsJson = False,
):
    """Measure how strongly the 3x3 layers of networks respond (fig. 7)."""
    workdir.mkdir(parents=True, exist_ok=True)
    measured = networks(model or ["resnet50"], weights)
    images = load_test(dataset, split, data_dir, download, labels, skip_bad)
    for one in measured.values():
        set_preprocessing(one, images.preprocessing, mode)
    values = {
        name: analysis.layer_responses(one, labelled_inputs(one, images, skip_bad=skip_bad))
        for name, one in measured.items()
    }
    draw = partial(analysis.draw_responses, title=f"layer responses on {images.name}")
    _publish([_Measured("responses", "standard deviation of responses", values, draw)], workdir, as_json)


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
    mode: Mode = None,
    batch_size: Annotated[int, typer.Option(help="Images: every n-th of the set.", min=1)] = 128,
    workdir: Annotated[Path, typer.Option(help="Folder for two images and their JSON.")] = Path("runs/signals"),
    as_json: AsJson = False,
):
    """Check that signals do not vanish in a training step: variances and gradients by depth (sec. 4.1).

    Networks without weights are measured as they are initialised.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    measured = networks(model or ["resnet50"], weights, required=False)
    images = evenly_spaced_subset(load_test(dataset, split, data_dir, download, labels, skip_bad), batch_size)
    for one in measured.values():
        known = model_info(one).get("preprocessing")
        set_preprocessing(one, images.preprocessing, mode if known else mode or images.preprocessing.mode)
    variances, norms = {}, {}
    for name, one in measured.items():
        inputs, targets = next(labelled_inputs(one, images, batch_size, skip_bad))
        variances[name] = analysis.forward_variances(one, inputs)
        norms[name] = analysis.gradient_norms(one, inputs, targets)
    rows = (("forward_variances", "variance of responses", variances), ("gradient_norms", "norm of gradients", norms))
    _publish([_Measured(*row, partial(analysis.draw_signals, label=row[1])) for row in rows], workdir, as_json)


@dataclass(frozen=True)
class _Measured:
    """What a study measured in the layers of networks."""

    name: str
    unit: str
    values: dict
    """{network: {layer: value}}."""
    draw: Callable
    """(values, path) -> a PNG."""


def _publish(measured, workdir, as_json):
    """Writes each as image and JSON, and prints it."""
    for one in measured:
        one.draw(one.values, workdir / f"{one.name}.png")
        write_json(one.values, workdir / f"{one.name}.json")
    if as_json:
        return print_json({one.name: one.values for one in measured})
    for one in measured:
        out.print(_spreads(one))
    out.print(f"everything in {workdir}/", highlight=False, soft_wrap=True)


def _spreads(measured):
    table = Table("network", box=None, header_style="bold", title=measured.unit, title_justify="left")
    for column in ("layers", "mean", "median", "smallest", "largest"):
        table.add_column(column, justify="right")
    for name, layers in measured.values.items():
        spread = [summary(layers.values()) for summary in (mean, median, min, max)]
        table.add_row(name, str(len(layers)), *(f"{value:.3g}" for value in spread))
    return table


@study.command()
def complexity(
    model: Annotated[
        str | None,
        typer.Option(help="A network or a .keras file, layer by layer.", show_default="the paper's comparison"),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="PNG to draw.")] = None,
    as_json: AsJson = False,
):
    """Count parameters and multiply-adds: the paper's networks beside AlexNet and VGG, or one layer by layer."""
    one = model and network(model, None)
    rows = analysis.layer_costs(one) if one else analysis.comparison()
    if image:
        analysis.draw_costs(rows, image, model) if one else analysis.draw_comparison(rows, image)
    if as_json:
        return print_json([vars(row) for row in rows])
    out.print(_layers(rows) if one else _comparison(rows))
    if model_spec(one):
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
