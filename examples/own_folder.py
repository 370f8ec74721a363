"""Training from scratch on a folder of photographs, with checkpoints: repeat the command to continue a stopped run.

    python examples/own_folder.py PHOTOS [WORKDIR] [EPOCHS]

PHOTOS has a folder for each class, or folders "train" and "val" that have one.
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
    print(f"{run.report['top1_accuracy']:.1%} of {run.report['test_images']} test images; everything in {workdir}/")
    print(f"predict with it: keras-resnet predict IMAGE --model {workdir}/model.keras")


if __name__ == "__main__":
    main(*sys.argv[1:])
