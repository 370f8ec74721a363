"""Checkpoints: weights, optimizer, metrics, random states and the state of the run, in one safetensors file."""

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

import keras
import numpy as np

from keras_resnet.errors import bounded_repr, error_summary, value_error
from keras_resnet.files import atomic_write, local_copy
from keras_resnet.schema import parse_json
from keras_resnet.training.ema import sync_variables

BEST_WEIGHTS = "the weights of this run's best epoch"
MAX_STATE_BYTES = 2**26
"""Longest JSON text of a TrainingState: four times that of the longest run, see `recipe.py`."""


class Epoch(TypedDict):
    """A row of a run's history; besides these values it has the metrics, those of the test as "val_..."."""

    epoch: int
    step: int
    learning_rate: float
    images_per_s: float
    seconds: float


@dataclass(frozen=True)
class TrainingState:
    """Progress of a run."""

    step: int = 0
    """Optimizer steps so far."""
    seconds: float = 0.0
    """Time spent on them."""
    history: tuple[Epoch, ...] = ()
    """The metrics after each epoch."""
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """{class name: state} of the callbacks that have `get_state` and `set_state`."""
    stopped: bool = False
    """Whether a callback ended the run early."""

    def check(self, steps_per_epoch, num_steps, training_metrics, test_metrics):
        """Raises ValueError for a state that no run of this length, with these metrics, reaches."""
        if not 0 <= self.step <= num_steps:
            raise value_error("step", self.step, f"from 0 to {num_steps}, the steps of the run")
        if self.seconds < 0:
            raise value_error("seconds", self.seconds, "0 or more")
        round_up = steps_per_epoch - 1 if self.stopped or self.step == num_steps else 0
        epochs = (self.step + round_up) // steps_per_epoch
        ends = [(epoch, min(epoch * steps_per_epoch, self.step)) for epoch in range(1, epochs + 1)]
        if [(row["epoch"], row["step"]) for row in self.history] != ends:
            expected = f"a row for each of {epochs} epochs, which end every {steps_per_epoch} steps"
            raise value_error("history", self.history, expected)
        for row in self.history:
            tested = any(name.startswith("val_") for name in row)
            names = [*training_metrics, *(f"val_{metric}" for metric in test_metrics if tested)]
            if not all(isinstance(row.get(name), float) for name in names):
                raise value_error("history", row, f"numbers for {names}")


def save_checkpoint(path, model, state, settings, write=True):
    """Writes all variables of a compiled model, and the state; an earlier file stays until the new one is complete.

    Args:
        path: a .safetensors file.
        model: compiled keras.Model.
        state: TrainingState.
        settings: JSON values that identify the run; `load_checkpoint` refuses others.
        write: whether this machine writes the file; all machines have to collect the values.

    Raises:
        FloatingPointError: if a variable is not finite; then nothing is written.
        OSError: if the file cannot be written.
    """
    arrays = _arrays(_variables(model))
    for name, array in arrays.items():
        if not _is_finite(array):
            raise FloatingPointError(f"The weights are no longer finite ({name}) after step {state.step}.")
    if write:
        _write(path, arrays, {"state": json.dumps(asdict(state)), "settings": json.dumps(settings)})


def save_best(path, model):
    """Writes the model's variables, without the optimizer's."""
    sync_variables(model)
    _write(path, _arrays(_numbered("model", model.variables)))


def load_best(path, model):
    """Restores what `save_best` wrote; raises as `check_best`."""
    variables = _numbered("model", model.variables)
    with _open(path, BEST_WEIGHTS) as file:
        _check_arrays(file, variables)
        _assign(file, variables)


def check_best(path, model):
    """Raises ValueError for a damaged file, or one of another model."""
    with _open(path, BEST_WEIGHTS) as file:
        _check_arrays(file, _numbered("model", model.variables))


