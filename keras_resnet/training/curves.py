"""Learning curves as the paper draws them: error against iterations, training dashed, test solid."""

from keras_resnet.files import replacing


def draw_curves(history, steps_per_epoch, path, title=""):
    """Draws fig. 6 of the paper for one run.

    Args:
        history: {"accuracy": [...], "val_accuracy": [...]}, shares of 1, a value an epoch.
        steps_per_epoch: iterations in an epoch.
        path: the PNG to write.
        title: above the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5))
    axes = figure.add_subplot()
    for key, style, label in (("accuracy", "--", "training error"), ("val_accuracy", "-", "test error")):
        errors = [100 * (1 - accuracy) for accuracy in history[key]]
        iterations = [steps_per_epoch * (epoch + 1) for epoch in range(len(errors))]
        axes.plot(iterations, errors, style, color="tab:red", linewidth=1.5, label=label)
    # the first quarter, where errors fall from 90 %, would leave the rest of the picture flat
    highest = max(100 * (1 - accuracy) for accuracy in history["val_accuracy"][len(history["val_accuracy"]) // 4 :])
    axes.set(xlabel="iterations", ylabel="error (%)", title=title, ylim=(0, max(5, min(100, 2 * highest))))
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=100)
