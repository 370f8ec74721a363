"""Time to build a network and load its weights, in keras_resnet and in keras.applications.

    python examples/load_time.py ResNet152 5

Both libraries take turns with the same `.weights.h5` file; the medians and their ratio are printed.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras

import keras_resnet


def main(name="ResNet152", rounds="5"):
    constructors = (getattr(keras_resnet, name), getattr(keras.applications, name))
    seconds = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.weights.h5"
        constructors[1](weights=None).save_weights(path)
        for _ in range(int(rounds)):
            for constructor, values in zip(constructors, seconds, strict=True):
                start = time.perf_counter()
                constructor(weights=path)
                values.append(time.perf_counter() - start)
    medians = [statistics.median(values) for values in seconds]
    print(f"{name}, build and load: keras_resnet {medians[0]:.2f} s, keras.applications {medians[1]:.2f} s, ", end="")
    print(f"ratio {medians[0] / medians[1]:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
