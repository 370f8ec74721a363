"""`compare`: the speed of a network in several libraries, measured side by side in one run, with ratios."""

import datetime
import statistics
from collections.abc import Callable

import keras

from keras_resnet.benchmark.contenders import BASELINE, CONTENDERS, MEASURED_PRECISIONS, TASKS, reason_to_skip
from keras_resnet.benchmark.keras_networks import Job
from keras_resnet.benchmark.worker import Worker, WorkerDied
from keras_resnet.errors import check_integers, check_known
from keras_resnet.machine import machine, versions
from keras_resnet.variants import canonical_name, get_spec

SECONDS_PER_ROUND = 2
WARM_UP_STEPS = 2


def compare(
    model: str = "resnet50",
    batch_size: int = 16,
    image_size: int | None = None,
    precisions: tuple[str, ...] = ("float32",),
    contenders: tuple[str, ...] = tuple(CONTENDERS),
    tasks: tuple[str, ...] = tuple(TASKS),
    rounds: int = 5,
    steps: int | None = None,
    xla: bool | None = None,
    progress: Callable[[str], object] = lambda text: None,
) -> dict:
    """Measures the speed of a network in several libraries.

    Every contender in every precision has its own process until the end, so there must be memory for all of them. In
    each round every process measures once, one after another, in every other round in reverse order.

    Args:
        model: name of a network.
        batch_size: number of images in a step. They are random, and the same in every step.
        image_size: height and width of the images; None: the network's default size.
        precisions: names in MEASURED_PRECISIONS.
        contenders: names in CONTENDERS; those that are not installed or lack the network are reported as such.
        tasks: names in TASKS.
        rounds: number of rounds after the warm-up.
        steps: number of batches in a round; None: as many as take about two seconds.
        xla: whether to compile Keras with XLA; None: except on the CPU under TensorFlow, where it halves the speed.
        progress: function that is called with messages about the progress.

    Returns:
        A dict for JSON. `results` has a row for each task, contender and precision: `values` in `unit`, one per round,
        and their `median`. `ratio` is its speed relative to the `baseline`, stock Keras in the first precision, and
        `ratio_same_precision` relative to stock Keras in its own precision: median, minimum and maximum of the ratios
        within each round, or None without such a row. Memory is in bytes, the peak up to the end of the task.
        `not_measured` lists the others with a reason.

    Raises:
        ValueError: for an unknown name, with the nearest known ones, or a number that is too small.
    """
    spec, name = get_spec(model), canonical_name(model)
    image_size = spec.default_size if image_size is None else image_size
    known = {"precisions": MEASURED_PRECISIONS, "contenders": CONTENDERS, "tasks": TASKS}
    for argument, names in {"precisions": precisions, "contenders": contenders, "tasks": tasks}.items():
        _check_names(argument, names, known[argument])
    check_integers(batch_size=batch_size, rounds=rounds, steps=1 if steps is None else steps)
    check_integers(spec.minimum_size, image_size=image_size)
    report = {"date": _now(), "machine": machine(), "versions": versions()}
    with Workers(progress) as workers:
        for precision in dict.fromkeys(precisions):
            for contender in dict.fromkeys(contenders):
                workers.start(Job(contender, precision, name, batch_size, image_size, xla))
        rows = [row for task in TASKS if task in tasks for row in workers.measure(task, rounds, steps)]
    settings = {"model": name, "batch_size": batch_size, "image_size": image_size, "rounds": rounds, "xla": xla}
    return {
        **report,
        "settings": {**settings, "backend": keras.backend.backend()},
        "baseline": {"contender": BASELINE, "precision": precisions[0]},
        "results": [_with_ratios(row, rows, precisions[0]) for row in rows],
        "not_measured": workers.not_measured,
    }


def _now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _check_names(argument, names, known):
    if not names:
        raise ValueError(f"`{argument}` should name some of {list(known)}. Received: {argument}={names!r}")
    for name in names:
        check_known(argument, name, known)


def _with_ratios(row, rows, precision):
    """The row with its speed relative to the baseline in `precision` and in its own precision."""

    def ratio(precision):
        key = (row["task"], BASELINE, precision)
        baseline = [other for other in rows if (other["task"], other["contender"], other["precision"]) == key]
        return _ratio(row, baseline[0]) if baseline else None

    return {**row, "ratio": ratio(precision), "ratio_same_precision": ratio(row["precision"])}


def _ratio(row, baseline):
    """Relative speed in each round, summarised."""
    pairs = zip(row["values"], baseline["values"], strict=True)
    is_rate = TASKS[row["task"]].is_rate
    ratios = [value / reference if is_rate else reference / value for value, reference in pairs]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


class Workers:
    """The processes of a benchmark. One works at a time; if one dies, the others go on without it.

    Args:
        progress: function that is called with messages about the progress.
    """

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
        has_task = [worker for worker in self.workers if task in CONTENDERS[worker.job.contender].tasks]
        measurements = [_Measurement(worker, task) for worker in has_task]
        for measurement in measurements:
            self.progress(f"{task}: warming up {measurement.worker.network}, {measurement.worker.job.precision}")
            self._run(measurement, measurement.warm_up, steps)
        for number in range(rounds):
            self.progress(f"{task}: round {number + 1} of {rounds}")
            for measurement in measurements[:: -1 if number % 2 else 1]:
                self._run(measurement, measurement.measure)
        return [measurement.row() for measurement in measurements if measurement.worker in self.workers]

    def _run(self, measurement, function, *arguments):
        """Calls a method of a measurement; a process that dies is removed, one that has died is left out."""
        if measurement.worker not in self.workers:
            return
        try:
            function(*arguments)
        except WorkerDied as error:
            self.workers.remove(measurement.worker)
            measurement.worker.close()
            self._skip(measurement.worker.job, measurement.task, str(error))

    def _skip(self, job, task, reason):
        row = {"contender": job.contender, "precision": job.precision, "task": task, "reason": reason}
        self.not_measured.append(row)


class _Measurement:
    """One contender at one task."""

    def __init__(self, worker, task):
        self.worker, self.task = worker, task
        self.steps, self.answers = 1, []

    def warm_up(self, steps):
        """Compiles and allocates; chooses the number of steps of a round if it is not given."""
        if not TASKS[self.task].is_rate:
            self.worker.measure(self.task, 1)
            return
        self.worker.measure(self.task, WARM_UP_STEPS)
        self.steps = steps or self._steps_per_round()

    def _steps_per_round(self):
        steps = WARM_UP_STEPS
        while (seconds := self.worker.measure(self.task, steps)["seconds"]) < SECONDS_PER_ROUND / 2:
            steps *= 4
        return max(1, round(steps * SECONDS_PER_ROUND / seconds))

    def measure(self):
        """Measures one round."""
        self.answers.append(self.worker.measure(self.task, self.steps))

    def row(self):
        """The results as JSON values; `values` are images per second, or seconds."""
        task, job, last = TASKS[self.task], self.worker.job, self.answers[-1]
        seconds = [answer["seconds"] / self.steps for answer in self.answers]
        values = [job.batch_size / each for each in seconds] if task.is_rate else seconds
        return {
            "task": self.task,
            "contender": job.contender,
            "network": self.worker.network,
            "precision": job.precision,
            "unit": task.unit,
            "steps": self.steps,
            "values": values,
            "median": statistics.median(values),
            "device": last["device"],
            "peak_memory": last["peak_memory"] if task.reports_memory else None,
            "peak_device_memory": last["peak_device_memory"] if task.reports_memory else None,
        }
