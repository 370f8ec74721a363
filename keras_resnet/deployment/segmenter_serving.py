"""The serving model of a segmenter: images of any size in, the class of each of their pixels out."""

from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_resnet.architecture.metadata import copy_metadata, image_shape, model_info
from keras_resnet.architecture.segmenter import without_auxiliary
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.deployment.serving import INPUT_NAME, Metadata
from keras_resnet.errors import check_integers, value_error
from keras_resnet.models.cloning import as_functional, clone
from keras_resnet.models.preprocessing import class_names, colors, preprocessing
from keras_resnet.models.transforms import cast_model
from keras_resnet.normalization import normalize

PREDICTOR_SUFFIX = "_logits"
"""Ending of the name of the layer that computes the classes, which is not quantised."""


def prepared_segmenter(model: keras.Model, size: int | tuple[int, int] | None = None) -> keras.Model:
    """The segmenter as one graph of layers without its auxiliary head, for images of a size or, with None, of any.

    Raises:
        ValueError: for a size below the smallest one of the network.
    """
    model = without_auxiliary(as_functional(model))
    if size is None:
        return model
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2:
        raise value_error("size", size, "a number of pixels, or height and width")
    for side in sides:
        check_integers(model.spec.minimum_size, size=side)
    copy = clone(model, (*sides, 3))
    kept = replace(_own_preprocessing(model), shorter_side=None)
    copy.info = model_info(model) | {"preprocessing": kept.to_config()}
    return copy


def _own_preprocessing(model) -> SegmentationPreprocessing:
    known: Any = preprocessing(model)
    return known


@dataclass(frozen=True)
class FixedSizePreprocessing(SegmentationPreprocessing):
    """The preprocessing of an exported segmenter for images of one size: images are stretched to it.

    >>> import numpy as np
    >>> from keras_resnet.deployment.segmenter_serving import FixedSizePreprocessing
    >>> FixedSizePreprocessing(size=(180, 240))(np.zeros((360, 640, 3), "uint8")).shape
    (1, 180, 240, 3)
    """

    size: tuple[int, ...] = (1, 1)
    """Height and width in pixels."""

    def for_size(self, shorter_side: int | None) -> "FixedSizePreprocessing":
        """The same for None; raises ValueError for another size."""
        if shorter_side is not None:
            height, width = self.size
            raise value_error("size", shorter_side, f"None: the exported network takes images of {width} x {height}")
        return self

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The size, of any image."""
        height, width = self.size
        return height, width


def segmenter_preprocessing(model: keras.Model, raw: bool = False) -> SegmentationPreprocessing:
    """How images become pixels for an exported segmenter, by `SegmentationPreprocessing.pixels`.

    Only a raw one, or one for images of one size, does not resize images itself.
    """
    own = _own_preprocessing(model)
    return input_preprocessing(own, raw, fixed_size(model))


def input_preprocessing(own: SegmentationPreprocessing, raw: bool, size: Any) -> SegmentationPreprocessing:
    """What is left to do of a segmenter's preprocessing before its export, whose normalisation may be part of it."""
    mode = own.mode if raw else "pixels"
    if size is not None:
        return FixedSizePreprocessing(mode, size=tuple(size))
    return replace(own, mode=mode, shorter_side=own.shorter_side if raw else None)


def fixed_size(model: keras.Model) -> tuple[int, int] | None:
    """(height, width) of the images of a model; None for images of any size."""
    height, width, _ = image_shape(model)
    return None if height is None or width is None else (height, width)


def segmenter_metadata(model: keras.Model, format: str, precision: str, raw: bool) -> Metadata:
    """The Metadata of a segmenter that is to be exported."""
    return Metadata(
        name=model.name,
        format=format,
        precision=precision,
        preprocessing=_own_preprocessing(model),
        raw=raw,
        class_names=tuple(class_names(model) or ()),
        weights=model_info(model).get("weights"),
        colors=colors(model),
        image_size=fixed_size(model),
        task="segmentation",
    )


