"""Recipe, network and images -> compile, model.fit, and a folder that says what happened."""

from dataclasses import dataclass, replace

import keras

from keras_resnet.architecture.metadata import model_info
from keras_resnet.data.pipelines import evaluation_batches, training_batches
from keras_resnet.data.sources import as_dataset
from keras_resnet.errors import check_integers, unknown_name_error
from keras_resnet.models.transforms import clone
from keras_resnet.training.callbacks import CheckpointCallback, EMACallback, Plateau, ProgressCallback, interruptible
from keras_resnet.training.devices import Devices, jit_compile
from keras_resnet.training.ema import BATCHES, use_averages
from keras_resnet.training.model_setup import checkpoint_size, compile_for, network_for, settings_of
from keras_resnet.training.recipes import LOSSES, changed, get_recipe
from keras_resnet.training.workdir import TENSORBOARD, columns, prepare, write_run

KEEP = ("last", "best")


@dataclass(frozen=True)
class Run:
    """What a training run leaves."""

    model: keras.Model
    history: dict
    """{name: [a value an epoch]}."""
    report: dict
    """What `report.json` holds."""


def train(
    model="resnet20",
    dataset="digits",
    recipe="quickstart",
    workdir=None,
    seed=0,
    overwrite=False,
    *,
    resume=False,
    checkpoint_every=None,
    deterministic=False,
    devices=None,
    sync_batch_norm=False,
    precision=None,
    xla=None,
    tensorboard=False,
    validation_freq=1,
    keep="last",
    **changes,
):
    """Trains a network with `model.fit`.

    Args:
        model: name of a network or a ResNetSpec, built for the images; or a Keras model, a softmax over the classes;
            on several devices a function that gives one, which is called where they are.
        dataset: name of a data set (see `load_dataset`), a Dataset, or a function that gives one: TensorFlow's devices
            are set up before it is called.
        recipe: name of a recipe, or a Recipe.
        workdir: folder for model.keras, history.csv, curves.png, settings.json, report.json and the checkpoint; None
            writes nothing.
        seed: of weights, order and augmentation.
        overwrite: whether `workdir` may hold an earlier run, which is removed.
        resume: whether to go on with the run in `workdir`; if there is none yet, it begins.
        checkpoint_every: steps between checkpoints; None: one after each epoch.
        deterministic: whether each run on this machine gives the same numbers, bit by bit; a little slower.
        devices: GPUs of this machine to use, None for all; without GPUs, parts into which its CPU is split. Several
            machines find each other by TF_CONFIG (see `training/distribution.py`), and share `workdir`.
        sync_batch_norm: whether batch norm's statistics are those of the whole batch, instead of each device's part.
        precision: "float32", "mixed_bfloat16" or "mixed_float16", of a network given by name; None: Keras's policy.
        xla: whether XLA compiles the step; None: not on the CPU, where it halves the speed.
        tensorboard: whether logs for TensorBoard are written, to `workdir`/tensorboard.
        validation_freq: epochs between tests. With as many as there are epochs, the test set is looked at once.
        keep: "last", or "best": the weights of the epoch that tested best, by images that are then no longer a test
            but a choice; see `validation_split` of `load_dataset`.
        **changes: fields of the recipe to change, such as `epochs=2`.

    Returns:
        A Run. `report["top1_accuracy"]` is the share of test images that the trained network gets right, 0 to 1.

    Raises:
        ValueError: for an unknown name or field, a network that does not fit the images, or another run's checkpoint.
        FileExistsError: if `workdir` holds another run. OSError: if it cannot be written; before training either way.
        RuntimeError: if TensorFlow gives up: no memory, a damaged image, a machine lost. The last checkpoint stays.
        FloatingPointError: if the loss is no longer finite; the last checkpoint stays.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when a checkpoint is written.
    """
    devices = Devices(devices)
    keras.utils.set_random_seed(seed)
    if deterministic:
        devices.make_deterministic()
    recipe = get_recipe(recipe, **changes) if isinstance(recipe, str) else changed(recipe, **changes)
    dataset = _as_tested(as_dataset(dataset), recipe)
    check(dataset, recipe, devices, precision, validation_freq, checkpoint_every, keep)
    steps_per_epoch, steps = recipe.steps(len(dataset.train))
    if isinstance(model, keras.Model) and devices.replicas > 1:
        raise ValueError(
            "`model` should be a name, a ResNetSpec, or a function that gives a Keras model, on several devices: one "
            f"that exists is on one of them. Received: {model.name}"
        )
    with devices.scope():
        model = network_for(model, dataset, recipe, precision, sync_batch_norm)
        compile_for(model, recipe, steps, jit_compile(xla))
        settings = settings_of(model, dataset, recipe, seed, sync_batch_norm) | {"keep": keep}
        folder = workdir and prepare(workdir, settings, checkpoint_size(model), overwrite, resume, devices.is_chief)
        title = f"{model.name} on {dataset.name}"
        every, best = checkpoint_every, keep == "best"
        recorder = CheckpointCallback(folder, settings, steps_per_epoch, recipe.batch_size, every, title, devices, best)
        if resume:
            recorder.resume(model)
    images = Images(dataset, recipe, seed, devices)
    with devices.explained():
        _fit(model, images, recorder, steps, tensorboard, validation_freq)
        return _finished(model, images, recorder)


