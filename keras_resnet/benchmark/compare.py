"""A network in several libraries side by side: what is asked for, checked; what came out, with its ratios."""

import datetime
import statistics

import keras

from keras_resnet.benchmark.contenders import BASELINE, CONTENDERS, PRECISIONS, TASKS
from keras_resnet.benchmark.networks import Job
from keras_resnet.benchmark.rounds import Field
from keras_resnet.errors import check_integers, unknown_name_error
from keras_resnet.machine import machine, versions
from keras_resnet.variants import canonical_name, get_spec


def compare(
    model="resnet50",
    batch_size=16,
    image_size=None,
    precisions=("float32",),
    contenders=tuple(CONTENDERS),
    tasks=tuple(TASKS),
    rounds=5,
    steps=None,
    xla=None,
    progress=lambda text: None,
):
    """Measures a network in several libraries, in one run.

    Every contender in every precision has a process of its own, and all of them stay until the end: there must be
    memory for all. One works at a time; in each round each has its turn, in every other round in the opposite order.

    Args:
        model: name of a network.
        batch_size: images a step; they are random, and the same in every step.
        image_size: their height and width; default the network's usual one.
        precisions: names in PRECISIONS.
        contenders: names in CONTENDERS; those that are not installed or lack the network are listed as such.
        tasks: names in TASKS.
        rounds: turns for each contender, not counting those that warm it up.
        steps: batches a turn; default as many as take about two seconds.
        xla: whether Keras compiles with XLA; default Keras's choice, but False on the CPU under TensorFlow, where it
            halves the speed.
        progress: function that is told in words what is going on.

    Returns:
        A dict for JSON. `results` has a row for each task, contender and precision: `values` in `unit`, one a round,
        and their `median`. `ratio` is how many times as fast it was as the `baseline`, stock Keras in the first
        precision; `ratio_same_precision` as stock Keras in its own: median, least and greatest of the ratios within
        each round, or None without such a row. Memory is in bytes, the most held up to the end of the task.
        `not_measured` says who is missing, and why.

    Raises:
        ValueError: for an unknown name, with the nearest known ones, or a number that is too small.
    """
    spec, name = get_spec(model), canonical_name(model)
    image_size = spec.default_size if image_size is None else image_size
    _check_names(precisions=(precisions, PRECISIONS), contenders=(contenders, CONTENDERS), tasks=(tasks, TASKS))
    check_integers(batch_size=batch_size, rounds=rounds)
    check_integers(spec.minimum_size, image_size=image_size)
    if steps is not None:
        check_integers(steps=steps)
    facts = {"date": _now(), "machine": machine(), "versions": versions()}
    with Field(progress) as field:
        for precision in dict.fromkeys(precisions):
            for contender in dict.fromkeys(contenders):
                field.enter(Job(contender, precision, name, batch_size, image_size, xla))
        rows = [row for task in TASKS if task in tasks for row in field.run(task, rounds, steps)]
    settings = {"model": name, "batch_size": batch_size, "image_size": image_size, "rounds": rounds, "xla": xla}
    return {
        **facts,
        "settings": {**settings, "backend": keras.backend.backend()},
        "baseline": {"contender": BASELINE, "precision": precisions[0]},
        "results": [_with_ratios(row, rows, precisions[0]) for row in rows],
        "not_measured": field.not_measured,
    }


def _now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _check_names(**arguments):
    """Each argument: the names given, and those that exist."""
    for argument, (names, known) in arguments.items():
        for name in names:
            if name not in known:
                raise unknown_name_error(argument, name, known)
        if not names:
            raise ValueError(f"`{argument}` should name some of {list(known)}. Received: {argument}={names!r}")


def _with_ratios(row, rows, precision):
    """The row, compared with stock Keras in `precision` and in its own."""

    def ratio(precision):
        key = (row["task"], BASELINE, precision)
        stock = [other for other in rows if (other["task"], other["contender"], other["precision"]) == key]
        return _ratio(row, stock[0]) if stock else None

    return {**row, "ratio": ratio(precision), "ratio_same_precision": ratio(row["precision"])}


def _ratio(row, stock):
    """How many times as fast, round by round."""
    pairs = zip(row["values"], stock["values"], strict=True)
    in_batches = TASKS[row["task"]].in_batches
    ratios = [ours / theirs if in_batches else theirs / ours for ours, theirs in pairs]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
