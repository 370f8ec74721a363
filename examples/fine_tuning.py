"""Fine-tuning of a pretrained network on a few hundred photographs of your own classes.

    python examples/fine_tuning.py PHOTOS [MODEL] [WEIGHTS] [EPOCHS]

PHOTOS has a folder for each class, or folders "train" and "val" that have one. First a new classifier is trained on the
frozen network, then the last stage with it; batch norm stays frozen. The epoch with the highest accuracy is kept.
"""

import sys
import tempfile
from functools import partial

import keras_resnet


def main(photos, model="resnet20", weights="cifar10", epochs="10"):
    with tempfile.TemporaryDirectory() as folder:
        data = partial(keras_resnet.load_dataset, photos, skip_bad=True)
        result = keras_resnet.finetune(model, data, folder, weights=weights, stages=1, epochs=int(epochs))
        for name, report in result.phases.items():
            kept = ", kept" if name == result.best else ""
            print(f"{name}: {report['top1_accuracy']:.1%} of {report['test_images']} validation images{kept}")
        network = keras_resnet.load_model(f"{folder}/model.keras")  # with its class names and preprocessing
        print("classes:", ", ".join(network.info["class_names"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
