"""KerasTuner's oracles restricted to a budget, and its loop over the trials.

This module imports KerasTuner, and is itself imported only where it is used.
"""

import shutil
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import TypedDict

import keras_tuner
import numpy as np
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.errors import FatalError
from keras_tuner.src.distribute.utils import is_chief_oracle
from keras_tuner.src.engine.oracle import LOCKS, THREADS

from keras_resnet.errors import bounded_repr
from keras_resnet.files import read_json, write_json

OBJECTIVE = "top1_accuracy"
MAX_SAMPLES = 2_000
"""Candidates sampled to find one that fits, before the smallest is taken; the Bayesian oracle ranks as many."""
HEARTBEAT_S, TIMEOUT_S = 10, 60
"""Seconds between a worker's heartbeats, and after its last one until the chief assumes that it has died."""


class OracleState(TypedDict):
    """Values of KerasTuner's oracle.json that name trials."""

    start_order: list[str]
    end_order: list[str]
    retry_queue: list[str]
    ongoing_trials: dict[str, str]


class TrialState(TypedDict):
    """The value of KerasTuner's trial.json that names the trial."""

    trial_id: str


@contextmanager
def oracle_lock(oracle):
    """Holds the oracle's lock, as `keras_tuner.synchronized` does, and releases it after an error too."""
    name = threading.current_thread().name
    if THREADS[oracle] == name:
        yield
        return
    with LOCKS[oracle]:
        THREADS[oracle] = name
        try:
            yield
        finally:
            THREADS[oracle] = None


class BudgetedOracle:
    """Mixin for KerasTuner's oracles: candidates fit a BudgetedSpace, and the oracle survives killed processes.

    `on_trial_end` is called with the oracle after each trial; `arguments` are those of KerasTuner's oracle.
    """

    def __init__(self, space, trials, seed, on_trial_end, **arguments):
        hp = keras_tuner.HyperParameters()
        space.declare(hp)
        super().__init__(
            keras_tuner.Objective(OBJECTIVE, "max"),
            hyperparameters=hp,
            seed=seed + 1,  # KerasTuner takes 0 for None
            max_consecutive_failed_trials=None,  # errors that affect every trial end the search at once, see TrialLoop
            **arguments,
        )
        self.max_trials = trials  # Hyperband's constructor does not accept it
        self.verbose = 0
        self.budgeted_space, self.on_trial_end = space, on_trial_end
        self._last_seen = {}  # {worker: time of its last request}
        self._worker_of_trial = {}  # {trial id: the worker that has it, or had it last}

    def _random_values(self):
        """Samples until a candidate fits; if MAX_SAMPLES do not, the smallest network with the last sample's recipe."""
        values = self.budgeted_space.first_fitting(islice(iter(super()._random_values, None), MAX_SAMPLES))
        return None if self._duplicate(values) else values

    def create_trial(self, tuner_id):
        """As KerasTuner's, but a worker without a trial stays idle while others run, in case one of them dies."""
        with oracle_lock(self):
            self._last_seen[tuner_id] = start = time.monotonic()
            trial = super().create_trial(tuner_id)
            blocked = time.monotonic() - start  # meanwhile no heartbeat could be received
            self._last_seen = {name: seen + blocked for name, seen in self._last_seen.items()}
            if trial.status == "STOPPED" and self.ongoing_trials:
                self.tuner_ids.add(tuner_id)
                trial.status = "IDLE"
            return trial

    def get_trial(self, trial_id):
        """As KerasTuner's, and a heartbeat: it is the simplest request that a worker can send to the chief.

        A worker that was dropped gets its trial back, unless another worker has it.
        """
        with oracle_lock(self):
            if tuner_id := self._worker_of_trial.get(trial_id):
                self._last_seen[tuner_id] = time.monotonic()
                if trial_id in self._retry_queue:
                    self._retry_queue.remove(trial_id)
                    self.tuner_ids.add(tuner_id)
                    self.ongoing_trials[tuner_id] = self.trials[trial_id]
                    self.save()
            return super().get_trial(trial_id)

    def drop_silent_workers(self, timeout=TIMEOUT_S):
        """Drops workers without a request for `timeout` seconds; their trials go to the next workers that ask."""
        with oracle_lock(self):
            now = time.monotonic()
            for tuner_id in [name for name in self.tuner_ids if now - self._last_seen[name] > timeout]:
                self.tuner_ids.discard(tuner_id)
                if trial := self.ongoing_trials.pop(tuner_id, None):
                    self._retry_queue.append(trial.trial_id)
                    self.save()

    def update_trial(self, trial_id, metrics, step=0):
        """As KerasTuner's."""
        with oracle_lock(self):
            return super().update_trial(trial_id, metrics, step)

    def end_trial(self, trial):
        """As KerasTuner's; if two workers ran a trial because one was dropped too early, the first result counts."""
        with oracle_lock(self):
            if trial.trial_id in self.end_order:
                return
            if trial.trial_id in self._retry_queue:
                self._retry_queue.remove(trial.trial_id)
            super().end_trial(trial)
        self.on_trial_end(self)

    def save(self):
        """As KerasTuner's, but atomically: the process may be killed."""
        self._worker_of_trial |= {trial.trial_id: tuner_id for tuner_id, trial in self.ongoing_trials.items()}
        write_json(self.get_state(), self._get_oracle_fname())

    def get_state(self):
        """As KerasTuner's, and the worker of each trial."""
        return super().get_state() | {"workers": self._worker_of_trial}

    def set_state(self, state):
        """As KerasTuner's, and the worker of each trial."""
        super().set_state(state)
        self._worker_of_trial = state.get("workers", {})

    def _save_trial(self, trial):
        write_json(trial.get_state(), Path(self._get_trial_dir(trial.trial_id), "trial.json"))

    def reload(self):
        """As KerasTuner's, but consistent after a kill.

        Trials that KerasTuner saved both as ended and as ongoing are not repeated; trials that were created but not
        yet in the saved state are created again. Raises ValueError for damaged files, before a trial is removed.
        """
        state = read_json(self._get_oracle_fname(), OracleState)
        listed = {*state["start_order"], *state["end_order"]}
        found = {
            path.parent.name.removeprefix("trial_"): read_json(path, TrialState)["trial_id"]
            for path in Path(self._project_dir).glob("trial_*/trial.json")
        }
        if not listed <= found.keys() or not all(name == it and it.isdecimal() for name, it in found.items()):
            raise ValueError(f"its trials are {bounded_repr(sorted(listed))}, those in folders {bounded_repr(found)}")
        super().reload()
        self._retry_queue = [trial_id for trial_id in self._retry_queue if trial_id not in self.end_order]
        new = self.trials.keys() - set(self.start_order)
        if ended := [trial_id for trial_id in new if self.trials[trial_id].status == "COMPLETED"]:
            raise ValueError(f"it does not list the completed trials {sorted(ended)}")
        for trial_id in new:
            shutil.rmtree(self._get_trial_dir(trial_id))
            del self.trials[trial_id]


