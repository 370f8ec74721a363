"""The words of other libraries lead to ours: in errors, and in the table of equivalents of the documentation."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
from support import run_command

import keras_resnet
from keras_resnet.architecture.detector_spec import DetectionSettings, DetectorSpec
from keras_resnet.architecture.segmenter_spec import SegmenterSpec
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.equivalents import DETECTOR_ARGUMENTS, MODEL_ARGUMENTS, RECIPE_FIELDS, SEGMENTER_ARGUMENTS
from keras_resnet.training.recipe import Recipe

PAGE = Path(__file__).parents[1] / "docs" / "equivalents.md"
ROWS = [line.split("|")[-2].strip() for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
CALLS = [code for row in ROWS for code in re.findall(r"`(keras_resnet\.[^`]+)`", row)]


@pytest.mark.parametrize("word", MODEL_ARGUMENTS)
def test_words_of_timm_and_torchvision_name_our_argument(word):
    for function in (keras_resnet.ResNet50, lambda **arguments: keras_resnet.create("resnet18", **arguments)):
        with pytest.raises(TypeError) as error:
            function(**{word: 10})
        assert f"Use {MODEL_ARGUMENTS[word]}. Received: changes={word!r}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "word", "ours"),
    [("fasterrcnn_resnet18_fpn", *row) for row in DETECTOR_ARGUMENTS.items()]
    + [("deeplabv3_resnet18", *row) for row in SEGMENTER_ARGUMENTS.items()],
)
def test_words_for_detectors_and_segmenters_name_our_argument(name, word, ours):
    with pytest.raises(TypeError) as error:
        keras_resnet.create(name, **{word: 10})
    assert f"Use {ours}. Received: changes={word!r}" in str(error.value)


def test_other_words_get_the_nearest_known_ones():
    with pytest.raises(TypeError, match=r"Nearest: \['output_stride'.*Received: changes='output_strid'"):
        keras_resnet.ResNet50(output_strid=8)
    with pytest.raises(TypeError, match=r"by `create`. Received: \['output_stride'\]"):
        keras_resnet.ResNet50(output_stride=8)


@pytest.mark.parametrize("word", RECIPE_FIELDS)
def test_words_of_training_scripts_name_our_field(word):
    for spelled in (word, word.replace("_", "-")):
        with pytest.raises(ValueError, match=re.escape(f"Use {RECIPE_FIELDS[word]}. Received: changes={spelled!r}")):
            keras_resnet.get_recipe("quickstart", **{spelled: 1})
    done = run_command("train", "--recipe", "quickstart", "--set", f"{word}=1")
    assert done.exit_code and RECIPE_FIELDS[word].split("`")[1] in done.output + str(done.exception)


def test_the_words_are_not_ours_and_lead_to_arguments_that_exist():
    ours = {field.name for field in fields(ResNetSpec)} | {"weights", "classes", "input_shape", "pooling"}
    assert not MODEL_ARGUMENTS.keys() & ours and not RECIPE_FIELDS.keys() & {field.name for field in fields(Recipe)}
    for text in MODEL_ARGUMENTS.values():
        for name in re.findall(r"`(\w+)", text):
            assert name in ours | {"list_weights", "feature_extractor", "include_top"}, text
    of_detectors = (DETECTOR_ARGUMENTS, (DetectorSpec, DetectionSettings, DetectionPreprocessing))
    of_segmenters = (SEGMENTER_ARGUMENTS, (SegmenterSpec,))
    for words, classes in (of_detectors, of_segmenters):
        ours = {field.name for cls in classes for field in fields(cls)} | {"weights", "backbone_weights"}
        assert not words.keys() & ours
        for text in words.values():
            known = ours | {"ResNetSpec", "list_weights", "trainable_stages", "train"}
            assert set(re.findall(r"`(\w+)", text)) <= known, text
    of_train = {"train", *inspect.signature(keras_resnet.train).parameters}
    for text in RECIPE_FIELDS.values():
        assert set(re.findall(r"`(\w+)", text)) <= {field.name for field in fields(Recipe)} | of_train, text


@pytest.fixture(scope="module")
def names():
    """What the calls of the table refer to: a small network instead of a large one."""
    import numpy as np

    model = keras_resnet.create("resnet20", weights="cifar10")
    detector = keras_resnet.create("retinanet_resnet18_fpn", neck_width=32, min_size=64)
    segmenter = keras_resnet.create("fcn_resnet18")
    images = np.zeros((1, 32, 32, 3), "uint8")
    names = {"model": model, "detector": detector, "segmenter": segmenter, "images": images}
    return names | {"keras_resnet": keras_resnet}


def test_the_table_has_rows_for_every_library():
    text = PAGE.read_text("utf-8")
    assert len(ROWS) >= 15
    for library in ("keras.applications", "timm", "torchvision", "KerasHub"):
        assert library in text


@pytest.mark.parametrize("call", dict.fromkeys(CALLS))
def test_the_right_hand_side_of_the_table_runs(call, names, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    eval(call.replace("resnet50", "resnet18").replace("ResNet50", "ResNet18"), dict(names))
