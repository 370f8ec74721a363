"""Top-1 and top-5 errors under the paper's test protocols, of one model or an ensemble."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import keras
import numpy as np

from keras_resnet.architecture.metadata import model_spec, to_data_format
from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.image_files import raise_if_unreadable
from keras_resnet.data.labels import are_placeholders, class_ids_and_names, match_class_indices
from keras_resnet.data.prefetch import ImageBatch, describe_errors, prefetch_batches
from keras_resnet.data.protocols import Protocol, check_scales, get_protocol
from keras_resnet.data.sources import load_test
from keras_resnet.errors import value_error
from keras_resnet.files import check_writable, figure_file
from keras_resnet.models.cloning import as_functional
from keras_resnet.models.preprocessing import class_names, preprocessing
from keras_resnet.models.transforms import fully_convolutional, with_input_size
from keras_resnet.prediction import predict_probabilities

CONFIDENCE = 0.95
"""Confidence level of the error intervals."""
CONFUSION_CLASSES = 50
"""Largest number of classes in a plot of the confusion matrix."""
MINIMUM_SIZE = 32
"""Smallest side in pixels of the images of a model without a spec, as in keras.applications."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predicted classes of N test images, and the errors computed from them.

    Errors are fractions from 0 to 1.

    >>> import numpy as np
    >>> classes, labels, predicted = (("a", "cat"), ("b", "dog")), np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    >>> result = Evaluation(classes, labels, predicted, ranks=np.array([0, 1, 0, 0]))
    >>> result.top1_error
    0.25
    >>> result.confusion.tolist()
    [[1, 1], [0, 2]]
    """

    classes: tuple[tuple[str, str], ...]
    """(id, name) of the model's K classes."""
    labels: np.ndarray
    """(N,) int32: the true classes."""
    predicted: np.ndarray
    """(N,) int32: the most probable classes."""
    ranks: np.ndarray
    """(N,) int32: the number of classes more probable than the true one; of equally probable ones, the first wins."""
    skipped: tuple[str, ...] = ()
    """One message for each image that could not be read."""

    @property
    def num_images(self) -> int:
        """Number of evaluated images."""
        return len(self.labels)

    @property
    def top1_error(self) -> float:
        """Fraction of images whose most probable class is wrong."""
        return self.error(1)

    @property
    def top5_error(self) -> float:
        """Fraction of images whose true class is not among the five most probable ones."""
        return self.error(5)

    def num_wrong(self, k: int) -> int:
        """Number of images whose true class is not among the k most probable ones."""
        return int((self.ranks >= k).sum())

    def error(self, k: int) -> float:
        """Fraction of images whose true class is not among the k most probable ones: the top-k error."""
        return self.num_wrong(k) / self.num_images

    def interval(self, k: int) -> tuple[float, float]:
        """(low, high): the 95% confidence interval of the top-k error (Wilson's score interval)."""
        from scipy.stats import binomtest

        low, high = binomtest(self.num_wrong(k), self.num_images).proportion_ci(CONFIDENCE, method="wilson")
        return float(low), float(high)

    @cached_property
    def confusion(self) -> np.ndarray:
        """(K, K) int64 confusion matrix: images of the row's class for which the column's class was predicted."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(self.labels, self.predicted, labels=np.arange(len(self.classes)))

    @property
    def by_class(self) -> list[dict]:
        """[{"id", "name", "num_images", "top1_error", "top5_error"}] of the classes that occur, in their order."""
        counts, wrong1, wrong5 = (
            np.bincount(self.labels[self.ranks >= k], minlength=len(self.classes)).tolist() for k in (0, 1, 5)
        )
        return [
            {"id": i, "name": name, "num_images": n, "top1_error": first / n, "top5_error": five / n}
            for (i, name), n, first, five in zip(self.classes, counts, wrong1, wrong5, strict=True)
            if n
        ]

    def to_json(self) -> dict:
        """The errors, their intervals and the errors by class as JSON values, without the single images."""
        return {
            "top1_error": self.top1_error,
            "top5_error": self.top5_error,
            "num_images": self.num_images,
            "top1_wrong": self.num_wrong(1),
            "top5_wrong": self.num_wrong(5),
            "top1_interval": self.interval(1),
            "top5_interval": self.interval(5),
            "confidence": CONFIDENCE,
            "num_skipped": len(self.skipped),
            "by_class": self.by_class,
        }


def evaluate(
    models: Any,
    dataset: Dataset | str,
    protocol: Protocol | str = "center",
    batch_size: int = 100,
    skip_bad: bool = False,
    progress: Callable[[int], Any] | None = None,
    size: int | None = None,
    **changes: Any,
) -> Evaluation:
    """Computes the top-1 and top-5 errors of a model, or of an ensemble whose probabilities are averaged.

    >>> import numpy as np
    >>> from keras_resnet import create, evaluate, from_arrays
    >>> arrays = np.zeros((10, 32, 32, 3), "uint8"), np.arange(10)
    >>> result = evaluate(create("resnet20", weights="cifar10"), from_arrays(arrays, arrays))
    >>> result.num_images, result.top1_error
    (10, 0.9)

    Images are read as `predict` reads them, by threads while the model computes; a few batches are in memory at a time.

    Args:
        models: a Keras model whose preprocessing is known, or a list of them: an ensemble.
        dataset: a Dataset, whose test images are used, or a name for `load_test`.
        protocol: a name in PROTOCOLS, or a Protocol.
        batch_size: number of views in a batch.
        skip_bad: whether images that cannot be read are skipped instead of raising an error.
        progress: called after every batch with the number of images evaluated so far.
        size: side of the models' input images in pixels; None: as each was built, or its weights were trained.
        **changes: fields of the protocol to change, such as `scales=(224, 320)`.

    Returns:
        An Evaluation.

    Raises:
        ValueError: for a dataset's labels that are not classes of the model, an ensemble with different classes, a
            scale that is too small for a model, a model of unknown preprocessing, and an image that cannot be read.
        FloatingPointError: if a model returns NaN or Inf.
    """
    models = list(models) if isinstance(models, (list, tuple)) else [models]
    models = [with_input_size(as_functional(model), size) for model in models]
    dataset = dataset if isinstance(dataset, Dataset) else load_test(dataset, skip_bad=skip_bad)
    classes, skipped, results, done = _common_classes(models), list(dataset.skipped), [], 0
    class_indices = match_class_indices(dataset.class_names, classes)
    for batch, probabilities in batch_probabilities(models, dataset, protocol, batch_size, skip_bad, **changes):
        skipped += describe_errors(batch.read_errors)
        labels = _to_model_labels(batch.labels, class_indices)
        results.append((labels, probabilities.argmax(axis=1), _ranks(labels, probabilities)))
        done += len(batch)
        if progress:
            progress(done)
    labels, predicted, ranks = (np.concatenate(column).astype("int32") for column in zip(*results, strict=True))
    return Evaluation(classes, labels, predicted, ranks, tuple(skipped))


def batch_probabilities(
    models: list[keras.Model],
    dataset: Dataset,
    protocol: Protocol | str = "center",
    batch_size: int = 100,
    skip_bad: bool = False,
    **changes: Any,
) -> Iterator[tuple[ImageBatch, np.ndarray]]:
    """Yields each batch of a dataset's test images, in order, with its (B, K) float32 probabilities, as `evaluate`."""
    protocol = get_protocol(protocol, **changes)
    predictors = [_ProtocolPredictor(model, protocol) for model in models]
    preprocessings = list(dict.fromkeys(predictor.preprocessing for predictor in predictors))
    for batch in _readable_batches(dataset, preprocessings, protocol, batch_size, skip_bad):
        probabilities = np.empty((0, models[0].output_shape[-1]), "float32")
        if len(batch):
            views = (batch.views[preprocessings.index(predictor.preprocessing)] for predictor in predictors)
            probabilities = np.mean(
                [predict(scales) for predict, scales in zip(predictors, views, strict=True)], axis=0
            )
        yield batch, probabilities


