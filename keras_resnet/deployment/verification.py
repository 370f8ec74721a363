"""Comparison of an exported network's outputs and speed with those of its Keras model, and the report on it."""

import json
import math
import statistics
import time
import warnings
from dataclasses import asdict
from typing import Any

import keras
import numpy as np

from keras_resnet.deployment.formats.table import FORMATS
from keras_resnet.deployment.tasks import TASKS
from keras_resnet.machine import machine, versions
from keras_resnet.models.transforms import cast_model

REPORT_SUFFIXES = (".report.md", ".report.json")
"""Appended to the name of an exported network in the names of its reports."""
CHECKS = {
    "float32": "the same export in float32",
    "encoded_files": "encoded image files (`serve_bytes`), which TensorFlow resizes",
}
"""Further check -> its title."""
MAX_SPEED_ROUNDS, MAX_SPEED_SECONDS = 15, 3.0


def verify(model, exported, float32_export, preprocessing, source, measure_speed, unfolded) -> dict:
    """Compares an export with its Keras model; returns `make_report`'s report, which is written beside the export."""
    if any(getattr(layer, "compute_dtype", "float32") != "float32" for layer in model.layers):
        model = cast_model(model, "float32")  # a model that rounds is no reference
    comparison = compare_outputs(model, exported, preprocessing, source)
    task = TASKS[exported.metadata.task]
    checks = task.further_checks(model, exported, float32_export, preprocessing, source)
    speed, folder = [], exported.path.parent
    if measure_speed:
        speed = compare_speed(model, exported, preprocessing, next(task.batches(source, preprocessing, 8))[0])
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    report = make_report(exported.metadata, comparison, checks, speed, num_bytes, unfolded)
    for suffix, text in zip(REPORT_SUFFIXES, (to_markdown(report), to_json(report)), strict=True):
        (folder / f"{exported.path.name}{suffix}").write_text(text, "utf-8")
    return report


def compare_outputs(model, exported, preprocessing, source, batch_size=32) -> Any:
    """Compares the outputs of a Keras model and its ExportedModel on the images of an ImageSource, batch by batch.

    Raises:
        ValueError, OSError: for images that cannot be read, see `pixel_batches`, and if the Keras model returns NaN.

    Returns:
        The result of the task's comparison, such as a ComparisonResult.
    """
    metadata = exported.metadata
    task = TASKS[metadata.task]
    comparison = task.comparison(model, metadata, source)
    for pixels, labels in task.batches(source, preprocessing, batch_size):
        expected = task.keras_outputs(model, metadata, preprocessing, pixels)
        comparison.update_state(expected, exported(metadata.to_inputs(preprocessing, pixels)), labels)
    if comparison.proves_little:
        warnings.warn(f"The Keras model's {comparison.proves_little}: comparing them proves little", stacklevel=3)
    return comparison.result()


def compare_speed(model, exported, preprocessing, pixels) -> list[dict]:
    """Measures the time of a batch in Keras and exported, in turns, and summarises it by the medians.

    Returns:
        A row {"batch_size", "milliseconds", "images_per_second", "ratio"} for each of the task's `speed_batch_sizes`,
        or for the fixed batch size of the export; `ratio` is the speed relative to Keras.
    """
    fixed = exported.session.batch_size
    sizes = (fixed,) if fixed else TASKS[exported.metadata.task].speed_batch_sizes
    batches = [np.resize(pixels, (size, *pixels.shape[1:])) for size in sizes]
    return [_speed_of_batch(model, exported, preprocessing, batch) for batch in batches]


