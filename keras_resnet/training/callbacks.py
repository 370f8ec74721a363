"""What happens between steps: progress is shown, checkpoints are written, trouble is noticed."""

import gc
import math
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from keras_resnet.training.checkpoints import TrainingState, load_best, load_checkpoint, save_best, save_checkpoint
from keras_resnet.training.curves import draw_curves
from keras_resnet.training.ema import averaged, synchronise
from keras_resnet.training.workdir import BEST, CHECKPOINT, CURVES, HISTORY, write_history


class Interrupted(KeyboardInterrupt):
    """The run was stopped from outside, between two steps and after a checkpoint."""


class CheckpointCallback(keras.callbacks.Callback):
    """Counts the steps of a run, and keeps it on disk.

    Args:
        folder: Path, or None to write nothing.
        settings: what the checkpoints say of the run.
        steps_per_epoch: of the whole epochs.
        batch_size: images a step.
        every: steps between checkpoints within an epoch; None: only after it.
        title: above the curves.
        devices: Devices. All machines collect the numbers of a checkpoint, the chief writes them.
        keep_best: whether the weights of the epoch that tested best are kept.

    Raises:
        FloatingPointError: at the end of the step after which the loss is not finite.
        Interrupted: after Ctrl-C or SIGTERM, see `interruptible`.
    """

    def __init__(self, folder, settings, steps_per_epoch, batch_size, every, title, devices, keep_best=False):
        super().__init__()
        self.keep_best, self.best_weights = keep_best, None
        self.folder, self.settings, self.steps_per_epoch = folder, settings, steps_per_epoch
        self.batch_size, self.every, self.title, self.devices = batch_size, every, title, devices
        self.position, self.stopped_by, self.plateau = TrainingState(), None, None
        self.unfinished = []
        """What an interrupted epoch had measured so far: the values of the metrics' variables."""

    def resume(self, model):
        """Puts the model, its optimiser and this where the checkpoint is, if there is one."""
        if self._has_checkpoint():
            self.position, metrics = load_checkpoint(self.folder / CHECKPOINT, model, self.settings)
            self.unfinished = metrics if self.position.step % self.steps_per_epoch else []
            self._publish()  # the process may have been killed between the checkpoint and these

    def on_epoch_begin(self, epoch, logs=None):
        self.began, self.start = time.perf_counter(), self.position
        if self.unfinished:
            self._restore_metrics()
        self.unfinished = []

    def _restore_metrics(self):
        if len(self.model.metrics_variables) < len(self.unfinished):  # Keras makes them in the first step
            nothing = keras.ops.zeros((1, self.model.output_shape[-1]))
            self.model.compute_metrics(None, nothing, nothing)
        for variable, value in zip(self.model.metrics_variables, self.unfinished, strict=True):
            variable.assign(value)

    def on_train_batch_end(self, batch, logs=None):
        step = self.start.step + batch + 1
        self.position = replace(self.position, step=step, seconds=self._seconds())
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"The loss became {logs['loss']} at step {step} (epoch {(step - 1) // self.steps_per_epoch + 1}). "
                + (f"The last good checkpoint is in {self.folder}." if self._has_checkpoint() else "")
            )
        if batch + 1 == self.params["steps"]:
            return  # the checkpoint after the epoch also knows what the epoch measured
        if self.stopped_by or (self.every and step % self.every == 0):
            for callback in self.devices.callbacks:
                callback.on_epoch_end(None)
            self._save()
        self._stop_if_asked()

    def _stop_if_asked(self):
        if self.stopped_by:
            step = self.position.step
            raise Interrupted(f"Stopped after step {step}. To go on, repeat the command with --resume (resume=True).")

    def on_epoch_end(self, epoch, logs=None):
        steps, training = self.position.step - self.start.step, self.position.seconds - self.start.seconds
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row = {"epoch": epoch + 1, "step": self.position.step, **logs, "learning_rate": rate}
        row |= {"images_per_s": round(steps * self.batch_size / training, 1), "seconds": round(training, 3)}
        self.position = replace(
            self.position, seconds=self._seconds(), history=(*self.position.history, row), plateau=self._plateau()
        )
        if self.keep_best and self.best_epoch == epoch + 1:
            self._save_best()
        self._save()
        self._forget_all_but_best()
        self._publish()
        self._stop_if_asked()

    @property
    def best_epoch(self):
        """Number of the epoch that tested best, of several the first; None before one was tested."""
        tested = [row for row in self.position.history if "val_accuracy" in row]
        return max(tested, key=lambda row: row["val_accuracy"])["epoch"] if tested else None

    def restore_best(self, model):
        """Gives the model the weights of its best epoch."""
        if self.folder:
            load_best(self.folder / BEST.format(self.best_epoch), model)
        else:
            model.set_weights(self.best_weights)

    def _save_best(self):
        """Before the checkpoint that knows of it: whatever epoch a checkpoint calls the best, its weights are there."""
        if not self.folder:
            synchronise(self.model)
            self.best_weights = self.model.get_weights()
        elif self.devices.is_chief:
            save_best(self.folder / BEST.format(self.best_epoch), self.model)

    def _forget_all_but_best(self):
        if self.folder and self.devices.is_chief:
            for path in self.folder.glob(BEST.format("*")):
                if path.name != BEST.format(self.best_epoch):
                    path.unlink()

    def _publish(self):
        """Writes what people read: history and curves."""
        if self.folder and self.devices.is_chief and self.position.history:
            write_history(self.position.history, self.folder / HISTORY)
            draw_curves(self.position.history, self.folder / CURVES, self.title)

    def _has_checkpoint(self):
        return bool(self.folder) and (self.folder / CHECKPOINT).exists()

    def _save(self):
        if self.folder:
            save_checkpoint(
                self.folder / CHECKPOINT, self.model, self.position, self.settings, write=self.devices.is_chief
            )

    def _plateau(self):
        if self.plateau is None:
            return {}
        return {name: getattr(self.plateau, name) for name in Plateau.STATE}

    def _seconds(self):
        return self.start.seconds + time.perf_counter() - self.began


