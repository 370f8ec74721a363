"""Tasks of test_distribution.py, as separate processes: TensorFlow sets up its devices once per process.

    python worker_process.py TASK '{"devices": 2, ...}' results.npz

Writes the arrays that the task returns to the file.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from drawn_objects import SIZE, TINY, TINY_LOCALIZER, TINY_SEGMENTER, drawn_dataset, drawn_masks, write_rectangles

import keras_resnet
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.training.distribution import AverageBatchNorm, Devices, synchronize_batch_norm


def digits(test_images=0):
    """((images, labels) for training, (images, labels) for testing), images (8, 8, 1) in [0, 1]."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
    split = len(labels) - test_images
    return (images[:split], labels[:split]), (images[split:], labels[split:])


def training_batches(examples, size):
    """make_dataset(index, count): the index-th part of every batch of `size` examples."""

    def make_dataset(index, count):
        import tensorflow as tf

        indices = np.arange(len(examples[1]) // size * size)
        part = indices[indices % size // (size // count) == index]
        return tf.data.Dataset.from_tensor_slices(tuple(array[part] for array in examples)).batch(
            size // count, drop_remainder=True
        )

    return make_dataset


def test_batches(examples):
    """make_dataset(index, count): every count-th example, from number index on."""

    def make_dataset(index, count):
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices(examples).shard(count, index).batch(50)

    return make_dataset


def compiled_model(strategy, synchronized=False):
    """A small residual network, built and compiled under a strategy."""
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = keras_resnet.create("resnet20", depths=(1, 1, 1), input_shape=(8, 8, 1), classes=10)
        if synchronized:
            synchronize_batch_norm(model)
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    return model


class Losses(keras.callbacks.Callback):
    """The loss of each step: Keras logs the mean over the epoch so far, so the metrics are reset before each step."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(self.model.get_metrics_result()["loss"]))


def train(devices=None, batch_size=64, test_images=257, epochs=1, synchronized=False, deterministic=False):
    """Trains on digits; the last test batch has one image."""
    devices = Devices(devices)
    if deterministic:
        devices.make_deterministic()
    model = compiled_model(devices.strategy, synchronized)
    training, test = digits(test_images)
    losses = Losses()
    history = model.fit(
        devices.distribute(training_batches(training, batch_size), batch_size),
        validation_data=devices.distribute_test(test_batches(test), test_images, batch_size),
        epochs=epochs,
        callbacks=[AverageBatchNorm(), losses],
        shuffle=False,
        verbose=0,
    ).history
    alone = model_on_one_device(model).evaluate(*test, batch_size=batch_size, verbose=0, return_dict=True)
    return {
        "replicas": devices.num_replicas,
        "losses": losses.losses,
        "tested": [history["val_loss"][-1], history["val_accuracy"][-1]],
        "tested_alone": [alone["loss"], alone["accuracy"]],
        **{weight.path: weight.numpy() for weight in model.weights},
    }


def model_on_one_device(model):
    """A copy of the model without a strategy."""
    import tensorflow as tf

    alone = compiled_model(tf.distribute.get_strategy())
    alone.set_weights(model.get_weights())
    return alone


def run_on_boxes(network, folder, devices=None):
    """A run of a localizer, a detector or a segmenter on drawn rectangles, with batch norm across devices."""
    if network == "detector":  # without crops, because each device pads to its own images
        start = TINY, drawn_dataset(), "detection_finetune"
        fields = {"size": SIZE, "crop": "none"}
    elif network == "segmenter":  # random crops, of which each has another number of pixels that count
        start = segmenter_without_dropout, drawn_masks(), "segmentation_finetune"
        fields = {"class_weight": "balanced"}
    else:
        start = TINY_LOCALIZER, write_rectangles(Path(folder)), "localization_finetune"
        fields = {"size": 32, "test_resize": 32}
    trained = keras_resnet.train(
        *start,
        devices=devices,
        sync_batch_norm=True,
        iterations=4,
        batch_size=4,
        flip=True,
        **fields,
    )
    losses = {name: values for name, values in trained.history.items() if name.endswith("loss")}
    return losses | {weight.path: keras.ops.convert_to_numpy(weight) for weight in trained.model.weights}


def segmenter_without_dropout():
    """A segmenter for drawn masks; dropout would be another on each device."""
    model = keras_resnet.build(TINY_SEGMENTER)
    model.info = {"preprocessing": SegmentationPreprocessing().to_config()}
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return model


def parts(counts, batch_size, devices=None):
    """Indices of the images on each of this machine's replicas, in training and testing, for each number of images."""
    devices = Devices(devices)
    indices = workarounds(devices.strategy)
    for count in counts:
        examples = (np.arange(count), np.arange(count))
        training = devices.distribute(training_batches(examples, batch_size), batch_size)
        test = devices.distribute_test(test_batches(examples), count, batch_size)
        for name, dataset in (("training", training), ("test", test)):
            indices |= {f"{name}/{count}/{part}": images for part, images in _parts(dataset, devices.strategy).items()}
    return indices


def _parts(dataset, strategy):
    steps = [strategy.experimental_local_results(batch[0]) for batch in dataset]
    assert len(steps) == dataset.cardinality
    return {f"{step}/{number}": part.numpy() for step, parts in enumerate(steps) for number, part in enumerate(parts)}


def workarounds(strategy):
    """Names of the functions of Keras that were replaced for a strategy, and of all that now work."""
    from keras_resnet.training import keras_workarounds

    functions = {name: getattr(owner, name) for owner, name, *_ in keras_workarounds.WORKAROUNDS}
    return {
        "replaced": [name for name, function in functions.items() if function.__module__ == keras_workarounds.__name__],
        "working": [
            name for name, status in keras_workarounds.apply_workarounds(strategy).items() if status == "works"
        ],
    }


def run(workdir=None, devices=None, sync_batch_norm=False, epochs=2, resume=False):
    """A run of `keras_resnet.train` with augmentation, averaged weights and checkpoints."""
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
