"""Commands about networks and their weights: models, summary, predict, convert, publish, export."""

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown
from rich.progress import track
from typer import Argument, Option

import keras_resnet
from keras_resnet.architecture.detector_spec import DetectorSpec, backbone_of
from keras_resnet.cli.app import err, out, print_json, print_line, print_note, print_table
from keras_resnet.cli.options import AsJson, Mode, Weights, command, model_from, raise_if_given
from keras_resnet.data.image_files import find_images
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.protocols import PROTOCOLS
from keras_resnet.data.sources import load_dataset, load_test
from keras_resnet.deployment.exported import is_exported
from keras_resnet.deployment.verification import to_markdown
from keras_resnet.errors import value_error
from keras_resnet.files import read_json
from keras_resnet.models.preprocessing import set_preprocessing
from keras_resnet.variants import TASKS
from keras_resnet.weights.catalog import WEIGHTS

FIGURES = {"top1_accuracy": "top-1", "box_ap": "box AP", "mask_ap": "mask AP"}
"""Published shares of PretrainedWeights -> their titles in tables."""


@command(options={keras_resnet.list_models: "task"})
def models(
    options,
    pattern: Annotated[str, Argument(help='Names of networks, as in a shell: "*cifar*".')] = "*",
    as_json: AsJson = False,
):
    """List the networks: depth, parameters, multiply-adds, weights (all tags if only one network matches)."""
    names = keras_resnet.list_models(pattern, **options)
    if not names:
        others = [f"`--task {task}`" for task in TASKS if keras_resnet.list_models(pattern, task=task)]
        hint = f"With {' or '.join(others)} it does." if others else ""
        raise value_error("pattern", pattern, "a name of `keras-resnet models`, or match some", hint)
    rows = [_model_row(name) for name in names]
    if as_json:
        return print_json(rows)
    print_table((_table_row(row, all_tags=len(rows) == 1) for row in rows), left=["weights"])


def _model_row(name):
    spec = keras_resnet.get_spec(name)
    cost = keras_resnet.complexity(spec)
    tags = keras_resnet.list_weights(name)
    row = {
        "name": name,
        "depth": backbone_of(spec).depth,
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "input_size": spec.default_size,
        "weights": tags,
    }
    if isinstance(spec, DetectorSpec):
        best = max((WEIGHTS[name, tag] for tag in tags), key=lambda weights: weights.box_ap, default=None)
        row |= {"box_ap": best and best.box_ap, "mask_ap": best and best.mask_ap}
    return row


def _table_row(row, all_tags):
    name, tags = row["name"], row["weights"]
    columns = {
        "network": name,
        "depth": row["depth"],
        "parameters": f"{row['parameters'] / 1e6:.2f} M",
        "multiply-adds": f"{row['multiply_adds'] / 1e9:.2f} G",
        "at": f"{row['input_size']} px",
    }
    if all_tags:
        return columns | {"weights": "\n".join(_tag(name, tag) for tag in tags)}
    figures = {title: row[field] for field, title in FIGURES.items() if field in row}
    percent = {title: f"{100 * share:.1f}%" if share else "" for title, share in figures.items()}
    return columns | percent | {"weights": _tag_groups(tags)}


def _tag(name, tag):
    """A tag with the published figures and the license of its weights, if the catalog has them."""
    if (name, tag) not in WEIGHTS:
        return tag
    source = WEIGHTS[name, tag]
    shares = {title: share for field, title in FIGURES.items() if (share := getattr(source, field)) is not None}
    return f"{tag} ({', '.join([*(f'{title} {100 * share:.5g}%' for title, share in shares.items()), source.license])})"


def _tag_groups(tags):
    """["imagenet", "hf://timm/a", "hf://timm/b"] -> "imagenet, hf://timm (2)"."""
    groups = Counter("hf://timm" if tag.startswith("hf:") else tag.split(":")[0] for tag in tags)
    return ", ".join(f"{group} ({count})" if count > 1 else group for group, count in groups.items())


@command()
def summary(
    name: Annotated[str, Argument(help="A network of `keras-resnet models`, or a .keras file.")],
    weights: Weights = None,
):
    """Show a network layer by layer."""
    model = model_from(name, weights)
    model.summary(line_length=min(out.width, 120), print_fn=lambda line: out.print(line, highlight=False))


