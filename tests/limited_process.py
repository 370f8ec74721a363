"""`run_limited`: Python code in a process of its own, with limits on memory and time that the kernel enforces."""

import multiprocessing
import os
import re
import resource
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

MEGABYTE = 10**6
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["keras_resnet", "limited_process"])  # imported once: a process then starts at once


@dataclass(frozen=True)
class LimitedRun:
    """How a limited process ended."""

    status: int
    """Exit status: 0, 1 after an exception, -N after signal N (-11 for a crash, -24 out of processor time)."""
    output: str
    """Standard output and standard error, with the traceback of an exception."""
    error: str
    """ "<type>: <message>" of a ValueError or OSError that ended the code, else ""."""
    peak: int
    """Largest memory in bytes above that at the start; 0 if the process was killed by a signal."""


def run_limited(code: str, *args, memory: float = 500 * MEGABYTE, seconds: float = 30) -> LimitedRun:
    """Runs Python source in a new process, which ends if it exceeds the limits.

    The process has imported `keras_resnet`, but has used nothing of it. `code` sees `args` (picklable) under this name.

        run = run_limited("import keras_resnet as k; k.load_weights(k.create('resnet20'), args[0])", path)
        assert_refused(run, path.name)

    Args:
        memory: bytes that the process may allocate above what it has at the start; then allocations fail.
        seconds: processor time, whatever else the machine does. A process that waits is killed after ten minutes.
    """
    with tempfile.TemporaryDirectory() as folder:
        output, result = Path(folder, "output"), Path(folder, "result")
        process = _PROCESSES.Process(target=_run, args=(code, args, memory, seconds, output, result))
        process.start()
        process.join(600)
        if process.exitcode is None:
            process.kill()
            process.join()
        peak, _, error = result.read_text("utf-8").partition("\n") if result.exists() else ("0", "", "")
        return LimitedRun(process.exitcode, output.read_text("utf-8", "replace"), error, int(peak))


def assert_refused(run: LimitedRun, *words: str) -> None:
    """Asserts that a run of a function or of a command ended with one message, which contains all `words`."""
    assert run.status == 1, run
    message = run.error or run.output
    assert "MemoryError" not in message and "Traceback" not in message, run
    assert len(message) < 2000 and all(word in message for word in words), run


def _run(code, args, memory, seconds, output, result):
    """The process of `run_limited`."""
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    start, error = kilobytes("VmRSS"), ""
    limit(resource.RLIMIT_DATA, kilobytes("VmData") * 1024 + memory)
    limit(resource.RLIMIT_CPU, sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) + seconds)
    try:
        exec(compile(code, "<code>", "exec"), {"__name__": "__main__", "args": args})
    except (ValueError, OSError) as caught:
        error = f"{type(caught).__name__}: {caught}"
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        peak = max(0, kilobytes("VmHWM") - start) * 1024
        result.write_text(f"{peak}\n{error}", "utf-8")


def kilobytes(row):
    """A number of /proc/self/status, such as VmRSS."""
    return int(re.search(rf"^{row}:\s*(\d+) kB", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE)[1])


def limit(kind, value):
    """Sets a limit of this process."""
    resource.setrlimit(kind, (int(value), resource.getrlimit(kind)[1]))
