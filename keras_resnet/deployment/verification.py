"""Comparison of an exported network's outputs and speed with those of its Keras model."""

import statistics
import time
import warnings
from dataclasses import dataclass

import keras
import numpy as np

from keras_resnet.architecture.metadata import to_data_format
from keras_resnet.data.labels import class_ids_and_names, match_class_indices
from keras_resnet.data.preprocessing import preprocess_input
from keras_resnet.deployment.images import encode_png, evenly_spaced, pixel_batches, read_images
from keras_resnet.deployment.serving import name_outputs
from keras_resnet.models.preprocessing import class_names
from keras_resnet.prediction import softmax

MIN_PROBABILITY = 1e-7
"""Smaller probabilities count as this one: float16 has none below."""
MIN_SPREAD = 0.1
"""Features that deviate by less than this fraction of their size are measured by it: deviations are rounding too."""
MAX_CHECK_IMAGES = 16
"""Number of images of the further checks."""
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


def compare_outputs(model, exported, preprocessing, source, batch_size=32) -> ComparisonResult:
    """Compares the outputs of a Keras model and its export on images.

    Args:
        model: Keras model.
        exported: ExportedModel.
        preprocessing: Preprocessing of both.
        source: ImageSource of the images.
        batch_size: images in memory at a time.

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
    """{name: array}: outputs of a Keras model, named as those of the export with this Metadata.

    Raises:
        ValueError: for NaN or infinite values.
    """
    outputs = model.predict_on_batch(_model_inputs(model, preprocessing, pixels))
    outputs = name_outputs(model, keras.tree.map_structure(keras.ops.convert_to_numpy, outputs))
    if not all(np.isfinite(array).all() for array in outputs.values()):
        raise ValueError(f"`model` should return finite numbers. Received: NaN or Inf from {model.name}")
    if "logits" in outputs and not metadata.raw:
        return {"probabilities": softmax(outputs["logits"])}
    return outputs


def _model_inputs(model, preprocessing, pixels):
    """(B, size, size, channels) uint8 -> inputs of a Keras model."""
    return to_data_format(model, preprocess_input(pixels, preprocessing.mode, "channels_last"))


def _class_indices(model, names):
    """The model's class index for each class of the images; None where classes are unknown, or not the model's."""
    try:
        return match_class_indices(names or None, class_ids_and_names(class_names(model)))
    except ValueError:
        return None


class OutputComparison:
    """Accumulates a ComparisonResult over batches, as a keras.metrics.Metric does.

    Args:
        classifies: whether outputs are logits or probabilities.
        class_indices: (classes,) the model's index of each class of the images; None if it is not known.
    """

    def __init__(self, classifies, class_indices=None):
        self.classifies, self.class_indices = classifies, class_indices
        self.num_images, self.max_error, self.squared_error = 0, 0.0, 0.0
        self.outputs_vary, self.squared_outputs, self.squared_deviations = False, 0.0, 0.0
        self.first_outputs, self.shifted_sum = None, 0.0
        self.counts = dict.fromkeys(("top1", "top5", "keras", "exported"), 0)

    def update_state(self, expected, received, labels):
        """Adds a batch: outputs of the Keras model and of the export, {name: (B, ...)}, and labels, (B,)."""
        expected, received = flatten_outputs(expected), flatten_outputs(received)
        error = received - expected
        self.num_images += len(expected)
        self.max_error = np.maximum(self.max_error, np.abs(error).max())  # NaN stays NaN
        self.squared_error += (error**2).sum()
        self.squared_outputs += (expected**2).sum()
        self.first_outputs = expected[0] if self.first_outputs is None else self.first_outputs
        shifted = expected - self.first_outputs
        self.outputs_vary = self.outputs_vary or bool(shifted.any())
        self.shifted_sum = self.shifted_sum + shifted.sum(axis=0)
        deviations = expected - expected.mean(axis=1, keepdims=True) if self.classifies else shifted
        self.squared_deviations += (deviations**2).sum()
        if self.classifies:
            self._count_classes(expected, received, labels)

    def _count_classes(self, expected, received, labels):
        best = [np.argsort(-scores, axis=1, kind="stable")[:, :5] for scores in (expected, received)]
        self.counts["top1"] += (best[0][:, 0] == best[1][:, 0]).sum()
        self.counts["top5"] += (np.sort(best[0], axis=1) == np.sort(best[1], axis=1)).all(axis=1).sum()
        if self.class_indices is None or (labels < 0).any() or labels.max() >= len(self.class_indices):
            self.class_indices = None
            return
        for name, classes in zip(("keras", "exported"), best, strict=True):
            self.counts[name] += (classes[:, 0] == self.class_indices[labels]).sum()

    def result(self) -> ComparisonResult:
        scale = max(self._squared_spread(), np.finfo("float32").tiny)
        values = (self.num_images, float(self.max_error), float(np.sqrt(self.squared_error / scale)))
        if not self.classifies:
            return ComparisonResult(*values)
        fractions = {name: float(count / self.num_images) for name, count in self.counts.items()}
        accuracy = None if self.class_indices is None else {name: fractions[name] for name in ("keras", "exported")}
        return ComparisonResult(*values, fractions["top1"], fractions["top5"], accuracy)

    def _squared_spread(self):
        """Sum of the squared deviations of the Keras model's outputs; see `ComparisonResult.nrmse`."""
        if self.classifies:
            return self.squared_deviations
        spread = self.squared_deviations - (self.shifted_sum**2).sum() / self.num_images
        if self.num_images == 1:
            spread = self.first_outputs.var() * self.first_outputs.size
        return max(spread, MIN_SPREAD**2 * self.squared_outputs)


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
        {name in CHECKS of `report.py`: root mean square of the differences, divided by the standard deviation of the
        Keras model's logits or the root mean square of its features}, for each check that applies.
    """
    if not (float32_export or exported.takes_encoded_files):
        return {}
    indices = evenly_spaced(len(source.split), MAX_CHECK_IMAGES)
    images = list(read_images(source.split, indices, preprocessing.channels, errors=[]))
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
    rows = []
    for size in sizes:
        batch = np.resize(pixels, (size, *pixels.shape[1:]))
        seconds = _seconds_per_batch(model, exported, preprocessing, batch)
        rows.append(
            {
                "batch_size": size,
                "milliseconds": {name: 1e3 * value for name, value in seconds.items()},
                "images_per_second": {name: size / value for name, value in seconds.items()},
                "ratio": seconds["keras"] / seconds["exported"],
            }
        )
    return rows


def _seconds_per_batch(model, exported, preprocessing, pixels):
    """{"keras", "exported"}: median seconds."""
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
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}
