"""Learning curves: error as in the paper for classifiers, test metrics and losses for networks of other tasks."""

from itertools import chain

from keras_resnet.files import figure_file

LINE_STYLES = {"accuracy": "--", "val_accuracy": "-"}
PRECISIONS = {
    "val_average_precision": "AP",
    "val_ap50": "AP50",
    "val_mask_average_precision": "mask AP",
    "val_mask_ap50": "mask AP50",
}
"""Test metric of a detector -> its name in the legend."""
ACCURACIES = {
    "val_top1_accuracy": "class",
    "val_true_class_accuracy": "box, given the class",
    "val_top1_localization_accuracy": "class and box",
    "val_top5_localization_accuracy": "class and box, top 5",
}
"""Test metric of a localizer -> its name in the legend."""
SEGMENTATION_METRICS = {
    "val_mean_iou": "mean IoU",
    "val_mean_accuracy": "mean accuracy of classes",
    "val_pixel_accuracy": "pixel accuracy",
}
"""Test metric of a segmenter -> its name in the legend."""


def draw_error_curves(history, label, path, title):
    """Draws `draw_curves` of one run."""
    draw_curves({"": {label: history}}, path, title)


def draw_detection_curves(history, label, path, title):
    """Draws a detector's average precision on the test images, and its losses in training, against iterations."""
    _draw_tests_and_losses(history, f"{title}, {label}", path, PRECISIONS, "average precision on test images (%)")


def draw_localization_curves(history, label, path, title):
    """Draws a localizer's accuracies on the test images, and its losses in training, against iterations."""
    _draw_tests_and_losses(history, f"{title}, {label}", path, ACCURACIES, "accuracy on test images (%)")


def draw_segmentation_curves(history, label, path, title):
    """Draws a segmenter's accuracies on the test images, and its losses in training, against iterations."""
    _draw_tests_and_losses(history, f"{title}, {label}", path, SEGMENTATION_METRICS, "test images (%)")


def _draw_tests_and_losses(history, title, path, metrics, metrics_label):
    """Draws {test metric: its name} and the losses side by side.

    `history` has a dict for each epoch with "step", "loss", "..._loss", and if it was tested the metrics.
    """
    losses = {name: name.removesuffix("_loss") for name in history[0] if name == "loss" or name.endswith("_loss")}
    with figure_file(path, figsize=(12, 4.5), layout="constrained") as figure:
        figure.suptitle(title, fontsize="medium")
        tests, loss = figure.subplots(1, 2)
        for axes, names, factor, ylabel in (
            (tests, metrics, 100, metrics_label),
            (loss, losses | {"loss": "sum"}, 1, "training loss"),
        ):
            for name, text in names.items():
                _draw_line(axes, [(row["step"], factor * row[name]) for row in history if name in row], label=text)
            axes.set(xlabel="iterations", ylabel=ylabel, ylim=(0, None))
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend()


def draw_curves(panels, path, title=""):
    """Draws fig. 6 of the paper: panels side by side on the same axes.

    Args:
        panels: {title: {label: history}}. A label has one colour in all panels. A history is a dict for each epoch with
            "step", "accuracy" and, if the epoch was tested, "val_accuracy", 0..1.
        path: the PNG to write.
        title: title of the figure.
    """
    with figure_file(path, figsize=(2 + 5 * len(panels), 4.5), layout="constrained") as figure:
        figure.suptitle(f"{title}\ntraining error dashed, test error solid", fontsize="medium")
        grid = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        labels = dict.fromkeys(chain.from_iterable(panels.values()))
        colours = {label: f"C{index}" for index, label in enumerate(labels)}
        for axes, (name, runs) in zip(grid, panels.items(), strict=True):
            axes.set(xlabel="iterations", title=name)
            axes.grid(alpha=0.3)
            for label, history in runs.items():
                _draw(axes, history, colours[label], label)
            axes.legend(handles=[line for line in axes.lines if line.get_label() in runs])
        grid[0].set(ylabel="error (%)", ylim=(0, _highest_error(panels)))


def _highest_error(panels):
    """Upper limit of the axis in percent; the first quarter, which falls from 90%, would flatten the rest."""
    histories = [history for runs in panels.values() for history in runs.values()]
    late = [row for history in histories for row in history[len(history) // 4 :]]
    errors = [100 * (1 - row[key]) for row in late for key in LINE_STYLES if key in row]
    return max(5, min(100, 2 * max(errors, default=50)))


def _draw(axes, history, colour, label):
    for key, style in LINE_STYLES.items():
        points = [(row["step"], 100 * (1 - row[key])) for row in history if key in row]
        text = label if key == "val_accuracy" else "_"  # matplotlib leaves labels like "_" out of the legend
        _draw_line(axes, points, linestyle=style, color=colour, label=text)


def _draw_line(axes, points, **style):
    if points:
        marker = "o" if len(points) == 1 else ""  # a line of one point is invisible
        axes.plot(*zip(*points, strict=True), marker=marker, linewidth=1.5, **style)
