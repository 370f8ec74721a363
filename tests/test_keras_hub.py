"""Files of KerasHub, which tests/references/make_keras_hub.py wrote, and encoders for its detectors."""

import json
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
from support import REFERENCES, assert_same_arrays, random_images, randomize_weights, read_arrays

from keras_resnet import (
    Preprocessing,
    Segmenter,
    complexity,
    create,
    feature_extractor,
    get_spec,
    preprocessing,
    save_weights,
)
from keras_resnet.data.segmentation_preprocessing import SegmentationPreprocessing
from keras_resnet.weights.loading import build_from_file

FOLDER = REFERENCES / "keras_hub"
PUBLISHED_SEGMENTER = 39_190_656
NARROW = {"depths": (1, 1), "widths": (64, 128)}
VARIANTS = {
    "basic": "resnet18",
    "bottleneck": "resnet50_v1_5",
    "preactivation": "resnetv2_50",
    "basic_vd": "resnet18_vd",
    "bottleneck_vd": "resnet50d",
}


def outputs(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False))


@pytest.mark.parametrize("kind", VARIANTS)
def test_files_of_keras_hub_reproduce_its_logits(kind, tmp_path):
    spec, path, expected = replace(get_spec(VARIANTS[kind]), **NARROW), FOLDER / f"{kind}.weights.h5", outputs_file()
    model = build_from_file(spec, path, input_shape=(33, 32, 3), classifier_activation=None)
    np.testing.assert_allclose(outputs(model, expected["x"]), expected[kind], rtol=1e-5, atol=1e-5)
    save_weights(model, tmp_path / "ours.h5", layout="keras_hub")
    assert_same_arrays(read_arrays(tmp_path / "ours.h5"), read_arrays(path))


def outputs_file():
    return np.load(FOLDER / "outputs.npz")


def test_a_preset_has_the_logits_and_the_preprocessing_of_keras_hub():
    model, expected = create(FOLDER / "preset", classifier_activation=None), np.load(FOLDER / "preset.npz")
    assert preprocessing(model) == Preprocessing("torch", size=32, resize=32, interpolation="bicubic")
    assert (
        model.spec.to_config() | {"data_format": None}
        == replace(get_spec("resnet18"), depths=(1, 1), widths=(64, 16)).to_config()
    )
    np.testing.assert_allclose(outputs(model, expected["prepared"]), expected["logits"], rtol=1e-5, atol=1e-5)
    prepared = preprocessing(model)(expected["images"])  # KerasHub does not round pixels, and crops before resizing
    np.testing.assert_allclose(prepared[:, 2:-2], expected["prepared"][:, 2:-2], atol=0.03)
    features = create(FOLDER / "preset", include_top=False, pooling="avg")
    assert features.count_params() == model.count_params() - 17 * 5


def preset(folder, kind="preset", **files):
    """A copy of the preset; {"task": None} is without task.json, {"config": {"block_type": ...}} has other values."""
    shutil.copytree(FOLDER / kind, folder)
    for name, changes in files.items():
        path = folder / f"{name}.json"
        if changes is None:
            path.unlink()
            continue
        values = json.loads(path.read_text())
        values["config"] |= changes
        path.write_text(json.dumps(values | changes))
    return folder


def test_a_preset_of_a_backbone_gets_a_new_classifier(tmp_path):
    folder = preset(tmp_path / "backbone", task=None)
    with pytest.warns(UserWarning, match="no classes"):
        assert create(folder, classes=7).output_shape == (None, 7)
    with pytest.raises(ValueError, match="include_top=False"):
        create(folder)
    assert create(folder, include_top=None).output_shape == (None, None, None, 16)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config", {"registered_name": "keras_hub>DenseNetBackbone"}, "DenseNetBackbone"),
        ("config", {"block_type": "basic_block", "use_pre_activation": True}, "resnet18"),
        ("config", {"stackwise_num_strides": [1, 1]}, "strides"),
        ("config", {"stackwise_num_blocks": [1, 1500]}, "arrays with"),
        ("config", {"stackwise_num_filters": [64, 32]}, "parameters"),
        ("config", {"stackwise_num_filters": None}, "a list"),
        ("task", {"pooling": "max"}, "average pooling"),
        ("image_converter", {"registered_name": None}, "ResNetImageConverter"),
    ],
)
def test_presets_of_other_networks_are_refused(file, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        create(preset(tmp_path / "preset", **{file: changes}))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"crop_to_aspect_ratio": False, "scale": None, "offset": None}, (None, [0, 0, 0], [255, 255, 255])),
        ({"scale": 1 / 127.5, "offset": -1}, (32, [-1, -1, -1], [1, 1, 1])),
    ],
)
def test_the_image_converter_of_a_preset(values, expected, tmp_path):
    found = preprocessing(create(preset(tmp_path / "preset", image_converter=values)))
    resize, *extremes = expected
    assert found.resize == resize
    for value, normalized in zip((0, 255), extremes, strict=True):
        np.testing.assert_allclose(found(np.full((32, 32, 3), value, "uint8"))[0, 0, 0], normalized, atol=1e-5)


