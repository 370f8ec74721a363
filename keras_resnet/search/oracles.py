"""KerasTuner's oracles within a budget, and its loop over the trials.

KerasTuner is imported here: this module is itself imported where it is used.
"""

import shutil
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path

import keras_tuner
import numpy as np
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.errors import FatalError
from keras_tuner.src.distribute.utils import is_chief_oracle
from keras_tuner.src.engine.oracle import LOCKS, THREADS

from keras_resnet.files import write_json

OBJECTIVE = "top1_accuracy"
DRAWS = 2_000
"""Candidates drawn to find one that fits, before the smallest is taken; the Bayesian oracle chooses among as many."""
BEAT, SILENCE = 10, 60
"""Seconds between a worker's signs of life, and without one after which it is taken for dead."""


@contextmanager
def locked(oracle):
    """Within the block, no other thread is in the oracle: `keras_tuner.synchronized`, whose lock outlives an error."""
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


class WithinBudget:
    """In front of an oracle of KerasTuner: what it proposes fits the budget, and nothing it knows is lost.

    Args:
        candidates: Candidates.
        trials: how many.
        seed: integer.
        publish: function that is called with the oracle whenever a trial has ended.
        **arguments: of the oracle.
    """

    def __init__(self, candidates, trials, seed, publish, **arguments):
        space = keras_tuner.HyperParameters()
        candidates.declare(space)
        super().__init__(
            keras_tuner.Objective(OBJECTIVE, "max"),
            hyperparameters=space,
            seed=seed + 1,  # KerasTuner takes 0 for none
            max_consecutive_failed_trials=None,  # what makes all trials fail ends the search at once, see `Trials`
            **arguments,
        )
        self.max_trials = trials  # Hyperband's constructor does not take it
        self.verbose = 0
        self.candidates, self._publish = candidates, publish
        self._heard, self._workers = {}, {}  # worker -> when; trial -> the worker that has it, or had it last

    def _random_values(self):
        """Draws again until a candidate fits; where hardly any does, the smallest with what was drawn of the recipe."""
        values = self.candidates.first(islice(iter(super()._random_values, None), DRAWS))
        return None if self._duplicate(values) else values

    def create_trial(self, tuner_id):
        """As KerasTuner's; but a worker waits for the others, should one of their trials have to be done again."""
        with locked(self):
            self._heard[tuner_id] = began = time.monotonic()
            trial = super().create_trial(tuner_id)
            deaf = time.monotonic() - began
            self._heard = {name: heard + deaf for name, heard in self._heard.items()}
            if trial.status == "STOPPED" and self.ongoing_trials:
                self.tuner_ids.add(tuner_id)
                trial.status = "IDLE"
            return trial

    def get_trial(self, trial_id):
        """As KerasTuner's, and a sign of life: workers can ask the chief for nothing simpler. One that was given up,
        and whose trial nobody else has, gets it back."""
        with locked(self):
            if tuner_id := self._workers.get(trial_id):
                self._heard[tuner_id] = time.monotonic()
                if trial_id in self._retry_queue:
                    self._retry_queue.remove(trial_id)
                    self.tuner_ids.add(tuner_id)
                    self.ongoing_trials[tuner_id] = self.trials[trial_id]
                    self.save()
            return super().get_trial(trial_id)

    def give_up_the_silent(self, silence=SILENCE):
        """Takes workers that were not heard of for so many seconds for dead; the next to ask gets their trials."""
        with locked(self):
            now = time.monotonic()
            for tuner_id in [name for name in self.tuner_ids if now - self._heard[name] > silence]:
                self.tuner_ids.discard(tuner_id)
                if trial := self.ongoing_trials.pop(tuner_id, None):
                    self._retry_queue.append(trial.trial_id)
                    self.save()

    def update_trial(self, trial_id, metrics, step=0):
        """As KerasTuner's."""
        with locked(self):
            return super().update_trial(trial_id, metrics, step)

    def end_trial(self, trial):
        """As KerasTuner's; where two workers did a trial, since one was given up too early, the first end counts."""
        with locked(self):
            if trial.trial_id in self.end_order:
                return
            if trial.trial_id in self._retry_queue:
                self._retry_queue.remove(trial.trial_id)
            super().end_trial(trial)
        self._publish(self)

    def save(self):
        """As KerasTuner's, but whole or not at all: the process may be killed."""
        self._workers |= {trial.trial_id: tuner_id for tuner_id, trial in self.ongoing_trials.items()}
        write_json(self.get_state(), self._get_oracle_fname())

    def get_state(self):
        """As KerasTuner's, and who had which trial."""
        return super().get_state() | {"workers": self._workers}

    def set_state(self, state):
        """As KerasTuner's."""
        super().set_state(state)
        self._workers = state.get("workers", {})

    def _save_trial(self, trial):
        write_json(trial.get_state(), Path(self._get_trial_dir(trial.trial_id), "trial.json"))

    def reload(self):
        """As KerasTuner's; but a trial that had ended is not done again, which KerasTuner notes as ended and under way
        at once, and one that was drawn but not yet noted is drawn again."""
        super().reload()
        self._retry_queue = [trial_id for trial_id in self._retry_queue if trial_id not in self.end_order]
        for trial_id in self.trials.keys() - set(self.start_order):
            shutil.rmtree(self._get_trial_dir(trial_id))
            del self.trials[trial_id]


