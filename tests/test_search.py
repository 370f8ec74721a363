"""The search: candidates within a budget, KerasTuner's tuners, and a folder that goes on where it stopped."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import keras_tuner
import numpy as np
import pytest
from keras_tuner.src.distribute.oracle_chief import exit_chief
from PIL import Image
from sklearn.linear_model import BayesianRidge

from keras_resnet import complexity, from_arrays, get_recipe, get_spec, load_dataset, load_model
from keras_resnet.architecture.spec import read_spec, write_spec
from keras_resnet.data.datasets import Stream
from keras_resnet.search import budget as budget_module
from keras_resnet.search import hypermodel
from keras_resnet.search.budget import Budget, Candidates
from keras_resnet.search.candidates import set_aside
from keras_resnet.search.hypermodel import ResNetHyperModel
from keras_resnet.search.oracles import ORACLES, Trials
from keras_resnet.search.results import COSTS, Candidate, SearchResult, as_markdown
from keras_resnet.search.space import SPACE, changes_of, rows_for, settle, spec_of
from keras_resnet.search.tune import tune
from keras_resnet.training import model_setup

DIGITS = ((8, 8, 1), 10)
TINY = {"max_params": 25_000, "epochs": 1, "batch_size": 256, "deterministic": True}  # four steps a candidate


def cost(spec):
    return complexity(spec, input_shape=DIGITS[0], classes=DIGITS[1])


def candidates(rows=None, side=8, **limits):
    return Candidates(rows or rows_for(side), Budget(**limits), (side, side, 1), 10)


def drawn(rows, count, seed=0):
    """Values of a space, drawn by NumPy and not by KerasTuner."""
    generator = np.random.default_rng(seed)
    draw = {
        "Int": lambda row: int(generator.integers(row["min_value"], row["max_value"] + 1)),
        "Float": lambda row: float(generator.uniform(row["min_value"], row["max_value"])),
        "Choice": lambda row: row["values"][generator.integers(len(row["values"]))],
    }
    return [{name: draw[method](row) for name, (method, row) in rows.items()} for _ in range(count)]


def oracle(name, folder, trials=12, epochs=9, publish=lambda oracle: None, **limits):
    """An oracle and its loop; a candidate is as good as its learning rate is near 0.1, and nothing is trained."""
    kind, arguments = ORACLES[name]
    made = kind(candidates(**limits), trials, 0, publish, **arguments(trials, epochs))
    return made, Trials(made, lambda folder, values: {"top1_accuracy": goodness(values)}, folder)


def goodness(values):
    return 1 - abs(np.log10(values["learning_rate"] / 0.1))


@pytest.fixture
def built(monkeypatch):
    """The specs of all networks that are built."""
    specs = []
    for module in (model_setup, budget_module, hypermodel):
        original = module.build
        monkeypatch.setattr(module, "build", lambda spec, *a, _b=original, **k: specs.append(spec) or _b(spec, *a, **k))
    return specs


# The space and the budget


@pytest.mark.parametrize("side, stages, stems", [(8, 3, {"cifar"}), (32, 3, set(SPACE["stem"][1]["values"]))])
def test_the_space_fits_the_images(side, stages, stems):
    rows = rows_for(side)
    assert (
        len([name for name in rows if name.startswith("depth")]) == stages and set(rows["stem"][1]["values"]) == stems
    )
    for values in drawn(rows, 100):
        spec = spec_of(values)
        assert (spec.stem, spec.block, spec.shortcut) == (values["stem"], values["block"], values["shortcut"])
        assert spec.depths == tuple(values[f"depth_{i}"] for i in range(1, stages + 1))
        assert spec.widths == tuple(values["width"] * 2**i for i in range(stages))
        assert changes_of(values) == {name: values[name] for name in ("learning_rate", "weight_decay")}


def test_large_images_get_four_stages_and_no_stem_at_full_resolution():
    rows = rows_for(224)
    assert set(rows["stem"][1]["values"]) == {"imagenet", "deep"} and "depth_4" in rows


def test_no_candidate_is_smaller_than_the_smallest():
    smallest = cost(spec_of(candidates().smallest)).parameters
    assert min(cost(spec_of(values)).parameters for values in drawn(rows_for(8), 500)) >= smallest
    assert candidates(max_params=smallest).smallest
    with pytest.raises(ValueError, match=f"smallest has {smallest:,} parameters.*max_params={smallest - 1}"):
        candidates(max_params=smallest - 1)


def test_a_budget_counts_before_it_builds(built):
    spec = replace(get_spec("resnet20"), depths=(1, 1, 1))
    known = cost(spec)
    for limit, found in (("max_params", known.parameters), ("max_multiply_adds", known.multiply_adds)):
        assert Budget(**{limit: found}).excess(spec, *DIGITS) is None
        assert Budget(**{limit: found - 1, "max_latency": 1e-9}).excess(spec, *DIGITS) == (limit, found)
    assert not built
    limit, measured = Budget(max_latency=1e-9).excess(spec, *DIGITS)
    assert limit == "max_latency" and measured > 1e-9 and built == [spec]
    assert Budget(max_latency=1e9).excess(spec, *DIGITS) is None and len(built) == 1  # measured once


def test_values_that_do_not_go_together_do_not_fit():
    values = {**candidates().smallest, "groups": 2}
    assert values["block"] == "basic" and not candidates().fits(values)
    rows = {**rows_for(8), "groups": ("Int", {"min_value": 1, "max_value": 4})}
    assert candidates(rows).smallest["groups"] == 1
    with pytest.raises(ValueError, match="go together"):
        candidates({**rows, "block": ("Fixed", {"value": "basic"}), "groups": ("Fixed", {"value": 2})})


def test_the_smallest_is_found_where_a_larger_value_is_cheaper():
    """The less a network is dilated, the less it computes."""
    rows = rows_for(64, {**SPACE, "output_stride": ("Choice", {"values": [8, 16, 32]})})
    unlimited = candidates(rows, 64)
    narrow = [{**values, "width": 8, "depth_1": 1, "depth_2": 1, "depth_3": 1} for values in drawn(rows, 200)]
    costs = [unlimited.cost(values).multiply_adds for values in narrow if unlimited.is_network(values)]
    assert candidates(rows, 64, max_multiply_adds=min(costs)).smallest["output_stride"] > 8


def test_what_does_not_fit_is_made_smaller_and_keeps_its_recipe():
    limited = candidates(max_params=60_000)
    for values in drawn(limited.rows, 100):
        found = limited.within(values)
        assert cost(spec_of(found)).parameters <= 60_000 and changes_of(found) == changes_of(values)
        assert (found == values) == (cost(spec_of(values)).parameters <= 60_000)
        assert all(found[name] <= values[name] for name in ("width", "depth_1", "depth_2", "depth_3"))
        wider = {**found, "width": next((width for width in SPACE["width"][1]["values"] if width > found["width"]), 0)}
        assert found["width"] == values["width"] or not limited.fits(wider)


@pytest.mark.parametrize("fast", [0, 1])
def test_few_networks_are_measured(fast, tmp_path, monkeypatch):
    """Where none is fast enough but perhaps the smallest."""
    measured = []

    def latency(spec, input_shape, classes):
        measured.append(spec)
        return 1.0 if fast and spec == measured[0] else 10.0

    monkeypatch.setattr(budget_module, "latency", latency)
    if not fast:
        with pytest.raises(ValueError, match="max_latency.*smallest has 10 ms"):
            candidates(side=32, max_latency=2.0)
        assert len(set(measured)) <= budget_module.MEASURED
        return
    made, _ = oracle("random", tmp_path, max_latency=2.0)
    assert spec_of(made.create_trial("worker").hyperparameters.values) == measured[0]
    assert len(set(measured)) <= 1 + budget_module.MEASURED


def test_what_is_given_is_not_searched():
    recipe, space = settle("quickstart", SPACE, {"learning_rate": 0.3, "drop_path": 0.1, "epochs": 2})
    assert (recipe.epochs, recipe.learning_rate, recipe.drop_path) == (2, 0.3, 0.0)
    model = ResNetHyperModel(*DIGITS, learning_rate=0.3, drop_path=0.1, epochs=2)
    assert model.candidates.rows == rows_for(8, space) and model.recipe == recipe
    values = model.candidates.smallest
    assert changes_of(values)["learning_rate"] == 0.3 and spec_of(values).drop_path == 0.1
    hp = keras_tuner.HyperParameters()
    model.declare_hyperparameters(hp)
    assert {row.name for row in hp.space if isinstance(row, keras_tuner.engine.hyperparameters.Fixed)} == {
        "learning_rate",
        "drop_path",
    }
    space = {name: row for name, row in SPACE.items() if name != "drop_path"}
    assert settle(get_recipe("rsb_a2"), space, {})[1]["drop_path"] == ("Fixed", {"value": 0.05})
    assert settle("quickstart", SPACE, {})[1] == SPACE


def test_a_spec_is_read_as_it_was_written(tmp_path):
    for values in drawn(rows_for(8), 5):
        write_spec(spec_of(values), tmp_path / "spec.json")
        assert read_spec(tmp_path / "spec.json") == spec_of(values)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1]", "ResNetSpec as JSON"),
        ("no", "JSON file"),
        ('{"depth": 1}', "Nearest.*depths"),
        ("{}", "without.*'widths'"),
        ('{"depths": [1], "widths": [8]}', "without.*'stem'"),
    ],
)
def test_a_file_without_a_spec_is_refused(text, message, tmp_path):
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_spec(tmp_path / "spec.json")


def test_a_spec_that_is_none_is_refused(tmp_path):
    for change in ({"block": "x"}, {"stem": ["cifar"]}, {"depths": 5}, {"drop_path": "much"}):
        (tmp_path / "spec.json").write_text(json.dumps(get_spec("resnet20").to_config() | change))
        with pytest.raises(ValueError, match=next(iter(change))):
            read_spec(tmp_path / "spec.json")


# KerasTuner


@pytest.mark.parametrize("name", ORACLES)
def test_tuners_propose_what_fits_and_nothing_twice(name, tmp_path, monkeypatch):
    """The budget leaves a thirtieth of the space."""
    monkeypatch.setattr("keras_resnet.search.oracles.DRAWS", 300)
    made, loop = oracle(name, tmp_path, max_params=40_000)
    loop.search()
    values = [trial.hyperparameters.values for trial in made.trials.values()]
    assert len(values) == 12 and all(trial.status == "COMPLETED" for trial in made.trials.values())
    assert all(cost(spec_of(found)).parameters <= 40_000 for found in values)
    assert len({json.dumps(found, sort_keys=True) for found in values}) == 12


def test_where_hardly_anything_fits_the_smallest_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_resnet.search.oracles.DRAWS", 3)
    smallest = candidates().smallest
    made, loop = oracle("random", tmp_path, trials=3, max_params=cost(spec_of(smallest)).parameters)
    loop.search()
    assert {spec_of(trial.hyperparameters.values) for trial in made.trials.values()} == {spec_of(smallest)}
    assert len({trial.hyperparameters.values["learning_rate"] for trial in made.trials.values()}) == 3


def test_a_search_ends_when_all_that_fits_was_tried(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_resnet.search.oracles.DRAWS", 30)
    rows = rows_for(8, settle("quickstart", SPACE, {"learning_rate": 0.1, "weight_decay": 0.0, "drop_path": 0.0})[1])
    made = ORACLES["random"][0](
        candidates(rows, max_params=cost(spec_of(candidates().smallest)).parameters), 3, 0, None
    )
    made._publish = lambda oracle: None
    Trials(made, lambda folder, values: {"top1_accuracy": 0.5}, tmp_path).search()
    assert len(made.trials) == 1


def test_the_bayesian_tuner_takes_what_its_model_promises(tmp_path, monkeypatch):
    """With scikit-learn's linear model, which has learnt in a few trials what is linear."""
    monkeypatch.setattr("keras_resnet.search.oracles.DRAWS", 100)
    made, loop = oracle("bayesian", tmp_path, trials=16, max_params=100_000)
    made.gpr, made.beta = BayesianRidge(), 0
    loop._train = lambda folder, values: {"top1_accuracy": np.log10(values["learning_rate"])}
    loop.search()
    found = [trial.score for trial in made.trials.values()]
    assert np.mean(found[:4]) < np.log10(0.2) < np.log10(0.35) < np.mean(found[8:])


