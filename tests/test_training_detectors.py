"""`train` of detectors: what it learns and writes, interruptions, frozen stages, and refused arguments."""

import json
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
from annotated_images import write_coco, write_voc
from drawn_objects import SIZE, TINY, TINY_DENSE, TINY_MASKS, drawn_dataset
from PIL import Image
from support import run_command, signal_after

import keras_resnet
from keras_resnet import create, evaluate, get_recipe, load_dataset, load_model, save_weights, train
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.models.detector_transforms import with_new_predictors
from keras_resnet.training.detector_setup import detector_for_images
from keras_resnet.training.model_setup import Start
from keras_resnet.training.schedules import learning_rate

RECIPE = get_recipe("detection_finetune", size=SIZE, batch_size=4, epochs=2)
DRAWINGS = drawn_dataset()
LOSSES = ("objectness", "rpn_box_reg", "classifier", "box_reg")


def arrays(model):
    return [keras.ops.convert_to_numpy(variable) for variable in model.variables]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of Faster R-CNN with its folder."""
    folder = tmp_path_factory.mktemp("run")
    return train(TINY, DRAWINGS, RECIPE, folder, deterministic=True, keep="best"), folder


def test_a_run_writes_a_detector_that_has_the_reported_precision(finished):
    run, folder = finished
    names = "checkpoint.safetensors curves.png detections.jpg history.csv model.keras report.json settings.json"
    assert sorted(it.name for it in folder.iterdir() if not it.name.startswith("best")) == names.split()
    report = json.loads((folder / "report.json").read_text())
    assert report == run.report and report["test_images"] == 4 and report["class_names"] == ["red", "blue"]
    model = load_model(folder / "model.keras")
    assert model.info["class_names"] == ["__background__", "red", "blue"]
    assert keras_resnet.preprocessing(model).min_size == SIZE and keras_resnet.preprocessing(model).max_size == 106
    metrics = evaluate(model, DRAWINGS).boxes
    for name, coco in (("average_precision", "AP"), ("ap50", "AP50"), ("ap75", "AP75")):
        assert report[name] == model.info["results"][name] == pytest.approx(metrics[coco], abs=1e-6), name
    with Image.open(folder / "detections.jpg") as sheet:
        assert sheet.format == "JPEG" and sheet.width > sheet.height / 4


def test_the_history_has_the_separate_losses_and_their_sum(finished):
    history = finished[0].history
    total = np.sum([history[f"{name}_loss"] for name in LOSSES], axis=0)
    np.testing.assert_allclose(history["loss"], total, rtol=1e-5)
    assert len(history["val_average_precision"]) == 2 and history["step"] == [3, 6]


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 5])
def test_interrupted_runs_continue_with_the_same_numbers(step, finished, tmp_path, monkeypatch):
    signal_after(monkeypatch, step)
    options = {"deterministic": True, "keep": "best"}
    with pytest.raises(KeyboardInterrupt, match=f"after step {step}"):
        train(TINY, DRAWINGS, RECIPE, tmp_path, **options)
    monkeypatch.undo()
    run = train(TINY, DRAWINGS, RECIPE, tmp_path, resume=True, **options)
    for one, other in zip(arrays(run.model), arrays(finished[0].model), strict=True):
        np.testing.assert_array_equal(one, other)
    for name in ("loss", "val_average_precision", "val_ap50", "learning_rate", *(f"{loss}_loss" for loss in LOSSES)):
        assert run.history[name] == finished[0].history[name], name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "losses", "clip_norm"),
    [(TINY, LOSSES, 0.0), (TINY_DENSE, ("classification", "bbox_regression"), 1.0)],  # RetinaNet diverges without
)
def test_detectors_learn_drawn_rectangles(spec, losses, clip_norm):
    """From random weights, which is slow to learn: the boxes of half of the objects are found."""
    recipe = replace(RECIPE, epochs=60, learning_rate=0.05, clip_norm=clip_norm)
    run = train(spec, drawn_dataset(train=48, test=16), recipe, validation_freq=60)
    assert {name for name in run.history if name.endswith("_loss")} == {f"{name}_loss" for name in losses}
    assert run.report["ap50"] > 0.5 and run.history["loss"][-1] < run.history["loss"][0] / 2


def test_masks_are_trained_and_evaluated_in_lower_precision_with_averaged_weights(few_batches):
    run = train(
        TINY_MASKS, drawn_dataset(masks=True), RECIPE, epochs=1, precision="bfloat16", ema_decay=0.5, validation_freq=2
    )
    assert np.isfinite(run.history["mask_loss"]).all() and run.report["precision"] == "bfloat16"
    assert 0 <= run.report["mask_average_precision"] <= 1 and "val_ap50" not in run.history


def frozen_weights(stages, **changes):
    """Names of the frozen layers of the residual network that have weights, batch norm left out."""
    recipe = replace(RECIPE, trainable_stages=stages)
    spec = replace(TINY, frozen_batch_norm=True, **changes)
    model, _ = detector_for_images(Start(keras_resnet.build(replace(spec, classes=3))), DRAWINGS, recipe)
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert all(layer.trainable for layer in layers if not layer.name.startswith("conv"))
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert not any(layer.trainable for layer in norms)
    return {layer.name.partition("_")[0] for layer in layers if not layer.trainable}


def test_frozen_stages_are_torchvisions():
    """`trainable_backbone_layers`: the last layers of ["layer4", "layer3", "layer2", "layer1", "conv1"]."""
    layers = ["conv5", "conv4", "conv3", "conv2", "conv1"]
    for count in range(6):
        assert frozen_weights(count) == set(layers[count:]), count


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"levels": (2, 3, 4), "anchor_sizes": TINY.anchor_sizes[:4]}, {"conv1", "conv2", "conv3"}),
        (
            {"neck": "c4", "levels": (4,), "extra_levels": None, "box_head": "stage4", "anchor_sizes": ((16,),)},
            {"conv1", "conv2", "conv3", "conv4"},
        ),
    ],
    ids=["levels to 4", "stage4 as head"],
)
def test_frozen_stages_are_counted_from_the_last_one_of_the_detector(changes, expected):
    assert frozen_weights(1, **changes) == expected


def test_frozen_stages_of_classifiers_stay_as_they_are():
    model = create("resnet20", depths=(1, 1, 1), input_shape=(8, 8, 1), classes=10)
    before = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    train(model, "digits", iterations=2, trainable_stages=1)
    same = {name for name, values in before.items() if all(map(np.array_equal, values, weights_of(model, name)))}
    assert {name.partition("_")[0] for name in same} == {"conv1", "conv2", "conv3"}
    assert {name.partition("_")[0] for name in before.keys() - same} == {"conv4", "predictions"}


def weights_of(model, name):
    return model.get_layer(name).get_weights()


def test_the_learning_rate_of_a_detector_is_tested():
    result = keras_resnet.learning_rate_test(TINY_DENSE, DRAWINGS, RECIPE, steps=3, highest=0.1)
    assert len(result.losses) == 3 and np.isfinite(result.losses).all()


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Weights of the residual network of TINY, as a classifier's file."""
    network = keras_resnet.build(TINY.backbone, classes=5, input_shape=(32, 32, 3))
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_weights(network, path)
    return path, network


