"""Replace keras.applications in an existing program.

    python docs/tutorials/replace_keras_applications.py [FOLDER]

The program classifies a photograph with a ResNet-50 whose weights it saved itself. Nothing is downloaded: the weights
are random, so the classes mean nothing; what matters is that both programs give the same ones.
"""

import sys
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

import keras_resnet


def before(image, weights):
    """The existing program: keras.applications."""
    model = keras.applications.ResNet50(weights=None)
    model.save_weights(weights)
    resized = keras.ops.convert_to_numpy(keras.ops.image.resize(image, (224, 224)))
    inputs = keras.applications.resnet.preprocess_input(resized[None])
    return model, model.predict(inputs, verbose=0)


def after(image, weights):
    """The same program with keras_resnet: only the two names change."""
    model = keras_resnet.ResNet50(weights=weights)
    resized = keras.ops.convert_to_numpy(keras.ops.image.resize(image, (224, 224)))
    inputs = keras_resnet.preprocess_input(resized[None], mode="caffe")
    return model, model.predict(inputs, verbose=0)


def main(folder="."):
    folder, image = Path(folder), load_sample_image("china.jpg").astype("float32")
    weights = str(folder / "mine.weights.h5")
    old, expected = before(image, weights)
    new, found = after(image, weights)

    names = [[layer.name for layer in model.layers[1:]] for model in (old, new)]  # all but the input
    print("the same layer names:", names[0] == names[1])
    print(f"largest difference of a probability: {np.abs(found - expected).max():.1e}")

    fast = keras_resnet.fold_batch_norm(new)  # keras.applications has nothing like it: the batch norms are gone
    print(f"layers: {len(new.layers)}, with folded batch norm: {len(fast.layers)}")

    draw(expected[0], found[0], folder / "replace_keras_applications.png")


def draw(expected, found, path):
    """Plots the probabilities of both programs against each other."""
    figure, axes = plt.subplots(figsize=(4, 4), layout="constrained")
    axes.loglog(expected, found, ".", markersize=4)
    axes.axline((expected.min(), expected.min()), (expected.max(), expected.max()), color="gray", linewidth=0.8)
    axes.set_xlabel("keras.applications")
    axes.set_ylabel("keras_resnet")
    axes.set_title("Probabilities of the 1,000 classes")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
