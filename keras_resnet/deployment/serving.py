"""The serving model, pixels in and probabilities out, and the metadata that is written into every exported file."""

import json
from dataclasses import asdict, dataclass

import keras
import numpy as np

from keras_resnet.architecture.metadata import channel_axis, copy_metadata, model_info
from keras_resnet.data.labels import class_ids_and_names
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.deployment.checksums import CHECKSUM, EMPTY_CHECKSUM
from keras_resnet.errors import check_known, error_summary, value_error
from keras_resnet.models.preprocessing import class_names, known_preprocessing, preprocessing, thresholds
from keras_resnet.models.transforms import cast_model, channels_last
from keras_resnet.normalization import normalize
from keras_resnet.precision import PRECISIONS
from keras_resnet.schema import parse_json

INPUT_NAME = "images"
"""Name of the input of every exported network."""
METADATA_KEY = "keras_resnet"
"""Key of the metadata, one string of JSON, in files of every format."""
MAX_METADATA_BYTES = 2**20
"""Length of the JSON that is read at most: files may come from anywhere."""


@dataclass(frozen=True)
class Metadata:
    """The facts about a network that an exported file contains."""

    name: str
    format: str
    """A name in FORMATS."""
    precision: str
    """A name in PRECISIONS."""
    preprocessing: Preprocessing | None
    """None if it is not known."""
    raw: bool = False
    """Whether inputs must be normalised already; otherwise they are RGB in 0..255."""
    channels_first: bool = False
    """Whether inputs are (B, C, H, W)."""
    class_names: tuple[str, ...] | None = None
    """None for a network that is not a classifier."""
    weights: str | None = None
    """Tag or file name of its weights."""
    thresholds: tuple[float, ...] | None = None
    """The probability of each class from which on a multi-label network predicts it; None for one class an image."""

    checksum: str = EMPTY_CHECKSUM
    """SHA-256 of the exported files: see `checksums.py`."""

    def __post_init__(self):
        check_known("precision", self.precision, PRECISIONS)
        if not CHECKSUM.fullmatch(self.checksum.encode()):
            raise value_error("checksum", self.checksum, f"like {EMPTY_CHECKSUM!r}")
        if self.thresholds is not None and len(self.thresholds) != len(self.class_names or ()):
            raise value_error("thresholds", self.thresholds, "a number for each class")

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"preprocessing": self.preprocessing and self.preprocessing.to_config()})

    @classmethod
    def from_json(cls, text: str | bytes | None) -> "Metadata":
        """Reads what `to_json` returned; any other text, and None for a file without metadata, is a ValueError."""
        try:
            if text is None:
                raise ValueError("no metadata")
            return parse_json(text, cls, "metadata", MAX_METADATA_BYTES)
        except ValueError as error:
            raise ValueError(f"Expected a file that `keras_resnet.export` wrote ({error_summary(error)})") from error

    def to_inputs(self, preprocessing: Preprocessing, pixels: np.ndarray) -> np.ndarray:
        """(B, size, size, channels) uint8 -> the inputs of the exported network, normalised if it is raw."""
        if not self.raw:
            return pixels
        inputs = normalize(pixels, preprocessing.mode, "channels_last")
        return np.moveaxis(inputs, -1, 1) if self.channels_first else inputs


def export_metadata(model, format, precision, raw) -> Metadata:
    """The Metadata of a model that is to be exported."""
    classifies = not isinstance(model.output, dict) and output_name(model) != "features"
    return Metadata(
        name=model.name,
        format=format,
        precision=precision,
        preprocessing=known_preprocessing(model),
        raw=raw,
        channels_first=raw and channel_axis(model) == 1,
        class_names=tuple(name for _, name in class_ids_and_names(class_names(model))) if classifies else None,
        weights=model_info(model).get("weights"),
        thresholds=thresholds(model),
    )


@dataclass(frozen=True)
class ExportSpec:
    """A network and how it is to be written: the argument of every format's `write`."""

    model: keras.Model
    """With its batch norms folded."""
    metadata: Metadata
    batch_size: int | None = None
    """None for any."""
    calibration: np.ndarray | None = None
    """For int8: (N, ...) typical inputs of the exported network, from which the ranges of its activations follow."""

    def model_and_signature(self, precision="float32"):
        """(serving model, input signature), the arguments of `Model.export`."""
        model = serving_model(self.model, precision, self.metadata.raw)
        (inputs,) = model.inputs
        signature = keras.InputSpec(inputs.dtype, (self.batch_size, *inputs.shape[1:]), name=inputs.name)
        return model, [signature]

    @property
    def calibration_batches(self) -> list[np.ndarray]:
        """The calibration inputs in batches of the exported size; images that do not fill a batch are dropped."""
        if self.calibration is None:
            return []
        size = self.batch_size or 1
        whole = len(self.calibration) // size * size
        return list(self.calibration[:whole].reshape(-1, size, *self.calibration.shape[1:]))


def serving_model(model, precision="float32", raw=False):
    """A model with normalisation in front and probabilities behind, channels last throughout.

    It takes {"images": uint8 (B, H, W, C) in 0..255}, or the inputs of `model` if `raw`, and returns a dict of
    "probabilities" (B, classes) float32, or "logits" or "features" where a raw network ends in these, or the named
    outputs of a model with several.

    Raises:
        ValueError: for a model of unknown preprocessing, unless `raw`.
    """
    channels_first = channel_axis(model) == 1
    network = cast_model(channels_last(model), precision)
    (model_input,) = model.inputs
    if raw:
        inputs = keras.Input(model_input.shape[1:], dtype=model_input.dtype, name=INPUT_NAME)
        normalised = keras.ops.transpose(inputs, (0, 2, 3, 1)) if channels_first else inputs
    else:
        prepare = preprocessing(model)
        inputs = keras.Input((*network.inputs[0].shape[1:3], prepare.channels), dtype="uint8", name=INPUT_NAME)
        normalised = normalize(keras.ops.cast(inputs, "float32"), prepare.mode, "channels_last")
    outputs = name_outputs(network, network(normalised))
    if "logits" in outputs and not raw:
        outputs = {"probabilities": keras.ops.softmax(outputs["logits"])}
    if channels_first:
        outputs = {
            name: keras.ops.transpose(tensor, (0, 3, 1, 2)) if len(tensor.shape) == 4 else tensor
            for name, tensor in outputs.items()
        }
    return copy_metadata(keras.Model(inputs, outputs, name=model.name), network)


def name_outputs(model, outputs) -> dict:
    """{name: output}: a dict of outputs as it is, a single output under `output_name`."""
    return outputs if isinstance(outputs, dict) else {output_name(model): outputs}


def output_name(model) -> str:
    """Name of a model's single output: "probabilities" or "logits" of a classifier, otherwise "features"."""
    last = model.layers[-1]
    activation = keras.activations.softmax if isinstance(last, keras.layers.Softmax) else getattr(last, "activation", 0)
    probabilities = dict.fromkeys((keras.activations.softmax, keras.activations.sigmoid), "probabilities")
    known = probabilities | {keras.activations.linear: "logits"}
    classifies = len(model.output_shape) == 2 and model.output_shape[1] > 1
    return known.get(activation, "features") if classifies else "features"
