"""RECIPES: name -> Recipe. One row a way to train, with its source."""

import difflib
import math
from dataclasses import asdict, dataclass, fields, replace

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
    decay_all: bool = True
    """Whether biases and batch norm decay too."""
    padding: int = 0
    """Augmentation: pixels of `pad_and_crop`."""

    def __post_init__(self):
        object.__setattr__(self, "milestones", _tuple(self.milestones))
        if self.schedule not in SCHEDULES:
            self._refuse("schedule", f"one of {sorted(SCHEDULES)}")
        for name in ("epochs", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                self._refuse(name, "a positive integer")
        if not isinstance(self.padding, int) or self.padding < 0:
            self._refuse("padding", "an integer, 0 or more")
        for name in ("learning_rate", "weight_decay", "warmup_epochs"):
            if not (_is_number(getattr(self, name)) and 0 <= getattr(self, name) < math.inf):
                self._refuse(name, "a number, 0 or more")
        if not (_is_number(self.momentum) and 0 <= self.momentum < 1):
            self._refuse("momentum", "a number in [0, 1)")
        if not all(map(_is_number, self.milestones)):
            self._refuse("milestones", "numbers of epochs")

    def to_config(self):
        """The values as JSON can hold them; `Recipe(**config)` is the way back."""
        return asdict(self) | {"milestones": list(self.milestones)}

    def _refuse(self, name, expected):
        raise ValueError(f"`{name}` of a recipe should be {expected}. Received: {name}={getattr(self, name)!r}")


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _tuple(values):
    return tuple(values) if isinstance(values, (list, tuple)) else (values,)


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
        near = difflib.get_close_matches(str(name), RECIPES, n=3, cutoff=0.3)
        raise ValueError(f"`recipe` should be one of {sorted(RECIPES)}. Nearest: {near}. Received: recipe={name!r}")
    known = [field.name for field in fields(Recipe)]
    for change in changes:
        if change not in known:
            near = difflib.get_close_matches(change, known, n=3, cutoff=0.3)
            raise ValueError(
                f"A recipe has the fields {known}. Nearest: {near}. Received: {change}={changes[change]!r}"
            )
    return replace(RECIPES[name], **changes)
