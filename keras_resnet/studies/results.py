"""What the degradation study finds: read from the folders of its networks, as values, words and an image."""

import csv
import re
from dataclasses import asdict, dataclass

from keras_resnet.files import read_json
from keras_resnet.training.workdir import HISTORY, REPORT

FAMILIES = {"plain": "plain networks", "resnet": "residual networks"}


@dataclass(frozen=True)
class Cell:
    """A trained network of the study. Errors in percent."""

    network: str
    family: str
    """A key of FAMILIES."""
    depth: int
    """Layers with weights, as the paper counts them."""
    parameters: int
    training_error: float
    """The last epoch's mean over augmented images, while the weights still change: what the paper's figure shows."""
    test_error: float
    wall_time_s: float


@dataclass(frozen=True)
class Change:
    """What depth does to a family: errors of its deepest network less those of its shallowest, in percentage points."""

    family: str
    shallowest: int
    deepest: int
    training_error: float
    """Above 0 is the degradation: the deeper network could have learnt what the shallower one did."""
    test_error: float

    @property
    def in_words(self):
        """A sentence but for its unit."""
        return (
            f"{FAMILIES[self.family]}, from {self.shallowest} to {self.deepest} layers: training error "
            f"{self.training_error:+.2f}, test error {self.test_error:+.2f}"
        )


@dataclass(frozen=True)
class Degradation:
    """What a study has found so far."""

    settings: dict
    """What the networks have in common, JSON values."""
    cells: tuple[Cell, ...]
    """The trained networks, by depth."""
    missing: tuple[str, ...]
    """Names of those that are not trained yet."""

    @property
    def changes(self):
        """A Change for each family with networks of two depths or more."""
        families = [[cell for cell in self.cells if cell.family == family] for family in FAMILIES]
        return tuple(_change(cells[0], cells[-1]) for cells in families if len(cells) > 1)

    def to_config(self):
        """All of it as JSON values."""
        changes = [asdict(change) for change in self.changes]
        cells = [asdict(cell) for cell in self.cells]
        return {"settings": self.settings, "cells": cells, "changes": changes, "missing": list(self.missing)}


def _change(first, last):
    return Change(
        first.family,
        first.depth,
        last.depth,
        last.training_error - first.training_error,
        last.test_error - first.test_error,
    )


def read_cell(folder):
    """What the folder of a finished run says."""
    report, history = read_json(folder / REPORT), read_history(folder / HISTORY)
    family, depth = re.fullmatch(r"(\D+)(\d+)", folder.name).groups()
    return Cell(
        network=folder.name,
        family=family,
        depth=int(depth),
        parameters=report["parameters"],
        training_error=100 * (1 - history[-1]["accuracy"]),
        test_error=100 * (1 - report["top1_accuracy"]),
        wall_time_s=report["wall_time_s"],
    )


def read_history(path):
    """The rows that `write_history` wrote, without what was not measured."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def as_markdown(result):
    """A Degradation as a table in Markdown, and what it says in words."""
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
            f"| {cell.network} | {cell.parameters:,} | {cell.training_error:.2f} | {cell.test_error:.2f} "
            f"| {cell.wall_time_s:,.0f} |"
            for cell in result.cells
        ),
        *(f"| {network} | | | | not trained yet |" for network in result.missing),
        "",
        *(f"{change.in_words.capitalize()} percentage points.  " for change in result.changes),
    ]
    return "\n".join(lines) + "\n"
