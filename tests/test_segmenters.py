"""Segmenters: names, specs, layers, costs, sizes of images, files."""

import json
from dataclasses import FrozenInstanceError, replace

import keras
import numpy as np
import pytest
from PIL import Image
from support import SMALL, narrow, random_images, randomize_weights, small_segmenter

from keras_resnet import (
    Segmenter,
    SegmenterSpec,
    build,
    complexity,
    create,
    get_spec,
    list_models,
    load_model,
    preprocessing,
)
from keras_resnet.architecture.segmenter import ResizeLike, without_auxiliary
from keras_resnet.data.preprocessing import MAX_SIDE
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.precision import precision_scope
from keras_resnet.variants import network_task

HEADS = ("fcn", "deeplabv3", "deeplabv3plus")
FCN, DEEPLAB, PLUS = (get_spec(f"{head}_resnet50") for head in HEADS)
TORCHVISION = {  # `num_params` and `_ops` in torchvision/models/segmentation/{fcn,deeplabv3}.py
    "fcn_resnet50": (35_322_218, 152.717),
    "fcn_resnet101": (54_314_346, 232.738),
    "deeplabv3_resnet50": (42_004_074, 178.722),
    "deeplabv3_resnet101": (60_996_202, 258.743),
}


def test_the_segmenters_are_three_heads_on_four_networks():
    names = list_models(task="segmentation")
    assert set(names) == {f"{head}_resnet{depth}" for head in HEADS for depth in (18, 34, 50, 101)}
    assert all(get_spec(name).backbone.depth == int(name.partition("_resnet")[2]) for name in names)
    assert not set(names) & set(list_models())


@pytest.mark.parametrize("name", list_models(task="segmentation"))
def test_specs_are_frozen_and_serializable(name):
    spec = get_spec(name)
    assert SegmenterSpec(**json.loads(json.dumps(spec.to_config()))) == spec
    with pytest.raises(FrozenInstanceError):
        spec.classes = 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet50"}, "`backbone` should be a ResNetSpec, such as `get_spec"),
        ({"backbone": replace(SMALL, depths=(1,), widths=(8,))}, "several stages"),
        ({"backbone": replace(get_spec("resnet50"), data_format="channels_first")}, "channels last"),
        ({"head": "fnc"}, "'fcn'"),
        ({"head": None}, "`head`"),
        ({"output_stride": 12}, "a power of two, at least the stem's"),
        ({"output_stride": 64}, "at most 32, the stride of the backbone"),
        ({"output_stride": 2}, "at least the stem's stride of 4"),
        ({"rates": ()}, "one or several dilations"),
        ({"rates": (0,)}, r"`rates\[0\]`"),
        ({"rates": tuple(range(1, 18))}, "at most 16"),
        ({"head_width": 0}, "`head_width`"),
        ({"head_width": 10**9}, "`head_width`"),
        ({"decoder_width": True}, "`decoder_width`"),
        ({"decoder_kernels": (2,)}, "odd numbers"),
        ({"decoder_kernels": (17,)}, "`decoder_kernels"),
        ({"dropout": 1.0}, "`dropout`"),
        ({"classes": 0}, "`classes`"),
        ({"classes": 256}, r"\[1, 255\]"),
        ({"classes": 2.0}, "`classes`"),
        ({"auxiliary": 1}, "`auxiliary`"),
    ],
)
def test_invalid_specs_are_one_error(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(FCN, **changes)


def test_dilations_cover_the_same_part_of_the_image_at_every_output_stride():
    strides = (8, 16, 32)
    assert [replace(DEEPLAB, output_stride=stride).dilations for stride in strides] == [
        (12, 24, 36),
        (6, 12, 18),
        (3, 6, 9),
    ]
    assert PLUS.dilations == (6, 12, 18)  # arXiv:1802.02611, at an output stride of 16


@pytest.mark.parametrize("name", TORCHVISION)
def test_costs_equal_those_of_torchvision(name):
    """torchvision's multiply-adds at 520x520 have the auxiliary head, which is computed in training only."""
    parameters, giga = TORCHVISION[name]
    cost = complexity(get_spec(name))
    auxiliary = 65**2 * (9 * 1024 * 256 + 256 * 21)
    assert cost.parameters == parameters
    assert (cost.multiply_adds + auxiliary) / 1e9 == pytest.approx(giga, abs=0.01)


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_costs_equal_those_of_the_built_model(head, auxiliary):
    spec = replace(get_spec(f"{head}_resnet50"), auxiliary=auxiliary, head_width=16, classes=4)
    spec = replace(spec, backbone=narrow(spec.backbone))
    cost, model = complexity(spec, input_shape=(64, 96, 3)), build(spec)
    assert cost.parameters + cost.statistics == model.count_params()
    assert cost.parameters == sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(32, 48), (33, 47), (17, 80)])