def test_hyperband_gives_the_best_more_epochs(tmp_path):
    made, loop = oracle("hyperband", tmp_path, trials=16)
    loop.search()
    epochs = {trial: changes_of(made.trials[trial].hyperparameters.values)["epochs"] for trial in made.start_order}
    first = [trial for trial in epochs if epochs[trial] == 1]
    longer = [made.trials[trial].hyperparameters.values for trial in epochs if epochs[trial] == 3]
    rates = sorted(first, key=lambda trial: -made.trials[trial].score)[: len(longer)]
    assert set(epochs.values()) == {1, 3, 9} and len(first) == 9
    promoted = {values["tuner/trial_id"] for values in longer if "tuner/trial_id" in values}
    assert promoted and promoted <= set(rates)


def test_a_killed_search_goes_on(tmp_path):
    """What is on the disk at any trial's begin is all there is after SIGKILL."""
    whole, loop = oracle("random", tmp_path / "whole", trials=4)
    copies = iter(range(4))
    loop._train, judged = lambda folder, values: copy(folder, values), loop._train

    def copy(folder, values):
        shutil.copytree(tmp_path / "whole", tmp_path / str(next(copies)))
        return judged(folder, values)

    loop.search()
    resumed, again = oracle("random", tmp_path / "2", trials=4)
    orphan = tmp_path / "2" / "trial_3"
    shutil.copytree(tmp_path / "whole" / "trial_3", orphan)  # written, but the oracle was killed before it noted it
    resumed.reload()
    asked = []
    again._train = lambda folder, values: asked.append(folder.name) or judged(folder, values)
    again.search()
    assert asked == ["trial_2", "trial_3"]
    values = [[made.trials[trial].hyperparameters.values for trial in "0123"] for made in (whole, resumed)]
    assert values[0] == values[1]
    finished, nothing = oracle("random", tmp_path / "whole", trials=4)
    finished.reload()
    nothing._train = None
    nothing.search()
    assert [trial.status for trial in finished.trials.values()] == ["COMPLETED"] * 4


