"""Training on several devices of JAX: each computes its part of every batch, in one program for the whole batch.

So every sum over the batch is one over all devices, also in batch norm, whose statistics are those of the whole batch:
the result is that of one device up to rounding.
"""

import keras

from keras_resnet.errors import value_error


class DataParallel(keras.distribution.DataParallel):
    """Keras's, which fails for batches that cannot be divided: these are computed whole on every device."""

    def get_data_layout(self, data_shape):
        """The layout of a batch; Keras asks for that of the first batch of an epoch only."""
        if data_shape[0] % self.num_model_replicas:
            return keras.distribution.TensorLayout([None] * len(data_shape), self.device_mesh)
        return super().get_data_layout(data_shape)


def data_parallel(devices):
    """The distribution over a number of JAX's devices; None for a single one.

    Args:
        devices: their number; None: all GPUs or TPUs, or one CPU.

    Raises:
        ValueError: for more devices than JAX has.
    """
    names = keras.distribution.list_devices()
    count = devices or (1 if names[0].startswith("cpu") else len(names))
    if count > len(names):
        hint = f"JAX has {names}; XLA_FLAGS=--xla_force_host_platform_device_count={count} divides its CPU."
        raise value_error("devices", devices, "at most the number of JAX's devices", hint)
    return DataParallel(devices=names[:count], auto_shard_dataset=False) if count > 1 else None
