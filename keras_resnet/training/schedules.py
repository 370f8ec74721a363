"""Learning-rate schedules: a warm-up, then one of SHAPES."""

import math
from dataclasses import asdict, dataclass

import keras
from keras import ops

SHAPES = {
    # function of the fraction of the run so far, and of milestones as fractions -> factor of the highest rate
    "constant": lambda fraction, milestones: ops.ones_like(fraction),
    # half a cosine down to 0 (Loshchilov and Hutter 2016, arXiv:1608.03983)
    "cosine": lambda fraction, milestones: 0.5 * (1 + ops.cos(math.pi * fraction)),
    # after a linear warm-up: one cycle (Smith 2017, arXiv:1708.07120)
    "linear": lambda fraction, milestones: 1 - fraction,
    # DeepLab's (arXiv:1606.00915, sec. 4.1); torch's PolynomialLR with the power of torchvision's segmentation networks
    "polynomial": lambda fraction, milestones: (1 - fraction) ** 0.9,
    # a tenth at each milestone (He et al. 2015, sec. 4.2)
    "step": lambda fraction, milestones: ops.prod(ops.where(fraction < ops.array([*milestones, 2.0]), 1.0, 0.1)),
    # a tenth when the test error no longer falls (sec. 3.4): a variable, which ReduceLROnPlateau lowers
    "plateau": None,
}


@keras.saving.register_keras_serializable("keras_resnet")
@dataclass
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate at each of the `steps` of a run: `shape` is a name in SHAPES, the rest are fields of Recipe."""

    shape: str
    learning_rate: float
    steps: int
    milestones: tuple[float, ...] = ()
    warmup: float = 0.0
    warmup_rate: float = 0.0
    warmup_constant: bool = False

    def __call__(self, step):
        warmup = round(self.warmup * self.steps)
        step = ops.cast(step, "float32")
        # milestones count from the start of the run, the other shapes begin after the warm-up
        start = 0 if self.shape == "step" else warmup
        fraction = ops.clip((step - start) / max(self.steps - start, 1), 0.0, 1.0)
        rate = self.learning_rate * SHAPES[self.shape](fraction, self.milestones)
        rise = 0.0 if self.warmup_constant else step / max(warmup, 1)
        return ops.where(step < warmup, self.warmup_rate + rise * (self.learning_rate - self.warmup_rate), rate)

    def get_config(self):
        return asdict(self)


def learning_rate(recipe, steps):
    """The recipe's learning rate for a run of `steps` steps: a Schedule, or for "plateau" a number."""
    if recipe.schedule == "plateau":
        return recipe.learning_rate
    names = ("learning_rate", "milestones", "warmup", "warmup_rate", "warmup_constant")
    return Schedule(recipe.schedule, steps=steps, **{name: getattr(recipe, name) for name in names})
