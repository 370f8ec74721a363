"""Results of the degradation study, read from the folders of its runs, as values and as a table."""

import re
from dataclasses import asdict, dataclass

from keras_resnet.training.workdir import HISTORY, read_history, read_report

FAMILIES = {"plain": "plain networks", "resnet": "residual networks"}


@dataclass(frozen=True)
class NetworkResult:
    """One trained network of the study. Errors are fractions, 0..1."""

    name: str
    family: str
    """A key of FAMILIES."""
    depth: int
    """Layers with weights, as the paper counts them."""
    parameters: int
    training_error: float
    """Mean over the last epoch's augmented images, while the weights still change, as in the paper's figure."""
    test_error: float
    wall_time_s: float


@dataclass(frozen=True)
class DepthEffect:
    """The errors of a family's deepest network minus those of its shallowest, as fractions."""

    family: str
    shallowest: int
    deepest: int
    training_error: float
    """Above 0 is degradation: the deeper network could represent what the shallower one has learned."""
    test_error: float

    def __str__(self):
        return (
            f"{FAMILIES[self.family]}, from {self.shallowest} to {self.deepest} layers: training error "
            f"{100 * self.training_error:+.2f}, test error {100 * self.test_error:+.2f} percentage points"
        )


@dataclass(frozen=True)
class DegradationResult:
    """Results of a study so far."""

    settings: dict
    """The settings that all runs share, JSON values."""
    networks: tuple[NetworkResult, ...]
    """The trained networks, by depth."""
    missing: tuple[str, ...]
    """Names of the networks that are not trained yet."""

    @property
    def effects(self) -> tuple[DepthEffect, ...]:
        """A DepthEffect for each family with networks of two or more depths."""
        families = [[network for network in self.networks if network.family == family] for family in FAMILIES]
        effects = []
        for shallow, *_, deep in filter(lambda networks: len(networks) > 1, families):
            changes = (getattr(deep, name) - getattr(shallow, name) for name in ("training_error", "test_error"))
            effects.append(DepthEffect(deep.family, shallow.depth, deep.depth, *changes))
        return tuple(effects)

    def to_config(self) -> dict:
        """Everything as JSON values."""
        networks = [asdict(network) for network in self.networks]
        effects = [asdict(effect) for effect in self.effects]
        return {"settings": self.settings, "networks": networks, "effects": effects, "missing": list(self.missing)}


def read_network_result(workdir):
    """The NetworkResult of a finished run, from its folder."""
    report, history = read_report(workdir), read_history(workdir / HISTORY)
    family, depth = re.fullmatch(r"(\D+)(\d+)", workdir.name).groups()
    return NetworkResult(
        name=workdir.name,
        family=family,
        depth=int(depth),
        parameters=report["parameters"],
        training_error=1 - history[-1]["accuracy"],
        test_error=1 - report["top1_accuracy"],
        wall_time_s=report["wall_time_s"],
    )


def to_markdown(result):
    """A DegradationResult as a Markdown table, followed by the effects of depth."""
    settings = result.settings
    recipe = settings["recipe"]
    length = f"{recipe['epochs']} epochs" if recipe["epochs"] else f"{recipe['iterations']:,} iterations"
    lines = [
        f"{settings['dataset']}: {length} of {settings['training_images']:,} images in batches of "
        f"{recipe['batch_size']}, seed {settings['seed']}, {settings['precision']}; "
        f"tested on {settings['test_images']:,} images.",
        "",
        "| network | parameters | training error (%) | test error (%) | time (s) |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {network.name} | {network.parameters:,} | {100 * network.training_error:.2f} "
            f"| {100 * network.test_error:.2f} | {network.wall_time_s:,.0f} |"
            for network in result.networks
        ),
        *(f"| {name} | | | | not trained yet |" for name in result.missing),
        "",
        *(f"{str(effect).capitalize()}.  " for effect in result.effects),
    ]
    return "\n".join(lines) + "\n"
