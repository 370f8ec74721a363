"""Repositories: folders, or repositories on the Hugging Face Hub, with config.json and weights."""

import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.detector_spec import backbone_of
from keras_resnet.architecture.segmentation_heads import head_width
from keras_resnet.architecture.segmenter_spec import SegmenterSpec
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.errors import value_error
from keras_resnet.files import read_json
from keras_resnet.variants import TASKS, network_task
from keras_resnet.weights.download import HUB, download_repository
from keras_resnet.weights.file_formats import open_weights
from keras_resnet.weights.keras_hub_preset import (
    PRESET_WEIGHTS_NAME,
    is_preset,
    preset_head,
    preset_preprocessing,
    preset_spec,
)
from keras_resnet.weights.loading import check_kind
from keras_resnet.weights.timm_config import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    timm_class_names,
    timm_preprocessing,
    timm_spec,
)


@dataclass(frozen=True)
class Repository:
    """A network in a folder, as timm, KerasHub and `save_pretrained` write it."""

    weights: Path
    """Path of model.safetensors or, of a preset of KerasHub, model.weights.h5."""
    spec: ResNetSpec | SegmenterSpec
    """From the metadata of the weights, else of the network in config.json."""
    name: str
    """Name of its architecture, as a name of a model."""
    preprocessing: Preprocessing | SegmentationPreprocessing | None
    """From config.json or image_converter.json; None if the metadata of the weights have it, or it is unknown."""
    head: Path | None = None
    """Path of the classifier's weights, if they are in a file of their own."""


def is_repository(name: object) -> bool:
    """Whether a name begins with "hf://", or is that of an existing folder and not of a network."""
    if not isinstance(name, (str, os.PathLike)):
        return False
    return str(name).startswith(HUB) or (network_task(name) is None and Path(name).is_dir())


def open_repository(source: str | os.PathLike) -> Repository:
    """The network in a folder or in the repository "hf://user/name", which is downloaded.

    Raises:
        ValueError: for a config.json that is damaged or names a network that is not in VARIANTS or another class of
            KerasHub, for weights whose stored spec is not theirs, and for those of a detector or segmenter.
        FileNotFoundError: if one of the files is missing.
        ConnectionError: if a file cannot be downloaded.
    """
    folder = download_repository(str(source)) if str(source).startswith(HUB) else Path(source)
    _check_exists(folder / CONFIG_NAME)
    config = read_json(folder / CONFIG_NAME, dict[str, Any])
    return _open_preset(folder, config) if is_preset(config) else _open_timm(folder, config)


def _check_exists(path):
    if not path.is_file():
        expected = f"a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, or with a preset of KerasHub"
        raise FileNotFoundError(
            f"`variant` should be {expected}, but has no {path.name}. Received: {str(path.parent)!r}"
        )


def _open_timm(folder, values):
    path, config = folder / WEIGHTS_NAME, folder / CONFIG_NAME
    _check_exists(path)
    architecture = str(values.get("architecture", "resnet"))
    timm_class_names(config)  # raises if they are not names
    with open_weights(path) as file:
        check_kind(ResNetSpec, file)
        stored = file.metadata.spec
        spec = _checked_size(stored, file) if stored else timm_spec(config)
        preprocessing = None if file.metadata.info.get("preprocessing") else timm_preprocessing(config)
    return Repository(path, spec, re.sub(r"[^\w.-]", "_", architecture.rpartition("/")[2]), preprocessing)


def _open_preset(folder, values):
    path, head = folder / PRESET_WEIGHTS_NAME, preset_head(folder)
    for existing in (path, head or path):
        _check_exists(existing)
    with open_weights(path) as file:
        spec = _checked_size(preset_spec(values, folder / CONFIG_NAME), file)
    task = network_task(spec) or "classification"
    name = next((name for name, row in TASKS[task].items() if row == spec), _NAMES[task])
    return Repository(path, spec, name, preset_preprocessing(folder, values), head)


_NAMES = {"classification": "resnet", "segmentation": "segmenter"}
"""Task -> name of a network that is no row of its networks."""


def _checked_size(spec, file):
    """The spec that a file has; raises ValueError, before anything is built, if it is larger than the file."""
    total = sum(math.prod(array.shape) for array in file.arrays.values())
    if isinstance(spec, SegmenterSpec):  # the layer that predicts classes is in another file
        parameters = complexity(replace(spec, classes=1)).parameters - head_width(spec) - 1
    else:
        parameters = complexity(spec, include_top=False, input_shape=(32, 32, 1)).parameters
    if sum(backbone_of(spec).depths) > len(file.arrays) or parameters > total:
        sizes = f"{len(file.arrays)} arrays with {total:,} numbers in {file.path}, not of {parameters:,} parameters"
        raise value_error("spec", spec, f"a {type(spec).__name__} of the {sizes}")
    return spec
