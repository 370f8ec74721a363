"""Whether an exported network says what its Keras network says."""

import warnings
from dataclasses import dataclass

import keras
import numpy as np

from keras_resnet.architecture.metadata import to_data_format
from keras_resnet.data.labels import class_numbers, class_rows
from keras_resnet.data.preprocessing import preprocess_input
from keras_resnet.deployment.images import in_batches, shown
from keras_resnet.deployment.serving import name_of_output
from keras_resnet.models.preprocessing import class_names
from keras_resnet.prediction import softmax

LEAST = 1e-7
"""Probabilities below count as this: float16 has no smaller ones."""

ALIKE = 0.1
"""Features that differ by less than this share of themselves are measured by it: differences are rounding, too."""


@dataclass(frozen=True)
class Agreement:
    """What two networks say of the same images.

    Logits are taken as the logarithms of probabilities, which they are but for a constant in each image; of what is
    no classifier, the features are compared.
    """

    images: int
    largest: float
    """Largest difference of logits."""
    relative: float
    """Root mean square of the differences, divided by that of the logits around each image's mean; of features around
    their means over the images, or by a tenth of their own where the images are too much alike."""
    top1: float | None = None
    """Share of the images with the same most probable class."""
    top5: float | None = None
    """Share with the same five most probable classes, in any order."""
    accuracy: dict | None = None
    """{"keras", "exported"}: share of right answers, where the classes of the images are known."""


def compare(model, exported, look, images=None, batch_size=32):
    """The Agreement of a Keras model and its exported self.

    Args:
        model: Keras model.
        exported: Exported.
        look: Preprocessing.
        images: see `shown`.
        batch_size: images at a time; memory is taken for so many.

    Raises:
        ValueError, OSError: as `in_batches`.
    """
    source, meta = shown(images), exported.metadata
    tally = Tally(meta, _truth(model, source.class_names) if meta.class_names else None)
    for pixels, labels in in_batches(source, look, batch_size):
        tally.add(said_by(model, meta, look, pixels), exported(meta.taken(look, pixels)), labels)
    if not tally.varies and tally.count > 1:
        warnings.warn(
            "The network says the same of every image: that the exported one agrees proves little", stacklevel=3
        )
    return tally.agreement()


def said_by(model, metadata, look, pixels):
    """{name: array} of what a Keras model says, as the exported network of that Metadata would.

    Raises:
        ValueError: for what is no number.
    """
    outputs = model.predict_on_batch(prepared(model, look, pixels))
    outputs = keras.tree.map_structure(keras.ops.convert_to_numpy, outputs)
    outputs = outputs if isinstance(outputs, dict) else {name_of_output(model): outputs}
    if not all(np.isfinite(array).all() for array in outputs.values()):
        raise ValueError(f"`model` should return numbers. Received: NaN or Inf from {model.name}")
    if "logits" in outputs and not metadata.raw:
        return {"probabilities": softmax(outputs["logits"])}
    return outputs


def prepared(model, look, pixels):
    """(B, size, size, channels) uint8 -> what a Keras model takes."""
    return to_data_format(model, preprocess_input(pixels, look.mode, "channels_last"))


class Tally:
    """Adds up how far the answers of two networks are from each other, batch by batch.

    Args:
        metadata: Metadata of the exported one.
        truth: (classes,) the network's number for each class of the images; None if it is not known.
    """

    def __init__(self, metadata, truth=None):
        self.classifies, self.truth = metadata.class_names is not None, truth
        self.count, self.largest, self.squares, self.own = 0, 0.0, 0.0, 0.0
        self.first, self.beyond, self.spread, self.varies = None, 0.0, 0.0, False
        self.shares = dict.fromkeys(("top1", "top5", "keras", "exported"), 0)

    def add(self, expected, received, labels):
        """What Keras said and what the exported network said, {name: (B, ...)}, and the images' classes, (B,)."""
        expected, received = flat(expected), flat(received)
        difference = received - expected
        self.count += len(expected)
        self.largest = np.maximum(self.largest, np.abs(difference).max())  # NaN stays
        self.squares += (difference**2).sum()
        self.own += (expected**2).sum()
        self._spread(expected)
        if self.classifies:
            self._count(expected, received, labels)

    def _spread(self, expected):
        """Squares around the mean: of each image, or of each number over the images, as seen from the first."""
        self.first = expected[0] if self.first is None else self.first
        beyond = expected - self.first
        self.beyond = self.beyond + beyond.sum(axis=0)
        around = expected - expected.mean(axis=1, keepdims=True) if self.classifies else beyond
        self.spread += (around**2).sum()
        self.varies = self.varies or bool(beyond.any())

    def _count(self, expected, received, labels):
        best = [np.argsort(-scores, axis=1, kind="stable")[:, :5] for scores in (expected, received)]
        self.shares["top1"] += (best[0][:, 0] == best[1][:, 0]).sum()
        self.shares["top5"] += (np.sort(best[0], axis=1) == np.sort(best[1], axis=1)).all(axis=1).sum()
        if self.truth is None or (labels < 0).any() or labels.max() >= len(self.truth):
            self.truth = None
            return
        for name, (first, *_) in zip(("keras", "exported"), (rows.T for rows in best), strict=True):
            self.shares[name] += (first == self.truth[labels]).sum()

    def agreement(self):
        """The Agreement of all that was added."""
        spread = self.spread
        if not self.classifies:
            spread -= (self.beyond**2).sum() / self.count
            spread = spread if self.count > 1 else self.first.var() * self.first.size
            spread = max(spread, ALIKE**2 * self.own)
        values = {"images": self.count, "largest": float(self.largest)}
        values["relative"] = float(np.sqrt(self.squares / max(spread, np.finfo("float32").tiny)))
        if not self.classifies:
            return Agreement(**values)
        shares = {name: float(count / self.count) for name, count in self.shares.items()}
        accuracy = None if self.truth is None else {name: shares[name] for name in ("keras", "exported")}
        return Agreement(**values, top1=shares["top1"], top5=shares["top5"], accuracy=accuracy)


def flat(outputs):
    """{name: (B, ...)} -> (B, numbers) float64, probabilities as their logarithms."""
    arrays = [
        np.log(np.maximum(array, LEAST)) if name == "probabilities" else array
        for name, array in sorted(outputs.items())
    ]
    return np.concatenate([array.reshape(len(array), -1).astype("float64") for array in arrays], axis=1)


def _truth(model, names):
    """The model's number for each class of the images; None where they are not known, or not the network's."""
    try:
        return class_numbers(names or None, class_rows(class_names(model)))
    except ValueError:
        return None