class Plateau(keras.callbacks.ReduceLROnPlateau):
    """Keras's, but it goes on where the run was interrupted; Keras's begins anew with every `fit`."""

    STATE = ("best", "wait", "cooldown_counter")

    def __init__(self, patience, state):
        super().__init__(monitor="val_accuracy", mode="max", factor=0.1, patience=patience)
        self._reset()
        vars(self).update(state)

    def on_train_begin(self, logs=None):
        """Nothing is reset here."""


class EMACallback(keras.callbacks.Callback):
    """Tests with the averaged weights.

    Args:
        batches: function that gives training images for the batch-norm statistics.
    """

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_test_begin(self, logs=None):
        self.within = averaged(self.model, self.batches)
        self.within.__enter__()

    def on_test_end(self, logs=None):
        self.within.__exit__(None, None, None)


class ProgressCallback(keras.callbacks.Callback):
    """On a terminal a line that moves, with images/s and the time left; elsewhere a line an epoch.

    Its `line` is a context manager: the run takes place within it.

    Args:
        recorder: the CheckpointCallback of the run, called before this.
        steps: of the whole run.
        batch_size: images a step.
    """

    def __init__(self, recorder, steps, batch_size):
        super().__init__()
        self.recorder, self.steps, self.batch_size = recorder, steps, batch_size
        self.console = Console(stderr=True, highlight=False)
        columns = ("{task.description}", BarColumn(), "{task.fields[rate]:,.0f} images/s", TimeRemainingColumn())
        columns = [TextColumn(column) if isinstance(column, str) else column for column in columns]
        self.line = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task = self.line.add_task("training", total=steps, completed=recorder.position.step, rate=0.0)

    def on_epoch_begin(self, epoch, logs=None):
        self.marks = []

    def on_train_batch_end(self, batch, logs=None):
        step = self.recorder.position.step
        self.marks = [*self.marks[-50:], (step, time.perf_counter())]
        self.line.update(self.task, completed=step, rate=self._rate(), description=_errors(logs))

    def _rate(self):
        (first, began), (last, now) = self.marks[0], self.marks[-1]
        return (last - first) * self.batch_size / (now - began) if last > first else 0.0

    def on_epoch_end(self, epoch, logs=None):
        row = self.recorder.position.history[-1]
        left = (self.steps - row["step"]) * self.batch_size / row["images_per_s"]
        tested = f", test error {100 * (1 - row['val_accuracy']):.2f} %" if "val_accuracy" in row else ""
        self.console.print(
            f"epoch {row['epoch']}, step {row['step']:,} of {self.steps:,}: {_errors(row)}{tested}, "
            f"{row['images_per_s']:,.0f} images/s, "
            f"{timedelta(seconds=round(left))} left",
            soft_wrap=True,
        )


def _errors(logs):
    return f"loss {logs['loss']:.4f}, training error {100 * (1 - logs['accuracy']):.2f} %"


@contextmanager
def run_in_series(name):
    """Around a run that is one of several: what it leaves in memory is freed; one that is interrupted says its name."""
    try:
        yield
    except Interrupted:
        raise Interrupted(f"Stopped in {name}. To go on, repeat the command without --overwrite.") from None
    finally:
        gc.collect()  # models refer to themselves; `keras.utils.clear_session` would also reset the dtype policy


def _in_main_thread():
    return threading.current_thread() is threading.main_thread()


@contextmanager
def interruptible(recorder):
    """Within the block Ctrl-C and SIGTERM wait for the end of the step and a checkpoint; a second one does not wait.

    One of several machines cannot wait: the others would, for its part of a sum. There a signal ends the process.
    """
    can_wait = recorder.folder and recorder.devices.machines == 1
    signals = (signal.SIGINT, signal.SIGTERM) if can_wait and _in_main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in signals}

    def stop(number, frame):
        recorder.stopped_by = number
        signal.signal(number, handlers[number])

    for number in signals:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
