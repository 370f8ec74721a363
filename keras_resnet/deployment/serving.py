"""The serving model, pixels in and probabilities out, and the metadata that is written into every exported file."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import keras
import numpy as np

from keras_resnet.architecture.metadata import channel_axis, copy_metadata, image_shape, input_size, model_info
from keras_resnet.data.datasets import default_preprocessing
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.labels import class_ids_and_names
from keras_resnet.data.preprocessing import Preprocessing, PreprocessingLayer
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.deployment.checksums import CHECKSUM, EMPTY_CHECKSUM
from keras_resnet.errors import check_known, error_summary, value_error
from keras_resnet.models.cloning import as_functional
from keras_resnet.models.preprocessing import class_names, known_preprocessing, preprocessing, thresholds
from keras_resnet.models.transforms import cast_model, channels_last, with_input_size
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
    preprocessing: Preprocessing | DetectionPreprocessing | SegmentationPreprocessing | None
    """None if it is not known."""
    raw: bool = False
    """Whether inputs must be normalised already; otherwise they are RGB in 0..255."""
    channels_first: bool = False
    """Whether inputs are (B, C, H, W)."""
    class_names: tuple[str, ...] | None = None
    """None for a feature extractor; of a detector, the name of each label, the first the background."""
    weights: str | None = None
    """Tag or file name of its weights."""
    thresholds: tuple[float, ...] | None = None
    """The probability of each class from which on a multi-label network predicts it; None for one class an image."""

    score_threshold: float | None = None
    """Smallest score that a detector returns."""
    colors: tuple[tuple[int, ...], ...] | None = None
    """(red, green, blue), from 0 to 255, of each class of a segmenter; None if they are not known."""
    image_size: tuple[int, ...] | None = None
    """(height, width) of a segmenter's images; None for any."""
    task: Literal["classification", "detection", "localization", "segmentation"] = "classification"
    """What the network does; feature extractors count as classifiers."""
    checksum: str = EMPTY_CHECKSUM
    """SHA-256 of the exported files: see `checksums.py`."""

    def __post_init__(self):
        check_known("precision", self.precision, PRECISIONS)
        if not CHECKSUM.fullmatch(self.checksum.encode()):
            raise value_error("checksum", self.checksum, f"like {EMPTY_CHECKSUM!r}")
        if self.thresholds is not None and len(self.thresholds) != len(self.class_names or ()):
            raise value_error("thresholds", self.thresholds, "a number for each class")
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise value_error("image_size", self.image_size, "a height and a width")

    @property
    def crops_images(self) -> bool:
        """Whether the network contains a preprocessing that makes images of one size, and so can take encoded files."""
        return isinstance(self.preprocessing, Preprocessing) and not self.raw

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
    """The Metadata of a classifier or feature extractor that is to be exported."""
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


def prepared_network(model, size):
    """The network as one graph of layers for images of `size`.

    None: of any size, or those that its PreprocessingLayer need not resize.
    """
    model = as_functional(model)
    found = [layer.preprocessing for layer in model.layers if isinstance(layer, PreprocessingLayer)]
    if size is None and input_size(model) is None and found:
        size = found[0].resize or found[0].size  # only TensorFlow resizes with antialiasing
    model = with_input_size(model, size)
    if len(model.outputs) > 1 and not isinstance(model.output, dict):
        received = f"{model.name} with {len(model.outputs)}"
        raise ValueError(f"`model` should have one output, or a dict of them. Received: {received}")
    return model


def image_preprocessing(model, raw):
    """The Preprocessing of images for the comparison, also for a raw network without a known one."""
    known = model_info(model).get("preprocessing") or not raw
    return preprocessing(model) if known else default_preprocessing(image_shape(model))


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


@dataclass(frozen=True)
class ExportSpec:
    """A network and how it is to be written: the argument of every format's `write`."""

    model: keras.Model
    """With its batch norms folded."""
    metadata: Metadata
    batch_size: int | None = None
    """None for any."""
    calibration: Sequence[np.ndarray] | None = None
    """For int8: typical inputs of the exported network, from which the ranges of its activations follow."""
    float_layers: Collection[str] = ()
    """For int8: names of layers that are not quantised."""
    make_serving_model: Callable = serving_model
    """(model, precision, raw) -> the model that is written."""

    def model_and_signature(self, precision="float32"):
        """(serving model, input signature), the arguments of `Model.export`."""
        model = self.make_serving_model(self.model, precision, self.metadata.raw)
        (inputs,) = model.inputs
        signature = keras.InputSpec(inputs.dtype, (self.batch_size, *inputs.shape[1:]), name=inputs.name)
        return model, [signature]

    @property
    def calibration_batches(self) -> list[np.ndarray]:
        """The calibration inputs in batches of the exported size; images that do not fill a batch are dropped."""
        if self.calibration is None:
            return []
        size = self.batch_size or 1
        starts = range(0, len(self.calibration) // size * size, size)
        return [np.stack(self.calibration[start : start + size]) for start in starts]