@command(options={keras_resnet.predict: "size threshold"})
def predict(
    options,
    images: Annotated[list[Path], Argument(help="Image files, or folders of them.", metavar="IMAGE...")],
    model: Annotated[str, Option(help="A network, a .keras file, or an exported network.")] = "resnet50",
    weights: Weights = None,
    top: Annotated[int, Option(help="Number of classes for each image.", min=1)] = 5,
    protocol: Annotated[str, Option(help=f"Test views: {', '.join(PROTOCOLS)}.")] = "center",
    as_json: AsJson = False,
):
    """Predict the classes of images. Unreadable files are listed, and make the exit status 1."""
    paths = find_images(images)  # before any weights are downloaded
    if is_exported(model):
        raise_if_given("an exported network", weights=weights)
        classifier = keras_resnet.load_exported(model)
    else:
        classifier = model_from(model, weights, default_weights="imagenet")
    bar = {"console": err, "transient": True, "disable": not err.is_terminal}
    found = keras_resnet.predict(classifier, paths, top=top, stream=True, protocol=protocol, **options)
    predictions = list(track(found, "images", len(paths), **bar))
    if as_json:
        print_json([_prediction_json(prediction) for prediction in predictions])
    else:
        print_table(chain(*map(_prediction_rows, predictions)), left=["class"])
    errors = {prediction.path: prediction.error for prediction in predictions if prediction.error}
    for path, error in errors.items():
        print_note("not read", f"{path}: {error}")
    if errors:
        raise typer.Exit(1)


def _prediction_rows(prediction):
    """Rows of a table: the classes of an image, or "none" of a multi-label network; no rows for an unreadable file."""
    if not (prediction.classes or prediction.error):
        yield {"image": prediction.path, "class": "none", "probability": ""}
    for rank, (_, name, probability) in enumerate(prediction.classes):
        yield {"image": "" if rank else prediction.path, "class": name, "probability": f"{probability:.1%}"}


def _prediction_json(prediction):
    classes = [{"id": i, "name": name, "probability": it} for i, name, it in prediction.classes]
    return {"path": str(prediction.path), "error": prediction.error, "classes": classes}


@command()
def convert(
    source: Annotated[str, Argument(help="A weights file, or a tag.", metavar="IN")],
    target: Annotated[Path, Argument(help=".safetensors, .pth, .h5, .weights.h5 or .keras.", metavar="OUT")],
    model: Annotated[str, Option(help="The network that the weights belong to.")],
    layout: Annotated[str, Option(help="Names to write: keras, torchvision, timm, cifar, keras_hub, auto.")] = "keras",
):
    """Convert weights from one library's file to another's."""
    network = keras_resnet.create(model, include_top=None, weights=source)
    keras_resnet.save_weights(network, target, layout=layout)
    print_line(f"{target}: {network.name}, {network.count_params():,} numbers in the {layout} layout")


@command(options={keras_resnet.save_pretrained: "license overwrite"})
def publish(
    options,
    model: Annotated[Path, Argument(help="A .keras file.")],
    folder: Annotated[Path, Argument(help="The folder to write.")],
    report: Annotated[Path | None, Option(help="The JSON of `evaluate`, or a run's report.json.")] = None,
    upload: Annotated[
        str | None, Option(help="Repository on the Hugging Face Hub to upload to.", metavar="USER/NAME")
    ] = None,
):
    """Write a folder that timm and the Hugging Face Hub know: weights, config.json and a model card."""
    network, results = keras_resnet.load_model(model), report and read_json(report)
    keras_resnet.save_pretrained(network, folder, results, **options)
    print_line(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if upload:
        print_line(keras_resnet.push_to_hub(network, upload, results, options["license"]))


@command(
    options={keras_resnet.export: "format precision raw batch_size calibration_size measure_speed overwrite size"},
    data={load_dataset: "data_dir download"},
)
def export(
    options,
    data,
    model: Annotated[str, Argument(help="A network of `keras-resnet models`, or a .keras file.")],
    target: Annotated[Path, Argument(help="The file to write (.onnx, .xml or .tflite), or a folder.", metavar="OUT")],
    weights: Weights = None,
    calibration: Annotated[str | None, Option(help="Typical images for int8: a folder or a data set.")] = None,
    images: Annotated[str | None, Option(help="To compare: a folder or a data set.", show_default="two photos")] = None,
    mode: Mode = None,
    as_json: AsJson = False,
):
    """Write a network for another runtime, compare its outputs with Keras's, and write a report beside it."""
    model = model_from(model, weights, default_weights="imagenet")
    set_preprocessing(model, Preprocessing(mode or "torch"), mode)
    calibration, images = _images(calibration, "train", data), _images(images, None, data)
    report = keras_resnet.export(model, target, calibration=calibration, images=images, **options)
    if as_json:
        print_json(report)
    else:
        out.print(Markdown(to_markdown(report)))


def _images(name, split, data):
    """A path stays as it is: all its images are taken. Otherwise one split of a data set."""
    return name if name is None or Path(name).exists() else load_test(name, split, **data)
