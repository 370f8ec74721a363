"""OPTIMIZERS: Keras's optimizers and LAMB, with weight decay as in the papers and in torch."""

import keras
from keras import ops

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


class _UpdateWithDecay:
    """Methods of all optimizers: weight decay and layer rates are part of the update."""

    def _apply_weight_decay(self, variables):
        """Does nothing: `update_step` decays the weights. Keras would do it here, apart from the gradient."""

    def finalize_variable_values(self, variables):
        """Does nothing: Keras would overwrite the weights with their averages when a `fit` ends, even in mid-run."""

    def _clip_gradients(self, gradients):
        """Clips by the norm of the global batch's gradients: Keras would clip those of each replica before the sum."""
        several = keras.backend.backend() == "tensorflow" and tf.distribute.get_strategy().num_replicas_in_sync > 1
        replica = tf.distribute.get_replica_context() if several else None
        if not self.global_clipnorm or replica is None:
            return super()._clip_gradients(gradients)
        total = replica.all_reduce("SUM", [ops.convert_to_tensor(gradient) for gradient in gradients])
        norm = ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in total))
        return [gradient * self.global_clipnorm / ops.maximum(norm, self.global_clipnorm) for gradient in gradients]

    decoupled = True
    """Whether the decay is apart from the gradient, w -= rate * decay * w; else decay * w is added to the gradient."""

    layer_rates = ()
    """A factor of the learning rate for each trainable variable; (): 1 for all. Set by `compile_model`, not saved."""

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(self._rate_of(variable, learning_rate), variable.dtype)
        if decay := self._decay_of(variable):
            if self.decoupled:
                self.assign_sub(variable, rate * decay * variable)
            else:
                gradient = gradient + ops.cast(decay, gradient.dtype) * ops.cast(variable, gradient.dtype)
        super().update_step(gradient, variable, rate)

    def _rate_of(self, variable, learning_rate):
        if not self.layer_rates:
            return learning_rate
        return learning_rate * self.layer_rates[self._get_variable_index(variable)]

    def _decay_of(self, variable):
        return self.weight_decay if self.weight_decay and self._use_weight_decay(variable) else 0.0


def _with_decay(optimizer, decoupled=True):
    """The class of a Keras optimizer, with the weight decay and the layer rates of this package."""
    members = {"decoupled": decoupled, "__doc__": optimizer.__doc__, "__module__": __name__}
    made = type(optimizer.__name__, (_UpdateWithDecay, optimizer), members)
    return keras.saving.register_keras_serializable("keras_resnet")(made)


class TorchRMSprop(keras.optimizers.RMSprop):
    """RMSprop as in torch: epsilon is added to the root, and the learning rate multiplies the momentum's sum.

    Keras adds epsilon to the square, which makes torchvision's 0.0316 another optimizer.
    """

    def update_step(self, gradient, variable, learning_rate):
        index, gradient = self._get_variable_index(variable), ops.cast(gradient, variable.dtype)
        velocity = self._velocities[index]
        self.assign(velocity, self.rho * velocity + (1 - self.rho) * ops.square(gradient))
        update = gradient / (ops.sqrt(velocity) + self.epsilon)
        if self.momentum:
            self.assign(self._momentums[index], self.momentum * self._momentums[index] + update)
            update = self._momentums[index]
        self.assign_sub(variable, learning_rate * update)


@keras.saving.register_keras_serializable("keras_resnet")
class LAMB(_UpdateWithDecay, keras.optimizers.Lamb):
    """LAMB with the decay inside the trust ratio (You et al. 2019, arXiv:1904.00962, algorithm 2).

    In Keras's the decay is outside. As in timm/optim/lamb.py, the ratio does not scale variables that do not decay.
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
            norms = [ops.sqrt(ops.sum(ops.square(values))) for values in (variable, update)]
            ratio = ops.divide_no_nan(*norms)
            update = update * ops.where(ratio > 0, ratio, 1.0)  # 1 where one of the norms is 0
        self.assign_sub(variable, rate * update)


_NOT_BY_NAME = ("Optimizer", "LossScaleOptimizer", "MultiOptimizer", "Lamb")  # the last is LAMB below
_KERAS = {
    name.lower(): found
    for name, found in vars(keras.optimizers).items()
    if isinstance(found, type) and issubclass(found, keras.optimizers.Optimizer) and name not in _NOT_BY_NAME
}
_L2 = ("sgd", "adam", "rmsprop")
# torch's decay, and that of Caffe and of He et al. 2015, sec. 3.4: through SGD's momentum it is, in the long run,
# 1 / (1 - momentum) times as strong as a decoupled one

OPTIMIZERS = {
    # name -> class: those of Keras in lower case
    **{name: _with_decay(found, name not in _L2) for name, found in {**_KERAS, "rmsprop": TorchRMSprop}.items()},
    "lamb": LAMB,
}
ARGUMENTS = {
    # name -> arguments for a recipe, where they are not Keras's defaults
    "sgd": lambda recipe: {"momentum": recipe.momentum, "nesterov": recipe.nesterov},
    # https://github.com/pytorch/vision/blob/main/references/classification/train.py
    "rmsprop": lambda recipe: {"rho": 0.9, "epsilon": 0.0316, "momentum": recipe.momentum},
    "adam": lambda recipe: {"epsilon": 1e-8},  # as in torch and timm
    "adamw": lambda recipe: {"epsilon": 1e-8},
    "lamb": lambda recipe: {"epsilon": 1e-6},
}


def create_optimizer(recipe, rate):
    """The recipe's optimizer, for a learning rate or schedule."""
    arguments = ARGUMENTS.get(recipe.optimizer, lambda recipe: {})
    optimizer = OPTIMIZERS[recipe.optimizer](
        rate,
        weight_decay=recipe.weight_decay,
        global_clipnorm=recipe.clip_norm or None,
        use_ema=recipe.ema_decay > 0,
        ema_momentum=recipe.ema_decay or 0.99,
        **arguments(recipe),
    )
    if not recipe.decay_all:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
