"""Commands that measure networks: evaluate, benchmark, study responses, study signals, study complexity."""

import inspect
import shlex
import sys
from pathlib import Path
from statistics import mean, median
from typing import Annotated

import typer
from typer import Option

import keras_resnet
from keras_resnet import analysis
from keras_resnet.architecture.metadata import model_spec
from keras_resnet.benchmark.comparison import compare, notes, part_rows, table_rows
from keras_resnet.benchmark.contenders import CONTENDERS, MEASURED_PRECISIONS, TASKS
from keras_resnet.cli.app import (
    err,
    print_json,
    print_line,
    print_progress,
    print_table,
    progress_bar,
    study,
)
from keras_resnet.cli.evaluation_tables import print_evaluation
from keras_resnet.cli.options import (
    AsJson,
    Mode,
    Precision,
    TestSet,
    command,
    model_from,
    numbers,
    raise_if_changed,
    raise_if_unused,
)
from keras_resnet.data.protocols import (
    LOCALIZATION_PROTOCOLS,
    PROTOCOLS,
    SEGMENTATION_PROTOCOLS,
    DetectionProtocol,
    Protocol,
    SegmentationProtocol,
    get_localization_protocol,
    get_protocol,
    get_segmentation_protocol,
    is_localization,
)
from keras_resnet.data.sources import load_dataset, load_test
from keras_resnet.detection import is_detector
from keras_resnet.detection_metrics import check_coco_eval
from keras_resnet.detection_results import plot_precision_recall
from keras_resnet.errors import check_known, value_error
from keras_resnet.evaluation import MAX_PROBABILITIES, evenly_spaced_subset, keeps_probabilities, labelled_inputs
from keras_resnet.evaluation_results import check_confusion, plot_confusion, write_predictions
from keras_resnet.files import check_writable, write_json
from keras_resnet.localization import is_localizer
from keras_resnet.models.preprocessing import known_preprocessing, set_class_names, set_preprocessing, thresholds
from keras_resnet.segmentation import is_segmenter
from keras_resnet.segmentation_results import plot_pixel_confusion
from keras_resnet.variants import network_task

MODELS = "A network of `keras-resnet models`, or a .keras file; several are an ensemble."
Models = Annotated[list[str], Option("--model", help=MODELS)]
ALL_WEIGHTS = "A tag or a weights file for each network that is not a .keras file."
AllWeights = Annotated[list[str] | None, Option("--weights", help=ALL_WEIGHTS)]
CLASS_NAMES = "Names of a detector's or segmenter's classes, if its weights have none, in their order: cat,dog."
VIEWS = (
    f"Test views: {', '.join(PROTOCOLS)}; to test boxes: {', '.join(LOCALIZATION_PROTOCOLS)}; of segmenters: "
    f"{', '.join(SEGMENTATION_PROTOCOLS)}."
)
SCALES = "Shorter sides: 224,256,384; of a segmenter factors: 0.5,1,1.5."
DATA = {load_test: "split labels", load_dataset: "data_dir download skip_bad"}
UNUSED = {
    "a detector": ("protocol", "flip", "mode", "confusion", "predictions"),
    "a segmenter": ("mode", "curves"),
    "localization": ("flip", "confusion", "predictions", "curves", "class_names"),
    "a classifier": ("curves", "class_names"),
}
"""What is evaluated -> options of `evaluate` that it does not have."""


