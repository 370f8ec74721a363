"""`SIZES`: how much work the degradation study is, from minutes on a laptop to the paper's."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from keras_resnet.data.datasets import Split


@dataclass(frozen=True)
class Size:
    """How much work the study is: which networks learn what, and how."""

    dataset: str
    """As `load_dataset` takes it."""
    depths: tuple[int, ...]
    recipe: str
    changes: Mapping = field(default_factory=dict)
    """Fields of the recipe that are changed."""
    images: tuple[int, int] | None = None
    """How many train and test, see `subset`; None: all."""
    own_recipes: Mapping = field(default_factory=dict)
    """{network: the name of its own recipe}."""


# As the paper's ResNet-110: without it, so few steps do not suffice for residual nets from 44 layers on
_WARM = {"warmup_rate": 0.01, "warmup_constant": True}
_DIGITS = {**_WARM, "epochs": 40, "batch_size": 64, "warmup": 0.05, "padding": 1, "flip": False}
# 400 of 5,850 steps; then a cosine, since the paper's steps leave a deep net no time at either rate
_CIFAR = {**_WARM, "epochs": 15, "warmup": 0.0684, "schedule": "cosine", "milestones": ()}

SIZES = {
    # Six minutes of one core
    "digits": Size("digits", (20, 32, 44, 56), "he2015_cifar", _DIGITS),
    # Half an hour on two cores with mixed_bfloat16
    "cifar10_subset": Size("cifar10", (20, 56), "he2015_cifar", {**_CIFAR, "epochs": 20}, images=(10_000, 2_000)),
    # Two hours on two cores with mixed_bfloat16: 15 epochs instead of 164
    "cifar10": Size("cifar10", (20, 56), "he2015_cifar", _CIFAR),
    # He et al. 2015, sec. 4.2 and fig. 6, for a GPU; the paper draws no plain-110: its error stays above 60 %
    "paper": Size("cifar10", (20, 32, 44, 56, 110), "he2015_cifar", own_recipes={"resnet110": "he2015_cifar_110"}),
}


def subset(dataset, train, test):
    """So many images of a data set, the classes in the same proportions, and the same ones every time.

    Args:
        dataset: Dataset in memory.
        train, test: how many of its training and of its test images, or which shares; see `Split.set_aside`.

    Returns:
        A Dataset whose name says so.

    Raises:
        ValueError: for numbers that a split does not have, or a data set that is read as a stream.
    """
    splits = (dataset.train, dataset.test)
    sizes = [*map(len, splits)]
    if not all(isinstance(split, Split) for split in splits):
        raise ValueError(f"A data set should fit in memory to take a part of it. Received: dataset={dataset.name!r}")
    try:
        train, test = (split.set_aside(amount)[1] for split, amount in zip(splits, (train, test), strict=True))
    except ValueError as error:
        raise ValueError(
            f"`images` should be how many train and test, of {sizes}, with some of each class in and some left out. "
            f"Received: images={(train, test)}"
        ) from error
    part = f"{len(train):,} of {sizes[0]:,} training and {len(test):,} of {sizes[1]:,} test images"
    return replace(dataset, name=f"{dataset.name}, {part}", train=train, test=test)
