"""Exponential moving averages of the weights: tests with them, and batch-norm statistics for them."""

import keras

STATISTICS_BATCHES = 50
"""Batches for the statistics: 50 of 128 images with feature maps of 8x8 give 400,000 values per channel."""


class EMACallback(keras.callbacks.Callback):
    """Tests the averaged weights instead of those in training; the optimizer keeps them (`use_ema`).

    Args:
        batches: function that returns training images for the batch-norm statistics.
    """

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_test_begin(self, logs=None):
        sync_variables(self.model)
        self.in_training = [keras.ops.convert_to_numpy(variable) for variable in self.model.variables]
        assign_averages(self.model, self.batches())

    def on_test_end(self, logs=None):
        sync_variables(self.model)
        for variable, value in zip(self.model.variables, self.in_training, strict=True):
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


def batch_norms(model):
    """The batch norm layers of a model, and of models inside it."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


def recompute_batch_norm(model, batches):
    """Sets batch-norm statistics to their mean over some batches (precise BN: Wu and Johnson 2021, arXiv:2105.07576).

    Averaged weights need their own statistics: the moving ones belong to the weights in training.
    Frozen layers keep theirs. `batches` is an iterable of the model's inputs, prepared as for training.
    """
    layers = [layer for layer in batch_norms(model) if layer.trainable]
    momenta = [layer.momentum for layer in layers]
    try:
        for index, inputs in enumerate(batches if layers else ()):
            for layer in layers:
                layer.momentum = index / (index + 1)  # makes the moving average the mean so far
            model(inputs, training=True)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
