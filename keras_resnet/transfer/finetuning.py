"""Fine-tuning in phases: first a new classifier on frozen layers, then more and more stages, from the top down.

Howard and Ruder 2018, arXiv:1801.06146, sec. 3.3, call it gradual unfreezing. Each phase is a run of `train` in a
folder of its own, and can be resumed like any other run.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_resnet.analysis.grad_cam import grad_cam, plot_grad_cam
from keras_resnet.architecture.metadata import to_data_format
from keras_resnet.architecture.network import num_stages, stage_index
from keras_resnet.data.datasets import Dataset, evenly_spaced
from keras_resnet.data.prefetch import images_at
from keras_resnet.data.protocols import get_protocol, image_views
from keras_resnet.data.sources import as_dataset
from keras_resnet.errors import check_known, is_integer, value_error
from keras_resnet.evaluation import evaluate
from keras_resnet.files import as_path, remove
from keras_resnet.models.cloning import clone
from keras_resnet.models.model_files import load_model
from keras_resnet.models.preprocessing import preprocessing, set_preprocessing, weights_digest
from keras_resnet.models.transforms import with_new_head
from keras_resnet.normalization import normalize
from keras_resnet.training.distribution import Devices
from keras_resnet.training.model_setup import (
    build_for_images,
    fit_to_images,
    is_model_file,
    load_pretrained,
)
from keras_resnet.training.objectives import run_score
from keras_resnet.training.options import RunOptions, split_options
from keras_resnet.training.recipe import Recipe
from keras_resnet.training.recipes import check_recipe, get_recipe
from keras_resnet.training.train import check_run, train
from keras_resnet.training.workdir import begin_run, check_workdir, clear_runs, locked_workdir, write_run
from keras_resnet.variants import check_classifier

BATCH_NORM = ("frozen", "trained")
GRAD_CAM_PLOT = "grad_cam.png"
PHASE_FOLDER = re.compile(r"\d_(head|stage\d|stem)")
HEAD_LEARNING_RATE = 3.0
"""Learning rate of the first phase, in which only the classifier is trained, relative to the recipe's."""
DEFAULT_WEIGHTS = "imagenet"
_OTHER_TASKS = "`keras_resnet.train` trains detectors, localizers and segmenters."


@dataclass(frozen=True)
class FineTuning:
    """Result of fine-tuning.

    >>> from keras_resnet.transfer.finetuning import FineTuning
    >>> reports = {"head": {"top1_accuracy": 0.8}, "stage4": {"top1_accuracy": 0.9}}
    >>> FineTuning(model=None, phases=reports).best
    'stage4'
    """

    model: keras.Model
    """With the weights of the best epoch of all phases, its class names and its preprocessing."""
    phases: dict[str, dict[str, Any]]
    """{name of the phase: report of its run}, in order."""

    @property
    def best(self) -> str:
        """Name of the first phase with the highest accuracy, or mean average precision."""
        return max(self.phases, key=lambda name: run_score(self.phases[name])[1])


