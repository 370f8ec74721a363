"""The paper's own experiments as commands: study degradation, responses, signals, complexity."""

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
    workdir: Annotated[Path | None, Option(help="Folder for all files.", show_default="runs/degradation_SIZE")] = None,
    depths: Annotated[str | None, Option(help="Numbers of layers: 20,56.", show_default="the size's")] = None,
    dataset: Annotated[str | None, Option(help="Another data set.", show_default="the size's")] = None,
    images: Annotated[
        str | None, Option(help="Training and test images: 10000,2000.", show_default="the size's")
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
    model: Models = ("resnet50",),
    weights: AllWeights = None,
    mode: Mode = None,
    workdir: Annotated[Path, Option(help="Folder for responses.png and .json.")] = Path("runs/responses"),
    as_json: AsJson = False,
):
    """Measure how strongly the 3x3 layers of networks respond (fig. 7)."""
    workdir.mkdir(parents=True, exist_ok=True)
    models = models_from(model, weights)
    images = load_test(dataset, **data)
    for one in models.values():
        set_preprocessing(one, images.preprocessing, mode)
    values = {
        name: analysis.layer_responses(one, labelled_inputs(one, images, skip_bad=data["skip_bad"]))
        for name, one in models.items()
    }
    plot = partial(analysis.plot_responses, title=f"layer responses on {images.name}")
    _publish({"responses": ("standard deviation of responses", values, plot)}, workdir, as_json)


@command(study, data=DATA)
def signals(
    data,
    dataset: TestSet,
    model: Models = ("resnet50",),
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
    models = models_from(model, weights, default_weights=None)
    images = evenly_spaced_subset(load_test(dataset, **data), batch_size)
    variances, norms = {}, {}
    for name, one in models.items():
        known = model_info(one).get("preprocessing")
        set_preprocessing(one, images.preprocessing, mode if known else mode or images.preprocessing.mode)
        inputs, targets = next(labelled_inputs(one, images, batch_size, data["skip_bad"]))
        variances[name] = analysis.forward_variances(one, inputs)
        norms[name] = analysis.gradient_norms(one, inputs, targets)
    rows = {"forward_variances": ("variance of responses", variances), "gradient_norms": ("norm of gradients", norms)}
    plots = {name: partial(analysis.plot_signals, label=label) for name, (label, _) in rows.items()}
    _publish({name: (*row, plots[name]) for name, row in rows.items()}, workdir, as_json)


def _publish(measured, workdir, as_json):
    """Plots, saves and prints {name: (what is measured, {network: {layer: number}}, function that plots to a path)}."""
    for name, (_, values, plot) in measured.items():
        plot(values, workdir / f"{name}.png")
        write_json(values, workdir / f"{name}.json")
    if as_json:
        return print_json({name: values for name, (_, values, _) in measured.items()})
    for label, values, _ in measured.values():
        print_table((_statistics(*item) for item in values.items()), title=label)
    print_line(f"everything in {workdir}/")


def _statistics(name, layers):
    statistics = {"mean": mean, "median": median, "smallest": min, "largest": max}
    numbers = {title: f"{statistic(layers.values()):.3g}" for title, statistic in statistics.items()}
    return {"network": name, "layers": len(layers), **numbers}


@command(study)
def complexity(
    model: Annotated[str | None, Option(help="Show one network, or a .keras file, layer by layer.")] = None,
    plot: Annotated[Path | None, Option(help="PNG file for a plot.")] = None,
    as_json: AsJson = False,
):
    """Count parameters and multiply-adds: the paper's networks beside AlexNet and VGG, or one layer by layer."""
    if model is None:
        rows = analysis.network_costs()
        table = map(_network_row, rows)
    else:
        network = model_from(model, None)
        rows = analysis.layer_costs(network)
        table = _layer_rows(rows)
    if plot:
        analysis.plot_network_costs(rows, plot) if model is None else analysis.plot_layer_costs(rows, plot, model)
    if as_json:
        return print_json([vars(row) for row in rows])
    print_table(table, left=["class", "output"])
    if model and model_spec(network):
        fields = analysis.receptive_fields(network.spec).items()
        print_line("receptive fields:", ", ".join(f"{name} {field.size} px" for name, field in fields))


def _network_row(row):
    return {
        "network": row.name,
        "depth": row.depth,
        "parameters": f"{row.parameters / 1e6:.2f} M",
        "multiply-adds": f"{row.multiply_adds / 1e9:.2f} G",
        "of VGG-19's": f"{row.fraction_of_vgg19:.0%}",
    }


def _layer_rows(rows):
    cells = [(row, row.name, row.class_name, " x ".join(map(str, row.output_shape))) for row in rows if row.parameters]
    for row, name, class_name, shape in (*cells, (analysis.total_cost(rows), "all", "", "")):
        costs = {"parameters": f"{row.parameters:,}", "multiply-adds": f"{row.multiply_adds:,}"}
        yield {"layer": name, "class": class_name, "output": shape, **costs}
