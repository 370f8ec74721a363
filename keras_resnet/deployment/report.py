"""The report beside an exported network, for people (Markdown) and programs (JSON)."""

import json
import math
from dataclasses import asdict

import keras

from keras_resnet.deployment.formats.table import FORMATS, PRECISIONS
from keras_resnet.machine import machine, versions

PARTS = {
    "in_float32": ("the same export in float32", PRECISIONS["float32"]),
    "encoded_files": ("encoded image files (`serve_bytes`), which TensorFlow resizes", 0.1),
}
"""What else is compared: in words, and how far from Keras's its answers may be."""


def report(metadata, agreement, parts, speeds, size, unfolded):
    """The report as a dict for JSON.

    Args:
        metadata: Metadata of the file.
        agreement: Agreement.
        parts: what `compare_parts` returns.
        speeds: what `timing.speed` returns.
        size: bytes of the file, or of all files of the folder.
        unfolded: names of the batch norms that no convolution could take in.

    Returns:
        The values; "agrees" says whether the network is as near to Keras's as its precision allows.
    """
    values = {
        "network": metadata.name,
        "weights": metadata.weights,
        "format": metadata.format,
        "precision": metadata.precision,
        "raw": metadata.raw,
        "bytes": size,
        "tolerance": PRECISIONS[metadata.precision],
        **asdict(agreement),
        "parts": {name: {"relative": relative, "tolerance": PARTS[name][1]} for name, relative in parts.items()},
        "speed": [_row(seconds) for seconds in speeds],
        "unfolded": list(unfolded),
        "machine": machine(),
        "versions": versions(),
    }
    return values | {"agrees": not differences(values)}


def differences(values):
    """In words, what is further from Keras than it may be."""
    rows = [("its logits", values)] + [(PARTS[name][0], part) for name, part in values["parts"].items()]
    return [
        f"the differences of {words} are {_of_spread(row)}"
        for words, row in rows
        if not row["relative"] <= row["tolerance"]  # NaN does not
    ]


def _row(seconds):
    """Seconds of a batch -> latency in milliseconds and images a second, and how many times as fast as Keras."""
    count, both = seconds["batch_size"], {name: seconds[name] for name in ("keras", "exported")}
    return {
        "batch_size": count,
        "milliseconds": {name: 1e3 * taken for name, taken in both.items()},
        "images_per_second": {name: count / taken for name, taken in both.items()},
        "ratio": both["keras"] / both["exported"],
    }


def as_json(values):
    """A number that is none is null."""
    finite = keras.tree.map_structure(
        lambda value: None if isinstance(value, float) and not math.isfinite(value) else value, values
    )
    return json.dumps(finite, indent=2, allow_nan=False) + "\n"


def as_markdown(values):
    """The same as a page."""
    return "\n".join([*_verdict(values), *_answers(values), *_speeds(values), *_rest(values), ""])


def _verdict(values):
    title = FORMATS[values["format"]].title
    weights = f" with the weights {values['weights']}" if values["weights"] else ""
    yield f"# {values['network']}{weights} as {title}, {values['precision']}"
    yield ""
    if values["agrees"]:
        verdict, why = "It says what its Keras network says", f"the differences of its logits are {_of_spread(values)}"
    else:
        verdict, why = "**It does not say what its Keras network says**", "; ".join(differences(values))
    yield f"{verdict}: {why} (root mean squares, {values['precision']})."


def _of_spread(row):
    return f"{row['relative']:.2g} of their spread, {row['tolerance']:g} at most"


def _answers(values):
    yield ""
    yield f"| on {values['images']} images | |"
    yield "|---|---|"
    yield f"| largest difference of logits | {values['largest']:.3g} |"
    for name, title in (("top1", "same most probable class"), ("top5", "same five most probable classes")):
        if values[name] is not None:
            yield f"| {title} | {100 * values[name]:.2f} % |"
    for name, share in (values["accuracy"] or {}).items():
        yield f"| top-1 accuracy, {name} | {100 * share:.2f} % |"
    for name, part in values["parts"].items():
        yield f"| {PARTS[name][0]}: differences | {_of_spread(part)} |"


def _speeds(values):
    if not values["speed"]:
        return
    yield ""
    yield "| batch | Keras, images/s | exported, images/s | ratio | Keras, ms a batch | exported, ms a batch |"
    yield "|---|---|---|---|---|---|"
    for row in values["speed"]:
        rates, times = row["images_per_second"], row["milliseconds"]
        yield (
            f"| {row['batch_size']} | {rates['keras']:.1f} | {rates['exported']:.1f} | {row['ratio']:.2f} | "
            f"{times['keras']:.1f} | {times['exported']:.1f} |"
        )


def _rest(values):
    machine, libraries = values["machine"], (f"{name} {version}" for name, version in values["versions"].items())
    yield ""
    yield f"{values['bytes'] / 2**20:.1f} MiB. Measured on {machine['cpu']}, {machine['cores']} cores, with"
    yield f"{', '.join(libraries)}."
    if values["unfolded"]:
        yield ""
        yield "Batch norms that follow no convolution, and stay: " + ", ".join(values["unfolded"]) + "."
