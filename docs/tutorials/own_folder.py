"""Fine-tune a trained network on a folder of images.

    python docs/tutorials/own_folder.py [WORKDIR] [IMAGES] [EPOCHS]

IMAGES has folders "train" and "val" with one folder for each class. Without it, a small one is made of scikit-learn's
digits. The network is the ResNet-20 whose CIFAR-10 weights ship with the package, so nothing is downloaded; for
photographs, `model="resnet50", weights="imagenet"` is the better start.
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
    workdir = Path(workdir)
    images = images or digits_folder(workdir / "images")

    # 1. Fine-tune: first a new classifier on the frozen network, then the last stage as well.
    dataset = partial(keras_resnet.load_dataset, images, skip_bad=True)
    result = keras_resnet.finetune(
        "resnet20", dataset, workdir / "run", weights="cifar10", stages=1, epochs=int(epochs), overwrite=True
    )
    for phase, report in result.phases.items():
        kept = " (kept)" if phase == result.best else ""
        print(f"{phase}: {100 * report['top1_accuracy']:.1f} % of {report['test_images']} validation images{kept}")

    # 2. The saved model has its class names and its preprocessing.
    model = keras_resnet.load_model(workdir / "run" / "model.keras")
    for prediction in keras_resnet.predict(
        model, images / "val" if isinstance(images, Path) else Path(images) / "val", top=1
    ):
        if prediction.error is None and prediction.path.parent.name != prediction.classes[0][1]:
            print(f"wrong: {prediction.path} is taken for {prediction.classes[0][1]}")

    # 3. Accuracy of each class.
    evaluation = keras_resnet.evaluate(model, dataset)
    print(f"top-1 error: {evaluation.top1_error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