class RandomOracle(WithinBudget, keras_tuner.oracles.RandomSearchOracle):
    """Candidates at random."""


class BayesianOracle(WithinBudget, keras_tuner.oracles.BayesianOptimizationOracle):
    """KerasTuner's Gaussian process; but the next candidate is the most promising of many that fit, where KerasTuner
    climbs to one that may not fit, and would climb to it again."""

    def populate_space(self, trial_id):
        """The next candidate, as KerasTuner's oracles return it."""
        completed = [trial for trial in self.trials.values() if trial.status == "COMPLETED"]
        if len(completed) < self.num_initial_points:
            return self._random_populate_space()
        draws = (super(WithinBudget, self)._random_values() for _ in range(DRAWS))  # KerasTuner's, budget or not
        fitting = [values for values in draws if values and self.candidates.fits(values, measured=False)]
        if not fitting:
            return self._random_populate_space()
        ranked = (fitting[place] for place in np.argsort(self._bounds(fitting)))
        return {"status": "RUNNING", "values": self.candidates.first(ranked)}

    def _bounds(self, drawn):
        """For each {name: value} the lower confidence bound of its loss, as in KerasTuner's own `populate_space`."""
        self.gpr.fit(*self._vectorize_trials())
        rows = self._nonfixed_space()
        vectors = [[row.value_to_prob(values[row.name]) for row in rows] for values in drawn]
        mean, deviation = self.gpr.predict(np.array(vectors), return_std=True)
        return mean - self.beta * deviation


class HyperbandOracle(WithinBudget, keras_tuner.oracles.HyperbandOracle):
    """Many short trainings, the best of them longer: Li et al. 2018, arXiv:1603.06560."""


ORACLES = {
    # name -> (class, its arguments for so many trials of so many epochs)
    "random": (RandomOracle, lambda trials, epochs: {}),
    # KerasTuner's default, three random candidates for each row of the space, would leave none to choose
    "bayesian": (BayesianOracle, lambda trials, epochs: {"num_initial_points": max(3, trials // 4)}),
    "hyperband": (HyperbandOracle, lambda trials, epochs: {"max_epochs": epochs, "hyperband_iterations": None}),
}


class Trials(BaseTuner):
    """KerasTuner's loop over the trials, alone, as chief or as worker; it leaves no state beside the oracle's.

    Args:
        oracle: from ORACLES.
        train: (trial's folder, {name: value}) -> {metric: value}.
        workdir: folder for the oracle's state and the trials.
    """

    def __init__(self, oracle, train, workdir):
        super().__init__(oracle, directory=workdir, project_name=".")
        self._train = train

    def run_trial(self, trial):
        """The metrics of a candidate. One that diverges gets nothing right; one that has no room fails."""
        try:
            with every(BEAT, lambda: self.oracle.get_trial(trial.trial_id)):
                return self._train(Path(self.get_trial_dir(trial.trial_id)), trial.hyperparameters.values)
        except FloatingPointError as error:
            trial.message = str(error)
            return {OBJECTIVE: 0.0}
        except (OSError, ValueError) as error:  # the next one would meet it too
            raise FatalError(str(error)) from error

    def pre_create_trial(self):
        """KerasTuner asks again at once when there is nothing to do but to wait."""
        time.sleep(0.2)

    def save(self):
        """Nothing: the oracle saves itself."""

    def search(self):
        """Runs trials until the oracle has no more; as chief, gives them to workers, and on when one dies.

        Raises:
            ValueError, OSError: where `run_trial` says that no candidate can be trained.
        """
        try:
            with every(BEAT, self.oracle.give_up_the_silent) if is_chief_oracle() else nullcontext():
                super().search()
        except FatalError as error:
            raise error.__cause__ from None

    @property
    def is_worker(self):
        """Whether the oracle is in another process, the chief."""
        return self._is_worker()


@contextmanager
def every(seconds, action):
    """Within the block, something is done time and again beside it."""
    done = threading.Event()

    def repeat():
        while not done.wait(seconds):
            with suppress(Exception):  # a chief that is started again answers later
                action()

    threading.Thread(target=repeat, daemon=True).start()
    try:
        yield
    finally:
        done.set()
