"""The command line: options, errors and interrupts; models, summary, predict, convert and train."""

import json
import re
import signal
import subprocess
import sys
import time
from types import ModuleType
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from support import REFERENCES, randomize_weights, run_command
from typer.main import get_command

import keras_resnet_command
from keras_resnet import ResNetSpec, create, list_models, load_weights, save_weights
from keras_resnet.cli import app
from keras_resnet.cli.options import option
from keras_resnet.data.source_kinds import digits


def command(*words, **kwargs):
    """Runs `keras-resnet WORDS` in a new process."""
    start = "from keras_resnet_command import main; main()"
    return subprocess.run([sys.executable, "-c", start, *map(str, words)], capture_output=True, text=True, **kwargs)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A .keras file: a small untrained network with its preprocessing and class names."""
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
    """A folder with two images, one of them in a subfolder."""
    (tmp_path / "images" / "more").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (50, 40)), ("more/b.jpg", (33, 64))):
        Image.fromarray(generator.integers(0, 255, (*size, 3), "uint8")).save(tmp_path / "images" / name)
    return tmp_path / "images"


@pytest.fixture
def small_spec(tmp_path):
    """A JSON file with the ResNetSpec of a small network, which compiles fast."""
    path = tmp_path / "spec.json"
    spec = ResNetSpec("basic", depths=(1, 1), widths=(16, 32), stem="cifar", stem_width=16)
    path.write_text(json.dumps(spec.to_config()))
    return path


@pytest.mark.slow
def test_quickstart_reaches_98_percent(tmp_path):
    """The README's main command, which takes about a minute."""
    done = command("train", "--recipe", "quickstart", "--workdir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "report.json").read_text())["top1_accuracy"] >= 0.98
    assert "epoch 40, step 880 of 880" in done.stderr and "top-1 accuracy" in done.stdout


def test_train_then_predict(small_spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ("--spec", small_spec, "--set", "epochs=6", "--workdir", "run")
    done = run_command("train", *settings)
    assert done.exit_code == 0, done.output
    assert "top-1 accuracy" in done.stdout and "everything in run/" in done.stdout
    images, labels = digits().test.images, digits().test.labels
    for index in range(3):
        Image.fromarray(images[index, ..., 0]).save(f"{index}.png")
    files = [f"{index}.png" for index in range(3)]
    done = run_command("predict", *files, "--model", "run/model.keras", "--json", "--top", "2")
    assert done.exit_code == 0, done.output
    predictions = json.loads(done.stdout)
    assert [prediction["classes"][0]["name"] for prediction in predictions] == [str(label) for label in labels[:3]]
    done = run_command("train", *settings)
    assert done.exit_code == 1 and "overwrite" in done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_a_checkpoint_and_prints_how_to_continue(number, status, small_spec, tmp_path):
    """A real signal, as soon as the run has finished an epoch."""
    start = "from keras_resnet_command import main; main()"
    words = ["train", "--spec", small_spec, "--set", "epochs=5000", "--workdir", tmp_path / "run"]
    process = subprocess.Popen([sys.executable, "-c", start, *words], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "run" / "history.csv").exists():
        time.sleep(0.1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in stderr
    assert re.search(r"stopped: Stopped after step \d+\. To continue, repeat the command with --resume", stderr)
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_an_error_that_a_library_raises_after_ctrl_c_ends_with_status_130(ended, monkeypatch):
    """Libraries in C++ turn KeyboardInterrupt into exceptions of their own.

    The handler is called, no signal is sent: other libraries of this process may handle signals before Python does.
    """

    def interrupted_library(*_, **__):
        try:
            signal.getsignal(signal.SIGINT)(signal.SIGINT, None)  # as Python does after a SIGINT
        except KeyboardInterrupt:
            raise RuntimeError("Loading input model") from None

    monkeypatch.setattr("keras_resnet.create", interrupted_library)
    assert ended("summary", "resnet20") == (130, "", "stopped: Loading input model\n")


def test_ctrl_c_during_the_imports(monkeypatch, capsys):
    class Loading(ModuleType):
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "keras_resnet.cli", Loading("keras_resnet.cli"))
    with pytest.raises(SystemExit) as stopped:
        keras_resnet_command.main()
    assert stopped.value.code == 130 and capsys.readouterr() == ("", "stopped\n")


def test_models_lists_every_network_with_its_costs_and_weights():
    rows = json.loads(run_command("models", "--json").stdout)
    resnet50 = next(row for row in rows if row["name"] == "resnet50")
    assert (resnet50["depth"], resnet50["parameters"]) == (50, 25_583_592)
    assert resnet50["multiply_adds"] == pytest.approx(3.86e9, rel=1e-2) and "imagenet" in resnet50["weights"]
    assert len(rows) > 45
    table = run_command("models", "*cifar*").stdout
    assert "resnet1202_cifar" in table and "19.42 M" in table and "resnet50" not in table
    assert "(top-1 80.858%, BSD-3-Clause)" in re.sub(r"\s+", " ", run_command("models", "resnet50").stdout)
    assert "hf://timm/resnet50d.a1_in1k" in re.sub(r"\s", "", run_command("models", "resnet50d").stdout)


def test_models_lists_detectors_with_published_average_precisions():
    rows = {row["name"]: row for row in json.loads(run_command("models", "--task", "detection", "--json").stdout)}
    found = [rows["maskrcnn_resnet50_fpn"][key] for key in ("depth", "parameters", "input_size", "box_ap", "mask_ap")]
    assert found == [50, 44_401_393, 800, 0.379, 0.346]  # torchvision's
    assert rows["fasterrcnn_resnet101_c4"]["box_ap"] is None
    table = re.sub(r"\s", "", run_command("models", "*_v2", "--task", "detection").stdout)
    assert "43.71M280.37G46.7%" in table and "46.36M333.58G47.4%41.8%" in table
    one = re.sub(r"\s", "", run_command("models", "maskrcnn_resnet50_fpn", "--task", "detection").stdout)
    assert "torchvision:COCO_V1(boxAP37.9%,maskAP34.6%,BSD-3-Clause)" in one


def test_models_lists_segmenters_with_published_mean_iou():
    rows = {row["name"]: row for row in json.loads(run_command("models", "--task", "segmentation", "--json").stdout)}
    keys = ("depth", "parameters", "input_size", "mean_iou", "pixel_accuracy")
    assert [rows["deeplabv3_resnet101"][key] for key in keys] == [101, 60_996_202, 520, 0.674, 0.924]  # torchvision's
    assert rows["deeplabv3plus_resnet50"]["mean_iou"] is None
    table = re.sub(r"\s", "", run_command("models", "fcn*", "--task", "segmentation").stdout)
    assert "35.32M142.73G60.5%91.4%" in table
    one = re.sub(r"\s", "", run_command("models", "fcn_resnet50", "--task", "segmentation").stdout)
    assert "torchvision:COCO_WITH_VOC_LABELS_V1(meanIoU60.5%,pixelaccuracy91.4%,BSD-3-Clause)" in one


@pytest.mark.parametrize(
    ("task", "tags"),
    [
        ("classification", {"imagenet,", "torchvision", "hf://timm"}),
        ("detection", {"coco,", "torchvision"}),
        ("localization", set()),
        ("segmentation", {"coco_voc,", "torchvision"}),
    ],
)
def test_tables_of_models_break_no_name_at_80_columns(task, tags, monkeypatch):
    monkeypatch.setattr("keras_resnet.cli.models.out.width", 80)
    words = run_command("models", "--task", task).stdout.split()
    assert {*list_models(task=task), *tags} <= set(words)


def test_summary_prints_the_layers():
    output = run_command("summary", "resnet20").stdout
    assert "conv4_block3_out" in output and "269,722" in output


def test_predict_prints_a_table(folder, model_file):
    done = run_command("predict", folder, "--model", model_file)
    assert done.exit_code == 0
    assert all(name in done.stdout for name in ("ant", "bee", "wasp", "%"))
    assert "a.png" in re.sub(r"\s|ant|bee|wasp|[\d.]+%", "", done.stdout)


def test_unreadable_images_are_listed_and_the_others_predicted(folder, model_file):
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no image")
    done = run_command("predict", folder, "--model", model_file, "--json")
    assert done.exit_code == 1
    predictions = {row["path"].rsplit("/", 1)[-1]: row for row in json.loads(done.stdout)}
    assert len(predictions["a.png"]["classes"]) == len(predictions["b.jpg"]["classes"]) == 3
    for name in ("empty.png", "text.jpg"):
        assert not predictions[name]["classes"] and name in predictions[name]["error"] and name in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("summary", "resnet51"), "resnet50"),
        (("summary", "missing.keras"), "missing.keras"),
        (("models", "vgg*"), "vgg"),
        (("models", "maskrcnn*"), "`--task detection`"),
        (("models", "--task", "detektion"), "'detection'"),
        (("predict", "nowhere.jpg", "--model", "resnet20"), "nowhere.jpg"),
        (("predict", "https://example.com/cat.jpg"), "download"),
        (("predict", REFERENCES, "--model", "resnet20"), "folder with images"),
        (("export", "FasterRCNN_ResNet18_FPN", "out.onnx"), "no weights 'coco'"),
        (("train", "--recipe", "slow"), "quickstart"),
        (("train", "--set", "epoch=2", "--workdir", "w"), "epochs"),
        (("train", "--set", "epochs", "--workdir", "w"), "FIELD=VALUE"),
        (("train", "--set", "name=x", "--workdir", "w"), "fields of a recipe"),
        (("train", "--workdir", "/proc/none/w", "--set", "epochs=1"), "/proc"),
        (("train", "--dataset", "cifar11", "--workdir", "w"), "cifar10"),
        (("train", "--dataset", "cifar10", "--data-dir", ".", "--no-download", "--workdir", "w"), "download"),
        (("train", "--dataset", "wikipedia", "--no-download", "--workdir", "w"), "classification"),
        (("train", "--precision", "float8", "--workdir", "w"), "bfloat16"),
        (("train", "--patience", "0", "--workdir", "w"), "`patience`"),
        (("train", "--size", "0", "--workdir", "w"), "`size`"),
        (("convert", "missing.pth", "out.h5", "--model", "resnet20"), "missing.pth"),
        (("convert", REFERENCES / "torch_malicious.pth", "out.h5", "--model", "resnet20"), "system"),
    ],
)
def test_invalid_input_is_one_message_and_status_1(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_command(*words)
    assert done.exit_code == 1 and done.stderr.startswith("error:") and message in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_real_process_prints_nothing_but_the_error(tmp_path, model_file):
    """Also none of the messages that TensorFlow writes while it is imported."""
    done = command("predict", tmp_path, "--model", model_file)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: Expected a folder with images") and done.stderr.count("\n") == 1


def test_convert_between_layouts_keeps_the_weights(tmp_path):
    model = randomize_weights(create("resnet20"))
    save_weights(model, tmp_path / "a.weights.h5")
    for source, target, layout in (("a.weights.h5", "b.pth", "torchvision"), ("b.pth", "c.safetensors", "keras")):
        done = run_command("convert", tmp_path / source, tmp_path / target, "--model", "resnet20", "--layout", layout)
        assert done.exit_code == 0, done.output
    back = create("resnet20")
    load_weights(back, tmp_path / "c.safetensors")
    for ours, theirs in zip(back.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


COMMANDS = (
    "models summary predict convert publish train evaluate features probe nearest finetune tune study export benchmark"
)


def test_help_names_every_command():
    words = re.findall(r"^\W*(\w+)", run_command("--help").stdout, re.MULTILINE)
    assert set(COMMANDS.split()) <= set(words)


def test_every_option_is_described():
    commands = get_command(app).commands
    for command in [*commands.values(), *commands["study"].commands.values()]:
        undescribed = [parameter.name for parameter in command.params if not parameter.help]
        assert command.help and not undescribed, (command.name, undescribed)


def test_options_are_made_of_parameters():
    """Type, default and description come from the function that the command calls."""

    def count(trials: int = 3, limit: float | int | None = None):
        """Counts.

        Args:
            trials: number of times to count. It may take long.
            limit: largest number; None: no limit.
        """

    trials, limit = (option(count, name) for name in ("trials", "limit"))
    (kind, info), default = get_args(trials.annotation), trials.default
    assert (kind, info.help, default) == (int, "Number of times to count.", 3)
    info = get_args(limit.annotation)[1]
    assert (info.help, info.show_default, info.parser("0.5"), info.parser("5")) == (
        "Largest number.",
        "no limit",
        0.5,
        5,
    )
