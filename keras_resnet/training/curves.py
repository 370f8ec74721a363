"""Learning curves as the paper draws them: error against iterations, training dashed, test solid."""

from itertools import chain

from keras_resnet.files import save_figure

LINES = {"accuracy": "--", "val_accuracy": "-"}


def draw_curves(history, path, title=""):
    """Draws fig. 6 of the paper for one run.

    Args:
        history: a dict for each epoch: `step`, `accuracy` and, where it was tested, `val_accuracy`, shares of 1.
        path: the PNG to write.
        title: above the image.
    """
    figure, (axes,) = _panels([title], [history], (7, 4.5))
    _draw(axes, history, "tab:red", ("training error", "test error"))
    axes.legend()
    save_figure(figure, path)


def draw_panels(panels, path, title=""):
    """Draws fig. 6 of the paper for many runs: panels side by side on the same axes.

    Args:
        panels: {title: {label: history}}, a history as `draw_curves` takes it. A label has one colour in all panels.
        path: the PNG to write.
        title: above the image.
    """
    histories = [history for runs in panels.values() for history in runs.values()]
    labels = dict.fromkeys(chain.from_iterable(panels.values()))
    colours = {label: f"C{number}" for number, label in enumerate(labels)}
    figure, grid = _panels(panels, histories, (5 * len(panels), 4.5))
    figure.suptitle(f"{title}\ntraining error dashed, test error solid", fontsize="medium")
    for axes, runs in zip(grid, panels.values(), strict=True):
        for label, history in runs.items():
            _draw(axes, history, colours[label], ("_", label))  # matplotlib leaves labels like "_" out of the legend
        axes.legend(handles=[line for line in axes.lines if line.get_label() in runs])
    save_figure(figure, path)


def _panels(titles, histories, size):
    """A figure and its panels: the same axes in all, with room for the histories."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(titles), sharex=True, sharey=True, squeeze=False)[0]
    for axes, title in zip(grid, titles, strict=True):
        axes.set(xlabel="iterations", title=title)
        axes.grid(alpha=0.3)
    grid[0].set(ylabel="error (%)", ylim=(0, _highest(histories)))
    return figure, grid


def _highest(histories):
    """Error in percent up to which to draw: the first quarter, where it falls from 90, would leave the rest flat."""
    late = [row for history in histories for row in history[len(history) // 4 :]]
    errors = [100 * (1 - row[key]) for row in late for key in LINES if key in row]
    return max(5, min(100, 2 * max(errors, default=50)))


def _draw(axes, history, colour, labels):
    for (key, style), label in zip(LINES.items(), labels, strict=True):
        points = [(row["step"], 100 * (1 - row[key])) for row in history if key in row]
        if points:
            alone = "o" if len(points) == 1 else ""  # a line of one point would not be seen
            axes.plot(*zip(*points, strict=True), style, marker=alone, color=colour, linewidth=1.5, label=label)
