"""A process that measures one network, and the object that controls it.

Between requests the process waits and leaves the machine to the others.
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

from keras_resnet.benchmark.contenders import CONTENDERS, TASKS
from keras_resnet.benchmark.keras_networks import Job
from keras_resnet.benchmark.protocol import serve
from keras_resnet.machine import accelerator, peak_memory

_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # no process takes the whole memory of the GPU at the start: all share it
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
"""Defaults of environment variables."""


class WorkerDied(Exception):
    """The process has ended; the message has its exit status and the last lines of its stderr."""


class Worker:
    """A process for a job; the constructor returns when its network is built. It and `measure` raise WorkerDied."""

    def __init__(self, job):
        self.job = job
        self.folder = tempfile.TemporaryDirectory()
        self.stderr, row = Path(self.folder.name) / "stderr.txt", CONTENDERS[job.contender]
        script = [str(row.script)] if row.script else ["-m", __name__]
        python = (row.script and job.torch_python) or sys.executable
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [python, *script, self.folder.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=_ENVIRONMENT | dict(os.environ) | ({"KERAS_BACKEND": row.backend} if row.backend else {}),
            )
        try:
            self.network = self._request(asdict(job))["network"]
        except BaseException:
            self.close()
            raise

    def measure(self, task, steps):
        """Runs the function `measure` in the process."""
        return self._request({"task": task, "steps": steps})

    def close(self):
        """Kills the process and deletes its files."""
        self.process.kill()
        self.process.communicate()
        self.folder.cleanup()

    def _request(self, values):
        try:
            self.process.stdin.write(json.dumps(values) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer is noticed below
        answer = self.process.stdout.readline()
        if not answer:
            raise WorkerDied(self._last_lines())
        return json.loads(answer)

    def _last_lines(self, count=3, width=300):
        status = self.process.wait()
        lines = [line for line in self.stderr.read_text("utf-8", "replace").splitlines() if line.strip()]
        return "\n".join([f"ended with exit status {status}", *(line[:width] for line in lines[-count:])])


def create(fields):
    """The contender's network for the fields of a Job; the process's argument is the folder for its files."""
    job = Job(**fields)
    return CONTENDERS[job.contender].network(job, sys.argv[1])


def measure(network, task, steps):
    """Runs `steps` steps of a task: its seconds, those of the processors, those by part, and the memory so far."""
    gc.collect()
    started, cpu_started = time.perf_counter(), time.process_time()
    seconds = getattr(network, task)(*([steps] if TASKS[task].is_rate else []))
    elapsed = time.perf_counter() - started
    parts = seconds if isinstance(seconds, dict) else None
    if parts:
        seconds = sum(parts.values())
    device, peak_device_memory = accelerator(network.framework)
    return {
        "seconds": elapsed if seconds is None else seconds,
        "cpu_seconds": time.process_time() - cpu_started,
        "parts": parts,
        "peak_memory": peak_memory() if network.reports_memory else None,
        "device": device,
        "peak_device_memory": peak_device_memory,
    }


if __name__ == "__main__":
    serve(create, measure)
