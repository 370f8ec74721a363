"""The search space, budgets and results: against costs in closed form and exhaustive comparison."""

import json
from dataclasses import replace

import keras_tuner
import numpy as np
import pytest
from support import DIGITS, digits_cost, digits_space, sample_values

from keras_resnet import get_recipe, get_spec
from keras_resnet.architecture.spec import read_spec, write_spec
from keras_resnet.search.budget import Budget
from keras_resnet.search.hypermodel import ResNetHyperModel
from keras_resnet.search.results import COSTS, Candidate, SearchResult
from keras_resnet.search.space import SPACE, resolve_space, space_for_images, to_recipe_changes, to_spec


@pytest.mark.parametrize("side, stages, stems", [(8, 3, {"cifar"}), (32, 3, set(SPACE["stem"][1]["values"]))])
def test_space_for_images_of_several_sizes(side, stages, stems):
    rows = space_for_images(side)
    assert [name for name in rows if name.startswith("depth")] == [f"depth_{i}" for i in range(stages, 0, -1)]
    assert set(rows["stem"][1]["values"]) == stems
    for values in sample_values(rows, 100):
        spec = to_spec(values)
        assert (spec.stem, spec.block, spec.shortcut) == (values["stem"], values["block"], values["shortcut"])
        assert spec.depths == tuple(values[f"depth_{i}"] for i in range(1, stages + 1))
        assert spec.widths == tuple(values["width"] * 2**i for i in range(stages))
        assert to_recipe_changes(values) == {name: values[name] for name in ("learning_rate", "weight_decay")}


def test_large_images_get_four_stages_and_a_stem_with_stride():
    rows = space_for_images(224)
    assert set(rows["stem"][1]["values"]) == {"imagenet", "deep"} and "depth_4" in rows


def test_smallest_candidate_of_the_space():
    smallest = digits_cost(to_spec(digits_space().smallest)).parameters
    specs = [to_spec(values) for values in sample_values(space_for_images(8), 500)]
    assert min(digits_cost(spec).parameters for spec in specs) >= smallest
    assert digits_space(max_params=smallest).smallest
    with pytest.raises(ValueError, match=f"smallest has {smallest:,} parameters.*max_params={smallest - 1}"):
        digits_space(max_params=smallest - 1)


def test_a_network_is_built_only_to_measure_its_latency(built_specs):
    spec = replace(get_spec("resnet20"), depths=(1, 1, 1))
    known = digits_cost(spec)
    for limit, found in (("max_params", known.parameters), ("max_multiply_adds", known.multiply_adds)):
        assert Budget(**{limit: found}).first_exceeded(spec, *DIGITS) is None
        assert Budget(**{limit: found - 1, "max_latency": 1e-9}).first_exceeded(spec, *DIGITS) == (limit, found)
    assert not built_specs
    limit, measured = Budget(max_latency=1e-9).first_exceeded(spec, *DIGITS)
    assert limit == "max_latency" and measured > 1e-9 and built_specs == [spec]
    assert Budget(max_latency=1e9).first_exceeded(spec, *DIGITS) is None and len(built_specs) == 1  # measured once


def test_values_that_do_not_fit_together_are_invalid():
    values = {**digits_space().smallest, "groups": 2}
    assert values["block"] == "basic" and not digits_space().fits(values)
    rows = {**space_for_images(8), "groups": ("Int", {"min_value": 1, "max_value": 4})}
    assert digits_space(rows).smallest["groups"] == 1
    with pytest.raises(ValueError, match="fit together"):
        digits_space({**rows, "block": ("Fixed", {"value": "basic"}), "groups": ("Fixed", {"value": 2})})


def test_smallest_candidate_if_a_larger_value_is_cheaper():
    """The larger the output stride, the fewer multiply-adds."""
    rows = space_for_images(64, {**SPACE, "output_stride": ("Choice", {"values": [8, 16, 32]})})
    unlimited = digits_space(rows, 64)
    narrow = [{**values, "width": 8, "depth_1": 1, "depth_2": 1, "depth_3": 1} for values in sample_values(rows, 200)]
    costs = [unlimited.cost(values).multiply_adds for values in narrow if unlimited.is_valid(values)]
    assert digits_space(rows, 64, max_multiply_adds=min(costs)).smallest["output_stride"] > 8