class RandomOracle(BudgetedOracle, keras_tuner.oracles.RandomSearchOracle):
    """Random search."""


class BayesianOracle(BudgetedOracle, keras_tuner.oracles.BayesianOptimizationOracle):
    """KerasTuner's Gaussian process, choosing the most promising of many samples that fit the budget.

    KerasTuner's own optimizer of the acquisition function may end at a candidate that does not fit, repeatedly.
    """

    def populate_space(self, trial_id):
        """The next candidate, in the form that KerasTuner's oracles return it."""
        completed = [trial for trial in self.trials.values() if trial.status == "COMPLETED"]
        if len(completed) < self.num_initial_points:
            return self._random_populate_space()
        samples = (super(BudgetedOracle, self)._random_values() for _ in range(MAX_SAMPLES))  # budget ignored
        fitting = [values for values in samples if values and self.budgeted_space.fits(values, measure=False)]
        if not fitting:
            return self._random_populate_space()
        self.gpr.fit(*self._vectorize_trials())
        vectors = [[row.value_to_prob(values[row.name]) for row in self._nonfixed_space()] for values in fitting]
        mean, deviation = self.gpr.predict(np.array(vectors), return_std=True)
        ranked = (fitting[index] for index in np.argsort(mean - self.beta * deviation))  # bounds of the loss
        return {"status": "RUNNING", "values": self.budgeted_space.first_fitting(ranked)}


class HyperbandOracle(BudgetedOracle, keras_tuner.oracles.HyperbandOracle):
    """Many short trainings, and longer ones of the best candidates: Li et al. 2018, arXiv:1603.06560."""


ORACLES = {
    # name -> (class, function of the numbers of trials and epochs that returns further arguments)
    "random": (RandomOracle, lambda trials, epochs: {}),
    # KerasTuner's default, three random candidates for each row of the space, can be more than all trials
    "bayesian": (BayesianOracle, lambda trials, epochs: {"num_initial_points": max(3, trials // 4)}),
    "hyperband": (HyperbandOracle, lambda trials, epochs: {"max_epochs": epochs, "hyperband_iterations": None}),
}


class TrialLoop(BaseTuner):
    """KerasTuner's loop over the trials, in one process, or as chief or worker; only the oracle keeps state.

    `evaluate` is a function (folder of the trial, {name: value}) -> {metric: value}.
    """

    def __init__(self, oracle, evaluate, workdir):
        super().__init__(oracle, directory=workdir, project_name=".")
        self.evaluate = evaluate

    def run_trial(self, trial):
        """The metrics of a candidate: accuracy 0 if its training diverges. OSError and ValueError end the search."""
        try:
            with run_every(HEARTBEAT_S, lambda: self.oracle.get_trial(trial.trial_id)):
                return self.evaluate(Path(self.get_trial_dir(trial.trial_id)), trial.hyperparameters.values)
        except FloatingPointError as error:
            trial.message = str(error)
            return {OBJECTIVE: 0.0}
        except (OSError, ValueError) as error:  # every other candidate would raise it as well
            raise FatalError(str(error)) from error

    def pre_create_trial(self):
        """Waits a moment: idle workers ask again and again."""
        time.sleep(0.2)

    def save(self):
        """Does nothing: the oracle saves its own state."""

    def search(self):
        """Runs trials until the oracle has no more; the chief instead serves the workers. Raises as `evaluate`."""
        try:
            with run_every(HEARTBEAT_S, self.oracle.drop_silent_workers) if is_chief_oracle() else nullcontext():
                super().search()
        except FatalError as error:
            raise error.__cause__ from None

    @property
    def is_worker(self):
        """Whether the oracle runs in another process, the chief."""
        return self._is_worker()


@contextmanager
def run_every(seconds, action):
    """Calls `action` regularly in another thread until the block ends."""
    done = threading.Event()

    def repeat():
        while not done.wait(seconds):
            with suppress(Exception):  # the chief may be restarting
                action()

    threading.Thread(target=repeat, daemon=True).start()
    try:
        yield
    finally:
        done.set()
