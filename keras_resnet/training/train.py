"""`train`: a recipe, a model and images -> `model.fit`, and a folder with everything about the run."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import keras

from keras_resnet.architecture.metadata import model_info
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.class_balance import class_weights, images_per_epoch
from keras_resnet.data.datasets import Dataset
from keras_resnet.data.pipelines import evaluation_batches, training_batches
from keras_resnet.data.sources import as_dataset
from keras_resnet.errors import check_integers, check_known, value_error
from keras_resnet.evaluation import evaluate
from keras_resnet.files import as_path
from keras_resnet.models.cloning import clone
from keras_resnet.models.preprocessing import weights_digest
from keras_resnet.training.callbacks import CheckpointCallback, ProgressCallback, callbacks_of, stop_on_signal
from keras_resnet.training.distribution import Devices, jit_compile
from keras_resnet.training.ema import STATISTICS_BATCHES, EMACallback, assign_averages
from keras_resnet.training.model_setup import (
    check_trainable,
    compile_model,
    is_pretrained,
    model_for_images,
    run_settings,
)
from keras_resnet.training.objectives import objective_of
from keras_resnet.training.options import RunOptions, split_options
from keras_resnet.training.recipe import Recipe
from keras_resnet.training.recipes import get_recipe
from keras_resnet.training.run_summary import print_summary
from keras_resnet.training.trackers import LoggedRun, check_trackers, open_trackers
from keras_resnet.training.workdir import begin_run, check_workdir, columns, locked_workdir, write_run

KEEP = ("last", "best")


@dataclass(frozen=True)
class Run:
    """Result of a training run."""

    model: keras.Model
    history: dict[str, list]
    """{name: [value after each epoch]}."""
    report: dict[str, Any]
    """Settings and results, as in `report.json`."""


def train(
    model: str | os.PathLike | ResNetSpec | keras.Model | Callable[[], keras.Model] = "resnet20",
    dataset: str | Dataset | Callable[[], Dataset] = "digits",
    recipe: str | Recipe = "quickstart",
    workdir: str | os.PathLike | None = None,
    *,
    weights: str | os.PathLike | None = None,
    size: int | None = None,
    options: RunOptions | None = None,
    sync_batch_norm: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    validation_freq: int = 1,
    keep: str = "last",
    **changes: Any,
) -> Run:
    """Trains a model with `model.fit`.

    Example:

    >>> import keras_resnet
    >>> spec = keras_resnet.ResNetSpec("basic", (1, 1, 1), (4, 8, 16), stem="cifar", stem_width=4)
    >>> run = keras_resnet.train(spec, "digits", workdir="runs/tiny", iterations=5, seed=3)
    >>> 0 <= run.report["top1_accuracy"] <= 1
    True

    Args:
        model: name of a network or a ResNetSpec, built for the images; a .keras file, which gets a new classifier if
            its classes are others; or a Keras model with a softmax over the classes; on several devices a function that
            returns one, called in their scope.
        dataset: name of a data set (see `load_dataset`), a Dataset, or a function that returns one, called after
            TensorFlow's devices are set up.
        recipe: name of a recipe, or a Recipe.
        workdir: folder for model.keras, history.csv, curves.png, settings.json, report.json and the checkpoint, or a
            URL in object storage, such as "s3://bucket/run", see STORAGES; None writes nothing.
        weights: pretrained weights to start from, for a network given by name: a tag of `list_weights`, or the path of
            a file. Their preprocessing is kept; a classifier for other classes is replaced by a new one.
        size: side of the images in pixels, in training and testing; None: that of the recipe, else that of pretrained
            weights, else that of the data set's images, if all have one, else the size the network was designed for.
        options: RunOptions; its fields can also be given as keywords.
        sync_batch_norm: whether batch norm uses the statistics of the global batch instead of each device's part.
        callbacks: callbacks of Keras, called before the checkpoint is written. A run is one to three calls of `fit`,
            each with `on_train_begin`; resuming calls them again, since their state is not in the checkpoint, unless
            they have `get_state()`, which returns JSON values, and `set_state(state)`. If one of them sets
            `model.stop_training`, the run ends, and stays ended when resumed.
        validation_freq: epochs between tests; with the number of epochs, the test set is used only once, at the end.
        keep: "last", or "best": the weights of the epoch with the highest test accuracy. The test images then choose
            the weights; use `validation_split` of `load_dataset` to leave the real test set untouched.
        **changes: fields of RunOptions, such as `seed=3`, and fields of the recipe to change, such as `epochs=2`.

    Returns:
        A Run. `report["top1_accuracy"]` is the share of test images that the trained model classifies correctly, 0..1.
        Multi-label models have `report["mean_average_precision"]` instead; their `model.info["thresholds"]` are those
        with the highest F1 on the test images.

    Raises:
        ValueError: for an unknown name or field, a model that does not fit the images, or another run's checkpoint.
        FileExistsError: if `workdir` holds another run. BlockingIOError: if another process uses it. OSError: if it
            cannot be written. All before training, without a change to `workdir`.
        RuntimeError: if TensorFlow fails: no memory, a damaged image, a lost machine. The last checkpoint stays.
        FloatingPointError: if the loss is no longer finite; the last checkpoint stays.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    check_trainable(model)
    options, changes = split_options(options, changes)
    workdir = workdir and as_path(workdir, "workdir")
    recipe = get_recipe(recipe, size=size, **changes)
    devices, dataset, recipe = prepare_run(dataset, recipe, options, validation_freq, keep)
    check_trackers(options, workdir, recipe.steps(images_per_epoch(dataset, recipe))[1])
    if isinstance(model, keras.Model) and devices.num_replicas > 1:
        raise ValueError(
            "`model` should be a name, a ResNetSpec, or a function that returns a Keras model, on several devices: an "
            f"existing model is on one of them. Received: model={model.name}"
        )
    with devices.scope():
        pretrained = is_pretrained(model, weights)
        model, dataset = model_for_images(model, dataset, recipe, weights, options.precision, sync_batch_norm)
        data = RunData(dataset, recipe, options.seed, devices)
        compile_model(model, data.recipe, data.num_steps, jit_compile(options.xla), data.objective)
        settings = run_settings(model, data.dataset, data.recipe, options.seed, sync_batch_norm)
        settings |= {"keep": keep, "weights_sha256": weights_digest(model) if pretrained else None}
        test_batches = data.test_batches()
    callbacks = [*callbacks_of(data.recipe, data.objective), *callbacks]
    checkpoints = CheckpointCallback(workdir, settings, data, options.checkpoint_every, keep == "best", callbacks)
    with locked_workdir(workdir if devices.is_chief else None):
        with devices.scope():
            _begin_or_resume(checkpoints, model, options)
        logged = LoggedRun(checkpoints.workdir, settings, checkpoints.state.step, options.profile)
        with devices.running(), open_trackers(options, devices.is_chief and logged) as trackers:
            _fit(model, data, checkpoints, [*callbacks, checkpoints, *trackers], test_batches, validation_freq)
            run = _finish(model, data, checkpoints)
    # A copy on one device, whose `predict` does not divide batches
    return replace(run, model=clone(run.model)) if devices.num_replicas > 1 else run


