"""Training on all GPUs of this machine, or, where there are none, on a CPU in two parts.

    python examples/multi_gpu.py [EPOCHS]

The batch of the recipe is the global one: each device gets its part, and gradients are averaged. Data and network are
given by name, or as functions, so that TensorFlow's devices are set up before anything is made on them.
"""

import sys

import tensorflow as tf

import keras_resnet


def main(epochs="3"):
    gpus = len(tf.config.list_physical_devices("GPU"))
    run = keras_resnet.train(
        "resnet20", "digits", "quickstart", devices=gpus or 2, sync_batch_norm=True, epochs=int(epochs)
    )
    accuracy = 100 * run.report["top1_accuracy"]
    print(f"{gpus} GPUs" if gpus else "2 parts of a CPU", f"agree on one network: {accuracy:.1f} % of the test images")


if __name__ == "__main__":
    main(*sys.argv[1:])
