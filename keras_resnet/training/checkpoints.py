"""Checkpoints: weights, optimizer, metrics, random states and the state of the run, in one safetensors file."""

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import keras
import numpy as np

from keras_resnet.files import atomic_write, local_copy
from keras_resnet.training.ema import sync_variables


@dataclass(frozen=True)
class TrainingState:
    """Progress of a run."""

    step: int = 0
    """Optimizer steps so far."""
    seconds: float = 0.0
    """Time spent on them."""
    history: tuple[dict, ...] = ()
    """The metrics after each epoch."""
    callbacks: dict[str, dict] = field(default_factory=dict)
    """{class name: state} of the callbacks that have `get_state` and `set_state`."""
    stopped: bool = False
    """Whether a callback ended the run early."""


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
    arrays = _arrays(_variables(model) | _numbered("metrics", model.metrics_variables))
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FloatingPointError(f"The weights are no longer finite ({name}) after step {state.step}.")
    if write:
        _write(path, arrays, {"state": json.dumps(asdict(state)), "settings": json.dumps(settings)})


def save_best(path, model):
    """Writes the model's variables, without the optimizer's."""
    sync_variables(model)
    _write(path, _arrays(_numbered("model", model.variables)))


def load_best(path, model):
    """Restores what `save_best` wrote.

    Raises:
        ValueError: for a damaged file, or one of another model.
    """
    with _open(path, "the weights of this run's best epoch") as file:
        _assign(file, set(file.keys()), _numbered("model", model.variables))


def load_checkpoint(path, model, settings):
    """Restores what `save_checkpoint` wrote; overwrites the model's and the optimizer's variables.

    Returns:
        The TrainingState, and the values of the metrics' variables, which the next `fit` creates.

    Raises:
        ValueError: for a damaged file, a checkpoint with other settings, or of another model or optimizer.
        OSError: if the file cannot be read.
    """
    with _open(path, "a checkpoint of this run") as file:
        metadata, names = file.metadata() or {}, set(file.keys())
        state, found = (json.loads(metadata[name]) for name in ("state", "settings"))
        check_settings(found, settings, path)
        metrics = sorted((name for name in names if name.startswith("metrics/")), key=lambda name: int(name[8:]))
        _assign(file, names - set(metrics), _variables(model))
        return TrainingState(**state | {"history": tuple(state["history"])}), [*map(file.get_tensor, metrics)]


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
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"Expected {expected} ({error}). Received: {path}") from error


def _assign(file, names, variables):
    """Assigns arrays of the file to variables, once all names and shapes are known to match."""
    if differing := sorted(variables.keys() ^ names):
        raise ValueError(f"variables in only one of file and model: {differing[:5]}")
    for name, variable in variables.items():
        shape = file.get_slice(name).get_shape()
        if tuple(shape) != tuple(variable.shape):
            raise ValueError(f"{name} should have shape {tuple(variable.shape)}, has {tuple(shape)}")
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
                f"The run to resume should have the same settings; {name} was {earlier!r} there. "
                f"Received: {name}={now!r}, in {path}" + (hint and f". {hint}")
            )


def _differences(one, other, name=""):
    """(dotted name, value in one, value in the other) of all values that differ between two nested dicts."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from _differences(one.get(key), other.get(key), f"{name}.{key}".lstrip("."))
    elif one != other:
        yield name, one, other


def _variables(model):
    """{name: variable} of the model and its optimizer."""
    sync_variables(model)
    return _numbered("model", model.variables) | _numbered("optimizer", model.optimizer.variables)


def _numbered(group, variables):
    """{group/index: variable}: Keras's own names depend on what else the process has created."""
    return {f"{group}/{index}": variable for index, variable in enumerate(variables)}


def _arrays(variables):
    return {name: np.asarray(keras.ops.convert_to_numpy(value), order="C") for name, value in variables.items()}