def test_the_trial_of_a_dead_worker_is_done_by_another(tmp_path):
    made, _ = oracle("random", tmp_path, trials=2)
    lost, own = made.create_trial("dead"), made.create_trial("alive")
    own.status = "COMPLETED"
    made.update_trial(own.trial_id, {"top1_accuracy": 0.5})
    made.end_trial(own)
    assert made.create_trial("alive").status == "IDLE"  # there may be work again
    made.give_up_the_silent(silence=60)
    assert made.create_trial("alive").status == "IDLE"
    made._heard["dead"] -= 61
    made.get_trial(lost.trial_id)  # a sign of life
    made.give_up_the_silent(silence=60)
    assert made.create_trial("alive").status == "IDLE"
    made._heard["dead"] -= 61
    made.give_up_the_silent(silence=60)
    again = made.create_trial("alive")
    assert (again.trial_id, again.status) == (lost.trial_id, "RUNNING")
    made.update_trial(again.trial_id, {"top1_accuracy": 0.5})
    again.status = "COMPLETED"
    made.end_trial(again)
    assert made.create_trial("alive").status == "STOPPED" and not made.tuner_ids


def lost(folder, **options):
    """An oracle with a worker that was given up, and its trial."""
    made, _ = oracle("random", folder, trials=2, **options)
    trial = made.create_trial("slow")
    made._heard["slow"] -= 61
    made.give_up_the_silent()
    assert made._retry_queue == [trial.trial_id] and not made.ongoing_trials
    return made, trial


