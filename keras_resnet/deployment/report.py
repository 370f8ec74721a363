"""The report beside an exported network, as JSON and Markdown."""

import json
import math
from dataclasses import asdict

import keras

from keras_resnet.deployment.formats.table import FORMATS
from keras_resnet.machine import machine, versions
from keras_resnet.precision import PRECISIONS

CHECKS = {
    "float32": ("the same export in float32", PRECISIONS["float32"].tolerance),
    "encoded_files": ("encoded image files (`serve_bytes`), which TensorFlow resizes", 0.1),
}
"""Further checks: title and tolerance of each."""


def make_report(metadata, comparison, checks, speed, num_bytes, unfolded) -> dict:
    """The report as a dict for JSON.

    Args:
        metadata: Metadata of the exported network.
        comparison: ComparisonResult.
        checks: what `run_checks` returns.
        speed: what `compare_speed` returns.
        num_bytes: size of the file, or of all files in the folder.
        unfolded: names of the batch norms that could not be folded.

    Returns:
        The values; "verified" says whether all differences are within their tolerances.
    """
    report = {
        "network": metadata.name,
        "weights": metadata.weights,
        "format": metadata.format,
        "precision": metadata.precision,
        "raw": metadata.raw,
        "bytes": num_bytes,
        "tolerance": PRECISIONS[metadata.precision].tolerance,
        **asdict(comparison),
        "checks": {name: {"nrmse": nrmse, "tolerance": CHECKS[name][1]} for name, nrmse in checks.items()},
        "speed": speed,
        "unfolded": list(unfolded),
        "machine": machine(),
        "versions": versions(),
    }
    return report | {"verified": not failures(report)}


def failures(report) -> list[str]:
    """A sentence about each difference that exceeds its tolerance."""
    rows = [("its outputs", report)] + [(CHECKS[name][0], row) for name, row in report["checks"].items()]
    return [
        f"the differences of {title} are {_relative(row)}"
        for title, row in rows
        if not row["nrmse"] <= row["tolerance"]  # also true of NaN
    ]


def to_json(report) -> str:
    """The report as JSON, with null for NaN and infinite values."""
    finite = keras.tree.map_structure(
        lambda value: None if isinstance(value, float) and not math.isfinite(value) else value, report
    )
    return json.dumps(finite, indent=2, allow_nan=False) + "\n"


def to_markdown(report) -> str:
    """The report as a Markdown page."""
    sections = (_verdict, _outputs, _speed, _machine)
    return "\n".join(line for section in sections for line in section(report)) + "\n"


def _verdict(report):
    title = FORMATS[report["format"]].title
    weights = f" with the weights {report['weights']}" if report["weights"] else ""
    yield f"# {report['network']}{weights} as {title}, {report['precision']}"
    yield ""
    if report["verified"]:
        yield f"Verified: the differences of its outputs from Keras's are {_relative(report)}."
    else:
        yield f"**Not verified**: {'; '.join(failures(report))}."
    yield "(Root mean square of the differences, as a fraction of the standard deviation of Keras's outputs.)"


def _relative(row):
    return f"{row['nrmse']:.2g}, tolerance {row['tolerance']:g}"


def _outputs(report):
    yield ""
    yield f"| on {report['num_images']} images | |"
    yield "|---|---|"
    yield f"| largest difference of outputs | {report['max_error']:.3g} |"
    titles = {"top1_agreement": "same most probable class", "top5_agreement": "same five most probable classes"}
    for name, title in titles.items():
        if report[name] is not None:
            yield f"| {title} | {report[name]:.2%} |"
    for name, accuracy in (report["top1_accuracy"] or {}).items():
        yield f"| top-1 accuracy, {name} | {accuracy:.2%} |"
    for name, row in report["checks"].items():
        yield f"| {CHECKS[name][0]}: differences | {_relative(row)} |"


def _speed(report):
    if not report["speed"]:
        return
    yield ""
    yield "| batch | Keras, images/s | exported, images/s | ratio | Keras, ms a batch | exported, ms a batch |"
    yield "|---|---|---|---|---|---|"
    for row in report["speed"]:
        rates, times = row["images_per_second"], row["milliseconds"]
        yield (
            f"| {row['batch_size']} | {rates['keras']:.1f} | {rates['exported']:.1f} | {row['ratio']:.2f} | "
            f"{times['keras']:.1f} | {times['exported']:.1f} |"
        )


def _machine(report):
    libraries = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    processor = f"{report['machine']['cpu']}, {report['machine']['cores']} cores"
    yield ""
    yield f"{report['bytes'] / 2**20:.1f} MiB. Measured on {processor}, with"
    yield f"{libraries}."
    if report["unfolded"]:
        yield ""
        yield f"Batch norms that follow no convolution and are not folded: {', '.join(report['unfolded'])}."
