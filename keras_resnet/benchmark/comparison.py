"""`compare`: the speed of a network in several libraries, measured side by side in one run; its report as a table."""

import datetime
import shutil
import statistics
from collections.abc import Callable
from contextlib import contextmanager
from itertools import groupby

import keras
import numpy as np

from keras_resnet.benchmark.contenders import BASELINES, CONTENDERS, MEASURED_PRECISIONS, TASKS, reason_to_skip
from keras_resnet.benchmark.detectors import IMAGE_SIZE, cost_rows
from keras_resnet.benchmark.keras_networks import Job
from keras_resnet.benchmark.segmenter_training import IMAGE_SIZE as SEGMENTATION_SIZE
from keras_resnet.benchmark.worker import Worker, WorkerDied
from keras_resnet.data.preprocessing import MAX_SIDE
from keras_resnet.errors import check_integers, check_known, value_error
from keras_resnet.machine import machine, versions
from keras_resnet.training.recipe import MAX_BATCH_SIZE
from keras_resnet.training.recipes import get_recipe
from keras_resnet.variants import canonical_name, get_spec, network_task

SECONDS_PER_ROUND = 2
WARM_UP_STEPS = 2
DEFAULT_BATCH_SIZES = {"classification": 16, "detection": 1, "segmentation": 2}
"""DeepLabV3 cannot be trained with one image: its batch norm of mean features has one value for each channel then."""
IMAGE_SIZES = {"detection": IMAGE_SIZE, "segmentation": SEGMENTATION_SIZE}
"""Kind of networks -> default height and width of images that need not be square."""


def compare(
    model: str = "resnet50",
    batch_size: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    precisions: tuple[str, ...] = ("float32",),
    contenders: tuple[str, ...] | None = None,
    tasks: tuple[str, ...] | None = None,
    rounds: int = 5,
    steps: int | None = None,
    xla: bool | None = None,
    recipe: str | None = None,
    torch_python: str | None = None,
    progress: Callable[[str], object] = lambda text: None,
) -> dict:
    """Measures the speed of a network in several libraries.

    Every contender in every precision has its own process until the end, so there must be memory for all of them. In
    each round every process measures once, one after another, in every other round in reverse order.

    Args:
        model: name of a network, a classifier, a detector or a segmenter.
        batch_size: number of images in a step. They are random, and the same in every step. None: 16, 1 for a
            detector, and 2 for a segmenter.
        image_size: side of the images, or for a detector or segmenter also (height, width); None: the network's default
            size, and 800 x 1333 for a detector.
        precisions: names in MEASURED_PRECISIONS.
        contenders: names in CONTENDERS; those that are not installed or lack the network are reported as such. None:
            all that have one of the tasks.
        tasks: names in TASKS; None: all for such a network.
        rounds: number of rounds after the warm-up.
        steps: number of batches in a round; None: as many as take about two seconds.
        xla: whether to compile Keras with XLA; None: except on the CPU under TensorFlow, where it halves the speed.
        recipe: name of a recipe, whose crops and augmentation the tasks "pipeline" and "whole_run" use. None: random
            crops and mirroring, only mirroring for a detector, and "torchvision_segmentation" for a segmenter.
        torch_python: Python interpreter of an environment that has torchvision, for its detectors and segmenters; None:
            this one.
        progress: function that is called with messages about the progress.

    Returns:
        A dict for JSON. `results` has a row for each task, contender and precision: `values` in `unit`, one per round,
        and their `median`. `ratio` is its speed relative to the `baseline`, stock Keras or torchvision's network in
        the first precision, and `ratio_same_precision` relative to that in its own precision: median, minimum and
        maximum of the ratios within each round, or None without such a row. The task "parts" has `costs`, the rows of
        `detectors.cost_rows`. Memory is in bytes, the peak up to the end of the task. `not_measured` lists the others
        with a reason. `cpu_seconds` of all cores for a batch depend less on what else the machine does.

    Raises:
        ValueError: for an unknown name, with the nearest known ones, or a number that is too small.
    """
    spec, name = get_spec(model), canonical_name(model)
    kind = network_task(name) or ""
    if kind == "localization":
        hint = "The cost of a localizer is nearly that of its network."
        raise value_error("model", name, "a classifier, a detector or a segmenter", hint)
    get_recipe("quickstart" if recipe is None else recipe)  # raises for an unknown name
    tasks = _chosen("tasks", tasks, [task for task, row in TASKS.items() if kind in row.networks], TASKS, name)
    having = [
        contender for contender, row in CONTENDERS.items() if kind in row.networks and set(row.tasks) & set(tasks)
    ]
    contenders = _chosen("contenders", contenders, having, CONTENDERS, f"the tasks {', '.join(tasks)}")
    precisions = _chosen("precisions", precisions, MEASURED_PRECISIONS, MEASURED_PRECISIONS, name)
    if torch_python is not None and shutil.which(torch_python) is None:
        raise value_error("torch_python", torch_python, "the path of a Python interpreter")
    check_integers(rounds=rounds, steps=1 if steps is None else steps)
    image_size = _image_size(spec, kind, image_size)
    batch_size = DEFAULT_BATCH_SIZES[kind] if batch_size is None else batch_size
    check_integers(maximum=MAX_BATCH_SIZE, batch_size=batch_size)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    report = {"date": date, "machine": machine(), "versions": versions()}
    with Workers(progress) as workers:
        for precision in precisions:
            for contender in contenders:
                workers.start(Job(contender, precision, name, batch_size, image_size, xla, recipe, torch_python))
        rows = [row for task in TASKS if task in tasks for row in workers.measure(task, rounds, steps)]
    settings = {"model": name, "batch_size": batch_size, "image_size": image_size, "rounds": rounds}
    baseline = {"contender": BASELINES[kind], "precision": precisions[0]}
    return {
        **report,
        "settings": {**settings, "xla": xla, "recipe": recipe, "backend": keras.backend.backend()},
        "baseline": baseline,
        "results": [_with_ratios(row, rows, **baseline) for row in rows],
        "not_measured": workers.not_measured,
    }


