"""Whether an exported network says what its Keras network says, and how fast."""

import statistics
import time
import warnings
from dataclasses import dataclass

import keras
import numpy as np

from keras_resnet.data.labels import class_numbers, class_rows
from keras_resnet.data.preprocessing import preprocess_input
from keras_resnet.deployment.pictures import in_batches, shown
from keras_resnet.deployment.served import name_of_output
from keras_resnet.prediction import class_names, in_order_of_axes, softmax

LEAST = 1e-7
"""Probabilities below count as this: float16 has no smaller ones."""
BATCHES = (1, 8)
"""Pictures at a time, when it is timed."""
TURNS, SECONDS = 15, 3.0
"""How often each is timed at most, and how long in all."""


@dataclass(frozen=True)
class Agreement:
    """What two networks say of the same pictures.

    Logits are taken as the logarithms of probabilities, which they are but for a constant in each picture; of what is
    no classifier, the features are compared.
    """

    pictures: int
    largest: float
    """Largest difference of logits."""
    relative: float
    """Root mean square of the differences, divided by that of the logits around each picture's mean; of features around
    their means over the pictures."""
    top1: float | None = None
    """Share of the pictures with the same most probable class."""
    top5: float | None = None
    """Share with the same five most probable classes, in any order."""
    accuracy: dict | None = None
    """{"keras", "exported"}: share of right answers, where the classes of the pictures are known."""


def compare(model, exported, look, pictures=None, batch_size=32):
    """The Agreement of a Keras model and its exported self.

    Args:
        model: Keras model.
        exported: Exported.
        look: Preprocessing.
        pictures: see `shown`; what the networks say of all of them is held in memory.
        batch_size: pictures at a time.

    Raises:
        ValueError, OSError: as `in_batches`.
    """
    rows, source = [], shown(pictures)
    for pixels, labels in in_batches(source, look, batch_size):
        wanted, answer = _keras(model, exported, look, pixels), exported(exported.metadata.taken(look, pixels))
        rows.append((_flat(wanted), _flat(answer), labels))
    expected, received, labels = (np.concatenate(column) for column in zip(*rows, strict=True))
    if not np.isfinite(expected).all():
        raise ValueError(f"`model` should return numbers. Received: NaN or Inf from {model.name}")
    difference = received - expected
    classifies = exported.metadata.class_names is not None
    spread = expected - expected.mean(axis=1 if classifies or len(expected) == 1 else 0, keepdims=True)
    if len(expected) > 1 and not (expected != expected[0]).any():
        warnings.warn(
            "The network says the same of every picture: that the exported one agrees proves little", stacklevel=3
        )
    values = {
        "pictures": len(expected),
        "largest": float(np.abs(difference).max()),
        "relative": float(np.sqrt((difference**2).mean() / max((spread**2).mean(), np.finfo("float32").tiny))),
    }
    if not classifies:
        return Agreement(**values)
    return Agreement(
        **values,
        **_shares(expected, received),
        accuracy=_accuracy(model, expected, received, labels, source.class_names),
    )


def speed(model, exported, look, pixels):
    """Seconds of a batch in Keras and exported, in turns, for 1 and 8 pictures: [{"batch_size", "keras", "exported"}].

    Args:
        model, exported, look: as for `compare`.
        pixels: (B, size, size, channels) uint8.
    """
    fixed = exported.session.batch_size
    sizes = (fixed,) if fixed else BATCHES
    return [_timed(model, exported, look, np.resize(pixels, (size, *pixels.shape[1:]))) for size in sizes]


def _timed(model, exported, look, pixels):
    prepared = in_order_of_axes(model, preprocess_input(pixels, look.mode, "channels_last"))
    given = exported.metadata.taken(look, pixels)
    calls = {"keras": lambda: model.predict_on_batch(prepared), "exported": lambda: exported(given)}
    seconds = {name: [] for name in calls}
    for call in calls.values():
        call()
    started = time.perf_counter()
    while len(seconds["keras"]) < TURNS and (len(seconds["keras"]) < 3 or time.perf_counter() - started < SECONDS):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begun)
    return {"batch_size": len(pixels)} | {name: statistics.median(times) for name, times in seconds.items()}


def _keras(model, exported, look, pixels):
    """{name: array} of what the Keras model says, by the names of the exported one's outputs."""
    inputs = in_order_of_axes(model, preprocess_input(pixels, look.mode, "channels_last"))
    outputs = keras.tree.map_structure(keras.ops.convert_to_numpy, model.predict_on_batch(inputs))
    outputs = outputs if isinstance(outputs, dict) else {name_of_output(model): outputs}
    if "logits" in outputs and not exported.metadata.raw:
        return {"probabilities": softmax(outputs["logits"])}
    return outputs


def _flat(outputs):
    """{name: (B, ...)} -> (B, numbers) float32, probabilities as their logarithms."""
    arrays = [
        np.log(np.maximum(array, LEAST)) if name == "probabilities" else array
        for name, array in sorted(outputs.items())
    ]
    return np.concatenate([array.reshape(len(array), -1).astype("float32") for array in arrays], axis=1)


def _shares(expected, received):
    """{"top1", "top5"}: shares of the pictures for which both name the same."""
    best = [np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :5], axis=1) for scores in (expected, received)]
    first = expected.argmax(axis=1) == received.argmax(axis=1)
    return {"top1": float(first.mean()), "top5": float((best[0] == best[1]).all(axis=1).mean())}


def _accuracy(model, expected, received, labels, names):
    """Shares of right answers; None where the pictures' classes are not known, or are not the network's."""
    try:
        truth = class_numbers(names or None, class_rows(class_names(model)))
    except ValueError:
        return None
    if (labels < 0).any() or labels.max() >= len(truth):
        return None
    right = truth[labels]
    return {
        "keras": float((expected.argmax(axis=1) == right).mean()),
        "exported": float((received.argmax(axis=1) == right).mean()),
    }
