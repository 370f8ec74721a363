"""Fine-tuning: which weights change in which phase, and results on a few images."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resnet import create, load_model, predict
from keras_resnet.data.datasets import Split, Stream
from keras_resnet.data.prefetch import images_at
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.source_kinds import digits
from keras_resnet.data.sources import load_dataset
from keras_resnet.models.transforms import with_new_head
from keras_resnet.training.recipes import get_recipe
from keras_resnet.training.train import train
from keras_resnet.transfer.finetuning import finetune, plot_grad_cam_examples

NARROW = {"depths": (1, 1, 1), "widths": (4, 4, 4), "stem_width": 4}


def body(classes=7, size=8, channels=1, seed=0):
    """A small random network that knows its preprocessing."""
    keras.utils.set_random_seed(seed)
    model = create("resnet20", input_shape=(size, size, channels), classes=classes, **NARROW)
    model.info = {"preprocessing": Preprocessing("tf", size, None, channels=channels).to_config()}
    return model


@pytest.fixture
def few_digits():
    """120 training digits, 40 validation digits."""
    whole = digits()
    return type(whole)(
        "few",
        whole.train[:120],
        Split(whole.test.images[:40], whole.test.labels[:40]),
        whole.class_names,
        whole.preprocessing,
    )


def values(model, names):
    return [weight.numpy() for layer in model.layers if layer.name.startswith(names) for weight in layer.weights]


def test_the_head_phase_leaves_all_other_weights_bit_identical(few_digits):
    """Kernels, and batch norm with its statistics, which training mode would update; with batches of all images."""
    model = body()
    before = values(model, "conv")
    result = finetune(model, replace(few_digits, train=few_digits.train[:20]), stages=0, epochs=1)
    assert list(result.phases) == ["head"] and result.phases["head"]["recipe"]["batch_size"] == 20
    for expected, found in zip(before, values(result.model, "conv"), strict=True):
        np.testing.assert_array_equal(expected, found)
    assert result.model.output_shape == (None, 10) and result.model.info["class_names"] == [str(i) for i in range(10)]


@pytest.mark.parametrize("batch_norm", ["frozen", "trained"])
def test_each_phase_changes_exactly_the_trainable_stages(batch_norm, few_digits, tmp_path):
    """Weights and batch-norm statistics after each phase, compared with those before."""
    options = {"epochs": 1, "batch_size": 40, "learning_rate": 0.1}
    finetune(body(), few_digits, tmp_path, stages=2, batch_norm=batch_norm, **options)
    phases = [body(), *(load_model(tmp_path / name / "model.keras") for name in ("0_head", "1_stage3", "2_stage2"))]
    learning = [(), ("conv4",), ("conv4", "conv3")]
    for before, after, names in zip(phases, phases[1:], learning, strict=False):
        for old in before.layers[:-1]:
            if not old.weights:
                continue
            norm = isinstance(old, keras.layers.BatchNormalization)
            learns = old.name.startswith(names) and (not norm or batch_norm == "trained") if names else False
            new = after.get_layer(old.name)
            same = [np.array_equal(*pair) for pair in zip(old.get_weights(), new.get_weights(), strict=True)]
            assert new.trainable == learns and all(same) != learns, (old.name, same)


def test_layer_decay_reduces_the_learning_rate_stage_by_stage(few_digits):
    """A step of SGD without momentum changes each layer by its gradient times its learning rate."""
    moved = {}
    for decay in (1.0, 0.5):
        keras.utils.set_random_seed(0)
        model = body(10)
        before = {layer.name: layer.get_weights()[0] for layer in model.layers if layer.weights}
        recipe = get_recipe("finetune", iterations=1, batch_size=120, momentum=0.0, nesterov=False, weight_decay=0.0)
        train(
            model,
            few_digits,
            recipe,
            layer_decay=decay,
            warmup=0.0,
            crop="none",
            flip=False,
            schedule="step",
            milestones=(),
        )
        moved[decay] = {name: model.get_layer(name).get_weights()[0] - old for name, old in before.items()}
    for name, power in (("predictions", 0), ("conv4_block1_1_conv", 1), ("conv3_block1_1_conv", 2), ("conv1_conv", 4)):
        np.testing.assert_allclose(moved[0.5][name], moved[1.0][name] * 0.5**power, rtol=1e-3, atol=1e-7)


def test_the_best_epoch_is_kept_and_a_finished_run_resumes(few_digits, tmp_path):
    """The final model has the highest accuracy in the histories of all phases."""
    result = finetune(body(), few_digits, tmp_path / "run", stages=1, epochs=2, batch_size=40, learning_rate=0.3)
    best = max(
        float(row.split(",")[5])
        for name in ("0_head", "1_stage3")
        for row in (tmp_path / "run" / name / "history.csv").read_text().splitlines()[1:]
    )
    assert max(report["top1_accuracy"] for report in result.phases.values()) == pytest.approx(best)
    saved = load_model(tmp_path / "run" / "model.keras")
    for expected, found in zip(saved.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, found)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["best"] == result.best
    assert Image.open(tmp_path / "run" / "grad_cam.png").format == "PNG"
    again = finetune(
        body(), few_digits, tmp_path / "run", stages=1, epochs=2, batch_size=40, learning_rate=0.3, resume=True
    )
    for expected, found in zip(again.model.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, found)


def test_overwrite_and_resume_are_needed_to_reuse_a_folder(few_digits, tmp_path):
    body().save(tmp_path / "model.keras")
    options = {"stages": 0, "epochs": 1, "batch_size": 40}
    with pytest.raises(FileExistsError, match="model.keras"):
        finetune(tmp_path / "model.keras", few_digits, tmp_path, **options)
    run = tmp_path / "run"
    finetune(body(), few_digits, run, **options)
    with pytest.raises(ValueError, match="weights_sha256"):
        finetune(body(seed=1), few_digits, run, resume=True, **options)
    with pytest.raises(ValueError, match="batch_norm"):
        finetune(body(), few_digits, run, resume=True, batch_norm="trained", **options)
    for name in ("1_stage3", "9_notes"):
        (run / name).mkdir()
    finetune(body(seed=1), few_digits, run, overwrite=True, **options)
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["0_head", "9_notes"]


@pytest.mark.slow
def test_a_fine_tuned_keras_applications_model_stores_its_class_names(few_digits, tmp_path):
    """In its .keras file, with its preprocessing."""
    model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3))
    colours = replace(few_digits, preprocessing=Preprocessing("torch", 32, 32))
    with pytest.raises(ValueError, match="known preprocessing"):
        finetune(model, colours, epochs=1)
    finetune(model, colours, tmp_path / "run", stages=0, epochs=1, mode="caffe")
    saved = load_model(tmp_path / "run" / "model.keras")
    assert saved.info["class_names"] == list(few_digits.class_names) and saved.info["preprocessing"]["mode"] == "caffe"


RUN = """
import sys
from keras_resnet import finetune
recipe = {"epochs": 3, "crop": "none", "flip": False}
finetune(sys.argv[1], "digits", sys.argv[2], stages=1, deterministic=True, resume=True, **recipe)
"""


@pytest.mark.slow
def test_killed_fine_tuning_resumes(tmp_path):
    body().save(tmp_path / "body.keras")
    words = [sys.executable, "-c", RUN, str(tmp_path / "body.keras")]
    subprocess.run([*words, str(tmp_path / "whole")], check=True, capture_output=True)
    process = subprocess.Popen([*words, str(tmp_path / "killed")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (tmp_path / "killed" / "1_stage3" / "checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "model.keras").exists()
    subprocess.run([*words, str(tmp_path / "killed")], check=True, capture_output=True)
    whole, killed = (load_model(tmp_path / name / "model.keras").get_weights() for name in ("whole", "killed"))
    for expected, found in zip(whole, killed, strict=True):
        np.testing.assert_array_equal(expected, found)


def test_with_new_head_keeps_all_other_weights():
    model = body()
    new = with_new_head(model, 3)
    assert new.output_shape == (None, 3) and new.spec == model.spec
    for a, b in zip(new.get_weights()[:-2], model.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(a, b)


RUN_ON_TWO_DEVICES = """
import sys
from keras_resnet import evaluate, finetune
result = finetune(sys.argv[1], "digits", sys.argv[2], devices=2, stages=1, epochs=1, crop="none", flip=False)
print(evaluate(result.model, "digits").top1_error, 1 - result.phases[result.best]["top1_accuracy"])
"""


@pytest.mark.slow
def test_on_several_devices(tmp_path):
    """In a process of its own, since TensorFlow initializes its devices once."""
    body().save(tmp_path / "body.keras")
    words = [sys.executable, "-c", RUN_ON_TWO_DEVICES, tmp_path / "body.keras", tmp_path / "run"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tested, reported = map(float, done.stdout.splitlines()[-1].split())
    assert tested == pytest.approx(reported, abs=0.003)  # one image is 1 of 360


def test_an_existing_model_on_several_devices_is_refused(few_digits, monkeypatch):
    monkeypatch.setattr("keras_resnet.training.distribution.Devices.num_replicas", 2)
    with pytest.raises(ValueError, match="a function that returns a Keras model, on several devices"):
        train(body(10), few_digits, "finetune", epochs=1)


def test_grad_cam_examples_of_a_stream(few_digits, tmp_path):
    """The same plot as for the same images in memory."""
    split = few_digits.test
    streamed = replace(
        few_digits, test=Stream(lambda seed: tf.data.Dataset.from_tensor_slices((split.images, split.labels)), 40)
    )
    indices = [7, 0, 33]
    np.testing.assert_array_equal(images_at(streamed.test, indices), images_at(split, indices))
    model = body(10)
    model.info["class_names"] = list(few_digits.class_names)
    for dataset, name in ((few_digits, "a.png"), (streamed, "b.png")):
        plot_grad_cam_examples(model, dataset, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.slow
def test_ants_and_bees(test_data, tmp_path):
    """Photographs, from CIFAR-10's weights: predictions have the class names."""
    images = load_dataset(test_data / "hymenoptera", skip_bad=True)
    result = finetune("resnet20", images, tmp_path / "run", weights="cifar10", stages=1, epochs=3)
    (prediction,) = predict(
        result.model, [sorted((test_data / "hymenoptera" / "val" / "ants").glob("*.jpg"))[0]], top=1
    )
    assert prediction.classes[0][1] in ("ants", "bees")
    assert result.phases[result.best]["top1_accuracy"] > 0.55


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": 5}, "`stages` should be an integer from 0 to 4"),
        ({"batch_norm": "none"}, "frozen"),
        ({"epoch": 2}, "epochs"),
        ({"batch_size": 500}, "at most the number of training images"),
        ({"head_epochs": 0}, "epochs"),
        ({"ema_decay": 0.9}, "`ema_decay` should be 0: fine-tuning"),
        ({"mode": "pytorch", "model": "unknown"}, "torch"),
        ({"model": "unknown"}, "known preprocessing"),
    ],
)
def test_invalid_arguments(changes, message, few_digits, tmp_path):
    model = body()
    if "model" in changes:
        model.info = {}
    options = {"epochs": 1, "batch_size": 40} | {name: value for name, value in changes.items() if name != "model"}
    with pytest.raises(ValueError, match=message):
        finetune(model, few_digits, tmp_path / "run", **options)


def test_a_single_class_is_refused(few_digits):
    one = Split(few_digits.train.images, np.zeros(120, "int32"))
    with pytest.raises(ValueError, match="at least two classes"):
        finetune(body(), replace(few_digits, train=one, test=one, class_names=("digit",)), epochs=1)


def test_models_that_cannot_be_fine_tuned(few_digits):
    inputs = keras.Input((8, 8, 1))
    for model in (
        keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs))),
        keras.Model(inputs, keras.layers.Conv2D(3, 3, name="conv1_conv")(inputs)),
    ):
        with pytest.raises(ValueError, match="`model` should"):
            finetune(model, few_digits)
