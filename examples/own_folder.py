"""Training from the start on a folder of photographs, with checkpoints: the same command goes on where it stopped.

    python examples/own_folder.py PHOTOS [WORKDIR] [EPOCHS]

PHOTOS has a folder for each class, or folders "train" and "val" of such.
"""

import sys
from functools import partial

import keras_resnet


def main(photos, workdir="runs/photos", epochs="60"):
    recipe = keras_resnet.get_recipe(
        "cifar_fast",
        epochs=int(epochs),
        batch_size=32,
        learning_rate=0.05,
        crop="random_resized",
        train_size=96,
        test_size=96,
        test_resize=110,
    )
    data = partial(keras_resnet.load_dataset, photos, skip_bad=True)
    run = keras_resnet.train("resnet18", data, recipe, workdir, resume=True, checkpoint_every=20)
    print(f"{100 * run.report['top1_accuracy']:.1f} % of {run.report['test_images']} test images; all in {workdir}/")
    print(f"ask it: keras-resnet predict IMAGE --model {workdir}/model.keras")


if __name__ == "__main__":
    main(*sys.argv[1:])
