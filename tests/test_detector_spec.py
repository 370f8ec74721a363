"""DetectorSpec and DetectionSettings: names of detectors, validation, serialization; levels of backbones."""

import json
from dataclasses import FrozenInstanceError, replace

import keras
import pytest
from support import narrow

from keras_resnet import DetectionSettings, Detector, DetectorSpec, create, get_spec, list_models
from keras_resnet.architecture.detector import backbone_spec
from keras_resnet.architecture.network import feature_maps

DEPTHS = (18, 34, 50, 101, 152)
FASTER, MASK, RETINA, C4 = (
    get_spec(name)
    for name in ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fasterrcnn_resnet50_c4")
)
DC5 = {"neck": "dc5", "levels": (5,), "extra_levels": None, "anchor_sizes": ((64, 128),)}


def test_the_detectors_are_those_of_torchvision_on_five_networks_and_the_papers():
    kinds = ("fasterrcnn", "maskrcnn", "retinanet")
    expected = {f"{kind}_resnet{depth}_fpn" for kind in kinds for depth in DEPTHS}
    expected |= {f"{kind}_resnet50_fpn_v2" for kind in kinds}
    expected |= {"fasterrcnn_resnet50_c4", "fasterrcnn_resnet101_c4"}
    names = list_models(task="detection")
    assert set(names) == expected and len(names) == len(expected)
    assert not set(names) & set(list_models())


@pytest.mark.parametrize("name", list_models(task="detection"))
def test_the_depth_of_the_backbone_is_in_the_name(name):
    spec = get_spec(name)
    assert f"_resnet{spec.backbone.depth}_" in name
    assert spec.mask_head == name.startswith("mask") and (spec.box_head == "dense") == name.startswith("retina")


