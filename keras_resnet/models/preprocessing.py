"""How a model's images are prepared, and what its classes are called, by the facts that belong to its weights."""

import hashlib
import warnings
from dataclasses import replace

import numpy as np

from keras_resnet.architecture.metadata import image_shape, model_info
from keras_resnet.data.labels import imagenet_classes, placeholder_names
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.errors import unknown_name_error
from keras_resnet.variants import canonical_name
from keras_resnet.weights.catalog import WEIGHTS


def preprocessing(model_or_weights, variant=None):
    """The Preprocessing that belongs to a network's weights: a function of images.

    Args:
        model_or_weights: a model whose weights brought theirs along, or a tag of WEIGHTS, such as
            "torchvision:IMAGENET1K_V2".
        variant: with a tag: the network, where the tag's files differ in their preprocessing.

    Returns:
        A Preprocessing; `preprocessing(model)(images)` is the input of `model`.

    Raises:
        ValueError: if it is not known: images prepared in another way would be classified wrongly, and silently.
    """
    if isinstance(model_or_weights, str):
        return _preprocessing_of_tag(model_or_weights, variant)
    config = model_info(model_or_weights).get("preprocessing")
    if config is None:
        raise ValueError(
            "`model` should have weights that say how images are to be prepared; random ones and files of unknown "
            "origin do not. Use `preprocess_input(images, mode=...)` as the network was trained, or set "
            "`model.info['preprocessing'] = Preprocessing(...).to_config()`. "
            f"Received: model={getattr(model_or_weights, 'name', model_or_weights)!r}"
        )
    return Preprocessing.from_config(config)


def set_preprocessing(model, look, mode):
    """Tells a network whose weights do not say it how its images are prepared; where they do, that is what counts.

    Args:
        model: Keras model.
        look: Preprocessing that is right for its images but for their size and their channels.
        mode: a name in MODES; None tells nothing.
    """
    info = model_info(model)
    if mode is None:
        return
    if known := info.get("preprocessing"):
        if known.get("mode") != mode:
            warnings.warn(
                f"mode={mode!r} is left aside: {model.name} knows its own, {known.get('mode')!r}", stacklevel=2
            )
        return
    *sides, channels = image_shape(model)
    size = sides[0] or look.size
    resize = look.resize and look.resize * size // look.size
    wanted = replace(look, mode=mode, size=size, resize=resize, channels=channels)
    model.info = info | {"preprocessing": wanted.to_config()}


def weights_digest(model):
    """SHA-256 of a network's weights, as a string of hexadecimal digits."""
    found = hashlib.sha256()
    for array in model.get_weights():
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _preprocessing_of_tag(tag, variant):
    wanted = variant and canonical_name(variant)
    found = {source.preprocessing for (name, t), source in WEIGHTS.items() if t == tag and wanted in (None, name)}
    if len(found) == 1:
        return found.pop()
    if not found:
        raise unknown_name_error("model_or_weights", tag, sorted({tag for _, tag in WEIGHTS}))
    raise ValueError(
        f"`variant` should say which network: the files of {tag!r} want different preprocessing. Received: variant=None"
    )


def class_names(model):
    """Names of a model's classes: those stored in it, None for ImageNet's thousand, else "class 0", "class 1", ..."""
    stored, count = model_info(model).get("class_names"), model.output_shape[-1]
    if stored and len(stored) == count:
        return stored
    return None if count == len(imagenet_classes()) else placeholder_names(count)
