"""Recipe, network and pictures -> compile, model.fit, and a folder that says what happened."""

import json
import math
import platform
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import keras

from keras_resnet.data.datasets import Dataset, evaluation_pipeline, load_dataset, training_pipeline
from keras_resnet.files import replacing
from keras_resnet.models import create
from keras_resnet.training.curves import draw_curves
from keras_resnet.training.recipes import get_recipe
from keras_resnet.training.schedules import SCHEDULES

MODEL, HISTORY, CURVES, SETTINGS, REPORT = "model.keras", "history.csv", "curves.png", "settings.json", "report.json"


@dataclass(frozen=True)
class Run:
    """What a training run leaves."""

    model: keras.Model
    history: dict
    """{metric: [a value an epoch]}."""
    report: dict
    """What `report.json` holds."""


def train(model="resnet20", dataset="digits", recipe="quickstart", workdir=None, seed=0, overwrite=False, **changes):
    """Trains a network with `model.fit`.

    Args:
        model: name of a network, built for the pictures; or a Keras model with a softmax over the classes.
        dataset: name of a data set, or a Dataset.
        recipe: name of a recipe, or a Recipe.
        workdir: folder for model.keras, history.csv, curves.png, settings.json and report.json; None writes nothing.
        seed: of weights, order and augmentation.
        overwrite: whether `workdir` may hold an earlier run.
        **changes: fields of the recipe to change, such as `epochs=2`.

    Returns:
        A Run. `report["top1_accuracy"]` is the share of test pictures that the trained network gets right, 0 to 1.

    Raises:
        ValueError: for an unknown name or field, or a network that does not fit the pictures.
        FileExistsError: if `workdir` holds another run. OSError: if it cannot be written; before training either way.
    """
    keras.utils.set_random_seed(seed)
    recipe = get_recipe(recipe, **changes) if isinstance(recipe, str) else replace(recipe, **changes)
    dataset = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
    if isinstance(model, str):
        model = create(model, input_shape=dataset.input_shape, classes=len(dataset.class_names))
    steps = _steps_per_epoch(dataset, recipe)
    settings = _settings(model, dataset, recipe, seed)
    folder = _prepare(workdir, overwrite, settings)

    _compile(model, recipe, steps)
    started = time.perf_counter()
    history = model.fit(
        training_pipeline(dataset, recipe.batch_size, recipe.padding, seed),
        validation_data=evaluation_pipeline(dataset, recipe.batch_size),
        epochs=recipe.epochs,
        callbacks=_callbacks(folder, steps, title=f"{model.name} on {dataset.name}"),
        shuffle=False,  # the pipeline does
        verbose=1 if sys.stdout.isatty() else 2,
    ).history
    seconds = time.perf_counter() - started

    model.info = {**(getattr(model, "info", None) or {}), **_info(dataset)}
    report = {**settings, **_measure(model, dataset, recipe), "wall_time_s": round(seconds, 1)}
    report["training_images_per_s"] = round(recipe.epochs * steps * recipe.batch_size / seconds, 1)
    if folder:
        _save(model, report, folder)
    return Run(model, history, report)


def _steps_per_epoch(dataset, recipe):
    steps = len(dataset.train[1]) // recipe.batch_size
    if not steps:
        raise ValueError(
            f"`batch_size` should be at most the number of training pictures ({len(dataset.train[1])}). "
            f"Received: batch_size={recipe.batch_size}"
        )
    return steps


def _settings(model, dataset, recipe, seed):
    """Everything that decides the outcome, as JSON values."""
    import tensorflow as tf

    spec = getattr(model, "spec", None)
    return {
        "model": model.name,
        "spec": spec and spec.to_config(),
        "parameters": sum(math.prod(weight.shape) for weight in model.trainable_weights),
        "dataset": dataset.name,
        "training_images": len(dataset.train[1]),
        "test_images": len(dataset.test[1]),
        "classes": list(dataset.class_names),
        "recipe": recipe.to_config(),
        "seed": seed,
        "precision": keras.config.dtype_policy().name,
        "versions": {"python": platform.python_version(), "keras": keras.__version__, "tensorflow": tf.__version__},
    }


def _prepare(workdir, overwrite, settings):
    """The folder, with the settings in it; whatever would fail at the end fails now."""
    if workdir is None:
        return None
    folder = Path(workdir)
    earlier = [name for name in (MODEL, HISTORY, CURVES, SETTINGS, REPORT) if (folder / name).exists()]
    if earlier and not overwrite:
        raise FileExistsError(
            f"`workdir` should be a new or empty folder, or `overwrite` be True: it holds another run ({earlier[0]}). "
            f"Received: workdir={str(workdir)!r}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in earlier:
            (folder / name).unlink()
        _write_json(settings, folder / SETTINGS)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"`workdir` should be a folder that can be written ({reason}). Received: {workdir}") from error
    return folder


def _compile(model, recipe, steps_per_epoch):
    optimizer = keras.optimizers.SGD(
        SCHEDULES[recipe.schedule](recipe, steps_per_epoch),
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay or None,
    )
    if not recipe.decay_all:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(
        optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(),
        metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(5, name="top5_accuracy")],
        jit_compile=False,  # on the CPU, XLA halves the speed of a training step
    )


def _callbacks(folder, steps_per_epoch, title):
    callbacks = [keras.callbacks.TerminateOnNaN()]
    if folder:
        callbacks += [
            keras.callbacks.CSVLogger(folder / HISTORY),
            _Curves(folder / CURVES, steps_per_epoch, title),
        ]
    return callbacks


class _Curves(keras.callbacks.Callback):
    """Draws the learning curves anew after every epoch."""

    def __init__(self, path, steps_per_epoch, title):
        super().__init__()
        self.path, self.steps_per_epoch, self.title = path, steps_per_epoch, title
        self.history = {"accuracy": [], "val_accuracy": []}

    def on_epoch_end(self, epoch, logs=None):
        for key, values in self.history.items():
            values.append(logs[key])
        draw_curves(self.history, self.steps_per_epoch, self.path, self.title)


def _info(dataset):
    """What the model should know of the pictures it was trained on."""
    return {
        "weights": f"trained on {dataset.name}",
        "preprocessing": dataset.preprocessing.to_config(),
        "class_names": list(dataset.class_names),
    }


def _measure(model, dataset, recipe):
    """Accuracies on the test pictures, shares of 1."""
    measured = model.evaluate(evaluation_pipeline(dataset, recipe.batch_size), verbose=0, return_dict=True)
    return {"top1_accuracy": measured["accuracy"], "top5_accuracy": measured["top5_accuracy"], "loss": measured["loss"]}


def _save(model, report, folder):
    with replacing(folder / MODEL) as partial:
        model.save(partial)
    _write_json(report, folder / REPORT)


def _write_json(values, path):
    with replacing(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
