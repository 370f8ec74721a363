"""A child process that reads files within limits of memory and time, and what became of each file."""

import multiprocessing
import os
import resource
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from limited_process import MEGABYTE, kilobytes, limit

MAX_SECONDS, MAX_BYTES = 10, 500 * MEGABYTE
"""For reading one file; seconds of processor time, whatever else the machine does, and bytes beyond those before."""
WAITING = 6
"""Limit of the time on the clock, as a multiple of that of the processor: for what waits instead of computing."""
MAX_MESSAGE = 2000
"""Characters of a refusal."""


@dataclass(frozen=True)
class Outcome:
    """What became of reading one file."""

    kind: str
    """ "accepted", "refused" (a ValueError or OSError) or "fault" (anything else)."""
    message: str = ""
    seconds: float = 0.0
    bytes: int = 0
    """Resident memory at the peak, above that before."""


class Reader:
    """Reads files in a child process, which is started again when a file has ended it."""

    def __init__(self, max_seconds=MAX_SECONDS):
        self.max_seconds = max_seconds
        self._start()

    def _start(self):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def read(self, function, path, limited=True) -> Outcome:
        """Calls a module's function of a path in the child process."""
        self._connection.send((function, Path(path), self.max_seconds if limited else 0))
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode or 0
            message = f"the process ended with {signal.Signals(-code).name if code < 0 else code}"
            if -code in (signal.SIGPROF, signal.SIGALRM):
                message = f"reading took more than {self.max_seconds} seconds"
            self._start()
            return Outcome("fault", message)

    def close(self):
        self._connection.close()  # ends the process
        self._process.join()


def _serve(connection):
    """Reads the files that the other end of the connection names, until it is closed."""
    warnings.simplefilter("ignore")
    while True:
        try:
            function, path, max_seconds = connection.recv()
        except EOFError:
            return
        connection.send(_read(function, path, max_seconds))


def _read(function, path, max_seconds):
    files, resident, start = _listing(path.parent), kilobytes("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident memory counts from here
    if max_seconds:
        _set_timers(max_seconds)
        limit(resource.RLIMIT_DATA, 1024 * kilobytes("VmData") + MAX_BYTES)
    try:
        function(path)
        kind, message = "accepted", ""
    except (ValueError, OSError) as error:
        message = str(error)
        kind = "refused" if message and len(message) <= MAX_MESSAGE else "fault"
    except BaseException as error:
        kind, message = "fault", f"{type(error).__name__}: {error}"
    finally:
        _set_timers(0)
        limit(resource.RLIMIT_DATA, resource.RLIM_INFINITY)
    if _listing(path.parent) != files:
        kind, message = "fault", f"the folder was changed. {message}"
    peak = 1024 * max(0, kilobytes("VmHWM") - resident)
    return Outcome(kind, message[: 2 * MAX_MESSAGE], time.perf_counter() - start, peak)


def _set_timers(seconds):
    """Signals whose default action ends the process, whatever library it is in, after that time; 0 for none."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WAITING * seconds)


def _listing(folder):
    """{path: (size, time of modification)} of the files in a folder."""
    paths = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}
