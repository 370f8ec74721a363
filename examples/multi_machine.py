"""Training on several machines: the same script on each, which TF_CONFIG tells who they are. Here, two processes.

    python examples/multi_machine.py [EPOCHS]

On real machines, run this on each, with the folder shared between them and its own index:

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
"""Where the processes of this example put what they share."""


def main(epochs="3"):
    if "TF_CONFIG" in os.environ:
        return work(int(epochs))
    with tempfile.TemporaryDirectory() as folder:
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        workers = [start(index, addresses, folder, epochs) for index in range(2)]
        if sum(abs(worker.wait()) for worker in workers):
            sys.exit("a worker failed")


def work(epochs):
    """What each machine does; the first one, the chief, writes the files."""
    folder = os.environ.get(FOLDER, "runs/multi_machine")
    run = keras_resnet.train("resnet20", "digits", "quickstart", folder, resume=True, epochs=epochs)
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    print(f"machine {index}: {100 * run.report['top1_accuracy']:.1f} % of the test images", flush=True)


def start(index, addresses, folder, epochs):
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    environment = {**os.environ, "TF_CONFIG": json.dumps(config), FOLDER: folder}
    return subprocess.Popen([sys.executable, __file__, epochs], env=environment)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


if __name__ == "__main__":
    main(*sys.argv[1:])