def _speed_of_batch(model, exported, preprocessing, pixels):
    """A row of `compare_speed`."""
    model_inputs = TASKS[exported.metadata.task].model_inputs(model, preprocessing, pixels)
    exported_inputs = exported.metadata.to_inputs(preprocessing, pixels)
    calls = {"keras": lambda: model.predict_on_batch(model_inputs), "exported": lambda: exported(exported_inputs)}
    seconds = {name: [] for name in calls}
    start = time.perf_counter()
    for number in range(-1, MAX_SPEED_ROUNDS):  # the first round warms up
        if number >= 3 and time.perf_counter() - start > MAX_SPEED_SECONDS:
            break
        for name, call in calls.items():
            call_start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - call_start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {
        "batch_size": len(pixels),
        "milliseconds": {name: 1e3 * value for name, value in medians.items()},
        "images_per_second": {name: len(pixels) / value for name, value in medians.items()},
        "ratio": medians["keras"] / medians["exported"],
    }


def make_report(metadata, comparison, checks, speed, num_bytes, unfolded) -> dict:
    """The report for JSON, from a Metadata, the results of the task's comparison and checks, and of `compare_speed`.

    "bytes" is the size of all files, "unfolded" lists the batch norms that could not be folded, and "verified" is
    whether all differences are within their tolerances.
    """
    report = {
        "network": metadata.name,
        "task": metadata.task,
        "weights": metadata.weights,
        "format": metadata.format,
        "precision": metadata.precision,
        "raw": metadata.raw,
        "bytes": num_bytes,
        "tolerance": TASKS[metadata.task].tolerance(metadata.precision),
        **asdict(comparison),
        "checks": checks,
        "speed": speed,
        "unfolded": list(unfolded),
        "machine": machine(),
        "versions": versions(),
    }
    return report | {"verified": not failures(report)}


def failures(report) -> list[str]:
    """A sentence about each difference that exceeds its tolerance."""
    rows = [("its outputs", report)] + [(CHECKS[name], row) for name, row in report["checks"].items()]
    measure = TASKS[report["task"]].measure
    return [
        f"the differences of {title} are {_relative(row, measure)}"
        for title, row in rows
        if not row[measure] <= row["tolerance"]  # also true of NaN
    ]


def to_json(report) -> str:
    """The report as JSON, with null for NaN and infinite values."""
    finite = keras.tree.map_structure(
        lambda value: None if isinstance(value, float) and not math.isfinite(value) else value, report
    )
    return json.dumps(finite, indent=2, allow_nan=False) + "\n"


def to_markdown(report) -> str:
    """The report as a Markdown page."""
    weights = f" with the weights {report['weights']}" if report["weights"] else ""
    task = TASKS[report["task"]]
    if report["verified"]:
        verdict = f"Verified: the differences of its outputs from Keras's are {_relative(report, task.measure)}."
    else:
        verdict = f"**Not verified**: {'; '.join(failures(report))}."
    outputs = {f"on {report['num_images']} images": "", **task.rows(report)}
    outputs |= {f"{CHECKS[name]}: differences": _relative(row, task.measure) for name, row in report["checks"].items()}
    header = "batch", "Keras, images/s", "exported, images/s", "ratio", "Keras, ms a batch", "exported, ms a batch"
    speed = []
    for row in report["speed"]:
        columns = ("images_per_second", "milliseconds")
        rates, times = ([f"{row[column][name]:.1f}" for name in ("keras", "exported")] for column in columns)
        speed.append((str(row["batch_size"]), *rates, f"{row['ratio']:.2f}", *times))
    computer, libraries = report["machine"], [f"{name} {version}" for name, version in report["versions"].items()]
    paragraphs = [
        f"# {report['network']}{weights} as {FORMATS[report['format']].title}, {report['precision']}",
        f"{verdict}\n({task.measure_title}.)",
        _table(*outputs.items()),
        _table(header, *speed) if speed else "",
        f"{report['bytes'] / 2**20:.1f} MiB. Measured on {computer['cpu']}, {computer['cores']} cores, with\n"
        f"{', '.join(libraries)}.",
    ]
    if report["unfolded"]:
        paragraphs.append(
            f"Batch norms that follow no convolution and are not folded: {', '.join(report['unfolded'])}."
        )
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def _table(header, *rows):
    """A Markdown table of tuples of strings."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def _relative(row, measure):
    return f"{row[measure]:.2g}, tolerance {row['tolerance']:g}"
