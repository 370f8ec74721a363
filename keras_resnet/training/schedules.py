"""SCHEDULES: name -> function of (recipe, steps an epoch) that gives a Keras learning-rate schedule."""

from keras.optimizers import schedules


def _cosine(recipe, steps_per_epoch):
    """Linear warm-up (Goyal et al. 2017, arXiv:1706.02677), then half a cosine down to 0 (arXiv:1608.03983)."""
    steps, warmup = recipe.epochs * steps_per_epoch, int(recipe.warmup_epochs * steps_per_epoch)
    if not warmup:
        return schedules.CosineDecay(recipe.learning_rate, steps)
    return schedules.CosineDecay(0.0, max(1, steps - warmup), warmup_target=recipe.learning_rate, warmup_steps=warmup)


def _step(recipe, steps_per_epoch):
    """A tenth at each milestone (He et al. 2015, sec. 4.2)."""
    boundaries = [int(epoch * steps_per_epoch) for epoch in recipe.milestones]
    rates = [recipe.learning_rate * 10.0**-i for i in range(len(boundaries) + 1)]
    return schedules.PiecewiseConstantDecay(boundaries, rates) if boundaries else recipe.learning_rate


def _constant(recipe, steps_per_epoch):
    """The same rate throughout."""
    return recipe.learning_rate


SCHEDULES = {"cosine": _cosine, "step": _step, "constant": _constant}
