"""Learning curves as in the paper: error against iterations, training error dashed, test error solid."""

from itertools import chain

from keras_resnet.files import save_figure

LINE_STYLES = {"accuracy": "--", "val_accuracy": "-"}


def draw_curves(history, path, title=""):
    """Draws fig. 6 of the paper for one run.

    Args:
        history: [{"step", "accuracy" and, if the epoch was tested, "val_accuracy", 0..1}], a dict for each epoch.
        path: the PNG to write.
        title: title of the figure.
    """
    figure, (axes,) = _subplots([title], [history], (7, 4.5))
    _draw(axes, history, "tab:red", ("training error", "test error"))
    axes.legend()
    save_figure(figure, path)


def draw_panels(panels, path, title=""):
    """Draws fig. 6 of the paper for many runs: panels side by side on the same axes.

    Args:
        panels: {title: {label: history}}, histories as for `draw_curves`. A label has one colour in all panels.
        path: the PNG to write.
        title: title of the figure.
    """
    histories = [history for runs in panels.values() for history in runs.values()]
    labels = dict.fromkeys(chain.from_iterable(panels.values()))
    colours = {label: f"C{index}" for index, label in enumerate(labels)}
    figure, grid = _subplots(panels, histories, (5 * len(panels), 4.5))
    figure.suptitle(f"{title}\ntraining error dashed, test error solid", fontsize="medium")
    for axes, runs in zip(grid, panels.values(), strict=True):
        for label, history in runs.items():
            _draw(axes, history, colours[label], ("_", label))  # matplotlib leaves labels like "_" out of the legend
        axes.legend(handles=[line for line in axes.lines if line.get_label() in runs])
    save_figure(figure, path)


def _subplots(titles, histories, size):
    """A figure and its axes, all with the same limits, which fit the histories."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(titles), sharex=True, sharey=True, squeeze=False)[0]
    for axes, title in zip(grid, titles, strict=True):
        axes.set(xlabel="iterations", title=title)
        axes.grid(alpha=0.3)
    grid[0].set(ylabel="error (%)", ylim=(0, _highest_error(histories)))
    return figure, grid


def _highest_error(histories):
    """Upper limit of the axis in percent; the first quarter, which falls from 90 %, would flatten the rest."""
    late = [row for history in histories for row in history[len(history) // 4 :]]
    errors = [100 * (1 - row[key]) for row in late for key in LINE_STYLES if key in row]
    return max(5, min(100, 2 * max(errors, default=50)))


def _draw(axes, history, colour, labels):
    for (key, style), label in zip(LINE_STYLES.items(), labels, strict=True):
        points = [(row["step"], 100 * (1 - row[key])) for row in history if key in row]
        if points:
            marker = "o" if len(points) == 1 else ""  # a line of one point is invisible
            axes.plot(*zip(*points, strict=True), style, marker=marker, color=colour, linewidth=1.5, label=label)
