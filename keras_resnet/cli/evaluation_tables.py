"""Tables of evaluations on the terminal: errors of classifiers, average precisions of detectors, IoU of segmenters."""

from keras_resnet.cli.app import print_note, print_table
from keras_resnet.data.image_files import format_errors
from keras_resnet.detection_metrics import COCO_METRICS, VOC_METRICS
from keras_resnet.detection_results import DetectionEvaluation
from keras_resnet.evaluation_results import Evaluation
from keras_resnet.localization_results import LocalizationEvaluation
from keras_resnet.segmentation_results import SegmentationEvaluation

METRICS = {
    "num_images": "images",
    "top1_error": "top-1 error",
    "top5_error": "top-5 error",
    "top1_localization_error": "top-1 localization error",
    "top5_localization_error": "top-5 localization error",
    "true_class_error": "error given the class",
    "mean_average_precision": "mean average precision",
    "average_precision": "AP",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "micro_f1": "F1 of all labels",
    "exact_match": "all labels right",
    "roc_auc": "ROC AUC",
    "threshold": "threshold",
    "iou": "IoU",
    "dice": "Dice",
    "accuracy": "accuracy",
    "pixel_accuracy": "pixel accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
}
"""Titles of the values in the tables of `evaluate`."""


def print_evaluation(result, title, by_class):
    """Prints the metrics of an evaluation, with `by_class` those of each class, and the images that were skipped.

    Those of a segmenter are always printed by class.
    """
    if isinstance(result, DetectionEvaluation):
        print_table(_detection_rows(result), f"{title}: {result.num_images:,} images, {len(result.objects):,} objects")
        rows = map(_detection_row, result.by_class)
    elif isinstance(result, LocalizationEvaluation):
        print_table(_localization_rows(result), f"{title}: {result.num_images:,} images")
        rows = ({"class": row["name"]} | _titled(row) for row in result.by_class)
    elif isinstance(result, SegmentationEvaluation):
        rows, by_class = _segmentation_rows(result), True
        title = f"{title}: {result.num_images:,} images, {result.num_pixels:,} pixels"
        names = ("pixel_accuracy", "frequency_weighted_iou")
        print_table([{METRICS[name]: _percent(result.metrics[name]) for name in names}], title)
    else:
        _print_errors(result, title)
        rows = ({"class": row["name"]} | _titled(row) for row in result.by_class)
    if by_class:
        print_table(rows)
    if result.skipped:
        text = f"{len(result.skipped)} images or objects, which are left out:\n  {format_errors(result.skipped)}"
        print_note("skipped", text, "yellow")


def _print_errors(result, title):
    """Prints the errors and metrics of classifiers."""
    if isinstance(result, Evaluation):
        rows = [
            {
                "": f"top-{k}",
                "error": f"{result.error(k):.2%}",
                "95% confidence": "{:.2%} to {:.2%}".format(*result.interval(k)),
                "wrong": f"{result.num_wrong(k)} of {result.num_images}",
            }
            for k in (1, 5)
        ]
        print_table(rows, title)
        title = None
    else:
        title = f"{title}: {result.num_images:,} images"
    print_table(({"mean of the classes": name, "": it} for name, it in _titled(result.metrics).items()), title)


def _detection_rows(result):
    """A row for each of COCO's numbers, with a column for boxes and one for masks, and for each of PASCAL VOC's."""
    kinds = {kind: curves.metrics() for kind, curves in result.curves.items()}
    for name in COCO_METRICS:
        yield {"mean of the classes": name} | {kind: _percent(metrics[name]) for kind, metrics in kinds.items()}
    for name, mean_precision in result.voc.items():
        yield {"mean of the classes": name} | dict.fromkeys(kinds, "") | {"boxes": _percent(mean_precision)}


def _localization_rows(result):
    """A row for each error, with its interval, and what it would be with the boxes of the baselines."""
    for name, error in result.errors.items():
        row = {"": METRICS[name], "error": _percent(error)}
        row["95% confidence"] = "{:.2%} to {:.2%}".format(*result.intervals[name])
        if name not in ("top1_error", "top5_error"):  # which do not depend on boxes
            row |= {rule.replace("_", " "): _percent(it[name].mean()) for rule, it in result.baseline_wrong.items()}
        yield row


def _detection_row(row):
    """The objects and the average precisions of a class."""
    columns = {"class": row["name"], "objects": row["num_objects"]}
    columns |= {name: _percent(row["boxes"][name]) for name in ("AP", "AP50", "AP75")}
    if "masks" in row:
        columns["mask AP"] = _percent(row["masks"]["AP"])
    return columns | {name: _percent(row[name]) for name in VOC_METRICS}


def _segmentation_rows(result):
    """A row for each class with its share of the pixels, and one for the means of the classes that occur."""
    total = max(1, result.num_pixels)
    for row in result.by_class:
        yield {"class": row["name"], "pixels": _percent(row["num_pixels"] / total)} | _titled(row)
    means = {"iou": result.mean_iou, "dice": result.mean_dice, "accuracy": result.mean_accuracy}
    yield {"class": "mean of the classes", "pixels": ""} | _titled(means)


def _percent(share):
    return "-" if share is None else f"{share:.2%}"


def _titled(values):
    """{"f1": 0.5, "roc_auc": None} -> {"F1": "50.00%", "ROC AUC": "-"}, the values in METRICS."""
    known = {METRICS[name]: value for name, value in values.items() if name in METRICS}
    return {title: value if isinstance(value, int) else _percent(value) for title, value in known.items()}
