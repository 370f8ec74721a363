"""The command `predict`: the classes of images, the objects in them, or the classes of their pixels."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track
from typer import Argument, Option

import keras_resnet
from keras_resnet.cli.app import err, print_json, print_note, print_table
from keras_resnet.cli.options import AsJson, Weights, command, model_from, raise_if_changed, raise_if_unused
from keras_resnet.data.image_files import find_images
from keras_resnet.data.protocols import LOCALIZATION_PROTOCOLS, PROTOCOLS, SEGMENTATION_PROTOCOLS
from keras_resnet.deployment.exported import is_exported
from keras_resnet.detection import is_detector
from keras_resnet.drawing import drawing_paths, write_drawing, write_mask
from keras_resnet.errors import value_error
from keras_resnet.files import make_folder
from keras_resnet.models.transforms import with_input_size
from keras_resnet.segmentation import is_segmenter

VIEWS = (
    f"Test views: {', '.join(PROTOCOLS)}; with --localize, {', '.join(LOCALIZATION_PROTOCOLS)}; of segmenters, "
    f"{', '.join(SEGMENTATION_PROTOCOLS)}."
)


@command(
    classification={keras_resnet.predict: "top size threshold"},
    detection={keras_resnet.detect: "score_threshold batch_size min_size max_size"},
)
def predict(
    classification,
    detection,
    images: Annotated[list[Path], Argument(help="Image files, or folders of them.", metavar="IMAGE...")],
    model: Annotated[str, Option(help="A network, a .keras file, or an exported network.")] = "resnet50",
    weights: Weights = None,
    protocol: Annotated[str | None, Option(help=VIEWS, show_default="center, whole")] = None,
    localizes: Annotated[bool, Option("--localize", help="Find the box of each class: see `localize`.")] = False,
    draw: Annotated[Path | None, Option(help="Folder for drawings of the boxes or classes that are found.")] = None,
    masks: Annotated[Path | None, Option(help="Folder for a segmenter's masks, PNG files with a palette.")] = None,
    as_json: AsJson = False,
):
    """Predict the classes of images, with --localize also their boxes, with a detector the objects in them, or with a
    segmenter the class of each pixel.

    The JSON of boxes is COCO's results format. Unreadable files are listed, and make the exit status 1.
    """
    paths = find_images(images)  # before any weights are downloaded
    drawings = drawing_paths(images, paths, draw) if draw else {}
    mask_files = drawing_paths(images, paths, masks, masks=True) if masks else {}
    network = _network(model, weights)
    if masks and (localizes or not is_segmenter(network)):
        raise value_error("--masks", str(masks), "left out for networks that are no segmenters")
    if is_segmenter(network) and not localizes:
        found: Any = _segmentations(paths, network, protocol, classification, detection)
        to_json, to_rows = _pixels_json, _pixel_rows
    elif is_detector(network) or localizes:
        found = _boxes(paths, network, localizes, classification | {"protocol": protocol or "center"}, detection)
        image_ids = _image_ids(paths)
        to_json, to_rows = lambda detected: detected.to_coco(image_ids[detected.path]), _object_rows
    else:
        raise_if_changed("a classifier", keras_resnet.detect, detection)
        if draw:
            raise value_error("--draw", str(draw), "left out for a classifier, unless --localize is given")
        found = keras_resnet.predict(network, paths, stream=True, protocol=protocol or "center", **classification)
        to_json, to_rows = _classes_json, _class_rows
    for folder in filter(None, (draw, masks)):
        make_folder(folder)
    rows, errors = [], []
    bar = {"console": err, "transient": True, "disable": not err.is_terminal}
    for prediction in track(found, "images", len(paths), **bar):
        rows += (to_json if as_json else to_rows)(prediction)
        if prediction.error:
            errors.append(f"{prediction.path}: {prediction.error}")
            continue
        if drawings:
            write_drawing(prediction, drawings[prediction.path])
        if mask_files:
            write_mask(prediction, mask_files[prediction.path])
    print_json(rows) if as_json else print_table(rows, left=["class", "object"])
    for error in errors:
        print_note("not read", error)
    if errors:
        raise typer.Exit(1)


def _segmentations(paths, network, protocol, classification, detection):
    """Yields a Segmentation for each image."""
    size, batch_size = classification["size"], detection["batch_size"]
    raise_if_changed("a segmenter", keras_resnet.predict, {**classification, "size": None})
    raise_if_changed("a segmenter", keras_resnet.detect, {**detection, "batch_size": 1})
    return keras_resnet.segment(paths, network, protocol or "whole", batch_size, stream=True, size=size)


def _boxes(paths, network, localizes, classification, detection):
    """Yields a Detection for each image, by a detector or, with `localizes`, by a localizer or classifier."""
    if not localizes:
        raise_if_changed("a detector", keras_resnet.predict, classification)
        return keras_resnet.detect(paths, network, stream=True, **detection)
    if is_detector(network):
        raise value_error("--localize", True, "left out for a detector")
    raise_if_changed("localization", keras_resnet.detect, {**detection, "batch_size": 1})
    raise_if_unused("localization", threshold=classification["threshold"])
    protocol = classification["protocol"]
    return keras_resnet.localize(
        paths,
        with_input_size(network, classification["size"]),
        classification["top"],
        protocol="localization" if protocol == "center" else protocol,
        stream=True,
    )


def _network(model, weights):
    if is_exported(model):
        raise_if_unused("an exported network, which has its own", weights=weights)
        return keras_resnet.load_exported(model)
    return model_from(model, weights, default_weights="imagenet")


def _image_ids(paths):
    """{path: COCO's number of the image, if each name is another number, such as 000000391895.jpg; else the path}."""
    numbers = [int(path.stem) for path in paths if path.stem.isascii() and path.stem.isdecimal()]
    is_numbered = len(set(numbers)) == len(paths)
    return dict(zip(paths, numbers if is_numbered else map(str, paths), strict=True))


def _class_rows(prediction):
    """Rows of a table: the classes of an image, or "none" of a multi-label network; no rows for an unreadable file."""
    if not (prediction.classes or prediction.error):
        yield {"image": prediction.path, "class": "none", "probability": ""}
    for rank, (_, name, probability) in enumerate(prediction.classes):
        yield {"image": "" if rank else prediction.path, "class": name, "probability": f"{probability:.1%}"}


def _classes_json(prediction):
    classes = [{"id": i, "name": name, "probability": it} for i, name, it in prediction.classes]
    yield {"path": str(prediction.path), "error": prediction.error, "classes": classes}


def _object_rows(detection):
    """Rows of a table: the objects of an image, or "none"; no rows for an unreadable file."""
    columns = ("score", "left", "top", "right", "bottom")
    if not (detection.names or detection.error):
        yield {"image": detection.path, "object": "none"} | dict.fromkeys(columns, "")
    for index, name in enumerate(detection.names):
        values = f"{detection.scores[index]:.1%}", *(f"{side:.1f}" for side in detection.boxes[index])
        row = {"image": "" if index else detection.path, "object": name}
        yield row | dict(zip(columns, values, strict=True))


def _pixel_rows(segmentation):
    """Rows of a table: the classes of an image's pixels, the largest first; no rows for an unreadable file."""
    for rank, (_, name, share) in enumerate(segmentation.classes):
        yield {"image": "" if rank else segmentation.path, "class": name, "share of pixels": f"{share:.1%}"}


def _pixels_json(segmentation):
    classes = [{"index": index, "name": name, "share": share} for index, name, share in segmentation.classes]
    size = dict(zip(("height", "width"), segmentation.size, strict=True))
    yield {"path": str(segmentation.path), "error": segmentation.error, **size, "classes": classes}
