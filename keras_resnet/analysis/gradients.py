"""Gradients with respect to arrays on the backends TensorFlow, JAX and torch."""

from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_resnet.errors import unknown_name_error


def gradients(function: Callable, values: Sequence) -> list[np.ndarray]:
    """Gradients of a scalar with respect to arrays.

    Args:
        function: function of a list of tensors that returns a scalar tensor.
        values: floating-point arrays.

    Returns:
        float32 arrays with the shapes of `values`; zeros for values that the scalar does not depend on.
    """
    backend = keras.backend.backend()
    if backend not in _BACKENDS:
        raise unknown_name_error("backend", backend, _BACKENDS, "a Keras backend that computes gradients")
    tensors = _BACKENDS[backend](function, [keras.ops.convert_to_tensor(value) for value in values])
    return [np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))) for tensor in tensors]


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
