"""Functions and commands that take classifiers only, given a detector: one message that says what to use instead."""

import numpy as np
import pytest
from support import randomize_weights, run_command

import keras_resnet
from keras_resnet.prediction import classify

NAME = "fasterrcnn_resnet18_fpn"
NOT_TRAINED = "Detectors are not trained in this version"
PUBLISHED = "save_weights(model, path, layout='torchvision')"


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
    "train": (lambda model: keras_resnet.train(model, no_data), NOT_TRAINED),
    "finetune": (lambda model: keras_resnet.finetune(model, no_data), NOT_TRAINED),
    "learning_rate_test": (lambda model: keras_resnet.learning_rate_test(model, no_data), NOT_TRAINED),
}
OF_MODELS = FUNCTIONS | {
    "a function that returns a model": (lambda model: keras_resnet.train(lambda: model, "digits"), NOT_TRAINED),
    "save_pretrained": (lambda model: keras_resnet.save_pretrained(model, "folder"), PUBLISHED),
    "push_to_hub": (lambda model: keras_resnet.push_to_hub(model, "user/name"), PUBLISHED),
    "predict": (lambda model: keras_resnet.predict(model, [np.zeros((8, 8, 3), "uint8")]), "`keras_resnet.detect`"),
    "classify": (lambda model: classify(model, [np.zeros((8, 8, 3), "uint8")]), "`keras_resnet.detect`"),
}
COMMANDS = {
    "train --model {model} --workdir run": NOT_TRAINED,
    "finetune --model {model} --weights none --dataset digits --workdir run": NOT_TRAINED,
}
OF_FILES = COMMANDS | {
    "train --model {file} --workdir run": NOT_TRAINED,
    "finetune --model {file} --dataset digits --workdir run": NOT_TRAINED,
    "publish {file} folder": PUBLISHED,
}


def assert_refused(error, hint):
    assert "`model` should be a classifier, not a detector." in error and hint in error and "Received: model=" in error


@pytest.mark.parametrize("function", OF_MODELS)
def test_functions_of_classifiers_refuse_a_detector(function, detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, hint = OF_MODELS[function]
    with pytest.raises(ValueError, match="a classifier") as error:
        call(detector)
    assert_refused(str(error.value), hint)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("network", [NAME, keras_resnet.get_spec(NAME)], ids=["name", "spec"])
def test_training_refuses_the_name_and_the_spec_of_a_detector(function, network):
    call, hint = FUNCTIONS[function]
    with pytest.raises(ValueError, match="a classifier") as error:
        call(network)
    assert_refused(str(error.value), hint)


@pytest.mark.parametrize("command", OF_FILES)
def test_commands_for_classifiers_print_one_message_about_a_detector(command, model_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_command(*command.format(model=NAME, file=model_file).split())
    assert done.exit_code == 1 and done.stderr.startswith("error:")
    assert_refused(done.stderr, OF_FILES[command])
    assert not any(tmp_path.iterdir())


def test_the_output_of_a_detector_is_decoded_by_detect():
    with pytest.raises(ValueError, match="`keras_resnet.detect`") as error:
        keras_resnet.decode_predictions({"boxes": np.zeros((1, 5, 4)), "scores": np.zeros((1, 5))})
    assert "Received: predictions=['boxes', 'scores']" in str(error.value)
