"""Random numbers as a function of seed and step, so that a resumed run continues with the same numbers."""

import numpy as np
from keras import ops


class NumPyRandom:
    """Random numbers of NumPy for a step of a run, as tensors of the Keras backend.

    `rows` is (batch size, needed slice of the batch).
    """

    def __init__(self, seed, step, rows):
        self.generator, self.rows = np.random.default_rng((seed, step, 1)), rows

    def uniform(self, *shape):
        """(B, *shape) in [0, 1), for each image of the slice."""
        return self._part_of_batch(self.generator.random, shape)

    def normal(self, *shape):
        """(B, *shape) from the standard normal distribution, for each image of the slice."""
        return self._part_of_batch(self.generator.standard_normal, shape)

    def _part_of_batch(self, sample, shape):
        batch_size, part = self.rows
        return ops.convert_to_tensor(sample((batch_size, *shape), "float32")[part])

    def batch_uniform(self, count):
        """(count,) in [0, 1), for the whole batch."""
        return ops.convert_to_tensor(self.generator.random(count, "float32"))

    def batch_beta(self, alpha):
        """A scalar from the beta distribution (alpha, alpha), for the whole batch."""
        return ops.convert_to_tensor(np.float32(self.generator.beta(alpha, alpha)))


class TensorFlowRandom:
    """Like NumPyRandom, as tensors; `step` may be a tensor."""

    def __init__(self, seed, step, rows):
        import tensorflow

        self.tf, self.seed, self.step, self.rows = tensorflow, seed, step, rows
        self.calls = 100  # lower numbers are for the keys of single images

    @classmethod
    def of_image(cls, seed, position):
        """Random numbers of one image, without the axis of the batch; `position` in the run may be a tensor."""
        random = cls(seed, position, (1, 0))
        random.calls = 0
        return random

    def _next_key(self):
        self.calls += 1
        key = self.tf.constant(self.seed * 1000 + self.calls, "int64")
        return self.tf.stack([key, self.tf.cast(self.step, "int64")])

    def uniform(self, *shape):
        batch_size, part = self.rows
        return self.tf.random.stateless_uniform((batch_size, *shape), self._next_key())[part]

    def normal(self, *shape):
        batch_size, part = self.rows
        return self.tf.random.stateless_normal((batch_size, *shape), self._next_key())[part]

    def batch_uniform(self, count):
        return self.tf.random.stateless_uniform((count,), self._next_key())

    def batch_beta(self, alpha):
        first, second = (self.tf.random.stateless_gamma((), self._next_key(), alpha) for _ in range(2))
        return first / self.tf.maximum(first + second, 1e-30)
