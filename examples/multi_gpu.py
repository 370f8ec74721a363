"""Training on all GPUs of this machine; without GPUs, on two logical devices of its CPU.

    python examples/multi_gpu.py [EPOCHS]

The recipe's batch size is that of the global batch: each device gets its part, and the gradients are averaged. Data set
and network are given by name, or as functions, because TensorFlow's devices must be set up before they are used.
"""

import sys

import tensorflow as tf

import keras_resnet


def main(epochs="3"):
    gpus = len(tf.config.list_physical_devices("GPU"))
    run = keras_resnet.train(
        "resnet20", "digits", "quickstart", devices=gpus or 2, sync_batch_norm=True, epochs=int(epochs)
    )
    devices = f"{gpus} GPUs" if gpus else "2 logical devices of the CPU"
    print(f"trained on {devices}: {run.report['top1_accuracy']:.1%} of the test images")


if __name__ == "__main__":
    main(*sys.argv[1:])