def test_backbone_weights_are_loaded_and_frozen_layers_keep_them(backbone):
    """By a detector that does not have the last stage."""
    path, network = backbone
    spec = replace(TINY_DENSE, levels=(3, 4), anchor_sizes=((16,), (32,)), frozen_batch_norm=True)
    run = train(spec, DRAWINGS, RECIPE, iterations=1, backbone_weights=path, trainable_stages=0)
    assert not any(layer.name.startswith("conv5") for layer in run.model.layers)
    for layer in run.model.layers:
        if layer.name.startswith("conv") and layer.weights:
            for one, other in zip(layer.get_weights(), network.get_layer(layer.name).get_weights(), strict=True):
                np.testing.assert_array_equal(one, other, layer.name)


def test_a_file_of_other_classes_gets_new_predictors(finished, tmp_path):
    path = finished[1] / "model.keras"
    same, _ = detector_for_images(Start(path), DRAWINGS, get_recipe("detection_finetune"))
    assert keras_resnet.preprocessing(same) == keras_resnet.preprocessing(finished[0].model)
    for one, other in zip(arrays(same), arrays(finished[0].model), strict=True):
        np.testing.assert_array_equal(one, other)
    renamed = replace(DRAWINGS, class_names=("blue", "red"))
    with pytest.warns(UserWarning, match="predictors of detector for 3 classes are new"):
        model, _ = detector_for_images(Start(path), renamed, RECIPE)
    assert model.info["class_names"] == ["__background__", "blue", "red"] and "results" not in model.info
    for layer in model.layers:
        equal = map(np.array_equal, layer.get_weights(), finished[0].model.get_layer(layer.name).get_weights())
        assert all(equal) == (layer.name not in ("box_scores", "box_deltas")), layer.name


