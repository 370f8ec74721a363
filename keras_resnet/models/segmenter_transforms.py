"""Segmenters made from segmenters: `with_new_logits`."""

import warnings
from dataclasses import replace

from keras_resnet.architecture.metadata import info_without_head, model_info
from keras_resnet.architecture.segmenter import Segmenter, build_segmenter
from keras_resnet.errors import value_error
from keras_resnet.precision import precision_of, precision_scope


def with_new_logits(model: Segmenter, classes: int) -> Segmenter:
    """A copy of a segmenter for other classes, whose last layers, also of the auxiliary head, are untrained.

    >>> import keras_resnet
    >>> from keras_resnet.models.segmenter_transforms import with_new_logits
    >>> with_new_logits(keras_resnet.create("fcn_resnet18"), 4).output_shape
    (None, None, None, 4)

    Args:
        model: a segmenter.
        classes: number of classes.

    Raises:
        ValueError: for a model that is not a segmenter as `build` returns it.
    """
    if not isinstance(model, Segmenter):
        raise value_error("model", getattr(model, "name", model), "a segmenter as `create` or `build` returns it")
    with precision_scope(precision_of(model.dtype_policy)):
        copy = build_segmenter(replace(model.spec, classes=classes), model.name)
    for layer in copy.layers:
        if not layer.name.endswith("_logits"):
            layer.set_weights(model.get_layer(layer.name).get_weights())
    copy.info = info_without_head(model_info(model))
    warnings.warn(f"The last layers of {model.name} for {classes} classes are new and untrained.", stacklevel=2)
    return copy
