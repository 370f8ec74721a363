"""Networks that only answer: folded, in fewer bits, traced once."""

import platform
from pathlib import Path

import keras
import numpy as np

from keras_resnet.models.transforms import cast_model, fold_batch_norm
from keras_resnet.training.distribution import jit_compile

BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}
"""Of processors that multiply bfloat16, as Linux names them (Intel, AMD; Arm)."""


def optimize_for_inference(model, precision=None):
    """The network for people who stay in Keras and want answers fast: folded, in few bits, traced, warm.

    Under TensorFlow, `predict` and `predict_on_batch` run one graph for every batch size, which has the weights as
    constants; elsewhere it is Keras's own compiled function. What is done to the weights later changes no answer.

    Args:
        model: Functional model with one input.
        precision: "float32", "bfloat16" or "float16", what it computes in; None: bfloat16 where the processor or GPU
            multiplies it, else float32. Inputs and outputs stay as they are.

    Returns:
        A model with the inputs, outputs, layer names, spec and info of `model`.

    Raises:
        ValueError: for an unknown precision, and as `fold_batch_norm`.
    """
    if precision is None:
        precision = "bfloat16" if has_bfloat16() else "float32"
    fast = cast_model(fold_batch_norm(model), precision)
    fast.compile(jit_compile=jit_compile())
    if keras.backend.backend() == "tensorflow":
        fast.predict_function = _frozen(fast)
    for batch_size in (1, 2):  # the second is the last that is traced
        fast.predict_on_batch(np.zeros((batch_size, *_filled(fast.inputs[0].shape[1:])), fast.inputs[0].dtype))
    return fast


def has_bfloat16():
    """Whether what Keras computes on multiplies bfloat16 faster than float32."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if gpus := tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0)) >= (8, 0)
    info = Path("/proc/cpuinfo")
    words = info.read_text().split() if info.exists() else ()
    return platform.system() == "Linux" and not BFLOAT16_FLAGS.isdisjoint(words)


def _frozen(model):
    """Keras's `predict_function` as one TensorFlow graph, whose constants oneDNN arranges once and not every time."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    (given,) = model.inputs
    nested = keras.tree.is_nested(model.input)
    function = tf.function(
        lambda images: model(keras.tree.pack_sequence_as(model.input, [images]), training=False), autograph=False
    )
    traced = function.get_concrete_function(tf.TensorSpec(given.shape, given.dtype))
    graph = convert_variables_to_constants_v2(traced)

    def predict(data):
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data[0])
        (images,) = keras.tree.flatten(images) if nested else (images,)
        images = tf.ensure_shape(tf.cast(images, given.dtype), given.shape)  # others end the process in oneDNN
        return tf.nest.pack_sequence_as(traced.structured_outputs, graph(images))

    return predict


def _filled(shape):
    """Sides of any length get one."""
    return tuple(side or 64 for side in shape)
