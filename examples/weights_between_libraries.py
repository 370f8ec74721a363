"""Weights from Keras to PyTorch and back, with the same logits.

    python examples/weights_between_libraries.py [FOLDER]

Saves a ResNet-18 with torchvision's names. If torch and torchvision are installed, torchvision loads the file, and the
logits of both for a random image are compared; then Keras loads the file again.
"""

import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_resnet


def main(folder=None):
    path = Path(folder or tempfile.mkdtemp()) / "resnet18.pth"
    model = keras_resnet.ResNet18(weights=None, classifier_activation=None)
    keras_resnet.save_weights(model, path, layout="torchvision")
    image = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype("float32")
    ours = keras.ops.convert_to_numpy(model(image, training=False))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, largest logit {np.abs(ours).max():.3f}")
    try:
        import torch
        import torchvision
    except (ImportError, RuntimeError):
        print("torchvision is not installed: its logits are not compared")
    else:
        theirs = torchvision.models.resnet18()
        theirs.load_state_dict(torch.load(path, weights_only=True))
        with torch.no_grad():
            logits = theirs.eval()(torch.from_numpy(image).permute(0, 3, 1, 2)).numpy()
        print(f"largest difference from torchvision's logits: {np.abs(logits - ours).max():.1e}")
    loaded = keras_resnet.ResNet18(weights=path, classifier_activation=None)
    same = np.array_equal(keras.ops.convert_to_numpy(loaded(image, training=False)), ours)
    print(f"loaded into Keras again: {'the same logits' if same else 'other logits'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
