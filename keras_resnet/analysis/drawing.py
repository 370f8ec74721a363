"""What the images of the analysis have in common."""

import math

import numpy as np

from keras_resnet.files import save_figure


def draw_lines(axes, networks):
    """A line for each of {network: values by depth}, plain networks dashed, as in fig. 7 of the paper."""
    for name, values in networks.items():
        style = "--" if "plain" in name.lower() else "-"
        axes.plot(range(1, len(values) + 1), values, style, marker=".", linewidth=1.2, label=name)
    axes.grid(alpha=0.3)
    axes.legend()


def check_networks(networks):
    """Raises ValueError unless `networks` is {network: {layer: value}}, with something to draw."""
    if not isinstance(networks, dict) or not networks or not all(isinstance(v, dict) and v for v in networks.values()):
        raise ValueError(f"`networks` should be {{network: {{layer: value}}}}, not empty. Received: {networks!r}")


def mosaic(tiles, columns=None, gap=1):
    """Small images side by side.

    Args:
        tiles: (n, h, w) or (n, h, w, C) numbers in 0..1.
        columns: tiles in a row; None for about as many as rows.
        gap: white pixels between tiles.

    Returns:
        (rows * (h + gap) - gap, columns * (w + gap) - gap) or with a last axis C.
    """
    tiles = np.asarray(tiles, "float32")
    count, height, width, *channels = tiles.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.ones((rows * (height + gap), columns * (width + gap), *channels), "float32")
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet[: rows * (height + gap) - gap, : columns * (width + gap) - gap]


def draw_mosaic(tiles, path, title=""):
    """Draws `mosaic(tiles)`; tiles without channels in grey."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 7))
    axes = figure.add_subplot(title=title)
    axes.imshow(mosaic(tiles), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.axis("off")
    save_figure(figure, path)
