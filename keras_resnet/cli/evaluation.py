"""The command that evaluates networks, and what it shares with the studies."""

from pathlib import Path
from typing import Annotated

from typer import Option

import keras_resnet
from keras_resnet.cli.app import print_json, print_problem, print_table, progress_bar
from keras_resnet.cli.options import AsJson, Mode, Precision, TestSet, command, model_from, numbers
from keras_resnet.data.image_files import format_errors
from keras_resnet.data.protocols import PROTOCOLS, get_protocol
from keras_resnet.data.sources import load_dataset, load_test
from keras_resnet.evaluation import check_confusion, plot_confusion
from keras_resnet.models.preprocessing import set_preprocessing

Models = Annotated[
    list[str] | None,
    Option("--model", help="A network of `keras-resnet models`, or a .keras file; several are an ensemble."),
]
AllWeights = Annotated[
    list[str] | None,
    Option("--weights", help="A tag or a weights file for each network, except .keras files."),
]
DATA = {load_test: "split labels", load_dataset: "data_dir download skip_bad"}


@command(data=DATA, options={keras_resnet.evaluate: "batch_size"})
def evaluate(
    data,
    options,
    dataset: TestSet,
    model: Models = None,
    weights: AllWeights = None,
    protocol: Annotated[str, Option(help=f"Test views: {', '.join(PROTOCOLS)}.")] = "center",
    scales: Annotated[
        str | None,
        Option(help="Shorter sides of the images in pixels: 224,256,384.", show_default="the protocol's"),
    ] = None,
    flip: Annotated[
        bool | None, Option(help="Whether mirrored views are added.", show_default="the protocol's")
    ] = None,
    mode: Mode = None,
    precision: Precision = None,
    confusion: Annotated[Path | None, Option(help="PNG file for a plot of the confusion matrix.")] = None,
    by_class: Annotated[bool, Option("--by-class", help="Print the errors of each class.")] = False,
    as_json: AsJson = False,
):
    """Evaluate a network as the paper does, or an ensemble of several: top-1 and top-5 error."""
    changes = {"scales": numbers("scales", scales), "flip": flip}
    protocol = get_protocol(protocol, **{name: change for name, change in changes.items() if change is not None})
    models = models_from(model or ["resnet50"], weights, precision=precision)
    if confusion:
        check_confusion(next(iter(models.values())), confusion)
    images = load_test(dataset, **data)
    for one in models.values():
        set_preprocessing(one, images.preprocessing, mode)
    options |= {"skip_bad": data["skip_bad"]}
    with progress_bar(len(images.test)) as progress:
        result = keras_resnet.evaluate(list(models.values()), images, protocol, progress=progress, **options)
    if as_json:
        described = {"models": list(models), "dataset": images.name, "protocol": protocol.to_config()}
        print_json({**result.to_json(), **described})
    else:
        _print_evaluation(result, f"{' + '.join(models)} on {images.name}", by_class)
    if confusion:
        plot_confusion(result, confusion)


def models_from(names, weights, required=True, precision=None):
    """{title: model} of networks given by name, with `weights` in their order, and of .keras files.

    Args:
        names: names of networks and .keras files.
        weights: tags and weights files, one for each name; a single network may have several. None: "imagenet".
        required: False: random weights if `weights` is None.
        precision: of the networks given by name.
    """
    by_name = [name for name in names if not name.endswith(".keras")]
    if len(names) == len(by_name) == 1 and weights:
        names = by_name = by_name * len(weights)
    if weights and len(weights) != len(by_name):
        raise ValueError(
            f"`--weights` should be given for each of {by_name}, in their order. Received: {len(weights)} ({weights})"
        )
    sources = iter(weights or [_default_weights(name) if required else None for name in by_name])
    pairs = [(name, None) if name.endswith(".keras") else (name, next(sources)) for name in names]
    models = [model_from(*pair, precision=precision) for pair in pairs]
    titles = [model.name for model in models]
    if len(set(titles)) < len(titles):
        titles = [f"{model.name} ({tag or name})" for model, (name, tag) in zip(models, pairs, strict=True)]
    return dict(zip(titles, models, strict=True))


def _default_weights(name):
    """The weights of a network if none are given: "imagenet", if it has them."""
    tags = keras_resnet.list_weights(name)
    if "imagenet" not in tags:
        raise ValueError(f"`--weights` should be given for {name}: a file, or one of {tags}. Received: none")
    return "imagenet"


def _print_evaluation(result, title, by_class):
    columns = ("", "error", "95 % confidence", "wrong")
    print_table(columns, (_error_row(result, k) for k in (1, 5)), title)
    if by_class:
        columns = ("name", "num_images", "top1_error", "top5_error")
        rows = ([row[column] for column in columns] for row in result.by_class)
        rows = ((name, images, f"{top1:.2%}", f"{top5:.2%}") for name, images, top1, top5 in rows)
        print_table(("class", "images", "top-1 error", "top-5 error"), rows)
    if result.skipped:
        text = f"{len(result.skipped)} images that could not be read:\n  {format_errors(result.skipped)}"
        print_problem("skipped", text, "yellow")


def _error_row(result, k):
    low, high = result.interval(k)
    return (
        f"top-{k}",
        f"{result.error(k):.2%}",
        f"{low:.2%} to {high:.2%}",
        f"{result.num_wrong(k)} of {result.num_images}",
    )
