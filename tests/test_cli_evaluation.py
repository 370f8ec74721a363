"""`keras-resnet evaluate` and `keras-resnet study`."""

import json
import re

import keras
import numpy as np
import pytest
from PIL import Image
from support import digits_network, png_bytes, run_command, small_segmenter

from keras_resnet import complexity, evaluate, get_spec, load_model
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.data.sources import load_test


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of .keras files: two networks for the digits, and one with nine classes."""
    folder = tmp_path_factory.mktemp("models")
    for name, network in (("a", digits_network(0)), ("b", digits_network(1)), ("nine", digits_network(0, 9))):
        network.save(folder / f"{name}.keras")
    return folder


@pytest.fixture
def folder(tmp_path):
    """A folder with ten image files without class folders, one of them damaged, and their label file."""
    path = tmp_path / "flat"
    path.mkdir()
    for number in range(10):
        Image.fromarray(np.full((9, 9, 3), 25 * number, "uint8")).save(path / f"{number}.png")
    (path / "7.png").write_bytes(b"no image")
    (tmp_path / "labels.txt").write_text("\n".join(f"{number}.png {number}" for number in range(10)))
    return tmp_path


def test_evaluate_as_json(models):
    done = run_command("evaluate", "--model", models / "a.keras", "--dataset", "digits", "--json")
    said, expected = json.loads(done.stdout), evaluate(digits_network(), "digits")
    assert said["top1_error"] == expected.top1_error and said["top5_error"] == expected.top5_error
    assert (said["num_images"], said["num_skipped"], said["dataset"]) == (360, 0, "digits")
    assert said["protocol"] == {"crop": "center", "flip": False, "scales": []}
    assert sum(row["num_images"] for row in said["by_class"]) == 360


def test_an_ensemble_with_mirrored_views_as_a_table(models, tmp_path):
    words = ["evaluate", "--model", models / "a.keras", "--model", models / "b.keras", "--dataset", "digits"]
    done = run_command(*words, "--protocol", "flip", "--by-class", "--confusion", tmp_path / "confusion.png")
    expected = evaluate([digits_network(0), digits_network(1)], load_test("digits"), "flip")
    assert f"{expected.top1_error:.2%}" in done.stdout and f"{expected.num_wrong(5)} of 360" in done.stdout
    assert Image.open(tmp_path / "confusion.png").format == "PNG"


def test_mode_sets_the_preprocessing_of_a_network_without_one(models, tmp_path):
    network = digits_network()
    expected = evaluate(network, "digits").top1_error
    keras.Model(network.inputs, network.outputs).save(tmp_path / "own.keras")
    words = ["evaluate", "--model", tmp_path / "own.keras", "--dataset", "digits", "--json"]
    assert "preprocess" in run_command(*words).stderr
    assert json.loads(run_command(*words, "--mode", "tf").stdout)["top1_error"] == expected


def test_evaluate_a_folder_with_a_label_file(models, folder):
    words = ["evaluate", "--model", models / "a.keras", "--dataset", folder / "flat", "--labels", folder / "labels.txt"]
    said = json.loads(run_command(*words, "--skip-bad", "--json").stdout)
    assert (said["num_images"], said["num_skipped"]) == (9, 1)
    shown = run_command(*words, "--skip-bad", "--by-class")
    assert "1 images or objects, which are left out" in shown.stderr and "flat/7.png (" in shown.stderr


def test_square_brackets_in_names_are_printed(tmp_path):
    for name in ("[red]", "x[b]"):
        (tmp_path / "[bold]" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "[bold]" / name / "1.png")
    network = digits_network(classes=2)
    network.info["class_names"] = ["[red]", "x[b]"]
    network.save(tmp_path / "two.keras")
    shown = run_command(
        "evaluate", "--model", tmp_path / "two.keras", "--dataset", tmp_path / "[bold]", "--by-class"
    ).stdout
    assert "[red]" in shown and "x[b]" in shown and "on [bold]" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dataset", "digits", "--model", "{models}/a.keras", "--protocol", "ten_crops"), "ten_crop"),
        (("--dataset", "digits", "--model", "{models}/a.keras", "--protocol", "ten_crop"), "larger than the crops"),
        (
            ("--dataset", "digits", "--model", "{models}/a.keras", "--protocol", "multi_scale", "--scales", "4"),
            "at least 8",
        ),
        (("--dataset", "digits", "--model", "{models}/a.keras", "--scales", "x"), "`--scales` should be numbers"),
        (("--dataset", "digits", "--model", "{models}/nine.keras"), "from 0 to 8"),
        (("--dataset", "digits", "--model", "{models}/a.keras", "--model", "{models}/nine.keras"), "same 10 classes"),
        (("--dataset", "digits", "--model", "{models}/a.keras", "--weights", "x.h5"), "`--weights` should be"),
        (("--dataset", "digits", "--model", "{models}/none.keras"), "an existing .keras file"),
        (("--dataset", "digits", "--model", "resnet20", "--model", "resnet32", "--weights", "x"), "in their order"),
        (("--dataset", "{folder}/flat", "--model", "{models}/a.keras"), "--labels"),
        (("--dataset", "{folder}/flat", "--labels", "none.txt", "--model", "{models}/a.keras"), "not found"),
        (
            ("--dataset", "{folder}/flat", "--labels", "{folder}/labels.txt", "--model", "{models}/a.keras"),
            "flat/7.png (not an image",
        ),
        (("--dataset", "digits", "--split", "val", "--model", "{models}/a.keras"), "`split` should be one of"),
        (("--dataset", "digits", "--model", "resnet20", "--weights", "cifar10", "--precision", "int4"), "bfloat16"),
        (
            ("--dataset", "digits", "--model", "{models}/a.keras", "--precision", "float32"),
            "`--precision` should be left",
        ),
        (("--dataset", "digits", "--model", "{models}/a.keras", "--confusion", "none/c.png"), "folder of `path`"),
        (("--dataset", "digits", "--model", "resnet20"), "one of ['cifar10'], as resnet20 has no weights 'imagenet'"),
        (("--dataset", "digits", "--model", "resnet18", "--weights", "x.h5"), "x.h5"),
    ],
)
def test_invalid_input_is_one_message_and_status_1(words, message, models, folder):
    words = [word.format(models=models, folder=folder) for word in words]
    done = run_command("evaluate", *words)
    assert done.exit_code == 1 and done.stderr.startswith("error:") and message in done.stderr


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder of four images and their masks of four classes and void (4), and a .keras file of a segmenter."""
    folder, random = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for number in range(4):
        for kind, array in (
            ("images", random.integers(0, 256, (20, 30, 3), "uint8")),
            ("masks", random.integers(0, 5, (20, 30), "uint8")),
        ):
            path = folder / "data" / "test" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png_bytes(array))
    (folder / "data" / "classes.txt").write_text("sky\nroad\ncar\ntree")
    model = small_segmenter()
    names = ["person", "sky", "road", "car", "tree"]
    model.info = {"preprocessing": SegmentationPreprocessing().to_config(), "class_names": names}
    model.save(folder / "segmenter.keras")
    model.info = {"preprocessing": SegmentationPreprocessing().to_config()}
    model.save(folder / "unnamed.keras")
    return folder


