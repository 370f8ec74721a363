"""Gradients on every backend of Keras."""

import keras
import numpy as np

from keras_resnet.errors import unknown_name_error


def gradients(function, values):
    """Gradients of a scalar with respect to arrays.

    Args:
        function: list of tensors -> scalar tensor.
        values: list of floating-point arrays.

    Returns:
        A list of float32 arrays, shaped like `values`; zeros for what the scalar does not depend on.
    """
    backend = keras.backend.backend()
    if backend not in _BACKENDS:
        raise unknown_name_error("backend", backend, _BACKENDS, "a Keras backend that computes gradients")
    found = _BACKENDS[backend](function, [keras.ops.convert_to_tensor(value) for value in values])
    return [np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(gradient, "float32"))) for gradient in found]


def _tensorflow(function, values):
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        result = function(values)
    return tape.gradient(result, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _jax(function, values):
    import jax

    return jax.jit(jax.grad(function))(values)


def _torch(function, values):
    import torch

    values = [value.detach().clone().requires_grad_() for value in values]
    return torch.autograd.grad(function(values), values, materialize_grads=True)


_BACKENDS = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
