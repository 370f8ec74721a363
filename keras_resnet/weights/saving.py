"""Weights out of a network, for others to read."""

import json
from pathlib import Path

import keras

from keras_resnet.architecture.metadata import model_info
from keras_resnet.files import atomic_write
from keras_resnet.weights.layouts import check_arrangement, layout_named, match_spec_to_weights, their_array, variables
from keras_resnet.weights.loading import check_ours
from keras_resnet.weights.weights_file import OURS
from keras_resnet.weights.writers import write_arrays


def save_weights(model, path, layout="keras"):
    """Writes a network's weights for others to read.

    Args:
        model: a network of this package.
        path: `.safetensors`, `.pth` / `.pt` / `.th` (torch's zip format), `.h5` (as keras.applications has them), or,
            with our names only, Keras's `.weights.h5` and `.keras`. The file appears whole or not at all.
        layout: "keras" (our names), "torchvision" (also timm's post-activation networks), "timm" (pre-activation ones),
            "cifar", or "auto" for "torchvision" or "timm", whichever has this kind of network.

    Raises:
        ValueError: if the layout's networks are arranged in another way (stride placement, biases, epsilon): the other
            side would load the file and give other logits.
    """
    check_ours(model)
    path = Path(path)
    if layout == "auto":
        layout = "timm" if model.spec.preactivation else "torchvision"
    layout = layout_named(layout)
    about = json.dumps({"spec": model.spec.to_config(), "info": model_info(model)})
    if not layout.kinds and path.name.endswith((".weights.h5", ".keras")):
        _save_with_keras(model, path, about)
        return
    if layout.kinds:
        check_arrangement(model.spec, match_spec_to_weights(model.spec, layout, ()), path)
    arrays = {}
    for name, variable in variables(model).items():
        array = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))
        arrays[_renamed(name, layout, model)] = their_array(array, layout, name)
    write_arrays(arrays, path, metadata={OURS: about})


def _save_with_keras(model, path, about):
    """Keras's own two formats; a `.keras` file has what is in `about` in its configuration."""
    import h5py

    with atomic_write(path) as partial:
        if path.suffix == ".keras":
            model.save(partial)
            return
        model.save_weights(partial)
        with h5py.File(partial, "r+") as file:
            file.attrs[OURS] = about


def _renamed(name, layout, model):
    renamed = layout.rename(name, model.spec)
    if renamed is None:
        raise ValueError(
            f"`layout` should have a place for every array of {model.name}; {layout.name!r} has none for {name!r}. "
            f"Received: layout={layout.name!r}"
        )
    return renamed
