"""Results of a search: the candidates, the best one and the Pareto front; as JSON, a table and a plot."""

from dataclasses import dataclass, fields
from typing import Any

from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.errors import is_number
from keras_resnet.files import figure_file
from keras_resnet.schema import checked

COSTS = {"parameters": "parameters", "multiply_adds": "multiply-adds per image"}


@dataclass(frozen=True)
class Candidate:
    """One candidate of a search: its network, its changes to the recipe, its costs and its accuracy."""

    trial: str
    """KerasTuner's id of the trial."""
    status: str
    """KerasTuner's status: "COMPLETED"; "RUNNING", also if it was interrupted; "INVALID" or "FAILED"."""
    spec: ResNetSpec
    recipe: dict[str, Any]
    """Changes to the recipe of the search."""
    parameters: int
    multiply_adds: int
    top1_accuracy: float | None = None
    """Fraction of the validation images, 0 to 1; 0 if the training diverged, None unless completed."""
    wall_time_s: float | None = None
    message: str | None = None
    """Why it failed."""

    def to_config(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return vars(self) | {"spec": self.spec.to_config()}


@dataclass(frozen=True)
class SearchResult:
    """The candidates of a search so far, and the report of the final training."""

    settings: dict[str, Any]
    """Settings that identify the search, as JSON values."""
    candidates: tuple[Candidate, ...]
    """In the order of their trials."""
    final: dict[str, Any] | None = None
    """Report of the best candidate, trained on all training images and tested on the test images."""

    @property
    def completed(self) -> list[Candidate]:
        """The candidates with an accuracy, most accurate first; ties by fewer parameters."""
        known = [candidate for candidate in self.candidates if candidate.top1_accuracy is not None]
        return sorted(known, key=lambda candidate: (-(candidate.top1_accuracy or 0), candidate.parameters))

    @property
    def winner(self) -> Candidate | None:
        """The best candidate, None if there is none yet."""
        return next(iter(self.completed), None)

    def pareto_front(self, cost: str = "parameters") -> list[Candidate]:
        """The candidates that no other dominates: as cheap, as accurate, and better in one of them; cheapest first."""
        front, highest = [], -1.0
        for candidate in sorted(self.completed, key=lambda candidate: getattr(candidate, cost)):
            accuracy = candidate.top1_accuracy or 0.0
            if accuracy > highest:
                front.append(candidate)
                highest = accuracy
        return front

    def to_config(self) -> dict[str, Any]:
        """All results as JSON values."""
        return {
            "settings": self.settings,
            "candidates": [candidate.to_config() for candidate in self.candidates],
            "winner": self.winner and self.winner.trial,
            "pareto_front": {cost: [candidate.trial for candidate in self.pareto_front(cost)] for cost in COSTS},
            "final": self.final,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SearchResult":
        """The SearchResult of values that `to_config` returned; raises ValueError for other values."""
        names = [field.name for field in fields(cls)]
        return checked({name: config[name] for name in names if name in config}, cls, "results")


def to_markdown(result):
    """A Markdown table of the candidates, best first, and the result of the final training."""
    settings, front = result.settings, result.pareto_front()
    names = list(dict.fromkeys(name for candidate in result.candidates for name in candidate.recipe))
    failed = [candidate for candidate in result.candidates if candidate.top1_accuracy is None]
    header = ["trial", "network", *names, "parameters", "multiply-adds", "accuracy (%)"]
    lines = [
        f"{settings['tuner']} search on {settings['dataset']}: trained on {settings['training_images']:,} images, "
        f"validated on {settings['validation_images']:,}. Bold: on the Pareto front of accuracy and parameters.",
        "",
        f"| {' | '.join(header)} |",
        "|---|---|" + "---:|" * (len(header) - 2),
        *(_row(candidate, names, candidate in front) for candidate in (*result.completed, *failed)),
        "",
    ]
    if result.final:
        lines.append(
            f"Trial {result.winner.trial}, trained on all {result.final['training_images']:,} training images: "
            f"{result.final['top1_accuracy']:.2%} of {result.final['test_images']:,} test images."
        )
    return "\n".join(lines) + "\n"


def _row(candidate, names, bold):
    recipe = [f"{value:.3g}" if is_number(value) else str(value) for value in map(candidate.recipe.get, names)]
    accuracy = candidate.status if candidate.top1_accuracy is None else f"{100 * candidate.top1_accuracy:.2f}"
    costs = [f"{candidate.parameters:,}", f"{candidate.multiply_adds:,}", f"**{accuracy}**" if bold else accuracy]
    return f"| {' | '.join([candidate.trial, describe(candidate.spec), *recipe, *costs])} |"


def describe(spec: ResNetSpec) -> str:
    """A one-line description of a candidate's network, by the fields that the usual space searches."""
    depths, drop = "-".join(map(str, spec.depths)), f", drop path {spec.drop_path:.2g}" if spec.drop_path else ""
    return f"{depths} {spec.block}, {spec.widths[0]} wide, shortcut {spec.shortcut}, stem {spec.stem}{drop}"


def plot_results(result, path):
    """Plots validation accuracy against each cost: all candidates, the Pareto front and the best one."""
    with figure_file(path, figsize=(5 * len(COSTS), 4.5), layout="constrained") as figure:
        figure.suptitle(f"{result.settings['tuner']} search on {result.settings['dataset']}", fontsize="medium")
        red = {"color": "tab:red"}
        for axes, (cost, label) in zip(figure.subplots(1, len(COSTS), sharey=True), COSTS.items(), strict=True):
            for candidates, style, options in (
                (result.completed, "o", {"color": "tab:gray", "label": "candidates"}),
                (result.pareto_front(cost), ".-", red | {"label": "Pareto front", "drawstyle": "steps-post"}),
                (result.completed[:1], "*", red | {"label": "best", "markersize": 14}),
            ):
                costs = [getattr(candidate, cost) for candidate in candidates]
                axes.plot(costs, [100 * candidate.top1_accuracy for candidate in candidates], style, **options)
            axes.set(xscale="log", xlabel=label)
            axes.grid(alpha=0.3)
        figure.axes[0].set(ylabel="validation accuracy (%)")
        figure.axes[0].legend()