def _chosen(argument, given, available, known, what):
    """The names given, each once, or all that are available; ValueError for others than those, with the nearest."""
    if given is None:
        return list(available)
    if not given:
        raise value_error(argument, given, f"some of {list(available)}")
    for one in given:
        check_known(argument, one, known)
        if one not in available:
            raise value_error(argument, one, f"of {list(available)}, for {what}")
    return list(dict.fromkeys(given))


def _image_size(spec, kind, image_size):
    """The side of a classifier's images, or height and width of a detector's or segmenter's."""
    if kind not in IMAGE_SIZES:
        image_size = spec.default_size if image_size is None else image_size
        check_integers(spec.minimum_size, MAX_SIDE, image_size=image_size)
        return image_size
    sides = IMAGE_SIZES[kind] if image_size is None else image_size
    sides = tuple(sides) if isinstance(sides, (tuple, list)) else (sides, sides)
    if len(sides) != 2:
        raise value_error("image_size", image_size, "a number of pixels, or height and width")
    for side in sides:
        check_integers(32, MAX_SIDE, image_size=side)
    return sides


def _with_ratios(row, rows, contender, precision):
    """The row with its speed relative to the baseline in `precision` and in its own precision."""

    def ratio(precision):
        key = (row["task"], contender, precision)
        for baseline in rows:
            if (baseline["task"], baseline["contender"], baseline["precision"]) == key:
                sign = 1 if TASKS[row["task"]].is_rate else -1
                ratios = (np.divide(row["values"], baseline["values"]) ** sign).tolist()
                return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        return None

    return {**row, "ratio": ratio(precision), "ratio_same_precision": ratio(row["precision"])}


