"""Learning curves as the paper draws them: error against iterations, training dashed, test solid."""

from keras_resnet.files import replacing


def draw_curves(history, path, title=""):
    """Draws fig. 6 of the paper for one run.

    Args:
        history: a dict for each epoch: `step`, `accuracy` and, where it was tested, `val_accuracy`, shares of 1.
        path: the PNG to write.
        title: above the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5))
    axes = figure.add_subplot()
    for key, style, label in (("accuracy", "--", "training error"), ("val_accuracy", "-", "test error")):
        points = [(row["step"], 100 * (1 - row[key])) for row in history if key in row]
        if points:
            alone = "o" if len(points) == 1 else ""  # a line of one point would not be seen
            axes.plot(*zip(*points, strict=True), style, marker=alone, color="tab:red", linewidth=1.5, label=label)
    # the first quarter, where errors fall from 90 %, would leave the rest of the picture flat
    late = history[len(history) // 4 :]
    highest = max(100 * (1 - row[key]) for row in late for key in ("accuracy", "val_accuracy") if key in row)
    axes.set(xlabel="iterations", ylabel="error (%)", title=title, ylim=(0, max(5, min(100, 2 * highest))))
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=100)