def segmenter_serving_model(model: keras.Model, precision: str = "float32", raw: bool = False) -> keras.Model:
    """A segmenter with its preprocessing in front, and probabilities and classes of the given pixels behind.

    It takes {"images": uint8 (B, H, W, 3) in 0..255} and returns "probabilities" (B, H, W, K) float32 and "mask"
    (B, H, W) uint8, the most probable class of each pixel. Where the preprocessing resizes images, probabilities are
    resized bilinearly to the size of the given images. With `raw`, it takes the inputs of `model` and returns "logits".
    """
    network = cast_model(model, precision)
    (model_input,) = model.inputs
    if raw:
        inputs = keras.Input(model_input.shape[1:], dtype=model_input.dtype, name=INPUT_NAME)
        return copy_metadata(keras.Model(inputs, {"logits": network(inputs)}, name=model.name), network)
    prepare = _own_preprocessing(model)
    inputs = keras.Input(model_input.shape[1:], dtype="uint8", name=INPUT_NAME)
    pixels = ResizedShorterSide(prepare.shorter_side, dtype="float32", name="resized_images")(inputs)
    logits = network(normalize(pixels, prepare.mode, "channels_last"))
    outputs = PixelClasses(prepare.shorter_side is not None, dtype="float32", name="classes")(logits, inputs)
    return copy_metadata(keras.Model(inputs, outputs, name=model.name), network)


def predictor_layers(model: keras.Model) -> list[str]:
    """Names of the layers of a segmenter that are not quantised: the one that computes the classes."""
    return [layer.name for layer in model.layers if layer.name.endswith(PREDICTOR_SUFFIX)]


class ResizedShorterSide(keras.layers.Layer):
    """What `SegmentationPreprocessing.pixels` does, as a layer of TensorFlow: (B, H, W, 3) uint8 -> (B, h, w, 3).

    Images are resized with antialiasing, as Pillow does it, by two products of matrices, which every format can
    express; TensorFlow's own operation for it is in none of them. Outputs are float32 in 0..255.

    Args:
        shorter_side: length of the shorter side in pixels after resizing; None: images keep their size.
    """

    def __init__(self, shorter_side, **arguments):
        super().__init__(**arguments)
        self.shorter_side = shorter_side

    def call(self, images):
        import tensorflow as tf

        pixels = tf.cast(images, "float32")
        if self.shorter_side is None:
            return pixels
        sides = tf.shape(images)[1:3]
        resized = self.shorter_side * sides // tf.reduce_min(sides)  # exact, and so rounded as in float64
        turned = _resized_rows(tf.transpose(pixels, (0, 2, 1, 3)), sides[1], resized[1])
        return _resized_rows(tf.transpose(turned, (0, 2, 1, 3)), sides[0], resized[0])

    def compute_output_shape(self, images_shape):
        return images_shape if self.shorter_side is None else (images_shape[0], None, None, 3)


def _resized_rows(pixels, length, resized):
    """(B, H, W, 3) -> (B, h, W, 3), rounded as Pillow does after each direction."""
    import tensorflow as tf

    shape = tf.shape(pixels)
    rows = tf.reshape(pixels, (shape[0], length, shape[2] * 3))
    products = tf.matmul(_bilinear_weights(length, resized)[None], rows)
    rounded = tf.floor(products - -0.5)  # a difference, as LiteRT quantises sums to int8
    return tf.reshape(rounded, (shape[0], resized, shape[2], 3))


def _bilinear_weights(length, resized):
    """(h, H): the share of each pixel in each resized one, a triangle over two pixels of the shorter of both grids."""
    import tensorflow as tf

    length_, resized_ = tf.cast(length, "float32"), tf.cast(resized, "float32")
    centres = (tf.cast(tf.range(resized), "float32")[:, None] + 0.5) * length_ / resized_
    distances = tf.abs(tf.cast(tf.range(length), "float32")[None] + 0.5 - centres)
    weights = tf.maximum(1 - distances / tf.maximum(length_ / resized_, 1.0), 0.0)
    return weights / tf.reduce_sum(weights, axis=1, keepdims=True)


class PixelClasses(keras.layers.Layer):
    """Logits (B, h, w, K) and the given images -> probabilities and the most probable class of each of their pixels.

    Args:
        resize: whether the given images have another size than the logits.
    """

    def __init__(self, resize, **arguments):
        super().__init__(**arguments)
        self.resize = resize

    def call(self, logits, images):
        import tensorflow as tf

        probabilities = tf.nn.softmax(logits)
        if self.resize:
            probabilities = tf.image.resize(probabilities, tf.shape(images)[1:3])
        mask = tf.cast(tf.argmax(probabilities, axis=-1, output_type="int32"), "uint8")
        return {"mask": mask, "probabilities": probabilities}

    def compute_output_spec(self, logits, images):
        shape = images.shape[:3]
        probabilities = keras.KerasTensor((*shape, logits.shape[-1]), "float32")
        return {"mask": keras.KerasTensor(shape, "uint8"), "probabilities": probabilities}