class Workers:
    """The processes of a benchmark. One works at a time; if one dies, the others go on without it."""

    def __init__(self, progress):
        self.progress = progress
        self.workers = []
        self.not_measured = []
        """Rows of contender, precision, task (None: it did not start) and reason."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers:
            worker.close()

    def start(self, job):
        """Starts a process for the job, unless there is a reason to skip it."""
        self.progress(f"starting {job.contender}, {job.precision}")
        if reason := reason_to_skip(job):
            self._skip(job, None, reason)
            return
        try:
            self.workers.append(Worker(job))
        except WorkerDied as error:
            self._skip(job, None, str(error))

    def measure(self, task, rounds, steps):
        """Measures a task in rounds; returns a row of results for each contender that has it and lives to its end."""
        answers = {worker: [] for worker in self.workers if task in CONTENDERS[worker.job.contender].tasks}
        num_steps = {}
        for worker in answers:
            self.progress(f"{task}: warming up {worker.network}, {worker.job.precision}")
            with self._remove_if_it_dies(worker, task):
                num_steps[worker] = _warm_up(worker, task, steps)
        for number in range(rounds):
            self.progress(f"{task}: round {number + 1} of {rounds}")
            for worker in list(answers)[:: -1 if number % 2 else 1]:
                if worker in self.workers:
                    with self._remove_if_it_dies(worker, task):
                        answers[worker].append(worker.measure(task, num_steps[worker]))
        return [_row(worker, task, num_steps[worker], answers[worker]) for worker in answers if worker in self.workers]

    @contextmanager
    def _remove_if_it_dies(self, worker, task):
        try:
            yield
        except WorkerDied as error:
            self.workers.remove(worker)
            worker.close()
            self._skip(worker.job, task, str(error))

    def _skip(self, job, task, reason):
        row = {"contender": job.contender, "precision": job.precision, "task": task, "reason": reason}
        self.not_measured.append(row)


def _warm_up(worker, task, steps):
    """Compiles and allocates; returns the number of steps of a round, chosen for about two seconds if it is None."""
    if not TASKS[task].is_rate:
        worker.measure(task, 1)
        return 1
    worker.measure(task, WARM_UP_STEPS)
    if steps:
        return steps
    steps = WARM_UP_STEPS
    while (seconds := worker.measure(task, steps)["seconds"]) < SECONDS_PER_ROUND / 2:
        steps *= 4
    return max(1, round(steps * SECONDS_PER_ROUND / seconds))


def _row(worker, task, steps, answers):
    """The results of one contender at one task as JSON values; `values` are images per second, or seconds."""
    row, job = TASKS[task], worker.job
    seconds = [answer["seconds"] / steps for answer in answers]
    values = [job.batch_size / each for each in seconds] if row.is_rate else seconds
    return {
        "task": task,
        "contender": job.contender,
        "network": worker.network,
        "precision": job.precision,
        "unit": row.unit,
        "steps": steps,
        "values": values,
        "median": statistics.median(values),
        "cpu_seconds": statistics.median(answer["cpu_seconds"] for answer in answers) / steps,
        "device": answers[-1]["device"],
        "peak_memory": answers[-1]["peak_memory"] if row.reports_memory else None,
        "peak_device_memory": answers[-1]["peak_device_memory"] if row.reports_memory else None,
        "costs": _costs(answers, steps, job) if answers[-1].get("parts") else None,
    }


def _costs(answers, steps, job):
    """The rows of `cost_rows` for the medians of the rounds, for one image."""
    seconds = {
        part: statistics.median(answer["parts"][part] for answer in answers) / steps / job.batch_size
        for part in answers[-1]["parts"]
    }
    return cost_rows(seconds, get_spec(job.model), job.image_size)


def table_rows(report):
    """Yields {column: text} for each task, contender and precision."""
    baseline = "vs {contender} {precision}".format(**report["baseline"])
    for task, rows in groupby(report["results"], key=lambda row: row["task"]):
        for number, row in enumerate(rows):
            median, memory = row["median"], row["peak_device_memory"] or row["peak_memory"]
            digits = 2 if median < 10 else 1 if median < 100 else 0
            yield {
                "task": "" if number else task,
                "network": row["network"],
                "precision": row["precision"],
                "median": f"{median:.{digits}f} {row['unit']}",
                baseline: _ratio_text(row["ratio"]),
                "vs same precision": _ratio_text(row["ratio_same_precision"]),
                "CPU s": f"{row['cpu_seconds']:.3f}",
                "peak memory": f"{memory / 2**30:.2f} GiB" if memory else "",
            }


def part_rows(report):
    """Yields {column: text} for each part of a detector, for the contenders that measured them."""
    for row in report["results"]:
        for number, cost in enumerate(row["costs"] or ()):
            ratio = cost["seconds"] / cost["at_body_rate"] if cost["multiply_adds"] else None
            yield {
                "network": "" if number else row["network"],
                "precision": "" if number else row["precision"],
                "part": cost["part"],
                "ms": f"{1e3 * cost['seconds']:.1f}",
                "G multiply-adds": f"{cost['multiply_adds'] / 1e9:.1f}" if ratio else "",
                "ms at the body's rate": f"{1e3 * cost['at_body_rate']:.1f}" if ratio else "",
                "times that": f"{ratio:.2f}" if ratio else "",
            }


def _ratio_text(ratio):
    return "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio) if ratio else ""


def _size_text(image_size):
    return "x".join(map(str, image_size)) if isinstance(image_size, (tuple, list)) else str(image_size)


def notes(report):
    """Lines about the settings and the machine, and what was not measured."""
    settings, computer = report["settings"], report["machine"]
    devices = dict.fromkeys(row["device"] for row in report["results"] if row["device"])
    lines = [
        f"{settings['model']}, batch {settings['batch_size']} at {_size_text(settings['image_size'])} px, Keras on "
        f"{settings['backend']}, "
        f"{settings['rounds']} rounds: medians; ratios within a round, above 1 is faster (least to greatest)",
        ", ".join([computer["cpu"], f"{computer['cores']} cores", *devices]),
        ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    ]
    skipped = {}
    for row in report["not_measured"]:
        skipped.setdefault((row["contender"], row["task"], row["reason"]), []).append(row["precision"])
    for (contender, task, reason), precisions in skipped.items():
        lines.append(f"not measured: {' '.join(filter(None, (contender, task)))} ({', '.join(precisions)}): {reason}")
    return lines