def test_shrunk_candidates_fit_and_keep_their_recipe():
    limited = digits_space(max_params=60_000)
    for values in sample_values(limited.space, 100):
        found = limited.shrink_to_fit(values)
        assert digits_cost(to_spec(found)).parameters <= 60_000
        assert to_recipe_changes(found) == to_recipe_changes(values)
        assert (found == values) == (digits_cost(to_spec(values)).parameters <= 60_000)
        assert all(found[name] <= values[name] for name in ("width", "depth_1", "depth_2", "depth_3"))
        wider = {**found, "width": next((width for width in SPACE["width"][1]["values"] if width > found["width"]), 0)}
        assert found["width"] == values["width"] or not limited.fits(wider)


def test_given_recipe_fields_are_not_searched():
    recipe, space = resolve_space("quickstart", SPACE, {"learning_rate": 0.3, "drop_path": 0.1, "epochs": 2})
    assert (recipe.epochs, recipe.learning_rate, recipe.drop_path) == (2, 0.3, 0.0)
    model = ResNetHyperModel(*DIGITS, learning_rate=0.3, drop_path=0.1, epochs=2)
    assert model.budgeted_space.space == space_for_images(8, space) and model.recipe == recipe
    values = model.budgeted_space.smallest
    assert to_recipe_changes(values)["learning_rate"] == 0.3 and to_spec(values).drop_path == 0.1
    hp = keras_tuner.HyperParameters()
    model.declare_hyperparameters(hp)
    assert {row.name for row in hp.space if isinstance(row, keras_tuner.engine.hyperparameters.Fixed)} == {
        "learning_rate",
        "drop_path",
    }
    space = {name: row for name, row in SPACE.items() if name != "drop_path"}
    assert resolve_space(get_recipe("rsb_a2"), space, {})[1]["drop_path"] == ("Fixed", {"value": 0.05})
    assert resolve_space("quickstart", SPACE, {})[1] == SPACE


def test_specs_survive_writing_and_reading(tmp_path):
    for values in sample_values(space_for_images(8), 5):
        write_spec(to_spec(values), tmp_path / "spec.json")
        assert read_spec(tmp_path / "spec.json") == to_spec(values)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1]", "ResNetSpec as JSON"),
        ("no", "JSON file"),
        ('{"depth": 1}', "Nearest.*depths"),
        ("{}", "without.*'widths'"),
        ('{"depths": [1], "widths": [8]}', "without.*'stem'"),
    ],
)
def test_files_without_a_spec_are_refused(text, message, tmp_path):
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_spec(tmp_path / "spec.json")


def test_invalid_specs_in_files_are_refused(tmp_path):
    for change in ({"block": "x"}, {"stem": ["cifar"]}, {"depths": 5}, {"drop_path": "much"}):
        (tmp_path / "spec.json").write_text(json.dumps(get_spec("resnet20").to_config() | change))
        with pytest.raises(ValueError, match=next(iter(change))):
            read_spec(tmp_path / "spec.json")


def test_pareto_front_by_exhaustive_comparison():
    generator = np.random.default_rng(0)
    specs = [to_spec(values) for values in sample_values(space_for_images(8), 40)]
    found = tuple(
        Candidate(str(i), "COMPLETED", spec, {}, int(generator.integers(10)), int(generator.integers(9)), accuracy)
        for i, (spec, accuracy) in enumerate(zip(specs, generator.integers(10, size=40) / 10, strict=True))
    )
    result = SearchResult({}, (*found, Candidate("40", "FAILED", specs[0], {}, 0, 0)))
    for name in COSTS:
        points = {(getattr(candidate, name), candidate.top1_accuracy) for candidate in found}
        best = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)}
        front = [(getattr(candidate, name), candidate.top1_accuracy) for candidate in result.pareto_front(name)]
        assert set(front) == best and front == sorted(front) and len(front) == len(best)
    assert result.winner.top1_accuracy == max(candidate.top1_accuracy for candidate in found)
