"""Repositories: folders, or repositories on the Hugging Face Hub, with config.json and model.safetensors."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from keras_resnet.architecture.complexity import complexity
from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.errors import is_integer, value_error
from keras_resnet.variants import VARIANTS
from keras_resnet.weights.download import HUB, download_repository
from keras_resnet.weights.file_formats import open_weights
from keras_resnet.weights.timm_config import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    read_timm_config,
    timm_class_names,
    timm_preprocessing,
    timm_spec,
)


@dataclass(frozen=True)
class Repository:
    """A network in a folder, as timm and `save_pretrained` write it."""

    weights: Path
    """Path of model.safetensors."""
    spec: ResNetSpec
    """From the metadata of the weights, else of the architecture that config.json names."""
    name: str
    """Name of its architecture, as a name of a model."""
    preprocessing: Preprocessing | None
    """From config.json; None if the metadata of the weights have it."""


def is_repository(name: object) -> bool:
    """Whether a name begins with "hf://", or is that of an existing folder and not of a network."""
    if not isinstance(name, (str, os.PathLike)):
        return False
    networks = {str(name).lower(), f"{name}_cifar".lower()} & VARIANTS.keys()
    return str(name).startswith(HUB) or (not networks and Path(name).is_dir())


def open_repository(source: str | os.PathLike) -> Repository:
    """The network in a folder or in the repository "hf://user/name", which is downloaded.

    Raises:
        ValueError: for a config.json that is damaged or names a network that is not in VARIANTS, and for weights whose
            stored spec is not theirs.
        FileNotFoundError: if one of the files is missing.
        ConnectionError: if a file cannot be downloaded.
    """
    folder = download_repository(str(source)) if str(source).startswith(HUB) else Path(source)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            expected = f"a folder with {CONFIG_NAME} and {WEIGHTS_NAME}"
            raise FileNotFoundError(f"`variant` should be {expected}, but has no {name}. Received: {str(source)!r}")
    path, config = folder / WEIGHTS_NAME, folder / CONFIG_NAME
    architecture = str(read_timm_config(config).get("architecture", "resnet"))
    timm_class_names(config)  # raises if they are not names
    with open_weights(path) as file:
        spec = _stored_spec(file) or timm_spec(config)
        preprocessing = None if file.metadata["info"].get("preprocessing") else timm_preprocessing(config)
    return Repository(path, spec, re.sub(r"[^\w.-]", "_", architecture.rpartition("/")[2]), preprocessing)


def _stored_spec(file):
    """The ResNetSpec in the metadata of a weights file, or None; its size is checked before anything is built."""
    stored = file.metadata["spec"]
    if not stored:
        return None
    total = sum(math.prod(array.shape) for array in file.arrays.values())
    try:
        depths = stored["depths"]
        if not all(is_integer(depth, 1) for depth in depths) or sum(depths) > len(file.arrays):
            raise ValueError("more blocks than arrays")
        spec = ResNetSpec(**stored)
        if complexity(spec, include_top=False, input_shape=(32, 32, 1)).parameters > total:
            raise ValueError(f"more parameters than the {total} numbers of the file")
    except (TypeError, KeyError, ValueError) as error:
        raise value_error("spec", stored, f"the ResNetSpec of the arrays in {file.path} ({error})") from error
    return spec
