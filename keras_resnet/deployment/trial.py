"""An exported file, run once in a process of its own: a damaged file may end that one instead of this.

The process runs this module as a script, and so imports the runtime alone, without Keras.
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

TRIAL_SECONDS, BYTES_PER_SECOND = 8, 2**24
"""How long a trial may take, and a second more for so many bytes of the files."""
TRIAL_BYTES = 2**31
"""Memory that a trial may allocate, beside ten times the size of the files."""


def run_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    (entry,) = session.get_inputs()
    dtype = {"float": "float32"}.get(name := entry.type.removeprefix("tensor(").removesuffix(")"), name)
    shape = [size if isinstance(size, int) else 1 for size in entry.shape]
    session.run(None, {entry.name: np.zeros(shape, dtype)})


def run_openvino(path):
    import openvino

    network = openvino.Core().compile_model(path, "CPU")
    (entry,) = network.inputs
    shape = [size.get_length() if size.is_static else 1 for size in entry.get_partial_shape()]
    network([np.zeros(shape, entry.get_element_type().to_dtype())])


def run_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(path).get_signature_runner()
    ((name, details),) = runner.get_input_details().items()
    runner(**{name: np.zeros(np.maximum(details["shape_signature"], 1), details["dtype"])})


RUNNERS = {"onnx": run_onnx, "openvino": run_openvino, "litert": run_litert}
"""Format -> function that loads a file and runs it on one image. None for SavedModel: a program is not tried out."""


def check_by_trial(format: str, files: Sequence[Path]) -> None:
    """Raises ValueError for an exported network that its runtime cannot load and run on one image.

    Args:
        format: a name in FORMATS; one that is not in RUNNERS passes.
        files: its files, as `Format.files` returns them.
    """
    if format not in RUNNERS:
        return
    size = sum(file.stat().st_size for file in files)
    seconds = TRIAL_SECONDS + size / BYTES_PER_SECOND
    words = [sys.executable, "-P", __file__, format, str(files[0]), str(TRIAL_BYTES + 10 * size)]
    try:
        done = subprocess.run(
            words,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"a trial run took more than {seconds:.0f} seconds") from error
    if done.returncode < 0:
        raise ValueError(f"a trial run ended with {signal.Signals(-done.returncode).name}")
    if done.returncode:
        raise ValueError(done.stdout)


def main(format, path, memory):
    """The main function of the process: prints an error, and exits with status 1."""
    with contextlib.suppress(ImportError):  # Windows has no such limit
        import resource

        limits = resource.getrlimit(resource.RLIMIT_DATA)
        smallest = min(limit for limit in (int(memory), *limits) if limit != resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_DATA, (smallest, limits[1]))
    try:
        RUNNERS[format](path)
    except Exception as error:  # runtimes raise errors of any kind
        print(str(error) or type(error).__name__)
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