def test_a_segmenter_as_a_table(scenes, tmp_path):
    """With the IoU and the Dice coefficient of each class, and the means."""
    words = ["evaluate", "--model", scenes / "segmenter.keras", "--dataset", scenes / "data", "--ignore-index", "4"]
    files = ("--confusion", tmp_path / "confusion.png", "--predictions", tmp_path / "images.csv")
    done = run_command(*words, *files)
    assert done.exit_code == 0, done.output
    result = evaluate(load_model(scenes / "segmenter.keras"), str(scenes / "data"), ignore_index=4)
    for name, iou, dice in zip(result.classes, result.iou, result.dice, strict=True):
        assert re.search(rf"{name} +\S+% +{iou:.2%} +{dice:.2%} ", done.stdout), done.stdout
    assert re.search(rf"mean of the classes +{result.mean_iou:.2%} +{result.mean_dice:.2%} ", done.stdout)
    assert f"{result.pixel_accuracy:.2%}" in done.stdout and f"{result.num_pixels:,} pixels" in " ".join(
        done.stdout.split()
    )
    assert Image.open(tmp_path / "confusion.png").format == "PNG"
    assert len((tmp_path / "images.csv").read_text().splitlines()) == 5


def test_a_segmenter_under_a_protocol_as_json(scenes):
    options = ("--protocol", "sliding_window", "--window", "16", "--scales", "0.5,1", "--flip", "--json")
    words = ("--model", scenes / "segmenter.keras", "--dataset", scenes / "data", "--ignore-index", "4")
    said = json.loads(run_command("evaluate", *words, *options).stdout)
    changes = {"window": 16, "scales": (0.5, 1), "flip": True}
    expected = evaluate(load_model(scenes / "segmenter.keras"), str(scenes / "data"), ignore_index=4, **changes)
    assert said["mean_iou"] == expected.mean_iou and said["dataset"] == "data"
    assert said["protocol"] == {"scales": [0.5, 1.0], "flip": True, "window": 16, "overlap": 1 / 3}
    assert [row["dice"] for row in said["by_class"]] == expected.dice


