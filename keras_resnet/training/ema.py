"""Judging a run by its averaged weights, with batch-norm statistics that belong to them."""

from contextlib import contextmanager

import keras

BATCHES = 50
"""Batches for the statistics: 50 of 128 images on a map of 8x8 give 400,000 values a channel."""


@contextmanager
def averaged(model, batches):
    """Within the block the model has its averaged weights; afterwards, those it trains with.

    Args:
        model: keras.Model, compiled with an optimiser that keeps averages (`use_ema`).
        batches: function that gives an iterable of training images, for the batch-norm statistics.
    """
    synchronise(model)
    kept = [keras.ops.convert_to_numpy(variable) for variable in model.variables]
    use_averages(model, batches())
    try:
        yield
    finally:
        synchronise(model)
        for variable, value in zip(model.variables, kept, strict=True):
            variable.assign(value)


def synchronise(model):
    """Brings the numbers back to the model's variables: on JAX they live in the training loop."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def use_averages(model, batches):
    """Replaces the weights by their averages, and recomputes the batch-norm statistics."""
    averages = _optimizer(model)._model_variables_moving_average
    for variable, average in zip(model.trainable_variables, averages, strict=True):
        variable.assign(keras.ops.convert_to_numpy(average))  # a copy: JAX would share the memory, and free it
    recompute_statistics(model, batches)


def _optimizer(model):
    """The one that knows the averages: with mixed_float16 Keras puts another around it, which scales the loss."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def recompute_statistics(model, batches):
    """Sets batch-norm statistics to their mean over some batches (precise BN: Wu and Johnson 2021, arXiv:2105.07576).

    Averaged weights need their own: the moving ones belong to the weights that were trained with.

    Args:
        model: keras.Model.
        batches: iterable of images, prepared as for training.
    """
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in layers]
    try:
        for seen, images in enumerate(batches):
            for layer in layers:
                layer.momentum = seen / (seen + 1)  # a moving average that is the mean so far
            model(images, training=True)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
