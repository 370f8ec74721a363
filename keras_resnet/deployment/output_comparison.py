"""Comparison of the outputs of a classifier or feature extractor in Keras and exported."""

import contextlib
from collections import Counter
from dataclasses import dataclass

import keras
import numpy as np

from keras_resnet.architecture.metadata import to_data_format
from keras_resnet.data.labels import class_ids_and_names, match_class_indices
from keras_resnet.deployment.images import MAX_CHECK_IMAGES, encode_png, evenly_spaced_images
from keras_resnet.deployment.serving import name_outputs
from keras_resnet.models.preprocessing import class_names
from keras_resnet.normalization import normalize
from keras_resnet.precision import PRECISIONS
from keras_resnet.prediction import softmax

MIN_PROBABILITY = 1e-7
"""Smaller probabilities count as this one: float16 has none below."""
MIN_SPREAD = 0.1
"""Features that deviate by less than this fraction of their size are measured by it: deviations are rounding too."""
CHECK_TOLERANCES = {"float32": PRECISIONS["float32"].tolerance, "encoded_files": 0.1}
"""Further check -> its tolerance."""


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


def keras_outputs(model, metadata, preprocessing, pixels) -> dict[str, np.ndarray]:
    """{name: array}: a Keras model's outputs, checked to be finite, and named as in the export with this Metadata."""
    outputs = name_outputs(model, finite_outputs(model, model_inputs(model, preprocessing, pixels)))
    if "logits" in outputs and not metadata.raw:
        return {"probabilities": softmax(outputs["logits"])}
    return outputs


def finite_outputs(model, inputs):
    """A Keras model's outputs for a batch as arrays, in their structure; raises ValueError for NaN and infinity."""
    outputs = keras.tree.map_structure(keras.ops.convert_to_numpy, model.predict_on_batch(inputs))
    if not all(np.isfinite(array).all() for array in keras.tree.flatten(outputs)):
        raise ValueError(f"`model` should return finite numbers. Received: NaN or Inf from {model.name}")
    return outputs


def model_inputs(model, preprocessing, pixels):
    """(B, size, size, channels) uint8 -> inputs of a Keras model."""
    return to_data_format(model, normalize(pixels, preprocessing.mode, "channels_last"))


class OutputComparison:
    """Accumulates a ComparisonResult over batches, as a keras.metrics.Metric does.

    Args:
        model: the Keras model.
        metadata: Metadata of the export.
        source: the ImageSource of the images.
    """

    def __init__(self, model, metadata, source):
        self.classifies, self.class_indices = metadata.class_names is not None, None
        if self.classifies:
            with contextlib.suppress(ValueError):  # classes that are unknown, or not the model's
                self.class_indices = match_class_indices(
                    source.class_names or None, class_ids_and_names(class_names(model))
                )
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

    @property
    def proves_little(self) -> str | None:
        """Why the comparison may not notice differences, if so."""
        constant = not self.outputs_vary and self.num_images > 1
        return "outputs are the same for every image" if constant else None

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


def check_outputs(model, exported, float32_export, preprocessing, source) -> dict[str, dict]:
    """Compares on a few images what the outputs of the export as a whole would not show.

    A small mistake in a network of reduced precision passes for rounding: the same export in float32, unless it is the
    export itself (None), is compared too. Encoded files, where the export decodes them itself, are resized by other
    code than Keras's images.

    Returns:
        {name: {"nrmse", "tolerance"}} for each check that applies: root mean square of the differences, divided by
        the standard deviation of the Keras model's logits or the root mean square of its features.
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
    errors = {name: float(_root_mean_square(flatten_outputs(out) - expected) / scale) for name, out in outputs.items()}
    return {name: {"nrmse": error, "tolerance": CHECK_TOLERANCES[name]} for name, error in errors.items()}


def _root_mean_square(array):
    return np.sqrt((array**2).mean())


def output_rows(result) -> dict[str, str]:
    """{title: value}: the fields of a ComparisonResult for the report, without those that have no value."""
    rows = {"largest difference of outputs": f"{result['max_error']:.3g}"}
    titles = {"top1_agreement": "same most probable class", "top5_agreement": "same five most probable classes"}
    fractions = {title: result[name] for name, title in titles.items() if result[name] is not None}
    fractions |= {f"top-1 accuracy, {name}": value for name, value in (result["top1_accuracy"] or {}).items()}
    return rows | {title: f"{fraction:.2%}" for title, fraction in fractions.items()}
