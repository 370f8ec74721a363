"""The examples run, and say what they should."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from keras_resnet import load_dataset

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """40 digits in two class folders, and 8 to test."""
    folder, data = tmp_path_factory.mktemp("photos"), load_dataset("digits")
    for part, split, count in (("train", data.train, 20), ("val", data.test, 4)):
        for label, name in enumerate(("zero", "one")):
            (folder / part / name).mkdir(parents=True)
            for number, image in enumerate(split.images[split.labels == label][:count]):
                Image.fromarray(image[..., 0]).resize((32, 32)).save(folder / part / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("own_network.py", ["4"], "12 layers, 100,986 parameters"),
        ("weights_between_libraries.py", ["{folder}"], "loaded into Keras again: the same logits"),
        ("alexnet.py", ["{folder}/costs"], "AlexNet: 60,965,224 parameters, 724,406,816 multiply-adds"),
        ("load_time.py", ["ResNet50", "1"], "ratio"),
        (
            "feature_extraction.py",
            ["{photos}", "resnet20", "cifar10", "{folder}/map.png"],
            "accuracy of a linear classifier",
        ),
        ("fine_tuning.py", ["{photos}", "resnet20", "cifar10", "1"], "classes: one, zero"),
        ("own_folder.py", ["{photos}", "{folder}/run", "1"], "% of 8 test images"),
        ("search.py", ["2", "1"], "a tuner of KerasTuner: {"),
    ],
)
def test_an_example_runs(name, arguments, says, photos, monkeypatch, capsys, tmp_path):
    arguments = (argument.format(folder=tmp_path, photos=photos) for argument in arguments)
    monkeypatch.setattr("sys.argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert says in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("name", "says"), [("multi_gpu.py", "trained on "), ("multi_machine.py", "machine 1: ")])
def test_an_example_for_several_devices_runs(name, says):
    done = subprocess.run([sys.executable, EXAMPLES / name, "1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and says in done.stdout, done.stderr
