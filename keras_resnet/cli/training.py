"""Commands that train networks: train, finetune, tune, study degradation."""

import json
import shlex
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated

from rich.markdown import Markdown
from typer import Option

import keras_resnet
from keras_resnet.architecture.spec import read_spec
from keras_resnet.cli.app import out, print_json, print_line, print_progress, print_table, study
from keras_resnet.cli.options import (
    NETWORK_OR_FILE,
    AsJson,
    Changes,
    Mode,
    Model,
    TrainingSet,
    command,
    numbers,
    recipe_changes,
)
from keras_resnet.data.sources import load_dataset
from keras_resnet.errors import value_error
from keras_resnet.search.results import describe
from keras_resnet.search.tune import WINNER
from keras_resnet.studies.degradation import SIZES
from keras_resnet.studies.degradation import degradation as run_degradation
from keras_resnet.studies.results import to_markdown
from keras_resnet.training.objectives import run_score
from keras_resnet.training.options import RunOptions
from keras_resnet.training.recipe import Recipe

DATA = {load_dataset: "data_dir download labels validation_split fold skip_bad"}
RUN = "devices precision seed deterministic checkpoint_every resume overwrite"
FIELDS = {Recipe: "patience class_weight oversample"}
UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}
OF_SIZE = "the size's"
WORKDIR = "Folder for all files, or a URL in object storage: s3://bucket/run."
RecipeName = Annotated[str, Option("--recipe", help="A name in RECIPES.")]


@command(
    data={load_dataset: DATA[load_dataset] + " ignore_index"},
    fields={Recipe: "patience class_weight oversample trainable_stages"},
    options={
        keras_resnet.train: "weights backbone_weights size keep validation_freq sync_batch_norm",
        RunOptions: RUN + " xla log profile",
    },
)
def train(
    data,
    fields,
    options,
    recipe: RecipeName = "quickstart",
    model: Annotated[str | None, Option(help=NETWORK_OR_FILE, show_default="resnet20")] = None,
    spec: Annotated[Path | None, Option(help="A ResNetSpec as JSON instead: winner.json of `tune`.")] = None,
    dataset: TrainingSet = "digits",
    workdir: Annotated[str | None, Option(help=WORKDIR, show_default="runs/RECIPE")] = None,
    changes: Changes = None,
):
    """Train a network, and write model, checkpoint, log, curves, settings and report to a folder."""
    if spec is not None and model is not None:
        raise ValueError(f"`--model` and `--spec` should not be given both. Received: --model {model} --spec {spec}")
    row = keras_resnet.get_recipe(recipe, **recipe_changes(changes, **fields))
    workdir = workdir or f"runs/{recipe}"
    model = read_spec(spec) if spec is not None else "resnet20" if model is None else model
    source = partial(load_dataset, dataset, masks=row.task == "segmentation", **data)
    report = keras_resnet.train(model, source, row, workdir, **options).report
    print_line(
        f"{score_text(report)} on {report['test_images']} test images, "
        f"{report['wall_time_s']:.0f} s, everything in {workdir}/"
    )


def score_text(report):
    """ "top-1 accuracy 91.20%"."""
    name, value = run_score(report)
    return f"{name.replace('_', ' ').replace('top1', 'top-1')} {value:.2%}"


@command(
    data=DATA,
    fields=FIELDS,
    options={keras_resnet.finetune: "stages batch_norm head_epochs size", RunOptions: RUN + " log"},
)
def finetune(
    data,
    fields,
    options,
    dataset: TrainingSet,
    model: Model = "resnet50",
    weights: Annotated[str, Option(help="A tag, a file, or none.")] = "imagenet",
    workdir: Annotated[str, Option(help=WORKDIR)] = "runs/finetune",
    recipe: RecipeName = "finetune",
    changes: Changes = None,
    mode: Mode = None,
):
    """Train a pretrained network on classes of your own: first a new classifier, then the upper stages with it."""
    data = partial(load_dataset, dataset, **data)
    options |= {"weights": None if weights == "none" else weights, "recipe": recipe, "mode": mode}
    result = keras_resnet.finetune(model, data, workdir, **options, **recipe_changes(changes, **fields))
    scores = {name: f"{score_text(it)} of {it['test_images']:,}" for name, it in result.phases.items()}
    scores[result.best] += " (kept)"
    print_table({"phase": name, "best epoch": score} for name, score in scores.items())
    print_line(f"everything in {workdir}/")


@command(
    data={load_dataset: "data_dir download"},
    options={
        keras_resnet.tune: "tuner trials max_latency validation_split final",
        RunOptions: "devices precision seed deterministic checkpoint_every overwrite",
    },
)
def tune(
    data,
    options,
    dataset: TrainingSet = "digits",
    max_params: Annotated[str | None, Option(help="Most parameters: 100k, 1.5M.")] = None,
    max_multiply_adds: Annotated[str | None, Option(help="Most multiply-adds for one image: 40M, 4G.")] = None,
    recipe: RecipeName = "quickstart",
    changes: Changes = None,
    workdir: Annotated[Path | None, Option(help="Folder for all files.", show_default="runs/tune_DATASET")] = None,
    as_json: AsJson = False,
):
    """Search for the most accurate network within a budget, and its recipe. Repeat the command to continue it.

    Several processes share a search: give each KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT and KERASTUNER_TUNER_ID,
    which is "chief" in one of them.
    """
    workdir = workdir or Path("runs") / f"tune_{Path(dataset).name}"
    limits = {"max_params": max_params, "max_multiply_adds": max_multiply_adds}
    limits = {name: number_with_unit(name.replace("_", "-"), text) for name, text in limits.items()}
    options |= {"recipe": recipe, "workdir": workdir, "progress": print_progress}
    source = partial(load_dataset, dataset, **data)
    result = keras_resnet.tune(source, **limits, **options, **recipe_changes(changes))
    if as_json:
        return print_json(result.to_config())
    if result.winner:  # a worker may end before the chief has written anything
        _print_search(result)
        given = {"dataset": dataset, "data-dir": data["data_dir"]}
        given |= {name: options[name] for name in ("recipe", "precision", "devices")}
        print_line(f"again: {_training_command(result, workdir, given)}")
    print_line(f"everything in {workdir}/")


