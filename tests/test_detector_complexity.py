"""Parameters and multiply-adds of detectors in closed form: torchvision's figures, and those of built models."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers
from support import narrow

from keras_resnet import analysis, build, complexity, get_spec, list_models

TORCHVISION_PARAMETERS = {  # `num_params` in torchvision/models/detection
    "fasterrcnn_resnet50_fpn": 41_755_286,
    "fasterrcnn_resnet50_fpn_v2": 43_712_278,
    "maskrcnn_resnet50_fpn": 44_401_393,
    "maskrcnn_resnet50_fpn_v2": 46_359_409,
    "retinanet_resnet50_fpn": 34_014_999,
    "retinanet_resnet50_fpn_v2": 38_198_935,
}
TORCHVISION_MULTIPLY_ADDS = {  # in units of 1e9, of all proposals and detections: `_ops` in the same files
    ("fasterrcnn_resnet50_fpn", 800): 134.4,
    ("fasterrcnn_resnet50_fpn_v2", 800): 280.4,
    ("maskrcnn_resnet50_fpn_v2", 800): 333.6,
    ("retinanet_resnet50_fpn", 800): 151.5,
    ("retinanet_resnet50_fpn_v2", 800): 152.2,
    ("fasterrcnn_resnet50_fpn", 1344): 216.0,
    ("fasterrcnn_resnet50_fpn_v2", 1344): 383.4,
}


@pytest.mark.parametrize(("name", "parameters"), TORCHVISION_PARAMETERS.items())
def test_parameters_equal_those_of_torchvision(name, parameters):
    assert complexity(get_spec(name)).parameters == parameters


@pytest.mark.parametrize(("name", "width", "giga"), [(*key, giga) for key, giga in TORCHVISION_MULTIPLY_ADDS.items()])
def test_multiply_adds_equal_those_of_torchvision(name, width, giga):
    assert complexity(get_spec(name), input_shape=(800, width, 3)).multiply_adds / 1e9 == pytest.approx(giga, abs=0.06)


def test_multiply_adds_of_mask_rcnn_equal_those_of_torchvision_without_detections():
    """torchvision's figure of Mask R-CNN was measured on an image without detections: without its mask head."""
    spec = get_spec("maskrcnn_resnet50_fpn")
    assert complexity(replace(spec, mask_head=False)).multiply_adds / 1e9 == pytest.approx(134.4, abs=0.06)


def narrow_detector(spec, **changes):
    """The spec with few channels and blocks, which builds fast."""
    widths = {"neck_width": 32, "rpn_width": 16, "box_width": 24, "mask_width": 8, "classes": 4}
    return replace(spec, backbone=narrow(spec.backbone), **widths, **changes)


KINDS = {  # kind -> spec: the backbones of the rows differ in depth only
    **{name: narrow_detector(get_spec(name)) for name in list_models("*resnet50*", task="detection")},
    "dc5": narrow_detector(
        get_spec("fasterrcnn_resnet50_fpn"),
        **{"neck": "dc5", "levels": (5,), "extra_levels": None, "anchor_sizes": ((16, 32, 64),)},
    ),
}
FAMILIES = ("resnet34", "resnet50v2", "resnetv2_50", "resnet50d", "seresnext50_32x4d")
"""Networks of each family; depths only change the number of equal blocks."""


def on_backbone(kind, name):
    """(spec of a kind on another narrow backbone, as a test parameter with its names)."""
    return pytest.param(replace(KINDS[kind], backbone=narrow(get_spec(name))), id=f"{kind}-{name}")


SPECS = [
    *(pytest.param(spec, id=kind) for kind, spec in KINDS.items()),
    *(on_backbone("retinanet_resnet50_fpn", name) for name in FAMILIES),
    *(on_backbone("fasterrcnn_resnet50_c4", name) for name in ("resnet34", "seresnet50")),
    *(on_backbone("dc5", name) for name in ("resnet34", "resnet50v2")),
]


def multiply_adds_of_one_image(model, image):
    """Multiply-adds of all convolutions and dense layers, from the shapes of the arrays that they compute."""
    calls = [
        (layer, node.output_tensors[0], node.arguments.args[0])
        for layer in model.layers
        if hasattr(layer, "kernel")
        for node in layer._inbound_nodes
    ]
    transposed = layers.Conv2DTranspose  # each weight is multiplied once for every position of the input
    tensors = [given if isinstance(layer, transposed) else result for layer, result, given in calls]
    arrays = keras.Model(model.input, tensors)(image)
    return sum(
        int(np.prod(layer.kernel.shape)) * int(np.prod(array.shape[:-1]))
        for (layer, *_), array in zip(calls, arrays, strict=True)
    )


@pytest.mark.parametrize("spec", SPECS)
def test_the_closed_form_agrees_with_the_model(spec):
    model = build(spec, initialize=False)
    cost = complexity(spec, input_shape=(70, 101, 3))
    assert cost.parameters + cost.statistics == model.count_params()
    assert cost.parameters == sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert cost == analysis.total_cost(analysis.layer_costs(model, (70, 101, 3)))
    assert cost.multiply_adds == multiply_adds_of_one_image(model, np.zeros((1, 70, 101, 3), "float32"))


@pytest.mark.parametrize("name", ["maskrcnn_resnet18_fpn", "retinanet_resnet18_fpn", "fasterrcnn_resnet50_c4"])
def test_parameters_agree_with_the_built_model_of_full_width(name):
    cost = complexity(get_spec(name))
    assert cost.parameters + cost.statistics == build(get_spec(name), initialize=False).count_params()


def test_an_input_shape_that_is_none_is_refused():
    with pytest.raises(ValueError, match="`input_shape` should be"):
        complexity(get_spec("fasterrcnn_resnet50_fpn"), input_shape=(800, None, 3))
