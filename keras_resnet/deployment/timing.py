"""How fast an exported network is, beside Keras."""

import statistics
import time

import numpy as np

from keras_resnet.deployment.verification import prepared

BATCHES = (1, 8)
"""Images at a time."""
TURNS, SECONDS = 15, 3.0
"""How often each is timed at most, and how long in all."""


def speed(model, exported, look, pixels):
    """Seconds of a batch in Keras and exported, in turns, for 1 and 8 images: [{"batch_size", "keras", "exported"}].

    Args:
        model, exported, look: as for `agreement.compare`.
        pixels: (B, size, size, channels) uint8.
    """
    fixed = exported.session.batch_size
    sizes = (fixed,) if fixed else BATCHES
    return [_timed(model, exported, look, np.resize(pixels, (size, *pixels.shape[1:]))) for size in sizes]


def _timed(model, exported, look, pixels):
    inputs, given = prepared(model, look, pixels), exported.metadata.taken(look, pixels)
    calls = {"keras": lambda: model.predict_on_batch(inputs), "exported": lambda: exported(given)}
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
