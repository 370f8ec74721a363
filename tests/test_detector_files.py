"""Weights of detectors: layouts in both directions, files of other networks, hostile and damaged files, settings."""

import json
import shutil
import zipfile
from dataclasses import replace

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file
from support import (
    NARROW_DETECTORS,
    REFERENCES,
    assert_same_arrays,
    narrow_detector,
    random_images,
    read_arrays,
    with_config,
    write_archive,
)

from keras_resnet import (
    build,
    create,
    get_spec,
    list_weights,
    load_model,
    load_weights,
    save_weights,
    with_settings,
)
from keras_resnet.data.detection_preprocessing import DetectionPreprocessing
from keras_resnet.data.labels import coco_classes
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.variants import VARIANTS
from keras_resnet.weights.catalog import WEIGHTS
from keras_resnet.weights.spec_matching import variant_of

NARROW = REFERENCES / "detectors"


def load(name, variant=None, path=None, **changes):
    """The detector of a reference, or another variant on its backbone, with the weights of its file or another one."""
    row = NARROW_DETECTORS[name]
    backbone = replace(get_spec(row["variant"]).backbone, **row["backbone"])
    changes = {"backbone": backbone} | changes
    return create(variant or row["variant"], weights=path or NARROW / f"{name}.safetensors", **changes)


def detections(model):
    """The outputs of a detector for a random image."""
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(random_images(1, 64, 96, 3)))


def assert_same_detections(found, expected):
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.fixture(scope="module")
def faster():
    """A narrow Faster R-CNN; not to be changed."""
    return narrow_detector("fasterrcnn")[0]


@pytest.mark.parametrize("name", NARROW_DETECTORS)
def test_widths_classes_and_epsilon_follow_from_the_file(name):
    """Today's names mean an epsilon of 1e-5, those of 2019 frozen batch norms without one."""
    spec = narrow_detector(name)[0].spec
    assert (spec.classes, spec.rpn_width if "rcnn" in name else 16) == (4, 16)
    assert spec.neck_width == (32 if name == "retinanet_v2" else 16)
    assert spec.box_width == (16 if "rcnn" in name else 1024)
    assert spec.backbone.bn_epsilon == (0.0 if name in ("maskrcnn", "retinanet") else 1e-5)


@pytest.mark.parametrize("name", NARROW_DETECTORS)
def test_saved_files_equal_those_of_torchvision(name, tmp_path):
    """The same names, old or new, and values."""
    for suffix in (".safetensors", ".pth"):
        save_weights(narrow_detector(name)[0], tmp_path / f"out{suffix}", layout="torchvision")
        assert_same_arrays(read_arrays(tmp_path / f"out{suffix}"), read_arrays(NARROW / f"{name}.safetensors"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".h5", ".weights.h5", ".keras"])
