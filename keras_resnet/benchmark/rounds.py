"""Contenders in turns: only one works at a time, and who dies is taken out while the others go on."""

import statistics

from keras_resnet.benchmark.contenders import CONTENDERS, TASKS, obstacle
from keras_resnet.benchmark.worker import Worker, WorkerDied

SECONDS_A_ROUND = 2
WARM_UP_STEPS = 2


class Field:
    """Those that take part, each in a process of its own."""

    def __init__(self, progress):
        """Args: progress: function that is told in words what is going on."""
        self.progress = progress
        self.workers = []
        self.not_measured = []
        """Rows of contender, precision, task (None: not even started) and the reason."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers:
            worker.close()

    def enter(self, job):
        """Starts a process for the job, if its contender can take part."""
        self.progress(f"starting {job.contender}, {job.precision}")
        reason = obstacle(job)
        if reason:
            return self._miss(job, None, reason)
        try:
            self.workers.append(Worker(job))
        except WorkerDied as death:
            self._miss(job, None, str(death))

    def run(self, task, rounds, steps):
        """One row of results for each contender that has the task and lives to its end."""
        lanes = [_Lane(worker, task) for worker in self.workers if task in CONTENDERS[worker.job.contender].tasks]
        for lane in lanes:
            self.progress(f"{task}: warming up {lane.worker.network}, {lane.worker.job.precision}")
            self._surviving(lane, lane.warm_up, steps)
        for number in range(rounds):
            self.progress(f"{task}: round {number + 1} of {rounds}")
            for lane in lanes[:: -1 if number % 2 else 1]:
                self._surviving(lane, lane.turn)
        return [lane.row() for lane in lanes if lane.worker in self.workers]

    def _surviving(self, lane, action, *arguments):
        """Does it, unless the lane's process is dead; if it dies now, says so and goes on without it."""
        if lane.worker not in self.workers:
            return
        try:
            action(*arguments)
        except WorkerDied as death:
            self.workers.remove(lane.worker)
            lane.worker.close()
            self._miss(lane.worker.job, lane.task, str(death))

    def _miss(self, job, task, reason):
        row = {"contender": job.contender, "precision": job.precision, "task": task, "reason": reason}
        self.not_measured.append(row)


class _Lane:
    """One contender at one task."""

    def __init__(self, worker, task):
        self.worker, self.task = worker, task
        self.steps, self.answers = 1, []

    def warm_up(self, steps):
        """Compiles and allocates; settles the steps of a round: if none are given, by measuring more and more."""
        if not TASKS[self.task].in_batches:
            self.worker.measure(self.task, 1)
            return
        self.worker.measure(self.task, WARM_UP_STEPS)
        self.steps = steps or self._steps_a_round()

    def _steps_a_round(self):
        steps = WARM_UP_STEPS
        while (seconds := self.worker.measure(self.task, steps)["seconds"]) < SECONDS_A_ROUND / 2:
            steps *= 4
        return max(1, round(steps * SECONDS_A_ROUND / seconds))

    def turn(self):
        """One round."""
        self.answers.append(self.worker.measure(self.task, self.steps))

    def row(self):
        """What came out, as JSON values; `values` are rates of images or times of doing it once."""
        task, job, last = TASKS[self.task], self.worker.job, self.answers[-1]
        seconds = [answer["seconds"] / self.steps for answer in self.answers]
        values = [job.batch_size / each for each in seconds] if task.in_batches else seconds
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
            "peak_memory": last["peak_memory"] if task.peaks else None,
            "peak_device_memory": last["peak_device_memory"] if task.peaks else None,
        }
