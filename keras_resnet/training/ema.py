"""Exponential moving averages of the weights: batch-norm statistics for them, and tests with them."""

from contextlib import contextmanager

import keras

STATISTICS_BATCHES = 50
"""Batches for the statistics: 50 of 128 images with feature maps of 8x8 give 400,000 values per channel."""


@contextmanager
def averaged_weights(model, batches):
    """Within the block the model has its averaged weights; afterwards, those in training.

    Args:
        model: keras.Model, compiled with an optimizer that keeps averages (`use_ema`).
        batches: function that returns an iterable of training images, for the batch-norm statistics.
    """
    sync_variables(model)
    kept = [keras.ops.convert_to_numpy(variable) for variable in model.variables]
    assign_averages(model, batches())
    try:
        yield
    finally:
        sync_variables(model)
        for variable, value in zip(model.variables, kept, strict=True):
            variable.assign(value)


def sync_variables(model):
    """Updates the model's variables: on JAX the training loop holds their values."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def assign_averages(model, batches):
    """Replaces the weights by their averages, and recomputes the batch-norm statistics."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # in float16, within a LossScaleOptimizer
    for variable, average in zip(model.trainable_variables, optimizer._model_variables_moving_average, strict=True):
        variable.assign(keras.ops.convert_to_numpy(average))  # a copy: JAX would share the memory, and free it
    recompute_batch_norm(model, batches)


def recompute_batch_norm(model, batches):
    """Sets batch-norm statistics to their mean over some batches (precise BN: Wu and Johnson 2021, arXiv:2105.07576).

    Averaged weights need their own statistics: the moving ones belong to the weights in training.

    Args:
        model: keras.Model.
        batches: iterable of images, prepared as for training.
    """
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in layers]
    try:
        for index, images in enumerate(batches):
            for layer in layers:
                layer.momentum = index / (index + 1)  # makes the moving average the mean so far
            model(images, training=True)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
