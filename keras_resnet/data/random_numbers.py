"""Random numbers as a function of (seed, step): a run that goes on at a step draws what it would have drawn."""

import numpy as np


class NumPyRandom:
    """Random numbers of one step, as NumPy arrays.

    Args:
        seed: of the run.
        step: of the run.
        rows: (number of images in the step, slice of them that is wanted).
    """

    def __init__(self, seed, step, rows):
        self.generator, self.rows = np.random.default_rng((seed, step, 1)), rows

    def uniform(self, *shape):
        """(B, *shape) in [0, 1): a row for each wanted image."""
        count, wanted = self.rows
        return self.generator.random((count, *shape), "float32")[wanted]

    def normal(self, *shape):
        """(B, *shape), mean 0, deviation 1."""
        count, wanted = self.rows
        return self.generator.standard_normal((count, *shape), "float32")[wanted]

    def beta(self, alpha):
        """One number of the beta distribution (alpha, alpha)."""
        return np.float32(self.generator.beta(alpha, alpha))

    def uniforms(self, count):
        """(count,) numbers in [0, 1) for the step as a whole."""
        return self.generator.random(count, "float32")


class TensorFlowRandom:
    """The same as tensors, for a step that is one."""

    def __init__(self, seed, step, rows):
        self.seed, self.step, self.rows, self.drawn = seed, step, rows, 0

    def _key(self):
        tf = _tensorflow()
        self.drawn += 1
        # below 100 are the keys of single images, in pipelines.py
        return tf.stack([tf.constant(self.seed * 1000 + 100 + self.drawn, "int64"), tf.cast(self.step, "int64")])

    def uniform(self, *shape):
        tf = _tensorflow()
        count, wanted = self.rows
        return tf.random.stateless_uniform((count, *shape), self._key())[wanted]

    def normal(self, *shape):
        tf = _tensorflow()
        count, wanted = self.rows
        return tf.random.stateless_normal((count, *shape), self._key())[wanted]

    def beta(self, alpha):
        tf = _tensorflow()
        first, second = (tf.random.stateless_gamma((), self._key(), alpha) for _ in range(2))
        return first / tf.maximum(first + second, 1e-30)

    def uniforms(self, count):
        tf = _tensorflow()
        return tf.random.stateless_uniform((count,), self._key())


def _tensorflow():
    import tensorflow

    return tensorflow