def test_logits_have_the_size_of_the_images(head, size):
    model = small_segmenter(head)
    logits = model.predict(random_images(2, *size, 3), verbose=0)
    assert logits.shape == (2, *size, 5) and logits.dtype == np.float32 and np.isfinite(logits).all()
    assert isinstance(model, Segmenter) and network_task(model) == "segmentation"


@pytest.mark.parametrize("name", ["resnet50d", "resnext50_32x4d", "resnet50v2", "seresnet50", "resnet20"])
def test_any_network_can_be_the_backbone(name):
    backbone = narrow(get_spec(name))
    for head in HEADS:
        spec = SegmenterSpec(backbone, head, output_stride=4 if name == "resnet20" else 8, head_width=8, classes=3)
        cost, model = complexity(spec, input_shape=(64, 64, 3)), build(spec)
        assert model.predict(random_images(1, 37, 40, 3), verbose=0).shape == (1, 37, 40, 3)
        assert cost.parameters + cost.statistics == model.count_params()


@pytest.mark.parametrize("kernels", [(), (1,), (3,), (5, 1, 3)])
def test_decoders_have_the_requested_convolutions(kernels):
    model = small_segmenter("deeplabv3plus", decoder_kernels=kernels)
    cost = complexity(model.spec, input_shape=(24, 32, 3))
    names = [f"decoder_hidden{number}_conv" for number in range(len(kernels))]
    assert tuple(model.get_layer(name).kernel_size[0] for name in names) == kernels
    assert cost.parameters + cost.statistics == model.count_params()


def test_maps_have_the_requested_stride():
    for stride in (8, 16, 32):
        model = build(replace(FCN, backbone=narrow(FCN.backbone), output_stride=stride))
        features = keras.Model(model.input, model.get_layer("fcn_logits").output)
        assert features.predict(random_images(1, 64, 96, 3), verbose=0).shape[1:3] == (64 // stride, 96 // stride)


def test_maps_are_enlarged_bilinearly():
    """As Pillow enlarges images of floats."""
    maps = random_images(1, 7, 5, 2)
    found = np.asarray(keras.ops.convert_to_numpy(ResizeLike()(maps, np.zeros((1, 23, 31, 3), "float32"))))
    for channel in range(2):
        expected = Image.fromarray(maps[0, ..., channel]).resize((31, 23), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(found[0, ..., channel], np.asarray(expected), rtol=1e-5, atol=1e-5)


def test_maps_of_one_pixel_are_repeated():
    maps = random_images(2, 1, 1, 3)
    found = keras.ops.convert_to_numpy(ResizeLike()(maps, np.full((2, 4, 6, 5), np.inf, "float32")))
    np.testing.assert_array_equal(found, np.broadcast_to(maps, (2, 4, 6, 3)))


@pytest.mark.parametrize("head", HEADS)
def test_the_auxiliary_head_has_no_effect_on_the_logits(head):
    model, images = small_segmenter(head), random_images(1, 24, 32, 3)
    inference = without_auxiliary(model)
    assert (inference.spec.auxiliary, inference.count_params() < model.count_params()) == (False, True)
    assert not [layer.name for layer in inference.layers if layer.name.startswith("aux")]
    logits = model.predict(images, verbose=0)
    np.testing.assert_allclose(inference.predict(images, verbose=0), logits, rtol=1e-5, atol=1e-5)
    model.get_layer("aux_logits").bias.assign(np.full(5, np.nan))
    np.testing.assert_array_equal(model.predict(images, verbose=0), logits)
    assert without_auxiliary(inference) is inference


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_segmenter_is_the_same(tmp_path, head):
    model, images = small_segmenter(head), random_images(2, 24, 32, 3)
    model.info = {"class_names": list("abcde"), "colors": [[index, 0, 0] for index in range(5)]}
    model.save(tmp_path / "segmenter.keras")
    loaded = load_model(tmp_path / "segmenter.keras")
    assert (type(loaded), loaded.spec, loaded.info) == (Segmenter, model.spec, model.info)
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), model.predict(images, verbose=0))


