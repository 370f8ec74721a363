"""Fine-tune a trained network on a folder of images.

    python docs/tutorials/own_folder.py [WORKDIR] [IMAGES] [EPOCHS]

IMAGES has folders "train" and "val" with one folder for each class. Without it, a small one is made of scikit-learn's
digits. The network is the ResNet-20 whose CIFAR-10 weights are part of the package, so nothing is downloaded; for
photographs, "resnet50" with weights="imagenet" is the better start.
"""

import sys
from functools import partial
from pathlib import Path

from PIL import Image

import keras_resnet


def digits_folder(folder):
    """Writes 40 training and 20 validation images of five classes; returns the folder."""
    digits = keras_resnet.load_dataset("digits")
    for part, split, count in (("train", digits.train, 40), ("val", digits.test, 20)):
        for label, name in enumerate(("zero", "one", "two", "three", "four")):
            class_folder = folder / part / name
            class_folder.mkdir(parents=True, exist_ok=True)
            for i, image in enumerate(split.images[split.labels == label][:count]):
                Image.fromarray(image[..., 0]).resize((32, 32)).convert("RGB").save(class_folder / f"{i:02}.png")
    return folder


def main(workdir="runs/own_folder", images=None, epochs="10"):
    run = Path(workdir) / "run"
    images = Path(images) if images else digits_folder(Path(workdir) / "images")

    # 1. Fine-tune: first a new classifier on the frozen network, then the last stage as well.
    dataset = partial(keras_resnet.load_dataset, images, skip_bad=True)
    result = keras_resnet.finetune(
        "resnet20", dataset, run, weights="cifar10", stages=1, epochs=int(epochs), overwrite=True
    )
    for phase, report in result.phases.items():
        kept = " (kept)" if phase == result.best else ""
        print(f"{phase}: {report['top1_accuracy']:.1%} of {report['test_images']} validation images{kept}")

    # 2. The saved model knows its classes and its preprocessing.
    model = keras_resnet.load_model(run / "model.keras")
    for prediction in keras_resnet.predict(model, images / "val", top=1):
        expected = prediction.path.parent.name
        if prediction.error is None and prediction.classes[0][1] != expected:
            print(f"{prediction.path.name} of class {expected} is classified as {prediction.classes[0][1]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
