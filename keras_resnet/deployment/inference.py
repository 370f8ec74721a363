"""`optimize_for_inference`: models that stay in Keras, folded, in few bits, and traced once."""

import platform
from pathlib import Path

import keras
import numpy as np

from keras_resnet.models.transforms import cast_model, fold_batch_norm
from keras_resnet.training.distribution import jit_compile

BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}
"""Flags of processors that multiply bfloat16, in Linux's names (Intel, AMD; Arm)."""


def optimize_for_inference(model: keras.Model, precision: str | None = None) -> keras.Model:
    """Makes a fast copy of a model for inference in Keras: batch norms folded, in few bits, traced, warmed up.

    Under TensorFlow, `predict` and `predict_on_batch` run one graph for every batch size, which contains the weights as
    constants; on other backends they run Keras's own compiled function. Later changes of the weights have no effect.
    Several threads may use the model; on JAX only through `predict` and `classify` of this package, because those of
    Keras replace the weights at every call.

    >>> import numpy as np
    >>> from keras_resnet import create, optimize_for_inference
    >>> model = create("resnet20", weights="cifar10")
    >>> fast = optimize_for_inference(model, "float32")
    >>> images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    >>> bool(np.allclose(fast.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-4))
    True

    Args:
        model: Functional model with one input.
        precision: the precision it computes in, "float32", "bfloat16" or "float16"; None: bfloat16 where the
            processor or GPU multiplies it, otherwise float32. Inputs and outputs keep their dtypes.

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
        fast.predict_function = _frozen_predict_function(fast)
    sides = (side or 64 for side in fast.inputs[0].shape[1:])
    inputs = np.zeros((2, *sides), fast.inputs[0].dtype)
    for batch_size in (1, 2):  # the second is the last that is traced
        fast.predict_on_batch(inputs[:batch_size])
    return fast


def has_bfloat16() -> bool:
    """Whether Keras's device multiplies bfloat16 faster than float32."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if gpus := tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0)) >= (8, 0)
    info = Path("/proc/cpuinfo")
    words = info.read_text().split() if info.exists() else ()
    return platform.system() == "Linux" and not BFLOAT16_FLAGS.isdisjoint(words)


def _frozen_predict_function(model):
    """Keras's `predict_function` as one TensorFlow graph, whose constant weights oneDNN rearranges only once."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    (model_input,) = model.inputs
    nested = keras.tree.is_nested(model.input)
    function = tf.function(
        lambda images: model(keras.tree.pack_sequence_as(model.input, [images]), training=False), autograph=False
    )
    traced = function.get_concrete_function(tf.TensorSpec(model_input.shape, model_input.dtype))
    graph = convert_variables_to_constants_v2(traced)

    def predict(data):
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data[0])
        (images,) = keras.tree.flatten(images) if nested else (images,)
        # with other shapes oneDNN (TensorFlow 2.21) ends the process
        images = tf.ensure_shape(tf.cast(images, model_input.dtype), model_input.shape)
        return tf.nest.pack_sequence_as(traced.structured_outputs, graph(images))

    return predict
