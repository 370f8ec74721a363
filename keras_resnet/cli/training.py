"""Commands that train networks: train, finetune, tune."""

import json
import shlex
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

import keras_resnet
from keras_resnet.architecture.spec import read_spec
from keras_resnet.cli.app import print_json, print_line, print_progress, print_table
from keras_resnet.cli.options import AsJson, Changes, Mode, Model, TrainingSet, command, recipe_changes
from keras_resnet.data.sources import load_dataset
from keras_resnet.search.results import describe
from keras_resnet.search.tune import WINNER
from keras_resnet.training.options import RunOptions

DATA = {load_dataset: "data_dir download validation_split skip_bad"}
RUN = "devices precision seed deterministic checkpoint_every resume overwrite"
UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}
RecipeName = Annotated[str, Option("--recipe", help="A name in RECIPES.")]


@command(
    data=DATA,
    options={keras_resnet.train: "keep validation_freq sync_batch_norm tensorboard", RunOptions: RUN + " xla"},
)
def train(
    data,
    options,
    recipe: RecipeName = "quickstart",
    model: Annotated[str | None, Option(help="A network of `keras-resnet models`.", show_default="resnet20")] = None,
    spec: Annotated[Path | None, Option(help="A ResNetSpec as JSON instead: winner.json of `tune`.")] = None,
    dataset: TrainingSet = "digits",
    workdir: Annotated[Path | None, Option(help="Folder for all files.", show_default="runs/RECIPE")] = None,
    changes: Changes = None,
):
    """Train a network, and write model, checkpoint, log, curves, settings and report to a folder."""
    if spec and model:
        raise ValueError(f"`--model` and `--spec` should not be given both. Received: --model {model} --spec {spec}")
    row = keras_resnet.get_recipe(recipe, **recipe_changes(changes))
    workdir = workdir or Path("runs") / recipe
    model = read_spec(spec) if spec else model or "resnet20"
    report = keras_resnet.train(model, partial(load_dataset, dataset, **data), row, workdir, **options).report
    print_line(
        f"top-1 accuracy {report['top1_accuracy']:.2%} on {report['test_images']} test images, "
        f"{report['wall_time_s']:.0f} s, everything in {workdir}/"
    )


@command(data=DATA, options={keras_resnet.finetune: "stages batch_norm head_epochs", RunOptions: RUN})
def finetune(
    data,
    options,
    dataset: TrainingSet,
    model: Model = "resnet50",
    weights: Annotated[str | None, Option(help="A tag, a file, or none.", show_default="imagenet")] = None,
    workdir: Annotated[Path, Option(help="Folder for all files.")] = Path("runs/finetune"),
    recipe: RecipeName = "finetune",
    changes: Changes = None,
    mode: Mode = None,
):
    """Train a pretrained network on classes of your own: first a new classifier, then the upper stages with it."""
    if weights is None and not model.endswith(".keras"):
        weights = "imagenet"
    result = keras_resnet.finetune(
        model,
        partial(load_dataset, dataset, **data),
        workdir,
        weights=None if weights == "none" else weights,
        recipe=recipe,
        mode=mode,
        **options,
        **recipe_changes(changes),
    )
    print_table(_phase(result, *item) for item in result.phases.items())
    print_line(f"everything in {workdir}/")


def _phase(result, name, report):
    kept = " (kept)" if name == result.best else ""
    accuracy = f"{report['top1_accuracy']:.2%} of {report['test_images']:,}{kept}"
    return {"phase": name, "best epoch's accuracy": accuracy}


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
    result = keras_resnet.tune(
        partial(load_dataset, dataset, **data),
        max_params=number_with_unit("max-params", max_params),
        max_multiply_adds=number_with_unit("max-multiply-adds", max_multiply_adds),
        recipe=recipe,
        workdir=workdir,
        progress=print_progress,
        **options,
        **recipe_changes(changes),
    )
    if as_json:
        return print_json(result.to_config())
    if result.winner:  # a worker may end before the chief has written anything
        _print_search(result)
        given = {"recipe": recipe, "dataset": dataset, "data-dir": data["data_dir"]}
        given |= {name: options[name] for name in ("precision", "devices")}
        print_line(f"again: {_training_command(result, workdir, given)}")
    print_line(f"everything in {workdir}/")


def number_with_unit(option, text):
    """ "100k" -> 100000; None stays None."""
    if text is None:
        return None
    unit = UNITS.get(text[-1:], 1)
    try:
        return round(float(text.removesuffix(text[-1]) if unit > 1 else text) * unit)
    except (ValueError, OverflowError):
        raise ValueError(
            f"`--{option}` should be a number, such as 100000, 100k or 1.5M. Received: --{option} {text!r}"
        ) from None


def _print_search(result):
    front = result.pareto_front()
    print_table((_candidate(one, one in front) for one in result.completed), left=["network"])
    print_line("* no candidate with fewer parameters is as accurate on the validation images")
    if result.final:
        print_line(
            f"trial {result.winner.trial}, trained on all training images: {result.final['top1_accuracy']:.2%} "
            f"of {result.final['test_images']:,} test images"
        )


def _candidate(candidate, on_front):
    return {
        "trial": candidate.trial,
        "network": describe(candidate.spec),
        "parameters": f"{candidate.parameters:,}",
        "multiply-adds": f"{candidate.multiply_adds:,}",
        "accuracy": f"{candidate.top1_accuracy:.2%}{' *' if on_front else '  '}",
    }


def _training_command(result, workdir, options):
    """The command that trains the best network as the search did at its end."""
    named = keras_resnet.get_recipe(options["recipe"]).to_config()
    trained = result.settings["recipe"] | result.winner.final_recipe
    changes = {name: given for name, given in trained.items() if given != named[name]}
    options = {"spec": workdir / WINNER, **options, "seed": result.settings["seed"]}
    words = ["keras-resnet", "train"]
    for option, given in options.items():
        words += () if given is None else (f"--{option}", str(given))
    for name, given in changes.items():
        words += ("--set", f"{name}={given if isinstance(given, str) else json.dumps(given)}")
    return shlex.join(words)
