"""`folder_lock`: one process at a time writes to a folder. The lock ends with the process, also after SIGKILL."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from keras_resnet.errors import value_error

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"
"""Name of the locked file, which holds a sentence about the process that has the lock."""


@contextmanager
def folder_lock(folder: Path | None, argument: str = "workdir", received: object = None) -> Iterator[None]:
    """Holds the lock of a folder within the block; without an effect in object storage, and for None.

    The operating system releases the lock of a process that ends in any way (flock(2)). On file systems without locks,
    and on Windows, the block runs without one.

    >>> from pathlib import Path
    >>> from keras_resnet.locks import folder_lock
    >>> with folder_lock(Path(".")), folder_lock(Path(".")):
    ...     pass
    Traceback (most recent call last):
    BlockingIOError: `workdir` should be used by one process at a time: process ... has used it since ...

    Args:
        folder: an existing folder, as returned by `as_path`.
        argument: name of the argument in errors.
        received: its value in errors; None: the folder.

    Raises:
        BlockingIOError: if another process has the lock, with its number, its machine and the time.
        OSError: if the folder cannot be written.
    """
    if not isinstance(folder, Path):
        yield
        return
    with _locked_file(folder / LOCK, argument, received or folder) as file:
        owner = f"process {os.getpid()} on {socket.gethostname()} has used it since {datetime.now(UTC):%F %T} UTC"
        with suppress(OSError):  # on a full disk, errors of other processes do not name this one
            file.truncate(0)
            file.write(owner.encode())
        try:
            yield
        finally:
            if os.fstat(file.fileno()).st_nlink:  # otherwise the block has removed it, and the next file is another's
                (folder / LOCK).unlink()


def wait_for_lock(folder: Path) -> None:
    """Returns as soon as no other process has the lock of a folder."""
    with suppress(OSError), open(folder / LOCK, "r+b") as file:  # there may be no such file, or no locks
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)


@contextmanager
def _locked_file(path: Path, argument: str, received: object) -> Iterator[IO[bytes]]:
    """Yields the open file, with its lock."""
    while True:
        with open(path, "a+b", buffering=0) as file:  # "w" would empty the other process's file
            if not _lock(file):
                raise _taken(file, argument, received)
            if os.fstat(file.fileno()).st_nlink:  # 0: the process that had it has just finished and removed it
                yield file
                return


def _lock(file):
    """Locks an open file until it is closed; False if another process has locked it, True where there are no locks."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _taken(file, argument, received):
    file.seek(0)
    owner = file.read(200).decode(errors="ignore")
    if not (owner and owner.isprintable()):
        owner = "another process uses it"
    return BlockingIOError(str(value_error(argument, str(received), f"used by one process at a time: {owner}")))
