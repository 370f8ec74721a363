"""The examples run, and say what they should."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("own_network.py", ["4"], "12 layers, 100,986 parameters"),
        ("weights_between_libraries.py", ["{folder}"], "and back: the same logits"),
        ("alexnet.py", ["{folder}/costs"], "AlexNet: 60,965,224 parameters, 724,406,816 multiply-adds"),
        ("load_time.py", ["ResNet50", "1"], "ratio"),
    ],
)
def test_an_example_runs(name, arguments, says, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", [name, *(argument.format(folder=tmp_path) for argument in arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert says in capsys.readouterr().out
