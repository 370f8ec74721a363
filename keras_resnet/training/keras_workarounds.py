"""Workarounds for `model.fit` and `model.evaluate` under tf.distribute strategies, in the Keras versions that fail.

Seen in Keras 3.15.1. Before the first step `Trainer._maybe_symbolic_build` averages a batch over the replicas, only to
learn its shapes. This fails on several machines, because TensorFlow cannot average the structure that Keras passes
(keras issue 20585, open since 2024), and on several devices that have different numbers of images. In the first step
`reduce_per_replica` averages scalar losses over an axis 0, which they do not have: this fails on several machines.
Models without a strategy run Keras's own code, unchanged.
"""

import inspect
import types
import warnings

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import trainer


def apply_workarounds(strategy):
    """Replaces the functions of Keras that fail under a strategy; functions that work, in any version, stay.

    Each function is tried on a few numbers first. If Keras no longer has a function with the known arguments, a warning
    is given and nothing replaced. On several machines all have to call this, since they run the trials together.

    Args:
        strategy: a `tf.distribute.MirroredStrategy` or `tf.distribute.MultiWorkerMirroredStrategy`.

    Returns:
        {name of the function: "replaced", "works" (this Keras does not need the workaround) or "unknown"}.
    """
    return {name: _apply(strategy, owner, name, *functions) for owner, name, *functions in WORKAROUNDS}


def _apply(strategy, owner, name, trial, replacement):
    function, known = getattr(owner, name, None), inspect.signature(replacement(None)).parameters
    if function is None or list(inspect.signature(function).parameters) != list(known):
        warnings.warn(
            f"`{name}` of Keras {keras.__version__} has other arguments than keras_resnet knows: if `model.fit` fails "
            "on several devices or machines, use Keras 3.15, or one device.",
            stacklevel=4,
        )
        return "unknown"
    try:
        trial(function, strategy)
        return "works"
    except Exception:  # any error means that the function does not work
        setattr(owner, name, replacement(function))
        return "replaced"


def _reduce_scalars(keras_function):
    """`reduce_per_replica` with the mean over all machines' replicas for scalars.

    With the mean of one machine, TerminateOnNaN and similar callbacks could stop one machine while the others wait.
    """

    def reduce_per_replica(values, strategy, reduction):
        several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        if several and strategy.extended._in_multi_worker_mode() and reduction in ("auto", "mean"):
            return keras.tree.map_structure(lambda value: strategy.reduce("MEAN", value, axis=None), values)
        return keras_function(values, strategy, reduction)

    return reduce_per_replica


def _build_from_one_replica(keras_function):
    """`_maybe_symbolic_build` with the shapes of one replica's images: the others differ only in their number."""

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None and self._distribute_strategy is not None:
            _, _, batches = next(iter(iterator))
            results = self._distribute_strategy.experimental_local_results
            iterator, data_batch = None, keras.tree.map_structure(lambda value: results(value)[0], next(batches))
        return keras_function(self, iterator=iterator, data_batch=data_batch)

    return _maybe_symbolic_build


def _try_reducing(reduce_per_replica, strategy):
    losses = strategy.experimental_distribute_values_from_function(lambda replica: tf.zeros(()))
    reduce_per_replica(losses, strategy, "auto")


def _try_building(maybe_symbolic_build, strategy):
    def zeros(*shape):
        return strategy.experimental_distribute_values_from_function(
            lambda replica: tf.zeros((replica.replica_id_in_sync_group + 1, *shape))
        )

    model = types.SimpleNamespace(
        _distribute_strategy=strategy, distribute_strategy=strategy, _symbolic_build=lambda data_batch: None
    )
    maybe_symbolic_build(model, iterator=iter([(0, 0, iter([(zeros(1, 1, 1), zeros())]))]))


WORKAROUNDS = (
    # owner, name of the function, trial, replacement
    (trainer, "reduce_per_replica", _try_reducing, _reduce_scalars),
    (trainer.TensorFlowTrainer, "_maybe_symbolic_build", _try_building, _build_from_one_replica),
)
