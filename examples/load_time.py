"""Time from nothing to a network with its weights, beside keras.applications, in one process.

    python examples/load_time.py ResNet152 5

Both build the network and load the same `.weights.h5` file, by turns; the medians and their ratio are printed.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras

import keras_resnet


def seconds(function):
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(name="ResNet152", rounds="5"):
    ours, theirs = getattr(keras_resnet, name), getattr(keras.applications, name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "some.weights.h5"
        theirs(weights=None).save_weights(path)
        times = {ours: [], theirs: []}
        for _ in range(int(rounds)):
            for make in times:
                times[make].append(seconds(lambda make=make: make(weights=path)))
    medians = [statistics.median(values) for values in times.values()]
    print(f"{name}, build and load: keras_resnet {medians[0]:.2f} s, keras.applications {medians[1]:.2f} s, ", end="")
    print(f"ratio {medians[0] / medians[1]:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