def number_with_unit(option, text):
    """ "100k" -> 100000; None stays None."""
    if text is None:
        return None
    number, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1)
    try:
        return round(float(number) * unit)
    except (ValueError, OverflowError):
        raise value_error(f"--{option}", text, "a number, such as 100000, 100k or 1.5M") from None


def _print_search(result):
    front = result.pareto_front()
    rows = [
        {
            "trial": candidate.trial,
            "network": describe(candidate.spec),
            "parameters": f"{candidate.parameters:,}",
            "multiply-adds": f"{candidate.multiply_adds:,}",
            "accuracy": f"{candidate.top1_accuracy:.2%}{' *' if candidate in front else '  '}",
        }
        for candidate in result.completed
    ]
    print_table(rows, left=["network"])
    print_line("* no candidate with fewer parameters is as accurate on the validation images")
    if final := result.final:
        tested = f"{final['top1_accuracy']:.2%} of {final['test_images']:,} test images"
        print_line(f"trial {result.winner.trial}, trained on all training images: {tested}")


def _training_command(result, workdir, options):
    """The command that trains the best network as the search did at its end."""
    named = keras_resnet.get_recipe(options["recipe"]).to_config()
    searched = result.settings["recipe"]
    trained = searched | result.winner.recipe | {"epochs": searched["epochs"]}  # Hyperband's epochs only select
    changes = {name: given for name, given in trained.items() if given != named[name]}
    options = {"spec": workdir / WINNER, **options, "seed": result.settings["seed"]}
    words = [(f"--{option}", str(given)) for option, given in options.items() if given is not None]
    words += [("--set", f"{name}={it if isinstance(it, str) else json.dumps(it)}") for name, it in changes.items()]
    return shlex.join(["keras-resnet", "train", *chain(*words)])


@command(
    study,
    data={load_dataset: "data_dir download"},
    options={RunOptions: "devices precision xla seed deterministic checkpoint_every overwrite"},
)
def degradation(
    data,
    options,
    size: Annotated[str, Option(help=f"Networks, data and epochs: {', '.join(SIZES)}.")] = "digits",
    workdir: Annotated[str | None, Option(help=WORKDIR, show_default="runs/degradation_SIZE")] = None,
    depths: Annotated[str | None, Option(help="Numbers of layers: 20,56.", show_default=OF_SIZE)] = None,
    dataset: Annotated[str | None, Option(help="Another data set.", show_default=OF_SIZE)] = None,
    images: Annotated[str | None, Option(help="Training and test images: 10000,2000.", show_default=OF_SIZE)] = None,
    recipe: Annotated[str | None, Option(help="A name in RECIPES.", show_default=OF_SIZE)] = None,
    changes: Changes = None,
    as_json: AsJson = False,
):
    """Train plain and residual networks of several depths: do the deeper ones get worse? (fig. 6)

    Repeat the command to continue an interrupted study.
    """
    workdir = workdir or f"runs/degradation_{size}"
    name = SIZES[size].dataset if dataset is None and size in SIZES else dataset
    source = name and partial(load_dataset, name, **data)
    options |= {"depths": numbers("depths", depths), "images": numbers("images", images, count=2), "recipe": recipe}
    options |= recipe_changes(changes)
    result = run_degradation(workdir, size, source, progress=print_progress, **options)
    if as_json:
        return print_json(result.to_config())
    out.print(Markdown(to_markdown(result)))
    print_line(f"everything in {workdir}/")


@command(
    study,
    data={load_dataset: "data_dir download ignore_index"},
    options={
        keras_resnet.train: "weights backbone_weights size",
        keras_resnet.learning_rate_test: "lowest highest steps",
        RunOptions: "devices precision xla seed deterministic",
    },
)
def learning_rate(
    data,
    options,
    model: Model = "resnet20",
    dataset: TrainingSet = "digits",
    recipe: RecipeName = "quickstart",
    workdir: Annotated[str, Option(help=WORKDIR)] = "runs/learning_rate",
    changes: Changes = None,
    as_json: AsJson = False,
):
    """Train while the learning rate rises, and suggest one for the network, the images and the recipe."""
    row = keras_resnet.get_recipe(recipe, **recipe_changes(changes))
    source = partial(load_dataset, dataset, masks=row.task == "segmentation", **data)
    result = keras_resnet.learning_rate_test(model, source, row, workdir, **options)
    if as_json:
        return print_json({**asdict(result), "suggestion": result.suggestion})
    print_line(f"suggested learning rate {result.suggestion:.2g}, everything in {workdir}/")
