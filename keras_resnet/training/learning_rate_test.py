"""The learning-rate range test: the loss while the learning rate rises, and the rate that it suggests."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_resnet.architecture.detector_spec import DetectorSpec
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.datasets import Dataset
from keras_resnet.errors import check_integers, is_number, value_error
from keras_resnet.files import as_path, figure_file, make_folder
from keras_resnet.training.model_setup import Start
from keras_resnet.training.options import RunOptions, split_options
from keras_resnet.training.recipe import Recipe
from keras_resnet.training.recipes import get_recipe
from keras_resnet.training.train import RunData, prepare_run
from keras_resnet.training.workdir import write_history

PLOT, VALUES = "learning_rate.png", "learning_rate.csv"
SMOOTHING = 0.9
"""Decay of the moving average of the losses."""
DIVERGED = 4.0
"""The test ends when the smoothed loss is this many times the lowest so far."""
MAX_RATE = 1e30
MARGIN = 10.0
"""The suggested rate is the one with the lowest smoothed loss, divided by this."""


@dataclass(frozen=True)
class LearningRateTest:
    """Result of a learning-rate range test.

    Example:

    >>> from keras_resnet.training.learning_rate_test import LearningRateTest
    >>> LearningRateTest((0.001, 0.1, 10.0), (2.0, 1.0, 9.0)).suggestion
    0.01
    """

    learning_rates: tuple[float, ...]
    """The learning rate of each step."""
    losses: tuple[float, ...]
    """The training loss of each step."""

    @property
    def smoothed(self) -> tuple[float, ...]:
        """The losses as a moving average, corrected for its start at 0."""
        averages, average = [], 0.0
        for step, loss in enumerate(self.losses, 1):
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            averages.append(average / (1 - SMOOTHING**step))
        return tuple(averages)

    @property
    def suggestion(self) -> float:
        """A tenth of the learning rate at which the smoothed loss is lowest."""
        return self.learning_rates[int(np.argmin(self.smoothed))] / MARGIN


class _LossCallback(keras.callbacks.Callback):
    """Records the loss of every step; stops when it diverges. Keras logs the mean of the losses so far."""

    def __init__(self):
        super().__init__()
        self.losses, self.total = [], 0.0

    def on_train_batch_end(self, batch, logs=None):
        total = logs["loss"] * (batch + 1)
        self.losses.append(total - self.total)
        self.total = total
        smoothed = LearningRateTest((), tuple(self.losses)).smoothed
        if not np.isfinite(total) or smoothed[-1] > DIVERGED * min(smoothed):
            self.model.stop_training = True


def learning_rate_test(
    model: str | os.PathLike | ResNetSpec | DetectorSpec | Callable[[], keras.Model] = "resnet20",
    dataset: str | Dataset | Callable[[], Dataset] = "digits",
    recipe: str | Recipe = "quickstart",
    workdir: str | os.PathLike | None = None,
    *,
    weights: str | os.PathLike | None = None,
    backbone_weights: str | os.PathLike | None = None,
    size: int | None = None,
    lowest: float = 1e-5,
    highest: float = 10.0,
    steps: int = 100,
    options: RunOptions | None = None,
    **changes: Any,
) -> LearningRateTest:
    """Trains for some steps while the learning rate rises exponentially (Smith 2015, arXiv:1506.01186, sec. 3.3).

    Example:

    >>> import keras_resnet
    >>> spec = keras_resnet.ResNetSpec("basic", (1,), (4,), stem="cifar", stem_width=4)
    >>> result = keras_resnet.learning_rate_test(spec, "digits", steps=5, highest=0.1)
    >>> [round(rate, 5) for rate in result.learning_rates]
    [1e-05, 0.0001, 0.001, 0.01, 0.1]

    Args:
        model: as for `train`; a Keras model by a function that returns one, since its weights change.
        dataset: as for `train`.
        recipe: as for `train`; its schedule, learning rate, length and averaged weights are not used.
        workdir: folder for learning_rate.png and learning_rate.csv; None writes nothing.
        weights: as for `train`.
        backbone_weights: as for `train`.
        size: as for `train`.
        lowest: learning rate of the first step.
        highest: learning rate of the last step.
        steps: number of steps; fewer are taken if the loss diverges.
        options: RunOptions; its fields can also be given as keywords. Checkpoints are not written.
        **changes: fields of RunOptions, and fields of the recipe to change.

    Returns:
        A LearningRateTest.

    Raises:
        ValueError, RuntimeError, OSError: as `train`.
    """
    check_integers(minimum=2, steps=steps)
    if not (is_number(lowest) and is_number(highest) and 0 < lowest < highest <= MAX_RATE):
        raise value_error("lowest", lowest, f"a number above 0 and below `highest` ({highest}), at most {MAX_RATE:g}")
    options, changes = split_options(options, changes)
    recipe = get_recipe(recipe, size=size, **{**changes, "iterations": steps, "epochs": None, "ema_decay": 0.0})
    folder = workdir and as_path(workdir, "workdir")
    start = Start(model, weights, backbone_weights, options.precision)
    devices, dataset, recipe = prepare_run(start, dataset, recipe, options)
    with devices.scope():
        data = RunData(start, dataset, recipe, options, devices)
        data.model.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(
            float(lowest), steps - 1, highest / lowest
        )
    if folder:
        make_folder(folder)
    data.print_summary()
    recorded = _LossCallback()
    with devices.running():
        batches = data.training_batches(0, steps)
        data.model.fit(
            batches, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[*devices.callbacks, recorded]
        )
    finite = [float(loss) for loss in recorded.losses if np.isfinite(loss)]
    rates = lowest * (highest / lowest) ** (np.arange(len(finite)) / (steps - 1))
    result = LearningRateTest(tuple(rates.tolist()), tuple(finite))
    if folder and devices.is_chief:
        _write(result, folder, dataset.name)
    return result


def _write(result, folder, title):
    columns = {"learning_rate": result.learning_rates, "loss": result.losses, "smoothed_loss": result.smoothed}
    write_history(
        [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], folder / VALUES
    )
    with figure_file(folder / PLOT, figsize=(7, 4.5), layout="constrained") as figure:
        axes = figure.subplots()
        axes.plot(result.learning_rates, result.losses, ".", color="C0", alpha=0.3, label="of a step")
        axes.plot(result.learning_rates, result.smoothed, color="C0", label="moving average")
        axes.axvline(result.suggestion, color="C1", label=f"suggestion: {result.suggestion:.2g}")
        lowest, start = min(result.smoothed), result.smoothed[0]
        axes.set(title=title, xlabel="learning rate", ylabel="training loss", xscale="log")
        axes.set(ylim=(max(0.0, lowest - 0.2 * start), lowest + 2 * start))
        axes.legend()