class RunData:
    """A run's batches and its number of steps: the Dataset in the recipe's preprocessing, divided among the Devices."""

    def __init__(self, dataset, recipe, seed, devices):
        self.dataset, self.recipe, self.seed, self.devices = dataset, recipe, seed, devices
        self.objective = objective_of(dataset)
        self.steps_per_epoch, self.num_steps = recipe.steps(images_per_epoch(dataset, recipe))

    def training_batches(self, first, steps):
        """Batches of `steps` steps of the run, starting at step `first`."""
        return self.devices.distribute(
            lambda *share: training_batches(self.dataset, self.recipe, steps, self.seed, first, share),
            self.recipe.batch_size,
        )

    def test_batches(self):
        dataset, num_images = self.dataset, len(self.dataset.test)
        batch_size = self.devices.test_batch_size(num_images, self.recipe.batch_size)
        return self.devices.distribute_test(
            lambda *share: evaluation_batches(dataset.test, dataset, batch_size, share), num_images, batch_size
        )

    def statistics_batches(self):
        """Augmented training images without labels, on one device, for the statistics of averaged weights."""
        batches = training_batches(self.dataset, self.recipe, STATISTICS_BATCHES, self.seed)
        return (images for images, *_ in batches)


def prepare_run(dataset, recipe, options, validation_freq=1, keep="last"):
    """(Devices, Dataset, Recipe). The devices and the random state are set up before anything uses them."""
    devices = Devices(options.devices)
    keras.utils.set_random_seed(options.seed)
    if options.deterministic:
        devices.make_deterministic()
    dataset = as_dataset(dataset)
    if dataset.multi_label:
        recipe = replace(recipe, loss="binary_cross_entropy")
    check_run(dataset, recipe, devices, options, validation_freq, keep)
    return devices, dataset, recipe


def check_run(dataset, recipe, devices, options, validation_freq=1, keep="last"):
    """Raises ValueError for a data set and options that `train` cannot use, before anything is built or written."""
    if dataset.train is None:
        raise ValueError(f"`dataset` should have training images. Received: {dataset.name}, which has only test images")
    if len(dataset.class_names) < 2:
        raise ValueError(f"`dataset` should have at least two classes. Received: {list(dataset.class_names)}")
    recipe.steps(images_per_epoch(dataset, recipe))  # raises unless there is at least one step
    class_weights(dataset, recipe.class_weight)  # raises for classes that the data set does not have
    check_known("keep", keep, KEEP)
    if keep == "best" and (recipe.ema_decay or validation_freq != 1 or devices.num_machines > 1):
        raise ValueError(
            '`keep` should be "last" with averaged weights, a `validation_freq` other than 1, or several machines. '
            "Received: keep='best'"
        )
    devices.check_batch_size(recipe.batch_size)
    check_integers(validation_freq=validation_freq)
    if recipe.needs_every_test and validation_freq != 1:
        expected = '1 with the schedule "plateau" and with early stopping (`patience`)'
        raise value_error("validation_freq", validation_freq, expected)
    if options.precision == "float16" and devices.num_replicas > 1:  # Keras checks the first replica for overflows only
        raise ValueError("`precision` should be bfloat16 or float32 on several devices. Received: precision='float16'")


