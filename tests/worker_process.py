"""What test_distribution.py starts as processes of their own: TensorFlow sets up its devices once a process.

    python worker_process.py TASK '{"devices": 2, ...}' results.npz

The arrays that the task returns are written to the file.
"""

import json
import os
import sys
from dataclasses import replace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_resnet
from keras_resnet.training import distribution


def digits(test_images=0):
    """Real images (8, 8, 1) in [0, 1] with their labels: those that train, and `test_images` others."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
    split = len(labels) - test_images
    return (images[:split], labels[:split]), (images[split:], labels[split:])


def training_batches(examples, size):
    """make_dataset(index, count): the index-th part of every batch of `size` examples."""

    def make_dataset(index, count):
        import tensorflow as tf

        positions = np.arange(len(examples[1]) // size * size)
        mine = positions[positions % size // (size // count) == index]
        return tf.data.Dataset.from_tensor_slices(tuple(array[mine] for array in examples)).batch(
            size // count, drop_remainder=True
        )

    return make_dataset


def test_batches(examples):
    """make_dataset(index, count): every count-th example, from number index on."""

    def make_dataset(index, count):
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices(examples).shard(count, index).batch(50)

    return make_dataset


def narrow_network(strategy, synchronized=False, rate=0.05):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = keras_resnet.create("resnet20", depths=(1, 1, 1), input_shape=(8, 8, 1), classes=10)
        if synchronized:
            distribution.synchronize_batch_norm(model)
        optimizer = keras.optimizers.SGD(rate, momentum=0.9)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    return model


class Losses(keras.callbacks.Callback):
    """The loss of every step: Keras logs means over the epoch so far, so each step begins anew."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(self.model.get_metrics_result()["loss"]))


def train(devices=None, batch_size=64, test_images=257, epochs=1, synchronized=False, deterministic=False):
    """Trains on digits; tests on a number of images that leaves the last batch with one."""
    strategy = distribution.strategy(devices)
    if deterministic:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    model = narrow_network(strategy, synchronized)
    training, test = digits(test_images)
    losses = Losses()
    history = model.fit(
        distribution.distribute(training_batches(training, batch_size), batch_size, strategy),
        validation_data=distribution.distribute_test(test_batches(test), test_images, batch_size, strategy),
        epochs=epochs,
        callbacks=[distribution.AverageBatchNorm(), losses],
        shuffle=False,
        verbose=0,
    ).history
    alone = narrow_network_of_one(model).evaluate(*test, batch_size=batch_size, verbose=0, return_dict=True)
    return {
        "replicas": strategy.num_replicas_in_sync,
        "losses": losses.losses,
        "tested": [history["val_loss"][-1], history["val_accuracy"][-1]],
        "tested_alone": [alone["loss"], alone["accuracy"]],
        **{weight.path: weight.numpy() for weight in model.weights},
    }


def narrow_network_of_one(model):
    """The same network without a strategy."""
    import tensorflow as tf

    alone = narrow_network(tf.distribute.get_strategy())
    alone.set_weights(model.get_weights())
    return alone


def parts(counts, batch_size, devices=None):
    """Which of so many images come to which of this machine's replicas, in training and testing, for each count."""
    strategy = distribution.strategy(devices)
    seen = {}
    for count in counts:
        examples = (np.arange(count), np.arange(count))
        training = distribution.distribute(training_batches(examples, batch_size), batch_size, strategy)
        test = distribution.distribute_test(test_batches(examples), count, batch_size, strategy)
        for name, dataset in (("training", training), ("test", test)):
            seen |= {f"{name}/{count}/{part}": images for part, images in _parts(dataset, strategy).items()}
    return seen


def _parts(dataset, strategy):
    steps = [strategy.experimental_local_results(batch[0]) for batch in dataset]
    assert len(steps) == dataset.cardinality
    return {f"{step}/{number}": part.numpy() for step, parts in enumerate(steps) for number, part in enumerate(parts)}


def refusal(devices=None):
    """What `strategy` says when it refuses."""
    try:
        distribution.strategy(devices)
    except ValueError as error:
        return {"message": str(error)}


def run(workdir=None, devices=None, sync_batch_norm=False, epochs=2, resume=False):
    """A whole run of `keras_resnet.train`, augmentation, averages and checkpoints included."""
    spec = replace(keras_resnet.get_spec("resnet20"), depths=(1, 1, 1))
    trained = keras_resnet.train(
        spec,
        workdir=workdir,
        devices=devices,
        sync_batch_norm=sync_batch_norm,
        resume=resume,
        deterministic=True,
        checkpoint_every=10,
        epochs=epochs,
        warmup=0.0,
        schedule="constant",
        flip=True,
        clip_norm=0.5,
        ema_decay=0.9,
    )
    return {
        "loss": trained.history["loss"],
        "accuracy": trained.report["top1_accuracy"],
        **{weight.path: keras.ops.convert_to_numpy(weight) for weight in trained.model.weights},
    }


if __name__ == "__main__":
    task, arguments, results = sys.argv[1:]
    np.savez(results, **globals()[task](**json.loads(arguments)))
