"""Analysis of layer responses (He et al. 2015, sec. 4.2 and fig. 7): how strongly each layer answers."""

import keras
import numpy as np
from keras import ops

from keras_resnet.analysis.drawing import check_networks, draw_lines
from keras_resnet.files import save_figure
from keras_resnet.models.layers import check_inputs, convolutions, responses

BATCH = 100
"""Images at a time, where they come in one array."""


def layer_responses(model, batches):
    """Standard deviation of the output of each 3x3 layer, after batch norm and before ReLU or addition.

    It is taken over all images, positions and channels, in inference mode. In pre-activation nets, where no batch
    norm follows the last convolution of F, that convolution's own output is measured: what F adds to x.

    Args:
        model: keras.Model with 3x3 convolutions, on any Keras backend.
        batches: network inputs: an array (N, H, W, C), in the model's order of axes, or an iterable of such arrays or
            of (inputs, labels). They are reduced batch by batch, within the graph: memory does not grow with N.

    Returns:
        {name of the convolution: standard deviation}, first layer first.

    Raises:
        ValueError: for a model without 3x3 convolutions, and for batches that are empty or do not fit it.
    """
    names = [layer.name for layer in convolutions(model) if layer.kernel_size == (3, 3)]
    if not names:
        raise ValueError(f"`model` should have 3x3 convolutions. Received: {model.name!r}, which has none")
    measure = moments(model, names)
    counts, means, variances = [], [], []
    for batch in _batches(batches):
        inputs = check_inputs(model, batch)
        mean, variance = ops.convert_to_numpy(measure.predict_on_batch(inputs)).astype("float64")
        counts.append(inputs.size)
        means.append(mean)
        variances.append(variance)
    if not counts:
        raise ValueError("`batches` should hold images. Received: none")
    return dict(zip(names, np.sqrt(_pooled_variance(counts, means, variances)).tolist(), strict=True))


def moments(model, names):
    """The model that returns, of the responses of some convolutions, (2, layers) means and variances over the batch."""
    taps = responses(model)
    values = [ops.cast(taps[name], "float32") for name in names]
    return keras.Model(model.inputs[0], ops.stack([ops.stack([f(x) for x in values]) for f in (ops.mean, ops.var)]))


def _pooled_variance(counts, means, variances):
    """Variance of all from the moments of the batches: within them and between them, so that nothing cancels."""
    mean = np.average(means, axis=0, weights=counts)
    return np.average(variances + np.square(means - mean), axis=0, weights=counts)


def _batches(batches):
    """Arrays of inputs, one after the other."""
    if hasattr(batches, "ndim"):
        yield from (batches[start : start + BATCH] for start in range(0, len(batches), BATCH))
    else:
        yield from (batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches)


def draw_responses(networks, path, title=""):
    """Draws fig. 7 of the paper: responses in the order of the layers, and from the largest to the smallest.

    Args:
        networks: {network: what `layer_responses` returned}; names with "plain" in them are dashed.
        path: the PNG to write.
        title: above the image.
    """
    from matplotlib.figure import Figure

    check_networks(networks)
    figure = Figure(figsize=(8, 7), layout="constrained")
    top, bottom = figure.subplots(2)
    draw_lines(top, {name: list(values.values()) for name, values in networks.items()})
    draw_lines(bottom, {name: sorted(values.values(), reverse=True) for name, values in networks.items()})
    top.set(title=title, ylabel="std", xlabel="layer index (original)", ylim=(0, None))
    bottom.set(ylabel="std", xlabel="layer index (sorted by magnitude)", ylim=(0, None))
    save_figure(figure, path)