def test_class_names_of_a_segmenter_without_them(scenes):
    words = (
        "evaluate",
        "--model",
        scenes / "unnamed.keras",
        "--dataset",
        scenes / "data",
        "--ignore-index",
        "4",
        "--json",
    )
    named = run_command(*words, "--class-names", "person,sky,road,car,tree").stdout
    assert (
        json.loads(named)["by_class"]
        == json.loads(run_command(*words[:2], scenes / "segmenter.keras", *words[3:]).stdout)["by_class"]
    )
    assert "among the model's 5 classes" in run_command(*words).stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "{scenes}/segmenter.keras", "--protocol", "center"), "`protocol` should be one of"),
        (("--model", "{scenes}/segmenter.keras", "--scales", "0"), "factors above 0"),
        (("--model", "{scenes}/segmenter.keras", "--mode", "tf"), "`--mode` should be left out for a segmenter"),
        (("--model", "{scenes}/segmenter.keras", "--curves", "x.png"), "`--curves` should be left out for a segmenter"),
        (("--model", "{scenes}/segmenter.keras", "--refine"), "`--refine` should be left out for a segmenter"),
        (("--model", "{scenes}/segmenter.keras"), "has the indices [4], but there are 4 classes"),
        (
            ("--model", "{scenes}/segmenter.keras", "--confusion", "none/c.png", "--ignore-index", "4"),
            "folder of `path`",
        ),
        (
            ("--model", "{models}/a.keras", "--ignore-index", "4"),
            "`--ignore-index` should be left out for a classifier",
        ),
        (("--model", "{models}/a.keras", "--window", "4"), "`--window` should be left out for a classifier"),
        (("--model", "{models}/a.keras", "--protocol", "sliding_window"), "`protocol` should be one of"),
    ],
)
def test_options_that_do_not_fit_a_segmenter(words, message, scenes, models):
    words = [word.format(scenes=scenes, models=models) for word in words]
    done = run_command("evaluate", "--dataset", scenes / "data", *words)
    assert done.exit_code == 1 and done.stderr.startswith("error:") and message in done.stderr, done.stderr


def test_complexity_agrees_with_the_paper():
    """He et al. 2015, sec. 3.3 and table 1."""
    rows = {row["name"]: row for row in json.loads(run_command("study", "complexity", "--json").stdout)}
    billions = {name: round(row["multiply_adds"] / 1e9, 1) for name, row in rows.items()}
    paper = {"ResNet-18": 1.8, "ResNet-34": 3.6, "ResNet-101": 7.6, "ResNet-152": 11.3, "VGG-19": 19.6}
    assert paper.items() <= billions.items() and "AlexNet" in rows and "VGG-16" in rows
    assert rows["ResNet-50"]["multiply_adds"] // 10**8 == 38  # the paper's 3.8, not rounded


def test_complexity_layer_by_layer(tmp_path):
    shown = run_command("study", "complexity", "--model", "resnet20", "--plot", tmp_path / "costs.png").stdout
    assert "40,551,040" in shown and "stage3 81 px" in shown
    assert Image.open(tmp_path / "costs.png").format == "PNG"


def test_complexity_of_a_detector_layer_by_layer():
    shown = run_command("study", "complexity", "--model", "retinanet_resnet18_fpn").stdout
    assert f"{complexity(get_spec('retinanet_resnet18_fpn')).multiply_adds:,}" in shown


def test_responses_of_several_networks(models, tmp_path):
    words = ["study", "responses", "--dataset", "digits", "--workdir", tmp_path / "r", "--json"]
    said = json.loads(run_command(*words, "--model", models / "a.keras", "--model", models / "b.keras").stdout)
    said = said["responses"]
    assert [len(rows) for rows in said.values()] == [7, 7]
    assert json.loads((tmp_path / "r" / "responses.json").read_text()) == said
    assert Image.open(tmp_path / "r" / "responses.png").format == "PNG"


def test_signals_of_trained_and_untrained_networks(models, tmp_path):
    words = ["study", "signals", "--dataset", "digits", "--workdir", tmp_path, "--batch-size", "16"]
    shown = run_command(*words, "--model", models / "a.keras").stdout
    assert "norm of gradients" in shown and "variance of responses" in shown
    ours = keras.saving.load_model(models / "a.keras")
    keras.Model(ours.inputs, ours.outputs).save(tmp_path / "plain.keras")
    assert "norm of gradients" in run_command(*words, "--model", tmp_path / "plain.keras").stdout
    assert "plain20" in run_command(*words, "--model", "plain20").stdout  # untrained, and for colours
    for name in ("forward_variances", "gradient_norms"):
        assert Image.open(tmp_path / f"{name}.png").format == "PNG"
        (layers,) = json.loads((tmp_path / f"{name}.json").read_text()).values()
        assert len(layers) == 19 and min(layers.values()) > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--depths", "20"), "two or more"),
        (("--depths", "20,x"), "`--depths` should be numbers"),
        (("--images", "1000"), "`--images` should be 2 numbers"),
        (("--set", "seed=3"), "fields of a recipe"),
        (("--set", "epochs"), "FIELD=VALUE"),
        (("--size", "digit"), "digits"),
    ],
)
def test_invalid_options_of_a_degradation_study(words, message, tmp_path):
    done = run_command("study", "degradation", "--workdir", tmp_path, *words)
    assert done.exit_code == 1 and message in done.stderr
