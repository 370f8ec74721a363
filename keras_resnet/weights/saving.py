"""Save the weights of a network in the formats and layouts of Keras, torchvision and timm."""

import json
import os
from pathlib import Path

import keras

from keras_resnet.architecture.metadata import model_info
from keras_resnet.errors import value_error
from keras_resnet.weights.file_formats import write_arrays
from keras_resnet.weights.keras_archives import save_keras, save_keras_weights
from keras_resnet.weights.layout_axes import to_layout_axes, weight_variables
from keras_resnet.weights.loading import require_spec
from keras_resnet.weights.spec_matching import check_spec_fits_weights, get_layout, match_spec_to_weights
from keras_resnet.weights.weights_file import METADATA_KEY


def save_weights(model: keras.Model, path: str | os.PathLike, layout: str = "keras") -> None:
    """Save the weights of a network in the format that the suffix of `path` names. The write is atomic.

    >>> import keras_resnet
    >>> model = keras_resnet.create("resnet20", classes=3)
    >>> keras_resnet.save_weights(model, "resnet20.pth", layout="torchvision")
    >>> keras_resnet.create("resnet20", weights="resnet20.pth").output_shape
    (None, 3)

    Args:
        model: network of this package.
        path: `.safetensors`, `.pth` / `.pt` / `.th` (PyTorch's zip format), `.h5` (as in keras.applications) or, in the
            layout "keras" only, Keras's `.weights.h5` and `.keras`.
        layout: names and axes of the arrays: "keras", "torchvision", "cifar", "keras_hub" (a network without the top as
            `.h5`, for `backbone.load_weights(path, by_name=True)`), or "timm", whose post-activation networks have
            torchvision's names. "auto" is the same as "timm".

    Raises:
        ValueError: if the layout has no such networks, or has them with another stride placement, biases or epsilon:
            other libraries would load the file and compute other logits.
        OSError: if the folder does not exist or is not writable.
    """
    spec, path = require_spec(model), Path(path)
    row = get_layout(layout, spec)
    metadata = json.dumps({"spec": spec.to_config(), "info": model_info(model)})
    if row.is_keras and path.name.endswith((".weights.h5", ".keras")):
        if path.suffix == ".keras":
            save_keras(model, path)  # its configuration contains the metadata
        else:
            save_keras_weights(model, path, {METADATA_KEY: metadata})
        return
    arrays = {}
    for name, variable in weight_variables(model).items():
        array_name = row.array_name(name, spec)
        if array_name is None:
            expected = f"one with a name for every weight of {model.name}, such as {name!r}"
            raise value_error("layout", layout, expected, "The layout 'keras' has names for all.")
        array = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))
        arrays[array_name] = to_layout_axes(array, row, name)
    if not row.is_keras:
        check_spec_fits_weights(spec, match_spec_to_weights(spec, row, ()), path)
    write_arrays(arrays, path, metadata={METADATA_KEY: metadata})
