"""A process whose Keras runs on TensorFlow, for what only TensorFlow can do with a model of another backend."""

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

from keras_resnet.errors import TENSORFLOW, check_installed
from keras_resnet.models.model_files import load_model
from keras_resnet.weights.keras_archives import save_keras

MODEL, CALL, RESULT = "model.keras", "call.pickle", "result.pickle"
"""Files by which the processes communicate, in a temporary folder."""


def call_with_tensorflow(function, model, **arguments):
    """The result of `function(model, **arguments)` in a process with TensorFlow; its errors are raised here.

    Args:
        function: function of a module.
        model: keras.Model, passed as a .keras file.
        **arguments: values that can be pickled.

    Raises:
        ImportError: if TensorFlow is not installed.
        ValueError: for arguments that cannot be pickled.
        RuntimeError: if the process ends without a result; with the last lines of what it printed.
    """
    check_installed(f"`{function.__name__}`, also of a model on another backend,", ["tensorflow"], TENSORFLOW)
    with tempfile.TemporaryDirectory() as folder:
        save_keras(model, Path(folder, MODEL))
        try:
            Path(folder, CALL).write_bytes(pickle.dumps((function, arguments)))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"Arguments of `{function.__name__}` should be values that another process can take, such as paths, "
                f"arrays and names of data sets. Received: {error}"
            ) from error
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3"} | dict(os.environ) | {"KERAS_BACKEND": "tensorflow"}
        words = [sys.executable, "-m", __name__, folder]
        done = subprocess.run(words, env=environment, stderr=subprocess.PIPE, text=True, errors="replace")
        if not Path(folder, RESULT).exists():
            last = "\n".join(done.stderr.splitlines()[-3:])
            raise RuntimeError(f"The process with TensorFlow ended with exit status {done.returncode}:\n{last}")
        result, error = pickle.loads(Path(folder, RESULT).read_bytes())
    if error:
        kind, values, attributes = error
        error = kind.__new__(kind, *values)  # without __init__, whose arguments may be others
        error.args = values
        vars(error).update(attributes)
        raise error
    return result


def main(folder):
    """The main function of the process: writes (result, None), or (None, type, args and attributes of an error)."""
    function, arguments = pickle.loads(Path(folder, CALL).read_bytes())
    try:
        answer = function(load_model(Path(folder, MODEL)), **arguments), None
    except (ValueError, OSError, ImportError) as error:
        answer = None, (type(error), error.args, vars(error))
    Path(folder, RESULT).write_bytes(pickle.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
