"""`train` of segmenters: what it learns and writes, interruptions, classes and weights, and refused arguments."""

import json
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
from drawn_objects import TINY_SEGMENTER, drawn_masks, write_drawn_masks
from PIL import Image
from support import run_command, signal_after

import keras_resnet
from keras_resnet import create, evaluate, get_recipe, load_dataset, load_model, save_weights, train
from keras_resnet.training.model_setup import Start
from keras_resnet.training.segmenter_setup import segmenter_for_images

RECIPE = get_recipe("segmentation_finetune", batch_size=4, epochs=2)
DRAWINGS = drawn_masks()
RESULTS = ("mean_iou", "pixel_accuracy", "mean_accuracy")


def arrays(model):
    return [keras.ops.convert_to_numpy(variable) for variable in model.variables]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of DeepLabV3 with its folder."""
    folder = tmp_path_factory.mktemp("run")
    return train(TINY_SEGMENTER, DRAWINGS, RECIPE, folder, deterministic=True, keep="best"), folder


def test_a_run_writes_a_segmenter_that_has_the_reported_accuracy(finished):
    run, folder = finished
    names = "checkpoint.safetensors curves.png history.csv model.keras report.json segmentations.jpg settings.json"
    assert sorted(it.name for it in folder.iterdir() if not it.name.startswith("best")) == names.split()
    report = json.loads((folder / "report.json").read_text())
    assert report == run.report and report["test_images"] == 4
    assert report["class_names"] == ["background", "red", "blue"]
    model = load_model(folder / "model.keras")
    assert model.info["class_names"] == report["class_names"]
    assert model.info["colors"] == [[0, 0, 0], [220, 30, 30], [30, 30, 220]]
    assert keras_resnet.preprocessing(model).shorter_side is None
    result = evaluate(model, DRAWINGS)
    for name in RESULTS:
        assert report[name] == model.info["results"][name] == pytest.approx(getattr(result, name), abs=1e-6), name
    with Image.open(folder / "segmentations.jpg") as sheet:
        assert sheet.format == "JPEG" and sheet.width > 1000


def test_the_history_has_the_separate_losses_and_their_sum(finished):
    history = finished[0].history
    np.testing.assert_allclose(
        history["loss"], np.add(history["segmentation_loss"], history["auxiliary_loss"]), rtol=1e-5
    )
    assert len(history["val_mean_iou"]) == 2 and history["step"] == [3, 6]


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 5])
def test_interrupted_runs_continue_with_the_same_numbers(step, finished, tmp_path, monkeypatch):
    signal_after(monkeypatch, step)
    options = {"deterministic": True, "keep": "best"}
    with pytest.raises(KeyboardInterrupt, match=f"after step {step}"):
        train(TINY_SEGMENTER, DRAWINGS, RECIPE, tmp_path, **options)
    monkeypatch.undo()
    run = train(TINY_SEGMENTER, DRAWINGS, RECIPE, tmp_path, resume=True, **options)
    for one, other in zip(arrays(run.model), arrays(finished[0].model), strict=True):
        np.testing.assert_array_equal(one, other)
    for name in ("loss", "segmentation_loss", "auxiliary_loss", "learning_rate", *(f"val_{it}" for it in RESULTS)):
        assert run.history[name] == finished[0].history[name], name


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fcn", "deeplabv3plus"])
def test_segmenters_learn_drawn_rectangles(head):
    spec, recipe = replace(TINY_SEGMENTER, head=head), replace(RECIPE, epochs=20, learning_rate=0.05)
    run = train(spec, drawn_masks(train=48, test=16), recipe, validation_freq=20, class_weight="balanced")
    assert run.report["mean_iou"] > 0.8 and run.history["loss"][-1] < run.history["loss"][0] / 2


def test_lower_precision_averaged_weights_and_images_of_another_size(few_batches):
    run = train(
        replace(TINY_SEGMENTER, auxiliary=False),
        DRAWINGS,
        RECIPE,
        epochs=1,
        precision="bfloat16",
        ema_decay=0.5,
        validation_freq=2,
        size=40,
    )
    assert np.isfinite(run.history["loss"]).all() and run.report["precision"] == "bfloat16"
    assert 0 <= run.report["mean_iou"] <= 1 and "val_mean_iou" not in run.history
    assert keras_resnet.preprocessing(run.model).shorter_side == 40


def test_the_learning_rate_of_a_segmenter_is_tested():
    result = keras_resnet.learning_rate_test(TINY_SEGMENTER, DRAWINGS, RECIPE, steps=3, highest=0.1)
    assert len(result.losses) == 3 and np.isfinite(result.losses).all()


def test_frozen_stages_keep_the_weights_of_the_backbone(tmp_path):
    network = keras_resnet.build(TINY_SEGMENTER.backbone, classes=5, input_shape=(32, 32, 3))
    save_weights(network, tmp_path / "backbone.safetensors")
    options = {"iterations": 1, "trainable_stages": 0, "backbone_weights": tmp_path / "backbone.safetensors"}
    run = train(TINY_SEGMENTER, DRAWINGS, RECIPE, **options)
    frozen = [layer for layer in run.model.layers if layer.name.startswith("conv") and layer.weights]
    assert len(frozen) > 5
    for layer in frozen:
        for one, other in zip(layer.get_weights(), network.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(one, other, layer.name)


def test_a_file_of_other_classes_gets_new_last_layers(finished):
    path = finished[1] / "model.keras"
    same, _ = segmenter_for_images(Start(path), DRAWINGS, RECIPE)
    for one, other in zip(same.get_weights(), finished[0].model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    renamed = replace(DRAWINGS, class_names=("background", "blue", "red"), colors=None)
    with pytest.warns(UserWarning, match="last layers of segmenter for 3 classes are new"):
        model, _ = segmenter_for_images(Start(path), renamed, RECIPE)
    assert model.info["class_names"] == ["background", "blue", "red"] and "results" not in model.info
    assert model.info["colors"] is None
    for layer in model.layers:
        equal = map(np.array_equal, layer.get_weights(), finished[0].model.get_layer(layer.name).get_weights())
        assert all(equal) == (not layer.name.endswith("_logits")), layer.name


def test_weights_of_a_segmenter_by_its_name(tmp_path):
    """A file with other classes, by the name of the network."""
    model = create("fcn_resnet18", classes=2)
    save_weights(model, tmp_path / "two.safetensors")
    with pytest.warns(UserWarning, match="last layers"):
        found, _ = segmenter_for_images(Start("fcn_resnet18", tmp_path / "two.safetensors"), DRAWINGS, RECIPE)
    np.testing.assert_array_equal(*(it.get_layer("conv1_conv").get_weights()[0] for it in (model, found)))
    assert found.spec.classes == 3


def without_masks(dataset):
    return replace(dataset, train=replace(dataset.train, masks=None), test=replace(dataset.test, masks=None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "quickstart"}, "`recipe` should be one for segmentation, such as 'segmentation_finetune'"),
        ({"model": "resnet20"}, "`recipe` should be one for classification, such as 'finetune', to train resnet20"),
        ({"dataset": without_masks(DRAWINGS)}, "`dataset` should be one with masks"),
        ({"mixup": 0.2}, "`mixup` of a recipe should be 0.0 with the loss 'segmentation'"),
        ({"class_weight": {"green": 2}}, "names or indices of classes"),
        ({"crop": "random_resized"}, "`crop` of a recipe should be one of"),
        ({"scale": (0, 1.0)}, "`scale` of a recipe should be two factors"),
        ({"color_jitter": 1.5}, "`color_jitter` of a recipe should be"),
        ({"weights": "none.safetensors", "model": "fcn_resnet18"}, "weights"),
        ({"model": keras_resnet.build(replace(TINY_SEGMENTER, classes=9))}, "a segmenter of 3 classes"),
        (
            {"model": keras_resnet.build(replace(TINY_SEGMENTER, classes=3)), "precision": "bfloat16"},
            "`precision` should be left",
        ),
        ({"batch_size": 50}, "at most the number of training images"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        train(**{"model": TINY_SEGMENTER, "dataset": DRAWINGS, "recipe": RECIPE, "workdir": "run", **arguments})
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["auxiliary_rate", "color_jitter"])
def test_fields_of_segmenters_are_refused_for_other_tasks(field):
    for recipe in ("quickstart", "detection_finetune", "localization_finetune"):
        with pytest.raises(ValueError, match=f"`{field}` of a recipe should be .* with the loss"):
            get_recipe(recipe, **{field: 0.5})


def test_segmenters_are_not_fine_tuned_in_phases_searched_or_published(finished, tmp_path):
    with pytest.raises(ValueError, match="a classifier, not a segmenter"):
        keras_resnet.finetune("fcn_resnet18", DRAWINGS)
    with pytest.raises(ValueError, match="to search for classifiers"):
        keras_resnet.tune("digits", recipe="segmentation_finetune", workdir=tmp_path / "search")
    with pytest.raises(ValueError, match="segmenter"):
        keras_resnet.save_pretrained(finished[0].model, tmp_path / "published")
    assert not any((tmp_path / name).exists() for name in ("search", "published"))


@pytest.mark.filterwarnings("ignore:The last layers")
def test_the_command_line(finished, tmp_path):
    """From the file of another run, on folders of masks, with a class that does not count."""
    data = write_drawn_masks(tmp_path / "data")
    shutil.copy(finished[1] / "model.keras", tmp_path / "start.keras")
    arguments = ("--recipe", "segmentation_finetune", "--dataset", data, "--set", "batch_size=4")
    result = run_command(
        *("train", "--model", tmp_path / "start.keras", *arguments, "--set", "iterations=1"),
        *("--class-weight", "balanced", "--workdir", tmp_path / "run"),
    )
    assert result.exit_code == 0, result.output
    assert "mean iou" in result.stdout and (tmp_path / "run" / "segmentations.jpg").exists()
    model = load_model(tmp_path / "run" / "model.keras")
    assert model.info["class_names"] == ["background", "red", "blue"]
    (data / "classes.txt").unlink()
    ignored = run_command(
        *("train", "--model", tmp_path / "start.keras", *arguments, "--ignore-index", 2, "--set", "iterations=1"),
        *("--size", 32, "--workdir", tmp_path / "ignored"),
    )
    assert ignored.exit_code == 0, ignored.output
    assert json.loads((tmp_path / "ignored" / "report.json").read_text())["class_names"] == ["class 0", "class 1"]
    wrong = run_command("train", "--model", "fcn_resnet18", "--dataset", data)
    assert wrong.exit_code != 0 and "segmentation_finetune" in wrong.output and "Traceback" not in wrong.output


@pytest.mark.slow
def test_real_images(test_data):
    """Two steps on road scenes, from real weights."""
    dataset = load_dataset(str(test_data / "camvid"), masks=True, ignore_index=11)
    part = replace(dataset, train=dataset.train[:4], test=dataset.test[:2])
    weights = test_data / "imagenet_weights" / "resnet18_pq.safetensors"
    options = {"train_size": 96, "batch_size": 2, "iterations": 2, "backbone_weights": weights}
    run = train("deeplabv3_resnet18", part, "segmentation_finetune", **options)
    assert np.isfinite(run.history["loss"]).all() and len(run.report["class_names"]) == 11