def test_a_segmenter_in_bfloat16_returns_float32():
    with precision_scope("bfloat16"):
        model = small_segmenter("deeplabv3plus")
    reference = small_segmenter("deeplabv3plus")
    images = random_images(1, 24, 32, 3)
    logits, expected = model.predict(images, verbose=0), reference.predict(images, verbose=0)
    assert logits.dtype == np.float32 and model.get_layer("aspp_project_conv").compute_dtype == "bfloat16"
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


def test_create_takes_the_fields_of_spec_and_preprocessing():
    model = create("FCN_ResNet18", classes=3, output_stride=32, auxiliary=False, shorter_side=96, name="mine")
    assert (model.name, model.spec.classes, model.spec.output_stride, model.spec.auxiliary) == ("mine", 3, 32, False)
    assert preprocessing(model) == SegmentationPreprocessing("torch", 96)
    assert create("fcn_resnet18", backbone="resnet26").spec.backbone == get_spec("resnet26")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"classes": 0}, ValueError, "`classes`"),
        ({"shorter_side": 0}, ValueError, "`shorter_side` should be from 1 to"),
        ({"include_top": False}, ValueError, "`include_top` should be left out for a segmenter"),
        ({"input_shape": (64, 64, 3)}, ValueError, "`input_shape` should be left out for a segmenter"),
        ({"aux_loss": True}, TypeError, "`auxiliary`"),
        ({"backbone": "resnet5"}, ValueError, "`backbone` should be a name of"),
        ({"weights": "coco_vocs"}, ValueError, "Received: weights='coco_vocs'"),
        ({"weights": "x.pth", "backbone_weights": "y.pth"}, ValueError, "`backbone_weights` should be None with"),
    ],
)
def test_invalid_arguments_are_one_error(arguments, error, message):
    with pytest.raises(error, match=message):
        create("fcn_resnet18", **arguments)


def test_preprocessing_resizes_the_shorter_side_as_torchvision_does():
    """torchvision.transforms.functional._compute_resized_output_size: the longer side is rounded down."""
    resize = SegmentationPreprocessing(shorter_side=520).resized
    assert [resize(*size) for size in ((480, 641), (641, 480), (375, 500), (520, 520))] == [
        (520, 694),
        (694, 520),
        (520, 693),
        (520, 520),
    ]
    assert SegmentationPreprocessing().resized(97, 131) == (97, 131)
    with pytest.raises(ValueError, match=f"at most {MAX_SIDE} pixels along the longer side"):
        resize(1, 10_000)


def test_preprocessing_normalises_as_torchvision_does():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), "uint8")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = np.asarray(Image.fromarray(image).resize((20, 15), Image.Resampling.BILINEAR))
    found = SegmentationPreprocessing(shorter_side=15)([image, image])
    np.testing.assert_allclose(found, [(expected / 255 - mean) / std] * 2, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="of one size after resizing"):
        SegmentationPreprocessing()([image, image[:20]])


def test_preprocessing_is_restored_from_its_values():
    value = SegmentationPreprocessing("tf", 96)
    assert SegmentationPreprocessing.from_config(json.loads(json.dumps(value.to_config()))) == value
    with pytest.raises(ValueError, match="shorter_side"):
        SegmentationPreprocessing.from_config({"mode": "tf", "shorter_side": "96"})


def test_small_segmenters_need_a_stride_of_their_backbone():
    with pytest.raises(ValueError, match="at most 2, the stride of the backbone"):
        small_segmenter(output_stride=8)
    randomize_weights(small_segmenter(output_stride=1))