def end(made, trial, accuracy=0.5):
    trial.status = "COMPLETED"
    made.update_trial(trial.trial_id, {"top1_accuracy": accuracy})
    made.end_trial(trial)


def test_a_worker_that_was_given_up_and_still_lives_gets_its_trial_back(tmp_path):
    made, trial = lost(tmp_path)
    made.get_trial(trial.trial_id)
    assert made.ongoing_trials == {"slow": trial} and not made._retry_queue
    assert made.create_trial("other").trial_id != trial.trial_id
    end(made, trial)
    assert made.end_order == [trial.trial_id]


@pytest.mark.parametrize("given_up", [True, False])
def test_so_does_one_whose_chief_was_started_again(given_up, tmp_path):
    made, trial = lost(tmp_path)
    if not given_up:
        made.get_trial(trial.trial_id)
    again, _ = oracle("random", tmp_path, trials=2)
    again.reload()
    assert again._retry_queue == [trial.trial_id]
    again.get_trial(trial.trial_id)
    assert list(again.ongoing_trials) == ["slow"] and not again._retry_queue
    again.give_up_the_silent()
    assert list(again.ongoing_trials) == ["slow"]


def test_a_trial_ends_once(tmp_path):
    made, trial = lost(tmp_path / "alone")
    end(made, trial)  # before anybody else has got it
    assert not made._retry_queue and made.create_trial("other").trial_id != trial.trial_id
    published = []
    made, trial = lost(tmp_path / "both", publish=published.append)
    same = made.create_trial("other")
    assert same.trial_id == trial.trial_id
    made.get_trial(trial.trial_id)
    assert list(made.ongoing_trials) == ["other"]
    end(made, trial)
    same.status = "FAILED"
    made.end_trial(same)
    assert (made.end_order, made.trials[trial.trial_id].score) == ([trial.trial_id], 0.5) and len(published) == 1
    assert not made.ongoing_trials