def finetune(
    model: str | os.PathLike | keras.Model = "resnet50",
    dataset: str | Dataset | Callable[[], Dataset] | None = None,
    workdir: str | os.PathLike | None = None,
    *,
    weights: str | os.PathLike | None = DEFAULT_WEIGHTS,
    stages: int = 2,
    head_epochs: int | None = None,
    batch_norm: str = "frozen",
    recipe: str | Recipe = "finetune",
    mode: str | None = None,
    size: int | None = None,
    options: RunOptions | None = None,
    **changes: Any,
) -> FineTuning:
    """Trains a pretrained network on other classes; a few hundred images are enough.

    >>> import keras_resnet
    >>> model = keras_resnet.create("resnet20", depths=(1, 1, 1), input_shape=(8, 8, 1), classes=5)
    >>> model.info["preprocessing"] = keras_resnet.Preprocessing("tf", size=8, resize=None, channels=1).to_config()
    >>> result = keras_resnet.finetune(model, "digits", stages=0, epochs=1, batch_size=500)
    >>> list(result.phases), result.model.output_shape
    (['head'], (None, 10))

    Args:
        model: name of a network, or a .keras file or Keras model with a classifier, which is replaced.
        dataset: name for `load_dataset`, a Dataset, or a function that returns one. Its test images select the epoch.
        workdir: folder for model.keras, report.json, grad_cam.png and a folder for each phase, or a URL in object
            storage, as for `train`; None writes nothing.
        weights: for a network given by name: a tag, the path of a file, or None for random weights.
        stages: number of stages to train, from the top; 0: only the classifier, the number of stages + 1: everything.
        head_epochs: epochs of the first phase; None: the recipe's. Each other phase has the recipe's epochs.
        batch_norm: "frozen" keeps the statistics, scales and offsets, which few images would degrade; "trained" trains
            those of the trainable stages.
        recipe: name of a recipe, or a Recipe, for every phase. The batch size of a recipe given by name is reduced to
            the number of training images.
        mode: preprocessing for weights that do not define one, a name in MODES.
        size: side of the images in pixels, in training and testing; None: that of the recipe, else that of the weights.
        options: RunOptions, on one machine; its fields can also be given as keywords.
        **changes: fields of RunOptions, such as `seed=3`, and fields of the recipe to change, such as `epochs=5`.

    Returns:
        A FineTuning.

    Raises:
        ValueError: before training, for unknown names and arguments that do not fit together.
        OSError, RuntimeError, FloatingPointError, KeyboardInterrupt: as `train`.
    """
    check_known("batch_norm", batch_norm, BATCH_NORM)
    check_classifier("model", model, _OTHER_TASKS)
    options, changes = split_options(options, changes)
    folder = workdir and as_path(workdir, "workdir")
    keep_batch_size = not isinstance(recipe, str) or "batch_size" in changes
    recipe = get_recipe(recipe, size=size, **changes)
    check_recipe(recipe, model)
    devices = Devices(options.devices)  # before images are read, which initializes TensorFlow's devices
    devices.check_one_machine("Fine-tuning keeps the weights of the best epoch, which needs one machine.")
    if recipe.ema_decay:
        raise value_error("ema_decay", recipe.ema_decay, "0: fine-tuning keeps the weights of the best epoch")
    keras.utils.set_random_seed(options.seed)
    dataset = as_dataset(dataset)
    if dataset.train is not None and not keep_batch_size:
        recipe = replace(recipe, batch_size=min(recipe.batch_size, len(dataset.train)))
    current, dataset = _model_for_classes(model, weights, dataset, recipe, options.precision, mode)
    phases = _phases(current, stages, recipe, head_epochs)
    for _, phase_recipe in phases.values():
        check_run(dataset, phase_recipe, devices, options, keep="best")
    settings = {"stages": stages, "batch_norm": batch_norm, "seed": options.seed}
    settings |= {"weights_sha256": weights_digest(current)}
    settings |= {name: phase_recipe.to_config() for name, (_, phase_recipe) in phases.items()}
    with locked_workdir(folder):
        if folder:
            _begin_or_resume(folder, settings, options)
        result = _train_phases(current, phases, dataset, folder, batch_norm, options)
        if folder:
            write_run(result.model, {"best": result.best, "phases": result.phases}, folder)
            plot_grad_cam_examples(result.model, dataset, folder / GRAD_CAM_PLOT)
    return result


def _train_phases(model, phases, dataset, folder, batch_norm, options):
    """The FineTuning after all phases, each of which starts from the best epoch of the phase before."""
    result = FineTuning(model, {})
    for index, (name, (lowest_stage, recipe)) in enumerate(phases.items()):
        run = train(
            partial(_trainable_copy, model, lowest_stage, batch_norm),
            dataset,
            recipe,
            folder and folder / f"{index}_{name}",
            options=replace(options, precision=None),  # the model has its own
            keep="best",
        )
        latest, model = FineTuning(run.model, {**result.phases, name: run.report}), run.model
        result = latest if latest.best == name else replace(latest, model=result.model)
    return result


