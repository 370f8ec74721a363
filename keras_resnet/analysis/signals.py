"""Statistics of the signals in a network by layer: responses and variances forward, gradient norms backward.

He et al. 2015 analyze responses in sec. 4.2 (figure 7). They argue in sec. 4.1 that plain networks do not degrade
because of vanishing gradients: batch norm keeps the forward variances from zero, and the gradients have healthy norms.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from keras_resnet.errors import unknown_name_error, value_error
from keras_resnet.files import figure_file
from keras_resnet.models.layers import check_inputs, convolutions, logits_of, responses

BATCH_SIZE = 100
"""Batch size of `layer_responses` for inputs in one array."""


def layer_responses(model: keras.Model, batches: ArrayLike | Iterable) -> dict[str, float]:
    """Standard deviation of the response of each 3x3 convolution, in inference mode.

    The response is the output after batch norm, before ReLU or addition; without a batch norm after it, as in the last
    convolution of a pre-activation block, the output of the convolution itself.

    >>> import keras_resnet
    >>> import numpy as np
    >>> model = keras_resnet.create("resnet20")
    >>> len(keras_resnet.analysis.layer_responses(model, np.ones((2, 32, 32, 3))))
    19

    Args:
        model: Keras model with 3x3 convolutions.
        batches: preprocessed images (N, H, W, C) in the model's data format, or an iterable of such arrays or of
            (inputs, labels); only one batch at a time is in memory.

    Returns:
        {name of the convolution: standard deviation over images, positions and channels}, in the order of the layers.

    Raises:
        ValueError: for a model without 3x3 convolutions, and for batches that are empty or do not fit it.
    """
    names = [layer.name for layer in convolutions(model) if layer.kernel_size == (3, 3)]
    if not names:
        raise ValueError(f"`model` should have 3x3 convolutions. Received: {model.name!r} without any")
    moments = _moments_model(model, names)
    sizes, means, variances = [], [], []
    for batch in _batches(batches):
        inputs = check_inputs(model, batch)
        mean, variance = ops.convert_to_numpy(moments.predict_on_batch(inputs)).astype("float64")
        sizes.append(inputs.size)
        means.append(mean)
        variances.append(variance)
    if not sizes:
        raise ValueError("`batches` should contain images. Received: none")
    # the variance within and between batches, without cancellation
    mean = np.average(means, axis=0, weights=sizes)
    variance = np.average(variances + np.square(means - mean), axis=0, weights=sizes)
    return dict(zip(names, np.sqrt(variance).tolist(), strict=True))


def _moments_model(model, names):
    """Model that returns (2, layers): means and variances of the responses of convolutions over a batch."""
    outputs = responses(model)
    values = [ops.cast(outputs[name], "float32") for name in names]
    return keras.Model(model.inputs[0], ops.stack([ops.stack([f(x) for x in values]) for f in (ops.mean, ops.var)]))


def _batches(batches) -> Iterator[ArrayLike]:
    if hasattr(batches, "ndim"):
        yield from (batches[start : start + BATCH_SIZE] for start in range(0, len(batches), BATCH_SIZE))
    else:
        yield from (batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches)


def forward_variances(model: keras.Model, inputs: ArrayLike) -> dict[str, float]:
    """Variance of the response of each convolution, in training mode: with the batch norm statistics of the batch.

    The response is that of `layer_responses`. The model is not changed.

    >>> import keras_resnet
    >>> import numpy as np
    >>> model = keras_resnet.create("resnet20")
    >>> inputs = np.random.default_rng(0).normal(size=(4, 32, 32, 3))
    >>> round(keras_resnet.analysis.forward_variances(model, inputs)["conv1_conv"], 2)
    1.0

    Args:
        model: Keras model with convolutions.
        inputs: preprocessed images (B, H, W, C) in the model's data format; all activations are held in memory.

    Returns:
        {name of the convolution: variance over images, positions and channels}, in the order of the layers.

    Raises:
        ValueError: for inputs that do not fit the model, and for a model without convolutions.
    """
    names, inputs = [layer.name for layer in convolutions(model)], check_inputs(model, inputs)
    with keras.StatelessScope():  # discards the new moving statistics
        _, variances = _moments_model(model, names)(inputs, training=True)
    return dict(zip(names, ops.convert_to_numpy(variances).tolist(), strict=True))


def gradient_norms(model: keras.Model, inputs: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Euclidean norm of the gradient of each convolution's kernel, in a training step.

    The loss is the mean cross-entropy of the batch; batch norm uses the statistics of the batch. The model is not
    changed.

    >>> import keras_resnet
    >>> import numpy as np
    >>> model = keras_resnet.create("resnet20")
    >>> norms = keras_resnet.analysis.gradient_norms(model, np.ones((2, 32, 32, 3)), [0, 1])
    >>> list(norms)[:2]
    ['conv1_conv', 'conv2_block1_1_conv']

    Args:
        model: Keras classifier, on the backends TensorFlow, JAX or torch.
        inputs: preprocessed images (B, H, W, C) in the model's data format; all activations are held in memory.
        labels: (B,) integers.

    Returns:
        {name of the convolution: norm}, in the order of the layers.

    Raises:
        ValueError: for inputs or labels that do not fit the model, and for a model without convolutions.
    """
    images, layers = check_inputs(model, inputs), convolutions(model)
    logits = keras.Model(model.inputs[0], logits_of(model))
    labels = _check_labels(labels, len(images), model.output_shape[-1])
    kernels = [layer.kernel for layer in layers]

    def loss(values):
        with keras.StatelessScope(state_mapping=list(zip(kernels, values, strict=True))):
            outputs = ops.cast(logits(images, training=True), "float32")
        return ops.mean(ops.sparse_categorical_crossentropy(labels, outputs, from_logits=True))

    found = gradients(loss, [ops.convert_to_numpy(kernel) for kernel in kernels])
    return {layer.name: float(np.linalg.norm(values)) for layer, values in zip(layers, found, strict=True)}