def _readable_batches(dataset, preprocessings, protocol, batch_size, skip_bad):
    """`prefetch_batches` of the test images; raises for unreadable ones unless `skip_bad`, and if none is readable."""
    done = 0
    for batch in prefetch_batches(dataset.test, preprocessings, protocol, batch_size):
        raise_if_unreadable(describe_errors(batch.read_errors), skip_bad)
        done += len(batch)
        yield batch
    if not done:
        raise ValueError(f"Expected images that can be read. Received: none of {len(dataset.test)} in {dataset.name}")


class _ProtocolPredictor:
    """Averages a model's probabilities over the scales and views of a protocol."""

    def __init__(self, model, protocol):
        self.preprocessing, self.num_views = preprocessing(model), protocol.num_views
        spec, size = model_spec(model), self.preprocessing.size
        check_scales(protocol, self.preprocessing, spec.minimum_size if spec else MINIMUM_SIZE)
        self.models = [model] * max(1, len(protocol.scales))
        """The model for each scale."""
        if protocol.is_uncropped:
            sides = [min(size, scale) for scale in protocol.scales]
            by_side = {side: fully_convolutional(model, side) for side in set(sides)}
            self.models = [by_side[side] for side in sides]

    def __call__(self, scales):
        """For each scale (B * views, h, w, C) float32 -> (B, K) probabilities."""
        return np.mean([self._predict_scale(*pair) for pair in zip(self.models, scales, strict=True)], axis=0)

    def _predict_scale(self, model, views):
        probabilities = predict_probabilities(model, views)
        if not np.isfinite(probabilities).all():
            raise FloatingPointError(f"`model` should return finite numbers. Received: NaN or Inf from {model.name}")
        return probabilities.reshape(-1, self.num_views, probabilities.shape[-1]).mean(axis=1)


