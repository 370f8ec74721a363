"""`train`: a recipe, a model and images -> `model.fit`, and a folder with everything about the run."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import keras

from keras_resnet.architecture.detector_spec import DetectorSpec
from keras_resnet.architecture.metadata import model_info
from keras_resnet.architecture.segmenter_spec import SegmenterSpec
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.class_balance import images_per_epoch
from keras_resnet.data.datasets import Dataset
from keras_resnet.data.sources import as_dataset
from keras_resnet.errors import check_integers, check_known, value_error
from keras_resnet.files import as_path
from keras_resnet.models.preprocessing import weights_digest
from keras_resnet.training.callbacks import CheckpointCallback, ProgressCallback, callbacks_of, stop_on_signal
from keras_resnet.training.distribution import Devices, jit_compile
from keras_resnet.training.ema import STATISTICS_BATCHES, EMACallback, assign_averages
from keras_resnet.training.model_setup import Start, create_metrics, run_settings
from keras_resnet.training.options import RunOptions, split_options
from keras_resnet.training.recipe import Recipe
from keras_resnet.training.recipes import check_recipe, get_recipe
from keras_resnet.training.run_summary import print_summary
from keras_resnet.training.tasks import TASKS
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
    model: (
        str | os.PathLike | ResNetSpec | DetectorSpec | SegmenterSpec | keras.Model | Callable[[], keras.Model]
    ) = "resnet20",
    dataset: str | Dataset | Callable[[], Dataset] = "digits",
    recipe: str | Recipe = "quickstart",
    workdir: str | os.PathLike | None = None,
    *,
    weights: str | os.PathLike | None = None,
    backbone_weights: str | os.PathLike | None = None,
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
        model: name of a network, a ResNetSpec, DetectorSpec or SegmenterSpec, built for the images; a .keras file,
            which gets a new classifier or predictors if its classes are others; or a Keras model, a detector, a
            segmenter or with a softmax over the classes; on several devices a function that returns one, called in
            their scope.
        dataset: name of a data set (see `load_dataset`), a Dataset, or a function that returns one, called after
            TensorFlow's devices are set up. For a detector, with boxes; for a segmenter, with masks of classes
            (`load_dataset(..., masks=True)`), which are read by a name.
        recipe: name of a recipe, or a Recipe; for a detector or a segmenter, one with a loss for them.
        workdir: folder for model.keras, history.csv, curves.png, settings.json, report.json, the checkpoint, and of a
            detector detections.jpg, of a segmenter segmentations.jpg, or a URL in object storage, such as
            "s3://bucket/run", see STORAGES; None writes nothing.
        weights: pretrained weights to start from, for a network given by name: a tag of `list_weights`, or the path of
            a file. Their preprocessing is kept; a classifier or predictors for other classes are replaced by new ones.
        backbone_weights: pretrained weights of the residual network alone of a detector or a segmenter, or of the
            classifier inside of a localizer: a tag or the path of a file.
        size: side of the images in pixels, in training and testing, of detectors the shorter side, of segmenters the
            shorter side in testing and the side of square crops in training; None: that of the recipe, else that of
            pretrained weights, else that of the data set's images, if all have one, else the size the network was
            designed for.
        options: RunOptions; its fields can also be given as keywords.
        sync_batch_norm: whether batch norm uses the statistics of the global batch instead of each device's part.
        callbacks: callbacks of Keras, called before the checkpoint is written. A run is one to three calls of `fit`,
            each with `on_train_begin`; resuming calls them again, since their state is not in the checkpoint, unless
            they have `get_state()`, which returns JSON values, and `set_state(state)`. If one of them sets
            `model.stop_training`, the run ends, and stays ended when resumed.
        validation_freq: epochs between tests; with the number of epochs, the test set is used only once, at the end.
        keep: "last", or "best": the weights of the epoch with the highest test accuracy, average precision or mean
            IoU. The test images then choose the weights; use `validation_split` of `load_dataset` to leave the real
            test set alone.
        **changes: fields of RunOptions, such as `seed=3`, and fields of the recipe to change, such as `epochs=2`.

    Returns:
        A Run. `report["top1_accuracy"]` is the share of test images that the trained model classifies correctly, 0..1.
        Multi-label models have `report["mean_average_precision"]` instead; their `model.info["thresholds"]` are those
        with the highest F1 on the test images. Detectors have COCO's `report["average_precision"]`, segmenters
        `report["mean_iou"]`, 0..1.

    Raises:
        ValueError: for an unknown name or field, a model that does not fit the images, or another run's checkpoint.
        FileExistsError: if `workdir` holds another run. BlockingIOError: if another process uses it. OSError: if it
            cannot be written. All before training, without a change to `workdir`.
        RuntimeError: if TensorFlow fails: no memory, a damaged image, a lost machine. The last checkpoint stays.
        FloatingPointError: if the loss is no longer finite; the last checkpoint stays.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    options, changes = split_options(options, changes)
    workdir = workdir and as_path(workdir, "workdir")
    recipe = get_recipe(recipe, size=size, **changes)
    start = Start(model, weights, backbone_weights, options.precision, sync_batch_norm)
    devices, dataset, recipe = prepare_run(start, dataset, recipe, options, validation_freq, keep)
    check_trackers(options, workdir, recipe.steps(images_per_epoch(dataset, recipe))[1])
    with devices.scope():
        data = RunData(start, dataset, recipe, options, devices)
        settings = run_settings(data.network, data, sync_batch_norm)
        settings |= {"keep": keep, "weights_sha256": weights_digest(data.network) if start.is_pretrained else None}
        validation = data.task.validation(data, validation_freq)
    callbacks = [*callbacks_of(data.recipe, data.objective), *callbacks]
    checkpoints = CheckpointCallback(workdir, settings, data, options.checkpoint_every, keep == "best", callbacks)
    with locked_workdir(workdir if devices.is_chief else None):
        with devices.scope():
            _begin_or_resume(checkpoints, data.model, options)
        logged = LoggedRun(checkpoints.workdir, settings, checkpoints.state.step, options.profile)
        with devices.running(), open_trackers(options, devices.is_chief and logged) as trackers:
            _fit(data, checkpoints, validation, [*callbacks, checkpoints, *trackers])
            run = _finish(data, checkpoints, validation)
    return replace(run, model=devices.on_one(run.model))


class RunData:
    """What a run consists of: the network, the compiled model that `fit` trains, its batches and number of steps.

    Args:
        start: Start.
        dataset: Dataset. As attribute, in the preprocessing of the network.
        recipe: Recipe.
        options: RunOptions.
        devices: the Devices among which batches are divided, in whose scope this is called.

    Raises:
        ValueError: for a network that cannot be built, or does not fit the data set.
    """

    def __init__(self, start, dataset, recipe, options, devices):
        self.task, self.recipe, self.seed, self.devices = TASKS[recipe.task], recipe, options.seed, devices
        self.network, self.dataset = self.task.network(start, dataset, recipe)
        self.preprocessing, self.objective = self.task.preprocessing(self), self.task.objective(self)
        self.steps_per_epoch, self.num_steps = recipe.steps(images_per_epoch(dataset, recipe))
        self.model = self.task.compile(self, jit_compile(options.xla))
        create_metrics(self.model)

    def training_batches(self, first, steps):
        """Batches of `steps` steps of the run, starting at step `first`."""
        return self.devices.distribute(
            lambda *share: self.task.training_batches(self, steps, first, share), self.recipe.batch_size
        )

    def statistics_batches(self):
        """Inputs of the model for some augmented batches, on one device, for the statistics of averaged weights."""
        return (inputs for inputs, *_ in self.task.training_batches(self, STATISTICS_BATCHES, 0, (0, 1)))

    def print_summary(self):
        """Prints what is going to be trained on standard error, and warns of what may go wrong."""
        print_summary(self.task.describe(self), self.dataset)
        self.task.warn(self)


def prepare_run(start, dataset, recipe, options, validation_freq=1, keep="last"):
    """(Devices, Dataset, Recipe). The devices and the random state are set up before anything uses them."""
    check_recipe(recipe, start.model)
    devices = Devices(options.devices)
    keras.utils.set_random_seed(options.seed)
    if options.deterministic:
        devices.make_deterministic()
    dataset = as_dataset(dataset, masks=recipe.task == "segmentation")
    recipe = TASKS[recipe.task].recipe(dataset, recipe, start)
    check_run(dataset, recipe, devices, options, validation_freq, keep)
    if isinstance(start.model, keras.Model) and devices.num_replicas > 1:
        raise ValueError(
            "`model` should be a name, a spec, or a function that returns a Keras model, on several devices: an "
            f"existing model is on one of them. Received: model={start.model.name}"
        )
    return devices, dataset, recipe


def check_run(dataset, recipe, devices, options, validation_freq=1, keep="last"):
    """Raises ValueError for a data set and options that `train` cannot use, before anything is built or written."""
    if dataset.train is None:
        raise ValueError(f"`dataset` should have training images. Received: {dataset.name}, which has only test images")
    TASKS[recipe.task].check(dataset, recipe)
    recipe.steps(images_per_epoch(dataset, recipe))  # raises unless there is at least one step
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


def _fit(data, checkpoints, validation, callbacks):
    """Runs `model.fit` from the state of the checkpoint to the end."""
    progress = ProgressCallback(checkpoints, data)
    averages = [EMACallback(data.statistics_batches)] if data.recipe.ema_decay else []
    callbacks = [*data.devices.callbacks, *averages, *validation.callbacks(averages), *callbacks, progress]
    first_step = checkpoints.state.step
    data.print_summary()
    with stop_on_signal(checkpoints), progress.bar:
        for first_epoch, end_epoch, length in _equal_epochs(first_step, data.steps_per_epoch, data.num_steps):
            if checkpoints.state.stopped:
                break
            data.model.fit(
                data.training_batches(checkpoints.state.step, (end_epoch - first_epoch) * length),
                initial_epoch=first_epoch,
                epochs=end_epoch,
                steps_per_epoch=length,
                callbacks=callbacks,
                shuffle=False,  # the batches are shuffled already
                verbose=0,
                **validation.fit_arguments,
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


def _finish(data, checkpoints, validation):
    """Tests the trained model and writes model and report: the Run."""
    network, workdir = data.network, checkpoints.workdir
    if data.recipe.ema_decay:
        assign_averages(data.model, data.statistics_batches())
    if checkpoints.keep_best:
        checkpoints.restore_best(data.model)
    source = {"weights": f"trained on {data.dataset.name}", "preprocessing": data.preprocessing.to_config()}
    network.info = model_info(network) | source | data.task.info(data.dataset)
    results = _results(data, checkpoints, validation)
    results |= data.task.finish(data)
    measured = {name: results[name] for name in (data.objective.score, *data.objective.results)}
    network.info["results"] = {"dataset": data.dataset.name, **measured}
    report = {**checkpoints.settings, **results}
    if workdir and data.devices.is_chief:
        data.task.write(data, validation, workdir)
        write_run(network, report, workdir)
    return Run(network, columns(checkpoints.state.history), report)


def _results(data, checkpoints, validation):
    """Test results and the speed of the training.

    The metrics are taken from the history if the epoch of the kept weights was tested. Averaged weights are tested
    again: their batch-norm statistics have been recomputed since.
    """
    history = checkpoints.state.history
    row = history[checkpoints.best_epoch - 1 if checkpoints.keep_best else -1]
    if f"val_{data.objective.monitor}" in row and not data.recipe.ema_decay:
        metrics = {name.removeprefix("val_"): value for name, value in row.items() if name.startswith("val_")}
    else:
        metrics = validation.metrics()
    return {
        **{name: metrics[metric] for name, metric in data.objective.results.items()},
        "stopped_early": checkpoints.state.stopped,
        "wall_time_s": round(checkpoints.state.seconds, 1),
        "training_images_per_s": float(f"{mean(row['images_per_s'] for row in history):.4g}"),
    }
