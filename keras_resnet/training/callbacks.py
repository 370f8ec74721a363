"""Callbacks of a run: checkpoints, the learning rate on plateaus, progress; and its interruption by a signal."""

import gc
import math
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from keras_resnet.errors import check_known
from keras_resnet.schema import checked
from keras_resnet.training.checkpoints import (
    TrainingState,
    check_best,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from keras_resnet.training.ema import sync_variables
from keras_resnet.training.workdir import BEST, CHECKPOINT, CURVES, HISTORY, write_history


class TrainingInterrupted(KeyboardInterrupt):
    """The run was stopped by a signal, between two steps and after a checkpoint.

    Args:
        message: what happened, and how to continue.
        signal_number: the signal, of which the command line makes its exit status.
    """

    def __init__(self, message, signal_number):
        super().__init__(message)
        self.signal_number = signal_number


class CheckpointCallback(keras.callbacks.Callback):
    """Counts the steps of a run, and writes its checkpoints, its history and its curves.

    Args:
        workdir: Path or UPath, or None to write nothing.
        settings: JSON values that identify the run, stored in its checkpoints.
        data: RunData. All machines collect the values of a checkpoint; the chief writes them.
        checkpoint_every: steps between checkpoints within an epoch; None: only after each epoch.
        keep_best: whether to keep the weights of the epoch with the highest test accuracy.
        callbacks: callbacks that are called before this one. The state of those with `get_state` and `set_state` is
            saved; no two of these should have the same class.

    Raises:
        FloatingPointError: at the end of a step whose loss is not finite.
        TrainingInterrupted: after Ctrl-C or SIGTERM, see `stop_on_signal`.
    """

    def __init__(self, workdir, settings, data, checkpoint_every=None, keep_best=False, callbacks=()):
        super().__init__()
        self.workdir, self.settings, self.devices, self.objective = workdir, settings, data.devices, data.objective
        self.steps_per_epoch, self.num_steps = data.steps_per_epoch, data.num_steps
        self.batch_size = data.recipe.batch_size
        self.checkpoint_every, self.keep_best = checkpoint_every, keep_best
        self.state, self.best_weights, self.signal = TrainingState(), None, None
        self.stateful = {type(it).__name__: it for it in callbacks if hasattr(it, "get_state")}
        self.epoch_metrics = []
        """Values of the metrics' variables in the middle of an interrupted epoch."""

    def resume(self, model):
        """Restores the model, its optimizer and the state of the run from the checkpoint, if there is one."""
        if self._has_checkpoint():
            restore = partial(self._restore, model)
            metrics = load_checkpoint(self.workdir / CHECKPOINT, model, self.settings, restore)
            self.epoch_metrics = metrics if self.state.step % self.steps_per_epoch else []
            self._publish()  # the process may have been killed between the checkpoint and these files

    def _restore(self, model, state):
        """Restores the state of the run and of the callbacks, after a check that it can be that of this run."""
        metrics = self.objective.training_metrics, self.objective.results.values()
        state.check(self.steps_per_epoch, self.num_steps, *metrics)
        self.state = state
        for name, values in state.callbacks.items():
            check_known("callbacks", name, self.stateful)
            self.stateful[name].set_state(values)
        if self.keep_best and self.best_epoch and self.workdir:
            check_best(self.workdir / BEST.format(self.best_epoch), model)

    def on_epoch_begin(self, epoch, logs=None):
        self.began, self.start = time.perf_counter(), self.state
        for variable, value in zip(self.model.metrics_variables, self.epoch_metrics, strict=False):  # or none
            variable.assign(value)
        self.epoch_metrics = []

    def on_train_batch_end(self, batch, logs=None):
        step = self.start.step + batch + 1
        self.state = replace(self.state, step=step, seconds=self._seconds())
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"The loss became {logs['loss']} at step {step} (epoch {(step - 1) // self.steps_per_epoch + 1}). "
                + (f"The last good checkpoint is in {self.workdir}." if self._has_checkpoint() else "")
            )
        if batch + 1 == self.params["steps"]:
            return  # the checkpoint of `on_epoch_end` also holds the metrics of the epoch
        if self.signal or (self.checkpoint_every and step % self.checkpoint_every == 0):
            for callback in self.devices.callbacks:
                callback.on_epoch_end(None)
            self._save()
        self._stop_if_signalled()

    def _stop_if_signalled(self):
        if self.signal:
            raise TrainingInterrupted(
                f"Stopped after step {self.state.step}. To continue, repeat the command with --resume (resume=True).",
                self.signal,
            )

    def on_epoch_end(self, epoch, logs=None):
        steps, training = self.state.step - self.start.step, self.state.seconds - self.start.seconds
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row = {"epoch": epoch + 1, "step": self.state.step, **logs, "learning_rate": rate}
        images_per_s = steps * self.batch_size / training
        row |= {"images_per_s": float(f"{images_per_s:.4g}"), "seconds": round(training, 3)}
        history, stopped = (*self.state.history, row), self.model.stop_training
        self.state = replace(self.state, seconds=self._seconds(), history=history, stopped=stopped)
        if self.keep_best and self.best_epoch == epoch + 1:
            self._save_best()
        self._save()
        self._publish()
        self._stop_if_signalled()

    @property
    def best_epoch(self):
        """Number of the epoch with the best test result, the first of equal ones; None before the first test."""
        value = f"val_{self.objective.monitor}"
        tested = [row for row in self.state.history if value in row]
        return max(tested, key=lambda row: row[value])["epoch"] if tested else None

    def restore_best(self, model):
        """Gives the model the weights of its best epoch."""
        if self.workdir:
            load_best(self.workdir / BEST.format(self.best_epoch), model)
        else:
            model.set_weights(self.best_weights)

    def _save_best(self):
        """Comes before the checkpoint, so that the weights of the epoch that a checkpoint calls the best exist."""
        if not self.workdir:
            sync_variables(self.model)
            self.best_weights = self.model.get_weights()
        elif self.devices.is_chief:
            save_best(self.workdir / BEST.format(self.best_epoch), self.model)

    def _publish(self):
        """Removes the weights of epochs that are no longer the best, and writes the history and the curves."""
        if self.workdir and self.devices.is_chief and self.state.history:
            for path in self.workdir.glob(BEST.format("*")):
                if path.name != BEST.format(self.best_epoch):
                    path.unlink()
            write_history(self.state.history, self.workdir / HISTORY)
            title, curves = self.settings["dataset"], self.workdir / CURVES
            self.objective.draw_curves(self.state.history, self.settings["model"], curves, title)

    def _has_checkpoint(self):
        return bool(self.workdir) and (self.workdir / CHECKPOINT).exists()

    def _save(self):
        if self.workdir:
            path, states = self.workdir / CHECKPOINT, {name: it.get_state() for name, it in self.stateful.items()}
            self.state = replace(self.state, callbacks=states)
            save_checkpoint(path, self.model, self.state, self.settings, write=self.devices.is_chief)

    def _seconds(self):
        return self.start.seconds + time.perf_counter() - self.began


