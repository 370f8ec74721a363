"""`model.fit` and `model.evaluate` under tf.distribute strategies, in the Keras versions that fail there.

Seen in Keras 3.15.1. Before the first step `Trainer._maybe_symbolic_build` averages a batch over the replicas, only to
learn its shapes: that fails on several machines, which hand TensorFlow a structure that it cannot average (keras issue
20585, open since 2024), and on several devices if they have unequal numbers of images. In the first step
`reduce_per_replica` averages scalar losses over an axis 0 that they do not have; on several machines that fails, too.
`repair` puts a step in front of these two functions. Models without a strategy run Keras's own code, unchanged.
"""

import inspect
import types
import warnings

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import trainer


def repair(strategy):
    """Makes `model.fit` and `model.evaluate` work under a strategy of several replicas, where they do not yet.

    Each function is tried, on a handful of numbers, and replaced only if it fails: a Keras that has repaired itself is
    left alone, whatever its version. A Keras that no longer has the function as it is known here is left alone too,
    with a warning. Of several machines all have to call this, as they run the trials together.

    Args:
        strategy: a `tf.distribute.MirroredStrategy` or `tf.distribute.MultiWorkerMirroredStrategy`.
    """
    for owner, name, trial, replacement in (
        (trainer, "reduce_per_replica", _try_reducing, _reducing),
        (trainer.TensorFlowTrainer, "_maybe_symbolic_build", _try_building, _building),
    ):
        function = getattr(owner, name, None)
        if function is None or not _accepts(function, replacement(None)):
            warnings.warn(
                f"Keras {keras.__version__} has no `{name}` as keras_resnet knows it: if `model.fit` fails on several "
                "devices or machines, use Keras 3.15, or one device.",
                stacklevel=2,
            )
        elif not _succeeds(trial, function, strategy):
            setattr(owner, name, replacement(function))


def _reducing(keras_function):
    """Scalars that belong to a replica each -> their mean, the same on all machines.

    Were it the mean of one machine, TerminateOnNaN and its like could stop one machine, and the others would wait.
    """

    def reduce_per_replica(values, strategy, reduction):
        if _spans_machines(strategy) and reduction in ("auto", "mean"):
            return keras.tree.map_structure(lambda value: strategy.reduce("MEAN", value, axis=None), values)
        return keras_function(values, strategy, reduction)

    return reduce_per_replica


def _building(keras_function):
    """Builds metrics and optimiser from the shapes of one replica's images: only their number differs elsewhere."""

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None and self._distribute_strategy is not None:
            _, _, batches = next(iter(iterator))
            results = self._distribute_strategy.experimental_local_results
            iterator, data_batch = None, keras.tree.map_structure(lambda value: results(value)[0], next(batches))
        return keras_function(self, iterator=iterator, data_batch=data_batch)

    return _maybe_symbolic_build


def _spans_machines(strategy):
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and strategy.extended._in_multi_worker_mode()


def _try_reducing(reduce_per_replica, strategy):
    losses = strategy.experimental_distribute_values_from_function(lambda replica: tf.zeros(()))
    reduce_per_replica(losses, strategy, "auto")


def _try_building(maybe_symbolic_build, strategy):
    images, labels = (
        strategy.experimental_distribute_values_from_function(
            lambda replica, shape=shape: tf.zeros((replica.replica_id_in_sync_group + 1, *shape))
        )
        for shape in ((1, 1, 1), ())
    )
    model = types.SimpleNamespace(
        _distribute_strategy=strategy, distribute_strategy=strategy, _symbolic_build=lambda data_batch: None
    )
    maybe_symbolic_build(model, iterator=iter([(0, 0, iter([(images, labels)]))]))


def _succeeds(trial, function, strategy):
    try:
        trial(function, strategy)
    except Exception:  # whatever it is: the function does not work
        return False
    return True


def _accepts(function, replacement):
    """Whether a function takes what its replacement would hand on."""
    return list(inspect.signature(function).parameters) == list(inspect.signature(replacement).parameters)