@command(
    data=DATA | {load_dataset: f"{DATA[load_dataset]} ignore_index"},
    options={keras_resnet.evaluate: "batch_size size"},
    detection={DetectionProtocol: "refine context score_threshold"},
    segmentation={SegmentationProtocol: "window overlap"},
)
def evaluate(
    data,
    options,
    detection,
    segmentation,
    dataset: TestSet,
    model: Models = ("resnet50",),
    weights: AllWeights = None,
    protocol: Annotated[str | None, Option(help=VIEWS, show_default="center, whole")] = None,
    scales: Annotated[str | None, Option(help=SCALES, show_default="the protocol's")] = None,
    flip: Annotated[bool | None, Option(help="Add mirrored views.", show_default="the protocol's")] = None,
    mode: Mode = None,
    precision: Precision = None,
    confusion: Annotated[Path | None, Option(help="PNG file for a plot of the confusion matrix.")] = None,
    predictions: Annotated[Path | None, Option(help="CSV file for the predictions, a row for each image.")] = None,
    curves: Annotated[Path | None, Option(help="PNG file for a detector's precision-recall curves.")] = None,
    class_names: Annotated[str | None, Option(help=CLASS_NAMES)] = None,
    by_class: Annotated[bool, Option("--by-class", help="Print the errors and metrics of each class.")] = False,
    as_json: AsJson = False,
):
    """Evaluate a network as the paper does, or an ensemble of several.

    Errors of a classifier, AP of a detector, localization errors of a localizer or of class activation maps, IoU and
    Dice of a segmenter.
    """
    given = {"protocol": protocol, "flip": flip, "mode": mode, "confusion": confusion, "predictions": predictions}
    given |= {"curves": curves, "class_names": class_names}
    sides = {} if scales is None else {"scales": numbers("scales", scales, decimals=True)}
    check_known("protocol", protocol, [None, *PROTOCOLS, *LOCALIZATION_PROTOCOLS, *SEGMENTATION_PROTOCOLS])
    if any(network_task(name) == "detection" for name in model):
        check_coco_eval()  # before any weights are downloaded
    models = models_from(model, weights, precision=precision)
    kind = _kind(models.values(), protocol)
    raise_if_unused(kind, **{name: given[name] for name in UNUSED[kind]})
    used = _protocol(kind, protocol, sides | ({} if flip is None else {"flip": flip}), detection, segmentation)
    if kind != "a segmenter":
        raise_if_unused(kind, ignore_index=data["ignore_index"])
    for path in filter(None, (curves, predictions)):
        check_writable(path)
    images = _test_images(dataset, data, used)
    if isinstance(used, Protocol):
        _check_classifiers(models, images, confusion, predictions)
    elif confusion:
        check_confusion(len(images.class_names), confusion)
    for one in models.values():
        set_preprocessing(one, images.preprocessing, mode)
        if class_names:
            set_class_names(one, class_names.split(","))
    options |= {"skip_bad": data["skip_bad"]}
    with progress_bar(len(images.test)) as progress:
        result = keras_resnet.evaluate(list(models.values()), images, used, progress=progress, **options)
    if as_json:
        described = {"models": list(models), "dataset": images.name, "protocol": used.to_config()}
        print_json({**result.to_json(), **described})
    else:
        print_evaluation(result, f"{' + '.join(models)} on {images.name}", by_class)
    if confusion:
        (plot_pixel_confusion if kind == "a segmenter" else plot_confusion)(result, confusion)
    if predictions:
        write_predictions(result, predictions)
    if curves:
        plot_precision_recall(result, curves)


def _kind(models, protocol):
    """The key of UNUSED for what is evaluated."""
    if any(map(is_detector, models)):
        return "a detector"
    if any(map(is_segmenter, models)):
        return "a segmenter"
    return "localization" if is_localization(protocol) or any(map(is_localizer, models)) else "a classifier"


def _protocol(kind, name, changes, detection, segmentation):
    """The protocol with a name, or the default one; ValueError for options that others have."""
    if kind == "a detector":
        check_coco_eval()
    else:
        raise_if_changed(kind, DetectionProtocol, detection)
    if kind != "a segmenter":
        raise_if_changed(kind, SegmentationProtocol, segmentation)
    if kind == "a detector":
        return DetectionProtocol(**detection, **changes)
    if kind == "a segmenter":
        default = inspect.signature(SegmentationProtocol).parameters
        known = {option: it for option, it in segmentation.items() if it != default[option].default}
        return get_segmentation_protocol(name or "whole", **changes, **known)
    find = get_localization_protocol if kind == "localization" else get_protocol
    return find(name or ("localization" if kind == "localization" else "center"), **changes)


def _test_images(dataset, data, protocol):
    """The Dataset for a protocol; for localization with the training images, whose mean box is a baseline."""
    if isinstance(protocol, SegmentationProtocol):
        return load_test(dataset, masks=True, **data)
    if not is_localization(protocol) or data["split"] or data["labels"]:
        return load_test(dataset, **data)
    return load_dataset(dataset, **{name: value for name, value in data.items() if name not in ("split", "labels")})


def _check_classifiers(models, images, confusion, predictions):
    """Raises ValueError or OSError for files that could not be written after the evaluation of classifiers."""
    num_classes = next(iter(models.values())).output_shape[-1]
    if confusion:
        if any(map(thresholds, models.values())):
            raise value_error("--confusion", str(confusion), "left out for a multi-label network")
        check_confusion(num_classes, confusion)
    if predictions and not keeps_probabilities(images, num_classes):
        expected = f"left out for more than {MAX_PROBABILITIES:,} images times classes"
        raise value_error("--predictions", str(predictions), expected)


def models_from(names, weights, default_weights="imagenet", precision=None):
    """{title: model} of .keras files, and of networks with `weights` in their order; a single network: with each."""
    by_name = [name for name in names if not name.endswith(".keras")]
    if len(names) == len(by_name) == 1 and weights:
        names = by_name = by_name * len(weights)
    if weights and len(weights) != len(by_name):
        raise value_error("--weights", weights, f"given for each of {by_name}, in their order")
    tags = iter(weights or ())
    pairs = [(name, None if name.endswith(".keras") else next(tags, None)) for name in names]
    models = [model_from(name, tag, default_weights, precision) for name, tag in pairs]
    titles = [model.name for model in models]
    if len(set(titles)) < len(titles):
        titles = [f"{model.name} ({tag or name})" for model, (name, tag) in zip(models, pairs, strict=True)]
    return dict(zip(titles, models, strict=True))


