"""timm's config.json: the network, the preprocessing and the class names of the weights beside it; read and written."""

import os
from dataclasses import replace
from typing import Any, TypedDict

from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.errors import unknown_name_error
from keras_resnet.files import read_json
from keras_resnet.variants import VARIANTS, get_spec
from keras_resnet.weights.catalog import TIMM_NETWORKS

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
"""Names of the files in a repository of timm."""
_FIELDS_OF_ARGUMENTS = {"output_stride": "output_stride", "drop_rate": "dropout", "drop_path_rate": "drop_path"}
"""Argument of timm's `create_model` -> field of ResNetSpec."""
_ARGUMENTS_OF_FILES = ("num_classes", "in_chans", "global_pool")
"""Arguments that the weights or the preprocessing say as well."""
_NOT_IN_OUTPUTS = (
    "output_stride",
    "bn_momentum",
    "zero_init_residual",
    "drop_path",
    "dropout",
    "block_dropout",
    "explicit_padding",
    "kernel_initializer",
    "data_format",
)
"""Fields of ResNetSpec that matter to training only, or that timm has as an argument (`output_stride`)."""


class TimmConfig(TypedDict, total=False):
    """Values of timm's config.json that are read."""

    architecture: Any
    model_args: dict[str, Any] | None
    label_names: list[str] | None
    pretrained_cfg: dict[str, Any]


def read_timm_config(path: str | os.PathLike) -> TimmConfig:
    """The values of timm's config.json; raises ValueError for a file that is none."""
    return read_json(path, TimmConfig)


def timm_preprocessing(path: str | os.PathLike) -> Preprocessing:
    """Preprocessing in timm's config.json; raises ValueError for a file without one."""
    config = read_timm_config(path)
    try:
        return Preprocessing.from_timm(config.get("pretrained_cfg", config))
    except ValueError as error:
        raise ValueError(f"`{path}` should be timm's config.json with a preprocessing. Received: {error}") from error


def timm_class_names(path: str | os.PathLike) -> list[str] | None:
    """The class names in timm's config.json, or None; raises ValueError for anything but a list of strings."""
    return read_timm_config(path).get("label_names")


def timm_spec(path: str | os.PathLike) -> ResNetSpec:
    """The spec of the network that timm's config.json names; raises ValueError if it is not one of this package."""
    config = read_timm_config(path)
    name, arguments = config.get("architecture"), config.get("model_args") or {}
    if not isinstance(name, str) or name not in TIMM_NETWORKS:
        raise unknown_name_error("architecture", name, TIMM_NETWORKS, f"a network of `list_models()`, in {path}")
    if set(arguments) - {*_FIELDS_OF_ARGUMENTS, *_ARGUMENTS_OF_FILES}:
        known = [*_FIELDS_OF_ARGUMENTS, *_ARGUMENTS_OF_FILES]
        raise ValueError(f"`model_args` should have no other arguments than {known}. Received: {arguments} in {path}")
    changes = {field: arguments[argument] for argument, field in _FIELDS_OF_ARGUMENTS.items() if argument in arguments}
    return replace(get_spec(TIMM_NETWORKS[name]), **changes)


def timm_network(spec: ResNetSpec) -> str | None:
    """timm's name of the network with this spec, whatever its output stride; None if timm has no such network."""
    if spec.output_stride not in (8, 16, 32):
        return None
    same = {name: getattr(spec, name) for name in _NOT_IN_OUTPUTS}
    return next((theirs for theirs, name in TIMM_NETWORKS.items() if replace(VARIANTS[name], **same) == spec), None)


def to_timm_config(
    network: str, spec: ResNetSpec, num_classes: int, preprocessing: Preprocessing, class_names: list[str] | None
) -> dict[str, Any]:
    """The values of timm's config.json for weights in timm's layout, as timm's `save_config_for_hf` writes them.

    Args:
        network: timm's name of the network.
        spec: the network's spec.
        num_classes: number of classes; 0 without a classifier.
        preprocessing: of the network's test images.
        class_names: names of the classes; None for ImageNet's.
    """
    first = "stem.conv" if spec.preactivation else "conv1" if spec.stem == "imagenet" else "conv1.0"
    classifier = {
        "num_classes": num_classes,
        "first_conv": first,
        "classifier": "head.fc" if spec.preactivation else "fc",
    }
    config = {
        "architecture": network,
        "num_classes": num_classes,
        "num_features": spec.stages[-1][-1].out_channels,
        "global_pool": "avg",
        "pretrained_cfg": preprocessing.to_timm() | classifier,
    }
    if spec.output_stride != 32:
        config["model_args"] = {"output_stride": spec.output_stride}
    return config | ({"label_names": class_names} if class_names else {})