class _SavedState:
    """A callback of Keras with a state that can be saved: Keras resets it at the start of every `fit`."""

    def __init__(self, metric, **arguments):
        super().__init__(monitor=f"val_{metric}", mode="max", **arguments)
        super().on_train_begin()

    def on_train_begin(self, logs=None):
        """Keeps the state."""

    def get_state(self):
        """The state as JSON values."""
        return {name: getattr(self, name) for name in self.saved}

    def set_state(self, state):
        """Continues from a state of `get_state`; raises ValueError for other values."""
        for name, annotation in self.saved.items():
            setattr(self, name, checked(state.get(name), annotation, f"{type(self).__name__}.{name}"))


class ReduceLROnPlateau(_SavedState, keras.callbacks.ReduceLROnPlateau):
    """Divides the learning rate by 10 when the test accuracy, or the objective's other metric, no longer rises."""

    saved = {"best": float | None, "wait": int, "cooldown_counter": int}


class EarlyStopping(_SavedState, keras.callbacks.EarlyStopping):
    """Ends the run when the test accuracy, or the objective's other metric, no longer rises."""

    saved = {"best": float | None, "wait": int, "best_epoch": int, "stopped_epoch": int}


def callbacks_of(recipe, objective):
    """The callbacks that a recipe asks for; the Objective tells which metric they watch."""
    callbacks = []
    if recipe.schedule == "plateau":
        callbacks.append(ReduceLROnPlateau(objective.monitor, factor=0.1, patience=recipe.plateau_patience))
    if recipe.patience:
        callbacks.append(EarlyStopping(objective.monitor, patience=recipe.patience))
    return callbacks


