"""RECIPES: name -> Recipe. One row a way to train, with its source."""

import math
from dataclasses import asdict, dataclass, fields, replace

from keras_resnet.errors import is_number, unknown
from keras_resnet.training.schedules import SCHEDULES


@dataclass(frozen=True)
class Recipe:
    """What the optimiser sees: every field a value, no code.

    Raises:
        ValueError: on construction, if a value makes no sense.
    """

    epochs: int
    batch_size: int
    """Pictures a step, all devices together."""
    learning_rate: float
    """The highest."""
    schedule: str = "cosine"
    """A name in SCHEDULES."""
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate rises linearly from 0."""
    milestones: tuple[float, ...] = ()
    """Schedule "step": epochs after which the learning rate is a tenth of what it was."""
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    """Keras's, decoupled: w -= rate * decay * w. The paper's 1e-4 is an L2 penalty inside the momentum; in the long run
    that weighs decay / (1 - momentum)."""
    decay_all: bool = True
    """Whether biases and batch norm decay too."""
    padding: int = 0
    """Augmentation: pixels of `pad_and_crop`."""

    def __post_init__(self):
        if not isinstance(self.milestones, (list, tuple)) or not all(map(is_number, self.milestones)):
            self._refuse("milestones", "a tuple of epochs")
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        for name, least in (("epochs", 1), ("batch_size", 1), ("padding", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                self._refuse(name, f"an integer, {least} or more")
        for name in ("learning_rate", "weight_decay", "warmup_epochs"):
            if not (is_number(getattr(self, name)) and 0 <= getattr(self, name) < math.inf):
                self._refuse(name, "a number, 0 or more")
        for name in ("nesterov", "decay_all"):
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "True or False")
        if not (is_number(self.momentum) and 0 <= self.momentum < 1):
            self._refuse("momentum", "a number in [0, 1)")
        self._check_schedule()

    def _check_schedule(self):
        if self.milestones and self.schedule != "step":
            self._refuse("milestones", 'empty unless the schedule is "step"')
        if self.warmup_epochs and self.schedule != "cosine":
            self._refuse("warmup_epochs", '0 unless the schedule is "cosine"')
        if list(self.milestones) != sorted(set(self.milestones)) or min(self.milestones, default=1) <= 0:
            self._refuse("milestones", "epochs after the first, each later than the one before")

    def to_config(self):
        """The values as JSON can hold them; `Recipe(**config)` is the way back."""
        return asdict(self) | {"milestones": list(self.milestones)}

    def _refuse(self, name, expected):
        raise ValueError(f"`{name}` of a recipe should be {expected}. Received: {name}={getattr(self, name)!r}")


RECIPES = {
    # Minutes on a laptop for the digits of scikit-learn: `keras-resnet train --recipe quickstart`
    "quickstart": Recipe(
        epochs=40, batch_size=64, learning_rate=0.1, warmup_epochs=2, nesterov=True, weight_decay=5e-4, padding=1
    ),
}


def get_recipe(name, /, **changes):
    """A Recipe of RECIPES, some of its fields changed.

    Raises:
        ValueError: for an unknown recipe or field, with the nearest known ones.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    known = [field.name for field in fields(Recipe)]
    for change in changes:
        if change not in known:
            raise unknown("changes", change, known, f"fields of a recipe: {known}")
    return replace(RECIPES[name], **changes)
