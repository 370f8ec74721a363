"""The paper's own experiments as commands: study degradation, responses, signals, complexity."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Annotated

import typer
from rich.markdown import Markdown
from typer import Option

from keras_resnet import analysis
from keras_resnet.architecture.metadata import model_info, model_spec
from keras_resnet.cli.app import app, out, print_json, print_line, print_progress, print_table
from keras_resnet.cli.evaluation import DATA, AllWeights, Models, models_from
from keras_resnet.cli.options import AsJson, Changes, Mode, TestSet, command, model_from, numbers, recipe_changes
from keras_resnet.data.sources import load_dataset, load_test
from keras_resnet.evaluation import evenly_spaced_subset, labelled_inputs
from keras_resnet.files import write_json
from keras_resnet.models.preprocessing import set_preprocessing
from keras_resnet.studies.degradation import degradation as run_degradation
from keras_resnet.studies.results import to_markdown
from keras_resnet.studies.sizes import SIZES
from keras_resnet.training.options import RunOptions

study = typer.Typer(help="The paper's own experiments.", no_args_is_help=True)
app.add_typer(study, name="study")


@command(
    study,
    data={load_dataset: "data_dir download"},
    options={RunOptions: "devices precision xla seed deterministic checkpoint_every overwrite"},
)
def degradation(
    data,
    options,
    size: Annotated[str, Option(help=f"Networks, data and epochs: {', '.join(SIZES)}.")] = "digits",
    workdir: Annotated[
        Path | None, Option(help="Folder for the networks and the result.", show_default="runs/degradation_SIZE")
    ] = None,
    depths: Annotated[str | None, Option(help="Numbers of layers: 20,56.", show_default="the size's")] = None,
    dataset: Annotated[str | None, Option(help="Another data set.", show_default="the size's")] = None,
    images: Annotated[
        str | None,
        Option(help="Numbers of training and test images: 10000,2000.", show_default="the size's"),
    ] = None,
    recipe: Annotated[str | None, Option(help="A name in RECIPES.", show_default="the size's")] = None,
    changes: Changes = None,
    as_json: AsJson = False,
):
    """Train plain and residual networks of several depths: do the deeper ones get worse? (fig. 6)

    Repeat the command to continue an interrupted study.
    """
    workdir = workdir or Path("runs") / f"degradation_{size}"
    name = SIZES[size].dataset if dataset is None and size in SIZES else dataset
    result = run_degradation(
        workdir,
        size,
        name and partial(load_dataset, name, **data),
        numbers("depths", depths),
        recipe,
        numbers("images", images, count=2),
        progress=print_progress,
        **options,
        **recipe_changes(changes),
    )
    if as_json:
        return print_json(result.to_config())
    out.print(Markdown(to_markdown(result)))
    print_line(f"everything in {workdir}/")


@command(study, data=DATA)
def responses(
    data,
    dataset: TestSet,
    model: Models = None,
    weights: AllWeights = None,
    mode: Mode = None,
    workdir: Annotated[Path, Option(help="Folder for responses.png and .json.")] = Path("runs/responses"),
    as_json: AsJson = False,
):
    """Measure how strongly the 3x3 layers of networks respond (fig. 7)."""
    workdir.mkdir(parents=True, exist_ok=True)
    models = models_from(model or ["resnet50"], weights)
    images = load_test(dataset, **data)
    for one in models.values():
        set_preprocessing(one, images.preprocessing, mode)
    values = {
        name: analysis.layer_responses(one, labelled_inputs(one, images, skip_bad=data["skip_bad"]))
        for name, one in models.items()
    }
    plot = partial(analysis.plot_responses, title=f"layer responses on {images.name}")
    _publish([_Measurement("responses", "standard deviation of responses", values, plot)], workdir, as_json)


@command(study, data=DATA)
def signals(
    data,
    dataset: TestSet,
    model: Models = None,
    weights: AllWeights = None,
    mode: Mode = None,
    batch_size: Annotated[int, Option(help="Number of images, evenly spaced in the set.", min=1)] = 128,
    workdir: Annotated[Path, Option(help="Folder for two plots and their JSON.")] = Path("runs/signals"),
    as_json: AsJson = False,
):
    """Check that signals do not vanish in a training step: variances and gradients by depth (sec. 4.1).

    Networks without weights are measured with their initial weights.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    models = models_from(model or ["resnet50"], weights, required=False)
    images = evenly_spaced_subset(load_test(dataset, **data), batch_size)
    variances, norms = {}, {}
    for name, one in models.items():
        known = model_info(one).get("preprocessing")
        set_preprocessing(one, images.preprocessing, mode if known else mode or images.preprocessing.mode)
        inputs, targets = next(labelled_inputs(one, images, batch_size, data["skip_bad"]))
        variances[name] = analysis.forward_variances(one, inputs)
        norms[name] = analysis.gradient_norms(one, inputs, targets)
    rows = (("forward_variances", "variance of responses", variances), ("gradient_norms", "norm of gradients", norms))
    plots = (partial(analysis.plot_signals, label=label) for _, label, _ in rows)
    _publish([_Measurement(*row, plot) for row, plot in zip(rows, plots, strict=True)], workdir, as_json)