def gradients(function: Callable, values: Sequence) -> list[np.ndarray]:
    """Gradients of a scalar with respect to arrays.

    Args:
        function: function of a list of tensors that returns a scalar tensor.
        values: floating-point arrays.

    Returns:
        float32 arrays with the shapes of `values`; zeros for values that the scalar does not depend on.
    """
    tensors, backend = [ops.convert_to_tensor(value) for value in values], keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensors)
            result = function(tensors)
        found = tape.gradient(result, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    elif backend == "jax":
        import jax

        found = jax.jit(jax.grad(function))(tensors)
    elif backend == "torch":
        import torch

        tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        found = torch.autograd.grad(function(tensors), tensors, materialize_grads=True)
    else:
        known = ("tensorflow", "jax", "torch")
        raise unknown_name_error("backend", backend, known, "a Keras backend that computes gradients")
    return [np.asarray(ops.convert_to_numpy(ops.cast(tensor, "float32"))) for tensor in found]


def _check_labels(labels, num_images, num_classes):
    labels = np.asarray(ops.convert_to_numpy(labels))
    integers = labels.shape == (num_images,) and labels.dtype.kind in "iu"
    if not integers or labels.min() < 0 or labels.max() >= num_classes:
        received = f"{labels.min()} to {labels.max()}" if integers else f"shape {labels.shape}, {labels.dtype}"
        raise ValueError(
            f"`labels` should be {num_images} integers from 0 to {num_classes - 1}, one per image. Received: {received}"
        )
    return labels


def plot_responses(values: Mapping[str, Mapping[str, float]], path: str | os.PathLike, title: str = "") -> None:
    """Plot figure 7 of He et al. 2015: responses in the order of the layers, and sorted from the largest.

    >>> from keras_resnet import analysis
    >>> analysis.plot_responses({"plain-20": {"conv1": 1.0, "conv2": 2.0}}, "responses.png")

    Args:
        values: {network: result of `layer_responses`}; networks with "plain" in their names are dashed.
        path: PNG file to write.
        title: title of the figure.

    Raises:
        ValueError: if there are no values.
    """
    _check_values(values)
    with figure_file(path, figsize=(8, 7), layout="constrained") as figure:
        top, bottom = figure.subplots(2)
        _plot_lines(top, {network: list(layers.values()) for network, layers in values.items()})
        _plot_lines(bottom, {network: sorted(layers.values(), reverse=True) for network, layers in values.items()})
        top.set(title=title, ylabel="std", xlabel="layer index (original)", ylim=(0, None))
        bottom.set(ylabel="std", xlabel="layer index (sorted by magnitude)", ylim=(0, None))


def plot_signals(
    values: Mapping[str, Mapping[str, float]],
    path: str | os.PathLike,
    label: str = "norm of the gradient",
    title: str = "",
) -> None:
    """Plot gradient norms or variances in the order of the layers, on a logarithmic axis.

    >>> from keras_resnet import analysis
    >>> analysis.plot_signals({"resnet20": {"conv1": 0.1, "conv2": 0.02}}, "gradients.png")

    Args:
        values: {network: result of `gradient_norms` or `forward_variances`}; networks with "plain" in their names are
            dashed.
        path: PNG file to write.
        label: label of the vertical axis.
        title: title of the figure.

    Raises:
        ValueError: if there are no values.
    """
    _check_values(values)
    with figure_file(path, figsize=(8, 4.5)) as figure:
        axes = figure.add_subplot(title=title, xlabel="convolution", ylabel=label, yscale="log")
        _plot_lines(axes, {network: list(layers.values()) for network, layers in values.items()})


def _check_values(values):
    if not isinstance(values, dict) or not values or not all(isinstance(v, dict) and v for v in values.values()):
        raise value_error("values", values, "{network: {layer: value}}, not empty")


def _plot_lines(axes, lines):
    for name, values in lines.items():
        style = "--" if "plain" in name.lower() else "-"
        axes.plot(range(1, len(values) + 1), values, style, marker=".", linewidth=1.2, label=name)
    axes.grid(alpha=0.3)
    axes.legend()
