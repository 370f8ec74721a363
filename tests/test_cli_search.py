"""`keras-resnet tune` and `keras-resnet train --spec`."""

import json
import shlex

import pytest
from PIL import Image
from support import run_command

from keras_resnet import ResNetSpec, complexity
from keras_resnet.cli.training import number_with_unit

QUICK = ("--dataset", "digits", "--max-params", "25k", "--set", "iterations=2", "--set", "batch_size=128")


@pytest.mark.usefixtures("few_batches")
def test_the_printed_command_trains_the_winner_again(tmp_path):
    chosen = ("--seed", 3, "--precision", "float32", "--data-dir", tmp_path / "my data", "--set", "weight_decay=0.01")
    words = ("tune", *QUICK, *chosen, "--trials", 1, "--workdir", tmp_path / "a search")
    done = run_command(*words)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "a search" / "results.json").read_text())
    assert [candidate["parameters"] <= 25_000 for candidate in found["candidates"]] == [True]
    assert [candidate["recipe"]["weight_decay"] for candidate in found["candidates"]] == [0.01]
    winner = tmp_path / "a search" / "winner.json"
    spec = ResNetSpec(**json.loads(winner.read_text()))
    cost = complexity(spec, classes=10, input_shape=(8, 8, 1))
    assert (cost.parameters, cost.multiply_adds) in {
        (candidate["parameters"], candidate["multiply_adds"]) for candidate in found["candidates"]
    }
    assert Image.open(tmp_path / "a search" / "results.png").format == "PNG"

    again = run_command(*words, "--json")
    assert json.loads(again.stdout)["candidates"] == found["candidates"], "nothing is trained twice"
    command = shlex.split(done.stdout.split("again: ")[1].splitlines()[0])
    assert command[0] == "keras-resnet" and command[command.index("--data-dir") + 1] == str(tmp_path / "my data")
    trained = run_command(*command[1:], "--workdir", tmp_path / "run")
    assert trained.exit_code == 0, trained.output
    final, again = (json.loads((folder / "settings.json").read_text()) for folder in final_runs(tmp_path, found))
    assert again == final and again["seed"] == 3


def final_runs(folder, found):
    """The folders of the winner's training in the end of the search, and of the one by the printed command."""
    return folder / "a search" / f"final_{found['winner']}", folder / "run"


@pytest.mark.parametrize(("text", "number"), [("100k", 100_000), ("1.5M", 1_500_000), ("40G", 4e10), ("12", 12)])
def test_numbers_with_units(text, number):
    assert number_with_unit("max-params", text) == number


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tune", *QUICK, "--max-params", "10"), "`max_params` should allow at least one candidate of the space"),
        (("tune", *QUICK, "--max-params", "many"), "`--max-params` should be a number"),
        (("tune", *QUICK, "--tuner", "grid"), "hyperband"),
        (("tune", *QUICK, "--set", "epoch=1"), "epochs"),
        (("tune", *QUICK, "--workdir", "{folder}/other"), "`tune` did not write"),
        (("train", "--spec", "{folder}/spec.json"), "fields of a ResNetSpec"),
        (("train", "--spec", "{folder}/list.json"), "Expected a ResNetSpec as JSON"),
        (("train", "--spec", "{folder}/none.json"), "none.json"),
        (("train", "--spec", "{folder}/spec.json", "--model", "resnet20"), "should not be given both"),
    ],
)
def test_invalid_input_is_one_message_before_the_first_trial(words, message, tmp_path):
    (tmp_path / "spec.json").write_text('{"depth": [1, 1]}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "oracle.json").write_text("{}")
    words = [word.format(folder=tmp_path) for word in words]
    words += [] if "--workdir" in words else ["--workdir", str(tmp_path / "run")]
    done = run_command(*words)
    assert done.exit_code == 1 and message in " ".join(done.stderr.split())
    assert not list(tmp_path.glob("**/trial_*"))
