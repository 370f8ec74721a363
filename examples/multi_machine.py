"""Training on several machines, which run the same script with different TF_CONFIG. Here: two processes.

    python examples/multi_machine.py [EPOCHS]

On real machines, run this command on each of them, with its own index and a shared folder:

    TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, "task": {"type": "worker", "index": 0}}' \\
        python examples/multi_machine.py
"""

import json
import os
import socket
import subprocess
import sys
import tempfile

import keras_resnet

FOLDER = "MULTI_MACHINE_FOLDER"
"""Environment variable with the folder that the processes of this example share."""


def main(epochs="3"):
    if "TF_CONFIG" in os.environ:
        return train(int(epochs))
    with tempfile.TemporaryDirectory() as folder:
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        workers = [start_worker(index, addresses, folder, epochs) for index in range(2)]
        if sum(abs(worker.wait()) for worker in workers):
            sys.exit("a worker failed")


def train(epochs):
    """Trains on this machine together with the others; the first one, the chief, writes the files."""
    folder = os.environ.get(FOLDER, "runs/multi_machine")
    run = keras_resnet.train("resnet20", "digits", "quickstart", folder, resume=True, epochs=epochs)
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    print(f"machine {index}: {run.report['top1_accuracy']:.1%} of the test images", flush=True)


def start_worker(index, addresses, folder, epochs):
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    environment = {**os.environ, "TF_CONFIG": json.dumps(config), FOLDER: folder}
    return subprocess.Popen([sys.executable, __file__, epochs], env=environment)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    main(*sys.argv[1:])
