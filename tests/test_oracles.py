"""KerasTuner's oracles within a budget, and the loop over the trials, without training anything."""

import errno
import json
import shutil
import threading
import time

import numpy as np
import pytest
from keras_tuner.src.distribute.oracle_chief import exit_chief
from sklearn.linear_model import BayesianRidge
from support import digits_cost, digits_space

from keras_resnet.files import read_json, write_json
from keras_resnet.search import budget as budget_module
from keras_resnet.search.oracles import ORACLES, TrialLoop
from keras_resnet.search.space import SPACE, resolve_space, space_for_images, to_recipe_changes, to_spec


def make_oracle(name, folder, trials=12, epochs=9, on_trial_end=lambda oracle: None, **limits):
    """An oracle and its loop over trials with simulated accuracies."""
    oracle_class, arguments = ORACLES[name]
    oracle = oracle_class(digits_space(**limits), trials, 0, on_trial_end, **arguments(trials, epochs))
    return oracle, TrialLoop(oracle, lambda folder, values: {"top1_accuracy": simulated_accuracy(values)}, folder)


def simulated_accuracy(values):
    """Highest for a learning rate of 0.1."""
    return 1 - abs(np.log10(values["learning_rate"] / 0.1))


@pytest.mark.parametrize("name", ORACLES)
def test_oracles_propose_candidates_that_fit_without_repetition(name, tmp_path, monkeypatch):
    """A thirtieth of the space fits the budget."""
    monkeypatch.setattr("keras_resnet.search.oracles.MAX_SAMPLES", 300)
    oracle, loop = make_oracle(name, tmp_path, max_params=40_000)
    loop.search()
    values = [trial.hyperparameters.values for trial in oracle.trials.values()]
    assert len(values) == 12 and all(trial.status == "COMPLETED" for trial in oracle.trials.values())
    assert all(digits_cost(to_spec(found)).parameters <= 40_000 for found in values)
    assert len({json.dumps(found, sort_keys=True) for found in values}) == 12


