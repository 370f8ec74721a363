"""RandAugment as in timm, and TrivialAugment: which operations images get, and how strong, on any Keras backend.

Keras's RandAugment layer computes all its operations for every image, twice; chooses once for a whole batch; rotates by
up to half a turn; and its random state cannot be resumed.

The operations are in tensorflow_operations.py and pillow_operations.py. `random` is an object of random_numbers.py, for
one image inside tf.data or for a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from keras import ops


class Strength(NamedTuple):
    """Range of an operation's strength for magnitudes in 0..1."""

    low: float = 0.0
    high: float = 0.0
    symmetric: bool = False
    """Whether half of the images get the opposite strength, relative to `low`."""


# timm/data/auto_augment.py: _RAND_INCREASING_TRANSFORMS
RAND_AUGMENT = {
    "auto_contrast": Strength(),
    "equalize": Strength(),
    "invert": Strength(),
    "rotate": Strength(0, 30, symmetric=True),
    "posterize": Strength(4, 0),
    "solarize": Strength(256, 0),
    "solarize_add": Strength(0, 110),
    "color": Strength(1, 1.9, symmetric=True),
    "contrast": Strength(1, 1.9, symmetric=True),
    "brightness": Strength(1, 1.9, symmetric=True),
    "sharpness": Strength(1, 1.9, symmetric=True),
    "shear_x": Strength(0, 0.3, symmetric=True),
    "shear_y": Strength(0, 0.3, symmetric=True),
    "translate_x": Strength(0, 0.45, symmetric=True),
    "translate_y": Strength(0, 0.45, symmetric=True),
}

# torchvision/transforms/autoaugment.py: TrivialAugmentWide
TRIVIAL_AUGMENT = {
    "identity": Strength(),
    "shear_x": Strength(0, 0.99, symmetric=True),
    "shear_y": Strength(0, 0.99, symmetric=True),
    "shift_x": Strength(0, 32, symmetric=True),
    "shift_y": Strength(0, 32, symmetric=True),
    "rotate": Strength(0, 135, symmetric=True),
    "brightness": Strength(1, 1.99, symmetric=True),
    "color": Strength(1, 1.99, symmetric=True),
    "contrast": Strength(1, 1.99, symmetric=True),
    "sharpness": Strength(1, 1.99, symmetric=True),
    "posterize": Strength(7.5, 1.5),  # rounded up: 8 to 2 bits
    "solarize": Strength(255, 0),
    "auto_contrast": Strength(),
    "equalize": Strength(),
}


def affine_operations(rotate, shear, shift, translate):
    """{name of an affine operation: (image, strength, fill) -> image}, of a library's functions.

    All but `rotate` have an argument `axis`: 0 for the x axis, 1 for the y axis.
    """
    along = {"shear": shear, "shift": shift, "translate": translate}
    return {"rotate": rotate} | {
        f"{name}_{letter}": partial(function, axis=axis)
        for name, function in along.items()
        for axis, letter in enumerate("xy")
    }


def no_operations(random, recipe):
    """Magnitudes and choices of no operation, as in `rand_augment`."""
    return random.normal(0), random.uniform(0)


def rand_augment(random, recipe):
    """RandAugment (arXiv:1909.13719) as in timm's "rand-m<magnitude>-n<layers>-mstd<magnitude_std>-inc1".

    The policy of "ResNet strikes back" (arXiv:2110.00476): each layer applies one of RAND_AUGMENT with probability 1/2.
    In contrast to timm, pixels outside the image are always grey, and interpolation is always bilinear.

    Args:
        recipe: Recipe, whose `policy_layers` is the number of operations, one after the other, `policy_magnitude` the
            mean strength of the operations, from 0 to 10, and `policy_std` its standard deviation, clipped to 0..10.

    Returns:
        Magnitudes (..., layers) in 0..1, and choices (..., layers): the first operation in [0, 1 / operations), the
        second above, and none from 1 on.
    """
    magnitudes = (recipe.policy_magnitude + recipe.policy_std * random.normal(recipe.policy_layers)) / 10
    return ops.clip(magnitudes, 0, 1), 2 * random.uniform(recipe.policy_layers)


def trivial_augment(random, recipe):
    """TrivialAugment "wide" (arXiv:2103.10158) as in torchvision: one of TRIVIAL_AUGMENT, with one of 31 magnitudes."""
    return ops.floor(31 * random.uniform(1)) / 30, random.uniform(1)


@dataclass(frozen=True)
class Policy:
    """A row of POLICIES."""

    operations: dict[str, Strength]
    sample_magnitudes: Callable
    """(random, recipe) -> magnitudes and choices, as `rand_augment`."""
    fill: int = 128
    """Level outside the image in affine operations."""

    def sample(self, random, recipe):
        """(indices of operations (..., layers) int32, their strengths (..., layers)); after the last one: none."""
        magnitudes, choices = self.sample_magnitudes(random, recipe)
        count = len(self.operations)
        indices = ops.minimum(ops.cast(choices * count, "int32"), count)
        return indices, self.strengths(indices, magnitudes, random.uniform(choices.shape[-1]))

    def strengths(self, indices, magnitudes, u):
        """Strengths of operations for magnitudes in 0..1; where u is below 0.5, those of symmetric ones are opposite.

        All arguments have the same shape.
        """
        rows = ops.take(np.array([*self.operations.values(), Strength()], "float32"), indices, axis=0)
        low, high, symmetric = rows[..., 0], rows[..., 1], rows[..., 2]
        return low + ops.where(u < 0.5, 1 - 2 * symmetric, 1.0) * magnitudes * (high - low)


POLICIES = {
    "none": Policy({}, no_operations),
    "rand_augment": Policy(RAND_AUGMENT, rand_augment),
    "trivial_augment": Policy(TRIVIAL_AUGMENT, trivial_augment, fill=0),
}
