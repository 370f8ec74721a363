"""`load_model`: models from `.keras` files of others, checked before Keras reads them."""

import os
from copy import deepcopy

import keras

from keras_resnet.architecture.detector import Detector  # registers the classes of this package with Keras, too
from keras_resnet.architecture.segmenter import Segmenter
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.errors import error_summary, value_error
from keras_resnet.files import local_copy
from keras_resnet.weights.keras_archives import check_keras_file
from keras_resnet.weights.loading import warn_if_not_finite

_MAX_UNSAVED_VALUES = 2**22
"""Largest number of values that a model may have beyond those in its file."""


def load_model(path: str | os.PathLike) -> keras.Model:
    """Loads a `.keras` file; models of this package keep their spec, preprocessing and class names.

    >>> import keras_resnet
    >>> keras_resnet.create("resnet20").save("model.keras")
    >>> keras_resnet.load_model("model.keras").spec == keras_resnet.create("resnet20").spec
    True

    Args:
        path: a file written by `model.save(path)`, of this package or any other Keras model; or its URL in object
            storage, as the workdir of `train`.

    Raises:
        ValueError: if it is not a `.keras` file, is damaged, needs more memory than its size justifies, or contains
            code that Keras's safe mode does not load.
        FileNotFoundError: if it does not exist.
    """
    with local_copy(path) as local:
        if not local.exists():
            raise FileNotFoundError(f"`path` should be an existing .keras file. Received: path={str(path)!r}")
        try:
            config, num_values = check_keras_file(local)
            _check_size(config, num_values)
            model = keras.saving.load_model(local, compile=False)
            _check_built(model, config)
            _check_preprocessing(model)
        except Exception as error:  # Keras's parsers and layers raise errors of many types
            raise value_error("path", str(path), f"an intact .keras file ({error_summary(error)})") from error
    warn_if_not_finite(model, path)
    return model


def _check_preprocessing(model):
    """Raises ValueError for a detector or segmenter with an invalid preprocessing."""
    kinds = {Detector: DetectionPreprocessing, Segmenter: SegmentationPreprocessing}
    if (kind := kinds.get(type(model))) and (stored := model.info.get("preprocessing")):
        kind.from_config(stored)


def _check_size(config, num_values):
    """Raises ValueError if the model has more variables than the file has values; builds it without allocating them."""
    with keras.StatelessScope(initialize_variables=False):
        changed = deepcopy(config) | {"compile_config": None}  # Keras changes its argument
        model = keras.saving.deserialize_keras_object(changed)
        size = model.count_params()
    if size > num_values + _MAX_UNSAVED_VALUES:
        raise ValueError(f"its layers have {size} weights, the file has {num_values}")


def _check_built(model, config):
    """Raises ValueError for a layer that the file calls built without saying its shapes: it would fail when called."""
    layers, rows = {layer.name: layer for layer in model.layers}, config["config"].get("layers")
    for row in rows if isinstance(rows, list) else ():
        layer = layers.get(row["config"].get("name"))
        if row.get("build_config") and layer is not None and layer.built and layer.get_build_config() is None:
            raise ValueError(f"`build_config` of layer {layer.name} has no shapes")
        if isinstance(layer, keras.Model):
            _check_built(layer, row)