@dataclass(frozen=True)
class _Measurement:
    """Numbers measured in the layers of networks."""

    name: str
    label: str
    values: dict
    """{network: {layer: value}}."""
    plot: Callable
    """(values, path) -> a PNG file."""


def _publish(measurements, workdir, as_json):
    """Writes each measurement as plot and JSON, and prints it."""
    for one in measurements:
        one.plot(one.values, workdir / f"{one.name}.png")
        write_json(one.values, workdir / f"{one.name}.json")
    if as_json:
        return print_json({one.name: one.values for one in measurements})
    for one in measurements:
        columns = ("network", "layers", "mean", "median", "smallest", "largest")
        print_table(columns, (_statistics(*item) for item in one.values.items()), title=one.label)
    print_line(f"everything in {workdir}/")


def _statistics(name, layers):
    return name, len(layers), *(f"{statistic(layers.values()):.3g}" for statistic in (mean, median, min, max))


@command(study)
def complexity(
    model: Annotated[
        str | None,
        Option(help="A network or a .keras file, layer by layer.", show_default="the paper's comparison"),
    ] = None,
    plot: Annotated[Path | None, Option(help="PNG file for a plot.")] = None,
    as_json: AsJson = False,
):
    """Count parameters and multiply-adds: the paper's networks beside AlexNet and VGG, or one layer by layer."""
    if model is None:
        rows = analysis.network_costs()
        columns, cells = ("network", "depth", "parameters", "multiply-adds", "of VGG-19's"), map(_network_row, rows)
    else:
        network = model_from(model, None)
        rows = analysis.layer_costs(network)
        columns, cells = ("layer", "class", "output", "parameters", "multiply-adds"), _layer_rows(rows)
    if plot:
        analysis.plot_network_costs(rows, plot) if model is None else analysis.plot_layer_costs(rows, plot, model)
    if as_json:
        return print_json([vars(row) for row in rows])
    print_table(columns, cells, left=["class", "output"])
    if model and model_spec(network):
        fields = analysis.receptive_fields(network.spec).items()
        print_line("receptive fields:", ", ".join(f"{name} {field.size} px" for name, field in fields))


def _network_row(row):
    cost = (f"{row.parameters / 1e6:.2f} M", f"{row.multiply_adds / 1e9:.2f} G", f"{row.fraction_of_vgg19:.0%}")
    return row.name, row.depth, *cost


def _layer_rows(rows):
    for row in (row for row in rows if row.parameters):
        size = " x ".join(map(str, row.output_shape))
        yield row.name, row.class_name, size, f"{row.parameters:,}", f"{row.multiply_adds:,}"
    total = analysis.total_cost(rows)
    yield "all", "", "", f"{total.parameters:,}", f"{total.multiply_adds:,}"