def labelled_inputs(
    model: keras.Model, dataset: Dataset, batch_size: int = 100, skip_bad: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields a dataset's test images in order as (inputs, labels), prepared for a model.

    Inputs are (B, H, W, C) float32, or (B, C, H, W) for a channels-first model; labels are (B,) int32, the indices of
    the model's classes.

    Raises:
        ValueError: for labels that are not classes of the model, and for images that cannot be read without `skip_bad`.
    """
    class_indices = match_class_indices(dataset.class_names, _common_classes([model]))
    for batch in _readable_batches(dataset, [preprocessing(model)], get_protocol("center"), batch_size, skip_bad):
        if len(batch):
            ((images,),) = batch.views
            yield to_data_format(model, images), _to_model_labels(batch.labels, class_indices)


def _to_model_labels(labels, class_indices):
    """The dataset's labels as indices of the model's classes."""
    outside = labels[(labels < 0) | (labels >= len(class_indices))]
    if outside.size:
        last = len(class_indices) - 1
        raise ValueError(f"Labels should be from 0 to {last}, one for each class. Received: {outside[0]}")
    return class_indices[labels]


def evenly_spaced_subset(dataset: Dataset, count: int) -> Dataset:
    """The dataset with `count` of its test images, evenly spaced from first to last; a Stream is not changed."""
    if not isinstance(dataset.test, Split) or len(dataset.test) <= count:
        return dataset
    return replace(dataset, test=dataset.test[np.linspace(0, len(dataset.test) - 1, count).astype(int)])


def _common_classes(models):
    """(id, name) of the classes that all models of an ensemble have."""
    if not models:
        raise ValueError("`models` should have at least one model. Received: models=[]")
    rows = [class_ids_and_names(class_names(model)) for model in models]
    expected = next((classes for classes in rows if not are_placeholders(classes)), rows[0])
    for model, classes in zip(models, rows, strict=True):
        differing = [(ours[0], theirs[0]) for ours, theirs in zip(expected, classes, strict=False) if ours != theirs]
        if len(classes) != len(expected) or (differing and not are_placeholders(classes)):
            raise ValueError(
                f"`models` should have the same {len(expected)} classes to be an ensemble. Received: {model.name} with "
                f"{len(classes)} classes, that differ as {differing[:1]}"
            )
    return expected


def _ranks(labels, probabilities):
    """(B,) numbers of classes that are more probable than the true one; see `Evaluation.ranks`."""
    true = np.take_along_axis(probabilities, labels[:, None], axis=1)
    before = np.arange(probabilities.shape[1]) < labels[:, None]
    return ((probabilities > true) | ((probabilities == true) & before)).sum(axis=1)


def check_confusion(num_classes: int, path: str | os.PathLike) -> None:
    """Raises ValueError or OSError if `plot_confusion` could not plot a matrix of `num_classes` classes."""
    if num_classes > CONFUSION_CLASSES:
        raise value_error("num_classes", num_classes, f"at most {CONFUSION_CLASSES} to plot a confusion matrix")
    check_writable(path)


def plot_confusion(evaluation: Evaluation, path: str | os.PathLike) -> None:
    """Plots the confusion matrix of at most CONFUSION_CLASSES classes to a PNG file.

    Raises:
        ValueError: for more classes. OSError: as `atomic_write`.
    """
    from sklearn.metrics import ConfusionMatrixDisplay

    names = [name for _, name in evaluation.classes]
    check_confusion(len(names), path)
    side = 3 + 0.4 * len(names)
    with figure_file(path, figsize=(side, side)) as figure:
        axes = figure.add_subplot()
        ConfusionMatrixDisplay(evaluation.confusion, display_labels=names).plot(
            ax=axes, cmap="Blues", colorbar=False, xticks_rotation="vertical", values_format="d"
        )
        title = f"top-1 error {evaluation.top1_error:.2%} of {evaluation.num_images} images"
        axes.set(title=title, xlabel="predicted class", ylabel="true class")
        figure.tight_layout()
