"""The command line as a person uses it: real processes for what matters, the runner for the rest."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from support import REFERENCES, randomize_weights, run_command

import keras_resnet_command
from keras_resnet import create, load_weights, save_weights
from keras_resnet.data.sources import digits


def command(*words, **kwargs):
    """keras-resnet in a process of its own."""
    start = "from keras_resnet_command import main; main()"
    return subprocess.run([sys.executable, "-c", start, *map(str, words)], capture_output=True, text=True, **kwargs)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A small untrained network that knows its preprocessing and classes, as a .keras file."""
    path = tmp_path_factory.mktemp("model") / "my.keras"
    model = create("resnet20", depths=(1, 1, 1), classes=3)
    model.info = {
        "preprocessing": {"mode": "cifar", "size": 32, "resize": 32, "interpolation": "bilinear", "channels": 3},
        "class_names": ["ant", "bee", "wasp"],
    }
    randomize_weights(model).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder with two images, one of them in a folder."""
    (tmp_path / "images" / "more").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (50, 40)), ("more/b.jpg", (33, 64))):
        Image.fromarray(generator.integers(0, 255, (*size, 3), "uint8")).save(tmp_path / "images" / name)
    return tmp_path / "images"


@pytest.mark.slow
def test_the_quickstart(tmp_path):
    """The README's main command: about a minute to at least 98 %."""
    done = command("train", "--recipe", "quickstart", "--workdir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "report.json").read_text())["top1_accuracy"] >= 0.98
    assert "epoch 40, step 880 of 880" in done.stderr and "top-1 accuracy" in done.stdout


def test_train_and_predict_end_to_end(tmp_path, ended, monkeypatch):
    settings = ("--set", "epochs=6", "--workdir", "run")
    done = command("train", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "port.cc" not in done.stderr  # TensorFlow's chatter
    images, labels = digits().test.images, digits().test.labels
    for i in range(3):
        Image.fromarray(images[i, ..., 0]).save(tmp_path / f"{i}.png")
    names = [tmp_path / f"{i}.png" for i in range(3)]
    done = command("predict", *names, "--model", "run/model.keras", "--json", "--top", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [answer["classes"][0]["name"] for answer in answers] == [str(label) for label in labels[:3]]
    monkeypatch.chdir(tmp_path)
    status, _, said = ended("train", *settings)
    assert status == 1 and "overwrite" in said and "Traceback" not in said


def test_ctrl_c_says_how_to_go_on(tmp_path):
    """A real SIGINT, as soon as the run has finished an epoch."""
    start = "from keras_resnet_command import main; main()"
    words = [sys.executable, "-c", start, "train", "--set", "epochs=500", "--workdir", str(tmp_path / "run")]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "run" / "history.csv").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said
    assert re.search(r"stopped: Stopped after step \d+\. To continue, repeat the command with --resume", said)
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_ctrl_c_is_no_error_of_the_library_that_it_meets(ended, monkeypatch):
    """Those in C++ make an exception of their own of it."""

    def library(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise RuntimeError("Loading input model") from None

    monkeypatch.setattr("keras_resnet.create", library)
    assert ended("summary", "resnet20") == (130, "", "stopped: Loading input model\n")


def test_ctrl_c_while_the_libraries_are_loaded(monkeypatch, capsys):
    class Loading(ModuleType):
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "keras_resnet.cli", Loading("keras_resnet.cli"))
    with pytest.raises(SystemExit) as stopped:
        keras_resnet_command.main()
    assert stopped.value.code == 130 and capsys.readouterr() == ("", "stopped\n")


def test_models_lists_every_network_with_numbers():
    rows = json.loads(run_command("models", "--json").stdout)
    resnet50 = next(row for row in rows if row["name"] == "resnet50")
    assert (resnet50["depth"], resnet50["parameters"]) == (50, 25_583_592)
    assert resnet50["multiply_adds"] == pytest.approx(3.86e9, rel=1e-2) and "imagenet" in resnet50["weights"]
    assert len(rows) > 45
    table = run_command("models", "*cifar*").stdout
    assert "resnet1202_cifar" in table and "19.42 M" in table and "resnet50" not in table
    assert "(top-1 80.858%, BSD-3-Clause)" in re.sub(r"\s+", " ", run_command("models", "resnet50").stdout)
    assert "hf://timm/resnet50d.a1_in1k" in re.sub(r"\s", "", run_command("models", "resnet50d").stdout)


def test_summary_shows_layers():
    shown = run_command("summary", "resnet20").stdout
    assert "conv4_block3_out" in shown and "269,722" in shown


def test_predict_prints_a_table(folder, model_file):
    done = run_command("predict", folder, "--model", model_file)
    assert done.exit_code == 0
    assert all(name in done.stdout for name in ("ant", "bee", "wasp", "%"))
    assert "a.png" in re.sub(r"\s|ant|bee|wasp|[\d.]+ %", "", done.stdout)


def test_bad_images_are_listed_the_good_ones_predicted(folder, model_file, ended):
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no image")
    status, answered, said = ended("predict", folder, "--model", model_file, "--json")
    assert status == 1 and "Traceback" not in said
    answers = {answer["path"].rsplit("/", 1)[-1]: answer for answer in json.loads(answered)}
    assert len(answers["a.png"]["classes"]) == len(answers["b.jpg"]["classes"]) == 3
    for name in ("empty.png", "text.jpg"):
        assert not answers[name]["classes"] and name in answers[name]["error"] and name in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("summary", "resnet51"), "resnet50"),
        (("summary", "missing.keras"), "missing.keras"),
        (("models", "vgg*"), "vgg"),
        (("predict", "nowhere.jpg", "--model", "resnet20"), "nowhere.jpg"),
        (("predict", "https://example.com/cat.jpg"), "download"),
        (("predict", REFERENCES, "--model", "resnet20"), "folder with images"),
        (("train", "--recipe", "slow"), "quickstart"),
        (("train", "--set", "epoch=2", "--workdir", "w"), "epochs"),
        (("train", "--set", "epochs", "--workdir", "w"), "FIELD=VALUE"),
        (("train", "--set", "name=x", "--workdir", "w"), "fields of a recipe"),
        (("train", "--workdir", "/proc/none/w", "--set", "epochs=1"), "/proc"),
        (("train", "--dataset", "cifar11", "--workdir", "w"), "cifar10"),
        (("train", "--dataset", "cifar10", "--data-dir", ".", "--no-download", "--workdir", "w"), "download"),
        (("train", "--dataset", "wikipedia", "--no-download", "--workdir", "w"), "classification"),
        (("train", "--precision", "float8", "--workdir", "w"), "bfloat16"),
        (("convert", "missing.pth", "out.h5", "--model", "resnet20"), "missing.pth"),
        (("convert", REFERENCES / "torch_malicious.pth", "out.h5", "--model", "resnet20"), "system"),
    ],
)
def test_bad_input_is_one_message_and_status_1(words, message, tmp_path, ended, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, said = ended(*words)
    assert status == 1 and said.startswith("error:") and message in said
    assert not any(tmp_path.iterdir())


def test_an_empty_folder_in_a_process_of_its_own(tmp_path, model_file):
    done = command("predict", tmp_path, "--model", model_file)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: Expected a folder with images") and done.stderr.count("\n") == 1


def test_convert_there_and_back(tmp_path):
    model = randomize_weights(create("resnet20"))
    save_weights(model, tmp_path / "a.weights.h5")
    for source, target, layout in (("a.weights.h5", "b.pth", "torchvision"), ("b.pth", "c.safetensors", "keras")):
        done = run_command("convert", tmp_path / source, tmp_path / target, "--model", "resnet20", "--layout", layout)
        assert done.exit_code == 0, done.output
    back = create("resnet20")
    load_weights(back, tmp_path / "c.safetensors")
    for ours, theirs in zip(back.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_help_names_every_command():
    shown = re.findall(r"^\W*(\w+)", run_command("--help").stdout, re.MULTILINE)
    assert {"models", "summary", "predict", "convert", "evaluate", "study", "train", "benchmark"} <= set(shown)