def test_the_smallest_candidate_is_the_fallback(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_resnet.search.oracles.MAX_SAMPLES", 3)
    smallest = digits_space().smallest
    oracle, loop = make_oracle("random", tmp_path, trials=3, max_params=digits_cost(to_spec(smallest)).parameters)
    loop.search()
    assert {to_spec(trial.hyperparameters.values) for trial in oracle.trials.values()} == {to_spec(smallest)}
    assert len({trial.hyperparameters.values["learning_rate"] for trial in oracle.trials.values()}) == 3


def test_a_search_ends_when_all_fitting_candidates_were_tried(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_resnet.search.oracles.MAX_SAMPLES", 30)
    space = space_for_images(
        8, resolve_space("quickstart", SPACE, {"learning_rate": 0.1, "weight_decay": 0.0, "drop_path": 0.0})[1]
    )
    oracle = ORACLES["random"][0](
        digits_space(space, max_params=digits_cost(to_spec(digits_space().smallest)).parameters), 3, 0, None
    )
    oracle.on_trial_end = lambda oracle: None
    TrialLoop(oracle, lambda folder, values: {"top1_accuracy": 0.5}, tmp_path).search()
    assert len(oracle.trials) == 1


def test_the_bayesian_oracle_proposes_what_its_model_predicts_to_be_best(tmp_path, monkeypatch):
    """With a linear model of a linear function, which a few trials determine."""
    monkeypatch.setattr("keras_resnet.search.oracles.MAX_SAMPLES", 100)
    oracle, loop = make_oracle("bayesian", tmp_path, trials=16, max_params=100_000)
    oracle.gpr, oracle.beta = BayesianRidge(), 0
    loop.evaluate = lambda folder, values: {"top1_accuracy": np.log10(values["learning_rate"])}
    loop.search()
    found = [trial.score for trial in oracle.trials.values()]
    assert np.mean(found[:4]) < np.log10(0.2) < np.log10(0.35) < np.mean(found[8:])


def test_hyperband_gives_the_best_more_epochs(tmp_path):
    oracle, loop = make_oracle("hyperband", tmp_path, trials=16)
    loop.search()
    values = {trial: oracle.trials[trial].hyperparameters.values for trial in oracle.start_order}
    epochs = {trial: to_recipe_changes(values[trial])["epochs"] for trial in values}
    first = [trial for trial in epochs if epochs[trial] == 1]
    longer = [values[trial] for trial in epochs if epochs[trial] == 3]
    best = sorted(first, key=lambda trial: -oracle.trials[trial].score)[: len(longer)]
    assert set(epochs.values()) == {1, 3, 9} and len(first) == 9
    promoted = {values["tuner/trial_id"] for values in longer if "tuner/trial_id" in values}
    assert promoted and promoted <= set(best)


def test_a_killed_oracle_resumes(tmp_path):
    """From a copy of the folder at the beginning of a trial, as SIGKILL would leave it."""
    whole, loop = make_oracle("random", tmp_path / "whole", trials=4)
    copies = iter(range(4))
    loop.evaluate, evaluate = lambda folder, values: copy(folder, values), loop.evaluate

    def copy(folder, values):
        shutil.copytree(tmp_path / "whole", tmp_path / str(next(copies)))
        return evaluate(folder, values)

    loop.search()
    resumed, again = make_oracle("random", tmp_path / "2", trials=4)
    orphan = tmp_path / "2" / "trial_3"
    shutil.copytree(tmp_path / "whole" / "trial_3", orphan)  # as if killed before the oracle saved its state
    write_json(read_json(orphan / "trial.json") | {"status": "RUNNING", "score": None}, orphan / "trial.json")
    resumed.reload()
    evaluated = []
    again.evaluate = lambda folder, values: evaluated.append(folder.name) or evaluate(folder, values)
    again.search()
    assert evaluated == ["trial_2", "trial_3"]
    values = [[oracle.trials[trial].hyperparameters.values for trial in "0123"] for oracle in (whole, resumed)]
    assert values[0] == values[1]
    finished, loop = make_oracle("random", tmp_path / "whole", trials=4)
    finished.reload()
    loop.evaluate = None
    loop.search()
    assert [trial.status for trial in finished.trials.values()] == ["COMPLETED"] * 4


def test_a_dead_workers_trial_goes_to_another(tmp_path):
    oracle, _ = make_oracle("random", tmp_path, trials=2)
    lost, completed = oracle.create_trial("dead"), oracle.create_trial("alive")
    completed.status = "COMPLETED"
    oracle.update_trial(completed.trial_id, {"top1_accuracy": 0.5})
    oracle.end_trial(completed)
    assert oracle.create_trial("alive").status == "IDLE"  # until all trials have ended
    oracle.drop_silent_workers(timeout=60)
    assert oracle.create_trial("alive").status == "IDLE"
    oracle._last_seen["dead"] -= 61
    oracle.get_trial(lost.trial_id)  # a heartbeat
    oracle.drop_silent_workers(timeout=60)
    assert oracle.create_trial("alive").status == "IDLE"
    oracle._last_seen["dead"] -= 61
    oracle.drop_silent_workers(timeout=60)
    again = oracle.create_trial("alive")
    assert (again.trial_id, again.status) == (lost.trial_id, "RUNNING")
    oracle.update_trial(again.trial_id, {"top1_accuracy": 0.5})
    again.status = "COMPLETED"
    oracle.end_trial(again)
    assert oracle.create_trial("alive").status == "STOPPED" and not oracle.tuner_ids


def oracle_with_dropped_worker(folder, **options):
    """An oracle that has dropped a worker, and the worker's trial."""
    oracle, _ = make_oracle("random", folder, trials=2, **options)
    trial = oracle.create_trial("slow")
    oracle._last_seen["slow"] -= 61
    oracle.drop_silent_workers()
    assert oracle._retry_queue == [trial.trial_id] and not oracle.ongoing_trials
    return oracle, trial


def end(oracle, trial, accuracy=0.5):
    trial.status = "COMPLETED"
    oracle.update_trial(trial.trial_id, {"top1_accuracy": accuracy})
    oracle.end_trial(trial)


def test_a_dropped_worker_gets_its_trial_back(tmp_path):
    oracle, trial = oracle_with_dropped_worker(tmp_path)
    oracle.get_trial(trial.trial_id)
    assert oracle.ongoing_trials == {"slow": trial} and not oracle._retry_queue
    assert oracle.create_trial("other").trial_id != trial.trial_id
    end(oracle, trial)
    assert oracle.end_order == [trial.trial_id]


@pytest.mark.parametrize("was_dropped", [True, False])
def test_a_worker_keeps_its_trial_after_a_restart_of_the_chief(was_dropped, tmp_path):
    oracle, trial = oracle_with_dropped_worker(tmp_path)
    if not was_dropped:
        oracle.get_trial(trial.trial_id)
    again, _ = make_oracle("random", tmp_path, trials=2)
    again.reload()
    assert again._retry_queue == [trial.trial_id]
    again.get_trial(trial.trial_id)
    assert list(again.ongoing_trials) == ["slow"] and not again._retry_queue
    again.drop_silent_workers()
    assert list(again.ongoing_trials) == ["slow"]


def test_only_the_first_end_of_a_trial_counts(tmp_path):
    oracle, trial = oracle_with_dropped_worker(tmp_path / "alone")
    end(oracle, trial)  # before another worker got it
    assert not oracle._retry_queue and oracle.create_trial("other").trial_id != trial.trial_id
    ended = []
    oracle, trial = oracle_with_dropped_worker(tmp_path / "both", on_trial_end=ended.append)
    same = oracle.create_trial("other")
    assert same.trial_id == trial.trial_id
    oracle.get_trial(trial.trial_id)
    assert list(oracle.ongoing_trials) == ["other"]
    end(oracle, trial)
    same.status = "FAILED"
    oracle.end_trial(same)
    assert (oracle.end_order, oracle.trials[trial.trial_id].score) == ([trial.trial_id], 0.5) and len(ended) == 1
    assert not oracle.ongoing_trials


def test_workers_are_not_dropped_while_the_oracle_samples(tmp_path):
    oracle, _ = make_oracle("random", tmp_path)
    oracle.create_trial("working")
    populate = oracle.populate_space
    oracle.populate_space = lambda trial_id: time.sleep(0.5) or populate(trial_id)
    oracle.create_trial("asking")
    oracle.drop_silent_workers(timeout=0.4)
    assert oracle.tuner_ids == {"working", "asking"} and not oracle._retry_queue


def test_an_error_releases_the_oracles_lock(tmp_path, monkeypatch):
    """A full disk, for example."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    oracle, _ = make_oracle("random", tmp_path, on_trial_end=full)
    trial = oracle.create_trial("worker")
    with pytest.raises(OSError):
        end(oracle, trial)
    monkeypatch.setattr("keras_resnet.search.oracles.write_json", full)
    for failing in (lambda: oracle.create_trial("worker"), lambda: end(oracle, trial)):
        with pytest.raises(OSError):
            failing()
    other = threading.Thread(target=exit_chief, args=[oracle], daemon=True)  # what KerasTuner's chief waits for
    other.start()
    other.join(10)
    assert not other.is_alive()


def test_diverging_and_failing_candidates(tmp_path):
    outcomes = iter([FloatingPointError("The loss became nan"), RuntimeError("no memory")])

    def fail(folder, values):
        raise next(outcomes)

    oracle, loop = make_oracle("random", tmp_path, trials=2)
    loop.evaluate = fail
    loop.search()
    assert (oracle.trials["0"].score, oracle.trials["0"].message) == (0.0, "The loss became nan")
    assert oracle.trials["1"].status == "FAILED" and "no memory" in oracle.trials["1"].message


@pytest.mark.parametrize("fast", [0, 1])
def test_at_most_a_few_networks_are_measured(fast, tmp_path, monkeypatch):
    """If no network is fast enough, except perhaps the smallest."""
    measured = []

    def latency(spec, input_shape, num_classes):
        measured.append(spec)
        return 1.0 if fast and spec == measured[0] else 10.0

    monkeypatch.setattr(budget_module, "latency", latency)
    if not fast:
        with pytest.raises(ValueError, match="max_latency.*smallest has 10 ms"):
            digits_space(side=32, max_latency=2.0)
        assert len(set(measured)) <= budget_module.MAX_BUILT
        return
    oracle, _ = make_oracle("random", tmp_path, max_latency=2.0)
    assert to_spec(oracle.create_trial("worker").hyperparameters.values) == measured[0]
    assert len(set(measured)) <= 1 + budget_module.MAX_BUILT
