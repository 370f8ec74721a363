"""A search for the network and recipe with the highest accuracy within a budget, and its space in a KerasTuner tuner.

    python examples/search.py [TRIALS] [EPOCHS]

The data set is scikit-learn's digits, the budget 30,000 parameters.
"""

import sys
import tempfile

import keras_tuner

import keras_resnet


def main(trials="4", epochs="5"):
    trials, epochs = int(trials), int(epochs)
    result = keras_resnet.tune("digits", "bayesian", trials, max_params=30_000, epochs=epochs, progress=print)
    for candidate in result.pareto_front():
        print(f"{candidate.parameters:6,} parameters: {candidate.top1_accuracy:.1%} of the validation images")
    print(f"the best network, trained on all training images: {result.final['top1_accuracy']:.1%} of the test images")

    space = keras_resnet.ResNetHyperModel((8, 8, 1), 10, max_params=30_000, epochs=epochs)
    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.RandomSearch(space, "val_accuracy", max_trials=trials, directory=folder, seed=1)
        tuner.search(keras_resnet.load_dataset("digits", validation_split=0.2))
        best = tuner.oracle.get_best_trials()[0]
    values = {name: best.hyperparameters[name] for name in ("depth_1", "width", "block", "learning_rate")}
    print(f"a tuner of KerasTuner: {values}, {best.score:.1%} of the validation images")


if __name__ == "__main__":
    main(*sys.argv[1:])
