"""The `keras-resnet` command: keras_resnet.cli without the start-up chatter of TensorFlow.

It stands beside the package because importing anything inside it imports Keras, which is when TensorFlow writes its
notes to standard error, below Python and whatever its log level.
"""

import os
import sys
import tempfile
from contextlib import contextmanager


@contextmanager
def quiet_stderr():
    """Keeps what the block writes to standard error to itself, unless it fails."""
    with tempfile.TemporaryFile() as kept:
        saved = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except Exception:
            kept.seek(0)
            os.write(saved, kept.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def main():
    """Runs the command line of keras_resnet.cli."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with quiet_stderr():
            from keras_resnet.cli import main
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        sys.exit(
            "error: Keras would run on TensorFlow, which is not installed. Install with "
            "`pip install 'keras-residual[tensorflow]'`, or choose another backend by KERAS_BACKEND=jax or torch."
        )
    main()