def test_while_the_oracle_draws_nobody_falls_silent(tmp_path):
    made, _ = oracle("random", tmp_path)
    made.create_trial("working")
    populate = made.populate_space
    made.populate_space = lambda trial_id: time.sleep(0.5) or populate(trial_id)
    made.create_trial("asking")
    made.give_up_the_silent(silence=0.4)
    assert made.tuner_ids == {"working", "asking"} and not made._retry_queue


def test_an_error_leaves_the_oracle_unlocked(tmp_path, monkeypatch):
    """As on a full disk."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    made, _ = oracle("random", tmp_path, publish=full)
    trial = made.create_trial("worker")
    with pytest.raises(OSError):
        end(made, trial)
    monkeypatch.setattr("keras_resnet.search.oracles.write_json", full)
    for failing in (lambda: made.create_trial("worker"), lambda: end(made, trial)):
        with pytest.raises(OSError):
            failing()
    other = threading.Thread(target=exit_chief, args=[made], daemon=True)  # what KerasTuner's chief waits for
    other.start()
    other.join(10)
    assert not other.is_alive()


def test_a_candidate_that_diverges_gets_nothing_right_and_one_without_memory_fails(tmp_path):
    outcomes = iter([FloatingPointError("The loss became nan"), RuntimeError("no memory")])

    def fail(folder, values):
        raise next(outcomes)

    made, loop = oracle("random", tmp_path, trials=2)
    loop._train = fail
    loop.search()
    assert (made.trials["0"].score, made.trials["0"].message) == (0.0, "The loss became nan")
    assert made.trials["1"].status == "FAILED" and "no memory" in made.trials["1"].message


@pytest.fixture
def eager():
    """Trainings of a step or two need no graph, which takes most of their time."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind, arguments, trials",
    [
        (keras_tuner.RandomSearch, {"max_trials": 2}, 2),
        (keras_tuner.BayesianOptimization, {"max_trials": 3, "num_initial_points": 2}, 3),
        (keras_tuner.Hyperband, {"max_epochs": 2, "factor": 2}, 5),
    ],
)
def test_our_space_in_a_tuner_of_keras_tuner(kind, arguments, trials, tmp_path, built, eager):
    """The budget leaves a hundredth of the space."""
    digits = load_dataset("digits", validation_split=0.2)
    few = replace(digits, train=digits.train[:32], test=digits.test[:32])
    space, fitted = ResNetHyperModel(*DIGITS, max_params=30_000, epochs=1, batch_size=32), []
    fit = space.fit
    space.fit = lambda hp, model, *data, **options: fitted.append(model) or fit(hp, model, *data, **options)
    tuner = kind(space, "val_accuracy", seed=1, directory=tmp_path, **arguments)
    assert built == [spec_of(space.candidates.smallest)], "KerasTuner builds one at once"
    tuner.search(few, verbose=0)
    tried = [tuner.oracle.trials[trial] for trial in tuner.oracle.start_order]
    assert [trial.status for trial in tried] == ["COMPLETED"] * trials and len(fitted) == trials
    assert all(cost(spec).parameters <= 30_000 for spec in built)
    assert built[1:] == [spec_of(trial.hyperparameters.values) for trial in tried]
    assert built[1:] == [replace(model.spec, data_format=None) for model in fitted]
    assert all(0 <= trial.score <= 1 for trial in tried)


