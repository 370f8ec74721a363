"""TRACKERS: where the metrics of a run are logged, by the libraries' own Keras callbacks."""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras

from keras_resnet.errors import check_installed, error_summary, value_error
from keras_resnet.files import local_folder
from keras_resnet.training.workdir import TENSORBOARD

PROFILED_STEPS = (11, 15)
"""First and last step of the profile, after compilation and the first batches."""


@dataclass(frozen=True)
class LoggedRun:
    """What a tracker has to know of a run."""

    workdir: Path | None
    settings: dict
    first_step: int
    """The step at which it starts or continues."""
    profile: bool

    @property
    def name(self):
        """The name of its folder."""
        return self.workdir and self.workdir.name


@dataclass(frozen=True)
class Tracker:
    """A row of TRACKERS."""

    package: str
    """What pip installs."""
    modules: tuple[str, ...]
    """What is imported."""
    start: Callable
    """LoggedRun -> context manager that yields the callbacks."""
    needs_workdir: bool = False


@contextmanager
def _tensorboard(run):
    steps = PROFILED_STEPS if run.profile else 0
    with local_folder(run.workdir / TENSORBOARD) as (folder, upload):
        logger = keras.callbacks.TensorBoard(folder, write_graph=False, profile_batch=steps)
        yield logger, keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: upload())


@contextmanager
def _wandb(run):
    """A run of the project WANDB_PROJECT or "keras_resnet"; WANDB_MODE=offline uploads nothing."""
    import wandb
    from wandb.integration.keras import WandbMetricsLogger

    project = os.environ.get("WANDB_PROJECT", "keras_resnet")
    with (
        local_folder(run.workdir or ".") as (folder, _),
        wandb.init(project=project, name=run.name, dir=folder, config=run.settings),
    ):
        yield (WandbMetricsLogger(initial_global_step=run.first_step),)


@contextmanager
def _mlflow(run):
    """A run of the experiment MLFLOW_EXPERIMENT_NAME at MLFLOW_TRACKING_URI, or in MLflow's local store."""
    import mlflow
    from mlflow.keras import MlflowCallback

    with mlflow.start_run(run_name=run.name):
        mlflow.log_dict(run.settings, "settings.json")
        yield (MlflowCallback(),)


TRACKERS = {
    "tensorboard": Tracker("tensorflow", ("tensorflow", "tensorboard"), _tensorboard, needs_workdir=True),
    "wandb": Tracker("wandb", ("wandb", "tensorflow"), _wandb),
    "mlflow": Tracker("mlflow", ("mlflow",), _mlflow),
}


def _names(options):
    """Names of the trackers of RunOptions: that of `log`, and TensorBoard for `profile`."""
    return [name for name in TRACKERS if name == options.log or (options.profile and name == "tensorboard")]


def check_trackers(options, workdir, num_steps):
    """Checks before a run of `num_steps` steps that its trackers can log it.

    Raises:
        ImportError: if a library is missing.
        ValueError: without the workdir that TensorBoard needs, or if the run cannot be profiled.
    """
    for name in _names(options):
        row, argument = TRACKERS[name], "log" if name == options.log else "profile"
        check_installed(f"`{argument}={getattr(options, argument)!r}`", row.modules, row.package)
        if row.needs_workdir and workdir is None:
            raise value_error("workdir", workdir, f"a folder with `{argument}={getattr(options, argument)!r}`")
    backend = keras.backend.backend()
    if options.profile and (backend == "torch" or (backend == "jax" and sys.version_info < (3, 12))):
        raise value_error("profile", True, f"False with {backend} on this Python: Keras cannot profile it")
    if options.profile and num_steps < PROFILED_STEPS[1]:
        expected = f"False for a run of {num_steps} steps: the steps {PROFILED_STEPS} are profiled"
        raise value_error("profile", True, expected)


@contextmanager
def open_trackers(options, run):
    """Yields the callbacks of the trackers of a LoggedRun, which ends with the block; none if `run` is False.

    Raises:
        RuntimeError: if a tracker cannot start it, such as without a login or a server.
    """
    with ExitStack() as stack:
        callbacks = []
        for name in _names(options) if run else ():
            try:
                callbacks.extend(stack.enter_context(TRACKERS[name].start(run)))
            except Exception as error:  # each library has its own
                raise RuntimeError(f"{name} could not start the run: {error_summary(error)}") from error
        yield callbacks
