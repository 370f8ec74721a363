"""A search for the depth, width and training that fit a budget, and the same space in a tuner of one's own.

    python examples/search.py [TRIALS] [EPOCHS]

Digits, at most 30,000 parameters. With a `workdir`, a search that is interrupted goes on where it was.
"""

import sys
import tempfile

import keras_tuner

import keras_resnet


def main(trials="4", epochs="5"):
    trials, epochs = int(trials), int(epochs)
    result = keras_resnet.tune("digits", "bayesian", trials, max_params=30_000, epochs=epochs, progress=print)
    for candidate in result.pareto_front():
        print(f"{candidate.parameters:6,} parameters: {100 * candidate.top1_accuracy:.1f} % of the validation images")
    print(f"the best one, trained on all images: {100 * result.final['top1_accuracy']:.1f} % of the test images")

    space = keras_resnet.ResNetHyperModel((8, 8, 1), 10, max_params=30_000, epochs=epochs)
    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.RandomSearch(space, "val_accuracy", max_trials=trials, directory=folder, seed=1)
        tuner.search(keras_resnet.load_dataset("digits", validation_split=0.2))
        best = tuner.oracle.get_best_trials()[0]
    values = {name: best.hyperparameters[name] for name in ("depth_1", "width", "block", "learning_rate")}
    print(f"KerasTuner's own: {values}, {100 * best.score:.1f} % of the validation images")


if __name__ == "__main__":
    main(*sys.argv[1:])