# `tune`


def interrupted(*arguments, **options):
    """In the place of `train`: Ctrl-C."""
    raise KeyboardInterrupt


def refused(*arguments, **options):
    """In the place of `train`: bad input that no check has found."""
    raise ValueError("no such images")


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """(folder, result, what `progress` was told)."""
    folder, said = tmp_path_factory.mktemp("search"), []
    return folder, tune(trials=2, workdir=folder, progress=said.append, **TINY), said


def test_a_search_leaves_results_a_table_a_image_and_a_winner(search):
    folder, result, said = search
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(result.to_config()))
    assert SearchResult.from_config(result.to_config()) == result
    assert [line.split(":")[0] for line in said] == ["trial_0", "trial_1", f"final_{result.winner.trial}"]
    for candidate in result.candidates:
        model = load_model(folder / f"trial_{candidate.trial}" / "model.keras")
        assert candidate.parameters == sum(np.prod(weight.shape) for weight in model.trainable_weights) <= 25_000
        assert replace(model.spec, data_format=None) == candidate.spec
        assert candidate.multiply_adds == cost(candidate.spec).multiply_adds
        judges = set_aside(load_dataset("digits"), 0.2).test
        right = model.predict(judges.images / 127.5 - 1, verbose=0).argmax(axis=1) == judges.labels
        assert candidate.top1_accuracy == pytest.approx(right.mean())
    assert read_spec(folder / "winner.json") == result.winner.spec
    assert (folder / "results.md").read_text() == as_markdown(result)
    with Image.open(folder / "results.png") as image:
        assert image.format == "PNG" and image.width > 800


def test_the_test_images_judge_only_in_the_end(search):
    _, result, _ = search
    digits = load_dataset("digits")
    halves = set_aside(digits, 0.2)
    parts = [{image.tobytes() for image in part.images} for part in (halves.train, halves.test, digits.test)]
    assert len(halves.train) + len(halves.test) == len(digits.train) and not parts[1] & parts[2]
    assert (result.final["training_images"], result.final["test_images"]) == (len(digits.train), len(digits.test))
    assert result.final["spec"] | {"data_format": None} == result.winner.spec.to_config()
    assert result.final["recipe"]["learning_rate"] == result.winner.recipe["learning_rate"]


