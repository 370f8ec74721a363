"""What is printed before the first step of a run: the network, its images, the cost of a step, and the classes."""

import math
from functools import cache

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.detector_spec import backbone_of
from keras_resnet.architecture.metadata import model_spec
from keras_resnet.data.segmentation_crops import crop_size

LISTED_CLASSES = 10
"""Classes in a table; of more, the largest and the smallest."""


def print_summary(description, dataset):
    """Prints a line about a run, such as that of `describe_run`, and the table of `class_table` on standard error.

    The table is printed once for a series of runs on the same images.
    """
    Console(stderr=True, highlight=False).print(description, markup=False, soft_wrap=True)
    counts = dataset.class_counts()
    if counts is not None:
        columns = {"images": counts}
        if dataset.train.objects is not None:
            columns["objects"] = dataset.train.objects.class_counts(len(counts))
        if dataset.train.masks is not None:
            columns["pixels"] = dataset.train.masks.class_counts(len(counts))
        _print_classes(tuple(dataset.class_names), tuple((name, tuple(column)) for name, column in columns.items()))


def describe_run(model, dataset, recipe):
    """A line about what is going to be trained: the network, the images and their size, the multiply-adds of a step."""
    spec, test_size = backbone_of(model_spec(model)), dataset.preprocessing.size
    size = recipe.train_size or test_size
    sides = f"{size}x{size} pixels" + (f" in training, {test_size}x{test_size} in testing" if size != test_size else "")
    images = f"{_count_images(dataset)}, {sides}"
    if spec is None:
        return f"{model.name}: {images}"
    bottleneck = f" (stride on the {spec.stride_on}, with{'' if spec.conv_bias else 'out'} biases)"
    shape = (size, size, dataset.preprocessing.channels)
    cost = recipe.batch_size * complexity(spec, classes=len(dataset.class_names), input_shape=shape).multiply_adds
    step = f"{recipe.batch_size:,} images a step, {cost / 1e9:,.4g} G multiply-adds forward"
    return f"{model.name}{bottleneck if spec.block == 'bottleneck' else ''}: {images}; {step}"


def describe_detector_run(data):
    """A line about what is going to be trained, from a RunData: the detector, the images, their sides, its weights."""
    sizes, model = data.preprocessing, data.model
    sides = f"resized to {sizes.min_size} pixels on the shorter side, at most {sizes.max_size} on the longer"
    trained, total = (sum(math.prod(it.shape) for it in them) for them in (model.trainable_weights, model.weights))
    step = f"{data.recipe.batch_size:,} images a step; {trained:,} of {total:,} weights are trained"
    return f"{data.network.name}: {_count_images(data.dataset)}, {sides}; {step}"


def describe_segmenter_run(data):
    """A line about what is going to be trained, from a RunData: the segmenter, its crops, the cost of a step."""
    height, width = crop_size(data.dataset.train.masks.sizes, data.recipe.train_size, data.preprocessing)
    cost = data.recipe.batch_size * complexity(data.network.spec, input_shape=(height, width, 3)).multiply_adds
    step = f"{data.recipe.batch_size:,} images a step, {cost / 1e9:,.4g} G multiply-adds forward"
    return f"{data.network.name}: {_count_images(data.dataset)}, crops of {width}x{height} pixels; {step}"


def _count_images(dataset):
    return f"{len(dataset.train):,} training and {len(dataset.test):,} test images"


def class_table(class_names, columns):
    """Rows of a table of classes: {"class": name, "images": number, ...}, with the names and numbers of `columns`.

    All classes in their order; of more than LISTED_CLASSES, the largest and the smallest in the first column, with a
    row between them.
    """
    table = zip(class_names, *columns.values(), strict=True)
    rows = [
        {"class": name} | {key: f"{count:,}" for key, count in zip(columns, row, strict=True)} for name, *row in table
    ]
    if len(rows) <= LISTED_CLASSES:
        return rows
    rows = [rows[index] for index in np.argsort(-np.asarray(next(iter(columns.values()))), kind="stable")]
    half = LISTED_CLASSES // 2
    return [*rows[:half], {"class": f"({len(rows) - 2 * half:,} more)"} | dict.fromkeys(columns, ""), *rows[-half:]]


@cache
def _print_classes(class_names, columns):
    """Prints the rows of `class_table`, with `columns` as pairs."""
    table = Table("class", *(Column(name, justify="right") for name, _ in columns), box=None)
    for row in class_table(class_names, dict(columns)):
        name, *counts = row.values()
        table.add_row(Text(name), *counts)
    Console(stderr=True).print(table)