_TASKS_HELP = f"Of {', '.join(TASKS)}; detection and parts are of detectors."


@command(options={compare: "model batch_size rounds steps xla recipe torch_python"})
def benchmark(
    options,
    precision: Annotated[list[str], Option(help=f"Of {', '.join(MEASURED_PRECISIONS)}.")] = ("float32",),
    contenders: Annotated[list[str] | None, Option(help=f"Of {', '.join(CONTENDERS)}.", show_default="all")] = None,
    tasks: Annotated[list[str] | None, Option("--task", "--tasks", help=_TASKS_HELP, show_default="all")] = None,
    image_size: Annotated[str | None, Option(help="Side of the images, except of classifiers also 800x1333.")] = None,
    json_file: Annotated[Path | None, Option("--json", help="File for the report; - prints it.")] = None,
):
    """Measure a network side by side with keras.applications, torch, ONNX Runtime and OpenVINO, where installed.

    Detectors and segmenters are measured beside torchvision's: --model fasterrcnn_resnet50_fpn --task detection.

    Lists are separated by commas, or their option is repeated. Run nothing else on the machine meanwhile.
    """
    target = None if json_file == Path("-") else json_file
    if target:
        check_writable(target)
    lists = {"precisions": precision, "contenders": contenders, "tasks": tasks}
    options |= {name: tuple(it.strip() for it in ",".join(given).split(",")) for name, given in lists.items() if given}
    if image_size is not None:
        sides = numbers("image-size", image_size.replace("x", ","))
        options["image_size"] = sides if len(sides) > 1 else sides[0]
    with err.status("") as status:
        report = compare(progress=status.update if err.is_terminal else print_progress, **options)
    report = {"command": shlex.join(["keras-resnet", *sys.argv[1:]]), **report}
    if target:
        write_json(report, target)
    elif json_file:
        return print_json(report)
    print_table(table_rows(report), left=["network", "precision"])
    if any(row["costs"] for row in report["results"]):
        print_table(part_rows(report), left=["network", "precision", "part"])
    print_line("\n".join(notes(report)))
    if not report["results"]:
        raise typer.Exit(1)


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
    values = {}
    for name, one in models.items():
        set_preprocessing(one, images.preprocessing, mode)
        values[name] = analysis.layer_responses(one, labelled_inputs(one, images, skip_bad=data["skip_bad"]))
    label = f"standard deviation of layer responses on {images.name}"
    _publish({"responses": (label, values)}, analysis.plot_responses, workdir, as_json)


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
        default_mode = None if known_preprocessing(one) else images.preprocessing.mode
        set_preprocessing(one, images.preprocessing, mode or default_mode)
        inputs, targets = next(labelled_inputs(one, images, batch_size, data["skip_bad"]))
        variances[name] = analysis.forward_variances(one, inputs)
        norms[name] = analysis.gradient_norms(one, inputs, targets)
    rows = {"forward_variances": ("variance of responses", variances), "gradient_norms": ("norm of gradients", norms)}
    _publish(rows, analysis.plot_signals, workdir, as_json)


def _publish(measured, plot, workdir, as_json):
    """Plots, saves and prints {name: (label, {network: {layer: number}})}; `plot` gets numbers, PNG file and label."""
    for name, (label, values) in measured.items():
        plot(values, workdir / f"{name}.png", label)
        write_json(values, workdir / f"{name}.json")
    if as_json:
        return print_json({name: values for name, (_, values) in measured.items()})
    statistics = {"mean": mean, "median": median, "smallest": min, "largest": max}
    for label, values in measured.values():
        rows = [
            {"network": name, "layers": len(layers)}
            | {title: f"{statistic(layers.values()):.3g}" for title, statistic in statistics.items()}
            for name, layers in values.items()
        ]
        print_table(rows, label)
    print_line(f"everything in {workdir}/")


@command(study)
def complexity(
    model: Annotated[str | None, Option(help="Show one network, or a .keras file, layer by layer.")] = None,
    plot: Annotated[Path | None, Option(help="PNG file for a plot.")] = None,
    as_json: AsJson = False,
):
    """Count parameters and multiply-adds: the paper's networks beside AlexNet and VGG, or one layer by layer."""
    network = model and model_from(model, None)
    rows = analysis.layer_costs(network) if network else analysis.network_costs()
    if plot:
        analysis.plot_layer_costs(rows, plot, model) if network else analysis.plot_network_costs(rows, plot)
    if as_json:
        return print_json([vars(row) for row in rows])
    print_table(_layer_rows(rows) if network else map(_network_row, rows), left=["class", "output"])
    if network and model_spec(network):
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
