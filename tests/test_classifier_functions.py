"""Functions, commands and recipes for classifiers, given a detector: one message that says what to use instead."""

import numpy as np
import pytest
from support import randomize_weights, run_command

import keras_resnet
from keras_resnet.prediction import classify

NAME = "fasterrcnn_resnet18_fpn"
CLASSIFIER = "`model` should be a classifier, not a detector."
RECIPE = ("`recipe` should be one for detection, such as 'detection_finetune'", "Received: recipe=")
FINETUNED = (CLASSIFIER, "`keras_resnet.train` trains detectors, localizers and segmenters", "Received: model=")
PUBLISHED = (CLASSIFIER, "`save_weights(model, path)`", "Received: model=")
DETECTED = (CLASSIFIER, "`keras_resnet.detect`", "Received: model=")


def no_data():
    """A data set that is not read: detectors are refused before."""
    raise AssertionError("read before the detector is refused")


@pytest.fixture(scope="module")
def detector():
    """A small detector with random weights."""
    widths = {"neck_width": 16, "rpn_width": 8, "box_width": 8}
    return randomize_weights(keras_resnet.create(NAME, classes=3, min_size=64, max_size=96, **widths))


@pytest.fixture(scope="module")
def model_file(detector, tmp_path_factory):
    """Its .keras file."""
    path = tmp_path_factory.mktemp("detector") / "detector.keras"
    detector.save(path)
    return path


FUNCTIONS = {
    "train": (lambda model: keras_resnet.train(model, no_data), RECIPE),
    "finetune": (lambda model: keras_resnet.finetune(model, no_data), FINETUNED),
    "learning_rate_test": (lambda model: keras_resnet.learning_rate_test(model, no_data), RECIPE),
}
OF_MODELS = FUNCTIONS | {
    "a function that returns a model": (lambda model: keras_resnet.train(lambda: model, "digits"), RECIPE),
    "save_pretrained": (lambda model: keras_resnet.save_pretrained(model, "folder"), PUBLISHED),
    "push_to_hub": (lambda model: keras_resnet.push_to_hub(model, "user/name"), PUBLISHED),
    "predict": (lambda model: keras_resnet.predict(model, [np.zeros((8, 8, 3), "uint8")]), DETECTED),
    "classify": (lambda model: classify(model, [np.zeros((8, 8, 3), "uint8")]), DETECTED),
}
COMMANDS = {
    "train --model {model} --workdir run": RECIPE,
    "finetune --model {model} --weights none --dataset digits --workdir run": FINETUNED,
}
OF_FILES = COMMANDS | {
    "train --model {file} --workdir run": RECIPE,
    "finetune --model {file} --dataset digits --workdir run": FINETUNED,
    "publish {file} folder": PUBLISHED,
}


@pytest.mark.parametrize("function", OF_MODELS)
def test_functions_of_classifiers_refuse_a_detector(function, detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, expected = OF_MODELS[function]
    with pytest.raises(ValueError) as error:
        call(detector)
    assert all(part in str(error.value) for part in expected)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("network", [NAME, keras_resnet.get_spec(NAME)], ids=["name", "spec"])
def test_training_refuses_the_name_and_the_spec_of_a_detector(function, network):
    call, expected = FUNCTIONS[function]
    with pytest.raises(ValueError) as error:
        call(network)
    assert all(part in str(error.value) for part in expected)


@pytest.mark.parametrize("command", OF_FILES)
def test_commands_for_classifiers_print_one_message_about_a_detector(command, model_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_command(*command.format(model=NAME, file=model_file).split())
    assert done.exit_code == 1 and done.stderr.startswith("error:")
    assert all(part in done.stderr for part in OF_FILES[command])
    assert not any(tmp_path.iterdir())


def test_the_output_of_a_detector_is_decoded_by_detect():
    with pytest.raises(ValueError, match="`keras_resnet.detect`") as error:
        keras_resnet.decode_predictions({"boxes": np.zeros((1, 5, 4)), "scores": np.zeros((1, 5))})
    assert "Received: predictions=['boxes', 'scores']" in str(error.value)
