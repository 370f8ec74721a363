"""The graph that is exported: pixels in, probabilities out; and what goes along with it as metadata."""

import json
from dataclasses import asdict, dataclass

import keras
import numpy as np

from keras_resnet.architecture.metadata import channel_axis, copy_metadata, model_info
from keras_resnet.data.labels import class_rows
from keras_resnet.data.preprocessing import Preprocessing, preprocess_input
from keras_resnet.models.preprocessing import class_names, preprocessing
from keras_resnet.models.transforms import cast_model, channels_last

INPUT = "images"
"""Name of the input of every exported network."""
KEY = "keras_resnet"
"""Under which the metadata stands in files of every format, as one string of JSON."""
LONGEST = 2**20
"""Characters of metadata at most: the file may be somebody's."""


@dataclass(frozen=True)
class Metadata:
    """What an exported file says of itself."""

    name: str
    format: str
    precision: str
    preprocessing: dict | None
    """The values of the Preprocessing; None if it is not known."""
    raw: bool = False
    """Whether images must be normalised before they come in; else they are RGB in 0..255."""
    channels_first: bool = False
    """Whether they come in as (B, C, H, W)."""
    class_names: tuple[str, ...] | None = None
    """None for what is no classifier."""
    weights: str | None = None

    def to_json(self):
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text):
        """The way back, from a file that may be anybody's.

        Raises:
            ValueError: for text that says something else, and for None: a file without.
        """
        try:
            if text is None:
                raise ValueError("none")
            if len(text) > LONGEST:
                raise ValueError("too long")
            found = cls(**json.loads(text))
            if found.preprocessing:
                Preprocessing.from_config(found.preprocessing)
            names = [found.name, found.format, found.precision, *(found.class_names or ())]
            if isinstance(found.class_names, str) or not all(isinstance(name, str) for name in names):
                raise ValueError("names that are no strings")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"Expected a file that `keras_resnet.export` wrote ({error}). Received: {str(text)[:80]!r}"
            ) from error
        return found

    @property
    def look(self):
        """The Preprocessing; None if it is not known."""
        return self.preprocessing and Preprocessing.from_config(self.preprocessing)

    def taken(self, look, pixels):
        """What the network takes of (B, size, size, channels) uint8 that a Preprocessing normalises."""
        if not self.raw:
            return pixels
        prepared = preprocess_input(pixels, look.mode, "channels_last")
        return np.moveaxis(prepared, -1, 1) if self.channels_first else prepared


def serving_model(model, precision="float32", raw=False):
    """A network as it is exported: channels last within, normalisation in front, probabilities behind.

    Args:
        model: Functional model with one input; what `fold_batch_norm` returns.
        precision: a name in PRECISIONS of `inference`, in which it computes.
        raw: whether it takes prepared images, and returns what `model` returns.

    Returns:
        A model from {"images": uint8 (B, H, W, C) in 0..255}, or of raw ones what `model` takes, to a dict: of
        "probabilities" (B, classes) float32, of "logits" or "features" where a raw network ends in these, or with the
        names of several outputs.

    Raises:
        ValueError: for a network of unknown preprocessing, unless `raw`.
    """
    first = channel_axis(model) == 1
    network = cast_model(channels_last(model), precision)
    (given,) = model.inputs
    if raw:
        inputs = keras.Input(given.shape[1:], dtype=given.dtype, name=INPUT)
        prepared = keras.ops.transpose(inputs, (0, 2, 3, 1)) if first else inputs
    else:
        look = preprocessing(model)
        inputs = keras.Input((*network.inputs[0].shape[1:3], look.channels), dtype="uint8", name=INPUT)
        prepared = preprocess_input(keras.ops.cast(inputs, "float32"), look.mode, "channels_last")
    outputs = outputs_of(network, prepared)
    if "logits" in outputs and not raw:
        outputs = {"probabilities": keras.ops.softmax(outputs["logits"])}
    if first:
        outputs = {name: _with_channels_first(tensor) for name, tensor in outputs.items()}
    return copy_metadata(keras.Model(inputs, outputs, name=model.name), network)


def _with_channels_first(tensor):
    """Of maps; vectors have one order."""
    return keras.ops.transpose(tensor, (0, 3, 1, 2)) if len(tensor.shape) == 4 else tensor


def outputs_of(model, inputs):
    """{name: output} of a model for inputs; names are those of a dict of outputs, else what the last layer says."""
    outputs = model(inputs)
    return outputs if isinstance(outputs, dict) else {name_of_output(model): outputs}


def name_of_output(model):
    """ "probabilities" or "logits" of a classifier, else "features"."""
    last = model.layers[-1]
    activation = keras.activations.softmax if isinstance(last, keras.layers.Softmax) else getattr(last, "activation", 0)
    known = {keras.activations.softmax: "probabilities", keras.activations.linear: "logits"}
    classifies = len(model.output_shape) == 2 and model.output_shape[1] > 1
    return known.get(activation, "features") if classifies else "features"


def metadata(model, form, precision, raw):
    """The Metadata of a network that is to be exported in a format of FORMATS."""
    classifies = not isinstance(model.output, dict) and name_of_output(model) != "features"
    names = class_names(model) if classifies else None
    info = model_info(model)
    return Metadata(
        name=model.name,
        format=form,
        precision=precision,
        preprocessing=info.get("preprocessing"),
        raw=raw,
        channels_first=raw and channel_axis(model) == 1,
        class_names=tuple(name for _, name in class_rows(names)) if classifies else None,
        weights=info.get("weights"),
    )
