"""SPACE: what is searched, one row a field of the network or of its recipe; values of these rows -> ResNetSpec."""

import math
from dataclasses import fields, replace
from itertools import product

from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.architecture.stems import STEMS
from keras_resnet.errors import is_number, unknown_name_error
from keras_resnet.training.recipes import Recipe, get_recipe

SPACE = {
    # name -> (method of keras_tuner.HyperParameters, its arguments). What is made to fit shrinks row after row.
    "width": ("Choice", {"values": [8, 12, 16, 24, 32, 48, 64]}),  # of stem and first stage; doubles with each stage
    "depth": ("Int", {"min_value": 1, "max_value": 4}),  # blocks, drawn for each stage
    "block": ("Choice", {"values": ["basic", "bottleneck"]}),
    "shortcut": ("Choice", {"values": ["A", "B", "C", "pooled"]}),
    "stem": ("Choice", {"values": ["cifar", "imagenet", "deep"]}),
    "drop_path": ("Float", {"min_value": 0.0, "max_value": 0.2, "step": 0.05}),
    "learning_rate": ("Float", {"min_value": 0.02, "max_value": 0.5, "sampling": "log"}),
    "weight_decay": ("Float", {"min_value": 1e-5, "max_value": 5e-3, "sampling": "log"}),
}
ENDS = {
    # method -> the values of a row among which its cheapest one is
    "Int": lambda row: [row["min_value"], row["max_value"]],
    "Float": lambda row: [row["min_value"], row["max_value"]],
    "Boolean": lambda row: [False, True],
    "Fixed": lambda row: [row["value"]],
    "Choice": lambda row: row["values"],
}
SMALL = 64
"""Side in pixels up to which images are seen at full resolution by the "cifar" stem, and in three stages."""

_SPEC = {field.name for field in fields(ResNetSpec)}
_RECIPE = {field.name for field in fields(Recipe)} - _SPEC - {"epochs", "iterations"}
_EITHER_WAY = _SPEC - {field.name for field in fields(Recipe)}
"""What may cost more or less with a larger value. Depth and width cost more; what a recipe has too costs nothing."""
_STAGED = "depth_"


def settle(recipe, space, changes):
    """What a search trains by, and what it searches: a field that `changes` names is not searched.

    Args:
        recipe: name of a recipe, or a Recipe.
        space: rows as in SPACE.
        changes: {field of the recipe: value}.

    Returns:
        (Recipe, rows). Drop path is the network's, and 0 in the recipe, where it would go before that of a candidate.

    Raises:
        ValueError: for an unknown recipe or field, and a value that makes no sense.
    """
    recipe = get_recipe(recipe, **changes)
    named = [name for name in (*space, "drop_path") if name in changes or name not in space]
    fixed = {name: ("Fixed", {"value": getattr(recipe, name)}) for name in named}
    return replace(recipe, drop_path=0.0), {**space, **fixed}


def rows_for(side, space=SPACE):
    """The rows that images of `side` pixels need: a depth for each stage, and only stems that are made for them.

    Args:
        side: of the images.
        space: rows like those of SPACE: "depth" and "width" as there, else fields of ResNetSpec and Recipe,
            but not how long it trains.

    Raises:
        ValueError: for a row that is none.
    """
    stages, rows = 3 if side <= SMALL else 4, {}
    depths = [f"{_STAGED}{stage}" for stage in range(stages, 0, -1)]  # the last one costs most, and shrinks first
    for name, (method, arguments) in space.items():
        if method not in ENDS:
            raise unknown_name_error("space", method, ENDS)
        if name not in {"depth", "width"} | _SPEC | _RECIPE:
            raise unknown_name_error(
                "space", name, ["depth", "width", *sorted(_SPEC | _RECIPE)], "fields of ResNetSpec or Recipe"
            )
        if name == "stem" and method == "Choice":
            arguments = arguments | {"values": [stem for stem in arguments["values"] if _is_for(stem, side)]}
        rows |= dict.fromkeys(depths if name == "depth" else [name], (method, arguments))
    return rows


def _is_for(stem, side):
    return STEMS[stem].minimum_size <= side <= (SMALL if STEMS[stem].stride == 1 else math.inf)


def declare(rows, hp, defaults):
    """Makes the rows known to a keras_tuner.HyperParameters.

    Returns:
        {name: the value that `hp` has for it}.
    """
    return {
        name: getattr(hp, method)(name, **({} if method == "Fixed" else {"default": defaults[name]}), **arguments)
        for name, (method, arguments) in rows.items()
    }


def extremes(rows):
    """Values of the candidates among which the smallest of the space is, by whatever measure."""
    ends = {name: ENDS[method](arguments) for name, (method, arguments) in rows.items()}
    options = [values if name in _EITHER_WAY else [min(values)] for name, values in ends.items()]
    return [dict(zip(rows, values, strict=True)) for values in product(*options)]


def between(row, first, last):
    """The values of a row from one to another, without the first: all numbers, of anything else the last one."""
    method, arguments = row
    if method == "Int":
        values = range(arguments["min_value"], arguments["max_value"] + 1, arguments.get("step") or 1)
    else:
        values = arguments["values"] if method == "Choice" and is_number(last) else [last]
    found = {value for value in values if value != first and min(first, last) <= value <= max(first, last)}
    return sorted(found, reverse=first > last)


def spec_of(values):
    """{name: value} -> ResNetSpec.

    Raises:
        ValueError: if the values do not go together.
    """
    depths = tuple(values[name] for name in sorted(values) if name.startswith(_STAGED))
    width = values.get("width", 16)
    given = {name: value for name, value in values.items() if name in _SPEC}
    return ResNetSpec(
        **{
            "depths": depths,
            "widths": tuple(width * 2**stage for stage in range(len(depths))),
            "stem_width": width,
            **given,
        }
    )


def changes_of(values):
    """{name: value} -> what changes in the recipe. Hyperband says how many epochs a candidate is worth."""
    changes = {name: value for name, value in values.items() if name in _RECIPE}
    return changes | ({"epochs": values["tuner/epochs"]} if "tuner/epochs" in values else {})
