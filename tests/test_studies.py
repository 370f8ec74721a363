"""The degradation study: its runs, its results, interruptions, and refused arguments."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import product

import keras
import numpy as np
import pytest
from PIL import Image

from keras_resnet import complexity, get_recipe, get_spec, load_dataset, load_model, train
from keras_resnet.data.datasets import Stream
from keras_resnet.studies.degradation import SIZES, _network_names, _recipe, degradation, subset
from keras_resnet.studies.results import DegradationResult, NetworkResult, to_markdown
from keras_resnet.training.callbacks import CheckpointCallback
from keras_resnet.variants import VARIANTS

TINY = {"depths": (14, 8), "epochs": 1, "batch_size": 256, "deterministic": True}  # five steps a network
NAMES = ["plain8", "resnet8", "plain14", "resnet14"]


class Stopped(Exception):
    """Raised by `stop`."""


def stop(text):
    """A `progress` that stops the study before its next training."""
    raise Stopped(text)


@pytest.fixture(scope="module", autouse=True)
def _small_network_names():
    """The paper's networks with n = 1 and 2; the smallest that it trains has n = 3."""
    with pytest.MonkeyPatch.context() as patch:
        for family, depth in product(("plain", "resnet"), (8, 14)):
            spec = replace(get_spec(f"{family}20"), depths=(depth // 6,) * 3)
            patch.setitem(VARIANTS, f"{family}{depth}_cifar", spec)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(folder, result, messages to `progress`)."""
    folder, messages = tmp_path_factory.mktemp("study"), []
    return folder, degradation(folder, progress=messages.append, **TINY), messages


@pytest.fixture
def copy(study, tmp_path):
    """The folder of a study whose files a test may change."""
    return shutil.copytree(study[0], tmp_path / "copy")


def test_studies_write_a_plot_a_table_and_a_result(study):
    folder, result, messages = study
    assert [network.name for network in result.networks] == NAMES and not result.missing
    assert messages == [f"{name}: network {number} of 4" for number, name in enumerate(NAMES, 1)]
    for network in result.networks:
        assert network.parameters == complexity(get_spec(network.name), input_shape=(8, 8, 1)).parameters
        model = load_model(folder / network.name / "model.keras")
        test = load_dataset("digits").test
        wrong = model.predict(test.images / 127.5 - 1, verbose=0).argmax(axis=1) != test.labels
        assert network.test_error == pytest.approx(wrong.mean())
    assert json.loads((folder / "degradation.json").read_text()) == json.loads(json.dumps(result.to_config()))
    assert (folder / "degradation.md").read_text() == to_markdown(result)
    with Image.open(folder / "degradation.png") as image:
        assert image.format == "PNG" and image.width > 800


def test_networks_of_a_study_equal_runs_of_train(study, tmp_path):
    """And a folder that `train` wrote counts as a network of the study."""
    folder, result, _ = study
    row = SIZES["digits"]
    recipe = get_recipe(row.recipe, **{**row.changes, "epochs": 1, "batch_size": 256})
    run = train("resnet8", "digits", recipe, tmp_path / "resnet8", deterministic=True)
    network = next(network for network in result.networks if network.name == "resnet8")
    assert network.test_error == 1 - run.report["top1_accuracy"]
    assert network.training_error == pytest.approx(1 - run.history["accuracy"][-1])
    weights = load_model(folder / "resnet8" / "model.keras").weights
    for one, other in zip(weights, run.model.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other))
    with pytest.raises(Stopped, match="plain8: network 2 of 4"):
        degradation(tmp_path, progress=stop, **TINY)
    written = json.loads((tmp_path / "degradation.json").read_text())
    assert [row["name"] for row in written["networks"]] == ["resnet8"] and written["missing"] == ["plain8", *NAMES[2:]]


def test_second_call_trains_nothing(study):
    folder, result, _ = study
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}
    calls = []
    again = degradation(folder, dataset=lambda: calls.append(1) or load_dataset("digits"), progress=stop, **TINY)
    assert again == result and calls == [1]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*")} == before


def test_interrupted_studies_continue(study, copy, monkeypatch):
    """A real Ctrl-C after three of five steps of the third network."""
    shutil.rmtree(copy / "plain14")
    original = CheckpointCallback.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == 3:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, batch, logs)

    monkeypatch.setattr(CheckpointCallback, "on_train_batch_end", on_train_batch_end)
    with pytest.raises(KeyboardInterrupt, match="Stopped in plain14"):
        degradation(copy, **TINY)
    monkeypatch.undo()
    assert json.loads((copy / "degradation.json").read_text())["missing"] == ["plain14"]
    assert "| plain14 | | | | not trained yet |" in (copy / "degradation.md").read_text()
    assert timeless(degradation(copy, **TINY)) == timeless(study[1])


def timeless(result):
    """The networks of a result without their times."""
    return [replace(network, wall_time_s=0) for network in result.networks]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 2}, r"recipe.epochs was 1 there. Received: recipe.epochs=2, in .*plain8/settings.json"),
        ({"recipe": "cifar_fast"}, "recipe.decay_all was True"),
        ({"seed": 1}, "seed was 0"),
        ({"precision": "bfloat16"}, "precision was 'float32'"),
        ({"images": (1000, 100)}, "dataset was 'digits'"),
    ],
)
def test_networks_with_other_settings_are_refused(changes, message, copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    shutil.rmtree(copy / "plain14")
    with pytest.raises(ValueError, match=f"(?s){message}.*overwrite"):
        degradation(copy, **{**TINY, **changes})
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == {
        path: value for path, value in before.items() if path.parent.name != "plain14"
    }


def test_overwrite_removes_networks_and_nothing_else(copy):
    (copy / "plain8" / "notes.txt").write_text("mine")
    (copy / "other").mkdir()
    with pytest.raises(Stopped, match="plain8: network 1 of 4"):
        degradation(copy, seed=1, overwrite=True, progress=stop, **TINY)
    assert [path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()] == ["plain8/notes.txt"]
    with pytest.raises(Stopped):
        degradation(copy, seed=1, progress=stop, **TINY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "digit"}, "`size` should be one of.*Nearest: .'digits'.*Received: size='digit'"),
        ({"depths": (20, 54)}, "`depths` should be one of.*Nearest: .'56'.*Received: depths=54"),
        ({"depths": (20,)}, r"`depths` should be two or more of \[18, 34, 20, 32, 44, 56.*Received: depths=\[20\]"),
        ({"depths": 20}, r"`depths` should be two or more"),
        ({"depths": (20, 20, 110)}, r"`depths` should be two or more"),
        ({"recipe": "he2015"}, "`recipe` should be one of"),
        ({"epoch": 2}, "`changes` should be .*Nearest: .'epochs'"),
        ({"dataset": "digitz"}, "`dataset` should be"),
        ({"images": (1437, 100)}, r"`images` should be .* of \[1437, 360\].*Received: images=\(1437, 100\)"),
        ({"images": (5, 100)}, "`images` should be"),
        ({"precision": "float8"}, "`precision` should be one of"),
        ({"devices": 0}, "`devices` should be"),
        ({"batch_size": 5000}, "`batch_size` of a recipe should be at most the number of training images"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_written(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        degradation(tmp_path / "new", **{"epochs": 1, **arguments})
    assert not (tmp_path / "new").exists()


def test_overwrite_removes_nothing_for_invalid_arguments(copy):
    for wrong in ({"precision": "float8"}, {"batch_size": 5000}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            degradation(copy, overwrite=True, **{**TINY, **wrong})
    assert all((copy / name / "model.keras").exists() for name in NAMES)


def test_workdirs_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="`workdir` should be a folder that can be written"):
        degradation(tmp_path / "file", **TINY)


def test_several_machines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_resnet.training.distribution.Devices.num_machines", 2)
    with pytest.raises(ValueError, match="one machine.*Received: 2 machines"):
        degradation(tmp_path, **TINY)


def test_paper_size_trains_the_networks_of_the_paper():
    paper = SIZES["paper"]
    assert _network_names(paper.depths)[-3:] == ["plain56", "resnet56", "resnet110"]
    recipes = {name: _recipe(paper, name, None, {}) for name in _network_names(paper.depths)}
    assert {name for name, recipe in recipes.items() if recipe.warmup} == {"resnet110"}
    assert all(recipe.iterations == 64_000 and recipe.batch_size == 128 for recipe in recipes.values())
    assert _recipe(paper, "resnet110", None, {"epochs": 3}).steps(50_000)[1] == 3 * 390
    assert not _recipe(paper, "resnet110", "he2015_cifar", {}).warmup, "a given recipe is for all networks"
    assert _network_names((34, 18)) == ["plain18", "resnet18", "plain34", "resnet34"]
    for name, size in SIZES.items():
        recipe = _recipe(size, "plain20", None, {})
        assert (recipe.schedule == "step") if name == "paper" else recipe.warmup_constant
        assert len(_network_names(size.depths)) >= 4


def test_subsets_keep_the_proportions_of_the_classes():
    digits = load_dataset("digits")
    part = subset(digits, 700, 100)
    assert part.name == "digits, 700 of 1,437 training and 100 of 360 test images"
    for few, whole in ((part.train, digits.train), (part.test, digits.test)):
        expected = np.bincount(whole.labels) * len(few) / len(whole)
        np.testing.assert_allclose(np.bincount(few.labels), expected, atol=1)
        images = {image.tobytes() for image in whole.images}
        assert all(image.tobytes() in images for image in few.images)
    np.testing.assert_array_equal(subset(digits, 700, 100).train.images, part.train.images)
    with pytest.raises(ValueError, match="fit in memory"):
        subset(replace(digits, train=Stream(partial(iter, ()), 9)), 5, 5)


def test_effects_of_depth_equal_the_paper():
    """Errors of table 6 of the paper: only the differences are computed."""
    errors = {"resnet20": 8.75, "resnet32": 7.51, "resnet56": 6.97, "resnet110": 6.43, "plain20": 9.5}
    networks = [
        NetworkResult(name, name.rstrip("0123456789"), int(name.strip("plainrest")), 1, error / 50, error / 100, 60)
        for name, error in errors.items()
    ]
    (effect,) = DegradationResult({}, tuple(networks), ()).effects
    assert (effect.family, effect.shallowest, effect.deepest) == ("resnet", 20, 110)
    assert effect.test_error == pytest.approx(-0.0232) and effect.training_error == pytest.approx(-0.0464)
    assert "from 20 to 110 layers: training error -4.64, test error -2.32 percentage points" in str(effect)


@pytest.mark.slow
def test_killed_studies_end_with_the_same_results(tmp_path):
    """SIGKILL in the middle of two networks: as soon as one has a checkpoint."""
    options = {**TINY, "depths": (20, 32), "checkpoint_every": 1}
    code = (
        f"from keras_resnet.studies.degradation import degradation; degradation({str(tmp_path / 'a')!r}, **{options})"
    )
    for name in ("resnet20", "plain32"):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        while process.poll() is None and not (tmp_path / "a" / name / "checkpoint.safetensors").exists():
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not (tmp_path / "a" / name / "report.json").exists()
    killed, whole = (degradation(tmp_path / folder, **options) for folder in "ab")
    assert timeless(killed) == timeless(whole)
