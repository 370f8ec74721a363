"""RunOptions: how a run is carried out, as opposed to what it trains (the model, the data set and the recipe)."""

from dataclasses import dataclass, fields, replace
from typing import Any

from keras_resnet.errors import check_integers, check_known
from keras_resnet.precision import COMPUTED, check_precision
from keras_resnet.training.trackers import TRACKERS

MAX_SEED = 2**31 - 1
"""Largest seed of NumPy, TensorFlow and JAX alike."""


@dataclass(frozen=True)
class RunOptions:
    """Options that `train`, `finetune`, `tune` and `degradation` have in common.

    These functions take the fields as keyword arguments (`train(seed=3)`), or one object (`train(options=options)`).

    Example:

    >>> import keras_resnet
    >>> options = keras_resnet.RunOptions(seed=3, deterministic=True)
    >>> run = keras_resnet.train("resnet20", "digits", options=options, epochs=1)  # doctest: +SKIP
    >>> options.seed, options.precision
    (3, None)

    Raises:
        ValueError: on construction, for an unknown precision or tracker, a seed that is no integer from 0 to MAX_SEED,
            or a `checkpoint_every` below 1.
    """

    seed: int = 0
    """Seed of the initial weights, the order of the images and the augmentation."""
    devices: int | None = None
    """Number of GPUs of this machine to use, on JAX also TPUs; without them, on TensorFlow, of logical devices to split
    its CPU into; None: all GPUs. torch uses one. Several machines find each other by TF_CONFIG (see
    `training/distribution.py`), and share the workdir."""
    precision: str | None = None
    """"float32", "bfloat16" or "float16" (the latter two with float32 weights) for a network given by name or spec;
    None: Keras's global dtype policy. A Keras model keeps its own policy."""
    deterministic: bool = False
    """Whether every run on this machine gives the same numbers, bit by bit; a little slower."""
    checkpoint_every: int | None = None
    """Steps between checkpoints within an epoch; None: only after each epoch."""
    resume: bool = False
    """Whether to continue the run in the workdir; if there is none yet, it starts."""
    overwrite: bool = False
    """Whether to remove an earlier run from the workdir."""
    xla: bool | None = None
    """Whether XLA compiles the training step; None: not on TensorFlow's CPU, where it halves the speed."""
    log: str | None = None
    """Where to log the metrics: "tensorboard", in the workdir, "wandb" or "mlflow"; None: nowhere but in the
    run's own history. A resumed run is a new run of wandb and MLflow, which begins with the interrupted epoch."""
    profile: bool = False
    """Whether to write a trace of steps 11 to 15 for TensorBoard's profiler to `workdir`/tensorboard."""

    def __post_init__(self):
        if self.precision is not None:
            check_precision(self.precision, COMPUTED)
        check_integers(0, MAX_SEED, seed=self.seed)
        if self.checkpoint_every is not None:
            check_integers(checkpoint_every=self.checkpoint_every)
        if self.log is not None:
            check_known("log", self.log, TRACKERS)


def split_options(options: RunOptions | None, keywords: dict[str, Any]) -> tuple[RunOptions, dict[str, Any]]:
    """(options with the keywords that are fields of RunOptions, the other keywords, which change the recipe)."""
    given = {field.name: keywords[field.name] for field in fields(RunOptions) if field.name in keywords}
    others = {name: value for name, value in keywords.items() if name not in given}
    return replace(options or RunOptions(), **given), others
