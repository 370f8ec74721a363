"""Everything that decides how a run goes on, in one file: weights, optimiser, metrics, random states, the step."""

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import keras
import numpy as np

from keras_resnet.files import atomic_write
from keras_resnet.training.ema import synchronise


@dataclass(frozen=True)
class TrainingState:
    """How far a run is."""

    step: int = 0
    """Steps of the optimiser so far."""
    seconds: float = 0.0
    """Time spent on them."""
    history: tuple[dict, ...] = ()
    """What was measured after each epoch."""
    plateau: dict = field(default_factory=dict)
    """Schedule "plateau": how long the test error has not fallen."""


def save_checkpoint(path, model, position, settings, write=True):
    """Writes all variables of a compiled model, and the position; an earlier file stays until the new one is whole.

    Args:
        path: a .safetensors file.
        model: compiled keras.Model.
        position: TrainingState.
        settings: JSON values that say what run this is; `load_checkpoint` refuses others.
        write: whether this machine writes it; all of them collect the numbers.

    Raises:
        FloatingPointError: if a variable is not finite; nothing is written then.
        OSError: if the file cannot be written.
    """
    arrays = _arrays(_variables(model) | _named("metrics", model.metrics_variables))
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FloatingPointError(f"The weights are no longer finite ({name}) after step {position.step}.")
    if write:
        _write(path, arrays, {"position": json.dumps(asdict(position)), "settings": json.dumps(settings)})


def save_best(path, model):
    """Writes the model's variables alone."""
    synchronise(model)
    _write(path, _arrays(_named("model", model.variables)))


def load_best(path, model):
    """Puts what `save_best` wrote into the model.

    Raises:
        ValueError: for a damaged file, or one of another model.
    """
    with _reading(path, "the weights of this run's best epoch") as file:
        _assign(file, set(file.keys()), _named("model", model.variables))


def load_checkpoint(path, model, settings):
    """Puts everything back where it was; the model's variables are overwritten.

    Returns:
        The TrainingState, and the values of the metrics' variables: the next `fit` creates the variables.

    Raises:
        ValueError: for a damaged file, a checkpoint of other settings, or of another model or optimiser.
        OSError: if the file cannot be read.
    """
    with _reading(path, "a checkpoint of this run") as file:
        metadata, names = file.metadata() or {}, set(file.keys())
        position, there = (json.loads(metadata[name]) for name in ("position", "settings"))
        check_settings(there, settings, path)
        metrics = sorted((name for name in names if name.startswith("metrics/")), key=_place)
        _assign(file, names - set(metrics), _variables(model))
        return TrainingState(**position | {"history": tuple(position["history"])}), [*map(file.get_tensor, metrics)]


def _write(path, arrays, about=None):
    from safetensors.numpy import save_file

    with atomic_write(path) as partial:
        save_file(arrays, partial, metadata=about)


@contextmanager
def _reading(path, expected):
    """An open file; an error within the block says what was expected of it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            yield file
    except OtherRun:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"Expected {expected} ({error}). Received: {path}") from error


def _assign(file, names, variables):
    """Arrays of the file -> variables, once all of them are found to fit."""
    if differing := sorted(variables.keys() ^ names):
        raise ValueError(f"variables that only one of them has: {differing[:5]}")
    for name, variable in variables.items():
        shape = file.get_slice(name).get_shape()
        if tuple(shape) != tuple(variable.shape):
            raise ValueError(f"{name} should be {tuple(variable.shape)}, is {tuple(shape)}")
    for name, variable in variables.items():
        variable.assign(file.get_tensor(name))


OTHERWISE = "Take another {}, or replace it by --overwrite (overwrite=True)."
"""What to do instead of going on with other settings: in another "folder", or "file"."""


class OtherRun(ValueError):
    """The checkpoint belongs to a run with other settings."""


EARLIER = {"keep": "last", "recipe.layer_decay": 1.0}
"""What the runs of earlier versions did, whose settings do not say it."""


def check_settings(found, expected, path, otherwise=""):
    """Compares the settings of two runs.

    Args:
        found: JSON values.
        expected: what they should be.
        path: where they were found.
        otherwise: what to do if they differ, in words.

    Raises:
        OtherRun: with the first value that differs.
    """
    for name, there, here in _differences(found, json.loads(json.dumps(expected))):
        if name.startswith("versions") or (there is None and here == EARLIER.get(name)):
            continue
        raise OtherRun(
            f"The run to resume should have the same settings; {name} was {there!r} there. "
            f"Received: {name}={here!r}, in {path}" + (otherwise and f". {otherwise}")
        )


def _differences(there, here, name=""):
    """(path of the key, value there, value here) for all that differ in two nested dicts."""
    if not (isinstance(there, dict) and isinstance(here, dict)):
        if there != here:
            yield name, there, here
        return
    for key in sorted(there.keys() | here.keys()):
        yield from _differences(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))


def _variables(model):
    """{name: variable}: what a step reads, apart from the images."""
    synchronise(model)
    return _named("model", model.variables) | _named("optimizer", model.optimizer.variables)


def _named(group, variables):
    """By number: the names that Keras gives depend on what else the process has made."""
    return {f"{group}/{index}": variable for index, variable in enumerate(variables)}


def _arrays(variables):
    return {name: np.asarray(keras.ops.convert_to_numpy(value), order="C") for name, value in variables.items()}


def _place(name):
    return int(name.split("/")[1])
