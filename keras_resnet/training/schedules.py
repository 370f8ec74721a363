"""Learning rates over time: a warm-up, then one of SHAPES."""

import math

import keras
from keras import ops

SHAPES = {
    # share of the run after the warm-up, milestones as such shares -> factor of the highest rate
    "constant": lambda share, milestones: ops.ones_like(share),
    # half a cosine down to 0 (Loshchilov and Hutter 2016, arXiv:1608.03983)
    "cosine": lambda share, milestones: 0.5 * (1 + ops.cos(math.pi * share)),
    # after a linear warm-up: one cycle (Smith 2017, arXiv:1708.07120)
    "linear": lambda share, milestones: 1 - share,
    # a tenth at each milestone (He et al. 2015, sec. 4.2)
    "step": lambda share, milestones: ops.prod(ops.where(share < ops.array([*milestones, 2.0]), 1.0, 0.1)),
    # a tenth when the test error no longer falls (sec. 3.4): the rate is a variable, and fit.py lowers it
    "plateau": None,
}


@keras.saving.register_keras_serializable("keras_resnet")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """step -> learning rate.

    Args:
        shape: a name in SHAPES.
        learning_rate: the highest.
        steps: length of the run.
        milestones: for "step", in shares of the run.
        warmup: share of the run in which the rate rises linearly from `warmup_rate`, or stays there.
        warmup_rate: learning rate at the start.
        warmup_constant: whether the rate stays at `warmup_rate` for the whole warm-up (sec. 4.2, n = 18).
    """

    def __init__(self, shape, learning_rate, steps, milestones=(), warmup=0.0, warmup_rate=0.0, warmup_constant=False):
        self.config = {
            "shape": shape,
            "learning_rate": learning_rate,
            "steps": steps,
            "milestones": list(milestones),
            "warmup": warmup,
            "warmup_rate": warmup_rate,
            "warmup_constant": warmup_constant,
        }

    def __call__(self, step):
        highest, lowest = self.config["learning_rate"], self.config["warmup_rate"]
        steps = self.config["steps"]
        warmup = round(self.config["warmup"] * steps)
        step = ops.cast(step, "float32")
        # milestones count from the start of the run, curves from the end of the warm-up
        since = 0 if self.config["shape"] == "step" else warmup
        share = ops.clip((step - since) / max(steps - since, 1), 0.0, 1.0)
        rate = highest * SHAPES[self.config["shape"]](share, self.config["milestones"])
        rising = 0.0 if self.config["warmup_constant"] else step / max(warmup, 1)
        return ops.where(step < warmup, lowest + rising * (highest - lowest), rate)

    def get_config(self):
        return self.config


def learning_rate(recipe, steps):
    """The recipe's learning rate for a run of so many steps: a Schedule, or for "plateau" a number."""
    if recipe.schedule == "plateau":
        return recipe.learning_rate
    return Schedule(
        recipe.schedule,
        recipe.learning_rate,
        steps,
        recipe.milestones,
        recipe.warmup,
        recipe.warmup_rate,
        recipe.warmup_constant,
    )
