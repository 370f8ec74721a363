"""JSON of others: bounded texts, and values checked against annotations."""

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_resnet.schema import MAX_JSON_BYTES, MAX_JSON_DEPTH, MAX_JSON_VALUES, checked, parse_json


@dataclass(frozen=True)
class Run:
    step: int
    rate: float = 0.1
    name: str | None = None
    sizes: tuple[int, ...] = ()
    metrics: list[dict[str, float]] = field(default_factory=list)
    mode: Literal["min", "max"] = "min"


class Info(TypedDict, total=False):
    class_names: list[str]
    run: Run


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON_VALUES = st.recursive(SCALARS, lambda values: st.lists(values) | st.dictionaries(st.text(), values))


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (np.int64(3), int, 3),
        (3, float, 3.0),
        (np.float32(0.5), float, 0.5),
        ([1, 2], tuple[int, ...], (1, 2)),
        ((1, 2), list[float], [1.0, 2.0]),
        (None, int | None, None),
        ({"a": {"b": 1}}, dict[str, dict[str, float]], {"a": {"b": 1.0}}),
        ({"class_names": ["cat"], "note": object}, Info, {"class_names": ["cat"], "note": object}),
        ({"run": {"step": 1}}, Info, {"run": Run(1)}),
        ([math.nan, "x"], Any, [math.nan, "x"]),
    ],
)
def test_values_are_converted_to_their_annotation(value, annotation, expected):
    found = checked(value, annotation, "value")
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (True, int, r"`value` should be an integer\. Received: value=True"),
        (1.0, int, "an integer"),
        (10**400, float, "a finite number"),
        (math.nan, float, "a finite number"),
        ("1", float, "a finite number"),
        (1, bool, "True or False"),
        (["cat", 5], list[str], r"`value\[1\]` should be a string\. Received: value\[1\]=5"),
        ("cat", list[str], "a list"),
        ("x", int | None, "an integer"),
        ({"class_names": [None]}, Info, r"`value.class_names\[0\]` should be a string"),
        ({"step": "x"}, Run, "`value.step` should be an integer"),
        ({"step": 1, "metrics": [{"loss": []}]}, Run, r"`value.metrics\[0\].loss` should be a finite number"),
        ({"step": 1, "mode": ["min"]}, Run, "one of"),
        ({"stepp": 1, "step": 1}, Run, r"Nearest: \['step'"),
        ({"rate": 1}, Run, r"an object with \['step'\]"),
        ([], Run, "an object with"),
        ({1: 2}, dict[str, int], "a string"),
    ],
)
def test_other_values_are_refused_with_the_name_of_the_field(value, annotation, message):
    with pytest.raises(ValueError, match=message):
        checked(value, annotation, "value")


@given(JSON_VALUES)
def test_json_values_are_kept_without_an_annotation(value):
    text = json.dumps(value)
    assert json.dumps(parse_json(text)) == text


@given(st.dictionaries(st.sampled_from([*Run.__annotations__, "other"]), JSON_VALUES))
def test_an_object_becomes_a_dataclass_of_its_annotations_or_a_value_error(values):
    try:
        run = checked(values, Run, "run")
    except ValueError:
        return
    assert type(run.step) is int and math.isfinite(run.rate) and all(type(size) is int for size in run.sizes)
    assert {name: asdict(run)[name] for name in values} == {
        name: tuple(value) if name == "sizes" else value for name, value in values.items()
    }


@pytest.mark.parametrize(
    "text",
    [
        "[" * (MAX_JSON_DEPTH + 1),
        '{"a":' * 100_000 + "0" + "}" * 100_000,
        "[" + "{}," * MAX_JSON_VALUES + "{}]",
        " " * (MAX_JSON_BYTES + 1),
        '["' + '\\"' * 1_000_000,
        "9" * 5000,
        b"\xff",
        "",
        "[1,]",
    ],
    ids=["deep list", "deep object", "many values", "long", "open string", "digits", "not UTF-8", "empty", "comma"],
)
def test_texts_that_are_not_json_or_too_large_are_refused(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_brackets_in_strings_are_no_nesting():
    value = {'a"[[{': ["[" * 1000, '\\"' + "{" * 1000]}
    assert parse_json(json.dumps(value)) == value


def test_lists_and_objects_are_limited_apart_from_other_values():
    text = json.dumps([[1, 2]] * 10)
    assert parse_json(text, max_values=40, max_containers=11) == [[1, 2]] * 10
    with pytest.raises(ValueError, match="at most 10 JSON lists and objects. Received: 11"):
        parse_json(text, max_values=40, max_containers=10)
    with pytest.raises(ValueError, match="at most 20 JSON values"):
        parse_json(text, max_values=20, max_containers=11)
