"""What is printed before the first step of a run: the network, its images, the cost of a step, and the classes."""

from functools import cache

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.metadata import model_spec
from keras_resnet.data.class_balance import warn_if_unbalanced

LISTED_CLASSES = 10
"""Classes in a table; of more, the largest and the smallest."""


def print_summary(model, dataset, recipe):
    """Prints the line of `describe_run` and the table of `class_table` on standard error; warns of unbalanced classes.

    The table is printed once for a series of runs on the same images.
    """
    console = Console(stderr=True, highlight=False)
    console.print(describe_run(model, dataset, recipe), markup=False, soft_wrap=True)
    counts = dataset.class_counts()
    if counts is not None:
        _print_classes(tuple(dataset.class_names), tuple(counts.tolist()))
    warn_if_unbalanced(dataset, recipe)


def describe_run(model, dataset, recipe):
    """A line about what is going to be trained: the network, the images and their size, the multiply-adds of a step."""
    spec, test_size = model_spec(model), dataset.preprocessing.size
    size = recipe.train_size or test_size
    sides = f"{size}x{size} pixels" + (f" in training, {test_size}x{test_size} in testing" if size != test_size else "")
    images = f"{len(dataset.train):,} training and {len(dataset.test):,} test images, {sides}"
    if spec is None:
        return f"{model.name}: {images}"
    bottleneck = f" (stride on the {spec.stride_on}, with{'' if spec.conv_bias else 'out'} biases)"
    shape = (size, size, dataset.preprocessing.channels)
    cost = recipe.batch_size * complexity(spec, classes=len(dataset.class_names), input_shape=shape).multiply_adds
    step = f"{recipe.batch_size:,} images a step, {cost / 1e9:,.4g} G multiply-adds forward"
    return f"{model.name}{bottleneck if spec.block == 'bottleneck' else ''}: {images}; {step}"


def class_table(class_names, counts):
    """Rows of a table of classes and their numbers of images: {"class": name, "images": number}.

    All classes in their order; of more than LISTED_CLASSES, the largest and the smallest, with a row between them.
    """
    rows = [{"class": name, "images": f"{count:,}"} for name, count in zip(class_names, counts, strict=True)]
    if len(rows) <= LISTED_CLASSES:
        return rows
    rows = [rows[index] for index in np.argsort(-np.asarray(counts), kind="stable")]
    half = LISTED_CLASSES // 2
    return [*rows[:half], {"class": f"({len(rows) - 2 * half:,} more)", "images": ""}, *rows[-half:]]


@cache
def _print_classes(class_names, counts):
    rows = Table("class", Column("images", justify="right"), box=None)
    for row in class_table(class_names, counts):
        rows.add_row(Text(row["class"]), row["images"])
    Console(stderr=True).print(rows)
