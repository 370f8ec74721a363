"""Early stopping and callbacks of Keras: their order, their state in checkpoints, and runs that they end."""

import keras
import numpy as np
import pytest

from keras_resnet import Recipe, ResNetSpec, train

SPEC = ResNetSpec("basic", (1, 1), (4, 8), stem="cifar", stem_width=4)
FROZEN = Recipe(epochs=9, batch_size=479, patience=2, learning_rate=1e-12, momentum=0.0, schedule="constant")
"""Three steps an epoch, and a rate so small that the network does not learn."""


class StepCounter(keras.callbacks.Callback):
    """Counts the steps of a run over interruptions; raises KeyboardInterrupt, or ends the run, at one of them."""

    def __init__(self, interrupt_at=None, stop_at=None):
        super().__init__()
        self.steps, self.interrupt_at, self.stop_at = 0, interrupt_at, stop_at

    def on_train_batch_begin(self, batch, logs=None):
        if self.steps == self.interrupt_at:
            raise KeyboardInterrupt

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps == self.stop_at:
            self.model.stop_training = True

    def get_state(self):
        return {"steps": self.steps}

    def set_state(self, state):
        self.steps = state["steps"]


def test_early_stopping_ends_a_run_after_the_patience():
    run = train(SPEC, recipe=FROZEN)
    accuracies = run.history["val_accuracy"]
    assert len(accuracies) == 1 + np.argmax(accuracies) + 2 < 9 and run.report["stopped_early"]
    assert run.report["top1_accuracy"] == run.history["val_accuracy"][-1]


def test_early_stopping_and_callbacks_continue_after_an_interruption(tmp_path):
    """The interrupted run stops after the same epoch, with the same weights; it stays stopped when resumed again."""
    run = {"recipe": FROZEN, "optimizer": "adamw", "deterministic": True, "checkpoint_every": 1}
    whole = train(SPEC, callbacks=[StepCounter()], **run)
    with pytest.raises(KeyboardInterrupt):
        train(SPEC, workdir=tmp_path, callbacks=[StepCounter(interrupt_at=5)], **run)
    for _ in range(2):
        counter = StepCounter()
        resumed = train(SPEC, workdir=tmp_path, callbacks=[counter], resume=True, **run)
        assert counter.steps == whole.history["step"][-1] < 27
        assert resumed.history["val_loss"] == whole.history["val_loss"] and resumed.report["stopped_early"]


def test_a_callback_can_end_a_run(tmp_path):
    recipe = Recipe(epochs=4, batch_size=479)
    run = train(SPEC, recipe=recipe, workdir=tmp_path, callbacks=[StepCounter(stop_at=4)])
    assert run.history["step"] == [3, 4] and run.report["stopped_early"]
    again = train(SPEC, recipe=recipe, workdir=tmp_path, callbacks=[StepCounter()], resume=True)
    assert again.history == run.history and again.report == run.report


def test_callbacks_of_keras_see_every_epoch_and_change_the_model_before_the_checkpoint(tmp_path):
    """Keras's learning-rate scheduler sets a rate that the history and a resumed run have."""
    recipe = Recipe(epochs=3, batch_size=479, schedule="plateau")
    seen = []
    log = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append((epoch, sorted(logs))))
    rate = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.01 / (epoch + 1))
    run = train(SPEC, recipe=recipe, callbacks=[log, rate])
    assert [epoch for epoch, _ in seen] == [0, 1, 2] and "val_accuracy" in seen[0][1]
    assert run.history["learning_rate"] == pytest.approx([0.01, 0.005, 0.01 / 3])


def test_early_stopping_needs_a_test_after_every_epoch():
    with pytest.raises(ValueError, match="`validation_freq` should be 1"):
        train(SPEC, recipe=FROZEN, validation_freq=2)