def _begin_or_resume(checkpoints, model, options):
    """Restores the run in the workdir if it is to be resumed. Files are changed once everything has been checked."""
    workdir, writes = checkpoints.workdir, checkpoints.workdir and checkpoints.devices.is_chief
    if writes:
        num_bytes = 4 * sum(math.prod(variable.shape) for variable in (*model.variables, *model.optimizer.variables))
        check_workdir(workdir, checkpoints.settings, num_bytes, options)
    if options.resume:
        checkpoints.resume(model)
    if writes:
        begin_run(workdir, checkpoints.settings, options.resume)


def _fit(model, data, checkpoints, callbacks, test_batches, validation_freq):
    """Runs `model.fit` from the state of the checkpoint to the end."""
    progress = ProgressCallback(checkpoints, data)
    averages = [EMACallback(data.statistics_batches)] if data.recipe.ema_decay else []
    callbacks = [*data.devices.callbacks, *averages, *callbacks, progress]
    first_step = checkpoints.state.step
    print_summary(model, data.dataset, data.recipe)
    with stop_on_signal(checkpoints), progress.bar:
        for first_epoch, end_epoch, length in _equal_epochs(first_step, data.steps_per_epoch, data.num_steps):
            if checkpoints.state.stopped:
                break
            model.fit(
                data.training_batches(checkpoints.state.step, (end_epoch - first_epoch) * length),
                validation_data=test_batches,
                validation_freq=validation_freq,
                initial_epoch=first_epoch,
                epochs=end_epoch,
                steps_per_epoch=length,
                callbacks=callbacks,
                shuffle=False,  # the batches are shuffled already
                verbose=0,
            )


def _equal_epochs(step, steps_per_epoch, steps):
    """(first epoch, end epoch, steps per epoch) of the rest of a run, in parts whose epochs have the same length.

    The rest of an interrupted epoch comes first, the start of an epoch that `iterations` cuts short comes last.
    """
    if step >= steps:
        return
    epoch, done = divmod(step, steps_per_epoch)
    if done:
        yield epoch, epoch + 1, min(steps_per_epoch - done, steps - step)
        epoch += 1
    whole, rest = divmod(steps, steps_per_epoch)
    if epoch < whole:
        yield epoch, whole, steps_per_epoch
    if rest and epoch <= whole:
        yield whole, whole + 1, rest


def _finish(model, data, checkpoints):
    """Tests the trained model and writes model and report: the Run."""
    recipe, workdir = data.recipe, checkpoints.workdir
    if recipe.ema_decay:
        assign_averages(model, data.statistics_batches())
    if checkpoints.keep_best:
        checkpoints.restore_best(model)
    model.info = model_info(model) | {
        "weights": f"trained on {data.dataset.name}",
        "preprocessing": data.dataset.preprocessing.to_config(),
        "class_names": list(data.dataset.class_names),
        "multi_label": data.dataset.multi_label,
    }
    results = _results(model, data, checkpoints)
    model.layers[-1].activation = keras.activations.get(data.objective.activation)
    if data.dataset.multi_label:
        results |= _set_thresholds(model, data)
    measured = {name: results[name] for name in (data.objective.score, *data.objective.results, "loss")}
    model.info["results"] = {"dataset": data.dataset.name, **measured}
    report = {**checkpoints.settings, **results}
    if workdir and data.devices.is_chief:
        write_run(model, report, workdir)
    return Run(model, columns(checkpoints.state.history), report)


def _set_thresholds(model, data):
    """Stores each class's threshold with the highest F1 on the test images in the model; results for the report."""
    result = evaluate(clone(model) if data.devices.num_replicas > 1 else model, data.dataset)
    model.info = model_info(model) | {"thresholds": result.best_thresholds}
    return {"mean_average_precision": result.mean_average_precision}


def _results(model, data, checkpoints):
    """Loss and accuracies on the test images, and the speed of the training.

    The metrics are taken from the history if the epoch of the kept weights was tested. Averaged weights are tested
    again: their batch-norm statistics have been recomputed since.
    """
    history = checkpoints.state.history
    row = history[checkpoints.best_epoch - 1 if checkpoints.keep_best else -1]
    if f"val_{data.objective.monitor}" in row and not data.recipe.ema_decay:
        metrics = {name.removeprefix("val_"): value for name, value in row.items() if name.startswith("val_")}
    else:
        metrics = model.evaluate(data.test_batches(), verbose=0, return_dict=True)
    return {
        **{name: metrics[metric] for name, metric in data.objective.results.items()},
        "loss": metrics["loss"],
        "stopped_early": checkpoints.state.stopped,
        "wall_time_s": round(checkpoints.state.seconds, 1),
        "training_images_per_s": round(mean(row["images_per_s"] for row in history), 1),
    }
