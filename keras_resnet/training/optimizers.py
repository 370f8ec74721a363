"""OPTIMIZERS: Keras's, with weight decay where the papers have it."""

import keras
from keras import ops


class _Decay:
    """What both optimisers share: their update knows the decay, and fit.py decides when averages become the weights."""

    def _apply_weight_decay(self, variables):
        """Keras would decay here, apart from the gradient; `update_step` has it."""

    def finalize_variable_values(self, variables):
        """Keras would overwrite the weights with their averages whenever a `fit` ends, also in the middle of a run."""

    def _clip_gradients(self, gradients):
        """Keras would clip what a replica has before the replicas are summed; the limit is for the whole batch."""
        replicas = _replicas()
        if not self.global_clipnorm or replicas is None:
            return super()._clip_gradients(gradients)
        whole = replicas.all_reduce("SUM", [ops.convert_to_tensor(gradient) for gradient in gradients])
        norm = ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in whole))
        return [gradient * self.global_clipnorm / ops.maximum(norm, self.global_clipnorm) for gradient in gradients]

    layer_rates = ()
    """A factor of the learning rate for each trainable variable; empty: 1 for all. Not saved: `compile_for` sets it."""

    def _rate_of(self, variable, learning_rate):
        if not self.layer_rates:
            return learning_rate
        return learning_rate * self.layer_rates[self._get_variable_index(variable)]

    def _decay_of(self, variable):
        return self.weight_decay if self.weight_decay and self._use_weight_decay(variable) else 0.0


def _replicas():
    """TensorFlow's replica context, if there are several."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    return tf.distribute.get_replica_context() if tf.distribute.get_strategy().num_replicas_in_sync > 1 else None


@keras.saving.register_keras_serializable("keras_resnet")
class SGD(_Decay, keras.optimizers.SGD):
    """Momentum with an L2 penalty: decay * w is added to the gradient, so that the momentum carries it.

    That is what Caffe, torch and the paper mean by weight decay (He et al. 2015, sec. 3.4). Keras's own is decoupled:
    w -= rate * decay * w, in the long run 1 - momentum of this.
    """

    def update_step(self, gradient, variable, learning_rate):
        if decay := self._decay_of(variable):
            gradient = gradient + ops.cast(decay, gradient.dtype) * ops.cast(variable, gradient.dtype)
        super().update_step(gradient, variable, self._rate_of(variable, learning_rate))


@keras.saving.register_keras_serializable("keras_resnet")
class LAMB(_Decay, keras.optimizers.Lamb):
    """LAMB with the decay inside the trust ratio (You et al. 2019, arXiv:1904.00962, algorithm 2).

    Keras's decays apart from it. As in timm/optim/lamb.py, what does not decay is not scaled by the ratio either.
    """

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        rate = ops.cast(self._rate_of(variable, learning_rate), variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        step = ops.cast(self.iterations + 1, variable.dtype)
        self.assign_add(m, (gradient - m) * (1 - self.beta_1))
        self.assign_add(v, (ops.square(gradient) - v) * (1 - self.beta_2))
        deviation = ops.sqrt(v / (1 - ops.power(self.beta_2, step))) + self.epsilon
        update = m / (1 - ops.power(self.beta_1, step)) / deviation
        if decay := self._decay_of(variable):
            update = update + decay * variable
            update = update * _trust_ratio(_norm(variable), _norm(update))
        self.assign_sub(variable, rate * update)


def _norm(values):
    return ops.sqrt(ops.sum(ops.square(values)))


def _trust_ratio(weight, update):
    """|w| / |update|; 1 where one of them is 0."""
    both = ops.logical_and(weight > 0, update > 0)
    return ops.where(both, weight / ops.where(both, update, 1.0), 1.0)


OPTIMIZERS = {
    "sgd": lambda recipe, rate, **shared: SGD(rate, momentum=recipe.momentum, nesterov=recipe.nesterov, **shared),
    "lamb": lambda recipe, rate, **shared: LAMB(rate, epsilon=1e-6, **shared),
}


def optimizer(recipe, rate):
    """The recipe's optimiser.

    Args:
        recipe: Recipe.
        rate: learning rate or schedule.
    """
    made = OPTIMIZERS[recipe.optimizer](
        recipe,
        rate,
        weight_decay=recipe.weight_decay or None,
        global_clipnorm=recipe.clip_norm or None,
        use_ema=recipe.ema_decay > 0,
        ema_momentum=recipe.ema_decay or 0.99,
    )
    if not recipe.decay_all:
        made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return made
