"""SPACE, the search space: a row for each searched field of ResNetSpec or Recipe; values of the rows -> ResNetSpec."""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import product
from typing import Any

from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.architecture.stems import STEMS
from keras_resnet.errors import check_known, is_number, unknown_name_error
from keras_resnet.training.recipe import Recipe
from keras_resnet.training.recipes import get_recipe

Space = Mapping[str, tuple[str, Mapping[str, Any]]]
"""{name of a value: (method of keras_tuner.HyperParameters, its arguments)}."""
Values = Mapping[str, Any]
"""One candidate: {name of a value: value}."""

SPACE: Space = {
    # A candidate over the budget is shrunk row by row, in this order.
    "width": ("Choice", {"values": [8, 12, 16, 24, 32, 48, 64]}),  # of stem and first stage; doubles with each stage
    "depth": ("Int", {"min_value": 1, "max_value": 4}),  # blocks, sampled for each stage
    "block": ("Choice", {"values": ["basic", "bottleneck"]}),
    "shortcut": ("Choice", {"values": ["A", "B", "C", "pooled"]}),
    "stem": ("Choice", {"values": ["cifar", "imagenet", "deep"]}),
    "drop_path": ("Float", {"min_value": 0.0, "max_value": 0.2, "step": 0.05}),
    "learning_rate": ("Float", {"min_value": 0.02, "max_value": 0.5, "sampling": "log"}),
    "weight_decay": ("Float", {"min_value": 1e-5, "max_value": 5e-3, "sampling": "log"}),
}
END_VALUES = {
    # method -> the values of a row that include its cheapest one
    "Int": lambda row: [row["min_value"], row["max_value"]],
    "Float": lambda row: [row["min_value"], row["max_value"]],
    "Boolean": lambda row: [False, True],
    "Fixed": lambda row: [row["value"]],
    "Choice": lambda row: row["values"],
}
SMALL_SIDE = 64
"""Largest image side in pixels for which networks have three stages and a stem may keep the full resolution."""

_SPEC_FIELDS = {field.name for field in fields(ResNetSpec)}
_RECIPE_FIELDS = {field.name for field in fields(Recipe)} - _SPEC_FIELDS - {"epochs", "iterations"}
_COST_UNKNOWN = _SPEC_FIELDS - {field.name for field in fields(Recipe)}
"""Fields whose larger values may cost more or less. Larger depths and widths cost more, fields of Recipe nothing."""
_DEPTH = "depth_"


def resolve_space(recipe: str | Recipe, space: Space, changes: Mapping[str, Any]) -> tuple[Recipe, Space]:
    """The recipe and the space of a search, in which the fields of the recipe in `changes` are fixed.

    Drop path is always in the space: the recipe's value is 0, since it would override the spec's. Raises ValueError for
    an unknown recipe or field, or an invalid value.
    """
    recipe = get_recipe(recipe, **changes)
    names = [name for name in (*space, "drop_path") if name in changes or name not in space]
    fixed = {name: ("Fixed", {"value": getattr(recipe, name)}) for name in names}
    return replace(recipe, drop_path=0.0), {**space, **fixed}


def space_for_images(side: int, space: Space = SPACE) -> Space:
    """The space for images with sides of `side` pixels: a depth for each stage, and only stems that suit the size.

    Its rows are "depth", "width", fields of ResNetSpec and of Recipe except the training length; raises ValueError for
    another name or method.
    """
    num_stages, rows = 3 if side <= SMALL_SIDE else 4, dict[str, Any]()
    depths = [f"{_DEPTH}{stage}" for stage in range(num_stages, 0, -1)]  # the last stage costs most, and shrinks first
    known = {"depth", "width"} | _SPEC_FIELDS | _RECIPE_FIELDS
    for name, (method, arguments) in space.items():
        check_known("space", method, END_VALUES)
        if name not in known:
            raise unknown_name_error("space", name, sorted(known), "fields of ResNetSpec or Recipe")
        if name == "stem" and method == "Choice":
            arguments = {**arguments, "values": [stem for stem in arguments["values"] if _suits_size(stem, side)]}
        rows |= dict.fromkeys(depths if name == "depth" else [name], (method, arguments))
    return rows


def _suits_size(stem, side):
    return STEMS[stem].minimum_size <= side <= (SMALL_SIDE if STEMS[stem].stride == 1 else math.inf)


def corner_values(space: Space) -> list[Values]:
    """Candidates at the ends of the space; the cheapest one of the space, by any cost, is among them."""
    ends = {name: END_VALUES[method](arguments) for name, (method, arguments) in space.items()}
    options = [values if name in _COST_UNKNOWN else [min(values)] for name, values in ends.items()]
    return [dict(zip(space, values, strict=True)) for values in product(*options)]


def values_between(row, first, last) -> list:
    """The values of a row after `first` up to `last`; of values that are not numbers only `last`."""
    method, arguments = row
    if method == "Int":
        values = range(arguments["min_value"], arguments["max_value"] + 1, arguments.get("step") or 1)
    else:
        values = arguments["values"] if method == "Choice" and is_number(last) else [last]
    found = {value for value in values if value != first and min(first, last) <= value <= max(first, last)}
    return sorted(found, reverse=first > last)


def to_spec(values: Values) -> ResNetSpec:
    """The network of a candidate; raises ValueError if the values do not fit together."""
    depths = tuple(values[name] for name in sorted(values) if name.startswith(_DEPTH))
    width = values.get("width", 16)
    widths = tuple(width * 2**stage for stage in range(len(depths)))
    others = {name: value for name, value in values.items() if name in _SPEC_FIELDS}
    return ResNetSpec(**{"depths": depths, "widths": widths, "stem_width": width, **others})


def to_recipe_changes(values: Values) -> dict[str, Any]:
    """What a candidate changes in the recipe; Hyperband also decides the number of epochs."""
    changes = {name: value for name, value in values.items() if name in _RECIPE_FIELDS}
    return changes | ({"epochs": values["tuner/epochs"]} if "tuner/epochs" in values else {})