@pytest.mark.parametrize("name", ["maskrcnn_v2", "retinanet_v2"])
def test_files_with_the_names_of_keras_restore_weights_spec_and_info(name, suffix, tmp_path):
    """Also of transposed convolutions, and of group norms."""
    model = narrow_detector(name)[0]
    save_weights(model, tmp_path / f"model{suffix}")
    restored = load(name, path=tmp_path / f"model{suffix}")
    assert restored.spec == model.spec
    assert restored.info["preprocessing"] == model.info["preprocessing"]
    for ours, theirs in zip(restored.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_epsilon_of_zero_can_be_requested_for_files_with_new_names():
    """COCO_V1 weights that a newer torchvision saved need it, and do not say so."""
    backbone = replace(narrow_detector("fasterrcnn")[0].spec.backbone, bn_epsilon=0.0)
    assert load("fasterrcnn", backbone=backbone).spec.backbone.bn_epsilon == 0.0


def test_the_weights_that_torchvision_publishes_are_known():
    """torchvision 0.29.2: the beginning of the SHA-256 is in the name of each file."""
    digests = {
        "fasterrcnn_resnet50_fpn": "258fb6c6",
        "fasterrcnn_resnet50_fpn_v2": "dd69338a",
        "maskrcnn_resnet50_fpn": "bf2d0c1e",
        "maskrcnn_resnet50_fpn_v2": "73cbd019",
        "retinanet_resnet50_fpn": "eeacb38b",
        "retinanet_resnet50_fpn_v2": "5905b1c5",
    }
    for name, digest in digests.items():
        assert list_weights(name) == ["coco", "torchvision:COCO_V1"]
        row = WEIGHTS[name, "torchvision:COCO_V1"]
        assert row.digest == f"sha256:{digest}"
        assert row.url == f"https://download.pytorch.org/models/{name}_coco-{digest}.pth"
        assert (row.preprocessing.min_size, row.preprocessing.max_size) == (800, 1333)
    assert len(coco_classes()) == 91


REFUSED = {
    "a mask head": ("fasterrcnn_resnet18_fpn", "maskrcnn", "with a mask head"),
    "no mask head": ("maskrcnn_resnet18_fpn", "fasterrcnn", "without a mask head"),
    "dense heads": ("fasterrcnn_resnet18_fpn", "retinanet", "with dense heads"),
    "regions": ("retinanet_resnet18_fpn", "fasterrcnn", "with region proposals"),
    "version 2": ("fasterrcnn_resnet50_fpn", "fasterrcnn_v2", "with batch norm in the pyramid"),
    "version 1": ("maskrcnn_resnet50_fpn_v2", "maskrcnn", "without batch norm in the pyramid"),
    "group norm": ("retinanet_resnet50_fpn", "retinanet_v2", "with group norm"),
    "no group norm": ("retinanet_resnet50_fpn_v2", "retinanet", "without group norm"),
}


@pytest.fixture
def no_layers(monkeypatch):
    """Building a detector fails."""

    def fail(*arguments, **keywords):
        raise AssertionError("a detector is built")

    monkeypatch.setattr("keras_resnet.weights.detector_weights.build_detector", fail)


@pytest.mark.usefixtures("no_layers")
@pytest.mark.parametrize("case", REFUSED)
def test_files_of_another_kind_of_detector_are_refused(case):
    variant, name, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        load(name, variant)


@pytest.mark.usefixtures("no_layers")
def test_files_of_classifiers_and_detectors_are_not_confused():
    classifier, detector = REFERENCES / "networks" / "resnet18.safetensors", NARROW / "fasterrcnn.safetensors"
    with pytest.raises(ValueError, match=r"not of a residual network.*`backbone_weights`"):
        create("fasterrcnn_resnet18_fpn", weights=classifier)
    with pytest.raises(ValueError, match="not of a detector"):
        create("resnet18", weights=detector)
    with pytest.raises(ValueError, match="not of a detector"):
        create("fasterrcnn_resnet18_fpn", backbone_weights=detector)


def test_weights_of_another_backbone_are_refused():
    with pytest.raises(ValueError, match="exactly the weights of resnet34, the backbone of fasterrcnn_resnet34_fpn"):
        create("fasterrcnn_resnet34_fpn", backbone_weights=REFERENCES / "networks" / "resnet18.safetensors")


DIFFERENT = {
    "rpn_convs": {"rpn_convs": 2},
    "levels": {"levels": (3, 4, 5), "extra_levels": "p5"},
    "mask_convs": {"mask_head": True, "mask_convs": 2},
    "box_head": {"box_head": "conv"},
}


@pytest.mark.parametrize("field", DIFFERENT)
def test_files_whose_spec_is_of_another_detector_are_refused(field, tmp_path, faster):
    spec = replace(faster.spec, **DIFFERENT[field])
    save_weights(build(spec, initialize=False), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model.safetensors.*{field}=.* \(not "):
        load("fasterrcnn", "maskrcnn_resnet18_fpn" if spec.mask_head else None, tmp_path / "model.safetensors")


def test_anchors_are_those_of_the_weights(tmp_path, faster):
    anchors = ((8,), (16,), (32,), (64,), (128,))
    path = tmp_path / "model.safetensors"
    save_weights(build(replace(faster.spec, anchor_sizes=anchors), initialize=False), path)
    model = load("fasterrcnn", path=path)
    assert model.spec.anchor_sizes == model.get_layer("proposals").anchor_sizes == anchors
    with pytest.raises(ValueError, match=r"`anchor_sizes` should be \(\(8,\)"):
        load("fasterrcnn", path=path, anchor_sizes=((32,),) * 5)
    with pytest.raises(ValueError, match="anchor_sizes=.*not"):
        load_weights(faster, path)


def test_the_classes_of_a_retinanet_with_other_anchors_are_those_of_its_file(tmp_path):
    spec = replace(narrow_detector("retinanet")[0].spec, anchor_sizes=((8,), (16,), (32,), (64,), (128,)))
    save_weights(build(spec, initialize=False), tmp_path / "model.safetensors")
    assert load("retinanet", path=tmp_path / "model.safetensors").spec == spec


def test_images_are_normalised_as_for_the_weights_of_the_backbone(tmp_path):
    network = build(narrow_resnet18(), classes=3, initialize=False)
    network.info = {"preprocessing": Preprocessing("caffe").to_config()}
    save_weights(network, tmp_path / "network.safetensors")
    arguments = {"backbone": narrow_resnet18(), "backbone_weights": tmp_path / "network.safetensors", "neck_width": 8}
    model = create("retinanet_resnet18_fpn", **arguments, min_size=300)
    assert model.info["preprocessing"] == DetectionPreprocessing("caffe", min_size=300).to_config()
    assert create("retinanet_resnet18_fpn", **arguments, mode="tf").info["preprocessing"]["mode"] == "tf"


def test_tags_of_backbones():
    """Those of its variant, which may have biases and another epsilon; a network that is no variant has none."""
    for name, row in VARIANTS.items():
        assert (
            variant_of(replace(row, conv_bias=not row.conv_bias, bn_epsilon=0.5), ("conv_bias", "bn_epsilon")) == name
        )
    with pytest.raises(ValueError, match=r"a tag of `list_weights\('resnet50'\)`"):
        create("fasterrcnn_resnet50_c4", backbone_weights="image-net")
    with pytest.raises(ValueError, match="`backbone_weights` should be the path of a weights file"):
        create("fasterrcnn_resnet18_fpn", backbone=narrow_resnet18(), backbone_weights="imagenet")


def test_a_width_that_the_weights_do_not_have_is_refused():
    with pytest.raises(ValueError, match="`neck_width` should be 16 for these weights"):
        load("fasterrcnn", neck_width=32)


def test_all_differences_are_in_one_message(tmp_path):
    arrays = read_arrays(NARROW / "fasterrcnn.safetensors")
    del arrays["rpn.head.bbox_pred.bias"]
    arrays |= {"extra.weight": np.zeros(3, "float32"), "rpn.head.cls_logits.bias": np.zeros(5, "float32")}
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as refused:
        load("fasterrcnn", path=tmp_path / "model.safetensors")
    for part in ("1 missing: rpn_deltas/bias", "1 left over: extra.weight", "rpn_objectness/bias (5,), not (3,)"):
        assert part in str(refused.value)


def test_an_array_with_other_axes_is_one_message(tmp_path):
    arrays = read_arrays(NARROW / "fasterrcnn.safetensors")
    arrays["roi_heads.box_head.fc6.weight"] = arrays["roi_heads.box_head.fc6.weight"][..., None, None]
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors.*1 of another shape: box_fc6/kernel"):
        load("fasterrcnn", path=tmp_path / "model.safetensors")


HOSTILE = {
    "backbone.fpn.inner_blocks.0.0.bias": (65536, 4096),
    "roi_heads.box_head.fc6.bias": (65536, 16384),
    "roi_heads.box_predictor.cls_score.bias": (200_000, 90_000),
    "rpn.head.conv.0.0.bias": (65536, 16384),
}


@pytest.mark.usefixtures("no_layers")
@pytest.mark.parametrize("name", HOSTILE)
def test_widths_that_a_file_has_no_weights_for_are_refused(name, tmp_path):
    """A bias of a few kilobytes may not make a detector of gigabytes."""
    arrays = read_arrays(NARROW / "fasterrcnn.safetensors")
    widths = {"neck_width": 16, "rpn_width": 16, "box_width": 16}
    for length in HOSTILE[name]:
        save_file(arrays | {name: np.zeros(length, "float32")}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="model.safetensors"):
            load("fasterrcnn", path=tmp_path / "model.safetensors", **widths)


def test_detectors_of_too_many_parameters_are_refused():
    with pytest.raises(ValueError, match="parameters"):
        build(replace(get_spec("fasterrcnn_resnet18_fpn"), neck_width=16_000))


def heads(model, prefixes=("fpn_", "rpn_", "box_", "mask_", "dense_")):
    """{name: kernel} of the layers of neck and heads."""
    layers = [layer for layer in model.layers if layer.name.startswith(prefixes) and hasattr(layer, "kernel")]
    return {layer.name: keras.ops.convert_to_numpy(layer.kernel) for layer in layers}


def test_new_heads_are_initialized_as_those_of_torchvision():
    """torchvision: normal with 0.01 in RPN and RetinaNet, whose bias is -log(99); uniform, within 1 / sqrt(inputs)."""
    for model in (
        build(replace(get_spec("retinanet_resnet18_fpn"), backbone=narrow_resnet18(), neck_width=64)),
        create(
            "retinanet_resnet18_fpn",
            backbone_weights=REFERENCES / "networks" / "resnet18.safetensors",
            backbone=narrow_resnet18(),
            neck_width=64,
        ),
    ):
        kernels = heads(model, ("dense_",))
        for kernel in kernels.values():
            np.testing.assert_allclose(kernel.std(), 0.01, rtol=0.02)
        assert not np.array_equal(kernels["dense_classes0"], kernels["dense_classes1"])
        np.testing.assert_allclose(model.get_layer("dense_scores").bias, -np.log(99), rtol=1e-6)
    model = load("fasterrcnn", classes=7)
    assert model.spec.classes == 7
    kernel = heads(model)["box_scores"]
    assert 0.2 < abs(kernel).max() <= 16**-0.5


def narrow_resnet18():
    return replace(get_spec("resnet18"), widths=(8, 16, 24, 32), stem_width=8)


def test_detectors_that_get_weights_draw_no_random_ones():
    """But layers keep their initializers, for clones."""
    spec = replace(get_spec("fasterrcnn_resnet18_fpn"), backbone=narrow_resnet18(), neck_width=8)
    model = build(spec, initialize=False)
    assert not any(kernel.any() for kernel in heads(model).values())
    assert isinstance(model.get_layer("rpn_conv0").kernel_initializer, keras.initializers.RandomNormal)
    assert isinstance(model.get_layer("conv1_conv").kernel_initializer, keras.initializers.HeNormal)


def test_other_settings_need_no_other_weights(faster):
    changes = {"score_threshold": 0.4, "detections": 7, "nms_threshold": 0.3, "proposals": 30}
    found, strict = detections(faster), with_settings(faster, **changes)
    assert strict.settings == replace(faster.settings, **changes)
    for ours, theirs in zip(strict.get_weights(), faster.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert_same_detections(detections(faster), found)
    fewer = detections(strict)
    assert_same_detections(fewer, detections(load("fasterrcnn", candidates=100, **changes)))
    assert (fewer["count"] < found["count"]).all()
    assert_same_detections(detections(with_settings(strict, **faster.settings.to_config())), found)


def test_settings_that_are_none_are_refused(faster):
    with pytest.raises(ValueError, match=r"`score_threshold` should be .* in \[0, 1\]"):
        with_settings(faster, score_threshold=5)
    with pytest.raises(TypeError, match="score_threshold"):
        with_settings(faster, score_treshold=0.5)
    with pytest.raises(ValueError, match="`model` should be a detector"):
        with_settings(keras.Sequential([keras.Input((3,))]), detections=5)


@pytest.fixture(scope="module")
def members(tmp_path_factory, faster):
    """{name: bytes} of the members of a detector's .keras file."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    faster.save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_keras_files_restore_detectors(members, tmp_path, faster):
    model = load_model(write_archive(tmp_path / "model.keras", members))
    assert (model.spec, model.settings, model.info) == (faster.spec, faster.settings, faster.info)
    assert_same_detections(detections(model), detections(faster))


CHANGES = {
    "settings of another type": lambda resnet, layers: resnet.update(settings=[1]),
    "no settings": lambda resnet, layers: resnet.update(settings=None),
    "a threshold above 1": lambda resnet, layers: resnet["settings"].update(score_threshold=5),
    "a count without end": lambda resnet, layers: resnet["settings"].update(detections=10**12),
    "an unknown setting": lambda resnet, layers: resnet["settings"].update(colour="red"),
    "another count": lambda resnet, layers: resnet["settings"].update(detections=7),
    "an unknown neck": lambda resnet, layers: resnet["spec"].update(neck="bifpn"),
    "another neck": lambda resnet, layers: resnet["spec"].update(neck="c4"),
    "other anchors": lambda resnet, layers: resnet["spec"].update(anchor_sizes=[[1]] * 5),
    "the spec of a classifier": lambda resnet, layers: resnet.update(spec=resnet["spec"]["backbone"]),
    "a backbone that is text": lambda resnet, layers: resnet["spec"].update(backbone="resnet18"),
    "an impossible size": lambda resnet, layers: resnet["info"]["preprocessing"].update(min_size=-1),
    "an unknown mode": lambda resnet, layers: resnet["info"]["preprocessing"].update(mode="gamma"),
    "preprocessing of a classifier": lambda resnet, layers: resnet["info"]["preprocessing"].update(crop=0.9),
    "a layer's threshold": lambda resnet, layers: layers["proposals"]["config"].update(nms_threshold="high"),
    "a layer's count": lambda resnet, layers: layers["detections"]["config"].update(detections=10**12),
    "a layer without its count": lambda resnet, layers: layers["detections"]["config"].pop("detections"),
    "a layer's size": lambda resnet, layers: layers["box_regions"]["config"].update(size=10**9),
}


@pytest.mark.parametrize("case", CHANGES)
def test_damaged_keras_files_are_one_error(case, members, tmp_path):
    changed = with_config(members, lambda config, layers: CHANGES[case](config["config"]["resnet"], layers))
    path = write_archive(tmp_path / "model.keras", changed)
    with pytest.raises(ValueError, match="`path` should be an intact .keras file"):
        load_model(path)


@pytest.mark.parametrize("layout", ["keras", "torchvision"])
def test_a_repository_with_a_detector_is_one_error_that_says_how_to_load_it(layout, tmp_path, faster):
    if layout == "keras":
        save_weights(faster, tmp_path / "model.safetensors")
    else:  # without a spec
        shutil.copy(NARROW / "fasterrcnn.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "resnet50"}')
    with pytest.raises(ValueError, match=r"not of a detector.*`create\(name, weights=path\)`"):
        create(tmp_path)


METADATA = {
    "spec": lambda metadata: metadata["spec"].update(neck="bifpn"),
    "backbone": lambda metadata: metadata["spec"].update(backbone=5),
    "another kind of spec": lambda metadata: metadata.update(spec=metadata["spec"]["backbone"]),
    "preprocessing": lambda metadata: metadata["info"]["preprocessing"].update(min_size="large"),
}


@pytest.mark.parametrize("case", METADATA)
def test_damaged_metadata_of_our_own_files_are_one_error(case, tmp_path, faster):
    save_weights(faster, tmp_path / "model.safetensors")
    metadata = {"spec": faster.spec.to_config(), "info": json.loads(json.dumps(faster.info))}
    METADATA[case](metadata)
    arrays = read_arrays(tmp_path / "model.safetensors")
    save_file(arrays, tmp_path / "changed.safetensors", metadata={"keras_resnet": json.dumps(metadata)})
    with pytest.raises(ValueError, match="changed.safetensors"):
        load("fasterrcnn", path=tmp_path / "changed.safetensors")
