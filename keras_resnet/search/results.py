"""What a search finds: its candidates, the best of them, the Pareto front; as values, a table and an image."""

from dataclasses import dataclass

from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.errors import is_number
from keras_resnet.files import save_figure

COSTS = {"parameters": "parameters", "multiply_adds": "multiply-adds for one image"}


@dataclass(frozen=True)
class Candidate:
    """A network that was tried."""

    trial: str
    """KerasTuner's number of it."""
    status: str
    """KerasTuner's word: "COMPLETED"; "RUNNING", also of one that was interrupted; "INVALID" or "FAILED"."""
    spec: ResNetSpec
    recipe: dict
    """What was changed in the recipe of the search."""
    parameters: int
    multiply_adds: int
    top1_accuracy: float | None = None
    """Share of the validation images; 0 if the training diverged, None unless completed."""
    wall_time_s: float | None = None
    message: str | None = None
    """Why it failed."""

    @property
    def final_recipe(self):
        """What is changed in it when this one is trained in the end: not the epochs, by which Hyperband chooses."""
        return {name: value for name, value in self.recipe.items() if name != "epochs"}

    def to_config(self):
        """All of it as JSON values."""
        return vars(self) | {"spec": self.spec.to_config()}


@dataclass(frozen=True)
class SearchResult:
    """What a search has found so far."""

    settings: dict
    """What search this is, JSON values."""
    candidates: tuple[Candidate, ...]
    """By number."""
    final: dict | None = None
    """Report of the best one, trained on all training images and tested."""

    @property
    def completed(self):
        """The candidates with an accuracy, the most accurate first; of equals, the one with fewer parameters."""
        known = [candidate for candidate in self.candidates if candidate.top1_accuracy is not None]
        return sorted(known, key=lambda candidate: (-candidate.top1_accuracy, candidate.parameters))

    @property
    def winner(self):
        """The best Candidate, or None."""
        return next(iter(self.completed), None)

    def front(self, cost="parameters"):
        """Candidates than which none is as cheap and more accurate, or cheaper and as accurate; the cheapest first."""
        found = []
        for candidate in sorted(self.completed, key=lambda candidate: getattr(candidate, cost)):
            if not found or candidate.top1_accuracy > found[-1].top1_accuracy:
                found.append(candidate)
        return found

    def to_config(self):
        """All of it as JSON values."""
        return {
            "settings": self.settings,
            "candidates": [candidate.to_config() for candidate in self.candidates],
            "winner": self.winner and self.winner.trial,
            "front": {cost: [candidate.trial for candidate in self.front(cost)] for cost in COSTS},
            "final": self.final,
        }

    @classmethod
    def from_config(cls, config):
        """The way back from `to_config`."""
        rows = (row | {"spec": ResNetSpec(**row["spec"])} for row in config["candidates"])
        return cls(config["settings"], tuple(Candidate(**row) for row in rows), config["final"])


def as_markdown(result):
    """A SearchResult as a table in Markdown, the best first, and what it says in words."""
    settings, front = result.settings, result.front()
    names = list(dict.fromkeys(name for candidate in result.candidates for name in candidate.recipe))
    lines = [
        f"{settings['tuner']} search on {settings['dataset']}: trained on {settings['training_images']:,} images, "
        f"judged by {settings['validation_images']:,} others. In bold: no cheaper candidate is as accurate.",
        "",
        "| trial | network | "
        + "".join(f"{name} | " for name in names)
        + "parameters | multiply-adds | accuracy (%) |",
        "|---|---|" + "---:|" * (len(names) + 3),
        *(_row(candidate, names, candidate in front) for candidate in result.completed),
        *(_row(candidate, names, False) for candidate in result.candidates if candidate.top1_accuracy is None),
        "",
    ]
    if result.final:
        lines.append(
            f"Trial {result.winner.trial}, trained anew on all {result.final['training_images']:,} training images: "
            f"{100 * result.final['top1_accuracy']:.2f} % of {result.final['test_images']:,} test images."
        )
    return "\n".join(lines) + "\n"


def _row(candidate, names, bold):
    values = (candidate.recipe[name] for name in names)
    recipe = "".join(f"{value:.3g} | " if is_number(value) else f"{value} | " for value in values)
    accuracy = candidate.status if candidate.top1_accuracy is None else f"{100 * candidate.top1_accuracy:.2f}"
    return (
        f"| {candidate.trial} | {in_words(candidate.spec)} | {recipe}{candidate.parameters:,} "
        f"| {candidate.multiply_adds:,} | {f'**{accuracy}**' if bold else accuracy} |"
    )


def in_words(spec):
    """A candidate in a line: what differs within the usual space."""
    depths, drop = "-".join(map(str, spec.depths)), f", drop path {spec.drop_path:.2g}" if spec.drop_path else ""
    return f"{depths} {spec.block}, {spec.widths[0]} wide, shortcut {spec.shortcut}, stem {spec.stem}{drop}"


def draw(result, path):
    """Accuracy against cost, a point for each candidate, and the Pareto front as a line; as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(COSTS), 4.5), layout="constrained")
    figure.suptitle(f"{result.settings['tuner']} search on {result.settings['dataset']}", fontsize="medium")
    for axes, (cost, label) in zip(figure.subplots(1, len(COSTS), sharey=True), COSTS.items(), strict=True):
        _draw_points(axes, result.completed, cost, "o", color="tab:gray", label="candidates")
        _draw_points(
            axes, result.front(cost), cost, ".-", drawstyle="steps-post", color="tab:red", label="Pareto front"
        )
        _draw_points(axes, result.completed[:1], cost, "*", markersize=14, color="tab:red", label="winner")
        axes.set(xscale="log", xlabel=label)
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel="validation accuracy (%)")
    figure.axes[0].legend()
    save_figure(figure, path)


def _draw_points(axes, candidates, cost, style, **options):
    accuracies = [100 * candidate.top1_accuracy for candidate in candidates]
    axes.plot([getattr(candidate, cost) for candidate in candidates], accuracies, style, **options)
