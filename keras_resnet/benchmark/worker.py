"""A process that measures one network, and the parent's end of it.

They speak in lines of JSON: first a Job and the network's name, then requests to do a task so many times and how long
that took. Between requests the process waits, and leaves the machine to the others.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from keras_resnet.benchmark.contenders import CONTENDERS
from keras_resnet.benchmark.networks import Job
from keras_resnet.machine import peak_memory

_SHARING = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""One GPU for all: nobody takes its whole memory at once."""


class WorkerDied(Exception):
    """The process has ended; the message says how, with its last words."""


class Worker:
    """A process for a job. The constructor returns when its network is built.

    Raises:
        WorkerDied: also from `measure`.
    """

    def __init__(self, job):
        self.job = job
        self.folder = tempfile.TemporaryDirectory()
        self.words = Path(self.folder.name) / "stderr.txt"
        with self.words.open("wb") as words:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, self.folder.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                env=_environment(CONTENDERS[job.contender].backend),
            )
        try:
            self.network = self._ask(asdict(job))["network"]
        except BaseException:
            self.close()
            raise

    def measure(self, task, steps):
        """{"seconds", "peak_memory", "device", "peak_device_memory"} of doing a task `steps` times."""
        return self._ask({"task": task, "steps": steps})

    def close(self):
        """Ends the process, whatever it is doing."""
        self.process.kill()
        self.process.communicate()
        self.folder.cleanup()

    def _ask(self, request):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # no answer follows
        answer = self.process.stdout.readline()
        if not answer:
            raise WorkerDied(self._last_words())
        return json.loads(answer)

    def _last_words(self, lines=3, width=300):
        status = self.process.wait()
        words = [line for line in self.words.read_text("utf-8", "replace").splitlines() if line.strip()]
        return "\n".join([f"ended with exit status {status}", *(line[:width] for line in words[-lines:])])


def _environment(backend):
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    return quiet | _SHARING | dict(os.environ) | ({"KERAS_BACKEND": backend} if backend else {})


def main(folder):
    """The process, with a folder for its files.

    It answers on what was standard output; whatever libraries print there goes to standard error instead.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    job = Job(**json.loads(sys.stdin.readline()))
    network = CONTENDERS[job.contender].network(job, folder)
    answer(network=network.name)
    for request in sys.stdin:
        answer(**_measured(network, **json.loads(request)))


def _measured(network, task, steps):
    gc.collect()
    started = time.perf_counter()
    own = getattr(network, task)(steps)
    seconds = time.perf_counter() - started if own is None else own
    device, peak_device_memory = network.accelerator()
    return {
        "seconds": seconds,
        "peak_memory": peak_memory() if network.memory_is_its_own else None,
        "device": device,
        "peak_device_memory": peak_device_memory,
    }


if __name__ == "__main__":
    main(sys.argv[1])
