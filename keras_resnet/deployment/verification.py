"""Comparison of an exported network's outputs and speed with those of its Keras model, and the report on it."""

import json
import math
import statistics
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass

import keras
import numpy as np

from keras_resnet.architecture.metadata import to_data_format
from keras_resnet.data.labels import class_ids_and_names, match_class_indices
from keras_resnet.deployment.formats.table import FORMATS
from keras_resnet.deployment.images import encode_png, evenly_spaced_images, pixel_batches
from keras_resnet.deployment.serving import name_outputs
from keras_resnet.machine import machine, versions
from keras_resnet.models.preprocessing import class_names
from keras_resnet.models.transforms import cast_model
from keras_resnet.normalization import normalize
from keras_resnet.precision import PRECISIONS
from keras_resnet.prediction import softmax

REPORT_SUFFIXES = (".report.md", ".report.json")
"""Appended to the name of an exported network in the names of its reports."""
MIN_PROBABILITY = 1e-7
"""Smaller probabilities count as this one: float16 has none below."""
MIN_SPREAD = 0.1
"""Features that deviate by less than this fraction of their size are measured by it: deviations are rounding too."""
MAX_CHECK_IMAGES = 16
"""Number of images of the further checks."""
CHECKS = {
    "float32": ("the same export in float32", PRECISIONS["float32"].tolerance),
    "encoded_files": ("encoded image files (`serve_bytes`), which TensorFlow resizes", 0.1),
}
"""Further checks: title and tolerance of each."""
SPEED_BATCH_SIZES, MAX_SPEED_ROUNDS, MAX_SPEED_SECONDS = (1, 8), 15, 3.0


@dataclass(frozen=True)
class ComparisonResult:
    """How far an exported network's outputs are from those of its Keras model.

    Of classifiers the logits are compared: the logarithms of the probabilities, which differ from them by a constant
    in each image. Of other networks the features are compared.
    """

    num_images: int
    max_error: float
    """Largest absolute difference."""
    nrmse: float
    """Root mean square of the differences divided by the standard deviation of the Keras model's outputs: of logits
    around each image's mean, of features around their means over the images, but at least MIN_SPREAD of their size."""
    top1_agreement: float | None = None
    """Fraction of the images with the same most probable class."""
    top5_agreement: float | None = None
    """Fraction of the images with the same five most probable classes, in any order."""
    top1_accuracy: dict[str, float] | None = None
    """{"keras", "exported"}: fraction of correct classes, where the labels of the images are known."""


def verify(model, exported, float32_export, preprocessing, source, measure_speed, unfolded) -> dict:
    """Compares an export with its Keras model; returns `make_report`'s report, which is written beside the export."""
    if any(getattr(layer, "compute_dtype", "float32") != "float32" for layer in model.layers):
        model = cast_model(model, "float32")  # a model that rounds is no reference
    comparison = compare_outputs(model, exported, preprocessing, source)
    checks = run_checks(model, exported, float32_export, preprocessing, source)
    speed, folder = [], exported.path.parent
    if measure_speed:
        speed = compare_speed(model, exported, preprocessing, next(pixel_batches(source, preprocessing, 8))[0])
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    report = make_report(exported.metadata, comparison, checks, speed, num_bytes, unfolded)
    for suffix, text in zip(REPORT_SUFFIXES, (to_markdown(report), to_json(report)), strict=True):
        (folder / f"{exported.path.name}{suffix}").write_text(text, "utf-8")
    return report


def compare_outputs(model, exported, preprocessing, source, batch_size=32) -> ComparisonResult:
    """Compares the outputs of a Keras model and its ExportedModel on the images of an ImageSource, batch by batch.

    Raises:
        ValueError, OSError: for images that cannot be read, see `pixel_batches`, and if the Keras model returns NaN.
    """
    metadata = exported.metadata
    classifies = metadata.class_names is not None
    comparison = OutputComparison(classifies, _class_indices(model, source.class_names) if classifies else None)
    for pixels, labels in pixel_batches(source, preprocessing, batch_size):
        expected = keras_outputs(model, metadata, preprocessing, pixels)
        comparison.update_state(expected, exported(metadata.to_inputs(preprocessing, pixels)), labels)
    if not comparison.outputs_vary and comparison.num_images > 1:
        warnings.warn(
            "The Keras model's outputs are the same for every image: comparing them proves little", stacklevel=3
        )
    return comparison.result()