def test_new_predictors_of_a_detector_with_masks():
    model = keras_resnet.build(TINY_MASKS)
    with pytest.warns(UserWarning, match="predictors"):
        copy = with_new_predictors(model, 4)
    assert copy.get_layer("mask_logits").filters == 4 and copy.output["masks"].shape == model.output["masks"].shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "quickstart"}, "`recipe` should be one for detection, such as 'detection_finetune'"),
        ({"model": "resnet20"}, "`recipe` should be one for classification, such as 'finetune', to train resnet20"),
        ({"dataset": "digits"}, "`dataset` should be one with boxes of objects"),
        ({"model": TINY_MASKS}, "`dataset` should be one in which every object has a mask"),
        ({"mixup": 0.2}, "`mixup` of a recipe should be 0.0 with the loss 'detection'"),
        ({"class_weight": "balanced"}, "`class_weight` of a recipe should be None"),
        ({"crop": "random_resized"}, "`crop` of a recipe should be one of"),
        ({"trainable_stages": 6}, "from 0 to 5"),
        (
            {"backbone_weights": "backbone.safetensors", "model": "fasterrcnn_resnet34_fpn"},
            "The weights should be for the requested network",
        ),
        ({"weights": "none.safetensors", "model": "fasterrcnn_resnet18_fpn"}, "weights"),
        ({"model": keras_resnet.build(replace(TINY, classes=9))}, "a detector of 3 classes"),
        (
            {"model": keras_resnet.build(replace(TINY, classes=3)), "precision": "bfloat16"},
            "`precision` should be left",
        ),
        ({"batch_size": 50}, "at most the number of training images"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(arguments, message, backbone, tmp_path, monkeypatch):
    shutil.copy(backbone[0], tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        train(**{"model": TINY, "dataset": DRAWINGS, "recipe": RECIPE, "workdir": "run", **arguments})
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_objects_that_differ_between_splits_are_refused(tmp_path):
    write_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "spider"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="spider|categories|classes"):
        train(TINY, str(tmp_path), RECIPE)


def test_detectors_are_not_fine_tuned_in_phases_or_searched(tmp_path):
    with pytest.raises(ValueError, match="`keras_resnet.train` trains detectors"):
        keras_resnet.finetune("fasterrcnn_resnet18_fpn", DRAWINGS)
    with pytest.raises(ValueError, match="to search for classifiers; `keras_resnet.train` trains others"):
        keras_resnet.tune("digits", recipe="detection_finetune", workdir=tmp_path / "search")
    assert not (tmp_path / "search").exists()


@pytest.mark.parametrize(
    ("name", "images", "rates"),
    [
        # torchvision's references: steps of warm-up, the first rate, then tenths at these epochs
        ("torchvision_detection", 117_266, {0: 0.02 / 1000, 1000: 0.02, 16 * 7329: 0.002, 22 * 7329: 0.0002}),
        ("torchvision_detection_v2", 117_266, {0: 0.1 / 1000, 1000: 0.1, 352 * 1832: 0.01, 384 * 1832: 0.001}),
        ("faster_rcnn_2015", 80_000, {0: 1e-3, 239_999: 1e-3, 240_000: 1e-4, 319_999: 1e-4}),
    ],
)
def test_published_recipes_have_the_published_learning_rates(name, images, rates):
    recipe = get_recipe(name)
    schedule = learning_rate(recipe, recipe.steps(images)[1])
    for step, rate in rates.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-3), step


@pytest.mark.filterwarnings("ignore:The predictors")
def test_the_command_line(tmp_path):
    data = write_voc(tmp_path / "data")
    model = keras_resnet.build(TINY_DENSE)
    model.info = {"preprocessing": DetectionPreprocessing().to_config()}
    model.save(tmp_path / "start.keras")
    result = run_command(
        *("train", "--model", tmp_path / "start.keras", "--recipe", "detection_finetune", "--dataset", data),
        *("--size", 64, "--trainable-stages", 1, "--set", "batch_size=1", "--set", "iterations=1"),
        *("--workdir", tmp_path / "run"),
    )
    assert result.exit_code == 0, result.output
    assert "average precision" in result.stdout and (tmp_path / "run" / "detections.jpg").exists()
    wrong = run_command("train", "--model", "retinanet_resnet18_fpn", "--dataset", data)
    assert wrong.exit_code != 0 and "detection_finetune" in wrong.output and "Traceback" not in wrong.output


def test_weights_of_a_detector_by_its_name(tmp_path):
    """A file with other classes, by the name of the network."""
    model = create("fasterrcnn_resnet18_fpn", classes=2, min_size=SIZE)
    save_weights(model, tmp_path / "two.safetensors")
    with pytest.warns(UserWarning, match="predictors"):
        found, _ = detector_for_images(Start("fasterrcnn_resnet18_fpn", tmp_path / "two.safetensors"), DRAWINGS, RECIPE)
    np.testing.assert_array_equal(*(arrays(it)[0] for it in (model, found)))
    assert found.spec.classes == 3


@pytest.mark.slow
def test_real_images(test_data):
    """Two steps on blood cells, from real weights."""
    dataset = load_dataset(str(test_data / "bccd"), skip_bad=True)
    part = replace(dataset, train=dataset.train[:4], test=dataset.test[:2])
    weights = test_data / "imagenet_weights" / "resnet18_pq.safetensors"
    options = {"size": 96, "batch_size": 2, "iterations": 2}
    run = train("retinanet_resnet18_fpn", part, "detection_finetune", backbone_weights=weights, **options)
    assert np.isfinite(run.history["loss"]).all() and run.report["class_names"] == ["Platelets", "RBC", "WBC"]
