"""ResNetSpec: depths, validation, serialization; names of networks."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from keras_resnet import ResNetSpec, get_spec, list_models


@pytest.mark.parametrize(
    ("name", "depth"),
    [("resnet18", 18), ("resnet34", 34), ("resnet50", 50), ("resnet101", 101), ("resnet152", 152), ("plain34", 34)]
    + [("resnet26", 26), ("resnet50d", 50), ("resnet50v2", 50), ("resnext101_32x8d", 101)]
    + [(f"resnet{6 * n + 2}", 6 * n + 2) for n in (3, 5, 7, 9, 18, 200)]  # He et al. 2015, sec. 4.2
    + [("preact_resnet110", 110), ("preact_resnet164", 164), ("preact_resnet1001", 1001)],
)
def test_depth_is_counted_as_in_the_papers(name, depth):
    assert get_spec(name).depth == depth


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "bottelneck"}, "bottleneck"),
        ({"stem": "imgenet"}, "imagenet"),
        ({"shortcut": "D"}, "shortcut"),
        ({"depths": ()}, "1 to 8 stages"),
        ({"depths": (3, 4)}, "as long as `widths`"),
        ({"depths": (3, 4, 6, 0)}, r"`depths\[3\]` should be an integer in \[1, 2000\]"),
        ({"depths": 16}, "a list"),
        ({"widths": (64, 128, 256, -1)}, r"an integer in \[1, 65536\]"),
        ({"widths": (64.0, 128, 256, 512)}, "an integer"),
        ({"groups": 0}, r"an integer in \[1, 65536\]"),
        ({"groups": 32, "group_width": 1, "widths": (32, 64, 128, 256)}, "group_width"),
        ({"block": "basic", "groups": 32}, "basic"),
        ({"shortcut": None, "merge": "concat"}, "plain net"),
        ({"shortcut": "A", "widths": (512, 256, 128, 64)}, "shortcut A"),
        ({"output_stride": 24}, "power of two"),
        ({"output_stride": 2}, "stem's stride"),
        ({"drop_path": 1.0}, r"\[0, 1\)"),
        ({"drop_path": float("nan")}, "finite number"),
        ({"bn_epsilon": -1e-5}, r"in \[0, 1\]"),
        ({"eca": True, "se_ratio": 0.25}, "squeeze-excite"),
        ({"stem": "deep", "stem_width": 33}, "even"),
        ({"preactivation": "yes"}, "True or False"),
        ({"stride_on": "2x2"}, "3x3"),
        ({"kernel_initializer": "he_norml"}, "initializer"),
    ],
)
def test_invalid_specs_raise_value_errors(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        ResNetSpec(**changes)
    assert "Received: " in str(error.value)


@pytest.mark.parametrize("name", list_models())
def test_specs_are_frozen_and_serializable(name):
    spec = get_spec(name)
    assert ResNetSpec(**json.loads(json.dumps(spec.to_config()))) == spec
    assert eval(repr(spec)) == spec
    with pytest.raises(FrozenInstanceError):
        spec.depths = (1,)


def test_drop_path_grows_linearly_from_zero():
    rates = [block.drop_path for stage in replace(get_spec("resnet18"), drop_path=0.7).stages for block in stage]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


@pytest.mark.parametrize(
    ("name", "message"), [("resnet51", "resnet50"), ("ResNext50", "resnext50_32x4d"), ("", "list_models")]
)
def test_unknown_names_raise_errors_with_the_nearest_names(name, message):
    with pytest.raises(ValueError, match=message):
        get_spec(name)


def test_names_may_have_any_case_and_omit_cifar():
    assert get_spec("ResNet50V2") is get_spec("resnet50v2")
    assert get_spec("resnet20") is get_spec("resnet20_cifar")
    assert all("cifar" in name for name in list_models("*cifar*")) and len(list_models("*cifar*")) == 14