def load_checkpoint(path, model, settings, restore):
    """Restores what `save_checkpoint` wrote; overwrites the model's and the optimizer's variables.

    Args:
        path: the checkpoint.
        model: compiled model that has built its metrics.
        settings: those of the run.
        restore: function that restores the rest of a run from the TrainingState. It raises ValueError for one that the
            run cannot have, which leaves the model as it was.

    Returns:
        The values of the metrics' variables, which the next `fit` resets.

    Raises:
        ValueError: for a damaged file, a checkpoint with other settings, or of another model or optimizer.
        OSError: if the file cannot be read.
    """
    with _open(path, "a checkpoint of this run") as file:
        metadata = file.metadata() or {}
        if missing := sorted({"state", "settings"} - metadata.keys()):
            raise ValueError(f"its metadata have no {missing}")
        check_settings(parse_json(metadata["settings"], dict[str, Any], "settings"), settings, path)
        state = parse_json(metadata["state"], TrainingState, "state", MAX_STATE_BYTES)
        _check_arrays(file, _variables(model))
        restore(state)
        metrics = _numbered("metrics", model.metrics_variables)
        _assign(file, {name: variable for name, variable in _variables(model).items() if name not in metrics})
        return [*map(file.get_tensor, metrics)]


def _write(path, arrays, metadata=None):
    from safetensors.numpy import save_file

    with atomic_write(path) as temporary:
        save_file(arrays, temporary, metadata=metadata)


@contextmanager
def _open(path, expected):
    """An open safetensors file; an error within the block becomes one that names what the file should be."""
    from safetensors import SafetensorError, safe_open

    try:
        with local_copy(path) as local, safe_open(local, "numpy") as file:
            yield file
    except SettingsMismatch:
        raise
    except (SafetensorError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"Expected {expected} ({error_summary(error)}). Received: {path}") from error


def _check_arrays(file, variables):
    """Raises ValueError unless the file has the names, shapes and dtypes of the variables, and finite numbers."""
    if differing := sorted(variables.keys() ^ set(file.keys())):
        raise ValueError(f"variables in only one of file and model: {bounded_repr(differing[:5])}")
    for name, variable in variables.items():
        array, expected = file.get_tensor(name), _arrays({name: variable})[name]
        if (array.shape, array.dtype) != (expected.shape, expected.dtype):
            wanted = f"shape {expected.shape} and dtype {expected.dtype}"
            raise ValueError(f"{name} should have {wanted}, has {array.shape} and {array.dtype}")
        if not _is_finite(array):
            raise ValueError(f"{name} should have finite numbers")


def _is_finite(array):
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _assign(file, variables):
    for name, variable in variables.items():
        variable.assign(file.get_tensor(name))


OVERWRITE_HINT = "Choose another {}, or replace it by --overwrite (overwrite=True)."
"""What to do when a "folder" or "file" belongs to a run with other settings."""


class SettingsMismatch(ValueError):
    """A file or folder belongs to a run with other settings."""


def check_settings(found, expected, path, hint=""):
    """Compares the settings of an earlier run with those of this one; versions of libraries may differ.

    Args:
        found: settings of the earlier run, JSON values.
        expected: settings of this run.
        path: the file in which `found` was.
        hint: what to do if they differ.

    Raises:
        SettingsMismatch: with the first value that differs.
    """
    for name, earlier, now in _differences(found, json.loads(json.dumps(expected))):
        if not name.startswith("versions"):
            raise SettingsMismatch(
                f"The run to resume should have the same settings; {name} was {bounded_repr(earlier)} there. "
                f"Received: {name}={bounded_repr(now)}, in {path}" + (hint and f". {hint}")
            )


def _differences(one, other, name=""):
    """(dotted name, value in one, value in the other) of all values that differ between two nested dicts."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from _differences(one.get(key), other.get(key), f"{name}.{key}".lstrip("."))
    elif one != other:
        yield name, one, other


def _variables(model):
    """{name: variable} of the model, its optimizer and its metrics."""
    sync_variables(model)
    return (
        _numbered("model", model.variables)
        | _numbered("optimizer", model.optimizer.variables)
        | _numbered("metrics", model.metrics_variables)
    )


def _numbered(group, variables):
    """{group/index: variable}: Keras's own names depend on what else the process has created."""
    return {f"{group}/{index}": variable for index, variable in enumerate(variables)}


def _arrays(variables):
    return {name: np.asarray(keras.ops.convert_to_numpy(value), order="C") for name, value in variables.items()}