class ProgressCallback(keras.callbacks.Callback):
    """A progress bar with images/s and the remaining time on a terminal; elsewhere one line per epoch.

    Its `bar` is a context manager in which the run takes place.

    Args:
        checkpoints: the CheckpointCallback of the run, called before this.
        data: RunData.
    """

    def __init__(self, checkpoints, data):
        super().__init__()
        self.checkpoints, self.steps, self.batch_size = checkpoints, data.num_steps, data.recipe.batch_size
        self.objective = data.objective
        self.console = Console(stderr=True, highlight=False)
        error, speed = TextColumn("{task.description}"), TextColumn("{task.fields[speed]}")
        columns = (error, BarColumn(), speed, TimeRemainingColumn())
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        images = [steps * self.batch_size for steps in (self.steps, checkpoints.state.step)]
        self.task = self.bar.add_task("training", total=images[0], completed=images[1], speed="")

    def on_train_batch_end(self, batch, logs=None):
        images = self.checkpoints.state.step * self.batch_size
        speed = _speed(self.bar.tasks[0].speed or 0)
        self.bar.update(self.task, completed=images, description=self.objective.describe_training(logs), speed=speed)

    def on_epoch_end(self, epoch, logs=None):
        row = self.checkpoints.state.history[-1]
        seconds_left = (self.steps - row["step"]) * self.batch_size / row["images_per_s"]
        tested = row.get(f"val_{self.objective.monitor}")
        test_result = "" if tested is None else f", test {self.objective.describe(tested)}"
        self.console.print(
            f"epoch {row['epoch']}, step {row['step']:,} of {self.steps:,}: {self.objective.describe_training(row)}"
            f"{test_result}, {_speed(row['images_per_s'])}, {timedelta(seconds=round(seconds_left))} left",
            soft_wrap=True,
        )


def _speed(images_per_s):
    return f"{images_per_s:,.{0 if images_per_s >= 10 else 2}f} images/s"


@contextmanager
def run_in_series(name):
    """Wraps one run of a series: frees its memory afterwards; an interruption names the run."""
    try:
        yield
    except TrainingInterrupted as error:
        message = f"Stopped in {name}. To continue, repeat the command without --overwrite."
        raise TrainingInterrupted(message, error.signal_number) from None
    finally:
        gc.collect()  # models refer to themselves; `keras.utils.clear_session` would also reset the dtype policy


@contextmanager
def stop_on_signal(checkpoints):
    """Within the block, the first Ctrl-C or SIGTERM stops the run after a step and a checkpoint; the second, at once.

    On several machines a signal ends the process at once: the others would wait for this machine's part of a sum.
    """
    can_wait = checkpoints.workdir and checkpoints.devices.num_machines == 1
    in_main_thread = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGINT, signal.SIGTERM) if can_wait and in_main_thread else ()
    handlers = {number: signal.getsignal(number) for number in signals}

    def stop(number, frame):
        checkpoints.signal = number
        signal.signal(number, handlers[number])

    for number in signals:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
