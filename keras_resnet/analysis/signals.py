"""Whether signals reach both ends of a network: forward, its activations; backward, its gradients.

The paper argues (sec. 4.1) that plain nets do not degrade because of vanishing gradients: batch norm keeps the
forward variances from zero, and the gradients have healthy norms. These are the two measurements.
"""

import keras
import numpy as np
from keras import ops

from keras_resnet.analysis.drawing import check_networks, draw_lines
from keras_resnet.analysis.gradients import gradients
from keras_resnet.analysis.responses import moments
from keras_resnet.files import save_figure
from keras_resnet.models.layers import check_inputs, class_scores, convolutions


def gradient_norms(model, inputs, labels):
    """Euclidean norm of the loss's gradient with respect to the kernel of each convolution, as in a training step.

    The loss is the mean cross-entropy of the batch; batch norm uses the batch's statistics. The model, its moving
    statistics and random states stay as they are.

    Args:
        model: keras.Model, a classifier, on the backends TensorFlow, JAX or torch.
        inputs: network inputs (B, H, W, C), in the model's order of axes; held in memory with all activations.
        labels: (B,) integers.

    Returns:
        {name of the convolution: norm}, first layer first.

    Raises:
        ValueError: for inputs or labels that do not fit the model, and for a model without convolutions.
    """
    inputs, layers = check_inputs(model, inputs), convolutions(model)
    scores = keras.Model(model.inputs[0], class_scores(model))
    labels = _check_labels(labels, len(inputs), model.output_shape[-1])
    kernels = [layer.kernel for layer in layers]

    def loss(values):
        # a variable is what the scope says it is, and what a layer assigns ends with the scope
        with keras.StatelessScope(state_mapping=list(zip(kernels, values, strict=True))):
            outputs = ops.cast(scores(inputs, training=True), "float32")
        return ops.mean(ops.sparse_categorical_crossentropy(labels, outputs, from_logits=True))

    slopes = gradients(loss, [ops.convert_to_numpy(kernel) for kernel in kernels])
    names = [layer.name for layer in layers]
    return {name: float(np.linalg.norm(slope)) for name, slope in zip(names, slopes, strict=True)}


def forward_variances(model, inputs):
    """Variance of each convolution's output after its batch norm, with the batch's own statistics, as in training.

    It is taken over images, positions and channels. Where no batch norm follows a convolution, as in pre-activation
    nets after the last one of F, that convolution's own output is measured. The model stays as it is.

    Args:
        model: keras.Model with convolutions, on any Keras backend.
        inputs: network inputs (B, H, W, C), in the model's order of axes; held in memory with all activations.

    Returns:
        {name of the convolution: variance}, first layer first.

    Raises:
        ValueError: for inputs that do not fit the model, and for a model without convolutions.
    """
    names, inputs = [layer.name for layer in convolutions(model)], check_inputs(model, inputs)
    with keras.StatelessScope():  # the moving statistics that training assigns end with the scope
        _, variances = moments(model, names)(inputs, training=True)
    return dict(zip(names, ops.convert_to_numpy(variances).tolist(), strict=True))


def _check_labels(labels, count, classes):
    labels = np.asarray(ops.convert_to_numpy(labels))
    integers = labels.shape == (count,) and labels.dtype.kind in "iu"
    if not integers or labels.min() < 0 or labels.max() >= classes:
        received = f"{labels.min()} to {labels.max()}" if integers else f"shape {labels.shape}, {labels.dtype}"
        raise ValueError(
            f"`labels` should be {count} integers from 0 to {classes - 1}, one an image. Received: {received}"
        )
    return labels


def draw_signals(networks, path, label="norm of the gradient", title=""):
    """Draws what `gradient_norms` or `forward_variances` returned, by depth, on a logarithmic axis.

    Args:
        networks: {network: {layer: value}}; names with "plain" in them are dashed.
        path: the PNG to write.
        label: what the values are.
        title: above the image.
    """
    from matplotlib.figure import Figure

    check_networks(networks)
    figure = Figure(figsize=(8, 4.5))
    axes = figure.add_subplot(title=title, xlabel="convolution", ylabel=label, yscale="log")
    draw_lines(axes, {name: list(values.values()) for name, values in networks.items()})
    save_figure(figure, path)
