"""SIZES: how large a degradation study is, from minutes on a laptop to the paper's."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from keras_resnet.data.datasets import Split


@dataclass(frozen=True)
class Size:
    """The data set, the networks and the recipe of a degradation study."""

    dataset: str
    """A name for `load_dataset`."""
    depths: tuple[int, ...]
    recipe: str
    changes: Mapping = field(default_factory=dict)
    """Changed fields of the recipe."""
    images: tuple[int, int] | None = None
    """(training images, test images), see `subset`; None: all."""
    own_recipes: Mapping = field(default_factory=dict)
    """{network: name of the recipe that it has instead}."""


# The warm-up of the paper's ResNet-110: with few steps, residual networks from 44 layers on do not train without it
_WARMUP = {"warmup_rate": 0.01, "warmup_constant": True}
_DIGITS = {**_WARMUP, "epochs": 40, "batch_size": 64, "warmup": 0.05, "padding": 1, "flip": False}
# A warm-up of 400 of 5,850 steps; then a cosine, since the paper's milestones leave deep networks too few steps
_CIFAR = {**_WARMUP, "epochs": 15, "warmup": 0.0684, "schedule": "cosine", "milestones": ()}

SIZES = {
    # Six minutes on one core
    "digits": Size("digits", (20, 32, 44, 56), "he2015_cifar", _DIGITS),
    # Half an hour on two cores in bfloat16
    "cifar10_subset": Size("cifar10", (20, 56), "he2015_cifar", {**_CIFAR, "epochs": 20}, images=(10_000, 2_000)),
    # Two hours on two cores in bfloat16: 15 epochs instead of 164
    "cifar10": Size("cifar10", (20, 56), "he2015_cifar", _CIFAR),
    # He et al. 2015, sec. 4.2 and fig. 6, for a GPU; the paper draws no plain-110: its error stays above 60%
    "paper": Size("cifar10", (20, 32, 44, 56, 110), "he2015_cifar", own_recipes={"resnet110": "he2015_cifar_110"}),
}


def subset(dataset, train, test):
    """Part of a data set with the same class proportions, and the same part every time.

    Args:
        dataset: Dataset in memory.
        train, test: number or fraction of its training and of its test images, see `Split.stratified_split`.

    Returns:
        A Dataset with the numbers in its name.

    Raises:
        ValueError: for numbers that a split does not have, or a data set that is read as a stream.
    """
    splits = (dataset.train, dataset.test)
    sizes = [*map(len, splits)]
    if not all(isinstance(split, Split) for split in splits):
        raise ValueError(f"`dataset` should fit in memory to take a part of it. Received: dataset={dataset.name!r}")
    try:
        train, test = (split.stratified_split(amount)[1] for split, amount in zip(splits, (train, test), strict=True))
    except ValueError as error:
        raise ValueError(
            f"`images` should be the numbers of training and test images, of {sizes}, that include each class and not "
            f"all of its images. Received: images={(train, test)}"
        ) from error
    part = f"{len(train):,} of {sizes[0]:,} training and {len(test):,} of {sizes[1]:,} test images"
    return replace(dataset, name=f"{dataset.name}, {part}", train=train, test=test)
