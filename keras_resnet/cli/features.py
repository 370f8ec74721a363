"""Commands about features of images: features, probe, nearest."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from keras_resnet import transfer
from keras_resnet.cli.app import print_json, print_line, print_note, print_table, progress_bar
from keras_resnet.cli.options import AsJson, Mode, Model, Precision, Weights, command, model_from
from keras_resnet.data.image_files import format_errors
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.errors import unknown_name_error
from keras_resnet.models.preprocessing import set_preprocessing

COMPARABLE = ("weights_sha256", "preprocessing", "precision", "endpoint", "pooling", "class_names")
"""Settings that two feature files must have in common to be compared."""
Features = Annotated[Path, Argument(help="A file that `keras-resnet features` wrote.", metavar="FEATURES")]


@command(options={transfer.extract: "endpoint pooling batch_size size"})
def features(
    options,
    folder: Annotated[Path, Argument(help="Images, in class folders or not.", metavar="FOLDER")],
    target: Annotated[Path, Argument(help="The file to write (.npz).", metavar="OUT")],
    model: Model = "resnet50",
    weights: Weights = None,
    mode: Mode = None,
    precision: Precision = None,
    map_file: Annotated[Path | None, Option("--map", help="PNG file for a t-SNE plot of the features.")] = None,
    overwrite: Annotated[bool, Option(help="Replace a file with other settings.")] = False,
    as_json: AsJson = False,
):
    """Write a feature vector for each image of a folder. Repeat the command to continue it.

    Unreadable files are listed, and make the exit status 1.
    """
    model = model_from(model, weights, "imagenet", precision)
    set_preprocessing(model, Preprocessing(mode or "torch"), mode)
    with progress_bar() as progress:
        written = transfer.write_features(model, folder, target, overwrite=overwrite, progress=progress, **options)
    if map_file:
        found = transfer.read_features(target)
        points = transfer.feature_map(found.vectors)
        title = f"{len(points):,} images, {found.settings['model']}'s {found.settings['endpoint']}"
        transfer.plot_feature_map(points, found.labels, found.class_names, map_file, title)
    if as_json:
        print_json(written)
    else:
        count, width = written["shape"]
        classes = f" of {len(written['class_names'])} classes" if written["class_names"] else ""
        print_line(f"{target}: {count:,} vectors of {width:,} numbers, {model.name}'s {options['endpoint']}{classes}")
    if written["skipped"]:
        print_note("skipped", format_errors(written["skipped"]))
        raise typer.Exit(1)


@command()
def probe(
    train: Features,
    test: Annotated[Path, Argument(help="A feature file of other images.", metavar="TEST_FEATURES")],
    neighbours: Annotated[int, Option("-k", help="Number of neighbours that vote.", min=1)] = 20,
    as_json: AsJson = False,
):
    """Train a linear classifier and a nearest-neighbour classifier on features, and print their test accuracies."""
    paths = (train, test)
    train, test = map(transfer.read_features, paths)
    settings = [found.settings | {"class_names": found.class_names} for found in (train, test)]
    values = {name: [row.get(name) for row in settings] for name in COMPARABLE}
    if differences := {name: pair for name, pair in values.items() if pair[0] != pair[1]}:
        raise ValueError(
            f"Both files should have features of the same network, alike in {', '.join(COMPARABLE)}. "
            f"Received: {differences} in {paths[0]} and {paths[1]}"
        )
    arrays = (train.vectors, train.labels, test.vectors, test.labels)
    probes = {
        "linear probe": transfer.linear_probe(*arrays),
        f"{neighbours} nearest neighbours": transfer.nearest_neighbours(*arrays, neighbours),
    }
    if as_json:
        return print_json({name: {"top1_accuracy": probe.top1_accuracy} for name, probe in probes.items()})
    accuracies = {name: f"{probe.top1_accuracy:.2%} of {len(test.labels):,}" for name, probe in probes.items()}
    print_table({"classifier": name, "accuracy": accuracy} for name, accuracy in accuracies.items())


@command()
def nearest(
    path: Features,
    image: Annotated[str, Argument(help="Name of an image in the file, or the end of its name.")],
    count: Annotated[int, Option("-k", help="Number of images.", min=1)] = 5,
    as_json: AsJson = False,
):
    """Find the images that are most similar to another one, by the cosine similarity of their features."""
    found = transfer.read_features(path)
    query = _index(found.names, image)
    count = min(count, len(found.names) - 1)
    (images,) = transfer.nearest_images(found.vectors[query : query + 1], found.vectors, found.names, count + 1)
    images = [(name, cosine) for name, cosine in images if name != found.names[query]][:count]
    if as_json:
        return print_json([{"name": name, "cosine": cosine} for name, cosine in images])
    print_table({"image": name, "cosine": f"{cosine:.3f}"} for name, cosine in images)


def _index(names, end):
    """Index of the only name that is `end`, or ends with "/" and `end`."""
    indices = [index for index, name in enumerate(names) if name == end or name.endswith(f"/{end}")]
    if len(indices) != 1:
        raise unknown_name_error("image", end, names, f"the name of one image in the file (found: {len(indices)})")
    return indices[0]
