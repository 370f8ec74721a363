"""An exported network: a file in the runtime of its format, behind the verbs of `predict`."""

from pathlib import Path

import numpy as np

from keras_resnet.data.labels import imagenet_classes
from keras_resnet.deployment.formats.table import FORMATS, SUFFIXES, check_installed, find_format
from keras_resnet.errors import error_summary
from keras_resnet.prediction import softmax


def is_exported(path):
    """Whether a path is named like an exported network, or is a SavedModel."""
    return Path(path).suffix in SUFFIXES or (Path(path) / "saved_model.pb").exists()


def load_exported(path):
    """A network that `export` wrote, ready to answer without Keras.

    A SavedModel is a program that TensorFlow runs, and may read and write files: load only those of people you trust.

    Args:
        path: file, or folder of a SavedModel.

    Returns:
        An Exported, for `predict`, `classify` or to be called.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a file that is damaged, or was not written here.
        ImportError: if the format's runtime is not installed, with the line that installs it.
    """
    return Exported(path)


class Exported:
    """A network in a file."""

    def __init__(self, path):
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"Expected an exported network; there is none. Received: path={str(path)!r}")
        self.path, self.format = path, find_format(None, path)
        row = FORMATS[self.format]
        check_installed(self.format, row.reads)
        try:
            self.session = row.module.Session(path)
        except Exception as error:  # runtimes raise what their parsers raise
            raise ValueError(
                f"Expected an intact {row.title} file ({error_summary(error)}). Received: path={str(path)!r}"
            ) from error
        self.metadata = self.session.metadata

    @property
    def name(self):
        return self.metadata.name

    @property
    def preprocessing(self):
        """The Preprocessing of its images.

        Raises:
            ValueError: if it is not known.
        """
        if self.metadata.look is None:
            raise ValueError(
                "The exported network should say how images are to be prepared; it was exported raw, from weights "
                f"that do not say it. Received: path={str(self.path)!r}"
            )
        return self.metadata.look

    @property
    def class_names(self):
        """Names of its classes; None for ImageNet's thousand, as `decode_predictions` takes them."""
        names = self.metadata.class_names
        return None if names == [name for _, name in imagenet_classes()] else names

    def prepare(self, images):
        """What a Preprocessing takes -> what the network takes."""
        return self.metadata.taken(self.preprocessing, self.preprocessing.pixels(images))

    def __call__(self, inputs):
        """Inputs, (B, H, W, C) uint8 in 0..255, or what a raw one takes -> {name of an output: array (B, ...)}.

        A network of a fixed batch size sees so many at a time, the last of them filled up.
        """
        return self._in_batches(self.session.run, inputs)

    def _in_batches(self, run, inputs):
        size = self.session.batch_size or len(inputs)
        parts = [self._answers(run, inputs[start : start + size], size) for start in range(0, len(inputs), size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _answers(self, run, inputs, size):
        """Of `run` for a batch of this size, filled up with its last if there are fewer."""
        count = len(inputs)
        inputs = np.concatenate([inputs, np.repeat(inputs[-1:], size - count, axis=0)])
        try:
            outputs = run(inputs)
        except Exception as error:  # whatever the runtime raises
            raise ValueError(
                f"`inputs` should be what {self.path} takes ({error_summary(error)}). "
                f"Received: {inputs.dtype} {inputs.shape}"
            ) from error
        return {name: array[:count] for name, array in outputs.items()}

    @property
    def takes_files(self):
        """Whether `of_files` can be asked."""
        return hasattr(self.session, "run_files") and not self.metadata.raw

    def of_files(self, contents):
        """As a call, for the contents of image files, a list of bytes."""
        return self._in_batches(self.session.run_files, np.array(contents, object))

    def probabilities(self, inputs):
        """(B, ...) inputs -> (B, classes).

        Raises:
            ValueError: if it is no classifier.
        """
        outputs = self(inputs)
        if "logits" in outputs:
            return softmax(outputs["logits"])
        if "probabilities" not in outputs:
            raise ValueError(f"`model` should be a classifier. Received: {self.path} with outputs {list(outputs)}")
        return outputs["probabilities"]