@pytest.mark.parametrize("name", list_models(task="detection"))
def test_specs_are_frozen_and_serializable(name):
    spec = get_spec(name)
    assert DetectorSpec(**json.loads(json.dumps(spec.to_config()))) == spec
    with pytest.raises(FrozenInstanceError):
        spec.classes = 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet50"}, "`backbone` should be a ResNetSpec, such as `get_spec"),
        ({"backbone": get_spec("resnet20")}, "four stages"),
        ({"backbone": replace(get_spec("resnet50"), output_stride=8)}, "stride of 32"),
        ({"backbone": replace(get_spec("resnet50"), data_format="channels_first")}, "channels last"),
        ({"neck": "fnp"}, "'fpn'"),
        ({"neck": None}, "`neck`"),
        ({"neck": "c4"}, r"\(4,\)"),
        (DC5 | {"levels": (4,)}, r"\(5,\)"),
        ({"levels": ()}, "from 2 to 5"),
        ({"levels": (2, 4)}, "consecutive"),
        ({"levels": (4, 5, 6)}, "from 2 to 5"),
        ({"levels": (1, 2)}, "from 2 to 5"),
        ({"extra_levels": "p6"}, "'pool'"),
        ({"extra_levels": "p5"}, "sizes for each of 6 levels"),
        ({"neck_width": 0}, "16384"),
        ({"neck_width": 10**9}, "16384"),
        ({"neck_width": 256.0}, "an integer"),
        ({"neck_norm": "group"}, "'batch'"),
        ({"anchor_sizes": ((32,), (64,))}, "sizes for each of 5 levels"),
        ({"anchor_sizes": ((32,), (64,), (128,), (256,), ())}, "equally many"),
        ({"anchor_sizes": ((),) * 5}, "at least one"),
        ({"anchor_sizes": ((0,),) * 5}, "positive"),
        ({"anchor_sizes": 32}, "`anchor_sizes`"),
        ({"anchor_ratios": ()}, "positive numbers"),
        ({"anchor_ratios": (0.5, -1.0)}, "positive numbers"),
        ({"anchor_ratios": (float("nan"),)}, "`anchor_ratios"),
        ({"rpn_convs": -1}, "from 0 to 100"),
        ({"rpn_convs": True}, "an integer"),
        ({"head_convs": 10**6}, "from 0 to 100"),
        ({"box_head": "stage4"}, '"c4"'),
        ({"box_head": "mpl"}, "'mlp'"),
        ({"head_norm": "group"}, "dense head"),
        ({"mask_head": 1}, "True or False"),
        ({"classes": 1}, "with the background"),
        ({"classes": 10**9}, "100000"),
    ],
)
def test_invalid_specs_raise_value_errors(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        replace(FASTER, **changes)
    assert "Received: " in str(error.value)


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (RETINA, {"mask_head": True}, "without a mask head"),
        (RETINA, DC5, 'neck "fpn"'),
        (RETINA, {"head_norm": "group", "neck_width": 48}, "divisible by 32"),
        (C4, {"mask_head": True}, "without a mask head"),
        (C4, {"backbone": get_spec("resnet50v2")}, "post-activation"),
        (C4, {"backbone": replace(C4.backbone, downsample_at="last")}, '`downsample_at` "first"'),
        (C4, {"box_head": "mlp"}, '"stage4" for the neck "c4"'),
    ],
)
def test_values_that_exclude_each_other_raise_value_errors(spec, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(spec, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_threshold": 1.5}, r"in \[0, 1\]"),
        ({"nms_threshold": -0.1}, r"in \[0, 1\]"),
        ({"proposal_nms_threshold": float("nan")}, "`proposal_nms_threshold`"),
        ({"score_threshold": "0.5"}, "`score_threshold`"),
        ({"detections": 0}, r"in \[1, 100000\]"),
        ({"proposals": 10**9}, r"in \[1, 100000\]"),
        ({"candidates": 2.5}, "an integer"),
    ],
)
def test_invalid_settings_raise_value_errors(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        DetectionSettings(**changes)
    assert "Received: " in str(error.value)
    with pytest.raises(ValueError, match=message):
        create("fasterrcnn_resnet18_fpn", **changes)


@pytest.fixture(scope="module")
def config():
    """The configuration of a small detector, as in its .keras file."""
    sizes = {"classes": 3, "neck_width": 32, "head_convs": 1}
    return create("retinanet_resnet18_fpn", score_threshold=0.25, detections=7, **sizes).get_config()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("spec", {"neck_width": 10**12}, "neck_width"),
        ("spec", {"neck_width": "256"}, "neck_width"),
        ("spec", {"classes": -1}, "classes"),
        ("spec", {"anchor_sizes": [[32]] * 10**5}, "anchor_sizes"),
        ("spec", {"necks": "fpn"}, "necks"),
        ("spec", {"backbone": {"depths": [10**9]}}, "depths"),
        ("spec", {"backbone": []}, "should be an object"),
        ("settings", {"detections": 10**12}, "detections"),
        ("settings", {"score_threshold": None}, "score_threshold"),
        ("settings", {"threshold": 0.5}, "threshold"),
    ],
)
def test_values_in_a_file_that_no_detector_has_are_refused(config, field, value, message):
    stored = config["resnet"]
    changed = config | {"resnet": stored | {field: stored[field] | value}}
    with pytest.raises(ValueError, match=message):
        Detector.from_config(changed)


def test_a_configuration_restores_spec_and_settings(config):
    restored = Detector.from_config(json.loads(json.dumps(config)))
    assert restored.spec == replace(get_spec("retinanet_resnet18_fpn"), classes=3, neck_width=32, head_convs=1)
    assert restored.settings == DetectionSettings(score_threshold=0.25, detections=7)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "resnet50v2", "resnetv2_50", "resnet50d", "seresnext50_32x4d"]
)
def test_the_levels_of_every_backbone_have_the_strides_of_the_detection_literature(name):
    """Also where a stage's last block downsamples (keras.applications' V2): its stages have strides 8, 16, 32, 32."""
    inputs = keras.Input((128, 192, 3))
    for changes, strides in (({}, (4, 8, 16, 32)), (DC5, (4, 8, 16, 16))):
        backbone = backbone_spec(replace(FASTER, backbone=narrow(get_spec(name)), **changes))
        _, *maps = feature_maps(backbone, backbone.levels, inputs)
        assert [tuple(level.shape[1:3]) for level in maps] == [(128 // stride, 192 // stride) for stride in strides]
        assert sum(backbone.levels, ()) == sum(backbone.stages, ())