def keras_outputs(model, metadata, preprocessing, pixels) -> dict[str, np.ndarray]:
    """{name: array}: a Keras model's outputs, checked to be finite, and named as in the export with this Metadata."""
    outputs = model.predict_on_batch(_model_inputs(model, preprocessing, pixels))
    outputs = name_outputs(model, keras.tree.map_structure(keras.ops.convert_to_numpy, outputs))
    if not all(np.isfinite(array).all() for array in outputs.values()):
        raise ValueError(f"`model` should return finite numbers. Received: NaN or Inf from {model.name}")
    if "logits" in outputs and not metadata.raw:
        return {"probabilities": softmax(outputs["logits"])}
    return outputs


def _model_inputs(model, preprocessing, pixels):
    """(B, size, size, channels) uint8 -> inputs of a Keras model."""
    return to_data_format(model, normalize(pixels, preprocessing.mode, "channels_last"))


def _class_indices(model, names):
    """The model's class index for each class of the images; None where classes are unknown, or not the model's."""
    try:
        return match_class_indices(names or None, class_ids_and_names(class_names(model)))
    except ValueError:
        return None


class OutputComparison:
    """Accumulates a ComparisonResult over batches, as a keras.metrics.Metric does.

    `class_indices`, (classes,), has the model's index of each class of the images; None if it is not known.
    """

    def __init__(self, classifies, class_indices=None):
        self.classifies, self.class_indices = classifies, class_indices
        self.num_images, self.max_error, self.outputs_vary = 0, 0.0, False
        self.first_outputs, self.shifted_sum = None, 0.0
        self.squares, self.counts = Counter(), Counter()

    def update_state(self, expected, received, labels):
        """Adds a batch: outputs of the Keras model and of the export, {name: (B, ...)}, and labels, (B,)."""
        expected, received = flatten_outputs(expected), flatten_outputs(received)
        self.num_images += len(expected)
        self.max_error = np.maximum(self.max_error, np.abs(received - expected).max())  # NaN stays NaN
        self.first_outputs = expected[0] if self.first_outputs is None else self.first_outputs
        shifted = expected - self.first_outputs
        self.outputs_vary = self.outputs_vary or bool(shifted.any())
        self.shifted_sum = self.shifted_sum + shifted.sum(axis=0)
        deviations = expected - expected.mean(axis=1, keepdims=True) if self.classifies else shifted
        for name, array in (("error", received - expected), ("outputs", expected), ("deviations", deviations)):
            self.squares[name] += (array**2).sum()
        if self.classifies:
            self._count_classes(expected, received, labels)

    def _count_classes(self, expected, received, labels):
        best = [np.argsort(-scores, axis=1, kind="stable")[:, :5] for scores in (expected, received)]
        self.counts["top1"] += (best[0][:, 0] == best[1][:, 0]).sum()
        self.counts["top5"] += (np.sort(best[0], axis=1) == np.sort(best[1], axis=1)).all(axis=1).sum()
        if (
            self.class_indices is None
            or labels.ndim == 2
            or (labels < 0).any()
            or labels.max() >= len(self.class_indices)
        ):
            self.class_indices = None
            return
        for name, classes in zip(("keras", "exported"), best, strict=True):
            self.counts[name] += (classes[:, 0] == self.class_indices[labels]).sum()

    def result(self) -> ComparisonResult:
        scale = max(self._squared_spread(), np.finfo("float32").tiny)
        values = (self.num_images, float(self.max_error), float(np.sqrt(self.squares["error"] / scale)))
        if not self.classifies:
            return ComparisonResult(*values)
        fractions = {name: float(count / self.num_images) for name, count in self.counts.items()}
        accuracy = None if self.class_indices is None else {name: fractions[name] for name in ("keras", "exported")}
        return ComparisonResult(*values, fractions["top1"], fractions["top5"], accuracy)

    def _squared_spread(self):
        """Sum of the squared deviations of the Keras model's outputs; see `ComparisonResult.nrmse`."""
        if self.classifies:
            return self.squares["deviations"]
        spread = self.squares["deviations"] - (self.shifted_sum**2).sum() / self.num_images
        if self.num_images == 1:
            spread = self.first_outputs.var() * self.first_outputs.size
        return max(spread, MIN_SPREAD**2 * self.squares["outputs"])


def flatten_outputs(outputs) -> np.ndarray:
    """{name: (B, ...)} -> (B, N) float64, with the logarithms of probabilities."""
    arrays = [
        np.log(np.maximum(array, MIN_PROBABILITY)) if name == "probabilities" else array
        for name, array in sorted(outputs.items())
    ]
    return np.concatenate([array.reshape(len(array), -1).astype("float64") for array in arrays], axis=1)