def test_a_finished_search_trains_nothing_and_with_more_trials_goes_on(search, tmp_path, built, monkeypatch):
    folder, said = shutil.copytree(search[0], tmp_path / "copy"), []
    options = {"workdir": folder, "progress": said.append, **TINY}
    assert tune(trials=2, **options) == search[1] and not built and not said
    with monkeypatch.context() as patch:
        patch.setattr("keras_resnet.search.candidates.train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(trials=3, final=False, **options)
    assert json.loads((folder / "results.json").read_text())["candidates"] == search[1].to_config()["candidates"]
    more = tune(trials=3, final=False, **options)
    assert more.candidates[:2] == search[1].candidates and [candidate.trial for candidate in more.candidates] == [
        *"012"
    ]
    assert said[0] == said[1] and len(said) == 2 and built == [more.candidates[2].spec]


def test_a_folder_of_another_search_is_refused(search, tmp_path, built, monkeypatch):
    folder = shutil.copytree(search[0], tmp_path / "copy")
    for change, name in (
        ({"seed": 1}, "seed"),
        ({"max_params": 50_000}, "budget"),
        ({"tuner": "bayesian"}, "tuner"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*--overwrite"):
            tune(trials=2, workdir=folder, **{**TINY, **change})
    (folder / "search.json").unlink()
    with pytest.raises(ValueError, match="not ours.*--overwrite"):
        tune(trials=2, workdir=folder, **TINY)
    assert not built
    foreign = {"notes.txt", "trial_7", "trial_of_mine", "final_report"}
    for name in foreign:
        (folder / name).mkdir() if "_of_" in name else (folder / name).write_text("mine")
    monkeypatch.setattr("keras_resnet.search.candidates.train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(trials=2, workdir=folder, overwrite=True, **{**TINY, "seed": 1})
    assert {path.name for path in folder.iterdir()} == foreign | {"search.json", "oracle.json", "trial_0"}


def test_a_folder_without_a_search_keeps_what_is_in_it(tmp_path, monkeypatch):
    for name in ("trial_5", "final_0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    monkeypatch.setattr("keras_resnet.search.candidates.train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(trials=2, workdir=tmp_path, overwrite=True, **TINY)
    assert len(list(tmp_path.glob("*/notes.txt"))) == 2


def test_what_no_candidate_can_be_trained_with_ends_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_resnet.search.candidates.train", refused)
    with pytest.raises(ValueError, match="^no such images$"):
        tune(trials=2, workdir=tmp_path, **TINY)
    assert [path.name for path in tmp_path.glob("trial_*")] == ["trial_0"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"max_params": 1_000}, "max_params.*smallest has .* parameters.*Received: max_params=1000"),
        ({"max_multiply_adds": 10}, "max_multiply_adds.*smallest has"),
        ({"max_params": -1}, "max_params.*positive"),
        ({"max_params": "100k"}, "max_params.*positive"),
        ({"tuner": "randon"}, "tuner.*Nearest: \\['random'"),
        ({"trials": 0}, "trials"),
        ({"recipe": "quick"}, "recipe.*Nearest: \\['quickstart'\\]"),
        ({"dataset": "digit"}, "dataset.*digits"),
        ({"validation_split": 2.0}, "validation_split"),
        ({"batch_size": 1_300}, "batch_size"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"precision": "float8"}, "precision"),
        ({"epoch": 1}, "changes.*epochs"),
        ({"space": {"depths": ("Int", {})} | {"dept": ("Int", {})}}, "space.*Nearest.*depth"),
        ({"space": {"depth": ("Integer", {})}}, "space.*Nearest: \\['Int'\\]"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_trial(arguments, message, tmp_path, built):
    with pytest.raises(ValueError, match=message):
        tune(**{"trials": 1, "workdir": tmp_path / "search", **arguments})
    assert not built and not (tmp_path / "search").exists()


def test_what_train_would_refuse_on_several_devices_is_refused_first(monkeypatch, built):
    monkeypatch.setattr("keras_resnet.training.distribution.Devices.num_replicas", 2)
    with pytest.raises(ValueError, match="float16"):
        tune(precision="float16", **TINY)
    assert not built


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="two classes"):
        tune(from_arrays((np.zeros((20, 8, 8, 1), "uint8"), np.zeros(20, int)), class_names=["nought"]), **TINY)


def test_a_stream_and_a_file_in_the_way_are_refused(tmp_path):
    digits = load_dataset("digits")
    with pytest.raises(ValueError, match="fits in memory"):
        tune(replace(digits, train=Stream(lambda seed: None, 10)))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="workdir"):
        tune(trials=1, workdir=tmp_path / "file")


def test_the_front_is_what_no_other_candidate_beats():
    generator = np.random.default_rng(0)
    specs = [spec_of(values) for values in drawn(rows_for(8), 40)]
    found = tuple(
        Candidate(str(i), "COMPLETED", spec, {}, int(generator.integers(10)), int(generator.integers(9)), accuracy)
        for i, (spec, accuracy) in enumerate(zip(specs, generator.integers(10, size=40) / 10, strict=True))
    )
    result = SearchResult({}, (*found, Candidate("40", "FAILED", specs[0], {}, 0, 0)))
    for name in COSTS:
        points = {(getattr(candidate, name), candidate.top1_accuracy) for candidate in found}
        best = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)}
        front = [(getattr(candidate, name), candidate.top1_accuracy) for candidate in result.front(name)]
        assert set(front) == best and front == sorted(front) and len(front) == len(best)
    assert result.winner.top1_accuracy == max(candidate.top1_accuracy for candidate in found)


