"""SPACE: what is searched, one row a field of the network or of its recipe; values of these rows -> ResNetSpec."""

import math
from dataclasses import fields
from itertools import product

from keras_resnet.architecture.spec import ResNetSpec
from keras_resnet.architecture.stems import STEMS
from keras_resnet.errors import unknown
from keras_resnet.training.recipes import Recipe
from keras_resnet.training.workdir import read_json, write_json

SPACE = {
    # name -> (method of keras_tuner.HyperParameters, its arguments). Of numbers, a larger one never costs less.
    "depth": ("Int", {"min_value": 1, "max_value": 4}),  # blocks, drawn for each stage
    "width": ("Choice", {"values": [8, 12, 16, 24, 32, 48, 64]}),  # of stem and first stage; doubles with each stage
    "block": ("Choice", {"values": ["basic", "bottleneck"]}),
    "shortcut": ("Choice", {"values": ["A", "B", "C", "pooled"]}),
    "stem": ("Choice", {"values": ["cifar", "imagenet", "deep"]}),
    "drop_path": ("Float", {"min_value": 0.0, "max_value": 0.2, "step": 0.05}),
    "learning_rate": ("Float", {"min_value": 0.02, "max_value": 0.5, "sampling": "log"}),
    "weight_decay": ("Float", {"min_value": 1e-5, "max_value": 5e-3, "sampling": "log"}),
}
LEAST = {
    # method -> the values of a row among which its cheapest one is; what names cost, only a count tells
    "Int": lambda row: [row["min_value"]],
    "Float": lambda row: [row["min_value"]],
    "Boolean": lambda row: [False, True],
    "Fixed": lambda row: [row["value"]],
    "Choice": lambda row: row["values"] if isinstance(row["values"][0], str) else [min(row["values"])],
}
SMALL = 64
"""Side in pixels up to which pictures are seen at full resolution by the "cifar" stem, and in three stages."""

_SPEC = {field.name for field in fields(ResNetSpec)}
_RECIPE = {field.name for field in fields(Recipe)} - _SPEC - {"epochs", "iterations"}
_STAGED = "depth_"


def rows_for(side, space=SPACE):
    """The rows that pictures of `side` pixels need: a depth for each stage, and only stems that are made for them.

    Args:
        side: of the pictures.
        space: rows like those of SPACE: "depth" and "width" as there, else fields of ResNetSpec and Recipe,
            but not how long it trains.

    Raises:
        ValueError: for a row that is none.
    """
    stages = 3 if side <= SMALL else 4
    rows = {}
    for name, (method, arguments) in space.items():
        if method not in LEAST:
            raise unknown("space", method, LEAST)
        if name not in {"depth", "width"} | _SPEC | _RECIPE:
            raise unknown("space", name, ["depth", "width", *sorted(_SPEC | _RECIPE)], "fields of ResNetSpec or Recipe")
        if name == "stem" and method == "Choice":
            arguments = arguments | {"values": [stem for stem in arguments["values"] if _is_for(stem, side)]}
        names = [f"{_STAGED}{stage}" for stage in range(1, stages + 1)] if name == "depth" else [name]
        rows |= dict.fromkeys(names, (method, arguments))
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
    options = [LEAST[method](arguments) for method, arguments in rows.values()]
    return [dict(zip(rows, values, strict=True)) for values in product(*options)]


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


def write_spec(spec, path):
    """Writes a ResNetSpec as JSON, for `read_spec` and `keras-resnet train --spec`."""
    write_json(spec.to_config(), path)


def read_spec(path):
    """The ResNetSpec in a JSON file.

    Raises:
        ValueError: if the file holds none. OSError: if it cannot be read.
    """
    config, known = read_json(path), sorted(_SPEC)
    if not isinstance(config, dict):
        raise ValueError(f"Expected a ResNetSpec as JSON: a value for each of its fields. Received: {path}")
    for name in config:
        if name not in known:
            raise unknown("spec", name, known, f"fields of a ResNetSpec, in {path}")
    return ResNetSpec(**config)