def run_checks(model, exported, float32_export, preprocessing, source) -> dict[str, float]:
    """Compares on a few images what the outputs of the export as a whole would not show.

    A small mistake in a network of reduced precision passes for rounding: the same export in float32, unless it is the
    export itself (None), is compared too. Encoded files, where the export decodes them itself, are resized by other
    code than Keras's images.

    Returns:
        {name in CHECKS: root mean square of the differences, divided by the standard deviation of the
        Keras model's logits or the root mean square of its features}, for each check that applies.
    """
    if not (float32_export or exported.takes_encoded_files):
        return {}
    images = list(evenly_spaced_images(source.split, MAX_CHECK_IMAGES, preprocessing.channels, errors=[]))
    if not images:
        return {}
    metadata, pixels, outputs = exported.metadata, preprocessing.pixels(images), {}
    expected = flatten_outputs(keras_outputs(model, metadata, preprocessing, pixels))
    if exported.takes_encoded_files:
        outputs["encoded_files"] = exported.run_encoded_files([encode_png(image) for image in images])
    if float32_export:
        outputs["float32"] = float32_export(metadata.to_inputs(preprocessing, pixels))
    scale = expected.std() if metadata.class_names else _root_mean_square(expected)
    scale = max(scale, np.finfo("float32").tiny)
    return {name: float(_root_mean_square(flatten_outputs(out) - expected) / scale) for name, out in outputs.items()}


def _root_mean_square(array):
    return np.sqrt((array**2).mean())


def compare_speed(model, exported, preprocessing, pixels) -> list[dict]:
    """Measures the time of a batch in Keras and exported, in turns, and summarises it by the medians.

    Returns:
        A row {"batch_size", "milliseconds", "images_per_second", "ratio"} for each of SPEED_BATCH_SIZES, or for the
        fixed batch size of the export; `ratio` is the speed relative to Keras.
    """
    sizes = (exported.session.batch_size,) if exported.session.batch_size else SPEED_BATCH_SIZES
    batches = [np.resize(pixels, (size, *pixels.shape[1:])) for size in sizes]
    return [_speed_of_batch(model, exported, preprocessing, batch) for batch in batches]


def _speed_of_batch(model, exported, preprocessing, pixels):
    """A row of `compare_speed`."""
    model_inputs = _model_inputs(model, preprocessing, pixels)
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
    """The report for JSON, from a Metadata, a ComparisonResult, and the results of `run_checks` and `compare_speed`.

    "bytes" is the size of all files, "unfolded" lists the batch norms that could not be folded, and "verified" is
    whether all differences are within their tolerances.
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
    weights = f" with the weights {report['weights']}" if report["weights"] else ""
    if report["verified"]:
        verdict = f"Verified: the differences of its outputs from Keras's are {_relative(report)}."
    else:
        verdict = f"**Not verified**: {'; '.join(failures(report))}."
    outputs = {f"on {report['num_images']} images": "", "largest difference of outputs": f"{report['max_error']:.3g}"}
    titles = {"top1_agreement": "same most probable class", "top5_agreement": "same five most probable classes"}
    fractions = {title: report[name] for name, title in titles.items() if report[name] is not None}
    fractions |= {f"top-1 accuracy, {name}": value for name, value in (report["top1_accuracy"] or {}).items()}
    outputs |= {title: f"{fraction:.2%}" for title, fraction in fractions.items()}
    outputs |= {f"{CHECKS[name][0]}: differences": _relative(row) for name, row in report["checks"].items()}
    header = "batch", "Keras, images/s", "exported, images/s", "ratio", "Keras, ms a batch", "exported, ms a batch"
    speed = []
    for row in report["speed"]:
        columns = ("images_per_second", "milliseconds")
        rates, times = ([f"{row[column][name]:.1f}" for name in ("keras", "exported")] for column in columns)
        speed.append((str(row["batch_size"]), *rates, f"{row['ratio']:.2f}", *times))
    computer, libraries = report["machine"], [f"{name} {version}" for name, version in report["versions"].items()]
    paragraphs = [
        f"# {report['network']}{weights} as {FORMATS[report['format']].title}, {report['precision']}",
        f"{verdict}\n"
        "(Root mean square of the differences, as a fraction of the standard deviation of Keras's outputs.)",
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


def _relative(row):
    return f"{row['nrmse']:.2g}, tolerance {row['tolerance']:g}"
