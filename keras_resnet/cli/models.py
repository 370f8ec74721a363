"""Commands about networks and their weights: models, summary, convert, publish, export."""

from collections import Counter
from pathlib import Path
from typing import Annotated

from rich.markdown import Markdown
from typer import Argument, Option

import keras_resnet
from keras_resnet.architecture.detector_spec import DetectorSpec, backbone_of
from keras_resnet.architecture.segmenter_spec import SegmenterSpec
from keras_resnet.cli.app import out, print_json, print_line, print_table
from keras_resnet.cli.options import AsJson, Mode, Weights, command, model_from
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.sources import load_dataset, load_test
from keras_resnet.deployment.verification import to_markdown
from keras_resnet.errors import value_error
from keras_resnet.files import read_json
from keras_resnet.models.preprocessing import set_preprocessing
from keras_resnet.variants import TASKS
from keras_resnet.weights.catalog import WEIGHTS

FIGURES = {
    "top1_accuracy": "top-1",
    "box_ap": "box AP",
    "mask_ap": "mask AP",
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
}
"""Published shares of PretrainedWeights -> their titles in tables."""
_FIGURES_OF_ROWS: dict[type, tuple[str, ...]] = {
    DetectorSpec: ("box_ap", "mask_ap"),
    SegmenterSpec: ("mean_iou", "pixel_accuracy"),
}
"""Class of a spec -> the fields that the row of a network has, those of its weights with the highest first one."""


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
    size, *other_sizes = {row["input_size"] for row in rows}
    title = None if other_sizes else f"Multiply-adds of an image of {size} x {size} pixels"
    table = [_table_row(row, len(rows) == 1, with_size=bool(other_sizes)) for row in rows]
    print_table(table, title, left=["weights"], unbroken=table[0].keys() - {"weights"})


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
    if fields := _FIGURES_OF_ROWS.get(type(spec)):
        best = max((WEIGHTS[name, tag] for tag in tags), key=lambda weights: getattr(weights, fields[0]), default=None)
        row |= {field: best and getattr(best, field) for field in fields}
    return row


def _table_row(row, all_tags, with_size):
    name, tags = row["name"], row["weights"]
    columns = {
        "network": name,
        "depth": row["depth"],
        "parameters": f"{row['parameters'] / 1e6:.2f} M",
        "multiply-\nadds": f"{row['multiply_adds'] / 1e9:.2f} G",
    }
    if any(field in row for field in FIGURES):  # the name of a detector or segmenter says it
        del columns["depth"]
    if with_size:
        columns["at"] = f"{row['input_size']} px"
    if all_tags:
        return columns | {"weights": "\n".join(_tag(name, tag) for tag in tags)}
    figures = {title: row[field] for field, title in FIGURES.items() if field in row}
    percent = {title.replace(" ", "\n"): f"{100 * share:.1f}%" if share else "" for title, share in figures.items()}
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
    """A path stays as it is. Otherwise one split of a data set."""
    return name if name is None or Path(name).exists() else load_test(name, split, **data)