# Several processes, and the promise


SCRIPT = """
import json, sys
from keras_resnet.search.tune import tune
tune(**json.loads(sys.argv[1]), progress=lambda text: print(text, flush=True))
"""


def start(folder, tuner_id=None, port=None, **arguments):
    """A process with a search; its output goes to a file named after it."""
    shared = {"KERASTUNER_TUNER_ID": tuner_id, "KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(port)}
    text = json.dumps({"workdir": str(folder), **TINY, **arguments})
    with open(folder.parent / f"{tuner_id}.txt", "a") as output:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, text], stdout=output, env=os.environ | (shared if tuner_id else {})
        )


def wait_for(found, process, seconds=300):
    end = time.monotonic() + seconds
    while not found():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on(tmp_path):
    folder = tmp_path / "search"
    process = start(folder, trials=3, final=False)
    wait_for((folder / "trial_1" / "settings.json").exists, process)
    process.kill()
    process.wait()
    finished = (folder / "trial_0" / "model.keras").stat().st_mtime_ns
    assert start(folder, trials=3, final=False).wait() == 0
    rows = json.loads((folder / "results.json").read_text())["candidates"]
    assert [row["status"] for row in rows] == ["COMPLETED"] * 3
    assert (folder / "trial_0" / "model.keras").stat().st_mtime_ns == finished
    told = (tmp_path / "None.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in told] == ["trial_0", "trial_1", "trial_1", "trial_2"]


@pytest.mark.slow
def test_two_workers_share_a_search_and_one_of_them_dies(tmp_path):
    folder = tmp_path / "search"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def trials(worker):
        return [line.split(":")[0] for line in (tmp_path / f"{worker}.txt").read_text().splitlines()]

    def at_work():
        return trials("alive") and trials("dying") and not (folder / trials("dying")[-1] / "report.json").exists()

    names = ("chief", "dying", "alive")
    chief, dying, alive = processes = [start(folder, name, port, trials=3, final=False, epochs=10) for name in names]
    try:
        wait_for(at_work, dying)
        dying.kill()
        assert alive.wait(500) == 0 and chief.wait(100) == 0
    finally:
        for process in processes:
            process.kill()
    assert trials("dying")[-1] in trials("alive")
    rows = json.loads((folder / "results.json").read_text())["candidates"]
    assert [row["status"] for row in rows] == ["COMPLETED"] * 3


@pytest.mark.slow
def test_the_digits_search_finds_a_good_network_within_the_budget(tmp_path, built):
    result = tune("digits", "random", 20, max_params=100_000, workdir=tmp_path)
    assert len(built) == 21 and all(cost(spec).parameters <= 100_000 for spec in built)
    assert result.final["parameters"] <= 100_000 and result.final["top1_accuracy"] >= 0.985