def _phases(model, stages, recipe, head_epochs):
    """{name of the phase: (lowest trainable stage, Recipe)} in order.

    The first phase, which starts from a random classifier, has a larger learning rate.
    """
    top = num_stages(model)
    if not is_integer(stages, 0) or stages > top + 1:
        raise value_error("stages", stages, f"an integer from 0 to {top + 1}")
    epochs = recipe.epochs if head_epochs is None else head_epochs
    head_recipe = get_recipe(recipe, epochs=epochs, learning_rate=HEAD_LEARNING_RATE * recipe.learning_rate)
    return {"head": (top + 1, head_recipe)} | {
        f"stage{lowest}" if lowest else "stem": (lowest, recipe) for lowest in range(top, top - stages, -1)
    }


def _begin_or_resume(folder, settings, options):
    """As for a run of `train`; `overwrite` also removes the phases of an earlier fine-tuning."""
    check_workdir(folder, settings, 0, options)
    if options.overwrite:
        clear_runs([path for path in folder.iterdir() if PHASE_FOLDER.fullmatch(path.name) and path.is_dir()], remove)
    begin_run(folder, settings, options.resume)


def plot_grad_cam_examples(model, dataset, path, max_images=8):
    """Plots Grad-CAM heat maps of test images, at most `max_images` classified correctly and as many others.

    Raises:
        ValueError: if a test image cannot be read.
    """
    result = evaluate(model, dataset)
    if result.skipped:
        raise ValueError(f"`dataset` should have test images that can be read. Received: {result.skipped[0]}")
    predicted = result.most_probable
    correct = result.is_correct(predicted)
    groups = [np.flatnonzero(mask) for mask in (correct, ~correct)]
    # Test images are often sorted by class
    indices = np.concatenate([group[evenly_spaced(len(group), max_images)] for group in groups])
    (views,) = image_views(images_at(dataset.test, indices), preprocessing(model), get_protocol("center"))
    inputs = normalize(views[:, 0], preprocessing(model).mode, "channels_last")
    maps = grad_cam(model, to_data_format(model, inputs), predicted[indices])
    names = [name for _, name in result.classes]
    titles = [
        names[predicted[index]] + ("" if correct[index] else f" (is {' and '.join(result.true_classes(index))})")
        for index in indices
    ]
    plot_grad_cam(views[:, 0], maps, path, titles)


def _trainable_copy(model, lowest_stage, batch_norm):
    """A copy of the model in which the layers from one stage upwards are trainable, and all others frozen.

    Batch norm that is "frozen" neither is trained nor updates its statistics, in all stages.
    """
    copy, stages = clone(model), num_stages(model)
    for layer in copy.layers:
        frozen = batch_norm == "frozen" and isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = stage_index(layer.name, stages) >= lowest_stage and not frozen
    return copy


def _model_for_classes(model, weights, dataset, recipe, precision, mode):
    """The pretrained model with a new classifier for the data set's classes, and the Dataset with its preprocessing."""
    if is_model_file(model):
        model = load_model(model)
        check_classifier("model", model, _OTHER_TASKS)
    has_weights = isinstance(model, keras.Model)
    if has_weights and precision is not None:
        raise value_error("precision", precision, "left out with a Keras model or a .keras file, which has its own")
    if has_weights or weights is not None:
        weights = None if has_weights and weights == DEFAULT_WEIGHTS else weights
        body = load_pretrained(model, weights, recipe, precision)
    else:
        body, images = build_for_images(model, dataset, recipe, precision)
        set_preprocessing(body, images.preprocessing, mode or images.preprocessing.mode)
    if not num_stages(body):
        expected = "a residual network with the layer names of keras.applications, which identify its stages"
        raise value_error("model", body.name, expected)
    network = with_new_head(body, len(dataset.class_names))
    set_preprocessing(network, dataset.preprocessing, mode)
    preprocessing(network)  # raises if it is not known
    return fit_to_images(network, dataset, recipe)