class Images:
    """The batches of a run, as its devices want them."""

    def __init__(self, dataset, recipe, seed, devices):
        self.dataset, self.recipe, self.seed, self.devices = dataset, recipe, seed, devices

    def for_training(self, first, steps):
        """Steps of the run from `first` on."""
        return self.devices.distribute(
            lambda *share: training_batches(self.dataset, self.recipe, steps, self.seed, first, share),
            self.recipe.batch_size,
        )

    def for_test(self):
        """All test images."""
        dataset, batch_size = self.dataset, self.recipe.batch_size
        return self.devices.distribute_test(
            lambda *share: evaluation_batches(dataset.test, dataset, batch_size, share), len(dataset.test), batch_size
        )

    def for_statistics(self):
        """Images as for training, on one device, for `recompute_statistics`."""
        batches = training_batches(self.dataset, self.recipe, BATCHES, self.seed)
        return (images for images, _ in batches)


def _as_tested(dataset, recipe):
    """The data set with the recipe's test images."""
    if recipe.test_size is None:
        return dataset
    changes = {"size": recipe.test_size, "resize": recipe.test_resize, "interpolation": recipe.test_interpolation}
    return replace(dataset, preprocessing=replace(dataset.preprocessing, **changes))


def check(dataset, recipe, devices, precision, validation_freq, checkpoint_every, keep):
    """Raises ValueError for what does not go together."""
    if dataset.train is None:
        raise ValueError(f"`dataset` should have images to train on. Received: {dataset.name}, which only tests")
    if len(dataset.class_names) < 2:
        raise ValueError(f"`dataset` should have two classes at least. Received: {list(dataset.class_names)}")
    recipe.steps(len(dataset.train))  # at least one
    if keep not in KEEP:
        raise unknown_name_error("keep", keep, KEEP)
    if keep == "best" and (recipe.ema_decay or validation_freq != 1 or devices.machines > 1):
        raise ValueError(
            '`keep` should be "last" with averaged weights, a `validation_freq` other than 1, or several machines. '
            "Received: keep='best'"
        )
    devices.check_batch(recipe.batch_size)
    counts = {"validation_freq": validation_freq, "checkpoint_every": checkpoint_every}
    check_integers(**{name: count for name, count in counts.items() if count is not None})
    if recipe.schedule == "plateau" and validation_freq != 1:
        raise ValueError(
            f'`validation_freq` should be 1 with the schedule "plateau". Received: validation_freq={validation_freq}'
        )
    if precision == "mixed_float16" and devices.replicas > 1:  # Keras looks for overflows on the first replica alone
        raise ValueError(
            "`precision` should be mixed_bfloat16 or float32 on several devices. Received: precision='mixed_float16'"
        )


def _fit(model, images, recorder, steps, tensorboard, validation_freq):
    """`model.fit` from where the recorder is to the end."""
    recipe, display = images.recipe, ProgressCallback(recorder, steps, images.recipe.batch_size)
    callbacks = [recorder, display]
    if recipe.schedule == "plateau":
        recorder.plateau = Plateau(recipe.patience, recorder.position.plateau)
        callbacks.insert(0, recorder.plateau)
    if recipe.ema_decay:
        callbacks.insert(0, EMACallback(images.for_statistics))
    if tensorboard and recorder.folder and recorder.devices.is_chief:
        callbacks.append(keras.callbacks.TensorBoard(recorder.folder / TENSORBOARD))
    tests = images.for_test()
    with interruptible(recorder), display.line:
        for first_epoch, last_epoch, length in _stretches(recorder.position.step, recorder.steps_per_epoch, steps):
            model.fit(
                images.for_training(recorder.position.step, (last_epoch - first_epoch) * length),
                validation_data=tests,
                validation_freq=validation_freq,
                initial_epoch=first_epoch,
                epochs=last_epoch,
                steps_per_epoch=length,
                callbacks=[*images.devices.callbacks, *callbacks],
                shuffle=False,  # the pipeline does
                verbose=0,
            )


def _stretches(step, steps_per_epoch, steps):
    """(first epoch, epoch to stop before, steps in each): what is left of a run, as stretches of equal epochs.

    The rest of an interrupted epoch comes first, the beginning of one that `iterations` cuts short comes last.
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


def _info(dataset):
    """What the model should know of the images it was trained on."""
    return {
        "weights": f"trained on {dataset.name}",
        "preprocessing": dataset.preprocessing.to_config(),
        "class_names": list(dataset.class_names),
    }


def _measure(model, images, recorder):
    """Accuracies on the test images, shares of 1.

    The epoch whose weights are kept has measured them already if it was tested, and if its weights are the final ones:
    averaged weights have got their batch-norm statistics anew since then.
    """
    history = recorder.position.history
    last = history[recorder.best_epoch - 1 if recorder.keep_best else -1]
    if "val_accuracy" in last and not images.recipe.ema_decay:
        measured = {name: last[f"val_{name}"] for name in ("accuracy", "top5_accuracy", "loss")}
    else:
        measured = model.evaluate(images.for_test(), verbose=0, return_dict=True)
    return {"top1_accuracy": measured["accuracy"], "top5_accuracy": measured["top5_accuracy"], "loss": measured["loss"]}


def _speed(position):
    trained = sum(row["images_per_s"] for row in position.history) / max(len(position.history), 1)
    return {"wall_time_s": round(position.seconds, 1), "training_images_per_s": round(trained, 1)}


def _finished(model, images, recorder):
    """Judges the trained network and leaves everything: the Run."""
    recipe, folder = images.recipe, recorder.folder
    if recipe.ema_decay:
        use_averages(model, images.for_statistics())
    if recorder.keep_best:
        recorder.restore_best(model)
    model.info = {**model_info(model), **_info(images.dataset)}
    report = {**recorder.settings, **_measure(model, images, recorder), **_speed(recorder.position)}
    if LOSSES[recipe.loss][1]:
        model.layers[-1].activation = keras.activations.softmax
    if folder and recorder.devices.is_chief:
        write_run(model, report, folder)
    model = clone(model) if recorder.devices.replicas > 1 else model  # where `predict_on_batch` sees a batch once
    return Run(model, columns(recorder.position.history), report)
