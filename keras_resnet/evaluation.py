"""How good networks are: the paper's test protocols, for one network or several together, on any number of images."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from keras_resnet.architecture.metadata import model_spec, to_data_format
from keras_resnet.data.datasets import Dataset, Split
from keras_resnet.data.image_files import raise_if_unreadable
from keras_resnet.data.labels import are_unnamed, class_numbers, class_rows
from keras_resnet.data.prefetch import prefetch_batches
from keras_resnet.data.protocols import check_scales, get_protocol
from keras_resnet.data.sources import load_test
from keras_resnet.files import check_writable, save_figure
from keras_resnet.models.preprocessing import class_names, preprocessing
from keras_resnet.models.transforms import fully_convolutional
from keras_resnet.prediction import probabilities

CONFIDENCE = 0.95
CONFUSION_CLASSES = 50
"""Classes at most that an image of their confusion can show."""
SMALLEST_SIDE = 32
"""Pixels that any network takes whose specification says nothing; as in keras.applications."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What came out, image by image. Errors are in percent."""

    classes: tuple[tuple[str, str], ...]
    """(id, name) of the network's K classes."""
    labels: np.ndarray
    """(N,) int32: the right classes."""
    predicted: np.ndarray
    """(N,) int32: the most probable ones."""
    ranks: np.ndarray
    """(N,) int32: how many classes were more probable than the right one; of equally probable ones the first counts."""
    left_out: tuple[str, ...] = ()
    """Images that could not be read, with what is wrong with them."""

    @property
    def images(self):
        """How many were evaluated."""
        return len(self.labels)

    @property
    def top1_error(self):
        """Percentage of images whose most probable class is wrong."""
        return self.error(1)

    @property
    def top5_error(self):
        """Percentage of images whose class is not among the five most probable ones."""
        return self.error(5)

    def wrong(self, k):
        """How many images' class is not among the k most probable ones."""
        return int((self.ranks >= k).sum())

    def error(self, k):
        """The same as a percentage."""
        return 100 * self.wrong(k) / self.images

    def interval(self, k):
        """(low, high): where the top-k error lies with 95 % confidence (Wilson's score interval)."""
        from scipy.stats import binomtest

        low, high = binomtest(self.wrong(k), self.images).proportion_ci(CONFIDENCE, method="wilson")
        return 100 * low, 100 * high

    @cached_property
    def confusion(self):
        """(K, K) int64: how many images of the class of a row were taken for that of a column."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(self.labels, self.predicted, labels=np.arange(len(self.classes)))

    @property
    def by_class(self):
        """[{"id", "name", "images", "top1_error", "top5_error"}], the classes that occur, in their order."""
        images, wrong, far = (
            np.bincount(self.labels[self.ranks >= k], minlength=len(self.classes)).tolist() for k in (0, 1, 5)
        )
        return [
            {"id": i, "name": name, "images": n, "top1_error": 100 * first / n, "top5_error": 100 * five / n}
            for (i, name), n, first, five in zip(self.classes, images, wrong, far, strict=True)
            if n
        ]

    def to_json(self):
        """All of it but the images one by one, as JSON values."""
        return {
            "top1_error": self.top1_error,
            "top5_error": self.top5_error,
            "images": self.images,
            "top1_wrong": self.wrong(1),
            "top5_wrong": self.wrong(5),
            "top1_interval": self.interval(1),
            "top5_interval": self.interval(5),
            "confidence": CONFIDENCE,
            "left_out": len(self.left_out),
            "by_class": self.by_class,
        }


def evaluate(models, dataset, protocol="center", batch_size=100, skip_bad=False, progress=None, **changes):
    """Tests a network, or several whose probabilities are averaged.

    Images are read as `predict` reads them, while the network is at work; a few batches are in memory at a time.

    Args:
        models: a Keras model whose preprocessing is known, or a list of them: an ensemble.
        dataset: a Dataset, of which `test` is used, or a name for `load_test`.
        protocol: a name in PROTOCOLS, or a Protocol.
        batch_size: views that a network sees at a time.
        skip_bad: whether images that cannot be read are left out.
        progress: called with the number of images that are done, after every batch.
        **changes: fields of the protocol to change, such as `scales=(224, 320)`.

    Returns:
        An Evaluation.

    Raises:
        ValueError: for labels or networks that do not fit each other, a scale that a network cannot take, a network of
            unknown preprocessing, and an image that cannot be read.
        FloatingPointError: if a network returns what is no number.
    """
    models = list(models) if isinstance(models, (list, tuple)) else [models]
    dataset = dataset if isinstance(dataset, Dataset) else load_test(dataset, skip_bad=skip_bad)
    classes, left_out, rows, done = _common_classes(models), list(dataset.left_out), [], 0
    numbers = class_numbers(dataset.class_names, classes)

    for labels, shares, faults in scores(models, dataset, protocol, batch_size, **changes):
        raise_if_unreadable(faults, skip_bad)
        left_out += faults
        rows.append(_ranked(_numbered(labels, numbers), shares))
        done += len(labels)
        if progress:
            progress(done)
    if not done:
        raise _nothing_read(dataset)
    columns = (np.concatenate(column).astype("int32") for column in zip(*rows, strict=True))
    return Evaluation(classes, *columns, tuple(left_out))


def _numbered(labels, numbers):
    outside = labels[(labels < 0) | (labels >= len(numbers))]
    if outside.size:
        raise ValueError(f"Labels should be from 0 to {len(numbers) - 1}, one for each class. Received: {outside[0]}")
    return numbers[labels]


def scores(models, dataset, protocol="center", batch_size=100, **changes):
    """Probabilities of a data set's test images, batch by batch, in order.

    Args:
        models, dataset, protocol, batch_size, changes: as for `evaluate`; `dataset` is a Dataset.

    Yields:
        (labels (B,) of the data set, probabilities (B, K) float32, [images that could not be read]).
    """
    protocol = get_protocol(protocol, **changes)
    scorers = [Scorer(model, protocol) for model in models]
    looks = list(dict.fromkeys(scorer.preprocessing for scorer in scorers))
    for labels, shown, faults in prefetch_batches(dataset.test, looks, protocol, batch_size):
        shares = np.empty((0, models[0].output_shape[-1]), "float32")
        if len(labels):
            shares = np.mean([scorer(shown[looks.index(scorer.preprocessing)]) for scorer in scorers], axis=0)
        yield labels, shares, faults


def labelled_inputs(model, dataset, batch_size=100, skip_bad=False):
    """A data set's test images as a network wants them, batch by batch, in order.

    Yields:
        (inputs (B, H, W, C) float32, in the network's order of axes; its numbers of their classes (B,) int32).

    Raises:
        ValueError: for labels that do not fit, and images that cannot be read unless `skip_bad` leaves them out.
    """
    looks, numbers = [preprocessing(model)], class_numbers(dataset.class_names, _common_classes([model]))
    seen = 0
    for labels, shown, faults in prefetch_batches(dataset.test, looks, get_protocol("center"), batch_size):
        raise_if_unreadable(faults, skip_bad)
        if len(labels):
            ((images,),), seen = shown, seen + len(labels)
            yield to_data_format(model, images), _numbered(labels, numbers)
    if not seen:
        raise _nothing_read(dataset)


def _nothing_read(dataset):
    return ValueError(f"Expected images that can be read. Received: none of {len(dataset.test)} in {dataset.name}")


def spread(dataset, count):
    """A Dataset with so many of the test images, evenly from the first to the last; a Stream stays as it is."""
    if not isinstance(dataset.test, Split) or len(dataset.test) <= count:
        return dataset
    return replace(dataset, test=dataset.test[np.linspace(0, len(dataset.test) - 1, count).astype(int)])


class Scorer:
    """A network that looks at images by a protocol."""

    def __init__(self, model, protocol):
        self.preprocessing, self.views = preprocessing(model), protocol.views
        spec, size = model_spec(model), self.preprocessing.size
        check_scales(protocol, self.preprocessing, spec.minimum_size if spec else SMALLEST_SIDE)
        self.models = [model] * max(1, len(protocol.scales))
        """The network for each scale."""
        if protocol.whole:
            windows = {
                side: fully_convolutional(model, side) for side in {min(size, scale) for scale in protocol.scales}
            }
            self.models = [windows[min(size, scale)] for scale in protocol.scales]

    def __call__(self, scales):
        """For each scale (B * views, h, w, C) float32 -> (B, K) probabilities, averaged."""
        return np.mean([self._probabilities(*pair) for pair in zip(self.models, scales, strict=True)], axis=0)

    def _probabilities(self, model, views):
        shares = probabilities(model, views)
        if not np.isfinite(shares).all():
            raise FloatingPointError(f"`model` should return numbers. Received: NaN or Inf from {model.name}")
        return shares.reshape(-1, self.views, shares.shape[-1]).mean(axis=1)


def _common_classes(models):
    """(id, name) of the classes, which an ensemble's networks must share."""
    if not models:
        raise ValueError("`models` should have one network at least. Received: models=[]")
    rows = [class_rows(class_names(model)) for model in models]
    expected = next((classes for classes in rows if not are_unnamed(classes)), rows[0])
    for model, classes in zip(models, rows, strict=True):
        differing = [(ours[0], theirs[0]) for ours, theirs in zip(expected, classes, strict=False) if ours != theirs]
        if len(classes) != len(expected) or (differing and not are_unnamed(classes)):
            raise ValueError(
                f"`models` should know the same {len(expected)} classes to be an ensemble. Received: {model.name} with "
                f"{len(classes)} classes, that differ as {differing[:1]}"
            )
    return expected


def _ranked(labels, shares):
    """(labels, the most probable classes, places of the right ones): three (B,) arrays."""
    own = np.take_along_axis(shares, labels[:, None], axis=1)
    before = np.arange(shares.shape[1]) < labels[:, None]
    return labels, shares.argmax(axis=1), ((shares > own) | ((shares == own) & before)).sum(axis=1)


def check_confusion(model, path):
    """Raises ValueError or OSError if the confusion of a model's classes cannot be drawn to a path."""
    _check_few(model.output_shape[-1])
    check_writable(path)


def _check_few(count):
    if count > CONFUSION_CLASSES:
        raise ValueError(f"An image can show at most {CONFUSION_CLASSES} classes. Received: {count} classes")


def draw_confusion(evaluation, path):
    """Draws which classes were taken for which.

    Args:
        evaluation: Evaluation of at most CONFUSION_CLASSES classes.
        path: the PNG to write.

    Raises:
        ValueError: for more classes.
    """
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    names = [name for _, name in evaluation.classes]
    _check_few(len(names))
    figure = Figure(figsize=[3 + 0.4 * len(names)] * 2)
    axes = figure.add_subplot()
    ConfusionMatrixDisplay(evaluation.confusion, display_labels=names).plot(
        ax=axes, cmap="Blues", colorbar=False, xticks_rotation="vertical", values_format="d"
    )
    axes.set(title=f"top-1 error {evaluation.top1_error:.2f} % of {evaluation.images}", xlabel="taken for", ylabel="is")
    figure.tight_layout()
    save_figure(figure, path)
