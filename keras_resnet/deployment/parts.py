"""What a comparison of the whole does not show: compared by itself, on a few images."""

import numpy as np

from keras_resnet.deployment.exported import Exported
from keras_resnet.deployment.images import encoded, opened, some
from keras_resnet.deployment.verification import flat, said_by

FEW = 16
"""Images at most."""


def compare_parts(model, exported, plain, look, source):
    """How far parts of an export are from a Keras model.

    In fewer bits a network that is slightly wrong passes for rounding: so the same in float32 is compared as well. And
    files that the exported network decodes by itself, where it does, are resized by other code than Keras's images.

    Args:
        model: Keras model.
        exported: Exported.
        plain: Exported, the same in float32; None if it is that already.
        look: Preprocessing.
        source: Source of the images.

    Returns:
        {name in PARTS of `report`: root mean square of the differences, divided by the standard deviation of the Keras
        model's logits, or by the root mean square of its features}; what does not apply is left out.
    """
    if not (plain or exported.takes_files):
        return {}
    meta, pixels, files = exported.metadata, [], []
    for image in opened(source.split, some(len(source.split), FEW), look.channels, []):
        pixels.append(look.pixels([image]))
        files += [encoded(image)] if exported.takes_files else []
    if not pixels:
        return {}
    pixels = np.concatenate(pixels)
    said, answers = flat(said_by(model, meta, look, pixels)), {}
    if exported.takes_files:
        answers["encoded_files"] = exported.of_files(files)
    if plain:
        answers["in_float32"] = plain(meta.taken(look, pixels))
    scale = max(said.std() if meta.class_names else _size(said), np.finfo("float32").tiny)
    return {name: float(_size(flat(answer) - said) / scale) for name, answer in answers.items()}


def _size(numbers):
    """Root mean square."""
    return np.sqrt((numbers**2).mean())


def in_float32(row, order, path):
    """The ExportSpec of a Format written to a path and loaded, in float32; None if it is in float32 anyway."""
    if order.precision == "float32":
        return None
    row.module.write(order.in_float32(), path)
    return Exported(path)
