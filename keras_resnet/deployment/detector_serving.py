"""The serving model of a detector: an image of any size in, its detections in its own pixels out."""

from fractions import Fraction
from typing import cast

import keras
import numpy as np
from keras import ops

from keras_resnet.architecture.detector import HEAD_PREFIXES
from keras_resnet.architecture.metadata import copy_metadata, model_info
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.deployment.serving import INPUT_NAME, Metadata
from keras_resnet.models.cloning import as_functional
from keras_resnet.models.preprocessing import class_names, preprocessing
from keras_resnet.models.transforms import cast_model
from keras_resnet.normalization import normalize

MAX_TABLE_SIDE = 2**14
"""Images with a longer side may be resized to one pixel more than by `DetectionPreprocessing.resized`."""


def prepared_detector(model, size):
    """The detector as one graph of layers; its images have any size, so that `size` is None."""
    return as_functional(model)


def detector_preprocessing(model, raw=False) -> DetectionPreprocessing:
    """The DetectionPreprocessing of a detector."""
    return cast(DetectionPreprocessing, preprocessing(model))


def detector_metadata(model, format, precision, raw) -> Metadata:
    """The Metadata of a detector that is to be exported."""
    return Metadata(
        name=model.name,
        format=format,
        precision=precision,
        preprocessing=detector_preprocessing(model),
        class_names=tuple(class_names(model) or ()),
        weights=model_info(model).get("weights"),
        score_threshold=model.get_layer("detections").score_threshold,
        task="detection",
    )


def detector_serving_model(model: keras.Model, precision: str = "float32", raw: bool = False) -> keras.Model:
    """A detector with its preprocessing in front, for one image.

    It takes {"images": uint8 (1, H, W, 3) in 0..255} and returns what `model` returns, with the boxes in pixels of the
    given image.
    """
    network = cast_model(model, precision)
    padded = network.get_layer("padded_images")
    heads = keras.Model(list(padded.output), network.output)
    inputs = keras.Input((None, None, 3), batch_size=1, dtype="uint8", name=INPUT_NAME)
    images, sizes, scale = ResizedImage(detector_preprocessing(network), name="resized_image")(inputs)
    outputs = heads([images, sizes])
    return copy_metadata(keras.Model(inputs, outputs | {"boxes": outputs["boxes"] * scale}, name=model.name), network)


def head_layers(model) -> list[str]:
    """Names of the layers of a detector after its feature pyramid: those of the RPN and of the heads."""
    prefixes = (*HEAD_PREFIXES[1:], *(("conv5_",) if model.spec.box_head == "stage4" else ()))
    return [layer.name for layer in model.layers if layer.name.startswith(prefixes)]


class ResizedImage(keras.layers.Layer):
    """What `DetectionPreprocessing` does to one image, as a layer of TensorFlow: (1, H, W, 3) uint8, of any size.

    Outputs: the normalised, resized image, padded with zeros, (1, h, w, 3); its height and width without padding,
    (1, 2); and the factors of boxes in it that make them boxes in the given image, (4,).
    """

    def __init__(self, preprocessing, **arguments):
        super().__init__(**arguments)
        self.preprocessing, self.rounding = preprocessing, SideRounding(preprocessing)

    def call(self, images):
        import tensorflow as tf

        given = tf.cast(tf.shape(images)[1:3], "float32")
        sides = self.rounding(given)
        divisor = self.preprocessing.divisor
        height, width = tf.unstack(tf.cast(sides, "int32"))
        padded_height, padded_width = tf.unstack(tf.cast(tf.math.ceil(sides / divisor) * divisor, "int32"))
        normalized = normalize(ops.cast(images, "float32"), self.preprocessing.mode, "channels_last")
        resized = tf.image.resize(normalized, tf.stack([height, width]))
        padded = tf.pad(resized, [(0, 0), (0, padded_height - height), (0, padded_width - width), (0, 0)])
        # LiteRT's converter does not know the rank of what was padded by numbers that it does not know
        padded = tf.reshape(padded, (1, padded_height, padded_width, 3))
        factors = given / sides
        return padded, sides[None], tf.gather(factors, [1, 0, 1, 0])

    def compute_output_spec(self, images):
        return keras.KerasTensor((1, None, None, 3)), keras.KerasTensor((1, 2)), keras.KerasTensor((4,))


class SideRounding:
    """`DetectionPreprocessing.resized` in float32, which is all that OpenVINO and LiteRT have.

    A side is floor(side * (n / d)) in float64, with n / d the smaller of min_size / shorter and max_size / longer side.
    Where side * n / d is no integer, float32 rounds it down to the same number. Where it is an integer q, float64 has
    q - 1 if n / d was rounded down by a relative error e for which q * (1 - e) is nearer to the number below q. That is
    so if 2**-53 / e is less than q divided by the power of two below it.
    """

    def __init__(self, preprocessing: DetectionPreprocessing):
        self.limits = preprocessing.min_size, preprocessing.max_size
        mantissas, _ = np.frexp(np.arange(max(self.limits) + 2, dtype="float32"))
        self.significands = np.where(mantissas == 0.5, 2, 2 * mantissas)  # below a power of two numbers are denser

    def __call__(self, sides):
        """(2,) sides of an image -> (2,) sides of the resized image, both float32 tensors of TensorFlow."""
        import tensorflow as tf

        divisors = tf.reduce_min(sides), tf.reduce_max(sides)
        resized = [self._scaled(sides, *pair) for pair in zip(self.limits, divisors, strict=True)]
        return tf.maximum(tf.minimum(*resized), 1.0)

    def _scaled(self, sides, numerator, divisor):
        """floor(sides * (numerator / divisor))."""
        import tensorflow as tf

        quotients = tf.floor(sides * numerator / divisor)
        is_whole = tf.equal(quotients * divisor, sides * numerator)
        bound = tf.gather(_rounding_bounds(numerator), tf.cast(tf.minimum(divisor, MAX_TABLE_SIDE), "int32"))
        places = tf.cast(tf.minimum(quotients, len(self.significands) - 1), "int32")
        is_below = is_whole & (tf.gather(self.significands, places) > bound)
        return quotients - tf.cast(is_below, "float32")


def _rounding_bounds(numerator):
    """For each d up to MAX_TABLE_SIDE: 2**-53 / e, with e by how much numerator / d was rounded down in float64."""
    errors = (1 - Fraction(numerator / side) * side / numerator for side in range(1, MAX_TABLE_SIDE + 1))
    bounds = [float(Fraction(1, 2**53) / error) if error > 0 else np.inf for error in errors]
    return np.minimum([np.inf, *bounds], 2).astype("float32")  # no significand is larger
