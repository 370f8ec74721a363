"""Commands that use a trained network for something else: features, probe, nearest, finetune."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

import keras_resnet
from keras_resnet import transfer
from keras_resnet.cli.app import (
    AsJson,
    Changes,
    CheckpointEvery,
    DataDir,
    Deterministic,
    Devices,
    Download,
    Overwrite,
    Precision,
    Resume,
    Seed,
    SkipBad,
    ValidationSplit,
    Weights,
    app,
    err,
    last_words,
    network,
    out,
    print_json,
    recipe_changes,
    source,
)
from keras_resnet.cli.testing import Mode
from keras_resnet.data.image_files import listed
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.errors import unknown_name_error
from keras_resnet.models.preprocessing import set_preprocessing

ALIKE = ("weights_sha256", "preprocessing", "precision", "endpoint", "pooling", "class_names")
"""What features that are compared have in common."""
Vectors = Annotated[Path, typer.Argument(help="A file that `keras-resnet features` wrote.", metavar="FEATURES")]


@app.command()
def features(
    folder: Annotated[Path, typer.Argument(help="Images, in class folders or not.", metavar="FOLDER")],
    target: Annotated[Path, typer.Argument(help="The file to write (.npz).", metavar="OUT")],
    model: Annotated[str, typer.Option(help="A network of `keras-resnet models`, or a .keras file.")] = "resnet50",
    weights: Weights = None,
    endpoint: Annotated[str, typer.Option(help="stem, stage1 to stage4 (C2 to C5), or pre_logits.")] = "pre_logits",
    pooling: Annotated[str, typer.Option(help="What makes vectors of maps: avg or max.")] = "avg",
    batch_size: Annotated[int, typer.Option(help="Images that the network sees at a time.", min=1)] = 100,
    mode: Mode = None,
    precision: Precision = None,
    map_file: Annotated[
        Path | None, typer.Option("--map", help="PNG to draw: the vectors in two dimensions, by t-SNE.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a file of other settings.")] = False,
    as_json: AsJson = False,
):
    """Write a vector for each image of a folder. Repeat it to go on; bad files make the exit status 1."""
    looker = network(model, weights, "imagenet", precision)
    set_preprocessing(looker, Preprocessing(mode or "torch"), mode)
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress, last_words():
        bar = progress.add_task("looking", total=None)
        about = transfer.write_features(
            looker,
            folder,
            target,
            endpoint,
            pooling,
            batch_size,
            overwrite,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    if map_file:
        _draw_map(target, map_file)
    if as_json:
        print_json(about)
    else:
        count, width = about["shape"]
        classes = f" of {len(about['class_names'])} classes" if about["class_names"] else ""
        line = f"{target}: {count:,} vectors of {width:,} numbers, {looker.name}'s {endpoint}{classes}"
        out.print(line, highlight=False, soft_wrap=True)
    if about["skipped"]:
        err.print("[red]skipped:[/]", Text(f"{listed(about['skipped'])}"), soft_wrap=True)
        raise typer.Exit(1)


def _draw_map(path, image):
    found = transfer.read_features(path)
    title = f"{len(found.vectors):,} images, {found.settings['model']}'s {found.settings['endpoint']}"
    points = transfer.feature_map(found.vectors)
    transfer.draw_feature_map(points, found.labels, found.class_names, image, title)


@app.command()
def probe(
    train: Vectors,
    test: Annotated[Path, typer.Argument(help="Another one, of other images.", metavar="TEST_FEATURES")],
    neighbours: Annotated[int, typer.Option("-k", help="Neighbours that vote.", min=1)] = 20,
    as_json: AsJson = False,
):
    """See what can be read off features: the accuracy of a linear classifier on top, and of nearest neighbours."""
    train, test = _comparable(train, test)
    pairs = (train.vectors, train.labels, test.vectors, test.labels)
    results = {
        "linear probe": transfer.linear_probe(*pairs),
        f"{neighbours} nearest neighbours": transfer.nearest_neighbours(*pairs, neighbours),
    }
    if as_json:
        return print_json({name: {"top1_accuracy": found.top1_accuracy} for name, found in results.items()})
    table = Table("", "accuracy", box=None, header_style="bold")
    for name, found in results.items():
        table.add_row(name, f"{100 * found.top1_accuracy:.2f} % of {len(test.labels):,}")
    out.print(table)


@app.command()
def nearest(
    path: Vectors,
    image: Annotated[str, typer.Argument(help="Name of an image in the file, or its end.")],
    count: Annotated[int, typer.Option("-k", help="How many.", min=1)] = 5,
    as_json: AsJson = False,
):
    """Find the images that are most like another, by the cosine of their features."""
    found = transfer.read_features(path)
    query = _find(found.names, image)
    count = min(count, len(found.names) - 1)
    (answers,) = transfer.nearest_images(found.vectors[query : query + 1], found.vectors, found.names, count + 1)
    answers = [answer for answer in answers if answer[0] != found.names[query]][:count]
    if as_json:
        return print_json([{"name": name, "cosine": cosine} for name, cosine in answers])
    table = Table("image", "cosine", box=None, header_style="bold")
    for name, cosine in answers:
        table.add_row(name, f"{cosine:.3f}")
    out.print(table)


def _comparable(*paths):
    """Features of the files, their classes numbered alike.

    Raises:
        ValueError: if they were not made in the same way, or have other classes.
    """
    found = [transfer.read_features(path) for path in paths]
    settings = [one.settings | {"class_names": one.class_names} for one in found]
    values = {name: [one.get(name) for one in settings] for name in ALIKE}
    differences = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
    if differences:
        raise ValueError(
            f"Both files should have features of the same network, alike in {', '.join(ALIKE)}. "
            f"Received: {differences} in {paths[0]} and {paths[1]}"
        )
    return found


def _find(names, wanted):
    """Number of the one name that is `wanted`, or ends so."""
    ends = [number for number, name in enumerate(names) if name == wanted or name.endswith(f"/{wanted}")]
    if len(ends) != 1:
        raise unknown_name_error("image", wanted, names, f"the name of one image in the file (found: {len(ends)})")
    return ends[0]


@app.command()
def finetune(
    dataset: Annotated[str, typer.Option(help="A folder with a folder for each class, or a tensorflow-datasets name.")],
    model: Annotated[str, typer.Option(help="A network of `keras-resnet models`, or a .keras file.")] = "resnet50",
    weights: Annotated[
        str | None,
        typer.Option(help="A tag or a file; none for random ones.", show_default="imagenet; a .keras file's own"),
    ] = None,
    workdir: Annotated[Path, typer.Option(help="Folder for what fine-tuning leaves.")] = Path("runs/finetune"),
    stages: Annotated[int, typer.Option(help="Upper stages that learn in the end; 0: the classifier alone.")] = 2,
    batch_norm: Annotated[
        str, typer.Option(help="frozen: batch norm stays the body's; trained: it learns with its stage.")
    ] = "frozen",
    recipe: Annotated[str, typer.Option(help="A row of RECIPES, for each phase.")] = "finetune",
    head_epochs: Annotated[
        int | None, typer.Option(help="Of the first phase.", min=1, show_default="the recipe's")
    ] = None,
    changes: Changes = None,
    mode: Mode = None,
    data_dir: DataDir = None,
    download: Download = True,
    validation_split: ValidationSplit = None,
    skip_bad: SkipBad = False,
    devices: Devices = None,
    precision: Precision = None,
    seed: Seed = 0,
    deterministic: Deterministic = False,
    checkpoint_every: CheckpointEvery = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
):
    """Teach a trained network classes of one's own: a new classifier first, then the upper stages, from the top."""
    with last_words():
        result = keras_resnet.finetune(
            model,
            source(dataset, data_dir, download, skip_bad, validation_split),
            workdir,
            weights=_wanted(model, weights),
            stages=stages,
            head_epochs=head_epochs,
            batch_norm=batch_norm,
            recipe=recipe,
            seed=seed,
            overwrite=overwrite,
            resume=resume,
            precision=precision,
            devices=devices,
            deterministic=deterministic,
            checkpoint_every=checkpoint_every,
            mode=mode,
            **recipe_changes(changes),
        )
    table = Table("phase", "best epoch's accuracy", box=None, header_style="bold")
    for name, report in result.phases.items():
        kept = " (kept)" if name == result.best else ""
        table.add_row(name, f"{100 * report['top1_accuracy']:.2f} % of {report['test_images']:,}{kept}")
    out.print(table)
    out.print(f"everything in {workdir}/", highlight=False, soft_wrap=True)


def _wanted(model, weights):
    """The words of `--weights` as `finetune` takes them."""
    if weights is None and not model.endswith(".keras"):
        return "imagenet"
    return None if weights == "none" else weights