@pytest.mark.parametrize(
    "values", [{"pad_to_aspect_ratio": True}, {"image_size": None}, {"interpolation": "lanczos5"}, {"scale": [0, 0, 0]}]
)
def test_a_preprocessing_that_is_not_here_is_unknown(values, tmp_path):
    with pytest.warns(UserWarning, match="image_converter.json"):
        model = create(preset(tmp_path / "preset", image_converter=values))
    with pytest.raises(ValueError, match="preprocessing"):
        preprocessing(model)


def test_a_preset_of_a_segmenter_has_the_logits_of_keras_hub():
    model, expected = create(FOLDER / "segmenter"), np.load(FOLDER / "segmenter.npz")
    spec = model.spec
    assert isinstance(model, Segmenter)
    assert (spec.head, spec.output_stride, spec.dilations, spec.decoder_width) == ("deeplabv3plus", 32, (1, 2, 3), 4)
    assert (spec.decoder_kernels, spec.auxiliary, spec.classes) == ((1,), False, 5)
    assert preprocessing(model) == SegmentationPreprocessing("torch", 32)
    np.testing.assert_allclose(outputs(model, expected["x"]), expected["logits"], rtol=1e-4, atol=1e-4)
    assert create(FOLDER / "segmenter", shorter_side=96).info["preprocessing"]["shorter_side"] == 96
    with pytest.warns(UserWarning, match="newly"):
        assert create(FOLDER / "segmenter", classes=3).output_shape[-1] == 3


def test_the_parameters_of_the_published_segmenter_are_those_that_keras_hub_states():
    """39,190,656 in keras_hub/src/models/deeplab_v3/deeplab_v3_presets.py, without the layer of the classes."""
    spec = replace(
        get_spec("deeplabv3plus_resnet50"), output_stride=32, rates=(24, 48, 72), decoder_kernels=(1,), classes=1
    )
    cost = complexity(spec)
    assert cost.parameters + cost.statistics - (256 + 1) == PUBLISHED_SEGMENTER


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config", {"low_level_feature_key": None}, "DeepLabV3"),
        ("config", {"spatial_pyramid_pooling_key": "P4"}, "enlarged by 8"),
        ("config", {"upsampling_size": [8, 8]}, "an integer"),
        ("config", {"dilation_rates": []}, "one or several dilations"),
        ("config", {"dilation_rates": [1, 2]}, "3 dilated convolutions, not 2"),
        ("config", {"projection_filters": 16_000}, "arrays with"),
        ("task", {"activation": "sigmoid"}, "softmax or logits"),
    ],
)
def test_presets_of_other_segmenters_are_refused(file, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        create(preset(tmp_path / "segmenter", "segmenter", **{file: changes}))


def test_a_segmenter_is_not_written_in_the_layout_of_keras_hub(tmp_path):
    with pytest.raises(ValueError, match="`layout` should be one with a name for every weight"):
        save_weights(create(FOLDER / "segmenter"), tmp_path / "ours.h5", layout="keras_hub")


def test_the_keras_applications_network_gets_the_stride_of_keras_hub():
    loaded = create("resnet50", weights=FOLDER / "bottleneck.weights.h5", input_shape=(32, 32, 3), **NARROW)
    assert (loaded.spec.stride_on, loaded.spec.conv_bias, loaded.spec.bn_epsilon) == ("3x3", False, 1e-5)


def test_an_extractor_has_what_the_detectors_of_keras_hub_expect_of_an_image_encoder():
    extractor = feature_extractor("resnet18", endpoints=("C3", "C4", "C5"))
    assert extractor.data_format == "channels_last"
    assert {name: maps.shape[-1] for name, maps in extractor.pyramid_outputs.items()} == {
        "P3": 128,
        "P4": 256,
        "P5": 512,
    }
    config = keras.saving.serialize_keras_object(extractor)
    assert list(keras.saving.deserialize_keras_object(config).pyramid_outputs) == ["P3", "P4", "P5"]
    by_stage = feature_extractor("resnet20", endpoints=("stem", "stage2"), input_shape=(32, 32, 3))
    assert list(by_stage.pyramid_outputs) == ["P3"]
    assert feature_extractor("resnet18", pooling="avg").pyramid_outputs == create("resnet20").pyramid_outputs == {}


def test_the_output_stride_of_an_extractor_dilates_with_the_same_weights():
    """As if the network had been built with this stride; the maps of the stages before are the same."""
    model = randomize_weights(create("resnet18", classes=3, input_shape=(64, 64, 3)))
    extractor = feature_extractor(model, endpoints=("C3", "C5"), output_stride=8)
    direct = create("resnet18", include_top=False, input_shape=(64, 64, 3), output_stride=8)
    direct.set_weights(model.get_weights()[:-2])
    x = random_images(1, 64, 64, 3)
    found = extractor(x, training=False)
    assert found["C5"].shape == (1, 8, 8, 512) and extractor.spec.output_stride == 8
    np.testing.assert_array_equal(found["C5"], outputs(direct, x))
    np.testing.assert_array_equal(found["C3"], feature_extractor(model, endpoints="C3")(x, training=False)["C3"])
    assert feature_extractor("resnet18", output_stride=16).spec.output_stride == 16
    with pytest.raises(ValueError, match="output_stride"):
        feature_extractor("resnet18", output_stride=12)
    with pytest.raises(ValueError, match="spec"):
        feature_extractor(keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3)), output_stride=8)
